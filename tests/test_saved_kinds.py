"""Saved models of texts and graphs: loaded from the file alone they score as before, and answer in its form."""

import math

import pytest
import torch

import heldout
from heldout.problem import load_problem

from .problem.language_file import ADAPTERS, TEXT
from .problem.test_graphs import GRAPHS, NODES


def kept(tmp_path, text, method):
    """The file's problem, trained, saved and loaded again from the file alone."""
    file = tmp_path / "mine.py"
    file.write_text(text)
    problem = load_problem(file)
    fitted = problem.fit(heldout.methods.parse(method, problem.own_methods), seed=0)
    heldout.save(fitted, tmp_path / "kept", {"method": method})
    return problem, fitted, heldout.load(tmp_path / "kept", file)


@pytest.mark.parametrize("method", ["sam", "lines"])
@pytest.mark.parametrize("adapters", [False, True])
def test_a_language_model_is_kept_whole_scores_rows_of_text_and_answers_prompts(tmp_path, method, adapters):
    problem, fitted, again = kept(tmp_path, TEXT + ADAPTERS * adapters, method)
    for name, rows in problem.given.test.items():
        scores = again.evaluate(rows)
        assert scores["perplexity"] == pytest.approx(problem.score(fitted, problem.splits.test[name]), rel=1e-12)
        assert scores["perplexity"] == pytest.approx(math.exp(scores["loss"]), rel=1e-9)
    prompts = [row["prompt"] for row in problem.given.test["iid"]]
    answers = again.predict(prompts)
    tokenizer, longest = problem.language.tokenizer, problem.splits.train.longest_answer()
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        with torch.no_grad():
            said = fitted.module.generate(input_ids=ids, max_new_tokens=longest, do_sample=False)
        assert tokenizer.decode(said[0, ids.shape[1] :], skip_special_tokens=True).split() == answer.split()


@pytest.mark.parametrize("method", ["sam", "ema"])
def test_nodes_are_answered_for_in_the_graphs_of_the_file_and_in_new_ones(tmp_path, method):
    problem, fitted, again = kept(tmp_path, NODES, method)
    for name in ("same", "other"):
        given = problem.splits.test[name]
        graph, mask = given.graph, torch.zeros(90, dtype=torch.bool)
        mask[given.nodes] = True
        new = type(graph)(**vars(graph))  # loaded again, as a user's is
        expected = problem.score(fitted, given)
        assert again.evaluate((new, mask))["accuracy"] == pytest.approx(expected)
        outputs, targets = problem.outputs(fitted, given)
        torch.testing.assert_close(again.predict((new, mask)).cpu(), outputs)
        assert float((again.predict(new).argmax(1)[mask] == targets).double().mean()) == pytest.approx(expected)
    del new.y
    assert again.predict(new).shape == (90, 3)


def test_graphs_are_answered_for_one_by_one_and_many_at_once(tmp_path):
    problem, fitted, again = kept(tmp_path, GRAPHS, "sam")
    for name in ("iid", "larger"):
        graphs = problem.splits.test[name].graphs
        outputs, _ = problem.outputs(fitted, problem.splits.test[name])
        torch.testing.assert_close(again.predict(graphs), outputs)
        torch.testing.assert_close(again.predict(graphs[3]), outputs[3:4])
        scores = again.evaluate(graphs)
        assert scores["accuracy"] == pytest.approx(problem.score(fitted, problem.splits.test[name]))
