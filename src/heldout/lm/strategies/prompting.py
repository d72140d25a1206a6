"""Core: Prompting strategies: few examples, chains of thought, least to most, and skills in context.

A strategy has ``text(query)`` and ``messages(query)``; ``run_strategy`` asks any language model and returns answers
with their traces and costs. Skills-in-context prompting lists basic skills, shows a few worked compositions whose every
step names the skill that it uses, and asks the query, all in one prompt.

Source: Chen et al., "Skills-in-Context Prompting" (arXiv:2308.00304); Wei et al. (arXiv:2201.11903) for chains of
thought; Zhou et al. (arXiv:2205.10625) for least to most. The wording of the prompts is ours.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from heldout.errors import check_at_least, check_fields, check_nonempty, checked
from heldout.language_model import LM
from heldout.lm.models.encoding import ids_of_prompt
from heldout.lm.models.usage import Usage, usage_of

SKILLS_HEADER = "Here are basic skills, then examples of problems that are solved by composing them."
INTERNAL_NOTE = "A step may also use a skill that you know and that is not listed."


class Strategy(Protocol):
    """What asks a query in one prompt; one that asks again has ``following(query, replies)`` too."""

    def text(self, query: str) -> str:
        """Returns the prompt of a query."""
        ...


@dataclass(frozen=True)
class Skill:
    """A basic skill: its name, what it does, and solved examples of it alone.

    Example:
        >>> Skill("Double", "Multiply by two.", ["Double 4: 8"]).examples
        ['Double 4: 8']
    """

    name: str
    description: str = ""
    examples: Sequence[str] = ()

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Composition:
    """A worked problem whose steps name their skills.

    Attributes:
        problem: its text.
        steps: (name of the skill, what the step does and finds) in order.
        answer: the final answer.
    """

    problem: str
    steps: Sequence[tuple[str, str]]
    answer: str

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Solved:
    """What a strategy made of a problem.

    Attributes:
        answer: what was extracted from the last reply; None where nothing was found, which counts as wrong.
        trace: the model's replies, in order.
        usage: calls, tokens and money.
    """

    answer: Any
    trace: tuple[str, ...]
    usage: Usage

    def __post_init__(self) -> None:
        check_fields(self)
        check_nonempty(trace=self.trace)

    @property
    def output(self) -> str:
        """The last reply."""
        return self.trace[-1]


@dataclass(frozen=True)
class FewShot:
    """Problems with their answers, then the query; without examples it is zero-shot.

    Args:
        examples: (problem, answer).
        header: before the examples.
        template: of an example, with ``{problem}`` and ``{answer}``; the query ends where the answer begins.
        separator: between the parts.

    Example:
        >>> print(FewShot([("2 + 2?", "4")]).text("3 + 4?"))
        2 + 2?
        Answer: 4
        <BLANKLINE>
        3 + 4?
        Answer:
    """

    examples: Sequence[tuple[str, str]] = ()
    header: str = ""
    template: str = "{problem}\nAnswer: {answer}"
    separator: str = "\n\n"

    def __post_init__(self) -> None:
        check_fields(self)
        needed(self.template, "problem", "answer")

    @checked
    def text(self, query: str) -> str:
        """Returns the prompt of a query."""
        shown = [filled(self.template, problem=problem, answer=answer) for problem, answer in self.examples]
        return joined(self.separator, self.header, *shown, begun(self.template, query))

    @checked
    def messages(self, query: str) -> list[dict[str, str]]:
        """Returns the prompt as one chat message of the user."""
        return as_message(self.text(query))


@dataclass(frozen=True)
class ChainOfThought:
    """Problems with their reasoning and answers, then the query; without examples, an invitation to think.

    Args:
        examples: (problem, reasoning, answer).
        header: before the examples.
        template: of an example, with ``{problem}``, ``{reasoning}`` and ``{answer}``; the query ends where the
            reasoning begins.
        invitation: what follows the query where there are no examples.
        separator: between the parts.

    Example:
        >>> print(ChainOfThought().text("3 + 4?"))
        3 + 4?
        Answer: Let's think step by step.
    """

    examples: Sequence[tuple[str, str, str]] = ()
    header: str = ""
    template: str = "{problem}\nAnswer: {reasoning} The answer is {answer}."
    invitation: str = " Let's think step by step."
    separator: str = "\n\n"

    def __post_init__(self) -> None:
        check_fields(self)
        needed(self.template, "problem", "reasoning", "answer")

    @checked
    def text(self, query: str) -> str:
        """Returns the prompt of a query."""
        shown = [filled(self.template, problem=p, reasoning=r, answer=a) for p, r, a in self.examples]
        asked = begun(self.template, query) + ("" if self.examples else self.invitation)
        return joined(self.separator, self.header, *shown, asked)

    @checked
    def messages(self, query: str) -> list[dict[str, str]]:
        """Returns the prompt as one chat message of the user."""
        return as_message(self.text(query))


@dataclass(frozen=True)
class LeastToMost:
    """One call that splits the problem into subproblems, a line each; then a call for each, and one for the problem.

    Args:
        decompositions: (problem, subproblems) as examples of the first call.
        solutions: (problem, [(subproblem, answer), ...]) as examples of the others.
        max_subproblems: those after it are left out.

    Raises:
        ValueError: without examples of decompositions, or if ``max_subproblems`` is below 1.

    Example:
        >>> strategy = LeastToMost([("2 * 3 + 1?", ["What is 2 * 3?"])], [("2 * 3 + 1?", [("What is 2 * 3?", "6")])])
        >>> print(strategy.following("4 * 5 + 2?", ["What is 4 * 5?"]))
        Problem: 2 * 3 + 1?
        Question: What is 2 * 3?
        Answer: 6
        <BLANKLINE>
        Problem: 4 * 5 + 2?
        Question: What is 4 * 5?
        Answer:
    """

    decompositions: Sequence[tuple[str, Sequence[str]]]
    solutions: Sequence[tuple[str, Sequence[tuple[str, str]]]] = ()
    max_subproblems: int = 8

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.decompositions:
            raise ValueError("least-to-most needs at least one example of a decomposition")
        if self.max_subproblems < 1:
            raise ValueError(f"max_subproblems must be at least 1, got {self.max_subproblems}")

    @checked
    def text(self, query: str) -> str:
        """Returns the prompt that asks for subproblems."""
        shown = [f"Problem: {problem}\nSubproblems:\n" + "\n".join(parts) for problem, parts in self.decompositions]
        return "\n\n".join([*shown, f"Problem: {query}\nSubproblems:\n"])

    @checked
    def messages(self, query: str) -> list[dict[str, str]]:
        """Returns the prompt that asks for subproblems as one chat message of the user."""
        return as_message(self.text(query))

    @checked
    def following(self, query: str, replies: Sequence[str]) -> str | None:
        """Returns the prompt after some replies, the first of which lists the subproblems; None at the end."""
        check_nonempty(replies=replies)
        # A reply may run on into a further problem, which is not its own.
        listed = replies[0].split("\n\n")[0].splitlines()
        parts = [line.strip() for line in listed if line.strip()][: self.max_subproblems]
        asked = [*(part for part in parts if part != query), query]
        answers = [reply.strip().split("\n")[0] for reply in replies[1:]]
        if len(answers) == len(asked):
            return None
        shown = [self._worked(problem, solved) for problem, solved in self.solutions]
        worked = self._worked(query, list(zip(asked, answers, strict=False)))
        return "\n\n".join([*shown, f"{worked}\nQuestion: {asked[len(answers)]}\nAnswer:"])

    @staticmethod
    def _worked(problem: str, solved: Sequence[tuple[str, str]]) -> str:
        return "\n".join([f"Problem: {problem}", *(f"Question: {q}\nAnswer: {a}" for q, a in solved)])


@dataclass(frozen=True)
class SkillPrompt:
    """Skills, compositions of them, and the query, in one prompt.

    Args:
        skills: basic skills with solved examples of each alone.
        compositions: worked problems, easier than those to come; two are the paper's default.
        allow_internal: whether steps may name skills that are not listed, which the model then is told.
        max_depth: most steps of a composition.
        header, note: before the skills; ``note`` where internal skills are allowed.
        skill_template: with ``{number}``, ``{name}``, ``{description}`` and ``{examples}``.
        step_template: with ``{number}``, ``{name}`` and ``{text}``.
        template: of a composition, with ``{problem}``, ``{steps}`` and ``{answer}``; the query ends where steps begin.
        step_separator, separator: between steps, and between the parts.
        tokenizer: counts the tokens of the prompt, for ``max_tokens``.
        max_tokens: most tokens of the prompt.

    Raises:
        ValueError: neither skills nor compositions; two skills of one name; a step that names a skill which is not
            listed, unless that is allowed; a composition of too many steps; when rendered, a prompt that is too long.

    Example:
        >>> double = Skill("Double", "Multiply by two.", ["Double 4: 8"])
        >>> worked = Composition("Double 3 twice.", [("Double", "3 becomes 6."), ("Double", "6 becomes 12.")], "12")
        >>> print(SkillPrompt([double], [worked], allow_internal=False, header="").text("Double 5 twice."))
        Skill 1: Double. Multiply by two.
        Double 4: 8
        <BLANKLINE>
        Double 3 twice.
        Answer: 1. Using the skill Double: 3 becomes 6.
        2. Using the skill Double: 6 becomes 12.
        The answer is 12.
        <BLANKLINE>
        Double 5 twice.
        Answer:

    Source: arXiv:2308.00304.
    """

    skills: Sequence[Skill] = ()
    compositions: Sequence[Composition] = ()
    allow_internal: bool = True
    max_depth: int | None = None
    header: str = SKILLS_HEADER
    note: str = INTERNAL_NOTE
    skill_template: str = "Skill {number}: {name}. {description}\n{examples}"
    step_template: str = "{number}. Using the skill {name}: {text}"
    template: str = "{problem}\nAnswer: {steps}\nThe answer is {answer}."
    step_separator: str = "\n"
    separator: str = "\n\n"
    tokenizer: Any = None
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        needed(self.template, "problem", "steps", "answer")
        if not self.skills and not self.compositions:
            raise ValueError("a skill prompt needs skills or compositions, got neither")
        names = [skill.name for skill in self.skills]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"skill {name!r} is listed {names.count(name)} times")
        for composition in self.compositions:
            if not composition.steps:
                raise ValueError(f"the composition {composition.problem!r} has no steps")
            if self.max_depth is not None and len(composition.steps) > self.max_depth:
                raise ValueError(
                    f"the composition {composition.problem!r} has {len(composition.steps)} steps, more than max_depth "
                    f"{self.max_depth}"
                )
            for name, _ in composition.steps:
                if not self.allow_internal and name not in names:
                    raise ValueError(
                        f"the composition {composition.problem!r} uses skill {name!r}, which is not listed"
                    )
        check_at_least(1, max_depth=self.max_depth, max_tokens=self.max_tokens)
        if self.max_tokens is not None and self.tokenizer is None:
            raise ValueError("max_tokens needs a tokenizer, which counts them")

    @checked
    def text(self, query: str) -> str:
        """Returns the prompt of a query."""
        skills = [
            filled(
                self.skill_template,
                number=str(number),
                name=skill.name,
                description=skill.description,
                examples="\n".join(skill.examples),
            ).strip()
            for number, skill in enumerate(self.skills, 1)
        ]
        worked = [
            filled(self.template, problem=c.problem, steps=self.steps(c), answer=c.answer) for c in self.compositions
        ]
        header = joined(" ", self.header, self.note if self.allow_internal else "")
        text = joined(self.separator, header, *skills, *worked, begun(self.template, query))
        return within_budget(text, self.tokenizer, self.max_tokens)

    @checked
    def steps(self, composition: Composition) -> str:
        """Returns the steps of a composition as the prompt has them."""
        return self.step_separator.join(
            filled(self.step_template, number=str(number), name=name, text=text)
            for number, (name, text) in enumerate(composition.steps, 1)
        )

    @checked
    def messages(self, query: str) -> list[dict[str, str]]:
        """Returns the prompt as one chat message of the user."""
        return as_message(self.text(query))


@checked
def run_strategy(
    strategy: Strategy | Sequence[Strategy],
    lm: LM,
    problems: Sequence[str],
    extract: Callable[[str], Any],
    *,
    chat: bool = False,
    tokenizer: Any = None,
    max_prompt_tokens: int | None = None,
    stop: Sequence[str] = (),
    max_tokens: int = 256,
    seed: int = 0,
) -> list[Solved]:
    """Returns what a strategy answers to each problem, greedily decoded, with its trace and its cost.

    Problems are asked together, in as many rounds as the strategy needs calls.

    Args:
        strategy: one for all problems, or one for each.
        lm: any language model.
        problems: queries.
        extract: last reply -> answer, or None where it finds none; such as ``last_number`` or ``after_marker``.
        chat: send prompts as chat messages.
        tokenizer, max_prompt_tokens: raise where a prompt has more tokens.
        stop, max_tokens, seed: as for ``LM.generate``.

    Raises:
        ValueError: no problem, as many strategies as do not fit, or a prompt that is too long.

    Example:
        >>> from heldout.lm import ScriptedLM, last_number
        >>> (solved,) = run_strategy(FewShot(), ScriptedLM(["It is 7."]), ["3 + 4?"], last_number)
        >>> solved.answer, solved.usage.calls
        (7.0, 1)
    """
    check_at_least(1, max_tokens=max_tokens)
    if isinstance(problems, str) or not problems:
        raise ValueError("problems must be a list of at least one text")
    strategies = list(strategy) if isinstance(strategy, Sequence) else [strategy] * len(problems)
    if len(strategies) != len(problems):
        raise ValueError(f"each problem needs a strategy, got {len(strategies)} for {len(problems)} problems")
    replies: list[list[str]] = [[] for _ in problems]
    usages = [Usage()] * len(problems)
    prompts: dict[int, str] = {i: strategies[i].text(problem) for i, problem in enumerate(problems)}
    while prompts:
        texts = [within_budget(text, tokenizer, max_prompt_tokens) for text in prompts.values()]
        asked = [as_message(text) for text in texts] if chat else texts
        found = lm.generate(asked, 1, stop=stop, max_tokens=max_tokens, seed=seed)
        for i, completions in zip(prompts, found, strict=True):
            replies[i].append(completions[0].text)
            usages[i] += usage_of(completions)
        following = {i: _following(strategies[i], problems[i], replies[i]) for i in prompts}
        prompts = {i: text for i, text in following.items() if text is not None}
    return [Solved(extract(row[-1]), tuple(row), usage) for row, usage in zip(replies, usages, strict=True)]


@checked
def within_budget(text: str, tokenizer: Any, max_tokens: int | None) -> str:
    """Returns a prompt that has at most ``max_tokens`` tokens; None is no limit.

    Raises:
        ValueError: if it has more, or if there is nothing to count them with.

    Example:
        >>> from heldout.lm import word_tokenizer
        >>> within_budget("a b", word_tokenizer(["a b"]), 2)
        'a b'
    """
    check_at_least(1, max_tokens=max_tokens)
    if max_tokens is None:
        return text
    if tokenizer is None:
        raise ValueError("a limit of the prompt's tokens needs a tokenizer, which counts them")
    count = len(ids_of_prompt(text, tokenizer))
    if count > max_tokens:
        raise ValueError(f"the prompt has {count} tokens, more than {max_tokens}: leave out examples")
    return text


def filled(template: str, **fields: str) -> str:
    """Returns a template with its fields filled in; braces within a field are text.

    Example:
        >>> filled("{a} {b}", a="{b}", b="2")
        '{b} 2'
    """
    names = "|".join(re.escape(name) for name in fields)
    return re.sub(r"\{(" + names + r")\}", lambda match: fields[match.group(1)], template)


def begun(template: str, problem: str) -> str:
    """Returns a template up to its second field, with the problem filled in.

    Example:
        >>> begun("Q: {problem}\\nA: {answer}.", "2 + 2?")
        'Q: 2 + 2?\\nA:'
    """
    before, after = template.split("{problem}", 1)
    return (before + problem + after.split("{", 1)[0]).rstrip()


def joined(separator: str, *parts: str) -> str:
    """Returns the parts that are not empty, joined."""
    return separator.join(part for part in parts if part)


def needed(template: str, *fields: str) -> None:
    """Raises ValueError unless a template has its fields, the problem first."""
    for field in fields:
        if "{" + field + "}" not in template:
            raise ValueError(f"the template needs {{{field}}}, got {template!r}")
    if not template.split("{", 1)[1].startswith("problem}"):
        raise ValueError(f"the template must have {{problem}} as its first field, got {template!r}")


def as_message(text: str) -> list[dict[str, str]]:
    """Returns a text as one chat message of the user."""
    return [{"role": "user", "content": text}]


def _following(strategy: Strategy, problem: str, replies: Sequence[str]) -> str | None:
    follow: Callable[[str, Sequence[str]], str | None] | None = getattr(strategy, "following", None)
    return None if follow is None else follow(problem, replies)


@checked
def accuracy_by_group(
    solved: Sequence[Solved], references: Sequence[Any], groups: Sequence[Any]
) -> Mapping[Any, float]:
    """Returns the share of right answers in each group of problems, such as their depth; no answer is wrong.

    Raises:
        ValueError: of different lengths.

    Example:
        >>> accuracy_by_group([Solved("a", ("a",), Usage()), Solved(None, ("",), Usage())], ["a", "b"], [1, 2])
        {1: 1.0, 2: 0.0}
    """
    if not len(solved) == len(references) == len(groups):
        raise ValueError(f"got {len(solved)} results for {len(references)} references in {len(groups)} groups")
    right: dict[Any, list[bool]] = {}
    for result, reference, group in zip(solved, references, groups, strict=True):
        right.setdefault(group, []).append(result.answer is not None and result.answer == reference)
    return {group: sum(row) / len(row) for group, row in right.items()}
