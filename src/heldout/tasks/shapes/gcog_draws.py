"""Trials of questions about scenes, drawn many at once. Source: arXiv:2401.15030, section 3.

The shape of a tree follows from its depth, so that its operators stand in an array and no loop goes over trials: one
goes over the operators of a tree.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from heldout.tasks.shapes.scene_questions import BOOLEAN_QUESTIONS, QUESTION_OPERATORS, RULE_FIELDS

EXIST, GET_COLOR, GET_SHAPE, GO = (QUESTION_OPERATORS.index(name) for name in ("Exist", "GetColor", "GetShape", "Go"))
BOOLEANS = len(BOOLEAN_QUESTIONS)  # operators below this number are true or false, those from 1 on about parity
_ATTEMPTS, _KEPT = 400, 20  # for each trial, and before another question is drawn


class SceneSizes(NamedTuple):
    """How large scenes are, and how many objects an operator on parity has."""

    grid: int
    colors: int
    shapes: int
    parity_objects: int


class SceneDraws:
    """Draws trials of one depth, many at a time.

    Operators of a tree stand as in a heap: the tests first, and after test ``i`` come ``2 i + 1`` where it is true and
    ``2 i + 2`` where it is false.

    Args:
        sizes: of the world.
        slots: operators of a tree without IfElse, one less than a power of 2.
        allowed: bool ``(operators, colors, shapes)``, what each may ask for.
        families: bool ``(families, 2, operators)``, the tests and leaves of each.
        generator: of everything.

    Raises:
        ValueError: an operator that may ask for nothing.
    """

    def __init__(
        self, sizes: SceneSizes, slots: int, allowed: Tensor, families: Tensor, generator: torch.Generator
    ) -> None:
        self.sizes, self.slots, self.allowed, self.families = sizes, slots, allowed, families
        self.generator, self.tests = generator, slots // 2
        if not (allowed.flatten(1).any(1) | ~families.any(0).any(0)).all():
            raise ValueError("pair_filter must leave each operator an object")
        row, column = (
            torch.arange(sizes.grid).repeat_interleave(sizes.grid),
            torch.arange(sizes.grid).repeat(sizes.grid),
        )
        self.classes = 2 * (row % 2) + column % 2  # (cells,), which coordinates are odd
        odd_sum, odd_product = torch.tensor([0, 1, 1, 0]).bool(), torch.tensor([0, 0, 0, 1]).bool()
        # What cells fit, by class: an even sum, an odd sum, an even product, an odd product, or any.
        self.one = torch.stack([~odd_sum, odd_sum, ~odd_product, odd_product, torch.ones(4).bool()])
        odd_sums, odd_products = odd_sum[:, None] ^ odd_sum, odd_product[:, None] & odd_product
        self.two = torch.stack([~odd_sums, odd_sums, ~odd_products, odd_products])  # for two objects, by both classes
        order: list[int] = []
        self._preorder(0, order)
        self.order = torch.tensor(order)

    def _preorder(self, slot: int, order: list[int]) -> None:
        order.append(slot)
        if slot < self.tests:
            order.append(self.slots)  # an IfElse
            self._preorder(2 * slot + 1, order)
            self._preorder(2 * slot + 2, order)

    def trials(self, distractors: Tensor) -> dict[str, Tensor]:
        """Returns trials with so many distractors each: operators, objects, scene and rule tokens, and answers.

        Raises:
            ValueError: no scene was found for one of them.
        """
        count = len(distractors)
        operators, truth = self._questions(count)
        found: dict[str, Tensor] = {}
        missing = torch.arange(count)
        for attempt in range(1, _ATTEMPTS + 1):
            drawn, done = self._attempt(operators[missing], truth[missing], distractors[missing])
            for name, values in drawn.items():
                if name not in found:
                    found[name] = values.new_zeros(count, *values.shape[1:])
                found[name][missing[done]] = values[done]
            missing = missing[~done]
            if not len(missing):
                return found
            if attempt % _KEPT == 0:
                operators[missing], truth[missing] = self._questions(len(missing))
        raise ValueError(
            f"distractors must leave scenes in which a question of {self.slots} operators has one answer: none was "
            f"found with {int(distractors[missing[0]])} in {_ATTEMPTS} attempts"
        )

    def _questions(self, count: int) -> tuple[Tensor, Tensor]:
        operators, truth = self._any_questions(count)
        for _ in range(_ATTEMPTS):
            poor = (~self._parities_fit(operators)).nonzero()[:, 0]
            if not len(poor):
                return operators, truth
            operators[poor], truth[poor] = self._any_questions(len(poor))
        raise ValueError(f"operators must have questions of {self.slots} whose objects find cells for each parity")

    def _any_questions(self, count: int) -> tuple[Tensor, Tensor]:
        family = torch.randint(len(self.families), (count,), generator=self.generator)
        weights = self.families[family]  # (trials, 2, operators)
        tests = [_picked(weights[:, 0], self.generator)[0] for _ in range(self.tests)]
        leaves = [_picked(weights[:, 1], self.generator)[0] for _ in range(self.slots - self.tests)]
        truth = torch.rand(count, self.slots, generator=self.generator) < 0.5
        return torch.stack([*tests, *leaves], 1), truth

    def _attempt(self, operators: Tensor, truth: Tensor, distractors: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        objects, free, done = self._objects(operators, truth)
        absent = (operators == EXIST) & ~truth
        here = (objects[..., 0] >= 0) & ~absent.unsqueeze(2)
        cells, taken, placed = self._cells(operators, truth, here)
        extras = distractors + absent.sum(1)  # a stand-in for each object that is absent
        done &= placed & (free.flatten(1).any(1) | (extras == 0)) & ((~taken).sum(1) >= extras)
        scene = self._scene(objects, here, cells, free, taken, extras * done)
        at = torch.zeros(len(operators), dtype=torch.int64)
        for _ in range(self.slots.bit_length() - 1):
            at = 2 * at + 2 - truth.gather(1, at[:, None])[:, 0].long()
        answered = operators.gather(1, at[:, None])[:, 0]
        rows = torch.arange(len(operators))
        sizes, asked = self.sizes, objects[rows, at, 0]
        answers = truth[rows, at].long()
        answers = torch.where(answered == GO, 2 + cells[rows, at, 0], answers)
        answers = torch.where(answered == GET_SHAPE, 2 + sizes.grid**2 + asked[:, 1], answers)
        answers = torch.where(answered == GET_COLOR, 2 + sizes.grid**2 + sizes.shapes + asked[:, 0], answers)
        drawn = {"operators": operators, "objects": objects, "distractors": distractors, "answered": answered,
                 "scene": scene, "answers": answers, "rules": self._rules(operators, objects)}  # fmt: skip
        return drawn, done

    def _parities_fit(self, operators: Tensor) -> Tensor:
        """Whether there are cells for each parity of each operator, whatever is to be true.

        Were a question asked only with the parities that fit, products would be even more often than not on few cells.
        """
        sums, products = (
            ((operators >= first) & (operators < first + 2)).sum(1) * self.sizes.parity_objects for first in (1, 3)
        )
        odd_sums, odd_products = (int((self.one[kind][self.classes]).sum()) for kind in (1, 3))
        return (products <= odd_products) & (sums <= odd_sums) & (sums + products <= len(self.classes) - odd_sums)

    def _objects(self, operators: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Objects of each operator, which others may be in the scene, and where there are such objects."""
        count, sizes = len(operators), self.sizes
        objects = torch.full((count, self.slots, sizes.parity_objects, 2), -1)
        free = torch.ones(count, sizes.colors, sizes.shapes, dtype=torch.bool)
        shown_colors = torch.zeros(count, sizes.colors, dtype=torch.bool)
        shown_shapes = torch.zeros(count, sizes.shapes, dtype=torch.bool)
        done = torch.ones(count, dtype=torch.bool)
        unique = (operators == GET_COLOR) | (operators == GET_SHAPE)
        order = (~unique).int().argsort(dim=1, stable=True)  # what must be unique comes first
        for step in range(self.slots):
            slot = order[:, step]
            operator = operators.gather(1, slot[:, None])[:, 0]
            wanted = truth.gather(1, slot[:, None])[:, 0]
            for number in range(sizes.parity_objects):
                needed = (operator >= 1) & (operator < BOOLEANS) if number else torch.ones_like(wanted)
                fits = free & self.allowed[operator]
                if self.slots > 1:
                    fits &= ~((operator == GET_COLOR)[:, None, None] & shown_shapes[:, None, :])
                    fits &= ~((operator == GET_SHAPE)[:, None, None] & shown_colors[:, :, None])
                picked, possible = _picked(fits.flatten(1), self.generator)
                done &= possible | ~needed
                rows = needed.nonzero()[:, 0]
                color, shape = picked[rows] // sizes.shapes, picked[rows] % sizes.shapes
                objects[rows, slot[rows], number] = torch.stack([color, shape], 1)
                free[rows, color, shape] = False
                shown = ((operator != EXIST) | wanted)[rows]
                shown_colors[rows[shown], color[shown]] = True
                shown_shapes[rows[shown], shape[shown]] = True
                by_shape, by_color = operator[rows] == GET_COLOR, operator[rows] == GET_SHAPE
                free[rows[by_shape], :, shape[by_shape]] = False
                free[rows[by_color], color[by_color]] = False
        return objects, free, done

    def _cells(self, operators: Tensor, truth: Tensor, here: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Cells of the objects that are there, which cells are taken, and where there were enough."""
        count, sizes = len(operators), self.sizes
        cells = torch.full((count, self.slots, sizes.parity_objects), -1)
        taken = torch.zeros(count, sizes.grid**2, dtype=torch.bool)
        done = torch.ones(count, dtype=torch.bool)
        parity = (operators >= 1) & (operators < BOOLEANS)
        odd = (operators % 2 == 0) == truth  # SumOdd and ProductOdd have even numbers
        kind = torch.where(parity, 2 * (operators >= 3).long() + odd.long(), 4)
        order = (kind != 3).int().argsort(dim=1, stable=True)  # odd products come first: they fit the fewest cells
        pairs = sizes.parity_objects == 2
        for step in range(self.slots):
            slot = order[:, step]
            wanted = kind.gather(1, slot[:, None])[:, 0]
            there = here[torch.arange(count), slot]
            open_cells = ~taken
            weights = self.one[wanted][:, self.classes] & open_cells
            if pairs:
                two = there[:, 1]
                left = open_cells.double() @ F.one_hot(self.classes, 4).double()  # (trials, class)
                partners = self.two[wanted.clamp(max=3)].double()
                ways = (partners @ left[:, :, None])[:, :, 0] - partners.diagonal(dim1=1, dim2=2)
                ways = ways.clamp(min=0)[:, self.classes] * open_cells
                weights = torch.where(two[:, None], ways, weights.double())
            first, possible = _picked(weights, self.generator)
            done &= possible | ~there[:, 0]
            self._put(cells, taken, slot, 0, first, there[:, 0])
            if pairs:
                seconds = self.two[wanted.clamp(max=3), self.classes[first]][:, self.classes] & ~taken
                second, possible = _picked(seconds, self.generator)
                done &= possible | ~two
                self._put(cells, taken, slot, 1, second, two)
        return cells, taken, done

    @staticmethod
    def _put(cells: Tensor, taken: Tensor, slot: Tensor, number: int, cell: Tensor, there: Tensor) -> None:
        rows = there.nonzero()[:, 0]
        cells[rows, slot[rows], number] = cell[rows]
        taken[rows, cell[rows]] = True

    def _scene(
        self, objects: Tensor, here: Tensor, cells: Tensor, free: Tensor, taken: Tensor, extras: Tensor
    ) -> Tensor:
        """Scene tokens: the objects in their cells, and extra ones in others."""
        count, sizes = len(objects), self.sizes
        scene = torch.zeros(count, sizes.grid**2 + 1, 3, dtype=torch.int64)
        scene[:, -1, 2] = 1
        rows, slot, number = here.nonzero().T
        scene[rows, cells[rows, slot, number], :2] = objects[rows, slot, number] + 1
        most = int(extras.max()) if count else 0
        if most:
            keys = torch.rand(taken.shape, generator=self.generator).masked_fill(taken, 2.0)
            where = keys.topk(most, 1, largest=False).indices
            sums = free.flatten(1).double().cumsum(1)
            at = torch.rand(count, most, generator=self.generator, dtype=torch.float64) * sums[:, -1:]
            which = torch.searchsorted(sums, at, right=True).clamp(max=sums.shape[1] - 1)
            rows, column = (torch.arange(most) < extras[:, None]).nonzero().T
            which, where = which[rows, column], where[rows, column]
            scene[rows, where, 0] = which // sizes.shapes + 1
            scene[rows, where, 1] = which % sizes.shapes + 1
        return scene

    def _rules(self, operators: Tensor, objects: Tensor) -> Tensor:
        """Rule tokens ``(trials, nodes + 1, 8)``, as ``rule_tokens`` writes them."""
        count = len(operators)
        table = torch.zeros(count, self.slots + 1, len(RULE_FIELDS), dtype=torch.int64)
        table[:, :-1, 0] = operators + 1
        table[:, -1, 0] = len(QUESTION_OPERATORS) + 1
        for number in range(self.sizes.parity_objects):
            selector = table[:, :-1, 3 * number + 1 :]
            selector[..., 0] = objects[:, :, number, 1] + 1
            selector[..., 1] = objects[:, :, number, 0] + 1
            selector[..., 2] = (objects[:, :, number, 0] >= 0).long()
        table[:, :-1, 1].masked_fill_(operators == GET_SHAPE, 0)
        table[:, :-1, 2].masked_fill_(operators == GET_COLOR, 0)
        end = torch.zeros(count, 1, len(RULE_FIELDS), dtype=torch.int64)
        end[..., -1] = 1
        return torch.cat([table[:, self.order], end], 1)


def _picked(weights: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A column for each row, in proportion to weights, and whether there was one."""
    sums = weights.cumsum(1, dtype=torch.float64)
    total = sums[:, -1:]
    at = torch.rand(len(weights), 1, generator=generator, dtype=torch.float64) * total
    return torch.searchsorted(sums, at, right=True)[:, 0].clamp(max=weights.shape[1] - 1), total[:, 0] > 0
