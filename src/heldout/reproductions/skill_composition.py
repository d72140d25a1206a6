"""Skill composition: does a model that learned to show two or three skills at once then show four, and other skills?

Claim. Fine-tuned on texts that combine up to 3 language skills, a model combines 4 and 5, and combines skills that were
not fine-tuned on; texts with one skill alone teach little of it, and a larger k more than as many tokens of a smaller
one. Source: arXiv:2409.19808 (Zhao, Kaur, Yu, Goyal, Arora, NeurIPS 2024).

World. 20 skills in 5 categories, each a rule about a sentence that another rule tells (``SENTENCE_SKILLS``), 12 topics
of 10 words. A request names k skills and a topic; its text has at most k - 1 sentences. Full marks are all k + 3
points: each skill, the topic, sense, and the limit. 8 skills, those of two categories, and half of the topics are in no
text that is fine-tuned on.

Arms. One pretraining a seed: texts with one skill, of all 20, or none. Then, on equally many tokens of texts with full
marks, training skills and topics alone: ``k1`` (one skill), ``k12`` (one or two, equally many texts of each), ``k123``;
``none`` is the pretrained model. ``concatenated`` has the requests of ``k123`` and a sentence for each skill, one
more than the limit allows. The writer leaves a skill out of 3 texts in 10, which the grading finds. ``train_k``,
``held_k`` and ``all_k`` are full marks on 150 combinations of k training skills (on training topics), held-out skills
and of all skills (both on held-out topics), decoded greedily; sets of 1 and 3 training skills may be among those
fine-tuned on, sets of 4 and 5 are not. ``topics_3`` and ``skills_3`` hold out the topics alone and the skills alone;
``shown_4`` is the mean share of 4 training skills that is shown, whatever the other points.

Deviations. A small Llama instead of a GPT-2, for positions beyond those trained on; fine-tuning leaves the embedding
(and with it the head) as it was, without which a network so small loses every word that it does not see; one turn
instead of two; rules grade, not a language model. A sentence makes sense where the grammar has it. Of the paper's
cells, 2 skills, and all skills at 4 and 5, are left out. Sizes, and the rates of fine-tuning (see ``TUNED``), were
chosen on development seed 1000, by training skills alone. At the rate that teaches those best the held-out skills are
forgotten, one alone too (``held_1``), so that the last claim is on forgetting as much as on combining. There is no real
cell: SmolLM2 with LoRA did not learn single skills of ``WORDNET_SKILLS`` in the time that it may take.
"""

from __future__ import annotations

import copy
import functools
import random
from collections.abc import Sequence
from typing import Any

import torch

from heldout.data import PackedBlocks, SkillCombination, compose_skill_texts, pack_with_offset
from heldout.lm import ScriptedLM, TransformersLM, tiny_llama, word_tokenizer
from heldout.measure import SkillMix, SkillMixReport, grade_skill_text
from heldout.study import Study, at_least, at_most, better, higher_is_better, lower_is_better
from heldout.tasks import (
    HELD_OUT_CATEGORIES,
    SENTENCE_RULES,
    SENTENCE_SKILLS,
    SENTENCE_TOPICS,
    SkillSplit,
    SkillWriter,
    split_skills,
    write_sentence,
)
from heldout.train import encode_rows, train_packed

LAPTOP = {"pretrained": 800, "tuned": 900, "known": 20_000, "tokens": 150_000, "combos": 150}
SMOKE = {"pretrained": 4, "tuned": 4, "known": 100, "tokens": 1_500, "combos": 4}
SIZES = {"smoke": SMOKE, "laptop": LAPTOP}
BLOCK, BLOCKS = 96, 10  # tokens of a block, blocks of a batch
CELLS = {"train": (1, 3, 4, 5), "topics": (3,), "skills": (3,), "held": (1, 2, 3), "all": (3,)}
SLIPS = 0.3  # of the writer


def request(combination: SkillCombination) -> str:
    return " ".join([*(skill.name for skill in combination.skills), combination.topic, ":"])


def teacher(writer: SkillWriter, seed: int) -> ScriptedLM:
    """The language model that texts are learned from."""
    by_name, rng = {skill.name: skill for skill in SENTENCE_SKILLS}, random.Random(seed)

    def write(prompt: str, sample: int) -> str:
        *names, topic, _ = prompt.split()
        return writer.write(SkillCombination(tuple(by_name[name] for name in names), topic), seed=rng.getrandbits(31))

    return ScriptedLM(write)


def grade(text: str, combination: SkillCombination, limited: bool) -> Sequence[float]:
    points = grade_skill_text(text, combination, SENTENCE_RULES)
    return points if limited else points[:-1]


def words(row: dict[str, Any]) -> int:
    return len(row["prompt"].split()) + len(row["completion"].split()) + 1  # and the end


def tuning_set(arm: dict[str, Any], split: SkillSplit, tokens: int, seed: int) -> list[dict[str, Any]]:
    """Equally many texts of each k, in turn, until there are as many tokens."""
    limited = arm["writer"] == "few"
    written = []
    for k in arm["ks"]:
        writer, grader = SkillWriter(arm["writer"], SLIPS), functools.partial(grade, limited=limited)
        wanted = tokens // (len(arm["ks"]) * (5 + 3 * k))  # more than are needed
        written.append(
            compose_skill_texts(
                teacher(writer, seed + k), split.train, split.train_topics, k, wanted, grader, prompt=request, seed=seed
            )
        )
    rows: list[dict[str, Any]] = []
    for turn in zip(*written, strict=False):
        rows.extend(turn)
    total = 0
    for number, row in enumerate(rows):
        total += words(row)
        if total >= tokens:
            return rows[: number + 1]
    raise RuntimeError(f"{total} tokens instead of {tokens}")


def leaked(row: dict[str, Any], split: SkillSplit) -> bool:
    """Whether a text shows a held-out skill or has words of other topics than its own, one of those of training."""
    text, topic = row["completion"], row["topic"]
    known = topic in split.train_topics and SENTENCE_RULES.on_topic(text, topic)
    return not known or any(skill.check(text, topic) for skill in split.held_out if skill.check)


def blocks(rows: list[Any], tokenizer: Any, seed: int) -> PackedBlocks:
    encoded = encode_rows(random.Random(seed).sample(rows, len(rows)), tokenizer)
    longest = max(len(row["input_ids"]) for row in encoded)
    ids = torch.tensor([row["input_ids"] + [0] * (longest - len(row["input_ids"])) for row in encoded])
    asked = torch.tensor([[label != -100 for label in row["labels"]] + [False] * (longest - len(row["labels"]))
                          for row in encoded])  # fmt: skip
    return pack_with_offset((ids, asked), BLOCK, max_offset=0)


@functools.lru_cache(maxsize=1)
def pretrained(seed: int, profile: str) -> tuple[Any, Any]:
    """A model that knows each of the 20 skills alone, and its tokenizer."""
    size, rng = SIZES[profile], random.Random(seed)
    names = [skill.name for skill in SENTENCE_SKILLS]
    everything = [write_sentence(names, topic, seed=number) for topic in SENTENCE_TOPICS for number in range(60)]
    tokenizer = word_tokenizer([*names, *SENTENCE_TOPICS, ": .", *everything])
    rows = []
    for _ in range(size["known"]):
        skills, topic = tuple(rng.sample(SENTENCE_SKILLS, rng.random() < 0.75)), rng.choice(SENTENCE_TOPICS)
        combination = SkillCombination(skills, topic)
        rows.append((request(combination), SkillWriter().write(combination, seed=rng.getrandbits(31))))
    model = tiny_llama(tokenizer, dim=96, layers=2, heads=4, context=160, seed=seed)
    train_packed(model, blocks(rows, tokenizer, seed), steps=size["pretrained"], batch_size=BLOCKS, lr=3e-3, warmup=50,
                 seed=seed)  # fmt: skip
    return model, tokenizer


def run(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    size = SIZES[profile]
    split = split_skills(SENTENCE_SKILLS, SENTENCE_TOPICS, HELD_OUT_CATEGORIES, seed=seed)
    base, tokenizer = pretrained(seed, profile)
    model, own = copy.deepcopy(base), {}
    if arm["ks"]:
        rows = tuning_set(arm, split, size["tokens"], seed)
        leaks = sum(leaked(row, split) for row in rows)
        own = {"texts": len(rows), "token_gap": abs(sum(map(words, rows)) / size["tokens"] - 1), "leaks": leaks}
        model.get_input_embeddings().requires_grad_(False)  # and with it the head
        train_packed(model, blocks(rows, tokenizer, seed), steps=size["tuned"], batch_size=BLOCKS, lr=arm["lr"],
                     warmup=50, seed=seed)  # fmt: skip
    lm = TransformersLM(model, tokenizer, batch_size=size["combos"])
    places = {
        "train": (split.train, split.train_topics),
        "topics": (split.train, split.held_out_topics),
        "skills": (split.held_out, split.train_topics),
        "held": (split.held_out, split.held_out_topics),
        "all": (SENTENCE_SKILLS, split.held_out_topics),
    }
    reports: dict[str, SkillMixReport] = {}
    for cell, (skills, topics) in places.items():
        for k in CELLS[cell]:
            most = min(size["combos"], len(skills) * len(topics)) if k == 1 else size["combos"]
            mix = SkillMix(skills, topics, k, most, SENTENCE_RULES, wording=request, seed=seed)
            reports[f"{cell}_{k}"] = mix.run(lm, max_tokens=80)
    shown = [sum(each.skills) / 4 for row in reports["train_4"].points for each in row]
    return {name: report.full for name, report in reports.items()} | own | {"shown_4": sum(shown) / len(shown)}


def arm(ks: list[int], lr: float = 0.0, writer: str = "few") -> dict[str, Any]:
    return {"ks": ks, "lr": lr, "writer": writer}


# Each arm at four rates, by run(TUNED[name] | {"lr": rate}, 1000, "laptop"). Taken is the rate of the most full marks,
# the mean of train_4 and train_5; of two alike, that of the larger shown_4. k1 has none at any rate, and a shown_4 of
# 0.025 to 0.028: it has the rate at which it shows most skills alone (train_1), a rule made after that was seen.
#                3e-4   1e-3   3e-3   1e-2
# k1 (train_1)   0.847  0.792  0.861  0.833
# k12            0.003  0.013  0.007  0.010
# k123           0.020  0.097  0.133  0.073
# concatenated   0.003  0.003  0.000  0.000
TUNED = {
    "k1": arm([1], 3e-3),
    "k12": arm([1, 2], 1e-3),
    "k123": arm([1, 2, 3], 3e-3),
    "concatenated": arm([1, 2, 3], 1e-3, "each"),
}

study = Study(
    slug="skill-composition",
    title="Can Models Learn Skill Composition from Examples?",
    arms={"none": arm([]), **TUNED},
    run=run,
    metrics={
        **{f"{cell}_{k}": higher_is_better for cell, ks in CELLS.items() for k in ks},
        **dict.fromkeys(("shown_4", "texts"), higher_is_better),
        **dict.fromkeys(("token_gap", "leaks"), lower_is_better),
    },
    optional={"texts", "token_gap", "leaks"},
    claims=[
        better("k123", than="k1", on="train_4", margin=0.15),
        better("k123", than="k1", on="train_5", margin=0.08),
        better("k123", than="k12", on="train_4", margin=0.05),
        better("k123", than="k12", on="train_5", margin=0.05),
        better("k123", than="none", on="held_3", margin=0.08),
    ],
    checks=[
        at_least("none", on="train_1", value=0.8, text="the pretrained model knows the training skills alone"),
        at_least("none", on="held_1", value=0.8, text="the pretrained model knows the held-out skills alone"),
        at_most("k1", on="train_3", value=0.1, text="skills alone do not teach to combine them"),
        at_most("concatenated", on="train_4", value=0.02, text="a sentence for each skill has no full marks"),
        *(at_most(name, on="leaks", value=0) for name in TUNED),
        *(at_most(name, on="token_gap", value=0.005) for name in TUNED),
    ],
    seeds={"smoke": 1, "laptop": 4},
    shared_setup=True,
)  # fmt: skip
