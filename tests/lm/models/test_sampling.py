"""Samples from few tokens, and without repetition."""

from __future__ import annotations

import pytest

from heldout.lm import SamplingLM, TransformersLM, tiny_llama, word_tokenizer

WORDS = [f"w{i}" for i in range(40)]
HEADER = " ".join(WORDS[:20])
PROMPTS = [f"{HEADER} w3", f"{HEADER} w4 w5 w6", f"{HEADER} w7 w8"]


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer([" ".join(WORDS)])


def test_sampling_from_the_one_most_likely_token_is_greedy(tokenizer):
    lm = SamplingLM(tiny_llama(tokenizer, dim=32, layers=2, seed=0), tokenizer)
    greedy = [row[0].text for row in lm.generate(PROMPTS, max_tokens=6)]
    assert [row[0].text for row in lm.generate(PROMPTS, temperature=5.0, top_k=1, max_tokens=6, seed=3)] == greedy
    assert [row[0].text for row in lm.generate(PROMPTS, temperature=5.0, max_tokens=6, seed=3)] != greedy


def test_a_penalty_on_repetition_writes_more_different_words(tokenizer):
    lm = SamplingLM(tiny_llama(tokenizer, dim=32, layers=2, seed=0), tokenizer)
    options = {"max_tokens": 8, "temperature": 0.5, "seed": 1}
    often = lm.generate(["w3 w4"], **options)[0][0].text.split()
    once = lm.generate(["w3 w4"], **options, repetition_penalty=1e6)[0][0].text.split()
    assert len(set(often)) < len(set(once))
    for option in ({"top_k": -1}, {"repetition_penalty": 0.0}):
        with pytest.raises(ValueError, match="top_k must be at least 0"):
            lm.generate(["w1"], **option)


def test_without_the_two_options_it_is_a_transformers_lm(tokenizer):
    model = tiny_llama(tokenizer, dim=32, layers=2, seed=0)
    options = {"temperature": 1.0, "max_tokens": 6, "seed": 4}
    assert SamplingLM(model, tokenizer).generate(PROMPTS, 2, **options) == TransformersLM(model, tokenizer).generate(
        PROMPTS, 2, **options
    )


def test_the_model_is_its_own_again_after_an_error(tokenizer):
    lm = SamplingLM(tiny_llama(tokenizer, dim=16, layers=1), tokenizer)
    model = lm.model
    with pytest.raises(ValueError, match="max_tokens must be at least 1"):
        lm.generate(["w1"], top_k=3, max_tokens=0)
    assert lm.model is model
