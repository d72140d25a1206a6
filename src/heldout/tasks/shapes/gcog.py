"""The world of gCOG: scenes of coloured letters, and questions about them as trees of operators.

Source: arXiv:2401.15030, section 3 and its code (IBM/gcog).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from heldout.errors import (
    check_at_least,
    check_between,
    check_dimensions,
    check_fields,
    check_labels,
    check_nonempty,
    check_one_of,
    checked,
)
from heldout.tasks.seeds import Seed, generator_of
from heldout.tasks.shapes.gcog_draws import SceneDraws, SceneSizes
from heldout.tasks.shapes.letter_scenes import render_scene
from heldout.tasks.shapes.scene_questions import (
    BOOLEAN_QUESTIONS,
    QUESTION_OPERATORS,
    SCENE_COLORS,
    SCENE_SHAPES,
    SceneAnswer,
    SceneQuestion,
    question_of,
    question_text,
)

QuestionFamily = tuple[Sequence[str], Sequence[str]]

_CHUNK = 4096  # trials that are drawn at a time, so that they stay in the cache


class SceneTrial(NamedTuple):
    """One trial of a world.

    Attributes:
        rule_tokens: int64 ``(nodes + 1, 8)``, see ``rule_tokens``.
        scene_tokens: int64 ``(cells + 1, 3)``, one more than the colour and the shape of each cell (0: empty), and
            whether it is the end.
        answer: the class of the answer.
        tree: the question.
        text: the question in words.
        image: float32 ``(3, grid * 8, grid * 8)``.

    Example:
        >>> world = GCOG(grid=3, colors=3, shapes=3, operators=["Go"])
        >>> trial = world.sample(seed=0)
        >>> cell = int(trial.scene_tokens[:9, 0].nonzero())  # the only object
        >>> trial.answer == 2 + cell, tuple(trial.image.shape)
        (True, (3, 24, 24))
    """

    rule_tokens: Tensor
    scene_tokens: Tensor
    answer: int
    tree: SceneQuestion
    text: str
    image: Tensor


class GCOGTrials(TensorDataset):
    """Trials of a world as a data set: ``((rule_tokens, rule_mask, scene_tokens), answer)``, and what they are made of.

    ``GCOG.trials`` makes them.

    Args:
        world: what they were drawn from.
        tensors: rule tokens ``(trials, length, 8)``, filled up with 0; bool ``(trials, length)``, what is no filling;
            scene tokens ``(trials, cells + 1, 3)``; answers ``(trials,)``.
        factors: int64 of each trial: "operators" ``(trials, slots)`` of the tree, tests first, as in a heap, -1 where
            there is none; "objects" ``(trials, slots, parity objects, 2)``, colour and shape; "depth", "distractors",
            and "answered", the operator that gives the answer.

    Raises:
        ValueError: tensors or factors that are not equally long.

    Example:
        >>> trials = GCOG(grid=4).trials(3, depth=3)
        >>> (rules, mask, scene), answer = trials[0:3][:3], trials[0:3][3]
        >>> rules.shape, scene.shape, answer.shape, trials.question(0).depth
        (torch.Size([3, 5, 8]), torch.Size([3, 17, 3]), torch.Size([3]), 3)
        >>> len(GCOGTrials(trials.world, trials.tensors, trials.factors))
        3
    """

    @checked
    def __init__(self, world: GCOG, tensors: Sequence[Tensor], factors: dict[str, Tensor]) -> None:
        names = ("operators", "objects", "depth", "distractors", "answered")
        if len(tensors) != 4 or {len(each) for each in [*tensors, *factors.values()]} != {len(tensors[0])}:
            raise ValueError("tensors must be four, and as long as each other and as the factors")
        if sorted(factors) != sorted(names):
            raise ValueError(f"factors must be {', '.join(names)}, got {', '.join(factors)}")
        super().__init__(*tensors)
        self.world, self.factors = world, factors

    @property
    def rule_tokens(self) -> Tensor:
        return self.tensors[0]

    @property
    def rule_mask(self) -> Tensor:
        return self.tensors[1]

    @property
    def scene_tokens(self) -> Tensor:
        return self.tensors[2]

    @property
    def answers(self) -> Tensor:
        return self.tensors[3]

    @property
    def scenes(self) -> Tensor:
        """Int64 ``(trials, grid, grid, 2)``, as ``answer_question`` and ``render_scene`` take them."""
        return self.scene_tokens[:, :-1, :2].unflatten(1, (self.world.grid, self.world.grid))

    @property
    def groups(self) -> dict[str, list]:
        """What ``axis_report`` tells apart: the operator that gives the answer, and the depth of the tree."""
        operators = [QUESTION_OPERATORS[number] for number in self.factors["answered"].tolist()]
        return {"operator": operators, "depth": self.factors["depth"].tolist()}

    @checked
    def question(self, index: int) -> SceneQuestion:
        """Returns the question of a trial.

        Raises:
            ValueError: no such trial.
        """
        check_labels(len(self), index=index)
        return question_of(self.rule_tokens[index])

    @checked
    def at(self, positions: Tensor) -> GCOGTrials:
        """Returns some of the trials.

        Args:
            positions: int64 ``(n,)``.

        Raises:
            ValueError: no such trials.
        """
        check_dimensions(1, positions=positions)
        check_labels(len(self), positions=positions)
        kept = {name: values[positions] for name, values in self.factors.items()}
        return GCOGTrials(self.world, [each[positions] for each in self.tensors], kept)

    @checked
    def joined(self, others: Sequence[GCOGTrials]) -> GCOGTrials:
        """Returns these trials and others of the same world, all as long as the longest question.

        Raises:
            ValueError: trials of another world.
        """
        if any(each.world != self.world for each in others):
            raise ValueError("others must be of the same world")
        every = [self, *others]
        filling = {"operators": -1, "objects": -1}
        tensors = [_stacked([each.tensors[number] for each in every], 0) for number in range(4)]
        factors = {
            name: _stacked([each.factors[name] for each in every], filling.get(name, 0)) for name in self.factors
        }
        return GCOGTrials(self.world, tensors, factors)


@dataclass(frozen=True)
class GCOG:
    """A world of scenes and questions about them that are well-posed, with answers as even as they can be.

    A tree of depth 1 is one operator; of depth 3 a test, an IfElse and two operators; and so on, every path equally
    long. Tests are drawn from the operators that are true or false, leaves from all. All objects of a tree differ. In a
    scene the shape of each GetColor and the colour of each GetShape is there once, as is every object that is asked
    for, but for those of Exist: half of them are absent, and another object is there in their place, so that the
    number of objects tells nothing. Each test of parity is true half of the time, by where its objects lie. Distractors
    are none of the objects that are asked for, and may equal each other.

    Answers are classes: false and true, cells row by row, shapes, colours: 138 with 26 shapes on the grid of 10.

    Args:
        grid: rows, and columns.
        colors: how many of ``SCENE_COLORS``.
        shapes: how many of ``SCENE_SHAPES``.
        operators: of ``QUESTION_OPERATORS``.
        parity_objects: of each operator on parity, 1 or 2.

    Raises:
        ValueError: more colours or shapes than there are, unknown operators, or a number out of range.

    Source: arXiv:2401.15030, section 3. Deviations: coordinates count from 0; an absent object has a stand-in, without
    which a scene with no object answers Exist; objects of a tree differ, where the paper's pairs of operator and object
    do; the seed is an argument of what draws.

    Example:
        >>> world = GCOG(grid=5, colors=5, shapes=5)
        >>> trial = world.sample(depth=1, distractors=3)
        >>> trial.rule_tokens.shape, trial.scene_tokens.shape, world.classes
        (torch.Size([2, 8]), torch.Size([26, 3]), 37)
        >>> int((trial.scene_tokens[:, 0] > 0).sum())
        4
    """

    grid: int = 10
    colors: int = 10
    shapes: int = 10
    operators: Sequence[str] = QUESTION_OPERATORS
    parity_objects: int = 1

    def __post_init__(self) -> None:
        check_fields(self)
        check_at_least(2, grid=self.grid)
        check_between(2, len(SCENE_COLORS), colors=self.colors)
        check_between(2, len(SCENE_SHAPES), shapes=self.shapes)
        check_between(1, 2, parity_objects=self.parity_objects)
        check_nonempty(operators=self.operators)
        for each in self.operators:
            check_one_of(QUESTION_OPERATORS, operators=each)
        object.__setattr__(self, "operators", tuple(self.operators))

    @property
    def classes(self) -> int:
        """How many answers there are."""
        return 2 + self.grid**2 + self.shapes + self.colors

    @checked
    def class_of(self, answer: SceneAnswer) -> int:
        """Returns the class of an answer.

        Raises:
            ValueError: a value that the world does not have.

        Example:
            >>> GCOG(grid=5, colors=5, shapes=5).class_of(SceneAnswer("color", 4))
            36
        """
        cells = self.grid**2
        starts = {"truth": (0, 2), "cell": (2, cells), "shape": (2 + cells, self.shapes)}
        start, count = starts.get(answer.kind, (2 + cells + self.shapes, self.colors))
        check_labels(count, answer=answer.value)
        return start + answer.value

    @checked
    def sample(
        self, depth: int = 1, distractors: int = 0, pair_filter: Tensor | None = None, *, seed: Seed = 0
    ) -> SceneTrial:
        """Returns one trial with everything that is shown of it; ``trials`` draws many at once.

        Args:
            depth, distractors, pair_filter, seed: as of ``trials``.

        Raises:
            ValueError: as ``trials``.
        """
        drawn = self.trials(1, depth, distractors, pair_filter=pair_filter, seed=seed)
        tree = drawn.question(0)
        image = render_scene(drawn.scenes[0])
        return SceneTrial(
            drawn.rule_tokens[0], drawn.scene_tokens[0], int(drawn.answers[0]), tree, question_text(tree), image
        )

    @checked
    def trials(
        self,
        count: int,
        depth: int = 1,
        distractors: int | tuple[int, int] = 0,
        *,
        pair_filter: Tensor | None = None,
        families: Sequence[QuestionFamily] | None = None,
        seed: Seed = 0,
    ) -> GCOGTrials:
        """Returns trials of one depth.

        Where a scene cannot be drawn, it is drawn again, after some attempts for another question: trees that ask for
        more unique shapes than there are do not occur.

        Args:
            count: of trials.
            depth: nodes of each path, odd.
            distractors: how many objects beside those asked for; or the fewest and the most, each number as likely.
            pair_filter: bool ``(8, colors, shapes)``, which objects each of ``QUESTION_OPERATORS`` may ask for, the
                colour or shape that it asks for included.
            families: tests and leaves that are combined with each other, each family as likely; by default one, of
                all operators of the world.
            seed: of everything.

        Raises:
            ValueError: an even depth, more objects than cells, distractors of which none is left that would not make a
                question ambiguous, operators without an object or a test, or numbers out of range.

        Source: arXiv:2401.15030, section 3.

        Example:
            >>> trials = GCOG(grid=6).trials(100, depth=3, distractors=(0, 5))
            >>> trials.factors["distractors"].unique().tolist(), trials.rule_tokens.shape
            ([0, 1, 2, 3, 4, 5], torch.Size([100, 5, 8]))
        """
        low, high = (distractors, distractors) if isinstance(distractors, int) else distractors
        check_at_least(1, count=count, depth=depth)
        check_at_least(0, distractors=low)
        check_at_least(low, distractors=high)
        if depth % 2 == 0:
            raise ValueError(f"depth must be odd, got {depth}")
        slots = 2 ** ((depth + 1) // 2) - 1
        fewest = slots * (self.parity_objects if set(self.operators) <= set(BOOLEAN_QUESTIONS[1:]) else 1)
        if fewest + high > self.grid**2:
            raise ValueError(
                f"distractors must leave a cell for each of {fewest} objects of {self.grid**2} cells, got {high}"
            )
        sizes = SceneSizes(self.grid, self.colors, self.shapes, self.parity_objects)
        draws = SceneDraws(
            sizes, slots, self._allowed(pair_filter), self._families(families, depth), generator_of(seed)
        )
        parts = []
        for start in range(0, count, _CHUNK):
            wanted = torch.randint(low, high + 1, (min(_CHUNK, count - start),), generator=draws.generator)
            parts.append(draws.trials(wanted))
        drawn = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        drawn["depth"] = torch.full((count,), depth)
        scene, answers, rules = drawn.pop("scene"), drawn.pop("answers"), drawn.pop("rules")
        return GCOGTrials(self, [rules, torch.ones(rules.shape[:2], dtype=torch.bool), scene, answers], drawn)

    def _allowed(self, pair_filter: Tensor | None) -> Tensor:
        shape = (len(QUESTION_OPERATORS), self.colors, self.shapes)
        if pair_filter is None:
            return torch.ones(shape, dtype=torch.bool)
        if pair_filter.dtype != torch.bool or pair_filter.shape != shape:
            raise ValueError(f"pair_filter must be bool {shape}, got {pair_filter.dtype} {tuple(pair_filter.shape)}")
        return pair_filter

    def _families(self, families: Sequence[QuestionFamily] | None, depth: int) -> Tensor:
        """Bool ``(families, 2, operators)``: the tests and the leaves of each."""
        tests = [name for name in self.operators if name in BOOLEAN_QUESTIONS]
        given = [(tests, self.operators)] if families is None else families
        check_nonempty(families=given)
        table = torch.zeros(len(given), 2, len(QUESTION_OPERATORS), dtype=torch.bool)
        for row, family in zip(table, given, strict=True):
            for part, names in zip(row, family, strict=True):
                for name in names:
                    check_one_of(self.operators, families=name)
                    part[QUESTION_OPERATORS.index(name)] = True
            if depth > 1 and not row[0].any():
                raise ValueError("families must have a test for trees deeper than 1: an operator that is true or false")
            if row[0, len(BOOLEAN_QUESTIONS) :].any() or not row[1].any():
                raise ValueError("families must have tests that are true or false, and leaves")
        return table


def _stacked(parts: Sequence[Tensor], filling: Any) -> Tensor:
    """Rows one after the other, the second axis filled up to the longest."""
    if parts[0].ndim == 1:
        return torch.cat(list(parts))
    longest = max(part.shape[1] for part in parts)
    filled = []
    for part in parts:
        more = part.new_full((len(part), longest - part.shape[1], *part.shape[2:]), filling)
        filled.append(torch.cat([part, more], 1))
    return torch.cat(filled)
