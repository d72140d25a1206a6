"""Shifts that are made of validation data: what they change, by how much, and what they leave as it is."""

import pytest
import torch
from torch.utils.data import Subset, TensorDataset

from heldout.improve import made_shifts
from heldout.improve.shifts import PICTURES, SERIES, STRENGTHS
from heldout.lm import word_tokenizer
from heldout.problem import Texts
from heldout.problem.texts import Language
from heldout.tasks import SHIFTS, digits

THIRDS = [slice(place, None, 3) for place in range(3)]


def made(inputs, avoid=(), targets=None, seed=0):
    targets = torch.arange(len(inputs)) if targets is None else targets
    found = made_shifts(TensorDataset(inputs, targets), avoid=list(avoid), seed=seed)
    return {name.removeprefix("made: "): each.tensors[0] for name, each in found.items()}


def shift(values, kind, seed=0):
    strengths = torch.tensor(STRENGTHS)[torch.arange(len(values)) % 3]
    return SERIES[kind](values, strengths, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ["missing columns", "missing_columns", "Missing-Columns", "missing values"])
def test_no_shift_is_made_that_a_test_set_is_named_after_however_it_is_written(name):
    vectors = TensorDataset(torch.randn(8, 5), torch.arange(8) % 2)
    assert list(made_shifts(vectors, avoid=["iid", name])) == ["made: noise", "made: subgroup"]


@pytest.mark.parametrize("name", ["lower case", "lower_case", "lowercase", "Lower-case prompts"])
def test_prompts_are_not_made_lower_case_where_a_test_set_is(name):
    texts = Texts([("Which one", "two")] * 4, Language(word_tokenizer(["Which one two"])))
    assert list(made_shifts(texts, avoid=[name])) == ["made: typos", "made: truncation"]
    assert list(made_shifts(texts, avoid=["typo prompts"])) == ["made: lower case", "made: truncation"]


def test_short_names_tell_no_kind_of_shift():
    vectors = TensorDataset(torch.randn(8, 5), torch.arange(8) % 2)
    assert list(made_shifts(vectors, avoid=["o", "iid", "in", "-", ""])) == [
        "made: noise", "made: missing columns", "made: subgroup",
    ]  # fmt: skip


def test_vectors_get_noise_and_missing_columns_at_three_strengths():
    x = torch.randn(600, 20, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 21) + 5
    found = made(x)
    assert list(found) == ["noise", "missing columns", "subgroup"]
    for part, strength in zip(THIRDS, STRENGTHS, strict=True):
        spread = (found["noise"] - x)[part].std(0) / x.std(0)
        torch.testing.assert_close(spread, torch.full((20,), 0.5 * strength), atol=0.1 * strength, rtol=0)
        gone = (found["missing columns"][part] == x.mean(0)).all(0)
        assert gone.sum() == round(0.2 * strength * 20)
        assert torch.equal(found["missing columns"][part][:, ~gone], x[part][:, ~gone])
    x[:, 3] = 1.0
    assert torch.equal(made(x)["noise"][:, 3], x[:, 3])  # nothing is known of how it could vary
    alone = made(x[:, :1])
    assert list(alone) == ["noise", "subgroup", "missing values"]


def test_missing_values_are_each_columns_mean():
    x = torch.randn(3000, 4, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 5) + 3
    found = made(x, avoid=["noise"])
    assert list(found) == ["missing columns", "subgroup", "missing values"]
    hit = found["missing values"] != x
    assert torch.equal(found["missing values"], torch.where(hit, x.mean(0), x))
    shares = torch.stack([hit[part].float().mean(0) for part in THIRDS])
    torch.testing.assert_close(shares, torch.tensor([[0.1], [0.2], [0.3]]).expand(3, 4), atol=0.04, rtol=0)


def test_a_subgroup_lies_along_the_first_principal_direction_and_keeps_targets():
    g = torch.Generator().manual_seed(0)
    factor = torch.randn(6000, 1, generator=g)
    x = torch.cat([factor, 2 * factor, -factor, torch.randn(6000, 2, generator=g)], 1)
    x[:, :3] += 0.3 * torch.randn(6000, 3, generator=g)
    x = 100 * x + torch.arange(5) * 50
    inputs, rows = made_shifts(TensorDataset(x, torch.arange(6000)), avoid=[])["made: subgroup"].tensors
    assert torch.equal(inputs, x[rows])
    z = (x - x.mean(0)) / x.std(0)
    moved = torch.stack([z[rows[part]].mean(0) for part in THIRDS])
    along = moved[:, :3].abs().mean(1)  # of a normal distribution, by the tilt itself: 0.5, 1 and 1.5
    torch.testing.assert_close(along, torch.tensor(STRENGTHS), atol=0.15, rtol=0)
    assert moved[:, 3:].abs().max() < 0.15
    assert (moved[:, 0].sign() == moved[:, 1].sign()).all()
    assert (moved[:, 0].sign() == -moved[:, 2].sign()).all()


def test_a_subgroup_does_not_hang_on_one_example_or_on_the_order_of_equal_ones():
    x = torch.randn(300, 3, generator=torch.Generator().manual_seed(0))
    x[0] = 1e6
    rows = made_shifts(TensorDataset(x, torch.arange(300)), avoid=[])["made: subgroup"].tensors[1]
    assert rows.unique(return_counts=True)[1].max() < 20
    assert "subgroup" not in made(torch.ones(9, 4))
    flags = (torch.arange(400)[:, None] % 2).float().expand(-1, 2).contiguous()
    rows = made_shifts(TensorDataset(flags, torch.arange(400)), avoid=[])["made: subgroup"].tensors[1]
    ones = rows[rows % 2 == 1]  # the more frequent ones: any of them, wherever it stands
    assert len(ones) > 250
    assert abs((ones < 200).float().mean() - 0.5) < 0.12


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_are_shifted_in_their_own_scale(channels):
    x = digits(size=16)[0][:30].expand(-1, channels, -1, -1).contiguous()
    x[0, :, 0, 0], x[0, :, 0, 1] = 0.0, 1.0  # black and white occur in each channel
    plain = made(x)
    assert list(plain) == ["gaussian noise", "contrast", "blur"]
    for part, (place, strength) in zip(THIRDS, enumerate(STRENGTHS), strict=True):
        torch.testing.assert_close(
            plain["blur"][part], SHIFTS["blur"](x[part], strength * PICTURES["blur"], seed=place)
        )
    mean, std = (
        torch.tensor([0.49, 0.45, 0.41])[:channels, None, None],
        torch.tensor([0.2, 0.25, 0.3])[:channels, None, None],
    )
    for name, other in made((x - mean) / std).items():
        torch.testing.assert_close(other * std + mean, plain[name], atol=1e-5, rtol=0)
    for name, other in made(255 * x).items():
        torch.testing.assert_close(other / 255, plain[name], atol=1e-5, rtol=0)
    for name, other in made((255 * x).round().byte()).items():
        assert other.dtype == torch.uint8
        torch.testing.assert_close(other.float() / 255, plain[name], atol=3 / 255, rtol=0)
    assert torch.equal(made(x[:, 0])["contrast"], made(x[:, :1])["contrast"][:, 0])


def test_what_is_covered_has_the_pictures_own_black():
    x = torch.full((3, 3, 8, 8), 2.0)
    x[0, :, 0, 0] = torch.tensor([-1.0, -2.0, -3.0])
    found = made(x, avoid=["gaussian noise", "blur"])
    assert list(found) == ["contrast", "rotation", "occlusion"]
    assert [sorted(found["occlusion"][1:, channel].unique().tolist()) for channel in range(3)] == [
        [-1.0, 2.0], [-2.0, 2.0], [-3.0, 2.0],
    ]  # fmt: skip


def test_pictures_inside_a_dict_are_shifted_beside_what_stands_there():
    x = digits(size=16)[0][:6]
    rows = [{"pixel_values": image, "mask": torch.tensor(n), "labels": n % 2} for n, image in enumerate(x)]
    found = made_shifts(rows, avoid=[])
    assert list(found) == ["made: gaussian noise", "made: contrast", "made: blur"]
    torch.testing.assert_close(found["made: blur"][4]["pixel_values"], made(x)["blur"][4])
    assert (int(found["made: blur"][4]["mask"]), int(found["made: blur"][4]["labels"])) == (4, 0)


def series(count=600, channels=3, length=40):
    scale = torch.arange(1.0, channels + 1)[:, None]
    return torch.randn(count, channels, length, generator=torch.Generator().manual_seed(0)) * scale + 10 * scale


def test_series_get_noise_drift_and_missing_stretches_at_three_strengths():
    x = series()
    found = made(x)
    assert list(found) == ["noise", "drift", "missing stretches"]
    assert list(made(x, avoid=["sensor noise", "drift"])) == ["missing stretches", "gain", "time shift"]
    for part, strength in zip(THIRDS, STRENGTHS, strict=True):
        spread = (found["noise"] - x)[part].std((0, 2)) / x.std((0, 2))
        torch.testing.assert_close(spread, torch.full((3,), 0.5 * strength), atol=0.03, rtol=0)
        ramp = ((found["drift"] - x)[part] / x.std((0, 2), correction=0)[:, None]).abs()
        torch.testing.assert_close(ramp, (strength * torch.linspace(0, 1, 40)).expand(200, 3, 40), atol=1e-4, rtol=0)
        gone = found["missing stretches"][part] != x[part]
        assert set(gone.sum(2).flatten().tolist()) == {round(0.2 * strength * 40)}
        assert (gone.diff(dim=2).sum(2) <= 2).all()  # one stretch
        torch.testing.assert_close(
            found["missing stretches"][part][gone], x.mean((0, 2))[:, None].expand(200, 3, 40)[gone]
        )
    signs = (found["drift"] - x)[:, :, -1].sign().mean(0)
    assert signs.abs().max() < 0.15


def test_series_are_stretched_about_their_means_and_moved_in_time():
    x = series()
    factor = (shift(x, "gain") - x.mean((0, 2))[:, None]) / (x - x.mean((0, 2))[:, None])
    for part, strength in zip(THIRDS, STRENGTHS, strict=True):
        middle = factor[part].flatten(1).median(1).values
        expected = torch.tensor([1 + 0.5 * strength, 1 / (1 + 0.5 * strength)])
        assert (middle[:, None] - expected).abs().min(1).values.max() < 1e-3
        assert 0.35 < (middle > 1).float().mean() < 0.65
    late = shift(x, "time shift")
    for number, lag in ((0, 2), (1, 4), (2, 6)):
        after = (
            torch.equal(late[number][:, lag:], x[number][:, :-lag])
            and (late[number][:, :lag] == x[number][:, :1]).all()
        )
        before = torch.equal(late[number][:, :-lag], x[number][:, lag:])
        assert after or before
        assert not torch.equal(late[number], x[number])


@pytest.mark.parametrize("kind", list(SERIES))
def test_the_longer_axis_of_series_is_time(kind):
    x = series(9)
    torch.testing.assert_close(shift(x.mT.contiguous(), kind), shift(x, kind).mT)


def test_what_is_drawn_comes_from_the_seed_and_a_kind_is_the_same_whatever_else_is_made():
    x = torch.randn(30, 5)
    first, again, other = made(x), made(x), made(x, seed=1)
    for kind in first:
        assert torch.equal(first[kind], again[kind])
        assert not torch.equal(first[kind], other[kind])
    assert torch.equal(made(x, avoid=["noise"])["subgroup"], first["subgroup"])


@pytest.mark.parametrize("inputs", [torch.zeros(9, 4, 4, 8, 8), torch.zeros(9, 4, dtype=torch.bool), torch.zeros(9),
                                    torch.zeros(9, 5, 8, 8)])  # fmt: skip
def test_of_other_inputs_nothing_is_made(inputs):
    assert made(inputs) == {}


@pytest.mark.parametrize("inputs", [torch.rand(1, 1, 8, 8), torch.randn(2, 3, 9), torch.randn(1, 3), torch.ones(4, 2)])
def test_few_or_constant_examples_stay_finite(inputs):
    found = made(inputs)
    assert "noise" in " ".join(found)
    assert all(each.isfinite().all() and each.shape == inputs.shape for each in found.values())


def test_texts_get_typos_and_are_truncated():
    tokens = torch.arange(1, 201).repeat(50, 1) + 1000 * torch.arange(50)[:, None]
    mask = torch.ones_like(tokens)
    mask[:, 100:], tokens[:, 100:] = 0, 0
    rows = [{"input_ids": t, "attention_mask": m, "labels": n % 2} for n, (t, m) in enumerate(zip(tokens, mask))]
    found = made_shifts(rows, avoid=["dark"])
    assert list(found) == ["made: typos", "made: truncation"]
    typos, short = (torch.stack([each[key] for each in found[name]]) for name, key in
                    (("made: typos", "input_ids"), ("made: truncation", "attention_mask")))  # fmt: skip
    changed = typos != tokens
    assert not changed[:, 100:].any()
    shares = torch.stack([changed[part, :100].float().mean() for part in THIRDS])
    torch.testing.assert_close(shares, torch.tensor([0.05, 0.1, 0.15]), atol=0.02, rtol=0)
    assert set(typos[:, 3].tolist()) <= set(tokens[:, 3].tolist())
    assert short.sum(1).tolist() == [75, 50, 25] * 16 + [75, 50]
    assert short[:, :25].all()
    assert found["made: typos"][3]["labels"] == 1
    plain = made_shifts(TensorDataset(tokens, torch.zeros(50)), avoid=["typos"])
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
    assert list(made) == ["made: typos", "made: lower case", "made: truncation"]
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
    half = made_shifts(Subset(Texts(rows, Language(words)), [3, 5]), avoid=["typos"])
    assert [each["prompt"] for each in half["made: lower case"].rows] == ["which 3", "which 5"]


def test_a_shift_that_changes_no_prompt_is_none():
    plain = Texts([("cat", "two")] * 60, Language(word_tokenizer(["cat two"])))
    assert made_shifts(plain, avoid=[]) == {}  # small letters, one word, and none of four letters


def test_a_share_of_a_prompts_words_is_missing_at_its_beginning():
    prompt = "one two  three four five\nsix seven eight"
    texts = Texts([(prompt, "one")] * 4 + [("one", "two")], Language(word_tokenizer([prompt])))
    cut = made_shifts(texts, avoid=["typos", "lower case"])["made: truncation"]
    assert [row[0] for row in cut.rows] == [
        "two  three four five\nsix seven eight", "three four five\nsix seven eight", "four five\nsix seven eight",
        "two  three four five\nsix seven eight", "one",
    ]  # fmt: skip
    assert [row[1] for row in cut.rows] == ["one"] * 4 + ["two"]


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
