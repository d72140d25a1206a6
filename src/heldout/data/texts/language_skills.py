"""Core: Language skills, random combinations of them, and the texts in which a language model shows them at once.

Source: Zhao et al., "Can Models Learn Skill Composition from Examples?" (arXiv:2409.19808), after Yu et al.,
"Skill-Mix" (arXiv:2310.17567). The wording of the requests is ours.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from heldout.errors import check_at_least, check_fields, check_nonempty, check_nonnegative, check_one_of, checked
from heldout.language_model import LM, Prompt

IMPROVE_SKILL_TEXT = (
    "Now write a better version of it: every skill must be there, the topic must be kept, and so must the limit on "
    "sentences. Answer with the text alone."
)
"""The second turn of a request for a text, whose answer counts."""


@dataclass(frozen=True)
class LanguageSkill:
    """A skill that a text can show, such as a metaphor.

    Args:
        name: in which it is asked for, and which a text may not simply mention.
        definition: what it is.
        example: a text that shows it.
        check: ``(text, topic) -> whether the text shows it``, for skills that a rule can tell.
        category: what kind of skill it is; whole categories are held out.

    Raises:
        ValueError: an empty name.

    Example:
        >>> LanguageSkill("question", "asks something", "Why so?", lambda text, topic: "?" in text).category
        ''
    """

    name: str
    definition: str = ""
    example: str = ""
    check: Callable[[str, str], bool] | None = None
    category: str = ""

    def __post_init__(self) -> None:
        check_fields(self)
        check_nonempty(name=self.name.strip())


class SkillCombination(NamedTuple):
    """A topic and the skills that a text about it is to show.

    Attributes:
        skills: k of them.
        topic: what the text is about.

    Example:
        >>> skills = tuple(LanguageSkill(name) for name in ("simile", "question", "cause"))
        >>> asked = SkillCombination(skills, "sea")
        >>> asked.k, asked.limit, sorted(asked.names)
        (3, 2, ['cause', 'question', 'simile'])
    """

    skills: tuple[LanguageSkill, ...]
    topic: str

    @property
    def k(self) -> int:
        """How many skills."""
        return len(self.skills)

    @property
    def names(self) -> frozenset[str]:
        """The names of the skills."""
        return frozenset(skill.name for skill in self.skills)

    @property
    def limit(self) -> int:
        """Most sentences of the text: one less than there are skills, at least 1, so that not each has its own."""
        return max(1, self.k - 1)


@checked
def skill_combinations(
    skills: Sequence[LanguageSkill],
    topics: Sequence[str],
    k: int,
    n: int,
    *,
    exclude: Collection[frozenset[str]] = (),
    seed: int = 0,
) -> list[SkillCombination]:
    """Returns n different pairs of a topic and a k-subset of the skills, uniform, each subset in a random order.

    Args:
        skills: with different names.
        topics: different ones.
        k: skills of a combination.
        n: how many, at most all there are.
        exclude: sets of names that are not drawn, such as those trained on.
        seed: of the draw.

    Raises:
        ValueError: k above the number of skills, names or topics that repeat, or fewer combinations than n.

    Example:
        >>> a, b = LanguageSkill("a"), LanguageSkill("b")
        >>> sorted(combination.topic for combination in skill_combinations([a, b], ["sea", "sky"], 2, 2))
        ['sea', 'sky']
    """
    check_at_least(1, k=k, n=n)
    check_at_least(0, seed=seed)
    check_nonempty(skills=skills, topics=topics)
    _check_different(skills=[skill.name for skill in skills], topics=topics)
    if k > len(skills):
        raise ValueError(f"k must be at most {len(skills)}, the number of skills, got {k}")
    most = math.comb(len(skills), k) * len(topics)
    rng, found, seen = random.Random(seed), [], set()
    barred = {frozenset(names) for names in exclude}
    for _ in range(20 * n + 50 * most if most < 10_000 else 50 * n):
        subset, topic = rng.sample(list(skills), k), rng.choice(list(topics))
        drawn = SkillCombination(tuple(subset), topic)
        if drawn.names not in barred and (drawn.names, topic) not in seen:
            seen.add((drawn.names, topic))
            found.append(drawn)
        if len(found) == n:
            return found
    raise ValueError(f"n must be at most about {len(found)}: there are no more combinations, got {n}")


@checked
def skill_messages(combination: SkillCombination) -> list[dict[str, str]]:
    """Returns the request for a text, as chat messages: the skills, the topic and the limit on sentences.

    Raises:
        ValueError: a combination without skills.

    Example:
        >>> simile = LanguageSkill("simile", "compares with another thing", "Brave as a lion.")
        >>> print(skill_messages(SkillCombination((simile,), "the sea"))[0]["content"])
        Write a short text about the sea that shows all of these skills:
        - simile: compares with another thing Example: Brave as a lion.
        Write at most 1 sentence, and do not name the skills.
    """
    check_nonempty(combination=combination.skills)
    lines = []
    for skill in combination.skills:
        shown = f" Example: {skill.example}" if skill.example else ""
        lines.append(f"- {skill.name}: {skill.definition}{shown}")
    sentences = "1 sentence" if combination.limit == 1 else f"{combination.limit} sentences"
    request = [
        f"Write a short text about {combination.topic} that shows all of these skills:",
        *lines,
        f"Write at most {sentences}, and do not name the skills.",
    ]
    return [{"role": "user", "content": "\n".join(request)}]


@checked
def write_skill_texts(
    lm: LM,
    prompts: Sequence[Prompt],
    *,
    n: int = 1,
    improve: str | None = IMPROVE_SKILL_TEXT,
    temperature: float = 0.0,
    max_tokens: int = 256,
    stop: Sequence[str] = (),
    seed: int = 0,
) -> list[list[Prompt]]:
    """Returns n conversations for each prompt, which end with the text that counts: a draft, then a better version.

    All prompts are answered in one call a turn, so that a model can batch them.

    Args:
        lm: any language model.
        prompts: requests, as chat messages or texts. A text is answered once: its conversation is that text and the
            answer, as two messages.
        n: conversations of each.
        improve: the second request; None: the draft counts.
        temperature, max_tokens, stop, seed: of each answer.

    Raises:
        ValueError: no prompts, or options out of range.

    Example:
        >>> from heldout.lm import ScriptedLM
        >>> lm = ScriptedLM(["A dog.", "A dog, a dog!"])
        >>> ((talk,),) = write_skill_texts(lm, [[{"role": "user", "content": "About a dog."}]])
        >>> [message["content"] for message in talk][-1]
        'A dog, a dog!'
    """
    check_nonempty(prompts=prompts)
    check_at_least(1, n=n, max_tokens=max_tokens)
    check_at_least(0, seed=seed)
    check_nonnegative(temperature=temperature)
    options: dict[str, Any] = {"temperature": temperature, "max_tokens": max_tokens, "stop": list(stop)}

    def turn(prompt: Prompt, said: str) -> list[dict[str, str]]:
        before = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(each) for each in prompt]
        return [*before, {"role": "assistant", "content": said}]

    drafts = lm.generate(list(prompts), n, seed=seed, **options)
    talks = [[turn(prompt, draft.text) for draft in row] for prompt, row in zip(prompts, drafts, strict=True)]
    again = [(i, j) for i, row in enumerate(talks) for j in range(len(row)) if not isinstance(prompts[i], str)]
    if improve is not None and again:
        asked = [[*talks[i][j], {"role": "user", "content": improve}] for i, j in again]
        better = lm.generate(asked, 1, seed=seed + 1, **options)
        for (i, j), prompt, (said, *_) in zip(again, asked, better, strict=True):
            talks[i][j] = turn(prompt, said.text)
    return talks  # type: ignore[return-value]


@checked
def compose_skill_texts(
    lm: LM,
    skills: Sequence[LanguageSkill],
    topics: Sequence[str],
    k: int,
    n: int,
    grader: Callable[[str, SkillCombination], Sequence[float]],
    *,
    keep: str = "full",
    prompt: Callable[[SkillCombination], Prompt] = skill_messages,
    improve: str | None = IMPROVE_SKILL_TEXT,
    tries: int = 10,
    temperature: float = 0.7,
    max_tokens: int = 256,
    stop: Sequence[str] = (),
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Returns texts in which a language model showed random k-subsets of skills, for ``heldout.train.sft``.

    Args:
        lm: any language model: the better one, whose texts are learned from.
        skills, topics: those of training; what is held out is not among them.
        k: skills of a text.
        n: texts that are kept.
        grader: ``(text, combination) -> points``, each 0 or 1: ``heldout.measure.grade_skill_text`` with its grader.
        keep: "full", those with all points; "all", whatever was written.
        prompt: combination -> the request.
        improve: the second turn, for requests that are messages; None: the draft counts.
        tries: texts that are written at most for each that is to be kept.
        temperature, max_tokens, stop: of each answer.
        seed: of combinations and answers.

    Returns:
        rows, each a dict with ``messages`` (both turns), ``skills`` (names), ``topic``, ``k`` and ``points``. Of a
        request that is a text the row has ``prompt`` and ``completion`` instead of ``messages``. Combinations may
        repeat.

    Raises:
        ValueError: k above the number of skills, names that repeat, points that are none, or fewer texts that are kept
            than n.

    Source: arXiv:2409.19808: texts with full marks alone are trained on.

    Example:
        >>> import functools
        >>> from heldout.lm import ScriptedLM
        >>> from heldout.measure import grade_skill_text
        >>> question = LanguageSkill("question", "asks", "Why?", lambda text, topic: "?" in text)
        >>> lm = ScriptedLM(lambda prompt, sample: "Where is the sea?" if len(prompt) == 3 else "The sea.")
        >>> grader = functools.partial(grade_skill_text, grader="rules")
        >>> (row,) = compose_skill_texts(lm, [question], ["sea"], 1, 1, grader)
        >>> row["messages"][-1]["content"], row["skills"], row["topic"]
        ('Where is the sea?', ('question',), 'sea')
    """
    check_at_least(1, n=n, k=k, tries=tries)
    check_at_least(0, seed=seed)
    check_one_of(["full", "all"], keep=keep)
    check_nonempty(skills=skills, topics=topics)
    rows: list[dict[str, Any]] = []
    most = math.comb(len(skills), k) * len(topics)
    written, rounds = 0, 0
    while len(rows) < n and written < tries * n:
        # What is missing, and a fifth more; the last of it may be thrown away.
        count = min(most, tries * n - written, max(8, math.ceil(1.2 * (n - len(rows)))))
        drawn = skill_combinations(skills, topics, k, max(1, count), seed=seed + 7919 * rounds)
        options: dict[str, Any] = {"temperature": temperature, "max_tokens": max_tokens, "stop": stop}
        talks = write_skill_texts(lm, [prompt(each) for each in drawn], improve=improve, seed=seed + rounds, **options)
        for combination, (talk,) in zip(drawn, talks, strict=True):
            row = _graded(talk, combination, prompt(combination), grader)
            if keep == "all" or all(point == 1 for point in row["points"]):
                rows.append(row)
        written, rounds = written + len(drawn), rounds + 1
    if len(rows) < n:
        raise ValueError(f"n must be at most about {len(rows)}: of {written} texts no more had full marks, got {n}")
    return rows[:n]


def _graded(talk: Any, combination: SkillCombination, request: Prompt, grader: Any) -> dict[str, Any]:
    text = talk[-1]["content"]
    points = tuple(float(point) for point in grader(text, combination))
    if not points or any(point not in (0.0, 1.0) for point in points):
        raise ValueError(f"grader must give points of 0 or 1, got {points} for {text[:200]!r}")
    told: dict[str, Any] = {"prompt": request, "completion": text} if isinstance(request, str) else {"messages": talk}
    names = tuple(skill.name for skill in combination.skills)
    return {**told, "skills": names, "topic": combination.topic, "k": combination.k, "points": points}


def _check_different(**named: Sequence[str]) -> None:
    for name, values in named.items():
        if repeated := [value for at, value in enumerate(values) if value in values[:at]]:
            raise ValueError(f"{name} must be different, got {repeated[0]!r} twice")
