import pytest

from heldout.lm import (
    ScriptedLM,
    Skill,
    SkillPrompt,
    distill_skills,
    internal_activation_rate,
    skill_usage,
)

SOLVED = [("Double 3, then increase.", "3 * 2 = 6, 6 + 1 = 7"), ("Double 4.", "8")]
NAMED = "Double | Multiply by two. | Double 4: 8\n\nIncrease | Add one. | Increase 4: 5 | Increase 5: 6\nEnd of list"
NOTES = "Double | 3 becomes 6.\nIncrease | 6 becomes 7.\nanswer | 7"


def test_skills_are_named_once_and_each_problem_is_annotated():
    lm = ScriptedLM([NAMED, NOTES, "Double | 4 becomes 8.\nAnswer | 8"])
    skills, compositions = distill_skills(lm, SOLVED, 2)
    assert skills == [
        Skill("Double", "Multiply by two.", ("Double 4: 8",)),
        Skill("Increase", "Add one.", ("Increase 4: 5", "Increase 5: 6")),
    ]
    assert [c.answer for c in compositions] == ["7", "8"]
    assert compositions[0].steps == (("Double", "3 becomes 6."), ("Increase", "6 becomes 7."))
    assert "Name the 2 basic skills" in lm.calls[0]
    assert all(problem in lm.calls[0] and problem in lm.calls[i] for i, (problem, _) in enumerate(SOLVED, 1))
    assert SkillPrompt(skills, compositions, allow_internal=False).text("Double 9.").endswith("Double 9.\nAnswer:")


def test_no_more_skills_are_taken_than_asked_for():
    with pytest.raises(ValueError, match="uses skill 'Increase', which is not one of them"):
        distill_skills(ScriptedLM([NAMED, NOTES]), SOLVED[:1], 1)


def test_replies_without_the_form_are_errors_that_show_them():
    with pytest.raises(ValueError, match=r"named no skill .*'I cannot\.'"):
        distill_skills(ScriptedLM(["I cannot."]), SOLVED, 2)
    with pytest.raises(ValueError, match=r"has no step or no answer: 'Double \| 8'"):
        distill_skills(ScriptedLM([NAMED, "Double | 8"]), SOLVED[1:], 2)
    with pytest.raises(ValueError, match="got 0 and 2"):
        distill_skills(ScriptedLM([]), [], 2)


def test_mentions_are_found_once_in_order_and_internal_ones_told_apart():
    skills = [Skill("add"), Skill("extract digits")]
    output = (
        'By skill Extract Digits and skill add, then skill add. Skill <Law of cosines>; skill "mod n"; a skilled hand'
    )
    uses = skill_usage(output, skills)
    assert [(use.name, use.internal) for use in uses] == [
        ("extract digits", False),
        ("add", False),
        ("Law of cosines", True),
        ("mod n", True),
    ]
    assert skill_usage("nothing here", skills) == []
    assert [use.name for use in skill_usage("skill adder", skills)] == ["adder"]


def test_the_activation_rate_is_the_share_of_internal_mentions():
    assert internal_activation_rate(["skill add", "skill <sub>"], [Skill("add")]) == 0.5
    assert internal_activation_rate(["none"], [Skill("add")]) is None


def test_mentions_may_be_read_by_a_function():
    def upper(output):
        return [word for word in output.split() if word.isupper()]

    uses = skill_usage("F a b ; G b c", [Skill("F")], mentions=upper)
    assert [(use.name, use.internal) for use in uses] == [("F", False), ("G", True)]
