"""Core: Windows of tokens around the call sites of functions, as a causal model is trained on them and tested."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from heldout.errors import check_at_least, check_between, check_nonempty, checked
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
        inside = self.calls[:, 0] < most
        names = [name for name, kept in zip(self.names, inside.tolist(), strict=True) if kept]
        return CallWindows(
            self.ids[:most], self.labels[:most], self.calls[inside], self.usages[inside], names, self.opening
        )


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
    found = []
    coded = tokenizer([function.text for function in functions], return_offsets_mapping=True, add_special_tokens=False)
    for function, ids, offsets in zip(functions, coded["input_ids"], coded["offset_mapping"], strict=True):
        found += _of_function(function, ids, offsets, length, context)
    if not found:
        raise ValueError(f"functions must have a call site that fits into {length} tokens, and have none")
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed)).tolist()
    found = [found[number] for number in order]
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
