"""What methods are selected on."""

from pathlib import Path

import pytest
import torch

from heldout import Splits
from heldout.improve import made_shifts
from heldout.improve.selection import LEFT_OUT, leaves_out, leaving_out, selection_sets
from heldout.lm import word_tokenizer
from heldout.problem import Problem, Texts
from heldout.problem.texts import Language
from heldout.tasks import digits


class Guess(torch.nn.Module):
    """Answers whatever it is asked."""

    def forward(self, x):
        return torch.zeros(len(x), 10)


def problem(x, y, val, tests=("iid", "dark"), domains=None):
    splits = Splits(train=(x, y), val=val, test=dict.fromkeys(tests, (x, y)), domains=domains)
    return Problem(path=Path("mine.py"), make_model=Guess, given=splits, given_recipe={})


@pytest.fixture
def images():
    x, y = digits(size=16)
    return x[:40], y[:40]


def test_a_clean_validation_set_is_shifted_for_methods_that_are_to_be_robust(images):
    sets, warning = selection_sets(problem(*images, val=images), "both")
    assert list(sets) == ["val", "made: gaussian noise", "made: contrast", "made: blur"]
    assert "made from the validation data" in warning
    for dataset in sets.values():
        assert torch.equal(dataset.tensors[1], images[1])
    assert not torch.equal(sets["made: blur"].tensors[0], images[0])
    assert list(selection_sets(problem(*images, val=images), "shift")[0]) == list(sets)[1:]


def test_made_shifts_are_not_those_of_the_tests(images):
    tests = ("iid", "Gaussian noise", "contrast", "blur-2")
    sets, _ = selection_sets(problem(*images, val=images, tests=tests), "both")
    assert list(sets) == ["val", "made: rotation", "made: occlusion"]


@pytest.mark.parametrize("name", ["missing columns", "missing_columns", "Missing-Columns", "missing values"])
def test_no_shift_is_made_that_a_test_set_is_named_after_however_it_is_written(name):
    vectors = torch.utils.data.TensorDataset(torch.randn(8, 5), torch.arange(8) % 2)
    assert list(made_shifts(vectors, avoid=["iid", name])) == ["made: noise"]


@pytest.mark.parametrize("name", ["lower case", "lower_case", "lowercase", "Lower-case prompts"])
def test_prompts_are_not_made_lower_case_where_a_test_set_is(name):
    texts = Texts([("Which one", "two")] * 4, Language(word_tokenizer(["Which one two"])))
    assert list(made_shifts(texts, avoid=[name])) == ["made: typos"]
    assert list(made_shifts(texts, avoid=["typo prompts"])) == ["made: lower case"]


def test_short_names_tell_no_kind_of_shift():
    vectors = torch.utils.data.TensorDataset(torch.randn(8, 5), torch.arange(8) % 2)
    assert list(made_shifts(vectors, avoid=["o", "iid", "in", "-", ""])) == ["made: noise", "made: missing columns"]


def test_given_sets_and_the_given_distribution_are_left_as_they_are(images):
    named = {"given": images, "mine": images}
    assert selection_sets(problem(*images, val=named), "both")[1] is None
    assert list(selection_sets(problem(*images, val=images), "iid")[0]) == ["val"]
    assert list(selection_sets(problem(*images, val=images, tests=("iid",)), "both")[0]) == ["val"]


def test_where_nothing_can_be_made_it_is_said(images):
    flags = torch.rand(20, 7) > 0.5
    sets, warning = selection_sets(problem(flags, images[1][:20], val=(flags, images[1][:20])), "both")
    assert list(sets) == ["val"]
    assert "cannot be selected for robustness" in warning


def test_vectors_get_noise_and_missing_columns():
    x = torch.randn(200, 10, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 11)
    made = made_shifts(torch.utils.data.TensorDataset(x, torch.zeros(200)), avoid=[])
    noisy, holes = (dataset.tensors[0] for dataset in made.values())
    assert torch.allclose((noisy - x).std(0) / x.std(0), torch.full((10,), 0.5), atol=0.1)
    constant = holes.std(0) < 1e-6
    assert constant.sum() == 2
    assert torch.allclose(holes[:, ~constant], x[:, ~constant])


def test_training_domains_are_left_out_in_turn(images):
    domains = torch.arange(40) % 4
    given = problem(*images, val=images, domains=domains)
    sets, warning = selection_sets(given, "both")
    assert list(sets) == ["val", LEFT_OUT]
    assert "left out of training in turn" in warning
    assert list(selection_sets(given, "shift")[0]) == [LEFT_OUT]
    rest, out = leaving_out(given, 6)
    assert torch.equal(out.tensors[0], images[0][domains == 2])
    assert torch.equal(rest.splits.train.tensors[0], images[0][domains != 2])
    assert torch.equal(rest.splits.domains, domains[domains != 2])
    assert rest.kind.classes == given.kind.classes
    subset = torch.utils.data.Subset(torch.utils.data.TensorDataset(*images), range(40))
    again = Problem(
        Path("mine.py"), Guess, Splits(train=subset, val=images, test=given.splits.test, domains=domains), {}
    )
    rest, out = leaving_out(again, 0)
    assert (len(rest.splits.train), len(out)) == (30, 10)


def test_domains_are_not_left_out_where_nothing_is_gained(images):
    domains = torch.arange(40) % 4
    assert not leaves_out(problem(*images, val=images, domains=domains), "iid")
    assert not leaves_out(problem(*images, val={"a": images, "b": images}, domains=domains), "both")
    assert not leaves_out(problem(*images, val=images, tests=("iid",), domains=domains), "both")
    assert not leaves_out(problem(*images, val=images, domains=torch.arange(40) % 2), "both")


def test_texts_get_typos_and_are_truncated():
    tokens = torch.arange(1, 201).repeat(50, 1) + 1000 * torch.arange(50)[:, None]
    mask = torch.ones_like(tokens)
    mask[:, 100:], tokens[:, 100:] = 0, 0
    rows = [{"input_ids": t, "attention_mask": m, "labels": n % 2} for n, (t, m) in enumerate(zip(tokens, mask))]
    made = made_shifts(rows, avoid=["dark"])
    assert list(made) == ["made: typos", "made: truncation"]
    typos, short = (torch.stack([each[key] for each in made[name]]) for name, key in
                    (("made: typos", "input_ids"), ("made: truncation", "attention_mask")))  # fmt: skip
    changed = typos != tokens
    assert not changed[:, 100:].any()
    assert abs(changed[:, :100].float().mean() - 0.1) < 0.02
    assert set(typos[:, 3].tolist()) <= set(tokens[:, 3].tolist())
    assert short.sum(1).tolist() == [50] * 50
    assert short[:, :50].all()
    assert made["made: typos"][3]["labels"] == 1
    plain = made_shifts(torch.utils.data.TensorDataset(tokens, torch.zeros(50)), avoid=["typos"])
    assert plain == {}


def test_typos_neither_change_padding_nor_bring_it():
    tokens = torch.arange(1, 41).repeat(60, 1) + 1000 * torch.arange(1, 61)[:, None]
    mask = (torch.arange(40) < torch.arange(60)[:, None] % 30 + 10).long()
    tokens[mask == 0] = 0
    rows = [{"input_ids": t, "attention_mask": m, "labels": 0} for t, m in zip(tokens, mask, strict=True)]
    typos = torch.stack([row["input_ids"] for row in made_shifts(rows, avoid=["truncation"])["made: typos"]])
    assert torch.equal(typos == 0, mask == 0)
    assert 0.05 < (typos != tokens)[mask > 0].float().mean() < 0.11


def test_prompts_of_texts_get_typos_and_lower_case_and_keep_their_completions():
    prompt = "Question: Which ANIMAL, of these, lives under water?\nAnswer:"
    words = word_tokenizer([prompt, prompt.lower(), "a Fish"])
    texts = Texts([{"prompt": prompt, "completion": "a Fish"}] * 60, Language(words))
    made = made_shifts(texts, avoid=["iid"])
    assert list(made) == ["made: typos", "made: lower case"]
    for each in made.values():
        assert {row["completion"] for row in each.rows} == {"a Fish"}
    assert made["made: lower case"].rows[0]["prompt"] == "question which animal of these lives under water?\nanswer:"
    typos = [row["prompt"] for row in made["made: typos"].rows]
    assert all(sorted(each) == sorted(prompt) for each in typos)
    wrong = sum(a != b for each in typos for a, b in zip(each.split(), prompt.split(), strict=True))
    assert abs(wrong / (60 * 7) - 0.1) < 0.06  # seven words of four letters and more
    for each in typos:
        for word, plain in zip(each.split(), prompt.split(), strict=True):
            letters, before = word.strip(",:?"), plain.strip(",:?")
            assert (letters[0], letters[-1]) == (before[0], before[-1])  # only inner letters change places
    rows = [{"prompt": f"Which {i}", "completion": "a Fish"} for i in range(6)]
    half = made_shifts(torch.utils.data.Subset(Texts(rows, Language(words)), [3, 5]), avoid=["typos"])
    assert [each["prompt"] for each in half["made: lower case"].rows] == ["which 3", "which 5"]


def test_a_shift_that_changes_no_prompt_is_none():
    plain = Texts([("a big cat", "two")] * 60, Language(word_tokenizer(["a big cat two"])))
    assert made_shifts(plain, avoid=[]) == {}  # small letters, and no word of four letters


def test_texts_without_prompts_and_prompts_that_grow_too_long_stay():
    words = word_tokenizer(["one two three"])
    assert made_shifts(Texts(["one two three"] * 4, Language(words)), avoid=[]) == {}
    texts = Texts([("one two", "three")] * 4, Language(words, max_length=4))
    assert texts.with_prompts(lambda prompt: f"{prompt} {prompt}").rows == texts.rows
    assert texts.with_prompts(lambda prompt: "two").rows == [("two", "three")] * 4
    said = Texts([{"messages": [{"role": "user", "content": "One"}, {"role": "assistant", "content": "Two"}]}], chat())
    changed = said.with_prompts(str.lower).rows[0]["messages"]
    assert [each["content"] for each in changed] == ["one", "Two"]


def chat() -> Language:
    words = word_tokenizer(["One Two one two"])
    words.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    return Language(words)
