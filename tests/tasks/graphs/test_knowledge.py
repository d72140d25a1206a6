import pytest
import torch

from heldout.tasks import shared_words

TEXTS = ["The small cats, of a House", "a cat house", "any dog", "of a"]
TRIPLES = torch.tensor([[0, 0, 1], [1, 5, 0], [0, 0, 2], [3, 0, 0]])


def test_words_are_shared_whatever_their_case_and_number():
    assert shared_words(TRIPLES, TEXTS).tolist() == [3, 3, 0, 2]
    assert shared_words(TRIPLES, TEXTS, stop={"a", "of"}).tolist() == [2, 2, 0, 0]
    assert shared_words(TRIPLES, TEXTS, stop={"cats"}).tolist() == [2, 2, 0, 2]


def test_words_are_runs_of_letters_of_any_script():
    texts = ["café", "caf e", "δέντρο 12", "το δέντρο", "12"]
    triples = torch.tensor([[0, 0, 1], [2, 0, 3], [2, 0, 4]])
    assert shared_words(triples, texts).tolist() == [0, 1, 0]


def test_bad_input_is_refused():
    for triples in (TRIPLES[:, :2], TRIPLES + 1, TRIPLES - 1, TRIPLES.double()):
        with pytest.raises(ValueError, match="triples"):
            shared_words(triples, TEXTS)
    with pytest.raises(ValueError, match="texts"):
        shared_words(TRIPLES, [])
