"""Skills taken from solved problems by a language model, and the skills that an output says it uses.

Source: Chen et al., "Skills-in-Context Prompting" (arXiv:2308.00304). The wording of the requests is ours.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from heldout.errors import check_fields, check_nonempty, checked
from heldout.language_model import LM
from heldout.lm.strategies.prompting import Composition, Skill, filled

DISTILL = (
    "{problems}\n\nName the {count} basic skills that these solutions are composed of. One line for each, and nothing "
    "else, in the form\nname | what it does | a solved example of that skill alone\n"
)
ANNOTATE = (
    "Skills: {names}\n\n{problem}\n\nRewrite the solution as steps that each use one of the skills. One line for each "
    "step, in the form\nname of the skill | what the step does and finds\nThen a last line in the form\nanswer | the "
    "final answer\n"
)
_MENTION = r"\b[Ss]kill\s+(?:<([^<>\n]+)>|\"([^\"\n]+)\"|([A-Za-z_][\w-]*))"


@dataclass(frozen=True)
class SkillUse:
    """A skill that an output mentions; internal if the prompt does not list it.

    Example:
        >>> skill_usage("By the skill Root, 3.", [Skill("Add")])
        [SkillUse(name='Root', internal=True)]
    """

    name: str
    internal: bool

    def __post_init__(self) -> None:
        check_fields(self)


@checked
def distill_skills(lm: LM, solved: Sequence[tuple[str, str]], n: int) -> tuple[list[Skill], list[Composition]]:
    """Returns skills that a language model finds in solved problems, and the problems as compositions of them.

    One call names the skills, one for each problem annotates it. Lines that do not have the form are not used.

    Args:
        lm: any language model.
        solved: (problem, solution).
        n: skills that are asked for.

    Raises:
        ValueError: no problem, fewer than 1 skill; a reply from which no skill, no step or no answer can be read; a
            step that names another skill: the message holds what was said.

    Example:
        >>> from heldout.lm import ScriptedLM
        >>> lm = ScriptedLM(["Double | Multiply by two. | Double 4: 8", "Double | 3 becomes 6.\\nanswer | 6"])
        >>> skills, compositions = distill_skills(lm, [("Double 3.", "3 * 2 = 6")], 1)
        >>> skills[0].name, compositions[0].steps, compositions[0].answer
        ('Double', (('Double', '3 becomes 6.'),), '6')
    """
    if not solved or n < 1:
        raise ValueError(f"distill_skills needs solved problems and n of at least 1, got {len(solved)} and {n}")
    shown = [f"Problem: {problem}\nSolution: {solution}" for problem, solution in solved]
    said = lm.generate([filled(DISTILL, problems="\n\n".join(shown), count=str(n))], 1)[0][0].text
    skills: dict[str, Skill] = {}
    for name, *rest in _rows(said):
        if rest and len(skills) < n:
            skills.setdefault(name, Skill(name, rest[0], tuple(rest[1:])))
    if not skills:
        raise ValueError(f"the model named no skill in the form that it was asked for: {said[:200]!r}")
    requests = [filled(ANNOTATE, names=", ".join(skills), problem=text) for text in shown]
    replies = lm.generate(requests, 1)
    compositions = []
    for (problem, _), reply in zip(solved, replies, strict=True):
        rows = [row for row in _rows(reply[0].text) if len(row) > 1]
        steps = tuple((name, " ".join(rest)) for name, *rest in rows if name.lower() != "answer")
        answers = [row[1] for row in rows if row[0].lower() == "answer"]
        unknown = [name for name, _ in steps if name not in skills]
        if not steps or not answers or unknown:
            fault = f"uses skill {unknown[0]!r}, which is not one of them" if unknown else "has no step or no answer"
            raise ValueError(f"the model's annotation of {problem!r} {fault}: {reply[0].text[:200]!r}")
        compositions.append(Composition(problem, steps, answers[-1]))
    return list(skills.values()), compositions


@checked
def skill_usage(
    output: str, skills: Sequence[Skill], *, mentions: str | Callable[[str], Sequence[str]] = _MENTION
) -> list[SkillUse]:
    """Returns the skills that an output mentions, each once, in the order of their first mention.

    Args:
        output: of a model, in which a mention is "skill Name", 'skill "a name"' or "skill <a name>".
        skills: those that the prompt lists; their names are found in whatever case.
        mentions: another regular expression, whose groups hold names, or a function output -> names.

    Example:
        >>> uses = skill_usage("Using the skill add: 7. By Skill <Pythagorean theorem>, 5.", [Skill("Add")])
        >>> [(use.name, use.internal) for use in uses]
        [('Add', False), ('Pythagorean theorem', True)]
    """
    listed = {skill.name.lower(): skill.name for skill in skills}
    if callable(mentions):
        names = list(mentions(output))
    else:
        # Listed names first: one may hold spaces, where a free mention ends.
        known = "|".join(re.escape(skill.name) for skill in sorted(skills, key=lambda skill: -len(skill.name)))
        pattern = rf"\b[Ss]kill\s+((?i:{known}))(?!\w)|{mentions}" if known else mentions
        names = [next(group for group in match.groups() if group is not None) for match in re.finditer(pattern, output)]
    found: dict[str, SkillUse] = {}
    for name in names:
        key = name.strip().lower()
        found.setdefault(key, SkillUse(listed.get(key, name.strip()), key not in listed))
    return list(found.values())


@checked
def internal_activation_rate(outputs: Sequence[str], skills: Sequence[Skill], **options: str) -> float | None:
    """Returns the share of the skills mentioned in outputs that the prompt does not list; None without mention.

    Example:
        >>> internal_activation_rate(["skill Add", "skill Add, skill Root"], [Skill("Add")])
        0.3333333333333333
    """
    check_nonempty(skills=skills)
    uses = [use for output in outputs for use in skill_usage(output, skills, **options)]
    return sum(use.internal for use in uses) / len(uses) if uses else None


def _rows(text: str) -> list[list[str]]:
    rows = [[part.strip() for part in line.split("|")] for line in text.splitlines()]
    return [row for row in rows if row[0]]
