"""Scores of tasks that a model was not trained on."""

from types import SimpleNamespace as Task

import pytest

from heldout.language_model import Completion
from heldout.lm import TransformersLM, tiny_bart, tiny_llama, word_tokenizer
from heldout.measure import best_constant, beyond_constant, cross_task, exact_match, rouge_l


def task(name, *pairs, category="c"):
    instances = [Task(input=text, outputs=outputs) for text, outputs in pairs]
    return Task(name=name, category=category, source="s", instances=instances)


def only_input(task, instance):
    return instance.input


def echo(prompts):
    return prompts


def test_tasks_count_the_same_however_many_instances_they_have():
    small = task("small", ("a", ("b",)))
    large = task("large", *[("a", ("a",))] * 9)
    found = cross_task(echo, [small, large], only_input, exact_match)
    assert [row.score for row in found.rows] == [0.0, 1.0]
    assert [row.count for row in found.rows] == [1, 9]
    assert found.mean == 0.5


def test_the_best_reference_counts_and_rouge_l_is_the_default():
    found = cross_task(echo, [task("t", ("a b c", ("x", "a c")))], only_input)
    assert found.mean == pytest.approx(rouge_l("a b c", ["a c"])) == pytest.approx(0.8)


def test_rows_keep_what_the_model_wrote_and_categories_are_averaged():
    tasks = [task("t", ("a", ("a",)), category="x"), task("u", ("b", ("a",)), category="x"), task("v", ("c", ("c",)))]
    found = cross_task(echo, tasks, only_input, exact_match)
    assert [row.predictions for row in found.rows] == [("a",), ("b",), ("c",)]
    assert found.by_category() == {"c": 1.0, "x": 0.5}


def test_the_interval_is_over_tasks():
    tasks = [task(f"t{i}", ("a", ("a" if i % 2 else "b",))) for i in range(20)]
    found = cross_task(echo, tasks, only_input, exact_match)
    assert 0.2 < found.low < found.mean == 0.5 < found.high < 0.8
    alone = cross_task(echo, tasks[:1], only_input)
    assert alone.low is alone.high is None


def test_a_language_model_is_asked_once_with_all_prompts():
    class Echo:
        calls = 0

        def generate(self, prompts, n=1, *, temperature=0.0, top_p=1.0, stop=(), max_tokens=256, seed=0):
            self.calls += 1
            return [[Completion(prompt)] for prompt in prompts]

        def score(self, prompts, continuations):
            raise NotImplementedError

    model = Echo()
    assert cross_task(model, [task("t", ("a", ("a",))), task("u", ("b", ("b",)))], only_input).mean == 1.0
    assert model.calls == 1


@pytest.mark.parametrize("make", [tiny_bart, tiny_llama])
def test_a_transformers_model_gets_the_score_of_its_greedy_answers_one_by_one(make):
    tokenizer = word_tokenizer(["a b c d e f"])
    model = TransformersLM(make(tokenizer, dim=16, layers=1, heads=2, seed=3), tokenizer)
    texts = ["a", "a b c d", "f", "c b", "e d c b a"]
    answers = [model.generate([text], max_tokens=5)[0][0].text for text in texts]
    found = cross_task(model, [task("t", *[(text, ("a b",)) for text in texts])], only_input, max_tokens=5)
    assert found.rows[0].predictions == tuple(answers)
    assert found.mean == pytest.approx(sum(rouge_l(answer, ["a b"]) for answer in answers) / 5)


def test_bad_input_is_named():
    fine = task("t", ("a", ("a",)))
    with pytest.raises(ValueError, match="at least one task"):
        cross_task(echo, [], only_input)
    with pytest.raises(ValueError, match="'empty' has no instances"):
        cross_task(echo, [task("empty")], only_input)
    with pytest.raises(ValueError, match="instance 0 of the task 'bare' has no references"):
        cross_task(echo, [task("bare", ("a", ()))], only_input)
    with pytest.raises(ValueError, match="0 texts for 1 prompts"):
        cross_task(lambda prompts: [], [fine], only_input)
    with pytest.raises(TypeError, match=r"model must be an LM .* or callable, got 3"):
        cross_task(3, [fine], only_input)


@pytest.mark.parametrize(
    ("pairs", "best"),
    [
        ([("a b", ("yes",)), ("c d", ("no", "yes")), ("e f", ("no",)), ("g h", ("maybe",))], 0.5),  # second references
        ([("a b", ("a b",)), ("c d", ("c d",)), ("e f", ("x",))], 2 / 3),  # a copy
        ([("a b", ("a",)), ("c d", ("c",)), ("e f", ("f",))], 2 / 3),  # the first word
        ([("a b", ("b",)), ("c d", ("d",)), ("e f", ("x",)), ("g h", ("h",))], 3 / 4),  # the last word
    ],
)
def test_the_best_constant_is_the_best_of_one_output_a_copy_and_either_end(pairs, best):
    assert best_constant(task("t", *pairs)) == pytest.approx(best)


def test_beyond_the_constant_is_the_share_of_what_it_leaves_over_all_tasks():
    half = task("half", ("a", ("yes",)), ("b", ("no",)), ("c", ("yes",)), ("d", ("no",)))
    solved = task("solved", ("a", ("yes",)), ("b", ("yes",)))
    rare = task("rare", *[(f"{i} x", (f"{i}",)) for i in range(2)], *[(f"{i} x", ("x y",)) for i in range(8)])
    tasks = [half, solved, rare]

    def model(prompts):
        return ["yes", "no", "yes", "yes", "no", "yes", "0", "1", *["x y"] * 4, *["?"] * 4]

    found = cross_task(model, tasks, only_input, exact_match)
    assert beyond_constant(found, tasks) == pytest.approx(((0.75 - 0.5) + (0.5 - 1) + (0.6 - 0.8)) / (0.5 + 0.0 + 0.2))


def test_further_strategies_count():
    one = task("one", ("a x", ("p",)), ("b y", ("q",)))
    tasks = [task("t", ("a w x", ("w",)), ("b v y", ("v",)), ("c u z", ("?",)))]

    def middle(instance):
        return instance.input.split()[1]

    assert best_constant(one, exact_match, [middle]) == 0.5
    assert best_constant(tasks[0]) == pytest.approx(1 / 3)
    assert best_constant(tasks[0], exact_match, [middle]) == pytest.approx(2 / 3)
    found = cross_task(lambda prompts: ["w", "x", "?"], tasks, only_input, exact_match)
    assert beyond_constant(found, tasks, exact_match, [middle]) == pytest.approx(0.0)
    assert beyond_constant(found, tasks) == pytest.approx(0.5)


def test_a_constant_answer_is_never_above_zero():
    tasks = [task(f"t{i}", *[(f"{j} w", (str(j * i % 3),)) for j in range(6)]) for i in range(1, 4)]
    for said in ("0", "1", "2"):
        kept = [each for each in tasks if best_constant(each) < 1]
        found = cross_task(lambda prompts, said=said: [said] * len(prompts), kept, only_input, exact_match)
        assert beyond_constant(found, kept) <= 0


def test_rouge_can_be_corrected_too_and_bad_input_is_told():
    one = task("one", ("a b c", ("a b",)), ("d e f", ("e f",)))
    constant = best_constant(one, rouge_l)
    found = cross_task(lambda prompts: ["a b", "e f"], [one], only_input, rouge_l)
    assert constant == pytest.approx(0.8)  # the copy
    assert beyond_constant(found, [one], rouge_l) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="the same tasks"):
        beyond_constant(found, [task("other", ("a", ("a",)))])
    with pytest.raises(ValueError, match="every task is solved"):
        beyond_constant(cross_task(echo, [task("t", ("a", ("a",)))], only_input), [task("t", ("a", ("a",)))])
    with pytest.raises(ValueError, match="'t' needs instances"):
        best_constant(task("t", ("a", ())))
