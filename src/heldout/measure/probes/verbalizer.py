"""Instruction following against priors: one classification task, and other words to answer with.

A model that reads the instruction answers alike whether words agree with their classes (natural), mean nothing
(neutral), or stand for each other's classes (unnatural); one that goes by its priors does not.

Source: Li et al., "Instruction-following evaluation through verbalizer manipulation" (arXiv:2307.10558); calibration of
scores: Zhou et al. (arXiv:2309.17249).
"""

from __future__ import annotations

import random
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from heldout.data import Verbalizer, VerbalizerKind, VerbalizerTemplate, shifted_words, verbalizer_instruction
from heldout.errors import check_at_least, check_fields, check_positive, checked
from heldout.language_model import LM
from heldout.study import Interval, interval, wilson

_UNBALANCED = 0.02  # share of the texts by which classes may differ in number
_PER_ORDER = 2  # texts of a class, at least, over which scores are calibrated
# Up to the end of the last thought, and what is begun, not ended.
_THOUGHT = re.compile(r"\A.*</think(?:ing)?>|<think(?:ing)?>.*\Z", re.DOTALL | re.IGNORECASE)
_UNSPACED = re.compile(  # Thai, Lao, Burmese, Khmer, kana, ideographs
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]"
)
THINK = "Let's think step by step."
THEREFORE = "Therefore, the output is"


@dataclass(frozen=True)
class VerbalizerScore:
    """The answers with one verbalizer.

    Attributes:
        verbalizer: which.
        accuracy: share of right answers, with its 95 % Wilson interval.
        off_format: share of answers without any of the words.
        prior_following: with unnatural words, the share of the wrong answers that are the natural word of the right
            class. None where nothing is wrong, or the words are not unnatural.
        answers: class of the word that was given to each text, -1 for none.

    Example:
        >>> from heldout.data import verbalizer_sets
        >>> from heldout.lm import ScriptedLM
        >>> task = VerbalizerManipulation(["fine", "awful"], [1, 0], ["bad", "good"], verbalizer_sets([["no", "yes"]]))
        >>> scores = task.run(ScriptedLM(lambda prompt, k: "yes")).rows
        >>> [(row.verbalizer.kind, row.answers) for row in scores if row.verbalizer.kind != "neutral"]
        [('natural', (1, 1)), ('unnatural', (0, 0))]
    """

    verbalizer: Verbalizer
    accuracy: Interval
    off_format: float
    prior_following: float | None
    answers: tuple[int, ...]

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class VerbalizerReport:
    """Accuracy by verbalizer and by kind.

    Attributes:
        rows: one for each verbalizer.
        classes: number of classes.
        labels: right classes of the texts.

    Example:
        >>> score = VerbalizerScore(Verbalizer(("no", "yes"), "unnatural"), wilson(1, 4), 0.0, 1.0, (0, 1, 1, 1))
        >>> report = VerbalizerReport((score,), classes=2, labels=(0, 0, 0, 0))
        >>> report.accuracy("unnatural").estimate, report.normalised("unnatural"), report.prior_following
        (0.25, -0.5, 1.0)
    """

    rows: tuple[VerbalizerScore, ...]
    classes: int
    labels: tuple[int, ...] = field(repr=False)

    def __post_init__(self) -> None:
        check_fields(self)

    @checked
    def accuracy(self, kind: VerbalizerKind) -> Interval:
        """Returns the mean accuracy over the verbalizers of a kind, with its 95 % bootstrap interval over texts."""
        return interval([self._right(kind)])

    @checked
    def deviation(self, kind: VerbalizerKind) -> float:
        """Returns the standard deviation of the accuracy over the verbalizers of a kind."""
        found = [row.accuracy.estimate for row in self._of(kind)]
        return float(np.std(found, ddof=1)) if len(found) > 1 else 0.0

    @checked
    def normalised(self, kind: VerbalizerKind) -> float:
        """Returns the mean accuracy of a kind, 0 being chance and 1 perfect."""
        return (self.accuracy(kind).estimate - 1 / self.classes) / (1 - 1 / self.classes)

    @property
    def gap(self) -> Interval:
        """Accuracy with natural words less that with unnatural ones, on the same texts, with its 95 % interval."""
        return interval([self._right("natural") - self._right("unnatural")])

    @property
    def prior_following(self) -> float | None:
        """Share of the wrong answers with unnatural words that are the natural word of the right class."""
        wrong = followed = 0
        for row in self._of("unnatural"):
            missed = sum(a != y for a, y in zip(row.answers, self.labels, strict=True))
            wrong += missed
            followed += round((row.prior_following or 0.0) * missed)
        return followed / wrong if wrong else None

    def table(self) -> list[dict[str, str | float | None]]:
        """Returns one row for each verbalizer, in their order."""
        return [
            {
                "verbalizer": row.verbalizer.name,
                "kind": row.verbalizer.kind,
                "accuracy": row.accuracy.estimate,
                "low": row.accuracy.low,
                "high": row.accuracy.high,
                "off_format": row.off_format,
                "prior_following": row.prior_following,
            }
            for row in self.rows
        ]

    def _of(self, kind: VerbalizerKind) -> list[VerbalizerScore]:
        found = [row for row in self.rows if row.verbalizer.kind == kind]
        if not found:
            raise ValueError(f"no verbalizer is {kind}")
        return found

    def _right(self, kind: VerbalizerKind) -> np.ndarray:
        labels = np.array(self.labels)
        return np.mean([np.array(row.answers) == labels for row in self._of(kind)], axis=0)


class VerbalizerManipulation:
    """A classification task whose output words are exchanged, with the same texts for each set of words.

    Args:
        texts: of one class each; as many of each class.
        labels: class of each text, from 0.
        descriptions: what the instruction calls each class.
        verbalizers: see ``verbalizer_sets``.
        template: ``(text, [(word, description), ...]) -> prompt``; the order of the pairs changes from text to text, so
            that no class profits from being named first: each is named at each place equally often, in the texts of
            every class (up to one text).
        mode: "generate" (the first of the words that the model writes) or "score" (the most likely word).
        cot: let the model reason before it answers, in a turn of its own; only with "generate".
        lead: what stands before a word that is scored.
        length: of a word, which its score is divided by, such as its number of tokens; default: not divided.
        calibrate: with "score", take from each word's score its mean over the texts whose prompts name the words in the
            same order: a word that is likely whatever the text says is no answer. Needs balanced classes; there are as
            many orders as leave each at least 2 texts of every class.
        max_tokens: of an answer.
        max_reasoning_tokens: of the reasoning.
        seed: of the order of the pairs.

    Raises:
        ValueError: labels that do not fit; a verbalizer with another number of words; in "generate", a word that is the
            beginning of another; ``calibrate`` with a class of fewer than 2 texts; when run, a score that is NaN or
            infinite (without ``calibrate``, -inf for some of the words is allowed).

    Example:
        >>> from heldout.data import verbalizer_sets
        >>> from heldout.lm import ScriptedLM
        >>> task = VerbalizerManipulation(["fine", "awful"], [1, 0], ["bad", "good"], verbalizer_sets([["no", "yes"]]))
        >>> report = task.run(ScriptedLM(lambda prompt, k: "yes" if "fine" in prompt else "no"))
        >>> report.accuracy("natural").estimate, report.accuracy("unnatural").estimate, report.gap.estimate
        (1.0, 0.0, 1.0)
    """

    @checked
    def __init__(
        self,
        texts: Sequence[str],
        labels: Sequence[int],
        descriptions: Sequence[str],
        verbalizers: Sequence[Verbalizer],
        *,
        template: VerbalizerTemplate = verbalizer_instruction,
        mode: Literal["generate", "score"] = "generate",
        cot: bool = False,
        lead: str = " ",
        length: Callable[[str], float] | None = None,
        calibrate: bool = False,
        max_tokens: int = 8,
        max_reasoning_tokens: int = 256,
        seed: int = 0,
    ) -> None:
        check_at_least(1, max_tokens=max_tokens, max_reasoning_tokens=max_reasoning_tokens)
        self.texts, self.labels, self.descriptions = list(texts), [int(y) for y in labels], list(descriptions)
        self.verbalizers, self.template, self.mode, self.cot = list(verbalizers), template, mode, cot
        self.lead, self.length, self.calibrate, self.seed = lead, length, calibrate, seed
        self.max_tokens, self.max_reasoning_tokens = max_tokens, max_reasoning_tokens
        classes = len(self.descriptions)
        if not self.texts or len(self.texts) != len(self.labels):
            raise ValueError(f"texts and labels must be as many, got {len(self.texts)} and {len(self.labels)}")
        if not all(0 <= y < classes for y in self.labels):
            raise ValueError(f"labels must be from 0 to {classes - 1}, one for each description")
        counts = np.bincount(self.labels, minlength=classes)
        if np.ptp(counts) > _UNBALANCED * len(self.labels):
            warnings.warn(
                f"the classes have {counts.tolist()} texts: accuracy below chance means nothing where they differ",
                stacklevel=2,
            )
        if mode not in ("generate", "score") or (cot and mode == "score"):
            raise ValueError(f"mode must be 'generate', or 'score' without cot, got {mode!r}")
        if calibrate and mode != "score":
            raise ValueError("calibrate needs mode='score'")
        if calibrate and min(counts) < _PER_ORDER:
            raise ValueError(
                f"calibrate needs at least {_PER_ORDER} texts of each class for one order of the words, got "
                f"{counts.tolist()}: a mean over fewer takes the answer away with the bias"
            )
        if not self.verbalizers:
            raise ValueError("at least one verbalizer is needed")
        for verbalizer in self.verbalizers:
            if len(verbalizer.words) != classes:
                raise ValueError(f"{verbalizer.name} has {len(verbalizer.words)} words for {classes} classes")
            if mode == "generate":
                _check_prefixes(verbalizer)

    @checked
    def prompts(self, verbalizer: Verbalizer) -> list[str]:
        """Returns the prompt of each text; the order in which the words are named is the same for each verbalizer."""
        pairs = list(zip(verbalizer.words, self.descriptions, strict=True))
        orders = self._orders()
        return [self.template(text, [pairs[i] for i in order]) for text, order in zip(self.texts, orders, strict=True)]

    def _orders(self) -> list[tuple[int, ...]]:
        """The order of the pairs for each text: rotations of one drawn order, dealt out within each class."""
        draw = random.Random(self.seed)
        first = list(range(len(self.descriptions)))
        draw.shuffle(first)
        rotations = [tuple(first[i:] + first[:i]) for i in range(len(first))]
        places = [[i for i, y in enumerate(self.labels) if y == label] for label in range(len(first))]
        if self.calibrate:
            rotations = rotations[: min(map(len, places)) // _PER_ORDER]
        found = [rotations[0]] * len(self.texts)
        for of_class in places:
            draw.shuffle(of_class)
            for k, place in enumerate(of_class):
                found[place] = rotations[k % len(rotations)]
        return found

    @checked
    def run(self, lm: LM) -> VerbalizerReport:
        """Returns how a language model answers with each verbalizer."""
        rows = tuple(self.run_one(lm, verbalizer) for verbalizer in self.verbalizers)
        return VerbalizerReport(rows, len(self.descriptions), tuple(self.labels))

    @checked
    def run_one(self, lm: LM, verbalizer: Verbalizer) -> VerbalizerScore:
        """Returns how a language model answers with one verbalizer."""
        return self._scored(verbalizer, self._answers(lm, verbalizer))

    def _answers(self, lm: LM, verbalizer: Verbalizer) -> list[int]:
        prompts = self.prompts(verbalizer)
        if self.mode == "score":
            return self._likeliest(lm, verbalizer, prompts)
        if self.cot:
            asked = [f"{prompt} {THINK}\n" for prompt in prompts]
            thoughts = lm.generate(asked, max_tokens=self.max_reasoning_tokens)
            prompts = [f"{p}{row[0].text}\n{THEREFORE}" for p, row in zip(asked, thoughts, strict=True)]
        rows = lm.generate(prompts, max_tokens=self.max_tokens)
        return [first_word(row[0].text, verbalizer.words) for row in rows]

    def _likeliest(self, lm: LM, verbalizer: Verbalizer, prompts: Sequence[str]) -> list[int]:
        """The likeliest word of each prompt; those that name the words in one order go together.

        They begin alike where the instruction stands first, and a ``TransformersLM`` reads that once.
        """
        lengths = np.array([self.length(word) if self.length else 1.0 for word in verbalizer.words])
        check_positive(length=lengths)
        choices = [self.lead + word for word in verbalizer.words]
        orders, found = self._orders(), [0] * len(prompts)
        for order in sorted(set(orders)):
            places = [i for i, other in enumerate(orders) if other == order]
            scores = np.array(lm.score([prompts[i] for i in places], [choices] * len(places))) / lengths
            self._check_scores(scores, [prompts[i] for i in places])
            if self.calibrate:
                scores = scores - scores.mean(0)
            for i, answer in zip(places, scores.argmax(1), strict=True):
                found[i] = int(answer)
        return found

    def _check_scores(self, scores: np.ndarray, prompts: Sequence[str]) -> None:
        unlikely = np.zeros_like(scores, bool) if self.calibrate else np.isneginf(scores)  # a word that cannot follow
        bad = ~(np.isfinite(scores) | unlikely).all(1) | unlikely.all(1)
        if bad.any():
            place = int(bad.argmax())
            raise ValueError(
                f"the model's scores of the words are {scores[place].tolist()} after the prompt {prompts[place]!r}: "
                "they must be finite" + ("" if self.calibrate else ", but for -inf of some")
            )

    def _scored(self, verbalizer: Verbalizer, answers: Sequence[int]) -> VerbalizerScore:
        right = sum(a == y for a, y in zip(answers, self.labels, strict=True))
        return VerbalizerScore(
            verbalizer,
            wilson(right, len(answers)),
            answers.count(-1) / len(answers),
            self._prior_following(verbalizer, answers) if verbalizer.kind == "unnatural" else None,
            tuple(answers),
        )

    def _prior_following(self, verbalizer: Verbalizer, answers: Sequence[int]) -> float | None:
        """The natural word of class y stands here for the class before it, as verbalizer_sets moves words on."""
        wrong = [(a, y) for a, y in zip(answers, self.labels, strict=True) if a != y]
        if not wrong:
            return None
        natural = self._natural_of(verbalizer)
        return sum(a >= 0 and verbalizer.words[a] == natural[y] for a, y in wrong) / len(wrong)

    def _natural_of(self, verbalizer: Verbalizer) -> Sequence[str]:
        for other in self.verbalizers:
            if other.kind == "natural" and set(other.words) == set(verbalizer.words):
                return other.words
        return shifted_words(verbalizer.words, -1)


@checked
def first_word(text: str, words: Sequence[str]) -> int:
    """Returns which of the words stands first in a text as a word of its own, in whatever case; -1 for none.

    What stands between ``<think>`` and ``</think>`` (or ``thinking``, in any case), or before the latter, is skipped.
    In scripts that write without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese), a word may stand anywhere; of
    two that begin at one place the longer is meant.

    Args:
        text: what a model wrote.
        words: to look for.

    Example:
        >>> first_word("Nothing? Yes, not no.", ["no", "yes"])
        1
        >>> first_word("<think>no?</think> yes", ["no", "yes"])
        1
    """
    said = _THOUGHT.sub(" ", text)
    places: list[tuple[int, int, int]] = []
    for i, word in enumerate(words):
        before = "" if _UNSPACED.match(word[:1]) else rf"(?:(?<!\w)|(?<={_UNSPACED.pattern}))"
        after = "" if _UNSPACED.match(word[-1:]) else rf"(?:(?!\w)|(?={_UNSPACED.pattern}))"
        if match := re.search(before + re.escape(word) + after, said, re.IGNORECASE):
            places.append((match.start(), -len(word), i))
    return min(places)[2] if places else -1


def _check_prefixes(verbalizer: Verbalizer) -> None:
    for word in verbalizer.words:
        for other in verbalizer.words:
            if word != other and other.lower().startswith(word.lower()):
                raise ValueError(
                    f"{word!r} is the beginning of {other!r}: an answer could be read as either; use mode='score'"
                )
