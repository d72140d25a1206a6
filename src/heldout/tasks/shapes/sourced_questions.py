"""Questions to train on, and tests of held-out pairs by where their parts come from, each with a twin of seen pairs.

Source: arXiv:2505.23045 (Li et al., IJCAI 2025).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from heldout.data import PAIR_SOURCES, combination_leaks, source_split
from heldout.errors import check_at_least, checked
from heldout.tasks.seeds import Seed, generator_of
from heldout.tasks.shapes.object_questions import ObjectExamples, ObjectQuestions, joined_examples

SOURCE_QUESTIONS = {"LL": ("exist",), "VV": ("color at", "shape at"), "LV": ("color", "shape")}
"""The kinds of ``ObjectQuestions`` in which the pair asked for is of a source of ``PAIR_SOURCES``."""
_TRAINED = ("exist", "exist", "color", "shape", "color at", "shape at")


class SourcedQuestions(NamedTuple):
    """Sets of questions, all with as many words and slots.

    Attributes:
        sets: "train" and "val" of all sources; by source its test, and "seen LL", ... of pairs that are trained on.
        numbers: int64, of the examples of each set, which no two share.
        held_out: bool ``(colors, shapes)``.
        leaks: examples outside the tests of held-out pairs that have one, those in a test that have none of its
            source, and what ``combination_leaks`` finds in training.

    Example:
        >>> made = sourced_questions(ObjectQuestions(), 60, 10, 8)
        >>> color, shape = made.sets["LL"].asked.T
        >>> bool(made.held_out[color, shape].all()), len(made.sets["LL"].answers), made.numbers["val"].tolist()[:2]
        (True, 10, [60, 61])
    """

    sets: dict[str, ObjectExamples]
    numbers: dict[str, Tensor]
    held_out: Tensor
    leaks: int


@checked
def sourced_questions(
    questions: ObjectQuestions, train: int, test: int, held_out: int, *, seed: Seed = 0
) -> SourcedQuestions:
    """Returns sets of questions in which some pairs of colour and shape are in tests alone.

    Held-out pairs are in no question, answer or picture of training, validation and the twins. A test differs from its
    twin in the pair asked for alone: all other objects are of seen pairs in both.

    Args:
        questions: of which world.
        train: questions to train on; a third asks whether there is one, and a sixth is of each other kind but
            counts, of which there are none.
        test: questions in each other set.
        held_out: how many pairs, spread over colours and shapes.
        seed: of everything.

    Raises:
        ValueError: sizes below 1, or more pairs held out than ``held_out_pairs`` takes.

    Example:
        >>> made = sourced_questions(ObjectQuestions(), 200, 20, 8)
        >>> list(made.sets), made.leaks
        (['train', 'val', 'seen LL', 'LL', 'seen VV', 'VV', 'seen LV', 'LV'], 0)
    """
    check_at_least(1, train=train, test=test, held_out=held_out)
    held = questions.held_out_pairs(held_out, seed=seed)
    generator = generator_of(seed)
    drawn = {"train": questions.draw(train, _TRAINED, allowed=~held, seed=generator)}
    drawn["val"] = questions.draw(test, _TRAINED, allowed=~held, seed=generator)
    for source, kinds in SOURCE_QUESTIONS.items():
        drawn[f"seen {source}"] = questions.draw(test, kinds, allowed=~held, seed=generator)
        drawn[source] = questions.draw(test, kinds, allowed=~held, asked=held, seed=generator)
    every = joined_examples(list(drawn.values()))
    pairs = [every.sourced_pairs(i) for i in range(len(every.answers))]
    unseen = [tuple(pair) for pair in held.nonzero().tolist()]
    split = source_split(pairs, lambda each: each, unseen)
    ends = torch.tensor([len(each.answers) for each in drawn.values()]).cumsum(0)
    numbers = dict(zip(drawn, torch.arange(len(pairs)).tensor_split(ends[:-1]), strict=True))
    wrong = sum(
        int((~torch.isin(at, split.tests[name] if name in PAIR_SOURCES else split.train)).sum())
        for name, at in numbers.items()
    )
    leaks = wrong + combination_leaks([pair for i in numbers["train"].tolist() for pair, _ in pairs[i]], unseen).total
    return SourcedQuestions({name: every.at(at) for name, at in numbers.items()}, numbers, held, leaks)
