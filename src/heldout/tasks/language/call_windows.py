"""Core: Windows of tokens around the call sites of functions, as a causal model is trained on them and tested."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from heldout.errors import check_at_least, check_between, check_nonempty, check_same_length, checked
from heldout.tasks.language.api_stream import ApiFunction

IGNORED = -100


@dataclass(frozen=True)
class CallWindows:
    """Rows of token ids, and where calls stand in them.

    Attributes:
        ids: int64 ``(windows, length)``, padded behind.
        labels: int64 ``(windows, length)``, the ids, and -100 on padding.
        calls: int64 ``(calls, 3)``: window, first token of the called name, token behind it.
        usages: int64 ``(calls, 3)``: window, first token of the whole usage, token behind it.
        names: what is called, for each call.
        opening: int64, the tokens that begin with an opening bracket; one of them ends each name.
        files: of each window.
        inputs: what a model reads in the place of ``ids``, such as states: a tensor of as many rows; default: ``ids``.

    Example:
        >>> from heldout.lm import code_tokenizer
        >>> from heldout.tasks import api_functions
        >>> source = "import os\\ndef f(x):\\n    return os.path.join(x, x)"
        >>> functions, _ = api_functions(source, {"files": ["os"]})
        >>> tokenizer = code_tokenizer([functions[0].text], 300)
        >>> windows = call_windows(functions, tokenizer)
        >>> row, start, end = windows.calls[0].tolist()
        >>> tokenizer.decode(windows.ids[row, start:end]), len(windows)
        ('join', 1)
    """

    ids: Tensor
    labels: Tensor
    calls: Tensor
    usages: Tensor
    names: list[str]
    opening: Tensor
    files: list[str]
    inputs: Any = None

    def __post_init__(self) -> None:
        if self.inputs is None:
            object.__setattr__(self, "inputs", self.ids)
        check_same_length(ids=self.ids, inputs=self.inputs, files=self.files)

    def __len__(self) -> int:
        return len(self.ids)

    def usage_labels(self) -> Tensor:
        """Returns the ids of the tokens of usages, and -100 elsewhere: int64 ``(windows, length)``."""
        labels = torch.full_like(self.ids, IGNORED)
        for row, start, end in self.usages.tolist():
            labels[row, start:end] = self.ids[row, start:end]
        return labels

    @checked
    def first(self, most: int) -> CallWindows:
        """Returns the first windows, with their calls."""
        check_at_least(1, most=most)
        return self.at(list(range(min(most, len(self)))))

    @checked
    def draw(self, most: int, *, per_file: int | None = None, seed: int = 0) -> CallWindows:
        """Returns windows drawn at random without replacement, with their calls.

        Args:
            most: windows at most.
            per_file: of one file at most, so that no file stands for all; default: as they come.
            seed: of the draw.

        Raises:
            ValueError: numbers below 1.
        """
        check_at_least(1, most=most, **({} if per_file is None else {"per_file": per_file}))
        taken: Counter[str] = Counter()
        drawn = []
        for window in torch.randperm(len(self), generator=torch.Generator().manual_seed(seed)).tolist():
            taken[self.files[window]] += 1
            if per_file is None or taken[self.files[window]] <= per_file:
                drawn.append(window)
        return self.at(drawn[:most])

    @checked
    def at(self, windows: Sequence[int]) -> CallWindows:
        """Returns some windows in the order given, with their calls.

        Raises:
            ValueError: numbers that are none of windows, or come twice.
        """
        check_nonempty(windows=windows)
        numbers = torch.as_tensor(windows)
        check_between(0, len(self) - 1, windows=numbers)
        if len(numbers.unique()) < len(numbers):
            raise ValueError("windows must not come twice")
        place = torch.full((len(self),), -1)
        place[numbers] = torch.arange(len(numbers))
        new = place[self.calls[:, 0]]
        inside = (new >= 0).nonzero().flatten()
        inside = inside[new[inside].argsort(stable=True)]
        moved = new[inside][:, None]
        return CallWindows(
            self.ids[numbers],
            self.labels[numbers],
            torch.cat([moved, self.calls[inside, 1:]], 1),
            torch.cat([moved, self.usages[inside, 1:]], 1),
            [self.names[site] for site in inside.tolist()],
            self.opening,
            [self.files[window] for window in numbers.tolist()],
            self.inputs[numbers],
        )

    @checked
    def usage_rows(self, most: int) -> CallWindows:
        """Returns each usage of at most ``most`` tokens in a row of ``most + 1``, behind the token before it.

        Labels are -100 but for the tokens of the usage. Inputs that are states, ``(windows, length, dim)``, are those
        of the same tokens.

        Raises:
            ValueError: ``most`` below 1, or no usage that is so short.
        """
        check_at_least(1, most=most)
        row, start, end = self.usages.unbind(1)
        kept = (end - start <= most).nonzero().flatten()
        if not len(kept):
            raise ValueError(f"most must be the tokens of some usage or more, got {most}")
        row, start, end = row[kept, None], start[kept, None], end[kept, None]
        place = start - 1 + torch.arange(most + 1)
        counts = (place >= start) & (place < end)
        where = place.clamp(max=self.ids.shape[1] - 1)
        ids = self.ids[row, where]
        shift = torch.cat([row - torch.arange(len(kept))[:, None], start - 1, start - 1], 1)
        return CallWindows(
            ids,
            torch.where(counts, ids, IGNORED),
            self.calls[kept] - shift,
            self.usages[kept] - shift,
            [self.names[site] for site in kept.tolist()],
            self.opening,
            [self.files[window] for window in row.flatten().tolist()],
            self.inputs[row, where],
        )

    @checked
    def with_tokens(self, tokens: Tensor) -> CallWindows:
        """Returns the windows in a smaller vocabulary: a token's id is its place among ``tokens``.

        Inputs that are ids change as they do, states stay.

        Args:
            tokens: int64, without repetition, all that the windows and ``opening`` have.

        Raises:
            ValueError: a token of the windows is missing.
        """
        check_nonempty(tokens=tokens)
        new = torch.full((int(max(tokens.max(), self.ids.max(), self.opening.max())) + 1,), -1)
        new[tokens] = torch.arange(len(tokens))
        ids, opening = new[self.ids], new[self.opening]
        if bool((ids < 0).any()) or bool((opening < 0).any()):
            raise ValueError("tokens must have all tokens of the windows and of opening")
        labels = torch.where(self.labels == IGNORED, IGNORED, ids)
        inputs = self.inputs if self.inputs.is_floating_point() else ids
        return CallWindows(ids, labels, self.calls, self.usages, self.names, opening, self.files, inputs)

    def before_names(self) -> list[list[int]]:
        """Returns for each call the tokens of its window before the called name."""
        return [self.ids[row, :start].tolist() for row, start, _ in self.calls.tolist()]


@checked
def call_windows(
    functions: Sequence[ApiFunction], tokenizer: Any, *, length: int = 96, context: int = 32, seed: int = 0
) -> CallWindows:
    """Returns windows of functions' tokens, in random order, that hold their call sites.

    A window begins up to ``context`` tokens before the first site that no window before it holds, and takes in all
    further sites that end in it. A site whose usage is longer than ``length - context`` tokens, or begins with the
    text, is left out.

    Args:
        functions: with call sites.
        tokenizer: a fast one of transformers, with an end token to pad with.
        length: tokens of a window, at least 2.
        context: tokens before the first site, from 1 to ``length - 1``.
        seed: of the order.

    Raises:
        ValueError: no functions, or none with a site that fits; options out of range.

    Example:
        >>> from heldout.lm import code_tokenizer
        >>> from heldout.tasks import api_functions
        >>> source = "import os\\ndef f(x):\\n    return os.listdir(x), os.getcwd()"
        >>> functions, _ = api_functions(source, {"files": ["os"]})
        >>> windows = call_windows(functions, code_tokenizer([functions[0].text], 300), length=40)
        >>> windows.names, bool((windows.labels[windows.labels >= 0] == windows.ids[windows.labels >= 0]).all())
        (['listdir', 'getcwd'], True)
    """
    check_nonempty(functions=functions)
    check_at_least(2, length=length)
    check_between(1, length - 1, context=context)
    found, files = [], list[str]()
    coded = tokenizer([function.text for function in functions], return_offsets_mapping=True, add_special_tokens=False)
    for function, ids, offsets in zip(functions, coded["input_ids"], coded["offset_mapping"], strict=True):
        found += _of_function(function, ids, offsets, length, context)
        files += [function.file] * (len(found) - len(files))
    if not found:
        raise ValueError(f"functions must have a call site that fits into {length} tokens, and have none")
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed)).tolist()
    found, files = [found[number] for number in order], [files[number] for number in order]
    pad = tokenizer.eos_token_id
    ids = torch.tensor([[*row, *[pad] * (length - len(row))] for row, _ in found])
    labels = torch.tensor([[*row, *[IGNORED] * (length - len(row))] for row, _ in found])
    sites = [(number, *site) for number, (_, inside) in enumerate(found) for site in inside]
    return CallWindows(
        ids,
        labels,
        torch.tensor([[number, first, last] for number, _, first, last, _, _ in sites]),
        torch.tensor([[number, start, end] for number, start, _, _, end, _ in sites]),
        [name for *_, name in sites],
        torch.tensor([token for token in range(len(tokenizer)) if tokenizer.decode([token]).startswith("(")]),
        files,
    )


def _of_function(
    function: ApiFunction, ids: list[int], offsets: list[tuple[int, int]], length: int, context: int
) -> list[tuple[list[int], list[tuple[int, int, int, int, str]]]]:
    """Windows of a function, each with its sites: start of the usage, of the name, ends of both, and the name."""
    begin, finish = [a for a, _ in offsets], [b for _, b in offsets]

    def span(start: int, end: int) -> tuple[int, int]:  # the tokens that have a part of these characters
        first = next(number for number, b in enumerate(finish) if b > start)
        return first, next((number for number in range(first, len(begin)) if begin[number] >= end), len(begin))

    sites = [
        (*span(call.start, call.end), *span(call.name_start, call.name_end), name)
        for call, name in zip(function.calls, function.names(), strict=True)
    ]
    sites = sorted(site for site in sites if site[0] > 0 and site[1] - site[0] <= length - context)
    windows = []
    while sites:
        low = max(0, sites[0][0] - context)
        inside = [site for site in sites if site[1] <= low + length]
        rows = [(start - low, first - low, last - low, end - low, name) for start, end, first, last, name in inside]
        windows.append((ids[low : low + length], rows))
        sites = [site for site in sites if site not in inside]
    return windows
