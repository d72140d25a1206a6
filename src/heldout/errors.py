"""What is told to a user in one line: what was wrong, and what to do.

No silent wrong answer: ``checked`` holds a function's arguments to its annotations, and the ``check_*`` validators hold
them to the values that are allowed. Validators are called as statements of their own, with what they look at by name
(``check_positive(rho=rho)``), so that every message names the argument. None is passed over: whether it is allowed is
said by the annotation. Nothing is imported for this: who has a tensor has imported torch.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sized
from functools import wraps
from importlib import import_module
from inspect import signature, unwrap
from pathlib import Path
from typing import Any, NoReturn, ParamSpec, TypeVar

from heldout.annotations import Kind, kinds_of, short

P = ParamSpec("P")
R = TypeVar("R")


class ProblemError(ValueError):
    """The user's file, model or options cannot be worked on; the message says what is wrong and where."""


class MissingExtraError(ModuleNotFoundError):
    """A library that an optional part needs is not installed; the message is the line to run."""


EXTRAS: dict[str, tuple[str, ...]] = {
    "lm": (
        *("accelerate", "aiohttp", "compressed_tensors", "datasets", "peft", "rouge_score", "tokenizers"),
        *("transformers", "trl"),
    ),
    "evals": ("inspect_ai",),
    "retrieval": ("faiss",),
    "graph": ("torch_geometric",),
    "control": ("gymnasium", "minigrid"),
    "lightning": ("lightning",),
    "ray": ("ray",),
    "search": ("optuna",),
    "tracking": ("tensorboard", "wandb"),
}
"""What each extra brings, as Python imports it."""


def install_line(module: str) -> str:
    """Returns what to say where a library is not there: one line, with the command that installs it.

    Example:
        >>> install_line("transformers.utils")
        "transformers is not installed: pip install 'heldout[lm]'"
        >>> install_line("altair")
        'altair is not installed: pip install altair'
    """
    name = module.partition(".")[0]
    extra = next((extra for extra, modules in EXTRAS.items() if name in modules), None)
    return f"{name} is not installed: pip install " + (f"'heldout[{extra}]'" if extra else name)


def require(module: str) -> Any:
    """Returns a module of an optional library.

    Raises:
        MissingExtraError: it is not installed; the message names the extra that brings it.

    Example:
        >>> require("json").loads("[1]")
        [1]
        >>> require("faiss_of_tomorrow")
        Traceback (most recent call last):
        heldout.errors.MissingExtraError: faiss_of_tomorrow is not installed: pip install faiss_of_tomorrow
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise
        raise MissingExtraError(install_line(module), name=error.name) from None


def check_steps_alone(optimizer: Any, name: str) -> None:
    """Raises TypeError where an optimizer evaluates the closure by itself, as LBFGS does, and so cannot be wrapped.

    Args:
        optimizer: what is wrapped; asked whether its ``step`` needs a closure.
        name: what wraps it, for the message.

    Example:
        >>> class Searching:
        ...     def step(self, closure): ...
        >>> check_steps_alone(Searching(), "SAM")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        TypeError: SAM cannot wrap Searching, whose step evaluates the loss by itself ...
    """
    closure = signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise TypeError(
            f"{name} cannot wrap {type(optimizer).__name__}, whose step evaluates the loss by itself as often as it "
            "likes; use an optimizer that steps on the gradient it is given, such as SGD or AdamW"
        )


def check_no_own_code(folder: str | Path) -> None:
    """Raises ValueError where a transformers folder needs code of its own, which is never run.

    Args:
        folder: as ``AutoModel`` takes it; what is no folder here is not looked at.

    Example:
        >>> check_no_own_code("nowhere")
    """
    file = Path(folder) / "config.json"
    if not file.is_file():
        return
    try:
        config = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from None
    if not isinstance(config, dict) or not config.get("auto_map"):
        return
    if config.get("model_type") not in require("transformers").CONFIG_MAPPING:
        raise ValueError(
            f"{file} names code of its own (auto_map), which is never run: only models of transformers are"
        )


def check_one_row(model: Any, /, **named: int) -> None:
    """Refuses more than one row at once for a model whose ``generate`` gives other tokens for rows of a batch: RWKV's.

    Args:
        model: of transformers, asked for the kind that its configuration names.
        named: how many rows, by the argument that says so.

    Example:
        >>> from types import SimpleNamespace
        >>> check_one_row(SimpleNamespace(config=SimpleNamespace(model_type="rwkv")), batch_size=32)
        Traceback (most recent call last):
        ValueError: batch_size must be 1 for a model of the kind rwkv, which mixes up the rows of a batch, got 32
    """
    kind = getattr(getattr(model, "config", None), "model_type", None)
    for name, rows in named.items():
        if kind in ("rwkv",) and rows > 1:
            raise ValueError(
                f"{name} must be 1 for a model of the kind {kind}, which mixes up the rows of a batch, got {rows}"
            )


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Returns a function that refuses arguments which are not what its annotations say, and is otherwise the same.

    What is looked at: the kind (a number, an integer, a tensor, a module, a callable, a sequence or mapping and what is
    in it, one of several literals, an instance of a class), and that a number is not NaN. Annotations that say nothing
    to Python (a free type variable, a name that only type checkers import) are passed over, and less is asked of what
    is often duck-typed: a data set must have elements, a protocol's object one of its members. What values are allowed
    beyond their kind is for the ``check_*`` validators of this file, called in the body.

    Costs a few microseconds a call; annotations are read at the first call.

    Raises:
        TypeError: an argument is of another kind; the message names it.
        ValueError: NaN for a number, or none of the literals; the message names the argument.

    Example:
        >>> @checked
        ... def scaled(values: list[float], factor: float = 2.0) -> list[float]:
        ...     return [factor * value for value in values]
        >>> scaled([1.0, 2.0])
        [2.0, 4.0]
        >>> scaled([1.0], factor="2")
        Traceback (most recent call last):
        TypeError: factor must be a number, got '2'
        >>> scaled([1.0, None])
        Traceback (most recent call last):
        TypeError: values must be a sequence of numbers, got None at 1
    """
    bare = unwrap(function)  # torch.inference_mode() and contextmanager keep the signature of what they wrap
    code = bare.__code__
    positional = code.co_varnames[: code.co_argcount]
    kinds: dict[str, Kind] | None = None

    @wraps(function)
    def refuse_then_call(*args: P.args, **kwargs: P.kwargs) -> R:
        nonlocal kinds
        if kinds is None:
            kinds = kinds_of(bare.__annotations__, bare.__globals__)
        for name, value in zip(positional, args, strict=False):
            if name in kinds and (fault := kinds[name].fault(value)) is not None:
                _refuse(name, value, kinds[name], fault)
        for name, value in kwargs.items():
            if name in kinds and (fault := kinds[name].fault(value)) is not None:
                _refuse(name, value, kinds[name], fault)
        return function(*args, **kwargs)

    return refuse_then_call


def check_fields(record: Any) -> None:
    """Refuses fields of a dataclass that are not what its annotations say: ``checked`` for ``__post_init__``."""
    owner = type(record)
    if owner not in _FIELDS:
        found: dict[str, Kind] = {}
        for each in reversed(owner.__mro__):
            found |= kinds_of(vars(each).get("__annotations__", {}), vars(sys.modules[each.__module__]))
        _FIELDS[owner] = {name: kind for name, kind in found.items() if name in owner.__dataclass_fields__}
    for name, kind in _FIELDS[owner].items():
        if (fault := kind.fault(value := getattr(record, name))) is not None:
            _refuse(name, value, kind, fault)


_FIELDS: dict[type, dict[str, Kind]] = {}


def _refuse(name: str, value: Any, kind: Kind, fault: str) -> NoReturn:
    raise (ValueError if kind.is_of_value(value) else TypeError)(f"{name} must be {kind.words}, {fault}") from None


def check_finite(**named: Any) -> None:
    """Refuses NaN and infinity in numbers, tensors, arrays, and sequences and mappings of them.

    One pass over the values; where they lie on a GPU, the host waits for it.

    Raises:
        ValueError: something is not finite; the message names the argument.
    """
    for name, value in named.items():
        if not _is_finite(value):
            raise ValueError(f"{name} must be finite, got {_first_bad(value)}")


def check_nonempty(**named: Any) -> None:
    """Refuses what holds nothing: tensors, sequences, mappings, strings, data sets. What has no length passes."""
    for name, value in named.items():
        if 0 in (value.shape if hasattr(value, "shape") else (_length(value),)):
            raise ValueError(f"{name} must not be empty")


def check_values(**named: Any) -> None:
    """Refuses what is empty or not finite: what a statistic asks of its observations."""
    check_nonempty(**named)
    check_finite(**named)


def check_positive(**named: Any) -> None:
    """Refuses numbers (or tensors, arrays and sequences with one) that are not above 0 and finite."""
    _check_each("positive and finite", lambda value: (value > 0) & (value < math.inf), named)


def check_nonnegative(**named: Any) -> None:
    """Refuses numbers (or tensors, arrays and sequences with one) below 0, NaN or infinite."""
    _check_each("at least 0 and finite", lambda value: (value >= 0) & (value < math.inf), named)


def check_between(low: float, high: float, /, **named: Any) -> None:
    """Refuses numbers (or tensors, arrays and sequences with one) outside of [low, high]."""
    _check_each(f"between {low:g} and {high:g}", lambda value: (value >= low) & (value <= high), named)


def check_fraction(**named: Any) -> None:
    """Refuses numbers (or tensors, arrays and sequences with one) outside of [0, 1]: fractions and probabilities."""
    check_between(0, 1, **named)


def check_at_least(least: float, /, **named: Any) -> None:
    """Refuses numbers (or tensors, arrays and sequences with one) below ``least``, and NaN.

    Example:
        >>> check_at_least(1, epochs=3)
        >>> check_at_least(1, epochs=0)
        Traceback (most recent call last):
        ValueError: epochs must be at least 1, got 0
    """
    _check_each(f"at least {least:g}", lambda value: value >= least, named)


def check_labels(classes: int | None = None, /, **named: Any) -> None:
    """Refuses labels that are not integers, are negative, or are not below the number of classes where it is given.

    Also for positions, of which ``classes`` is one more than the last. Booleans pass as 0 and 1.

    Example:
        >>> check_labels(3, labels=[0, 2])
        >>> check_labels(3, labels=[0, 3])
        Traceback (most recent call last):
        ValueError: labels must be integers from 0 to 2, got 3
    """
    for name, value in named.items():
        allowed = "integers of at least 0" if classes is None else f"integers from 0 to {classes - 1}"
        if not _holds_integers(value):
            raise ValueError(f"{name} must be {allowed}, got {short(value)}")
        limit = math.inf if classes is None else classes
        _check_each(allowed, lambda entry, limit=limit: (entry >= 0) & (entry < limit), {name: value})  # type: ignore[misc]


def check_class_labels(classes: int | None = None, /, **named: Any) -> None:
    """Refuses class labels that torch's losses do not take, or that hold one class only; real numbers pass.

    Args:
        classes: how many there are; None asks for two different labels at least, instead of labels below a number.

    Example:
        >>> import torch
        >>> check_class_labels(targets=torch.tensor([0, 0]))
        Traceback (most recent call last):
        ValueError: targets hold only one class, 0
        >>> check_class_labels(2, targets=torch.tensor([0, 2]))
        Traceback (most recent call last):
        ValueError: targets must lie in 0..1, got 0..2
    """
    for name, value in named.items():
        if value.is_floating_point():
            continue
        kind = str(value.dtype).removeprefix("torch.")
        if kind not in ("int64", "uint8"):
            raise TypeError(f"{name} must be int64 class labels, got {kind}: {name}.long()")
        low, high = int(value.min()), int(value.max())
        if classes is None and low == high and value.ndim == 1 and len(value) > 1:
            raise ValueError(f"{name} hold only one class, {low}")
        if classes is not None and (low < 0 or high >= classes):
            raise ValueError(f"{name} must lie in 0..{classes - 1}, got {low}..{high}")


def check_scored(task: str, /, *, outputs: Any, targets: Any) -> None:
    """Refuses targets that accuracy (of a classification task) or squared error (of any other) cannot judge outputs by.

    Example:
        >>> import torch
        >>> check_scored("classification", outputs=torch.zeros(2, 3), targets=torch.full((2, 3), 1 / 3))
        Traceback (most recent call last):
        ValueError: targets must be class indices (batch,) to be scored, got (2, 3) of float32: ...
    """
    if task == "classification":
        if targets.ndim != 1 or targets.is_floating_point():
            raise ValueError(
                f"targets must be class indices (batch,) to be scored, got {tuple(targets.shape)} of "
                f"{str(targets.dtype).removeprefix('torch.')}: measure fitted.outputs(...)"
            )
        check_class_labels(outputs.shape[1], targets=targets)
    elif outputs.numel() != targets.numel():
        raise ValueError(
            f"targets must have the shape of outputs, {tuple(outputs.shape)}, to be scored by their squared error, got "
            f"{tuple(targets.shape)}: measure fitted.outputs(...)"
        )


def check_error_is_meant(task: str, objective: Any, /) -> None:
    """Refuses to judge a model by its squared error whose loss was a cross-entropy: soft labels are no regression."""
    name = getattr(objective, "__name__", type(objective).__name__)
    if task == "regression" and name in ("cross_entropy", "CrossEntropyLoss"):
        raise ValueError(
            "evaluate has no score for soft labels: measure fitted.outputs(data), or evaluate a plain classifier's "
            "(outputs.argmax(1) == labels)"
        )


def check_tensors(**named: Any) -> None:
    """Refuses NumPy arrays, frames and lists of numbers where tensors are asked for, and says what makes them ones.

    Example:
        >>> check_tensors(inputs=[[1.0, 2.0]])
        Traceback (most recent call last):
        TypeError: inputs must be tensors, got list: torch.as_tensor(inputs, dtype=torch.float32)
    """
    for name, value in named.items():
        several = isinstance(value, tuple | list) and any(hasattr(part, "__array__") for part in value)
        for part in value if several else (value,):
            if isinstance(part, list) or (hasattr(part, "__array__") and not hasattr(part, "requires_grad")):
                made = f"torch.as_tensor({name}, dtype=torch.float32)"
                if several:
                    made = f"torch.as_tensor(...) of each, or heldout.problem.as_examples({name})"
                raise TypeError(f"{name} must be tensors, got {type(part).__name__}: {made}")


def check_no_frame(**named: Any) -> None:
    """Refuses a table where examples are asked for, and says how inputs and target are told apart.

    Example:
        >>> import pandas as pd
        >>> check_no_frame(train=pd.DataFrame({"x": [1.0], "y": [0]}))
        Traceback (most recent call last):
        TypeError: train must be examples, got a DataFrame: heldout.problem.as_examples((train[columns], train[target]))
    """
    for name, value in named.items():
        if hasattr(value, "columns") and hasattr(value, "iloc"):
            made = f"heldout.problem.as_examples(({name}[columns], {name}[target]))"
            raise TypeError(f"{name} must be examples, got a {type(value).__name__}: {made}")


def check_same_length(**named: Any) -> None:
    """Refuses arguments of which one has more entries than another.

    Example:
        >>> check_same_length(logits=[[0.1, 0.9]], labels=[1, 0])
        Traceback (most recent call last):
        ValueError: logits and labels must be equally long, got 1 and 2
    """
    lengths = [len(value) for value in named.values() if value is not None]
    if len(set(lengths)) > 1:
        names = [name for name, value in named.items() if value is not None]
        raise ValueError(f"{' and '.join(names)} must be equally long, got {' and '.join(map(str, lengths))}")


def check_length(length: int, /, **named: Any) -> None:
    """Refuses what does not hold exactly that many entries.

    Example:
        >>> check_length(2, betas=(0.9,))
        Traceback (most recent call last):
        ValueError: betas must have 2 entries, got 1
    """
    for name, value in named.items():
        if value is not None and len(value) != length:
            raise ValueError(f"{name} must have {length} entries, got {len(value)}")


def check_dimensions(*allowed: int, **named: Any) -> None:
    """Refuses tensors and arrays that have none of the allowed numbers of dimensions."""
    for name, value in named.items():
        if value is not None and value.ndim not in allowed:
            counts = " or ".join(map(str, allowed))
            raise ValueError(f"{name} must have {counts} dimensions, got shape {tuple(value.shape)}")


def check_has(*attributes: str, **named: Any) -> None:
    """Refuses what lacks an attribute: for arguments whose class is not imported where they are used.

    Example:
        >>> check_has("print", console=None)
        Traceback (most recent call last):
        TypeError: console must have print, got None
    """
    for name, value in named.items():
        if lacking := [each for each in attributes if not hasattr(value, each)]:
            raise TypeError(f"{name} must have {' and '.join(lacking)}, got {short(value)}")


def check_different(**named: Iterable[Any]) -> None:
    """Refuses what holds the same entry twice.

    Example:
        >>> check_different(degrees=[0, 30, 60])
        >>> check_different(degrees=[0, 30, 30])
        Traceback (most recent call last):
        ValueError: degrees must be different from each other, got 30 twice
    """
    for name, value in named.items():
        seen: set[Any] = set()
        for entry in value:
            if entry in seen:
                raise ValueError(f"{name} must be different from each other, got {short(entry)} twice")
            seen.add(entry)


def check_one_of(choices: Iterable[Any], /, **named: Any) -> None:
    """Refuses what is none of the choices."""
    known = list(choices)
    for name, value in named.items():
        if value is not None and value not in known:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {short(value)}")


def _check_each(words: str, inside: Callable[[Any], Any], named: Mapping[str, Any]) -> None:
    """Every number of every argument lies inside; the first that does not is told."""
    for name, value in named.items():
        if value is None or (isinstance(value, float | int) and inside(value)):
            continue
        if hasattr(value, "flatten"):  # a tensor or an array
            if bool(inside(value).all()):
                continue
            value = value.flatten().tolist()
        entries = value if isinstance(value, Collection) and not isinstance(value, str) else [value]
        for entry in entries:
            if isinstance(entry, Sized) and not isinstance(entry, str):
                _check_each(words, inside, {name: entry})
            elif isinstance(entry, str) or not inside(entry):
                raise ValueError(f"{name} must be {words}, got {short(entry)}")


def _length(value: Any) -> int | None:
    try:
        return len(value)
    except TypeError:  # an iterator, a data set that is a stream
        return None


def _is_finite(value: Any) -> bool:
    if hasattr(value, "dtype"):
        if "float" not in str(value.dtype) and "complex" not in str(value.dtype):
            return True
        module = sys.modules["torch" if hasattr(value, "is_cuda") else "numpy"]
        return bool(module.isfinite(value).all())
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, Mapping):
        return all(map(_is_finite, value.values()))
    return not isinstance(value, list | tuple) or all(map(_is_finite, value))


def _first_bad(value: Any) -> Any:
    if isinstance(value, Mapping | list | tuple):
        entries = value.values() if isinstance(value, Mapping) else value
        return next(_first_bad(entry) for entry in entries if not _is_finite(entry))
    if hasattr(value, "flatten"):
        return next(entry for entry in value.flatten().tolist() if not math.isfinite(abs(entry)))
    return value


def _holds_integers(value: Any) -> bool:
    if hasattr(value, "dtype"):
        return not any(word in str(value.dtype) for word in ("float", "complex", "<U"))
    if isinstance(value, Collection) and not isinstance(value, str | bytes):
        return all(map(_holds_integers, value))
    return value is None or hasattr(type(value), "__index__")
