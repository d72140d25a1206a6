"""Judges made of keywords: the weighted cosine against scikit-learn, votes by hand, and the real package."""

import math

import pytest
import torch
from sklearn.feature_extraction.text import CountVectorizer

from heldout.sources import STYLE, TAGS, missing
from heldout.tasks import judges_choices, keyword_judges, keyword_similarity

KEYWORDS = [["gold medal", "first"], ["silver", "medal"], ["Cat"], ["cat", "pet"], ["pet", "dog"]]


def test_it_is_the_cosine_of_words_weighted_by_rarity():
    counts = CountVectorizer(binary=True).fit_transform([" ".join(each) for each in KEYWORDS]).toarray()
    table = torch.tensor(counts * [math.log(5 / n) for n in counts.sum(0)])
    table = table / table.norm(dim=1, keepdim=True)
    torch.testing.assert_close(keyword_similarity(KEYWORDS).double(), table @ table.T, atol=1e-6, rtol=0)


def test_a_word_that_all_have_counts_nothing():
    found = keyword_similarity([["a", "x"], ["a", "y"], ["a"]])
    assert found[0, 1] == 0
    assert found[2].tolist() == [0.0, 0.0, 0.0]


def test_each_judge_has_a_vote_and_ties_share_it():
    first = torch.tensor([[1.0, 0.9, 0.1, 0], [0.9, 1, 0.2, 0], [0.1, 0.2, 1, 0], [0, 0, 0, 1.0]])
    tied = torch.tensor([[1.0, 0.5, 0.5, 0], [0.5, 1, 0.1, 0], [0.5, 0.1, 1, 0], [0, 0, 0, 1.0]])
    found = judges_choices({"a": first, "b": tied}, torch.tensor([[0, 1, 2], [2, 3, 1], [3, 0, 1]]))
    expected = torch.tensor([[0.75, 0.25, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    torch.testing.assert_close(found, expected)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="keywords"):
        keyword_similarity([])
    with pytest.raises(ValueError, match="judges"):
        judges_choices({}, torch.tensor([[0, 1, 2]]))
    with pytest.raises(ValueError, match="triplets"):
        judges_choices({"a": torch.eye(3)}, torch.tensor([[0, 1, 3]]))
    with pytest.raises(ValueError, match="finite"):
        judges_choices({"a": torch.eye(3) * math.nan}, torch.tensor([[0, 1, 2]]))


@pytest.mark.skipif(bool(missing([STYLE, TAGS])), reason="the packages are not there")
def test_writers_find_a_dog_and_a_wolf_more_alike_than_a_pizza(tmp_path, monkeypatch):
    monkeypatch.setattr("heldout.tasks.judged.keyword_judges.cache_folder", lambda: tmp_path)
    judges = keyword_judges(["dog-face", "wolf", "pizza"], ["en"])
    assert list(judges) == ["en"]
    assert judges_choices(judges, torch.tensor([[0, 1, 2]]))[0, 0] == 1.0
    assert torch.equal(keyword_judges(["dog-face", "wolf", "pizza"], ["en"])["en"], judges["en"])  # from disk
    assert len(list(tmp_path.rglob("*.pt"))) == 1
    with pytest.raises(ValueError, match="names"):
        keyword_judges(["dog-face", "no such thing"], ["en"])
