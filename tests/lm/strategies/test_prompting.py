import pytest

from heldout.lm import (
    INTERNAL_NOTE,
    SKILLS_HEADER,
    ChainOfThought,
    Composition,
    FewShot,
    LeastToMost,
    ScriptedLM,
    Skill,
    SkillPrompt,
    Solved,
    Usage,
    accuracy_by_group,
    last_number,
    run_strategy,
    within_budget,
    word_tokenizer,
)

DOUBLE = Skill("Double", "Multiply by two.", ("Double 4: 8",))
INCREASE = Skill("Increase", "Add one.", ("Increase 4: 5",))
WORKED = Composition("Double 3, then increase.", (("Double", "3 becomes 6."), ("Increase", "6 becomes 7.")), "7")
QUERY = "Double 5 twice."


def test_a_skill_prompt_has_skills_then_compositions_then_the_query():
    text = SkillPrompt([DOUBLE, INCREASE], [WORKED, WORKED]).text(QUERY)
    places = [text.index(part) for part in (SKILLS_HEADER, INTERNAL_NOTE, "Skill 1: Double", "Double 4: 8",
                                            "Skill 2: Increase", WORKED.problem, QUERY)]  # fmt: skip
    assert places == sorted(places)
    assert text.count("1. Using the skill Double: 3 becomes 6.\n2. Using the skill Increase: 6 becomes 7.") == 2
    assert text.endswith(f"{QUERY}\nAnswer:")


def test_internal_skills_are_announced_where_they_are_allowed():
    assert INTERNAL_NOTE in SkillPrompt([DOUBLE], [WORKED]).text(QUERY)
    assert INTERNAL_NOTE not in SkillPrompt([DOUBLE, INCREASE], [WORKED], allow_internal=False).text(QUERY)


def test_a_step_with_a_skill_that_is_not_listed_is_an_error_unless_allowed():
    with pytest.raises(ValueError, match="uses skill 'Increase', which is not listed"):
        SkillPrompt([DOUBLE], [WORKED], allow_internal=False)
    assert SkillPrompt([DOUBLE], [WORKED]).text(QUERY)


def test_either_half_of_a_skill_prompt_may_stand_alone():
    assert "Skill 1" not in SkillPrompt([], [WORKED]).text(QUERY)
    assert "Using the skill" not in SkillPrompt([DOUBLE]).text(QUERY)
    with pytest.raises(ValueError, match="got neither"):
        SkillPrompt()


def test_exemplars_are_no_harder_than_allowed():
    SkillPrompt([], [WORKED], max_depth=2)
    with pytest.raises(ValueError, match="has 2 steps, more than max_depth 1"):
        SkillPrompt([], [WORKED], max_depth=1)


def test_bad_skill_prompts_are_named():
    with pytest.raises(ValueError, match="'Double' is listed 2 times"):
        SkillPrompt([DOUBLE, DOUBLE])
    with pytest.raises(ValueError, match="has no steps"):
        SkillPrompt([], [Composition("?", (), "7")])
    with pytest.raises(ValueError, match="max_tokens needs a tokenizer"):
        SkillPrompt([DOUBLE], max_tokens=5)
    with pytest.raises(ValueError, match=r"needs \{steps\}"):
        SkillPrompt([DOUBLE], template="{problem} {answer}")
    with pytest.raises(ValueError, match=r"\{problem\} as its first field"):
        FewShot(template="{answer} {problem}")


def test_a_prompt_over_the_budget_is_an_error():
    tokenizer = word_tokenizer([SkillPrompt([DOUBLE], [WORKED]).text(QUERY)])
    count = len(SkillPrompt([DOUBLE], [WORKED]).text(QUERY).split())
    assert SkillPrompt([DOUBLE], [WORKED], tokenizer=tokenizer, max_tokens=count).text(QUERY)
    with pytest.raises(ValueError, match=f"has {count} tokens, more than {count - 1}"):
        SkillPrompt([DOUBLE], [WORKED], tokenizer=tokenizer, max_tokens=count - 1).text(QUERY)
    with pytest.raises(ValueError, match="more than 1: leave out examples"):
        run_strategy(FewShot(), ScriptedLM(["7"]), [QUERY], last_number, tokenizer=tokenizer, max_prompt_tokens=1)
    with pytest.raises(ValueError, match="needs a tokenizer"):
        within_budget("a", None, 1)


@pytest.mark.parametrize(
    "strategy", [FewShot(), ChainOfThought(), SkillPrompt([DOUBLE]), LeastToMost([("a?", ["b?"])])], ids=repr
)
def test_messages_hold_the_text(strategy):
    assert strategy.messages(QUERY) == [{"role": "user", "content": strategy.text(QUERY)}]


def test_examples_come_before_the_query():
    assert FewShot([("a?", "1"), ("b?", "2")], header="Look:").text("c?") == (
        "Look:\n\na?\nAnswer: 1\n\nb?\nAnswer: 2\n\nc?\nAnswer:"
    )
    assert ChainOfThought([("a?", "Well.", "1")]).text("c?") == "a?\nAnswer: Well. The answer is 1.\n\nc?\nAnswer:"


def test_braces_in_a_problem_are_text():
    assert FewShot([("{answer}", "{problem}")]).text("{x}") == "{answer}\nAnswer: {problem}\n\n{x}\nAnswer:"


def test_least_to_most_asks_each_subproblem_with_the_answers_so_far():
    strategy = LeastToMost([("2 * 3 + 1?", ["2 * 3?"])], [("2 * 3 + 1?", [("2 * 3?", "6")])])
    lm = ScriptedLM(["4 * 5?\n\nProblem: another", "20\nQuestion: more", " 22"])
    (solved,) = run_strategy(strategy, lm, ["4 * 5 + 2?"], last_number)
    assert solved.answer == 22
    assert solved.usage.calls == len(solved.trace) == 3
    assert lm.calls[0].endswith("Problem: 4 * 5 + 2?\nSubproblems:\n")
    assert lm.calls[2].endswith("Problem: 4 * 5 + 2?\nQuestion: 4 * 5?\nAnswer: 20\nQuestion: 4 * 5 + 2?\nAnswer:")


def test_problems_of_different_numbers_of_subproblems_end_when_they_are_done():
    said = {"Subproblems:": {"one?": "x?", "two?": "x?\ny?"}}

    def answer(prompt, sample):
        query = "one?" if "one?" in prompt else "two?"
        return said["Subproblems:"][query] if prompt.endswith("Subproblems:\n") else "5"

    found = run_strategy(LeastToMost([("a?", ["b?"])]), ScriptedLM(answer), ["one?", "two?"], last_number)
    assert [solved.usage.calls for solved in found] == [3, 4]
    assert [solved.answer for solved in found] == [5, 5]
    limited = run_strategy(LeastToMost([("a?", ["b?"])], max_subproblems=1), ScriptedLM(answer), ["two?"], last_number)
    assert limited[0].usage.calls == 3


def test_least_to_most_needs_an_example():
    with pytest.raises(ValueError, match="at least one example"):
        LeastToMost([])
    with pytest.raises(ValueError, match="at least 1, got 0"):
        LeastToMost([("a?", ["b?"])], max_subproblems=0)


def test_costs_add_up_over_calls():
    lm = ScriptedLM(["x?", "5 it is", "so 6"], price=2.0)
    (solved,) = run_strategy(LeastToMost([("a?", ["b?"])]), lm, ["one?"], last_number)
    assert solved.usage.tokens == 6
    assert solved.usage.cost == 12
    assert solved.usage.prompt_tokens == sum(len(prompt.split()) for prompt in lm.calls)
    assert solved.output == "so 6"


def test_no_answer_is_none_and_counts_as_wrong():
    found = run_strategy(FewShot(), ScriptedLM(["no idea", "7"]), ["a?", "b?"], last_number)
    assert [solved.answer for solved in found] == [None, 7]
    assert accuracy_by_group(found, [7, 7], ["x", "x"]) == {"x": 0.5}
    assert accuracy_by_group([Solved(None, ("",), Usage())], [None], ["x"]) == {"x": 0.0}


def test_each_problem_may_have_a_prompt_of_its_own():
    lm = ScriptedLM(["1", "2"])
    run_strategy([FewShot([("p?", "3")]), FewShot()], lm, ["a?", "b?"], last_number)
    assert lm.calls == ["p?\nAnswer: 3\n\na?\nAnswer:", "b?\nAnswer:"]
    with pytest.raises(ValueError, match="got 1 for 2 problems"):
        run_strategy([FewShot()], lm, ["a?", "b?"], last_number)


def test_chat_sends_messages():
    lm = ScriptedLM(["1"])
    run_strategy(FewShot(), lm, ["a?"], last_number, chat=True)
    assert lm.calls == [[{"role": "user", "content": "a?\nAnswer:"}]]


def test_problems_are_a_list():
    with pytest.raises(TypeError, match="problems must be a sequence of text"):
        run_strategy(FewShot(), ScriptedLM(["1"]), "a?", last_number)
