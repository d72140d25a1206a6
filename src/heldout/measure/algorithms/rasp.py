"""Core: RASP-L: programs that a small causal transformer can learn, run on tensors, counted and checked.

A sequence is an int64 tensor ``(..., n)``, a batch of them at once; a program is a function from one to another of its
shape, whose last entry is the next token. It is written in the operations below alone, none of which looks ahead. Their
number is the length of the program, by which the conjecture of arXiv:2310.16028 predicts which algorithms carry over to
longer inputs: those with a short program that holds at every length. The library is in ``rasp_library``.

Source: arXiv:2310.16028 (Zhou et al.), section 3 and appendix: RASP-L.

Example:
    >>> import torch
    >>> from heldout.measure import rasp
    >>> x = torch.tensor([5, 7, 5, 5])
    >>> rasp.kqv(x, x, rasp.indices(x), torch.eq, reduction="min")  # where each token was seen first
    tensor([0, 1, 0, 0])
    >>> with rasp.trace() as t:
    ...     _ = rasp.kqv(x, x, rasp.indices(x), torch.eq, reduction="min")
    >>> t.n_ops
    3
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from heldout.errors import check_at_least, check_nonempty, checked

Program = Callable[[Tensor], Tensor]
Predicate = Callable[[Tensor, Tensor], Tensor]
Reduction = Literal["mean", "max", "min"]
LOWEST, HIGHEST = -128, 127
"""What a token or an index may be: eight bits."""


class LearnabilityError(ValueError):
    """A program breaks a rule of RASP-L; the message says which.

    Example:
        >>> issubclass(LearnabilityError, ValueError)
        True
    """


@dataclass
class Trace:
    """What a program did: see ``trace``.

    Attributes:
        ops: names of the operations in the order in which they ran.
        strict: whether the rules are enforced.

    Example:
        >>> with trace() as t:
        ...     _ = full(indices(torch.zeros(3, dtype=torch.int64)), 1)
        >>> t.ops, t.n_ops
        (['indices', 'full'], 2)
    """

    ops: list[str] = field(default_factory=list)
    strict: bool = False
    kinds: dict[int, tuple[str, Tensor]] = field(default_factory=dict, repr=False)

    @property
    def n_ops(self) -> int:
        """How many operations ran, those within library functions included."""
        return len(self.ops)


_TRACES: ContextVar[tuple[Trace, ...]] = ContextVar("rasp_traces", default=())


@contextmanager
def trace() -> Iterator[Trace]:
    """Counts the operations that run inside the block.

    Example:
        >>> with trace() as t:
        ...     _ = indices(torch.zeros(2, dtype=torch.int64))
        >>> t.n_ops
        1
    """
    with _tracing(Trace()) as found:
        yield found


@checked
def full(x: Tensor, value: int) -> Tensor:
    """Returns a sequence like ``x`` of one value.

    Example:
        >>> full(torch.tensor([4, 5]), 1)
        tensor([1, 1])
    """
    _check_sequences(x=x)
    return _done("full", torch.full_like(x, value), "token", x)


@checked
def indices(x: Tensor) -> Tensor:
    """Returns the index of each place, from 0.

    Example:
        >>> indices(torch.tensor([4, 5]))
        tensor([0, 1])
    """
    _check_sequences(x=x)
    places = torch.arange(x.shape[-1], device=x.device).expand(x.shape).contiguous()
    return _done("indices", places, "index", x)


@checked
def tok_map(x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Returns a function of each token; truth values become 0 and 1.

    Of an index, RASP-L allows its successor, its predecessor, and whether it is before, at or after a constant.

    Args:
        x: a sequence.
        function: elementwise on tensors.

    Raises:
        TypeError: a function that does not give integers or truth values of the same shape.

    Example:
        >>> tok_map(torch.tensor([4, 5]), lambda token: token + 1)
        tensor([5, 6])
    """
    _check_sequences(x=x)
    made = _integers(function(x), x, "function")
    return _done("tok_map", made, _mapped(x, made), x)


@checked
def seq_map(x: Tensor, y: Tensor, function: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Returns a function of the tokens of two sequences at each place.

    Where one is an index or a count, RASP-L allows their comparison by order, or the choice of one of them.

    Args:
        x: a sequence.
        y: of the same shape.
        function: elementwise on tensors.

    Raises:
        TypeError: a function that does not give integers or truth values of the same shape.

    Example:
        >>> seq_map(torch.tensor([4, 5]), torch.tensor([5, 5]), torch.eq)
        tensor([0, 1])
    """
    _check_sequences(x=x, y=y)
    made = _integers(function(x, y), x, "function")
    return _done("seq_map", made, _combined(x, y, made), x, y)


@checked
def select(keys: Tensor, queries: Tensor, predicate: Predicate) -> Tensor:
    """Returns the causal matrix ``A[..., i, j] = predicate(keys[j], queries[i])`` for j <= i, False for j > i.

    Args:
        keys: a sequence.
        queries: of the same shape.
        predicate: elementwise on tensors. Where keys or queries are indices, RASP-L allows comparison by order alone.

    Raises:
        TypeError: a predicate that does not give truth values.

    Example:
        >>> select(torch.tensor([4, 5, 4]), torch.tensor([4, 4, 4]), torch.eq).long()
        tensor([[1, 0, 0],
                [1, 0, 0],
                [1, 0, 1]])
    """
    _check_sequences(keys=keys, queries=queries)
    pairs = keys[..., None, :], queries[..., :, None]
    chosen = predicate(*pairs)
    n = keys.shape[-1]
    if not isinstance(chosen, Tensor) or chosen.dtype != torch.bool:
        raise TypeError("predicate must give truth values, as torch.eq does")
    chosen = chosen.expand(*keys.shape[:-1], n, n)
    causal = torch.ones(n, n, dtype=torch.bool, device=keys.device).tril()
    if (found := _strict()) is not None:
        _check_known(found, keys, queries)
        if "index" in (_kind(found, keys), _kind(found, queries)):
            seen = causal.expand_as(chosen)
            if not _by_order(pairs[0].expand(chosen.shape)[seen], pairs[1].expand(chosen.shape)[seen], chosen[seen]):
                raise LearnabilityError("select must compare indices or counts by their order alone")
    return _done("select", chosen & causal, "selection", keys, queries)


@checked
def sel_width(selection: Tensor) -> Tensor:
    """Returns how many places each place selects. Counts may be compared, like indices.

    Example:
        >>> x = torch.tensor([4, 5, 4])
        >>> sel_width(select(x, x, torch.eq))
        tensor([1, 1, 2])
    """
    _check_selection(selection)
    return _done("sel_width", selection.sum(-1), "index", selection)


@checked
def aggr(selection: Tensor, values: Tensor, default: int = 0, reduction: Reduction = "mean") -> Tensor:
    """Returns the mean, the largest or the smallest value of the places that each place selects.

    Args:
        selection: of ``select``, ``(..., n, n)``.
        values: a sequence.
        default: where nothing is selected.
        reduction: a mean is cut to an integer towards zero; of indices, RASP-L allows it of one place at most.

    Example:
        >>> x = torch.tensor([4, 5, 4])
        >>> aggr(select(x, x, torch.lt), x, default=-1, reduction="max")
        tensor([-1,  4, -1])
    """
    _check_selection(selection)
    _check_sequences(values=values)
    if selection.shape != (*values.shape, values.shape[-1]):
        raise ValueError(f"selection and values must match, got {tuple(selection.shape)} and {tuple(values.shape)}")
    if reduction == "mean":
        exact = torch.float32 if int(values.abs().max()) * values.shape[-1] < 2**24 else torch.float64
        parts = torch.stack([values, torch.ones_like(values)], -1).to(exact)
        total, width = (selection.view(torch.uint8).to(exact) @ parts).unbind(-1)
        made = torch.where(width > 0, torch.div(total, width.clamp(min=1), rounding_mode="trunc").long(), default)
    else:
        made = _largest(selection, values, default) if reduction == "max" else -_largest(selection, -values, -default)
    kind = "token"
    if (found := _strict()) is not None:
        _check_known(found, selection, values)
        kind = _kind(found, values)
        if kind == "index" and reduction == "mean" and int(selection.sum(-1).max()) > 1:
            raise LearnabilityError("aggr must not average indices: arithmetic on positions does not carry over")
    return _done("aggr", made, kind, selection, values)


@checked
def kqv(
    keys: Tensor,
    queries: Tensor,
    values: Tensor,
    predicate: Predicate,
    default: int = 0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Returns ``aggr(select(keys, queries, predicate), values, default, reduction)``: one head of attention.

    Example:
        >>> x = torch.tensor([4, 5, 4])
        >>> kqv(x, x, x, torch.lt, default=9, reduction="min")
        tensor([9, 4, 9])
    """
    return aggr(select(keys, queries, predicate), values, default, reduction)


@checked
def program_length(program: Program | None, x: Tensor) -> float:
    """Returns the number of operations of a program, library functions inlined; infinity where none is known.

    Args:
        program: None is "no known program".
        x: any sequence that it runs on: the number does not depend on it.

    Example:
        >>> x = torch.tensor([1])
        >>> program_length(lambda x: tok_map(x, lambda token: token + 1), x), program_length(None, x)
        (1.0, inf)
    """
    if program is None:
        return float("inf")
    with trace() as found:
        program(x)
    return float(found.n_ops)


@checked
def decode(program: Program, prompt: Tensor, end: int, *, max_new: int = 100) -> list[int]:
    """Returns what a program writes after a prompt, token by token, up to ``end``, which is left out.

    Args:
        program: the last entry of its result is the next token.
        prompt: int64 ``(n,)``.
        end: the token that ends an answer.
        max_new: tokens at most; an answer without an end has as many.

    Example:
        >>> decode(lambda x: tok_map(x, lambda token: token + 1), torch.tensor([3]), 6)
        [4, 5]
    """
    _check_sequences(prompt=prompt)
    check_at_least(1, max_new=max_new)
    if prompt.ndim != 1:
        raise ValueError(f"prompt must have 1 dimension, got shape {tuple(prompt.shape)}")
    tokens = prompt
    for _ in range(max_new):
        tokens = torch.cat([tokens, program(tokens)[-1:]])
        if int(tokens[-1]) == end:
            return tokens[len(prompt) : -1].tolist()
    return tokens[len(prompt) :].tolist()


@checked
def check_learnable(program: Program, examples: Sequence[Tensor]) -> None:
    """Refuses a program that breaks a rule of RASP-L on one of the examples.

    Rules: everything is made by the operations of this module from the input; what is said of a place does not depend
    on later ones; the operations are the same whatever the input is; tokens, indices and counts fit into eight bits;
    indices and counts are compared by order, chosen, or moved by one, and nothing else is computed with them. A rule
    is checked on the values that occur, so that examples of several lengths find more.

    Args:
        program: from a sequence to one of its shape.
        examples: int64 ``(n,)``, of any lengths.

    Raises:
        LearnabilityError: a rule is broken; the message says which.

    Source: arXiv:2310.16028, section 3.2.

    Example:
        >>> check_learnable(lambda x: tok_map(indices(x), lambda i: i % 2), [torch.zeros(9, dtype=torch.int64)])
        Traceback (most recent call last):
        heldout.measure.algorithms.rasp.LearnabilityError: tok_map must do no arithmetic on indices or counts ...
    """
    check_nonempty(examples=examples)
    ops: list[str] | None = None
    for number, x in enumerate(examples):
        _check_sequences(**{f"examples[{number}]": x})
        if x.ndim != 1:
            raise ValueError(f"examples must have 1 dimension, got shape {tuple(x.shape)} at {number}")
        with _tracing(Trace(strict=True)) as found:
            _note(found, x, "token")
            _check_range(x, "the input")
            said = program(x)
            if not isinstance(said, Tensor) or said.shape != x.shape:
                raise LearnabilityError("a program must give a sequence of the shape of its input")
            _check_known(found, said)
        if ops is not None and ops != found.ops:
            raise LearnabilityError("a program must run the same operations whatever its input is")
        ops = found.ops
        for size in range(1, len(x)):
            if int(program(x[:size])[-1]) != int(said[size - 1]):
                raise LearnabilityError(f"a program must not look ahead: place {size - 1} depends on later ones")


def _largest(selection: Tensor, values: Tensor, default: int) -> Tensor:
    """The largest selected value; a byte for each pair where the values' range allows it."""
    low = values.min()
    if int(values.max() - low) < 255:
        best = (selection.view(torch.uint8) * (values - low + 1).to(torch.uint8)[..., None, :]).amax(-1).long()
        return torch.where(best > 0, best - 1 + low, default)
    lowest = torch.iinfo(values.dtype).min
    best = torch.where(selection, values[..., None, :], lowest).amax(-1)
    return torch.where(selection.any(-1), best, default)


@contextmanager
def _tracing(found: Trace) -> Iterator[Trace]:
    token = _TRACES.set((*_TRACES.get(), found))
    try:
        yield found
    finally:
        _TRACES.reset(token)


def _strict() -> Trace | None:
    return next((each for each in _TRACES.get() if each.strict), None)


def _done(op: str, made: Tensor, kind: str, *inputs: Tensor) -> Tensor:
    """Notes an operation, and under strict rules what it made."""
    for found in _TRACES.get():
        found.ops.append(op)
    if (strict := _strict()) is not None:
        _check_known(strict, *inputs)
        if kind != "selection":
            _check_range(made, op)
        _note(strict, made, kind)
    return made


def _note(found: Trace, made: Tensor, kind: str) -> None:
    found.kinds[id(made)] = (kind, made)  # kept, so that no other tensor gets its id


def _kind(found: Trace, x: Tensor) -> str:
    return found.kinds[id(x)][0]


def _check_known(found: Trace, *inputs: Tensor) -> None:
    for each in inputs:
        if id(each) not in found.kinds:
            raise LearnabilityError(
                "a program must compute by the operations of rasp alone, got a tensor from elsewhere"
            )


def _check_range(values: Tensor, where: str) -> None:
    low, high = int(values.min()), int(values.max())
    if low < LOWEST or high > HIGHEST:
        raise LearnabilityError(f"values must be in [{LOWEST}, {HIGHEST}], got [{low}, {high}] of {where}")


def _mapped(x: Tensor, made: Tensor) -> str:
    """The kind of a function of ``x``: of an index only certain ones are allowed."""
    found = _strict()
    if found is None:
        return "token"
    _check_known(found, x)
    if _kind(found, x) != "index":
        return "token"
    moved = made - x
    if bool((moved == moved.flatten()[0]).all()) and abs(int(moved.flatten()[0])) <= 1:
        return "index"
    if bool(((made == 0) | (made == 1)).all()):
        order = x.flatten().argsort()
        values, truth = x.flatten()[order], made.flatten()[order]
        for constant in values.unique().tolist():
            parts = (truth[values < constant], truth[values == constant], truth[values > constant])
            if all(len(part.unique()) <= 1 for part in parts):
                return "token"
    raise LearnabilityError(
        "tok_map must do no arithmetic on indices or counts but successor, predecessor and comparison with a constant"
    )


def _combined(x: Tensor, y: Tensor, made: Tensor) -> str:
    """The kind of a function of ``x`` and ``y``, of which one may be an index."""
    found = _strict()
    if found is None:
        return "token"
    _check_known(found, x, y)
    kinds = {_kind(found, x), _kind(found, y)}
    if "index" not in kinds:
        return "token"
    if bool(((made == 0) | (made == 1)).all()) and _by_order(x, y, made):
        return "token"
    rest = made[(made != x) & (made != y)]
    if len(rest.unique()) <= 1:  # one of the two, or one constant in their place
        return "index"
    raise LearnabilityError("seq_map must do no arithmetic on indices or counts: they may be compared, or one chosen")


def _by_order(x: Tensor, y: Tensor, made: Tensor) -> bool:
    sign = (x - y).sign()
    return all(len(made[sign == each].unique()) <= 1 for each in (-1, 0, 1))


def _check_sequences(**named: Any) -> None:
    check_nonempty(**named)
    shapes = set()
    for name, x in named.items():
        if x.dtype != torch.int64 or not x.ndim:
            raise TypeError(f"{name} must be int64 (..., n), got {x.dtype} {tuple(x.shape)}")
        if not x.numel():
            raise ValueError(f"{name} must hold tokens, got shape {tuple(x.shape)}")
        shapes.add(tuple(x.shape))
    if len(shapes) > 1:
        raise ValueError(f"{' and '.join(named)} must be of one shape, got {' and '.join(map(str, sorted(shapes)))}")


def _check_selection(selection: Tensor) -> None:
    if selection.dtype != torch.bool or selection.ndim < 2 or selection.shape[-1] != selection.shape[-2]:
        raise TypeError(f"selection must be bool (..., n, n), got {selection.dtype} {tuple(selection.shape)}")


def _integers(made: Any, x: Tensor, argument: str) -> Tensor:
    if not isinstance(made, Tensor) or made.is_floating_point() or made.is_complex() or made.shape != x.shape:
        raise TypeError(f"{argument} must give integers or truth values {tuple(x.shape)}, elementwise")
    return made.long().clone() if made.dtype == torch.int64 else made.long()
