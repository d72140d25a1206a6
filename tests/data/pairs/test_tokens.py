"""Pairs of token sequences and their numbers."""

import pytest
import torch

from heldout.data import END, PAD, START, TokenVocabulary, as_pairs, as_tokens

PAIRS = [("jump twice", "J J"), (["walk"], ("W",)), ("run left thrice", "")]


def test_texts_and_sequences_of_tokens_are_read_alike():
    assert as_pairs([("a  b", "C"), (["a", "b"], ["C"])]) == [(("a", "b"), ("C",))] * 2
    assert as_tokens(" a b ") == ("a", "b")


def test_what_is_encoded_is_decoded():
    vocabulary = TokenVocabulary.of(PAIRS)
    tensors = vocabulary.encode_pairs(PAIRS)
    assert vocabulary.decode(tensors.source) == [source for source, _ in as_pairs(PAIRS)]
    assert vocabulary.decode(tensors.target) == vocabulary.decode(tensors.target_in) == [t for _, t in as_pairs(PAIRS)]


def test_decoders_read_start_and_the_target_and_write_the_target_and_end():
    tensors = TokenVocabulary(["a", "A"]).encode_pairs([("a", "A A"), ("a", "A")])
    assert tensors.target_in.tolist() == [[START, 4, 4], [START, 4, PAD]]
    assert tensors.target.tolist() == [[4, 4, END], [4, END, PAD]]
    assert tensors.source.tolist() == [[3], [3]]


def test_what_stands_after_the_end_is_not_decoded():
    vocabulary = TokenVocabulary(["a"])
    assert vocabulary.decode(torch.tensor([[3, 2, 3], [3, 3, 3], [2, 3, 0]])) == [("a",), ("a", "a", "a"), ()][:3]


def test_a_vocabulary_of_several_sets_has_the_tokens_of_all_in_order():
    assert TokenVocabulary.of([("b", "B")], [("a b", "A")]).tokens[3:] == ("b", "B", "a", "A")


def test_what_cannot_be_read_is_refused_by_name():
    vocabulary = TokenVocabulary(["a"])
    with pytest.raises(ValueError, match="no token 'b'"):
        vocabulary.encode(["a b"])
    with pytest.raises(ValueError, match="sequences must not be empty"):
        vocabulary.encode(["a", ""])
    with pytest.raises(ValueError, match="ids"):
        vocabulary.decode(torch.tensor([[4]]))
    for examples in ([], ["ab"], [("a",)], [("a", "b", "c")]):
        with pytest.raises(ValueError, match="examples"):
            as_pairs(examples)
    for examples in ([("a", 3)], [("a", ["b", None])]):
        with pytest.raises(TypeError, match="examples"):
            as_pairs(examples)
