"""Skill-Mix: points by rules and by a judge, and the ratios that are made of them."""

import pytest

from heldout.data import LanguageSkill, SkillCombination
from heldout.lm import ScriptedLM
from heldout.measure import (
    SkillMix,
    SkillPoints,
    SkillRules,
    count_sentences,
    grade_skill_points,
    grade_skill_text,
    skill_mix_report,
)

QUESTION = LanguageSkill("question", "asks", "Why?", lambda text, topic: "?" in text)
SHOUT = LanguageSkill("shout", "shouts", "", lambda text, topic: "!" in text)
NAMED = LanguageSkill("metaphor", "an image", "", lambda text, topic: "metaphor" in text.lower())
FREE = LanguageSkill("irony", "says the opposite")
TWO = SkillCombination((QUESTION, SHOUT), "sea")


def test_points_stand_in_the_order_of_the_skills_then_topic_sense_and_length():
    assert grade_skill_text("Sea!", TWO) == (0.0, 1.0, 1.0, 1.0, 1.0)
    assert grade_skill_text("Sky? Sky!", TWO) == (1.0, 1.0, 0.0, 1.0, 0.0)
    assert grade_skill_text("?!", TWO) == (1.0, 1.0, 0.0, 0.0, 0.0)


def test_the_names_of_skills_are_not_credited_in_any_case():
    combination = SkillCombination((NAMED,), "sea")
    assert grade_skill_text("A Metaphor of the sea.", combination)[0] == 0.0
    assert grade_skill_text("metaphors of the sea", combination)[0] == 1.0  # another word


def test_rules_judge_topic_sense_and_length_of_the_text_as_it_was_written():
    combination = SkillCombination((QUESTION,), "sea")
    assert grade_skill_text("Question. Is the sea calm?", combination) == (1.0, 1.0, 1.0, 0.0)
    named = SkillCombination((LanguageSkill("sea", check=lambda text, topic: "sea" in text),), "sea")
    assert grade_skill_text("The sea.", named) == (0.0, 1.0, 1.0, 1.0)
    rules = SkillRules(makes_sense=lambda text, topic: "question" not in text)
    assert grade_skill_text("sea question?", combination, rules) == (1.0, 1.0, 0.0, 1.0)


def test_an_lm_judge_does_not_see_the_names_in_the_text():
    lm = ScriptedLM(["1 1 1 1"])
    grade_skill_text("The irony of the sea", SkillCombination((FREE,), "sea"), lm, rounds=1)
    assert "Text:\nThe of the sea\n" in lm.calls[0]
    assert "the skill irony (says the opposite)" in lm.calls[0]


def test_braces_in_a_text_reach_no_other_field():
    lm = ScriptedLM(["1 1 1 1"])
    grade_skill_text("{criteria} {count}", SkillCombination((FREE,), "sea"), lm, rounds=1)
    assert "Text:\n{criteria} {count}\n" in lm.calls[0]


def test_each_point_goes_by_the_majority_of_the_rounds():
    said = ["1 0 1 1 0", "1 1 0 1 0", "0 0 1 1 1"]
    assert grade_skill_text("text", TWO, ScriptedLM(said)) == (1.0, 0.0, 1.0, 1.0, 0.0)
    votes = [[int(digit) for digit in line.split()] for line in said]
    counted = tuple(float(sum(column) >= 2) for column in zip(*votes, strict=True))
    assert grade_skill_text("text", TWO, ScriptedLM(said)) == counted


class SeededJudge(ScriptedLM):
    """Keeps the seed of each call."""

    def generate(self, prompts, n=1, *, seed=0, **options):
        self.seeds = [*getattr(self, "seeds", []), seed]
        return super().generate(prompts, n, seed=seed, **options)


def test_each_round_and_each_retry_has_a_seed_of_its_own():
    lm = SeededJudge(["1 1 1 1 1"] * 5)
    grade_skill_points("text", TWO, lm, rounds=5, seed=7)
    assert len(set(lm.seeds)) == 5
    lm = SeededJudge(["nothing"] * 2 + ["1 1 1 1 1"] * 3)
    grade_skill_points("text", TWO, lm, rounds=3, seed=7)
    assert len(set(lm.seeds)) == len(lm.seeds) == 5


def test_an_even_number_of_rounds_is_refused():
    with pytest.raises(ValueError, match="rounds must be odd"):
        grade_skill_text("text", TWO, ScriptedLM(["1"]), rounds=2)
    with pytest.raises(ValueError, match="rounds must be odd"):
        SkillMix([QUESTION], ["sea"], 1, rounds=4)


def test_a_grading_that_cannot_be_read_is_asked_for_again_and_then_an_error_with_what_was_said():
    lm = ScriptedLM(["I give 5 of 5.", "1 1 1 1 1"])
    assert grade_skill_points("text", TWO, lm, rounds=1).full
    assert len(lm.calls) == 2
    lm = ScriptedLM(["1 1", "1 1 1 1 1 1", "0.5 1 1 1 1"])
    with pytest.raises(ValueError, match=r"5 numbers, each 0 or 1, got '0\.5 1 1 1 1'"):
        grade_skill_points("text", TWO, lm, rounds=1)
    assert len(lm.calls) == 3


def test_a_skill_without_a_rule_needs_a_judge():
    with pytest.raises(ValueError, match="skill 'irony' has no rule"):
        grade_skill_text("text", SkillCombination((FREE,), "sea"))
    with pytest.raises(TypeError, match="grader must be"):
        grade_skill_text("text", TWO, 3)
    with pytest.raises(ValueError, match="grader must be one of"):
        grade_skill_text("text", TWO, "judge")


def test_rules_for_the_other_three_points_are_used():
    rules = SkillRules(
        on_topic=lambda text, topic: text.startswith(topic),
        makes_sense=lambda text, topic: "sense" in text,
        sentences=lambda text: text.count("/") + 1,
    )
    assert grade_skill_text("sea ?! sense", TWO, rules) == (1.0,) * 5
    assert grade_skill_text("my sea / ?!", TWO, rules) == (1.0, 1.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("One. Two! Three?", 3),
        ("one", 1),
        ("One . Two", 2),
        ("Really?! Yes.", 2),
        ('"So." he', 2),
        ("3.5 of it.", 1),
        ("One.Two.Three.", 3),
        ("one\n\ntwo", 2),
        ("a line\nthat goes on.", 1),
        ("end.\n\nNew.", 2),
        ("wait\u2026 Now.", 2),
        ("\u4e00\u3002\u4e8c\u3002", 2),
    ],
)
def test_sentences_are_counted(text, count):
    assert count_sentences(text) == count


def test_the_ratios_of_four_rows_are_those_counted_by_hand():
    points = [
        SkillPoints((True, True), True, True, True),  # full
        SkillPoints((True, True), True, True, False),  # all skills and two others
        SkillPoints((True, False), True, True, True),  # half of the skills
        SkillPoints((False, True), True, False, False),
    ]
    report = skill_mix_report([TWO] * 4, [[each] for each in points])
    assert report.full == report.mean_full == 0.25
    assert report.all_skills == 0.5
    assert report.skill_fraction == (1 + 0 + 0.5 + 0) / 4
    assert report.per_skill == {"question": 0.75, "shout": 0.75}
    assert (report.topic, report.sense, report.length) == (1.0, 0.75, 0.5)


def test_all_skills_need_two_of_the_other_three_points():
    for others in ((True, False, False), (False, True, False), (False, False, True), (False, False, False)):
        assert not SkillPoints((True, True), *others).all_skills
    for others in ((True, True, False), (False, True, True), (True, False, True)):
        assert SkillPoints((True, True), *others).all_skills
        assert SkillPoints((True, True), *others).skill_fraction == 0.0


def test_the_best_of_several_texts_counts_and_the_mean_is_told():
    full, half = SkillPoints((True, True), True, True, True), SkillPoints((True, False), True, True, True)
    report = skill_mix_report([TWO, TWO], [[half, full], [half, half]])
    assert (report.full, report.mean_full, report.skill_fraction) == (0.5, 0.25, 0.75)
    assert report.per_skill == {"question": 1.0, "shout": 0.25}


def test_points_for_other_combinations_are_refused():
    with pytest.raises(ValueError, match="points must be of 2 skills"):
        skill_mix_report([TWO], [[SkillPoints((True,), True, True, True)]])
    with pytest.raises(ValueError, match="points must be those of 2 combinations"):
        skill_mix_report([TWO, TWO], [[SkillPoints((True, True), True, True, True)]])


def test_run_asks_for_its_combinations_in_one_call_and_grades_the_second_turn():
    mix = SkillMix([QUESTION, SHOUT], ["sea", "sky"], k=2, combos=2)
    lm = ScriptedLM(lambda prompt, sample: "sea and sky?!" if len(prompt) == 3 else "nothing")
    report = mix.run(lm)
    assert report.full == 1.0
    assert report.texts == [["sea and sky?!"]] * 2
    assert len(lm.calls) == 4
    assert lm.calls[0] == mix.prompt(mix.combinations[0])
    assert mix.run(lm).points == report.points


def test_a_mix_draws_by_its_seed_and_leaves_out_what_is_excluded():
    skills = [LanguageSkill(name) for name in "abcdef"]
    drawn = [SkillMix(skills, ["sea", "sky"], 2, 20, seed=seed).combinations for seed in (0, 1)]
    assert drawn[0] != drawn[1]
    barred = [frozenset("ab"), frozenset("cd")]
    assert {each.names for each in drawn[0]} & set(barred)
    assert not {each.names for each in SkillMix(skills, ["sea", "sky"], 2, 20, exclude=barred).combinations} & set(
        barred
    )


def test_a_mix_asks_its_judge_in_as_many_rounds_as_it_has():
    lm = ScriptedLM(["1 1 1 1"] * 5)
    mix = SkillMix([FREE], ["sea"], k=1, combos=1, grader=lm, rounds=5, improve=None)
    assert mix.run(ScriptedLM(["The sea."])).full == 1.0
    assert len(lm.calls) == 5


def test_several_generations_are_graded_each():
    mix = SkillMix([SHOUT], ["sea"], k=1, combos=1, generations=3, improve=None)
    report = mix.run(ScriptedLM(lambda prompt, sample: "sea!" if sample == 1 else "sea"), temperature=1.0)
    assert (report.full, round(report.mean_full, 4)) == (1.0, 0.3333)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 3}, "k must be at most 2"),
        ({"topics": []}, "topics"),
        ({"combos": 0}, "combos"),
        ({"grader": "x"}, "grader"),
    ],
)
def test_a_mix_with_bad_options_is_refused(change, message):
    options = {"skills": [QUESTION, SHOUT], "topics": ["sea"], "k": 1} | change
    with pytest.raises(ValueError, match=message):
        SkillMix(**options)
