"""A file whose data are texts is a problem like every other: loaded, checked, trained on, measured."""

import itertools
import math

import pytest
import torch

from heldout.methods import parse
from heldout.problem import ProblemError, check_problem, load_problem
from heldout.problem.language import is_language
from tests.problem.language_file import ADAPTERS, TEXT

names = itertools.count()


@pytest.fixture
def write(tmp_path):
    def write(text):
        file = tmp_path / f"language_{next(names)}.py"
        file.write_text(text)
        return file

    return write


@pytest.fixture
def problem(write):
    return load_problem(write(TEXT))


@pytest.mark.parametrize(
    ("train", "told"),
    [
        (["a text"], True),
        ([{"prompt": "a", "completion": "b"}], True),
        ([{"messages": [{"role": "user", "content": "a"}]}], True),
        ([("a", "b")], True),
        ([{"text": "a"}], True),
        ([{"text": "a", "label": 1}], False),
        ([("a", 1)], False),
        ([(torch.zeros(3), 1)], False),
        ([{"input_ids": torch.zeros(3), "labels": 1}], False),
    ],
)
def test_texts_without_labels_are_told_from_other_data(train, told):
    assert is_language({}, train) is told
    assert is_language({"kind": "language"}, train)
    assert not is_language({"kind": "classification"}, train)


def test_a_good_file_is_known_for_what_it_is(problem):
    assert check_problem(problem) == []
    assert (problem.kind.name, problem.metric, problem.maximise) == ("language", "perplexity", False)
    assert not problem.as_given
    assert problem.splits.initial_state is not None


def test_what_is_trained_on_gets_more_likely_and_scores_agree(problem):
    fitted = problem.fit(None, seed=0, epochs=4, rate=3)
    before = problem.judge(*problem.outputs(problem.model(0), problem.splits.val))
    after = problem.score(fitted, problem.splits.val)
    assert after < 0.7 * before
    outputs, targets = problem.outputs(fitted, problem.splits.val)
    assert math.exp(problem.kind.loss(outputs, targets)) == pytest.approx(after)
    assert problem.kind.losses(outputs, targets).shape == (6,)
    assert 0 <= problem.kind.score("token_accuracy", outputs, targets) <= 1
    assert after == pytest.approx(problem.judge(*fitted.outputs(problem.splits.val)), rel=1e-4)


def test_training_is_that_of_sft(write):
    """Four steps on all rows at once: the weights agree with those that trl's trainer gives."""
    pytest.importorskip("trl")
    from heldout.train import sft

    problem = load_problem(write(TEXT + "\nepochs = 4\nbatch_size = 24\nschedule = 'constant'\n"))
    problem_weights = problem.fit(None, seed=0).module.state_dict()
    tuned = sft(problem.make_model(), problem.language.tokenizer, problem.splits.train.rows, steps=4, batch_size=24,
                lr=3e-3, schedule="constant", warmup=0, weight_decay=0.01, device="cpu")  # fmt: skip
    for name, value in tuned.model.state_dict().items():
        torch.testing.assert_close(problem_weights[name], value, rtol=1e-3, atol=2e-4)  # Adam divides by small numbers


def test_judged_answers_are_a_metric(write):
    problem = load_problem(write(TEXT + "\nmetric = 'judged'\njudge = 'exact'\nepochs = 40\n"))
    assert check_problem(problem) == []
    assert problem.maximise
    assert problem.judge(*problem.outputs(problem.model(0), problem.splits.val)) < 0.5
    assert problem.score(problem.fit(None, seed=0, rate=3), problem.splits.val) > 0.8


def test_a_judge_of_ones_own_sees_prompt_answer_and_row(write):
    text = "\nmetric = 'judged'\ndef judge(prompt, answer, example):\n    return len(example['completion'])\n"
    problem = load_problem(write(TEXT + text))
    check_problem(problem)
    assert problem.judge(*problem.outputs(problem.model(0), problem.splits.val)) == pytest.approx((7 + 5 + 5) / 3)


def test_a_folder_is_a_model_and_a_tokenizer(write, tmp_path, problem):
    problem.make_model().save_pretrained(tmp_path / "kept")
    problem.language.tokenizer.save_pretrained(tmp_path / "kept")
    other = load_problem(write(TEXT + f"\ntokenizer = {str(tmp_path / 'kept')!r}\ndef model(): return tokenizer\n"))
    assert check_problem(other) == []
    assert other.splits.initial_state is not None


def test_adapters_are_trained_alone(write):
    problem = load_problem(write(TEXT + ADAPTERS))
    assert check_problem(problem) == []
    before, fitted = problem.model(0).state_dict(), problem.fit(None, seed=0)
    for name, value in fitted.module.state_dict().items():
        assert ("lora_" in name) or torch.equal(value, before[name])
    assert problem.splits.initial_state is None


def test_cut_rows_and_shared_rows_are_said(write):
    text = TEXT.replace('val=rows(("green",), ("sees",))', 'val=rows(("red",), ("sees",))')
    problem = load_problem(write(text + "\nmax_length = 8\ntruncate = True\n"))
    warnings = check_problem(problem)
    assert any("12 of 24 rows of train are cut to 8 tokens" in each for each in warnings)
    assert any("val shares 6 of its 6 rows with train" in each for each in warnings)


def test_packed_rows_train_as_well(write):
    problem = load_problem(write(TEXT + "\npacking = True\nmax_length = 40\nbatch_size = 2\n"))
    assert check_problem(problem) == []
    assert len(problem.splits.train) < 12 < len(problem.splits.train.rows)
    before = problem.judge(*problem.outputs(problem.model(0), problem.splits.val))
    assert problem.score(problem.fit(parse("sam"), seed=0), problem.splits.val) < before


BAD = [
    ("tokenizer = None", "must define tokenizer, as its data are texts"),
    ("tokenizer = 3", "must be one of transformers with an end token"),
    ("loss = torch.nn.CrossEntropyLoss()", "leave out loss"),
    ("metric = 'accuracy'", 'metric of a language problem must be "perplexity"'),
    ("metric = lambda outputs, targets: 0.0", "define judge"),
    ("metric = 'judged'", 'metric = "judged" needs judge'),
    ("judge = 'fluent'", "judge must be a function, 'exact' or 'number'"),
    ("max_length = 5", "train: row 0 has 8 tokens, more than the 5 .* or set truncate = True"),
    ("max_length = 'long'", "max_length must be an integer"),
    ("def model(): return tiny_llama(word_tokenizer(['a']), dim=16, layers=1)", "not its tokenizer"),
    ("def model(): return torch.nn.Linear(2, 2)", "causal language model of transformers"),
    ("def model(): return 3", "language model or its folder, got int"),
    ("def model(): return 'nowhere/at/all'", "model\\(\\) fails"),
    (
        "metric, judge = 'judged', 'exact'\nrows = lambda *a: ['the red cat .', 'the dog .']",
        "needs a prompt in each row",
    ),
    ("rows = lambda *a: ['the', {'prompt': 'the red', 'completion': 3}]", "train: row 1"),
]


@pytest.mark.parametrize(("text", "message"), BAD)
def test_what_is_wrong_is_told_in_one_line(write, text, message):
    with pytest.raises(ProblemError, match=message):
        check_problem(load_problem(write(f"{TEXT}\n{text}\n")))


def test_shifts_are_made_of_prompts_and_of_nothing_else(problem, write):
    from heldout.improve.selection import selection_sets

    found, warning = selection_sets(problem, "both")
    assert list(found) == ["val", "made: typos", "made: truncation"]  # its prompts are in lower case
    assert "made from the validation data" in warning
    upper = load_problem(write(TEXT.replace('f"the {colour}', 'f"The {colour}')))
    assert list(selection_sets(upper, "both")[0]) == ["val", "made: typos", "made: lower case", "made: truncation"]
    plain = load_problem(write(f"{TEXT}\nrows = lambda *a: ['the red cat .', 'the dog .']\n"))
    found, warning = selection_sets(plain, "both")
    assert list(found) == ["val"]
    assert "cannot be selected for robustness" in warning
