"""Texts are padded, scored and packed without a change of what is minimised."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import Subset

from heldout.data import batches, gather
from heldout.lm import tiny_llama, word_tokenizer
from heldout.method import forward
from heldout.problem.texts import (
    IGNORED,
    Language,
    Texts,
    check_packing,
    judged_answers,
    outputs_by_length,
    scored,
    sums_loss,
    token_sums,
)
from heldout.train import encode_rows, weighted_nll

WORDS = "a b c d e f g h"
ROWS = [("a b", "c d"), ("a", "b"), ("c d e f", "g h a b c"), ("h", "g f e"), ("b c d", "a")]


@pytest.fixture
def tokenizer():
    return word_tokenizer([WORDS])


@pytest.fixture
def model(tokenizer):
    return scored(tiny_llama(tokenizer, dim=16, layers=2, seed=0).double())


def predictor(model):
    return lambda inputs: forward(model, inputs)


def test_the_objective_is_the_loss_of_sft(model, tokenizer):
    texts = Texts(ROWS, Language(tokenizer))
    inputs, counts = gather(texts, torch.arange(len(ROWS)))
    encoded = encode_rows(ROWS, tokenizer)
    width = max(len(row["input_ids"]) for row in encoded)
    ids = torch.tensor([row["input_ids"] + [0] * (width - len(row["input_ids"])) for row in encoded])
    labels = torch.tensor([row["labels"] + [IGNORED] * (width - len(row["labels"])) for row in encoded])
    mask = torch.tensor([[1.0] * len(r["input_ids"]) + [0.0] * (width - len(r["input_ids"])) for r in encoded])
    logits = model(input_ids=ids, attention_mask=mask).logits
    expected = weighted_nll(logits[:, :-1], labels[:, 1:], torch.ones(labels[:, 1:].shape))
    torch.testing.assert_close(sums_loss(model(**inputs), counts), expected.double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_an_evaluation_gives_one_value_whatever_the_batch(model, tokenizer, size, monkeypatch):
    texts = Texts(ROWS, Language(tokenizer))
    one = torch.cat([forward(model, gather(texts, torch.tensor([i]))[0]) for i in range(len(ROWS))])
    plain = torch.cat([forward(model, inputs) for inputs, _, _ in batches(texts, size)])
    monkeypatch.setattr("heldout.problem.texts.TOKENS_AT_ONCE", 9 * size)
    sorted_ones, counts = outputs_by_length(predictor(model), texts)
    for found in (plain, sorted_ones):
        torch.testing.assert_close(found, one, rtol=1e-12, atol=1e-12)
    assert counts[:, 0].tolist() == [3, 2, 6, 4, 2]


def test_a_subset_is_evaluated_in_its_own_order(model, tokenizer):
    texts = Texts(ROWS, Language(tokenizer))
    whole, _ = outputs_by_length(predictor(model), texts)
    part, counts = outputs_by_length(predictor(model), Subset(texts, [3, 0]))
    torch.testing.assert_close(part, whole[[3, 0]], rtol=1e-12, atol=0)
    assert counts[:, 0].tolist() == [4, 3]


def test_only_completions_count_and_every_token_of_a_text_but_the_first(tokenizer):
    assert Texts(["a b c"], Language(tokenizer)).tokens == 3  # b, c and the end
    assert Texts([{"prompt": "a b c", "completion": "d"}], Language(tokenizer)).tokens == 2


def test_messages_go_through_the_chat_template(tokenizer):
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} h {% endfor %}"
    messages = [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "c"}]
    texts = Texts([{"messages": messages}], Language(tokenizer))
    read = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    assert texts.encoded[0]["input_ids"].tolist()[: len(read)] == read
    assert texts.pairs == [(messages[:1], "c")]


def test_a_beginning_token_that_a_text_brings_is_not_doubled():
    tokenizer = word_tokenizer([f"{WORDS} <bos>"])
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    begin = tokenizer.bos_token_id
    call = type(tokenizer).__call__

    class Beginning(type(tokenizer)):
        def __call__(self, text, add_special_tokens=True, **options):
            found = call(self, text, add_special_tokens=False, **options)
            if add_special_tokens:
                found["input_ids"] = [begin, *found["input_ids"]]
            return found

    tokenizer.__class__ = Beginning
    assert tokenizer("a")["input_ids"][:1] == [begin]
    for row in ("<bos>a b", {"prompt": "<bos>a", "completion": "b"}, "a b"):
        assert Texts([row], Language(tokenizer)).encoded[0]["input_ids"].tolist().count(begin) == 1


def test_longer_rows_are_an_error_or_cut_and_counted(tokenizer):
    with pytest.raises(ValueError, match="row 2 has 10 tokens, more than the 6"):
        Texts(ROWS, Language(tokenizer, max_length=6))
    texts = Texts(ROWS, Language(tokenizer, max_length=6, truncate=True))
    assert texts.truncated == 1
    assert max(texts.lengths) == 6


def test_weights_of_rows_multiply_their_tokens(model, tokenizer):
    rows = [{"prompt": p, "completion": c, "weight": 2.0 * (i == 0)} for i, (p, c) in enumerate(ROWS[:2])]
    texts, plain = Texts(rows, Language(tokenizer)), Texts(ROWS[:2], Language(tokenizer))
    inputs, _ = gather(texts, torch.arange(2))
    expected, _ = gather(plain, torch.arange(2))
    torch.testing.assert_close(
        model(**inputs)[:, 0], model(**expected)[:, 0] * torch.tensor([2.0, 0.0]), rtol=1e-6, atol=0
    )


def test_packed_rows_have_the_likelihood_of_the_same_rows_apart(model, tokenizer):
    apart = Texts(ROWS, Language(tokenizer, max_length=12))
    packed = Texts(ROWS, apart.language, packed=True)
    assert len(packed) < len(apart)
    assert packed.tokens == apart.tokens
    sums = [outputs_by_length(predictor(model), each)[0].sum(0) for each in (apart, packed)]
    torch.testing.assert_close(*sums, rtol=1e-10, atol=0)
    check_packing(model, packed)


def test_packing_is_refused_where_rows_of_a_pack_see_each_other(tokenizer):
    class Leaky(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.out = torch.nn.Linear(1, len(tokenizer))

        def forward(self, input_ids, attention_mask=None, position_ids=None):
            return {"logits": self.out(input_ids.float().cumsum(1)[..., None])}

    texts = Texts(ROWS, Language(tokenizer, max_length=30), packed=True)
    with pytest.raises(ValueError, match="rows of a pack see each other"):
        check_packing(scored(Leaky()), texts)


def test_a_scored_model_generates_and_answers_as_ever(model, tokenizer):
    plain = tiny_llama(tokenizer, dim=16, layers=2, seed=0).double()
    ids = torch.tensor([[4, 5, 6]])
    torch.testing.assert_close(model(input_ids=ids).logits, plain(input_ids=ids).logits)
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert model.generate(ids, max_new_tokens=3, do_sample=False).equal(
        plain.generate(ids, max_new_tokens=3, do_sample=False)
    )
    twice = scored(copy.deepcopy(model))
    texts = Texts(ROWS, Language(tokenizer))
    inputs, _ = gather(texts, torch.arange(2))
    torch.testing.assert_close(twice(**inputs), model(**inputs))


def test_sums_agree_with_cross_entropy():
    logits = torch.randn(3, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wanted = torch.randint(0, 7, (3, 5), generator=torch.Generator().manual_seed(1))
    wanted[0, 1] = wanted[2, 2:] = IGNORED
    sums = token_sums(logits, wanted)
    for row in range(3):
        expected = F.cross_entropy(logits[row, :-1], wanted[row, 1:], reduction="sum", ignore_index=IGNORED)
        torch.testing.assert_close(-sums[row, 0], expected)
    assert sums[:, 1].sum() == (logits[:, :-1].argmax(2) == wanted[:, 1:]).sum()


def test_answers_are_judged_in_the_order_of_the_rows(tokenizer):
    model = tiny_llama(tokenizer, dim=16, layers=1, seed=0)
    seen = []

    def judge(prompt, answer, example):
        seen.append((prompt, example))
        return len(seen)

    texts = Texts(ROWS, Language(tokenizer, judge=judge, max_new_tokens=2))
    scores = judged_answers(model, Subset(texts, [2, 0]))
    assert seen == [("c d e f", ROWS[2]), ("a b", ROWS[0])]
    assert scores.tolist() == [1, 2]
    with pytest.raises(ValueError, match="need judge"):
        judged_answers(model, Texts(ROWS, Language(tokenizer)))
    with pytest.raises(ValueError, match="judge gives nan"):
        judged_answers(model, Texts(ROWS, Language(tokenizer, judge=lambda *_: float("nan"), max_new_tokens=1)))
