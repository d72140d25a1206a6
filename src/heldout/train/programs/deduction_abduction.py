"""Core: DeductionAbduction: perception, parser and programs, learned together from inputs and their answers alone.

Source: arXiv:2210.01603, section 3.3.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heldout.errors import (
    check_at_least,
    check_fields,
    check_finite,
    check_has,
    check_labels,
    check_nonempty,
    check_positive,
    checked,
)
from heldout.method import device_of, evaluating
from heldout.train.programs.abduction import GroundedTree, LearnedModule, abduce
from heldout.train.programs.dsl import EMPTY, MISSING
from heldout.train.programs.library import ProgramLibrary
from heldout.train.supervised import seeded

_UNLIKELY = 1e-5  # symbols of smaller probability are not tried in an answer


class Phase(NamedTuple):
    """What happened in one epoch.

    Attributes:
        module: that was learned.
        deduced: share of the examples whose deduced answer was right.
        found: share of them that gave a tree to learn from.

    Example:
        >>> phase = Phase("semantics", deduced=0.25, found=0.75)
        >>> phase.found - phase.deduced  # share of the examples whose wrong answer could be mended
        0.5
    """

    module: LearnedModule
    deduced: float
    found: float


@dataclass(frozen=True)
class AbductionRecipe:
    """How long is learned, and how each part is fitted to the trees that were found.

    Args:
        epochs: phases; each is spent on one module of the schedule, in turn.
        batch_size: inputs that are deduced together.
        buffer: trees with which a phase has enough.
        passes: over the examples in a phase, at most.
        curriculum: ``(epoch, longest input)`` in rising order: from that epoch on inputs have so many symbols at most;
            none uses all inputs from the beginning.
        synthesize_every: phases of semantics between two searches for programs.
        max_size: of a program.
        max_terms: tried for a symbol in a search.
        timeout: seconds for a symbol in a search.
        max_examples: of a symbol that a search looks at.
        parser_steps: of the parser in a phase.
        parser_batch: transitions in such a step.
        perception_steps: of the perception in a phase.
        perception_batch: images in such a step.
        perception_lr: of Adam.
        abduction: whether trees with a wrong answer are edited; without, only trees that are right are learned from.

    Raises:
        ValueError: numbers out of range, or a curriculum that is not in rising order.

    Source: arXiv:2210.01603 and the official code; deviation: a length of 0 in its curriculum is none here.

    Example:
        >>> AbductionRecipe(epochs=4).buffer
        10000
    """

    epochs: int = 100
    batch_size: int = 32
    buffer: int = 10_000
    passes: int = 20
    curriculum: Sequence[tuple[int, int]] = ()
    synthesize_every: int = 5
    max_size: int = 9
    max_terms: int = 20_000
    timeout: float = 10.0
    max_examples: int = 100
    parser_steps: int = 100
    parser_batch: int = 1024
    perception_steps: int = 100
    perception_batch: int = 256
    perception_lr: float = 1e-3
    abduction: bool = True

    def __post_init__(self) -> None:
        check_fields(self)
        check_at_least(
            1, epochs=self.epochs, batch_size=self.batch_size, buffer=self.buffer, passes=self.passes,
            max_size=self.max_size, synthesize_every=self.synthesize_every, max_terms=self.max_terms,
            parser_steps=self.parser_steps, parser_batch=self.parser_batch, max_examples=self.max_examples,
            perception_steps=self.perception_steps, perception_batch=self.perception_batch,
        )  # fmt: skip
        check_positive(timeout=self.timeout, perception_lr=self.perception_lr)
        check_at_least(0, curriculum=[start for start, _ in self.curriculum])
        check_at_least(1, curriculum=[longest for _, longest in self.curriculum])
        if any(later[0] <= start[0] for start, later in pairwise(self.curriculum)):
            raise ValueError(f"curriculum must have its epochs in rising order, got {list(self.curriculum)}")

    def longest(self, epoch: int) -> int | None:
        """Returns how many symbols an input may have in an epoch, counted from 0; None for any number."""
        limits = [longest for start, longest in self.curriculum if start <= epoch]
        return limits[-1] if limits else None


class DeductionAbduction:
    """Learns from inputs and answers alone, by deducing an answer and editing the tree of a wrong one.

    An epoch deduces all inputs with drawn symbols and drawn trees, abduces those whose answer is wrong, and fits one
    module to the trees that were found: programs to what symbols made of their arguments, perception to symbols, the
    parser to trees.

    Args:
        parser: with ``parse``, and ``fit`` if it is learned, such as ``ShiftReduceParser``; a ``RuleParser`` is given.
        programs: of the symbols.
        perception: from inputs ``(n, ...)``, one for each position, to logits ``(n, symbols)``; None where inputs are
            symbols already.
        schedule: modules that are learned, in turn; what is left out stays as it is.
        seed: of all draws.

    Raises:
        ValueError: an empty schedule, or one that names what is not there.
        TypeError: a parser without ``parse``.

    Source: arXiv:2210.01603, algorithm 1.

    Example:
        >>> from heldout.nn import ShiftReduceParser
        >>> from heldout.train import AbductionRecipe, ListDSL
        >>> torch.manual_seed(0) and None
        >>> machine = DeductionAbduction(ShiftReduceParser(2, embed=8, hidden=16, lr=0.01),
        ...     ProgramLibrary(ListDSL(["J"]), [0, 1], wanted=1), schedule=["semantics", "syntax"])
        >>> pairs = [([0], ("J",)), ([0, 1], ("J", "J")), ([0, 1, 1], ("J",) * 4)]
        >>> recipe = AbductionRecipe(epochs=8, synthesize_every=1, parser_steps=20, parser_batch=32)
        >>> _ = machine.fit(pairs * 4, recipe)
        >>> print(machine.programs.report(["jump", "twice"]))
        jump: cons('J', nil) (likelihood 1.00, 1 examples)
        twice: concat(x0, x0) (likelihood 1.00, 2 examples)
        >>> len(machine.predict([[0, 1, 1, 1]])[0].value)
        8
    """

    @checked
    def __init__(
        self,
        parser: Any,
        programs: ProgramLibrary,
        perception: nn.Module | None = None,
        schedule: Sequence[LearnedModule] = ("semantics", "perception", "syntax"),
        *,
        seed: int = 0,
    ) -> None:
        check_has("parse", parser=parser)
        check_nonempty(schedule=schedule)
        check_at_least(0, seed=seed)
        if perception is None and "perception" in schedule:
            schedule = [module for module in schedule if module != "perception"]
            check_nonempty(schedule=schedule)
        if "syntax" in schedule:
            check_has("fit", parser=parser)
        self.parser, self.programs, self.perception = parser, programs, perception
        self.schedule = tuple(schedule)
        self.rng = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.semantics_phases = 0
        self.optimizer: torch.optim.Optimizer | None = None

    @checked
    def fit(self, examples: Sequence[tuple], recipe: AbductionRecipe | None = None) -> list[Phase]:
        """Learns from examples ``(input, answer)``; returns what happened in each epoch.

        Args:
            examples: an input is a sequence of symbols, or a tensor ``(n, ...)`` for the perception.
            recipe: None is the published one.

        Raises:
            ValueError: no examples, an empty input, or none that is short enough at the beginning of the curriculum.
            TypeError: an answer that is no value of the programs' language.
        """
        recipe = AbductionRecipe() if recipe is None else recipe
        check_nonempty(examples=examples)
        for inputs, answer in examples:
            check_nonempty(examples=inputs)
            self.programs.dsl.check(examples=answer)
        history = []
        for epoch in range(recipe.epochs):
            longest = recipe.longest(epoch)
            allowed = [each for each in range(len(examples)) if longest is None or len(examples[each][0]) <= longest]
            if not allowed:
                raise ValueError(f"examples must have inputs of {longest} symbols at most for the curriculum")
            module = self.schedule[epoch % len(self.schedule)]
            self.rng.shuffle(allowed)
            history.append(self._epoch([examples[each] for each in allowed], module, recipe))
        return history

    def _epoch(self, examples: list[tuple], module: LearnedModule, recipe: AbductionRecipe) -> Phase:
        found: list[tuple[GroundedTree, Any]] = []
        seen = right = 0
        starts = [start for _ in range(recipe.passes) for start in range(0, len(examples), recipe.batch_size)]
        for start in starts:
            batch = examples[start : start + recipe.batch_size]
            for tree, (inputs, answer) in zip(self._deduced([each for each, _ in batch]), batch, strict=True):
                seen += 1
                hit = tree.value == answer
                right += hit
                if hit or recipe.abduction:
                    edited = tree if hit else abduce(tree, answer, module, self.rng)
                    if edited is not None:
                        found.append((edited, inputs))
            if len(found) >= recipe.buffer:
                break
        if found:
            self._learn(module, found, recipe)
        return Phase(module, right / seen, len(found) / seen)

    def _learn(self, module: LearnedModule, found: list[tuple[GroundedTree, Any]], recipe: AbductionRecipe) -> None:
        if module == "semantics":
            self.semantics_phases += 1
            self.programs.observe([each for tree, _ in found for each in tree.observations()])
            if self.semantics_phases % recipe.synthesize_every == 0:
                self.programs.synthesize(
                    max_size=recipe.max_size, max_terms=recipe.max_terms, timeout=recipe.timeout,
                    max_examples=recipe.max_examples,
                )  # fmt: skip
        elif module == "syntax":
            parses = [tree.parse for tree, _ in found if len(tree.symbols) > 1]
            if parses:
                seed = self.rng.randrange(2**31)
                self.parser.fit(parses, steps=recipe.parser_steps, batch_size=recipe.parser_batch, seed=seed)
        else:
            self._fit_perception(found, recipe)

    def _fit_perception(self, found: list[tuple[GroundedTree, Any]], recipe: AbductionRecipe) -> None:
        perception: nn.Module = self.perception  # type: ignore[assignment]
        if self.optimizer is None:
            self.optimizer = torch.optim.Adam(perception.parameters(), lr=recipe.perception_lr)
        images = torch.cat([inputs for _, inputs in found]).to(device_of(perception))
        symbols = torch.tensor([symbol for tree, _ in found for symbol in tree.symbols], device=images.device)
        was = perception.training
        perception.train()
        with seeded(self.rng.randrange(2**31)):  # its dropout
            for _ in range(recipe.perception_steps):
                drawn = torch.randint(len(images), (recipe.perception_batch,), generator=self.generator)
                drawn = drawn.to(images.device)
                loss = F.cross_entropy(perception(images[drawn]), symbols[drawn])
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
        perception.train(was)

    @torch.no_grad()
    def _scores(self, inputs: Sequence[Any]) -> list[Tensor]:
        """Log-probabilities of the symbols at each position of each input."""
        perception: nn.Module = self.perception  # type: ignore[assignment]
        with evaluating(perception):
            logits = perception(torch.cat(list(inputs)).to(device_of(perception)))
        check_finite(perception=logits)
        return list(logits.float().log_softmax(1).cpu().split([len(each) for each in inputs]))

    def _deduced(self, inputs: Sequence[Any]) -> list[GroundedTree]:
        """Trees of drawn symbols and drawn transitions."""
        if self.perception is None:
            sentences, scores = [list(each) for each in inputs], [None] * len(inputs)
        else:
            scores = self._scores(inputs)  # type: ignore[assignment]
            sentences = [
                torch.multinomial(each.exp(), 1, generator=self.generator).squeeze(1).tolist()  # type: ignore[attr-defined]
                for each in scores
            ]
        parses = self.parser.parse(sentences, True, generator=self.generator)
        return [GroundedTree(parse, self.programs, score) for parse, score in zip(parses, scores, strict=True)]

    @checked
    def predict(self, inputs: Sequence, *, tries: int = 1) -> list[GroundedTree]:
        """Returns for each input the likeliest tree, with the answer as its ``value``.

        Args:
            inputs: sequences of symbols, or tensors ``(n, ...)`` for the perception.
            tries: sequences of symbols, the likeliest first, that are tried until one has a value; without a
                perception there is only one.

        Raises:
            ValueError: no inputs, an empty one, or a symbol that the parser does not know.
        """
        check_nonempty(inputs=inputs)
        check_at_least(1, tries=tries)
        for each in inputs:
            check_nonempty(inputs=each)
        if self.perception is None:
            check_labels(inputs=inputs)
            return self._trees([list(each) for each in inputs], [None] * len(inputs))
        scores = self._scores(inputs)
        ways = [likeliest_sequences(each) for each in scores]
        found: list[GroundedTree | None] = [None] * len(inputs)
        going = list(range(len(inputs)))
        for _ in range(tries):
            drawn = [(each, way) for each in going if (way := next(ways[each], None)) is not None]
            if not drawn:
                break
            trees = self._trees([way for _, way in drawn], [scores[each] for each, _ in drawn])
            going = []
            for (each, _), tree in zip(drawn, trees, strict=True):
                failed = tree.value is MISSING or tree.value is EMPTY
                if found[each] is None or not failed:
                    found[each] = tree
                if failed:
                    going.append(each)
        return found  # type: ignore[return-value]

    def _trees(self, sentences: list[list[int]], scores: Sequence[Tensor | None]) -> list[GroundedTree]:
        parses = self.parser.parse(sentences)
        return [GroundedTree(parse, self.programs, score) for parse, score in zip(parses, scores, strict=True)]


def likeliest_sequences(scores: Tensor) -> Iterator[list[int]]:
    """Yields sequences of symbols, the likeliest first; symbols of a probability below 1e-5 are not tried.

    Args:
        scores: ``(n, symbols)``, log-probabilities.

    Example:
        >>> scores = torch.tensor([[0.9, 0.1], [0.4, 0.6]]).log()
        >>> list(likeliest_sequences(scores))
        [[0, 1], [0, 0], [1, 1], [1, 0]]
    """
    floor = torch.tensor(_UNLIKELY).log().item()
    rows = [
        sorted(((score, symbol) for symbol, score in enumerate(row) if score >= floor), reverse=True)
        for row in scores.tolist()
    ]
    ranks = (0,) * len(rows)
    queue, seen = [(-sum(row[0][0] for row in rows), ranks)], {ranks}
    while queue:
        cost, ranks = heapq.heappop(queue)
        yield [row[rank][1] for row, rank in zip(rows, ranks, strict=True)]
        for place, (row, rank) in enumerate(zip(rows, ranks, strict=True)):
            further = (*ranks[:place], rank + 1, *ranks[place + 1 :])
            if rank + 1 < len(row) and further not in seen:
                seen.add(further)
                heapq.heappush(queue, (cost + row[rank][0] - row[rank + 1][0], further))
