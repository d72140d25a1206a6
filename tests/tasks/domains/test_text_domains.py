"""Texts of five domains: what their words are, read by counting."""

import pytest
import torch

from heldout.tasks import TEXT_DOMAINS, text_domains

CLASSES = ("asks", "tells", "orders", "thanks")


def words_of(texts, row):
    return [texts.vocabulary[number] for number in texts.input_ids[row][texts.attention_mask[row].bool()].tolist()]


def meaning(word, domain):
    """The class that a word speaks for, by the rule in the docstring; None where it is no cue."""
    kind, *rest = word.split()
    if kind == "ambiguous":
        return CLASSES[(int(rest[0]) + TEXT_DOMAINS.index(domain)) % 4]
    return next((cls for cls in CLASSES if cls in word.split()), None)


def test_words_are_of_the_domain_and_cues_of_the_class_in_the_shares_that_were_asked_for():
    texts = text_domains(dict.fromkeys(TEXT_DOMAINS, 200), overlap=0.3, ambiguous=0.2, noise=0.4, seed=1)
    assert texts.input_ids.shape == (1000, 24)
    assert torch.equal(texts.attention_mask, (texts.input_ids != 0).long())
    ambiguous = shared = right = cues = 0
    for row in range(1000):
        domain, cls = TEXT_DOMAINS[int(texts.domains[row])], CLASSES[int(texts.labels[row])]
        first, *words = words_of(texts, row)
        assert first == "[start]"
        own = [word for word in words if meaning(word, domain)]
        assert len(own) == 5
        assert all(word.startswith(domain) for word in words if not meaning(word, domain))
        for word in own:
            assert word.startswith((domain, "ambiguous", *CLASSES))
            ambiguous += word.startswith("ambiguous")
            shared += word.startswith(CLASSES)
            right += meaning(word, domain) == cls
            cues += 1
    assert abs(ambiguous / cues - 0.2) < 0.03
    assert abs(shared / cues - 0.8 * 0.3) < 0.03
    assert abs(right / cues - (0.6 + 0.4 / 4)) < 0.03
    assert texts.labels.bincount().tolist() == [250] * 4
    assert texts.domains.bincount().tolist() == [200] * 5


@pytest.mark.parametrize(("overlap", "ambiguous"), [(0.0, 0.0), (1.0, 0.0), (0.5, 1.0)])
def test_the_ends_of_the_shares(overlap, ambiguous):
    texts = text_domains({"chat": 50}, overlap=overlap, ambiguous=ambiguous)
    own = [word for row in range(50) for word in words_of(texts, row) if meaning(word, "chat")]
    start = "ambiguous" if ambiguous else CLASSES if overlap else "chat"
    assert all(word.startswith(start) for word in own)


def test_texts_hang_on_the_seed_alone_and_cues_stand_anywhere():
    counts = {"contracts": 30, "finance news": 10}
    first, again, other = (text_domains(counts, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first.input_ids, again.input_ids)
    assert not torch.equal(first.input_ids, other.input_ids)
    places = {place for row in range(40) for place, word in enumerate(words_of(first, row)) if meaning(word, "chat")}
    assert places >= set(range(1, 15))
    assert len(set(first.attention_mask.sum(1).tolist())) > 5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"counts": {"poems": 3}}, "counts"),
        ({"counts": {}}, "counts"),
        ({"counts": {"chat": 0}}, "counts"),
        ({"counts": {"chat": -1}}, "counts"),
        ({"counts": {"chat": 3}, "overlap": 1.5}, "overlap"),
        ({"counts": {"chat": 3}, "noise": -0.1}, "noise"),
        ({"counts": {"chat": 3}, "ambiguous": 2.0}, "ambiguous"),
        ({"counts": {"chat": 3}, "length": 13}, "length"),
    ],
)
def test_bad_arguments_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        text_domains(**options)
