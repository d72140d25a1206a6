"""What methods are selected on: validation sets; where only a clean one is given, left-out domains or made shifts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from heldout.data import gather
from heldout.errors import checked
from heldout.problem import Problem, Texts
from heldout.tasks import SHIFTS

AIMS = ("iid", "shift", "both")
MADE = {"gaussian_noise": 0.4, "contrast": 0.5, "blur": 0.5, "rotation": 0.3, "occlusion": 0.4}  # and severities
MOST_MADE = 3
LARGEST = 20_000  # examples of which shifts are made
FEWEST_DOMAINS = 3  # with fewer, leaving one out leaves no domains to learn from
LEFT_OUT = "left-out domain"
LEAST_LETTERS = 4  # of a word in a test set's name that tells a kind of shift: "typo", "blur"
TYPOS, KEPT = 0.1, 0.5  # share of tokens or words with a typo, and of each text that truncation keeps


def selection_sets(problem: Problem, aim: str) -> tuple[dict[str, Dataset], str | None]:
    """Returns the data sets that candidates are scored on, by name, and a warning or None.

    The file's own validation sets where there are several, or where nothing but the given distribution matters. Else
    a clean validation set cannot rank methods by what they do under shift. With three training domains or more, each
    seed of the search leaves one of them out of training and scores on it (``leaving_out``; what is returned is the
    first). Otherwise shifts are made of the validation set, of kinds that no test set is named after: images in [0, 1]
    get three of ``heldout.tasks.SHIFTS``; vectors noise, and missing columns; token ids typos, and truncation; prompts
    of a language model typos, and lower case without punctuation.

    Args:
        problem: the user's problem.
        aim: "iid", "shift" or "both"; for "shift" the scores on left-out domains or made shifts alone decide.
    """
    given = problem.validation_sets()
    if len(given) > 1 or aim == "iid" or len(problem.splits.test) < 2:
        return given, None
    ((name, dataset),) = given.items()
    better = "better is shifted validation data of your own, val={'given': ..., 'shifted': ...}"
    if leaves_out(problem, aim):
        made: dict[str, Dataset] = {LEFT_OUT: leaving_out(problem, 0)[1]}
        text = f"methods are selected on training domains, each left out of training in turn: {better}"
    else:
        made = made_shifts(dataset, list(problem.splits.test))
        text = f"methods are selected on {', '.join(made)}, made from the validation data: {better}"
    if not made:
        return given, (
            "the validation data is of the given distribution alone, and no shifts can be made of it: methods cannot "
            "be selected for robustness; give shifted validation data, val={'given': ..., 'shifted': ...}"
        )
    return (made if aim == "shift" else {name: dataset, **made}), text


def leaves_out(problem: Problem, aim: str) -> bool:
    """Returns whether methods are selected on training domains that are left out in turn."""
    domains = problem.splits.domains
    if aim == "iid" or domains is None or len(problem.validation_sets()) > 1 or len(problem.splits.test) < 2:
        return False
    return len(torch.as_tensor(domains).unique()) >= FEWEST_DOMAINS


def leaving_out(problem: Problem, turn: int) -> tuple[Problem, Dataset]:
    """Returns the problem without the training examples of one domain, and these examples.

    Args:
        problem: with ``domains``.
        turn: the number of the domain, counted round and round.
    """
    given = problem.given
    domains = torch.as_tensor(given.domains)
    known = domains.unique()
    out = domains == known[turn % len(known)]
    kept = (~out).nonzero().flatten()
    rest = replace(
        given,
        train=_part(given.train, kept),
        domains=domains[kept],
        groups=None if given.groups is None else torch.as_tensor(given.groups)[kept],
    )
    return (
        replace(problem, given=rest, asked_kind=problem.kind.name),
        _part(problem.splits.train, out.nonzero().flatten()),
    )


@checked
def made_shifts(dataset: Any, avoid: list[str], *, seed: int = 0) -> dict[str, Dataset]:
    """Returns shifted copies of a data set by name, "made" first in each name; none for inputs of another kind,
    nor one of prompts that it would leave as they are.

    Args:
        dataset: with inputs ``(channels, height, width)`` in [0, 1], ``(features,)`` or int64 token ids ``(tokens,)``,
            also as "input_ids" of a dict with an "attention_mask"; or texts with prompts.
        avoid: names of test sets: no kind is made that one is named after, however it is written.
        seed: of the noise.

    Example:
        >>> vectors = TensorDataset(torch.randn(8, 5), torch.arange(8) % 2)
        >>> list(made_shifts(vectors, avoid=["noise"]))
        ['made: missing columns']
    """
    taken = [re.findall(r"[^\W_]+", name.lower()) for name in avoid]

    def free(kind: str) -> bool:
        """Whether no name holds the kind, in one word or several, and no word of a name is of it."""
        letters = re.sub(r"[ _]", "", kind)
        words = [word for name in taken for word in name if len(word) >= LEAST_LETTERS]
        return not any(letters in "".join(name) for name in taken) and not any(word in letters for word in words)

    generator = torch.Generator().manual_seed(seed)
    if (texts := _texts(dataset)) is not None:
        changes = {"typos": lambda prompt: _misspelt(prompt, generator), "lower case": _lower_case}
        shifted = {kind: texts.with_prompts(change) for kind, change in changes.items() if free(kind)}
        return {f"made: {kind}": new for kind, new in shifted.items() if new is not None and new.rows != texts.rows}
    inputs, targets = gather(dataset, torch.arange(min(len(dataset), LARGEST)))
    tokens = inputs.get("input_ids") if isinstance(inputs, Mapping) else inputs
    if isinstance(tokens, Tensor) and tokens.dtype in (torch.int64, torch.int32) and tokens.ndim == 2:
        rest = inputs if isinstance(inputs, Mapping) else {}
        changed = {"typos": _typos(tokens, rest.get("attention_mask"), generator), **_truncated(tokens, rest, targets)}
        return {
            f"made: {kind}": _dataset(inputs, each if isinstance(each, Mapping) else {"input_ids": each}, targets)
            for kind, each in changed.items()
            if free(kind)
        }
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        return {}
    if inputs.ndim == 4 and inputs.shape[1] in (1, 3) and float(inputs.min()) >= 0 and float(inputs.max()) <= 1:
        kinds = [kind for kind in MADE if free(kind)][:MOST_MADE]
        return {
            f"made: {kind.replace('_', ' ')}": TensorDataset(SHIFTS[kind](inputs, MADE[kind], seed=seed), targets)
            for kind in kinds
        }
    if inputs.ndim == 2:
        noise = torch.randn(inputs.shape, generator=generator) * inputs.std(0, correction=0)
        missing = torch.rand(inputs.shape[1], generator=generator).argsort()[: max(1, inputs.shape[1] // 5)]
        holes = inputs.clone()
        holes[:, missing] = inputs[:, missing].mean(0)
        made = {"noise": inputs + 0.5 * noise, "missing columns": holes}
        return {f"made: {kind}": TensorDataset(copy, targets) for kind, copy in made.items() if free(kind)}
    return {}


def _texts(dataset: Any) -> Texts | None:
    """The texts that a data set is made of, at most ``LARGEST``, or None."""
    places = range(min(len(dataset), LARGEST))
    while isinstance(dataset, Subset):
        places, dataset = [dataset.indices[place] for place in places], dataset.dataset  # type: ignore[assignment]
    if not isinstance(dataset, Texts):
        return None
    return dataset.with_rows([dataset.rows[int(place)] for place in places])


def _misspelt(text: str, generator: torch.Generator) -> str:
    """In a tenth of the words of four letters and more, two neighbouring inner letters change places."""

    def swapped(found: re.Match[str]) -> str:
        word = found[0]
        if float(torch.rand((), generator=generator)) >= TYPOS:
            return word
        at = int(torch.randint(1, len(word) - 2, (), generator=generator))
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]

    return re.sub(r"[^\W\d_]{4,}", swapped, text)


def _lower_case(text: str) -> str:
    """Small letters, and no mark behind a word but at the end of a line."""
    return re.sub(r"(?<=\w)[,;:.!?]+(?= )", "", text.lower())


def _typos(tokens: Tensor, mask: Tensor | None, generator: torch.Generator) -> Tensor:
    """A tenth of the tokens, each replaced by the one that another text has at that place; padding comes nowhere."""
    others = torch.stack([torch.randperm(len(tokens), generator=generator) for _ in range(tokens.shape[1])], 1)
    hit = torch.rand(tokens.shape, generator=generator) < TYPOS
    if mask is not None:
        hit &= (mask > 0) & (mask.gather(0, others) > 0)
    return torch.where(hit, tokens.gather(0, others), tokens)


def _truncated(tokens: Tensor, rest: Mapping[str, Any], targets: Tensor) -> dict[str, Any]:
    """The first half of each text, where a mask tells its length and each text has one target."""
    mask = rest.get("attention_mask")
    if not isinstance(mask, Tensor) or targets.ndim != 1:
        return {}
    lengths = (KEPT * mask.sum(1)).ceil().long().clamp(min=1)
    short = mask * (mask.cumsum(1) <= lengths[:, None])
    return {"truncation": {"input_ids": tokens, "attention_mask": short}}


def _dataset(inputs: Any, changed: Mapping[str, Tensor], targets: Tensor) -> Dataset:
    return (
        _Rows({**inputs, **changed}, targets)
        if isinstance(inputs, Mapping)
        else TensorDataset(changed["input_ids"], targets)
    )


class _Rows(Dataset):
    """Examples as dicts with their labels."""

    def __init__(self, inputs: Mapping[str, Tensor], targets: Tensor) -> None:
        self.inputs, self.targets = inputs, targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        return {**{name: value[position] for name, value in self.inputs.items()}, "labels": self.targets[position]}


def _part(dataset: Any, positions: Tensor) -> Dataset:
    if isinstance(dataset, TensorDataset):
        return TensorDataset(*(tensor[positions] for tensor in dataset.tensors))
    return Subset(dataset, positions.tolist())
