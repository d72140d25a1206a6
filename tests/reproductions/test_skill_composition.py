"""What the arms of skill-composition are fine-tuned on."""

import pytest

from heldout.data import SkillCombination
from heldout.lm import word_tokenizer
from heldout.measure import grade_skill_points
from heldout.reproductions.skill_composition import leaked, study, tuning_set, words
from heldout.tasks import (
    HELD_OUT_CATEGORIES,
    SENTENCE_RULES,
    SENTENCE_SKILLS,
    SENTENCE_TOPICS,
    split_skills,
    write_sentence,
)
from heldout.train import encode_rows

TOKENS = 12_000
BY_NAME = {skill.name: skill for skill in SENTENCE_SKILLS}
SPLIT = split_skills(SENTENCE_SKILLS, SENTENCE_TOPICS, HELD_OUT_CATEGORIES, seed=1)


@pytest.mark.parametrize("name", ["k1", "k12", "k123", "concatenated"])
def test_the_sets_have_the_same_tokens_and_nothing_that_is_held_out(name):
    arm = study.arms[name]
    rows = tuning_set(arm, SPLIT, TOKENS, seed=1)
    assert 0 <= sum(map(words, rows)) - TOKENS < 120
    assert not {skill.name for skill in SPLIT.held_out} & {skill for row in rows for skill in row["skills"]}
    assert not set(SPLIT.held_out_topics) & {row["topic"] for row in rows}
    assert not any(leaked(row, SPLIT) for row in rows)
    counts = [sum(row["k"] == k for row in rows) for k in arm["ks"]]
    assert sum(counts) == len(rows)
    assert max(counts) - min(counts) <= 1
    for row in rows[:100]:
        asked = SkillCombination(tuple(BY_NAME[skill] for skill in row["skills"]), row["topic"])
        points = grade_skill_points(row["completion"], asked, SENTENCE_RULES)
        if name == "concatenated" and row["k"] > 1:
            assert points == ((True,) * row["k"], True, True, False)
        else:
            assert points.full


def test_a_leak_is_seen_in_the_text_whatever_was_asked_for():
    topic, other, unseen = *SPLIT.train_topics[:2], SPLIT.held_out_topics[0]
    for skills, about, of in ((["setting"], topic, topic), ([], unseen, unseen), ([], other, topic)):
        assert leaked({"completion": write_sentence(skills, about), "topic": of}, SPLIT)
    assert not leaked({"completion": write_sentence(["litotes"], topic), "topic": topic}, SPLIT)


def test_words_are_counted_as_the_tokenizer_does():
    row = tuning_set(study.arms["k123"], SPLIT, 1_000, seed=2)[5]
    tokenizer = word_tokenizer([row["prompt"], row["completion"]])
    (encoded,) = encode_rows([row], tokenizer)
    assert len(encoded["input_ids"]) == words(row)
