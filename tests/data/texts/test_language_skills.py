"""Random combinations of skills, and the texts of a language model that show them."""

import functools
from collections import Counter

import pytest

from heldout.data import (
    IMPROVE_SKILL_TEXT,
    LanguageSkill,
    SkillCombination,
    compose_skill_texts,
    skill_combinations,
    skill_messages,
    write_skill_texts,
)
from heldout.lm import ScriptedLM
from heldout.measure import grade_skill_text

SKILLS = [
    LanguageSkill("question", "asks", "Why?", lambda text, topic: "?" in text, "mood"),
    LanguageSkill("shout", "shouts", "", lambda text, topic: "!" in text, "mood"),
    LanguageSkill("number", "counts", "", lambda text, topic: any(c.isdigit() for c in text), "figure"),
]
TOPICS = ["sea", "sky"]
RULES = functools.partial(grade_skill_text, grader="rules")


def test_all_combinations_are_drawn_once_where_as_many_are_asked_for():
    drawn = skill_combinations(SKILLS, TOPICS, 2, 6, seed=3)
    assert len({(each.names, each.topic) for each in drawn}) == 6
    assert all(each.k == 2 and len(each.names) == 2 for each in drawn)


def test_combinations_are_uniform_over_subsets_and_orders():
    skills = [LanguageSkill(name) for name in "abcd"]
    counts = Counter()
    for seed in range(1200):
        (drawn,) = skill_combinations(skills, ["t"], 2, 1, seed=seed)
        counts["".join(skill.name for skill in drawn.skills)] += 1
    assert len(counts) == 12
    assert max(abs(count - 100) for count in counts.values()) < 45  # 4.7 standard deviations


def test_excluded_sets_are_not_drawn_in_any_order():
    barred = [frozenset({"shout", "question"})]
    drawn = skill_combinations(SKILLS, TOPICS, 2, 4, exclude=barred)
    assert not any(each.names in barred for each in drawn)
    with pytest.raises(ValueError, match="n must be at most about 4"):
        skill_combinations(SKILLS, TOPICS, 2, 5, exclude=barred)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 4}, "k must be at most 3"),
        ({"k": 0}, "k must be at least 1"),
        ({"n": 7}, "n must be at most"),
        ({"topics": []}, "topics must not be empty"),
        ({"topics": ["sea", "sea"]}, "topics must be different"),
        ({"skills": [SKILLS[0], SKILLS[0]], "k": 1}, "skills must be different"),
    ],
)
def test_bad_combinations_are_refused(change, message):
    options = {"skills": SKILLS, "topics": TOPICS, "k": 2, "n": 1} | change
    with pytest.raises(ValueError, match=message):
        skill_combinations(**options)


@pytest.mark.parametrize(("k", "limit"), [(1, 1), (2, 1), (3, 2), (5, 4)])
def test_the_limit_on_sentences_is_one_less_than_the_skills(k, limit):
    combination = SkillCombination(tuple(LanguageSkill(str(i)) for i in range(k)), "sea")
    assert combination.limit == limit
    assert f"at most {limit} sentence" in skill_messages(combination)[0]["content"]


def test_a_request_holds_names_definitions_examples_and_topic():
    (message,) = skill_messages(SkillCombination(tuple(SKILLS), "sea"))
    assert message["role"] == "user"
    for said in ("- question: asks Example: Why?", "- number: counts\n", "about sea"):
        assert said in message["content"]


def test_the_second_turn_sees_the_draft_and_its_answer_counts():
    lm = ScriptedLM(lambda prompt, sample: f"turn {len(prompt)} sample {sample}")
    ((first, second),) = write_skill_texts(lm, [[{"role": "user", "content": "go"}]], n=2)
    assert [message["role"] for message in first] == ["user", "assistant", "user", "assistant"]
    assert first[1]["content"] == "turn 1 sample 0"
    assert second[1]["content"] == "turn 1 sample 1"
    assert first[2]["content"] == IMPROVE_SKILL_TEXT
    assert first[3]["content"] == "turn 3 sample 0"


def test_without_a_second_turn_or_with_a_text_as_the_request_the_draft_counts():
    lm = ScriptedLM(lambda prompt, sample: "draft")
    ((talk,),) = write_skill_texts(lm, [[{"role": "user", "content": "go"}]], improve=None)
    assert len(talk) == 2
    ((talk,),) = write_skill_texts(lm, ["go"])
    assert talk == [{"role": "user", "content": "go"}, {"role": "assistant", "content": "draft"}]


def test_only_texts_with_full_marks_are_kept():
    said = iter(range(10_000))
    lm = ScriptedLM(lambda prompt, sample: "sea sky 1?!" if next(said) % 3 == 0 else "sea sky 1?")
    rows = compose_skill_texts(lm, SKILLS, TOPICS, 2, 5, RULES, improve=None)
    assert len(rows) == 5
    for row in rows:
        assert row["points"] == (1.0,) * 5
        assert row["k"] == len(row["skills"]) == 2
        combination = SkillCombination(tuple(s for s in SKILLS if s.name in row["skills"]), row["topic"])
        assert grade_skill_text(row["messages"][-1]["content"], combination) == (1.0,) * 5


def test_keep_all_keeps_what_was_written_with_its_points():
    lm = ScriptedLM(lambda prompt, sample: "sea sky?")
    rows = compose_skill_texts(lm, SKILLS, TOPICS, 1, 6, RULES, keep="all", improve=None)
    assert {row["skills"][0]: row["points"][0] for row in rows} == {"question": 1.0, "shout": 0.0, "number": 0.0}


def test_requests_that_are_texts_become_prompts_and_completions():
    lm = ScriptedLM(lambda prompt, sample: "sea sky 1?!")
    (row,) = compose_skill_texts(
        lm, SKILLS, ["sea"], 3, 1, RULES, prompt=lambda c: f"{len(c.skills)} of {c.topic}:", tries=1
    )
    assert (row["prompt"], row["completion"]) == ("3 of sea:", "sea sky 1?!")
    assert "messages" not in row


def test_a_writer_that_never_succeeds_is_an_error_after_the_tries():
    lm = ScriptedLM(lambda prompt, sample: "nothing")
    with pytest.raises(ValueError, match="of 6 texts no more had full marks"):
        compose_skill_texts(lm, SKILLS, TOPICS, 2, 2, RULES, tries=3, improve=None)
    assert len(lm.calls) == 6


class SeededLM(ScriptedLM):
    """Keeps the seed and the prompts of each call."""

    def generate(self, prompts, n=1, *, seed=0, **options):
        self.asked = [*getattr(self, "asked", []), (seed, list(prompts))]
        return super().generate(prompts, n, seed=seed, **options)


def test_each_round_of_writing_has_other_combinations_and_another_seed():
    skills = [LanguageSkill(name, check=lambda text, topic: "!" in text) for name in "abcdefghijkl"]
    said = iter(range(10_000))
    lm = SeededLM(lambda prompt, sample: "sea!" if next(said) % 4 == 0 else "sea")
    compose_skill_texts(lm, skills, ["sea"], 3, 10, RULES, prompt=lambda c: str(sorted(c.names)), seed=5)
    (first, asked), (second, again), *_ = lm.asked
    assert first != second
    assert not set(again) <= set(asked)


def test_the_second_turn_has_another_seed_than_the_draft():
    lm = SeededLM(lambda prompt, sample: "text")
    write_skill_texts(lm, [[{"role": "user", "content": "go"}]], seed=3)
    assert len({seed for seed, _ in lm.asked}) == 2


def test_points_that_are_none_are_an_error_with_the_text():
    lm = ScriptedLM(lambda prompt, sample: "a text")
    with pytest.raises(ValueError, match=r"points of 0 or 1.*'a text'"):
        compose_skill_texts(lm, SKILLS, TOPICS, 1, 1, lambda text, combination: [0.5], improve=None)
    with pytest.raises(ValueError, match="keep must be one of"):
        compose_skill_texts(lm, SKILLS, TOPICS, 1, 1, RULES, keep="some")


def test_rows_are_taken_by_sft_with_the_request_masked():
    from heldout.lm import word_tokenizer
    from heldout.train import encode_rows

    lm = ScriptedLM(lambda prompt, sample: "sea 1?!")
    rows = compose_skill_texts(lm, SKILLS, ["sea"], 2, 1, RULES, prompt=lambda c: "about sea :")
    (encoded,) = encode_rows(rows, word_tokenizer(["about sea : 1?!"]))
    assert [label == -100 for label in encoded["labels"]] == [True] * 3 + [False] * 3
    (row,) = compose_skill_texts(lm, SKILLS, ["sea"], 2, 1, RULES)
    assert [message["role"] for message in row["messages"]] == ["user", "assistant"] * 2


def test_a_skill_without_a_name_is_refused():
    with pytest.raises(ValueError, match="name must not be empty"):
        LanguageSkill(" ")
