"""Router-R1 (Zhang, Feng, You; NeurIPS 2025; arXiv:2506.09033) on facts of two hops that simulated experts hold.

The paper trains a small language model by reinforcement to think, ask one of several priced models, read the reply, and
ask again or answer; it claims that several rounds beat one, that the router works with models which it never saw, from
their descriptors, and that the weight alpha of the cost trades accuracy for money.

World: ``heldout.tasks.ExpertFacts``. Six experts: three cheap ones that know 95 % of a domain each, two mediocre
generalists (60 % of everything), a dear one (85 %). Who bears which name, which domains have an expert and what is
known are drawn anew for each question in training, and once for the tests, whose questions start from other entities. A
question of two hops can be asked as a whole, at which experts fail half of the time although they know both facts.

The start is supervised: turns of episodes with random experts and a random number of calls, on facts of other worlds;
in 3 turns of 10 the expert asked is the specialist of the topic, where there is one, as a language model that knows
what words mean would often guess. ``cost`` is money for a million questions; ``em`` is in percent. ``unseen_em`` is
measured with the same experts under other names: of the 36 pairs of a name and a descriptor, 12 occur neither in the
warm start nor in reinforcement, and as many of the six experts as can be are such pairs. ``found`` is the percentage of
the experts named in a thought that are there, a gate: below 90 % the warm start has not learned to look a name up, and
the claims are not testable. ``random``, ``best single`` and ``knn`` send the question as it is to one expert and answer
what it states; ``random`` asks unseen experts as well.

Deviations: GRPO in place of PPO; nearest neighbours of TF-IDF vectors in place of sentence embeddings; embeddings are
frozen in reinforcement, and the weight of the KL term is 0.05 in place of 0.001, for without them a model of this size
forgets within 100 steps how to copy a name. Looking up a name beside a descriptor of several words, or of one, did not
emerge in two layers within 30,000 examples. So the names are six fixed ones, re-shuffled in every episode (the
specification's way out), and a name and its descriptor are one word of the prompt, ``ka=low-music``, which is found by
what the router writes before it, ``low music``. A word that never occurred gets the sum of one vector for the name and
one for the descriptor, fitted to the words that did, as a larger model's would be composed of pieces. A name that never
occurred at all is not tested, only a name for what it never stood for.
"""

from __future__ import annotations

import copy
import functools
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import torch

from heldout.lm import (
    ModelPool,
    PoolModel,
    Reply,
    RoutingAgent,
    RoutingEpisode,
    TransformersLM,
    cached_base,
    routing_prompt,
    tiny_llama,
    train_tiny,
    word_tokenizer,
)
from heldout.measure import cost_frontier, exact_match
from heldout.study import (
    Study,
    at_least,
    at_most,
    better,
    cheaper,
    equivalent,
    higher_is_better,
    log_curve,
    lower_is_better,
    ordered,
)
from heldout.tasks import (
    RELATIONS,
    ExpertFacts,
    FactQuestion,
    SimulatedExpert,
    draw_experts,
    expert_fact_words,
)
from heldout.train import train_router

PROMPT, LINE = "{models}\nquestion : {question} ?\n", "{name}={descriptor}"
SLOTS = ("ba", "do", "ka", "lu", "mi", "ne")  # names of experts
DESCRIPTORS = ("low-music", "low-film", "low-sport", "low-science", "mid-some", "high-most")
PAIRS = tuple(product(SLOTS, DESCRIPTORS))
# experts that neither the warm start nor reinforcement ever has: a third of the pairs, of each name and descriptor
HELD_OUT = frozenset(pair for number, pair in enumerate(PAIRS) if (number // 6 - number % 6) % 3 == 0)
TAGS = "<think> </think> <search> </search> <information> </information> <answer> </answer>"
BASES = {
    "smoke": {"dim": 16, "layers": 1, "steps": 20, "batch": 8, "seed": 0},
    "laptop": {"dim": 64, "layers": 2, "steps": 2500, "batch": 32, "seed": 0},
}
VERSION = 13  # of the way a base is made
FITTING = 0.3  # share of turns in which the warm start asks the specialist of the topic, if there is one
# steps of RL, questions in a step, questions to train on, test questions of each kind
SIZES = {"smoke": (2, 2, 8, 4), "laptop": (70, 12, 840, 200)}
GROUP, LR, KL, MAX_TURNS, MAX_TOKENS = 8, 1e-3, 0.05, 4, 20


@functools.lru_cache(maxsize=1)
def base(profile: str) -> tuple[Any, Any]:
    recipe = BASES[profile]

    def make() -> tuple[Any, Any]:
        words = [*expert_fact_words(), *SLOTS, *map("=".join, PAIRS)]
        tokenizer = word_tokenizer([*words, TAGS, "question : ? done unknown None"])
        model = tiny_llama(tokenizer, dim=recipe["dim"], layers=recipe["layers"], context=256, seed=recipe["seed"])
        options: dict[str, Any] = {"steps": recipe["steps"], "batch_size": recipe["batch"], "seed": recipe["seed"]}
        train_tiny(model, tokenizer, traces, lr=3e-3, **options)
        compose_held_out(model, tokenizer)
        return model, tokenizer

    return cached_base("router", recipe | {"version": VERSION}, make)


@torch.no_grad()
def compose_held_out(model: Any, tokenizer: Any) -> None:
    """Sets the vectors of words that never occurred: a part for the name and one for the descriptor, summed.

    The parts are the least-squares fit to the vectors of the words that did.
    """
    parts = torch.tensor(
        [
            [*(name == slot for slot in SLOTS), *(descriptor == kind for kind in DESCRIPTORS)]
            for name, descriptor in PAIRS
        ],
        dtype=torch.float32,
    )
    seen = torch.tensor([pair not in HELD_OUT for pair in PAIRS])
    rows = torch.tensor(tokenizer.convert_tokens_to_ids(["=".join(pair) for pair in PAIRS]))
    weight = model.get_input_embeddings().weight
    weight[rows[~seen]] = parts[~seen] @ torch.linalg.pinv(parts[seen]) @ weight[rows[seen]]


def traces(count: int, generator: torch.Generator) -> list[tuple[str, str]]:
    """Well-formed episodes about facts that nobody will ask about: random experts, a random number of calls."""
    rng = random.Random(int(torch.randint(2**31, (1,), generator=generator)))
    world = ExpertFacts(seed=rng.randrange(1000, 2**31))
    questions = [world.questions(count, hops=hops, seed=0) for hops in (1, 2)]
    return [trace(world, rng.choice(pair), rng) for pair in zip(*questions, strict=True)]


def trace(world: ExpertFacts, question: FactQuestion, rng: random.Random) -> tuple[str, str]:
    experts = training_experts(rng)
    pool = pool_of(world, experts, seed=rng.randrange(2**31))
    episode, turns = RoutingEpisode(pool), []
    written = routing_prompt(question.text, pool, PROMPT, LINE)
    whole, heard, hop = rng.random() < 0.5, "unknown", 0
    for _ in range(rng.choice((0, 1, 1, 2, 2, 2, 3))):
        *relations, entity = question.text.split(" of ")
        query = question.text if whole else f"{relations[-1 - hop]} of {heard if hop else entity}"
        topic = RELATIONS[query.split()[0]][0]
        fitting = [expert for expert in experts if expert.domain == topic and rng.random() < FITTING]
        expert = rng.choice(fitting or experts)
        turns.append((written + episode.text, f"{thought(query, expert)} <search> {expert.name} : {query} </search>"))
        seen = episode(turns[-1][1]) or ""
        if (value := value_in(seen)) is not None:
            heard, hop = value, hop if whole else min(hop + 1, question.hops - 1)
    turns.append((written + episode.text, f"<think> done </think> <answer> {heard} </answer>"))
    return rng.choice(turns)


def thought(query: str, expert: SimulatedExpert) -> str:
    """What the topic is, what kind of expert is wanted, and who that is."""
    topic = RELATIONS[query.split()[0]][0]
    kind = expert.descriptor.replace("-", " ")
    return f"<think> {topic} {kind} {expert.name}={expert.descriptor} </think>"


def value_in(reply: str) -> str | None:
    """The entity that a reply states, two words; None where it states none."""
    _, _, stated = reply.partition("it is ")
    return " ".join(stated.split()[:2]) or None


def pool_of(world: ExpertFacts, experts: Sequence[SimulatedExpert], seed: int) -> ModelPool:
    def model(expert: SimulatedExpert) -> PoolModel:
        know = world.expert(expert, seed=seed)

        def call(query: str) -> Reply:
            text = know(query)
            return Reply(text, len(text.split()))

        return PoolModel(expert.name, call, expert.price, expert.descriptor)

    return ModelPool([model(expert) for expert in experts])


def experts_of(seed: int) -> tuple[list[SimulatedExpert], list[SimulatedExpert]]:
    """The experts of the tests; and the same ones, as many as can be under names that they never had in training."""
    rng = random.Random(f"test experts {seed}")
    seen = training_experts(rng)
    return seen, max(namings(seen, rng), key=held_out)


def drawn_experts(rng: random.Random) -> list[SimulatedExpert]:
    return draw_experts(rng, names=SLOTS, wordings=("{price}-{domain}",))


def training_experts(rng: random.Random) -> list[SimulatedExpert]:
    return next(experts for experts in namings(drawn_experts(rng), rng) if not held_out(experts))


def held_out(experts: Sequence[SimulatedExpert]) -> int:
    return sum((expert.name, expert.descriptor) in HELD_OUT for expert in experts)


def namings(experts: Sequence[SimulatedExpert], rng: random.Random) -> Iterator[list[SimulatedExpert]]:
    for _ in range(1000):
        names = rng.sample(SLOTS, len(SLOTS))
        yield [replace(expert, name=name) for name, expert in zip(names, experts, strict=True)]


@functools.lru_cache(maxsize=2)
def world_of(seed: int) -> ExpertFacts:
    return ExpertFacts(seed=seed)


def questions(seed: int, count: int, part: str) -> list[FactQuestion]:
    """As many of one hop as of two."""
    return [
        each
        for pair in zip(*(world_of(seed).questions(count, hops=h, seed=seed, part=part) for h in (1, 2)), strict=True)
        for each in pair
    ]


def trained(arm: dict[str, Any], seed: int, profile: str) -> tuple[Any, Any]:
    steps, batch, count, _ = SIZES[profile]
    model, tokenizer = base(profile)
    model = copy.deepcopy(model)
    if not arm["trained"]:
        return model, tokenizer
    # Adam moves the rows of rare words as far as those of common ones, on which looking up would break.
    model.get_input_embeddings().requires_grad_(False)
    rows = [
        {"question": question.text, "answer": question.answer, "pool": number}
        for number, question in enumerate(questions(seed, count // 2, "train"))
    ]

    @functools.cache
    def pool(number: int) -> ModelPool:
        # names, descriptors, domains and knowledge are drawn anew for each question
        return pool_of(world_of(seed), training_experts(random.Random(f"{seed} {number}")), seed=number)

    tuned = train_router(
        model,
        tokenizer,
        lambda row: pool(row["pool"]),
        rows,
        alpha=arm["alpha"],
        steps=steps,
        group_size=GROUP,
        batch_size=batch,
        lr=LR,
        kl=KL,
        max_turns=arm["max_turns"],
        max_tokens=MAX_TOKENS,
        mask_observations=arm["mask"],
        prompt=PROMPT,
        line=LINE,
        concurrency=1,
        seed=seed,
        device="cpu",
    )
    for entry in tuned.history:
        for name in ("reward", "outcome", "calls", "format_ok"):
            log_curve(f"{name} while training", entry["step"], entry[name])
    return tuned.model, tokenizer


def routed(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    model, tokenizer = trained(arm, seed, profile)
    asked, found = questions(seed, SIZES[profile][3], "test"), {}
    for name, experts in zip(("seen", "unseen"), experts_of(seed), strict=True):
        pool = pool_of(world_of(seed), experts, seed=seed)
        lm = TransformersLM(model, tokenizer, batch_size=200)
        agent = RoutingAgent(lm, pool, arm["max_turns"], prompt=PROMPT, line=LINE, max_tokens=MAX_TOKENS)
        traces = agent.answer_many([question.text for question in asked])
        found[name] = measured(asked, [t.answer for t in traces], [t.cost for t in traces])
        found[name]["calls"] = mean([len(trace.calls) for trace in traces])
        found[name]["format"] = 100 * mean([trace.format_ok for trace in traces])
        there = {f"{expert.name}={expert.descriptor}" for expert in experts}
        written = [word for trace in traces for word in re.findall(r"(\S+=\S+) </think>", trace.text)]
        found[name]["found"] = 100 * mean([word in there for word in written] or [0.0])
    unseen = found["unseen"]
    dropped = found["seen"]["em"] - unseen["em"]
    return found["seen"] | {"unseen_em": unseen["em"], "unseen_found": unseen["found"], "unseen_drop": dropped}


def measured(asked: Sequence[FactQuestion], answers: Sequence[str], costs: Sequence[float]) -> dict[str, float]:
    """Exact match in percent, over all and by hops, and the mean cost of a million questions."""
    right = np.array([exact_match(answer, question.answer) for answer, question in zip(answers, asked, strict=True)])
    hops = np.array([question.hops for question in asked])
    by_hops = {f"em_{count}hop": 100 * float(right[hops == count].mean()) for count in (1, 2)}
    return {"em": 100 * float(right.mean()), **by_hops, "cost": 1e6 * mean(costs)}


def mean(values: Sequence[float]) -> float:
    return float(np.mean(np.asarray(values, float)))


def single_round(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    """Routers that send the question to one expert, and answer what it says."""
    known, asked = (questions(seed, SIZES[profile][i], part) for i, part in ((2, "train"), (3, "test")))
    known = known[: len(known) // 2]  # as many as the routers see in training
    experts, renamed = experts_of(seed)
    pool = pool_of(world_of(seed), experts, seed=seed)

    def replies(some: Sequence[FactQuestion]) -> list[list[Reply]]:
        return [[pool.route(expert.name, question.text) for expert in experts] for question in some]

    def outcomes(some: Sequence[FactQuestion], said: list[list[Reply]]) -> np.ndarray:
        rows = zip(some, said, strict=True)
        return np.array([[exact_match(value_in(r.text) or "", question.answer) for r in row] for question, row in rows])

    heard = replies(asked)
    if arm["router"] == "random":
        choices = np.random.default_rng([seed, 1]).integers(len(experts), size=len(asked))
    elif arm["router"] == "single":
        choices = np.full(len(asked), int(outcomes(known, replies(known)).mean(0).argmax()))
    else:
        choices = nearest(known, outcomes(known, replies(known)), asked, [expert.price for expert in experts])
    chosen = [row[choice] for row, choice in zip(heard, choices, strict=True)]
    found = measured(asked, [value_in(reply.text) or "" for reply in chosen], [reply.cost for reply in chosen])
    if arm["router"] == "random":
        pool = pool_of(world_of(seed), renamed, seed=seed)
        drawn = np.random.default_rng([seed, 2]).integers(len(renamed), size=len(asked))
        said = [pool.route(renamed[i].name, question.text) for i, question in zip(drawn, asked, strict=True)]
        answers = [value_in(reply.text) or "" for reply in said]
        found["unseen_em"] = measured(asked, answers, [reply.cost for reply in said])["em"]
    frontier = cost_frontier(
        [
            (1e6 * mean([row[i].cost for row in heard]), 100 * float(right))
            for i, right in enumerate(outcomes(asked, heard).mean(0))
        ]
    )
    for cost, score in frontier.points:
        log_curve("best EM of a single expert over cost", cost, score)
    return found


def nearest(known: Sequence[FactQuestion], right: np.ndarray, asked: Sequence[FactQuestion],
            prices: Sequence[float]) -> np.ndarray:  # fmt: skip
    """The expert who answered most of the 16 nearest training questions; the cheaper one where two did."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.neighbors import NearestNeighbors

    vectors = TfidfVectorizer(token_pattern=r"\S+").fit([question.text for question in known])
    index = NearestNeighbors(n_neighbors=min(16, len(known)), metric="cosine")
    index.fit(vectors.transform([question.text for question in known]))
    near = index.kneighbors(vectors.transform([question.text for question in asked]), return_distance=False)
    return (right[near].mean(1) - 1e-3 * np.array(prices)).argmax(1)


def run(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    return single_round(arm, seed, profile) if "router" in arm else routed(arm, seed, profile)


def _arm(alpha: float = 0.0, **changes: Any) -> dict[str, Any]:
    return {"trained": True, "alpha": alpha, "max_turns": MAX_TURNS, "mask": True} | changes


ALPHAS = ["router-r1", "alpha 0.6", "alpha 0.9"]

study = Study(
    slug="router-r1",
    title="Router-R1: Teaching LLMs Multi-Round Routing and Aggregation via Reinforcement Learning",
    arms={
        "warm start": _arm(trained=False),
        "random": {"router": "random"},
        "best single": {"router": "single"},
        "knn": {"router": "knn"},
        "router-r1": _arm(),
        "one call": _arm(max_turns=1),
        "no mask": _arm(mask=False),
        "alpha 0.6": _arm(0.6),
        "alpha 0.9": _arm(0.9),
    },
    run=run,
    metrics={
        **dict.fromkeys(("em", "em_1hop", "em_2hop", "unseen_em", "format", "found", "unseen_found"), higher_is_better),
        **dict.fromkeys(("cost", "calls", "unseen_drop"), lower_is_better),
    },
    optional={"unseen_em", "unseen_drop", "calls", "format", "found", "unseen_found"},
    claims=[
        better("router-r1", than="one call", on="em_2hop", margin=10.0),
        equivalent("router-r1", "one call", on="em_1hop", within=3.0),
        better("router-r1", than="best single", on="em", margin=10.0),
        better("router-r1", than="knn", on="em"),
        cheaper("router-r1", than="best single", on="cost", ratio=1.0),
        at_most("router-r1", on="unseen_drop", value=10.0),
        better("router-r1", than="random", on="unseen_em", margin=15.0),
        ordered(ALPHAS[::-1], on="em"),
        ordered(ALPHAS, on="cost"),
        cheaper("alpha 0.9", than="router-r1", on="cost", ratio=0.6),
    ],
    checks=[
        at_least("warm start", on="format", value=95.0, text="the warm start writes what the format asks for"),
        at_least("warm start", on="found", value=90.0, text="the warm start names experts that there are"),
    ],
    seeds={"smoke": 1, "laptop": 3},
    time_limit={"smoke": 60.0, "laptop": 900.0},
)
