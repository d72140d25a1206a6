"""Skills in context: do named skills in the prompt let a model compose deeper than it was shown?

Source: arXiv:2308.00304 (Chen et al.), which claims that listing basic skills and showing two compositions, in one
prompt and with each step naming its skill, solves problems harder than the exemplars, where neither half of the prompt
does; and that models tuned on such traces of easy problems solve harder ones without examples.

Here: each problem has three functions, random permutations of four symbols, and asks for a composition of them. A tiny
Llama per seed is trained on all formats alike, and as often on queries right after the tables, with and without names
of skills, of depth 1 and 2 only, as deep as the exemplars are. Then it answers 60 queries of each depth from 1 to 5 in
each format. An entry of a table is one word, ``Fa>b``; a step with the name of its skill is such a word, one without is
``a>b``. All prompts hold every entry that the query needs, and ``skic`` has fewer tokens than the other complete ones:
the tables and two compositions. ``skills`` has the tables and as many entries again, the others have worked problems of
depth 1 and 2: with answers only (``answers``), with steps (``cot``), or with steps that name the skill
(``compositions``). In ``internal`` two of the three functions are fixed ones that are not listed.

``deep`` is the mean percentage of right answers at depths 3 to 5, beyond all that was seen; ``gate`` that at depth 1,
``step_ratio`` the geometric mean of the ratio of right answers from one depth to the next. ``tuned-skic`` and
``tuned-cot`` go on from the same weights with bare queries of the fixed functions, with equal tokens. A chance answer
is right in 25 % of the cases. The check is a gate: where ``skic`` answers fewer than 90 % of the queries of depth 1,
the model has not learned to look up in its context, and the claims about prompts are not testable.

``real``: SmolLM2-135M, which nobody trained for this, on chains of relations in plain words
(``heldout.tasks.chain_problem``). All prompts have all facts; the two exemplars have depth 2. The model chooses each
step among the three values of its relation, by likelihood, and goes on from what it chose; ``real answers`` chooses the
answer at once, ``real cot`` steps that are values only, ``real skic`` steps that name the relation; ``real skills`` has
such steps without exemplars. ``deep`` is the percentage at depths 3 and 4; chance is 33 %.

Deviations: four symbols instead of eight, two layers, three names of functions, and one word for an entry. Models of
this size did not learn to look up an entry of two words, or one of more names, within 2,000 steps.
"""

from __future__ import annotations

import copy
import functools
import random
from typing import Any

import torch

from heldout.data import skic_traces
from heldout.lm import (
    ChainOfThought,
    Composition,
    FewShot,
    Skill,
    SkillPrompt,
    TransformersLM,
    accuracy_by_group,
    after_marker,
    run_strategy,
    smollm,
    tiny_llama,
    train_tiny,
    word_tokenizer,
)
from heldout.sources import SMOL, missing
from heldout.study import Study, at_least, better, higher_is_better, log_curve, lower_is_better
from heldout.tasks import (
    CHAIN,
    FIXED_NAMES,
    FUNCTION_NAMES,
    PEOPLE,
    SYMBOLS,
    ChainProblem,
    ComposeProblem,
    chain_fact,
    chain_problem,
    compose_problem,
    covering_exemplars,
    fixed_tables,
)

# width, steps, steps of tuning, queries of each depth
SIZES = {"smoke": (16, 6, 4, 4), "laptop": (64, 2200, 150, 60)}
REAL_QUERIES = {"smoke": 1, "laptop": 8}  # of each depth
FORMATS = ("answers", "cot", "skills", "compositions", "skic", "internal")
LR, TUNING_LR, BATCH = 3e-3, 1e-3, 36
DEPTHS, TRAINED, DEEP, REAL_DEEP = (1, 2, 3, 4, 5), (1, 2), (3, 4, 5), (3, 4)
NAMES = FUNCTION_NAMES[:3]
NAMED: dict[str, Any] = {
    "skill_template": "{examples}",
    "step_template": "{name}{text}",
    "template": "{problem} : {steps} = {answer} .",
    "step_separator": " ",
    "separator": " ",
    "header": "",
    "note": "",
}
PLAIN: dict[str, Any] = {"template": "{problem} : {reasoning} = {answer} .", "invitation": "", "separator": " "}
REAL_NAMED: dict[str, Any] = NAMED | {
    "step_template": "{text}",
    "template": "Question: {problem} {steps} Answer: {answer}.",
    "separator": "\n",
}


@functools.lru_cache(maxsize=1)
def tokenizer() -> Any:
    names, maps = [*NAMES, *FIXED_NAMES], [f"{x}>{y}" for x in SYMBOLS for y in SYMBOLS]
    return word_tokenizer([*SYMBOLS, *names, *maps, *(name + entry for name in names for entry in maps), ": = ."])


def listed(problem: ComposeProblem, rng: random.Random, fixed: bool = True) -> list[Skill]:
    """The tables as skills, each entry a solved example of it."""
    skills = []
    for name, images in problem.tables.items():
        if fixed or name not in FIXED_NAMES:
            entries = [f"{name}{symbol}>{image}" for symbol, image in zip(SYMBOLS, images, strict=True)]
            skills.append(Skill(name, examples=rng.sample(entries, len(entries))))
    return rng.sample(skills, len(skills))


def composition(problem: ComposeProblem) -> Composition:
    steps = [(name, f"{before}>{after}") for name, before, after in problem.steps]
    return Composition(problem.text, steps, problem.answer)


def reasoning(problem: ComposeProblem) -> str:
    return " ".join(f"{before}>{after}" for _, before, after in problem.steps)


def strategy(kind: str, query: ComposeProblem, rng: random.Random) -> FewShot | ChainOfThought | SkillPrompt:
    """The prompt of a query in a format."""
    if kind in ("skic", "internal"):
        shown = [composition(compose_problem(2, rng, tables=query.tables)) for _ in range(2)]
        skills = listed(query, rng, fixed=kind == "skic")
        return SkillPrompt(skills, shown, max_depth=2, allow_internal=kind == "internal", **NAMED)
    if kind == "skills":
        skills = listed(query, rng)
        again = [rng.choice(rng.choice(skills).examples) for _ in range(20)]
        skills = [*skills[:-1], Skill(skills[-1].name, examples=[*skills[-1].examples, *again])]
        return ChainOfThought(header=" ".join(" ".join(skill.examples) for skill in skills), **PLAIN)
    count = 6 if kind == "answers" else 5
    shown_problems = covering_exemplars(query, count, rng)
    if kind == "answers":
        return FewShot(
            [(p.text, f"= {p.answer}") for p in shown_problems], template="{problem} : {answer} .", separator=" "
        )
    if kind == "cot":
        return ChainOfThought([(p.text, reasoning(p), p.answer) for p in shown_problems], **PLAIN)
    return SkillPrompt([], [composition(p) for p in shown_problems], max_depth=2, **NAMED)


def target(kind: str, query: ComposeProblem) -> str:
    """What the model is trained to write after the prompt."""
    if kind == "answers":
        return f"= {query.answer}"
    if kind in ("cot", "skills"):
        return f"{reasoning(query)} = {query.answer}"
    return f"{SkillPrompt(compositions=[composition(query)], **NAMED).steps(composition(query))} = {query.answer}"


def problem_of(kind: str, depth: int, rng: random.Random) -> ComposeProblem:
    return compose_problem(depth, rng, fixed=2 if kind == "internal" else 0, names=NAMES)


def practised(kind: str, rng: random.Random) -> tuple[str, str]:
    """A query right after the tables, for practice in looking entries up."""
    query = problem_of(kind, rng.choice(TRAINED), rng)
    tables = " ".join(" ".join(skill.examples) for skill in listed(query, rng))
    return f"{tables} {query.text} :", target(kind, query)


@functools.lru_cache(maxsize=2)
def base(seed: int, profile: str) -> Any:
    width, steps, *_ = SIZES[profile]
    model = tiny_llama(tokenizer(), dim=width, layers=2, context=192, seed=seed)

    def draw(count: int, generator: torch.Generator) -> list[tuple[str, str]]:
        rng = random.Random(int(torch.randint(2**40, (1,), generator=generator)))
        rows = [practised("skic" if number % 2 else "cot", rng) for number in range(count // 2)]
        for number in range(count - len(rows)):
            kind = FORMATS[number % len(FORMATS)]
            query = problem_of(kind, rng.choice(TRAINED), rng)
            rows.append((strategy(kind, query, rng).text(query.text), target(kind, query)))
        return rows

    losses = train_tiny(model, tokenizer(), draw, steps=steps, batch_size=BATCH, lr=LR, seed=seed)
    for step in range(0, steps, max(1, steps // 40)):
        log_curve("loss of training", step, losses[step])
    return model


def extract(text: str) -> str | None:
    return after_marker(text, "=") or None


def measured(lm: TransformersLM, kind: str, seed: int, profile: str) -> dict[str, float]:
    rng, count = random.Random(seed + 500_000), SIZES[profile][3]
    queries = [problem_of(kind, depth, rng) for depth in DEPTHS for _ in range(count)]
    made = [strategy(kind, query, rng) for query in queries]
    solved = run_strategy(made, lm, [query.text for query in queries], extract, max_tokens=32)
    read = sum(result.usage.prompt_tokens for result in solved)
    return scored(solved, queries) | {"prompt_tokens": read / len(solved)}


def scored(solved: Any, queries: list[ComposeProblem]) -> dict[str, float]:
    depths = [len(query.names) for query in queries]
    rates = accuracy_by_group(solved, [query.answer for query in queries], depths)
    for depth in DEPTHS:
        log_curve("right over depth", depth, 100 * rates[depth])
    floor = 1 / len(queries)
    return {
        "gate": 100 * rates[1],
        "deep": sum(100 * rates[depth] for depth in DEEP) / len(DEEP),
        "depth_4": 100 * rates[4],
        "step_ratio": (max(rates[5], floor) / max(rates[1], floor)) ** 0.25,
        "no_answer": 100 * sum(result.answer is None for result in solved) / len(solved),
    }


def tuned(form: str, seed: int, profile: str) -> dict[str, float]:
    """Bare queries of the fixed functions: trained at depth 1 and 2, asked at all depths."""
    model, rng, (_, _, steps, count) = copy.deepcopy(base(seed, profile)), random.Random(seed), SIZES[profile]
    easy = [compose_problem(rng.choice((1, 2)), rng, tables=fixed_tables()) for _ in range(BATCH * max(steps, 10))]
    rows = skic_traces(
        easy,
        lambda p: ([(name, f"{x}>{y}") for name, x, y in p.steps], p.answer),
        question=lambda p: f"{p.text} :",
        step_template="{name}{text}" if form == "skic" else "{text}",
        step_separator=" ",
        answer_template="= {answer}",
        max_depth=2,
    )
    pairs = [(row["prompt"], row["completion"]) for row in rows]
    train_tiny(model, tokenizer(), pairs, steps=steps, batch_size=BATCH, lr=TUNING_LR, seed=seed)
    rng = random.Random(seed + 500_000)
    queries = [compose_problem(depth, rng, tables=fixed_tables()) for depth in DEPTHS for _ in range(count)]
    asked = FewShot(template="{problem} : {answer}")
    lm = TransformersLM(model, tokenizer(), batch_size=256)
    return scored(run_strategy(asked, lm, [query.text for query in queries], extract, max_tokens=32), queries)


def real_strategy(kind: str, query: ChainProblem, rng: random.Random) -> FewShot | ChainOfThought | SkillPrompt:
    """The prompt of a query: all facts, and two exemplars of depth 2 about other people."""
    tables = [(name, rng.sample(list(table.items()), len(table))) for name, table in query.facts.items()]
    facts = " ".join(chain_fact(name, *pair) for name, pairs in tables for pair in pairs)
    others = [person for person in query.facts["city"] if person != query.start][:2]
    shown = [chain_problem(2, rng, facts=query.facts, start=person) for person in others]
    if kind in ("skic", "skills"):
        worked = [Composition(p.text, [("facts", chain_fact(*step)) for step in p.steps], p.answer) for p in shown]
        return SkillPrompt(
            [Skill("facts", examples=[facts])], worked if kind == "skic" else [], max_depth=2, **REAL_NAMED
        )
    if kind == "answers":
        template = "Question: {problem} Answer: {answer}."
        return FewShot([(p.text, p.answer) for p in shown], header=facts, template=template, separator="\n")
    examples = [(p.text, " ".join(f"{value}." for *_, value in p.steps), p.answer) for p in shown]
    template = "Question: {problem} {reasoning} Answer: {answer}."
    return ChainOfThought(examples, header=facts, template=template, separator="\n")


def followed(lm: TransformersLM, kind: str, queries: list[ChainProblem], rng: random.Random) -> list[str]:
    """The answers of a model that chooses each step among the values of its relation, and goes on from its choice."""
    written = [real_strategy(kind, query, rng).text(query.text).rstrip() for query in queries]
    values = [query.start for query in queries]
    for name in queries[0].names[-1:] if kind == "answers" else queries[0].names:
        if kind in ("skic", "skills"):
            written = [f"{text} The {name} of {value} is" for text, value in zip(written, values, strict=True)]
        options = [[f" {value}" for value in query.facts[name].values()] for query in queries]
        scores = lm.score(written, options)
        values = [row[s.index(max(s))].strip() for row, s in zip(options, scores, strict=True)]
        written = [f"{text} {value}." for text, value in zip(written, values, strict=True)]
    return values


def real(kind: str, seed: int, profile: str) -> dict[str, float]:
    rng = random.Random(seed)
    asked = {d: [chain_problem(d, rng) for _ in range(REAL_QUERIES[profile])] for d in (1, *REAL_DEEP)}
    texts = [real_strategy(kind, query, rng).text(query.text) for row in asked.values() for query in row]
    words = [f" {word}" for values in (PEOPLE, *CHAIN.values()) for word in values]
    if profile == "smoke":
        words = [word for text in [*texts, *words, ". The of is"] for word in text.split()]
        known = word_tokenizer(words)
        lm = TransformersLM(tiny_llama(known, dim=16, layers=1, seed=seed), known)
    else:
        lm = TransformersLM(*smollm(texts=[*texts, *words]), batch_size=8)
    rates = {}
    for depth, queries in asked.items():
        said = followed(lm, kind, queries, rng)
        rates[depth] = sum(query.answer == text for query, text in zip(queries, said, strict=True)) / len(queries)
        log_curve("right over depth", depth, 100 * rates[depth])
    return {"gate": 100 * rates[1], "deep": 100 * sum(rates[depth] for depth in REAL_DEEP) / len(REAL_DEEP),
            "depth_4": 100 * rates[4]}  # fmt: skip


def run(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    if "real" in arm:
        return real(arm["real"], seed, profile)
    if "tuned" in arm:
        return tuned(arm["tuned"], seed, profile)
    lm = TransformersLM(base(seed, profile), tokenizer(), batch_size=256)
    return measured(lm, arm["format"], seed, profile)


METRICS = dict.fromkeys(("gate", "deep", "depth_4", "step_ratio"), higher_is_better) | dict.fromkeys(
    ("no_answer", "prompt_tokens"), lower_is_better
)

REAL_ARMS = {f"real {kind}": {"real": kind} for kind in ("answers", "cot", "skills", "skic")}

study = Study(
    slug="skic",
    title="Skills-in-Context prompting: unlocking compositionality",
    arms={kind: {"format": kind} for kind in FORMATS}
    | {"tuned-skic": {"tuned": "skic"}, "tuned-cot": {"tuned": "cot"}}
    | REAL_ARMS,
    run=run,
    metrics=METRICS,
    optional={"prompt_tokens", "step_ratio", "no_answer"},
    claims=[
        better("skic", than="cot", on="deep", margin=10.0),
        better("skic", than="answers", on="deep", margin=10.0),
        better("cot", than="answers", on="deep", margin=10.0),
        better("skic", than="skills", on="deep", margin=5.0),
        better("skic", than="compositions", on="deep", margin=5.0),
        better("skic", than="cot", on="step_ratio", margin=0.03),
        better("tuned-skic", than="tuned-cot", on="deep", margin=5.0),
        better("real skic", than="real cot", on="deep", margin=10.0),
        better("real skic", than="real answers", on="deep", margin=10.0),
        better("real cot", than="real answers", on="deep", margin=10.0),
        better("real skic", than="real skills", on="deep", margin=5.0),
    ],
    checks=[
        at_least("skic", on="gate", value=90.0, text="skic looks up in its context: 90 % at depth 1"),
        at_least("real skic", on="gate", value=90.0, text="real skic looks up in its context: 90 % at depth 1"),
    ],
    seeds={"smoke": 1, "laptop": 4},
    shared_setup=True,
    needs=dict.fromkeys(REAL_ARMS, functools.partial(missing, (SMOL,))),
)
