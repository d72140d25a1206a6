"""Scores of tasks that a model was not trained on."""

from types import SimpleNamespace as Task

import pytest

from heldout.language_model import Completion
from heldout.lm import TransformersLM, tiny_bart, tiny_llama, word_tokenizer
from heldout.measure import cross_task, exact_match, rouge_l


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
    with pytest.raises(TypeError, match="an LM or a function of prompts, got int"):
        cross_task(3, [fine], only_input)
