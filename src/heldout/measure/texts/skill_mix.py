"""Core: Skill-Mix: does a language model show several skills at once in a text that is too short for one after another?

Source: arXiv:2310.17567 (Yu et al.) and arXiv:2409.19808 (Zhao et al.). The wording of the requests is ours.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from heldout.data import (
    IMPROVE_SKILL_TEXT,
    LanguageSkill,
    SkillCombination,
    skill_combinations,
    skill_messages,
    write_skill_texts,
)
from heldout.errors import check_at_least, check_fields, check_nonempty, check_one_of, checked
from heldout.language_model import LM, Prompt

GRADE_SKILL_TEXT = (
    "Grade a text. Give one point (1) or none (0) for each criterion, in this order:\n{criteria}\n\n"
    "Text:\n{text}\n\nAnswer with one line of {count} numbers, each 0 or 1, separated by spaces, and nothing else."
)
"""What an LM judge is asked, with ``{criteria}``, ``{text}`` and ``{count}``."""


class SkillPoints(NamedTuple):
    """The points of a text: k for its skills, and three more.

    Attributes:
        skills: whether each skill is shown, in the order in which they were asked for.
        topic: whether it is about the topic.
        sense: whether it makes sense.
        length: whether it keeps to the limit on sentences.

    Example:
        >>> points = SkillPoints((True, False), topic=True, sense=True, length=True)
        >>> points.full, points.skill_fraction, points.vector
        (False, 0.5, (1.0, 0.0, 1.0, 1.0, 1.0))
    """

    skills: tuple[bool, ...]
    topic: bool
    sense: bool
    length: bool

    @property
    def vector(self) -> tuple[float, ...]:
        """All k + 3 points, each 0.0 or 1.0."""
        return tuple(float(point) for point in (*self.skills, self.topic, self.sense, self.length))

    @property
    def full(self) -> bool:
        """Whether it has all of them."""
        return all(self.vector)

    @property
    def all_skills(self) -> bool:
        """Whether it has those of all skills, and two of the other three."""
        return all(self.skills) and self.topic + self.sense + self.length >= 2

    @property
    def skill_fraction(self) -> float:
        """The share of the skills that are shown; 0 unless the other three points are there."""
        others = self.topic and self.sense and self.length
        return sum(self.skills) / len(self.skills) if others and self.skills else 0.0


def _mentions_topic(text: str, topic: str) -> bool:
    return re.search(rf"\b{re.escape(topic)}\b", text, re.IGNORECASE) is not None


def _has_words(text: str, topic: str) -> bool:
    return re.search(r"\w", text) is not None


_ENDS = re.compile(
    r"[.!?\u2026]+[\"'\u201d\u2019)\]]*(?:\s+|$)|(?<=[a-z])[.!?]+(?=[A-Z])|\n\s*\n|[\u3002\uff01\uff1f]+"
)


def count_sentences(text: str) -> int:
    """Returns how many sentences end in a text, and one more where it does not end with one.

    An empty line ends one too, and so does a mark between a small letter and a capital: "One.Two".

    Raises:
        TypeError: no text.

    Example:
        >>> count_sentences("It rains. Does it? It does ..."), count_sentences("It rains . It"), count_sentences("")
        (3, 2, 0)
    """
    if not isinstance(text, str):
        raise TypeError(f"text must be a str, got {type(text).__name__}")
    return len([part for part in _ENDS.split(text) if part.strip(" .!?")])


@dataclass(frozen=True)
class SkillRules:
    """Rules for the three points beside those of the skills, which have their own (``LanguageSkill.check``).

    Args:
        on_topic: ``(text, topic)``; default: the topic is mentioned.
        makes_sense: ``(text, topic)``; default: there is a word. Rules hardly tell sense in free text: give your own,
            or a language model as the grader.
        sentences: text -> number; default: ``count_sentences``.

    Example:
        >>> SkillRules().on_topic("The sea is calm.", "sea")
        True
    """

    on_topic: Callable[[str, str], bool] = _mentions_topic
    makes_sense: Callable[[str, str], bool] = _has_words
    sentences: Callable[[str], int] = field(default_factory=lambda: count_sentences)

    def __post_init__(self) -> None:
        check_fields(self)


Grader = LM | SkillRules | str


@checked
def grade_skill_points(
    text: str, combination: SkillCombination, grader: Any = "rules", *, rounds: int = 3, retries: int = 2, seed: int = 0
) -> SkillPoints:
    """Returns the points of a text by name; see ``grade_skill_text``.

    Raises:
        TypeError, ValueError: as ``grade_skill_text``.

    Example:
        >>> question = LanguageSkill("question", check=lambda text, topic: "?" in text)
        >>> grade_skill_points("Is the sea calm?", SkillCombination((question,), "sea"))
        SkillPoints(skills=(True,), topic=True, sense=True, length=True)
    """
    check_nonempty(combination=combination.skills)
    check_at_least(1, rounds=rounds)
    check_at_least(0, retries=retries, seed=seed)
    shown = _without_names(text, combination)
    if isinstance(grader, str | SkillRules):
        check_one_of(["rules"], **({"grader": grader} if isinstance(grader, str) else {}))
        return _by_rules(text, shown, combination, grader if isinstance(grader, SkillRules) else SkillRules())
    if not isinstance(grader, LM):
        raise TypeError(f'grader must be "rules", SkillRules or a language model, got {type(grader).__name__}')
    if rounds % 2 == 0:
        raise ValueError(f"rounds must be odd, for an even number may tie, got {rounds}")
    gradings = [_asked(shown, combination, grader, retries, seed + number) for number in range(rounds)]
    majority = [2 * sum(votes) > rounds for votes in zip(*gradings, strict=True)]
    return SkillPoints(tuple(majority[:-3]), *majority[-3:])


@checked
def grade_skill_text(
    text: str, combination: SkillCombination, grader: Any = "rules", *, rounds: int = 3, retries: int = 2, seed: int = 0
) -> tuple[float, ...]:
    """Returns the k + 3 points of a text, each 0.0 or 1.0: for each skill, the topic, the sense and the length.

    The names of the skills are cut out of the text first: to mention one is not to show it. Rules judge the topic, the
    sense and the length of the text as it was written; a language model sees the text without the names alone.

    Args:
        text: what was written.
        combination: what was asked for.
        grader: "rules" or ``SkillRules``, where each skill has a ``check``; or any language model, which is asked
            ``GRADE_SKILL_TEXT``.
        rounds: gradings by a language model, odd; each point goes by their majority. Rules are certain.
        retries: how often a grading that cannot be read is asked for again.
        seed: of the language model's answers; each round has another.

    Raises:
        ValueError: no skills, a skill without a rule, an even number of rounds, or a grading that cannot be read: the
            message holds what was said.
        TypeError: a grader that is none.

    Source: arXiv:2310.17567.

    Example:
        >>> question = LanguageSkill("question", check=lambda text, topic: "?" in text)
        >>> grade_skill_text("A question. The sea.", SkillCombination((question,), "sea"))
        (0.0, 1.0, 1.0, 0.0)
    """
    return grade_skill_points(text, combination, grader, rounds=rounds, retries=retries, seed=seed).vector


class SkillMixReport(NamedTuple):
    """What a language model reaches, each a share of the combinations.

    Attributes:
        full: the best text has all k + 3 points.
        all_skills: the best text has the points of all skills and two of the other three.
        skill_fraction: mean share of the skills that the best text shows; 0 where it lacks one of the other points.
        mean_full: ``full`` of an average text instead of the best; the same where there is one a combination.
        per_skill: name -> share of the texts that were to show it and do.
        topic, sense, length: shares of the texts with these points.
        points: of each combination, those of its texts.
        texts: what was graded, alike.

    Example:
        >>> asked = SkillCombination((LanguageSkill("a"),), "sea")
        >>> texts = [SkillPoints((True,), True, True, True), SkillPoints((False,), True, True, True)]
        >>> report = skill_mix_report([asked], [texts])
        >>> report.full, report.mean_full, report.per_skill
        (1.0, 0.5, {'a': 0.5})
    """

    full: float
    all_skills: float
    skill_fraction: float
    mean_full: float
    per_skill: dict[str, float]
    topic: float
    sense: float
    length: float
    points: list[list[SkillPoints]]
    texts: list[list[str]]


@checked
def skill_mix_report(
    combinations: Sequence[SkillCombination],
    points: Sequence[Sequence[SkillPoints]],
    texts: Sequence[Sequence[str]] | None = None,
) -> SkillMixReport:
    """Returns the ratios of Skill-Mix from points.

    Args:
        combinations: what was asked for.
        points: of one text or more for each combination.
        texts: what was graded; default: empty.

    Raises:
        ValueError: nothing to count, a combination without texts, or points for another number of skills.

    Example:
        >>> asked = SkillCombination((LanguageSkill("a"), LanguageSkill("b")), "sea")
        >>> report = skill_mix_report([asked], [[SkillPoints((True, False), True, True, True)]])
        >>> report.full, report.skill_fraction, report.per_skill
        (0.0, 0.5, {'a': 1.0, 'b': 0.0})
    """
    check_nonempty(combinations=combinations, points=points)
    if len(points) != len(combinations) or not all(points):
        raise ValueError(f"points must be those of {len(combinations)} combinations, at least one each")
    shown: dict[str, list[bool]] = {}
    for combination, row in zip(combinations, points, strict=True):
        for each in row:
            if len(each.skills) != combination.k:
                raise ValueError(f"points must be of {combination.k} skills, as asked for, got {len(each.skills)}")
            for skill, point in zip(combination.skills, each.skills, strict=True):
                shown.setdefault(skill.name, []).append(point)
    flat = [each for row in points for each in row]

    def best(name: str) -> float:
        return sum(max(float(getattr(each, name)) for each in row) for row in points) / len(points)

    def share(name: str) -> float:
        return sum(getattr(each, name) for each in flat) / len(flat)

    return SkillMixReport(
        full=best("full"),
        all_skills=best("all_skills"),
        skill_fraction=best("skill_fraction"),
        mean_full=sum(sum(each.full for each in row) / len(row) for row in points) / len(points),
        per_skill={name: sum(votes) / len(votes) for name, votes in sorted(shown.items())},
        topic=share("topic"),
        sense=share("sense"),
        length=share("length"),
        points=[list(row) for row in points],
        texts=[[] for _ in points] if texts is None else [list(row) for row in texts],
    )


@dataclass(frozen=True)
class SkillMix:
    """The evaluation: random topics and k-subsets of skills, a text about each, and its points.

    Args:
        skills: those that are combined; for unseen ones, those held out.
        topics: what texts are about.
        k: skills of a text.
        combos: how many combinations are drawn.
        grader: "rules", ``SkillRules`` or a language model; see ``grade_skill_text``.
        rounds: gradings of a language model as the grader, odd.
        generations: texts for each combination, of which the best counts (and ``mean_full`` tells the mean).
        exclude: sets of names that are not drawn, such as those trained on.
        wording: combination -> request, ``skill_messages`` by default.
        improve: the second turn, for requests that are messages; None: the first answer counts.
        seed: of the combinations.

    Raises:
        ValueError: no skills or topics, k above the number of skills, options out of range; when drawn, fewer
            combinations than ``combos``.

    Source: arXiv:2310.17567; ratios as in arXiv:2409.19808.

    Deviation: the skill points of "all skills" need two of the other three, which reports of the papers vary in; a text
    is graded as it was written last, not in the best of several gradings.

    Example:
        >>> from heldout.lm import ScriptedLM
        >>> question = LanguageSkill("question", "asks", "Why?", lambda text, topic: "?" in text)
        >>> mix = SkillMix([question], ["sea", "sky"], k=1, combos=2)
        >>> mix.run(ScriptedLM(lambda prompt, sample: "Is the sea calm?")).full
        0.5
    """

    skills: Sequence[LanguageSkill]
    topics: Sequence[str]
    k: int
    combos: int = 100
    grader: Any = "rules"
    rounds: int = 3
    generations: int = 1
    exclude: Collection[frozenset[str]] = field(default=())
    wording: Callable[[SkillCombination], Prompt] = skill_messages
    improve: str | None = IMPROVE_SKILL_TEXT
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        check_nonempty(skills=self.skills, topics=self.topics)
        check_at_least(1, k=self.k, combos=self.combos, rounds=self.rounds, generations=self.generations)
        check_at_least(0, seed=self.seed)
        if self.k > len(self.skills):
            raise ValueError(f"k must be at most {len(self.skills)}, the number of skills, got {self.k}")
        if self.rounds % 2 == 0:
            raise ValueError(f"rounds must be odd, for an even number may tie, got {self.rounds}")
        if isinstance(self.grader, str):
            check_one_of(["rules"], grader=self.grader)
        elif not isinstance(self.grader, SkillRules | LM):
            raise TypeError(f'grader must be "rules", SkillRules or a language model, got {self.grader!r:.80}')

    @cached_property
    def combinations(self) -> list[SkillCombination]:
        """What is asked for."""
        return skill_combinations(self.skills, self.topics, self.k, self.combos, exclude=self.exclude, seed=self.seed)

    @checked
    def prompt(self, combo: SkillCombination) -> Prompt:
        """Returns the request for a text."""
        return self.wording(combo)

    @checked
    def run(
        self, lm: LM, *, temperature: float = 0.0, max_tokens: int = 256, stop: Sequence[str] = (), seed: int = 0
    ) -> SkillMixReport:
        """Returns what a language model reaches. All combinations are asked for in one call a turn.

        Args:
            lm: the language model that is judged.
            temperature, max_tokens, stop, seed: of its texts.
        """
        talks = write_skill_texts(
            lm, [self.prompt(each) for each in self.combinations], n=self.generations, improve=self.improve,
            temperature=temperature, max_tokens=max_tokens, stop=stop, seed=seed,
        )  # fmt: skip
        texts = [[talk[-1]["content"] for talk in row] for row in talks]  # type: ignore[index]
        points = [
            [grade_skill_points(text, combination, self.grader, rounds=self.rounds) for text in row]
            for combination, row in zip(self.combinations, texts, strict=True)
        ]
        return skill_mix_report(self.combinations, points, texts)


def _without_names(text: str, combination: SkillCombination) -> str:
    names = sorted((skill.name for skill in combination.skills), key=len, reverse=True)
    found = re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, names)) + r")(?!\w)", re.IGNORECASE)
    return re.sub(r" {2,}", " ", found.sub("", text)).strip() if found.search(text) else text


def _by_rules(text: str, shown_in: str, combination: SkillCombination, rules: SkillRules) -> SkillPoints:
    topic, shown = combination.topic, []
    for skill in combination.skills:
        if skill.check is None:
            raise ValueError(f"skill {skill.name!r} has no rule (check): a language model must be the grader")
        shown.append(bool(skill.check(shown_in, topic)))
    return SkillPoints(
        tuple(shown),
        bool(rules.on_topic(text, topic)),
        bool(rules.makes_sense(text, topic)),
        1 <= rules.sentences(text) <= combination.limit,
    )


def _asked(text: str, combination: SkillCombination, lm: LM, retries: int, seed: int) -> list[bool]:
    criteria = [f"It shows the skill {skill.name} ({skill.definition})." for skill in combination.skills]
    criteria += [
        f"It is about {combination.topic}.",
        "It makes sense.",
        f"It has at most {combination.limit} sentence{'s' * (combination.limit > 1)}.",
    ]
    fields = {
        "criteria": "\n".join(f"{number}. {criterion}" for number, criterion in enumerate(criteria, 1)),
        "text": text,
        "count": str(len(criteria)),
    }
    # Not str.format: a text may hold braces, and must not reach other fields.
    asked = re.sub(r"\{(criteria|text|count)\}", lambda match: fields[match[1]], GRADE_SKILL_TEXT)
    said = ""
    for attempt in range(retries + 1):
        said = lm.generate([asked], 1, temperature=0.7, max_tokens=64, seed=seed + 1000 * attempt)[0][0].text
        if re.fullmatch(r"[\s\[(]*[01](?:[\s,]+[01])*[\s\]).]*", said):
            points = [digit == "1" for digit in re.findall(r"[01]", said)]
            if len(points) == len(criteria):
                return points
    raise ValueError(f"grader must answer with {len(criteria)} numbers, each 0 or 1, got {said[:200]!r}")
