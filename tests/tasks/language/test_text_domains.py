"""Texts of five domains: what their words are, read by counting."""

import pytest
import torch

from heldout.tasks import TEXT_DOMAINS, text_domains

CLASSES = ("asks", "tells", "orders", "thanks")


def words_of(texts, row):
    return [texts.vocabulary[number] for number in texts.input_ids[row][texts.attention_mask[row].bool()].tolist()]


def is_cue(word):
    return any(cls in word.split() for cls in CLASSES)


def test_words_are_of_the_domain_and_cues_of_the_class_in_the_shares_that_were_asked_for():
    texts = text_domains(dict.fromkeys(TEXT_DOMAINS, 200), overlap=0.3, noise=0.4, seed=1)
    assert texts.input_ids.shape == (1000, 24)
    assert torch.equal(texts.attention_mask, (texts.input_ids != 0).long())
    shared = right = cues = 0
    for row in range(1000):
        domain, cls = TEXT_DOMAINS[int(texts.domains[row])], CLASSES[int(texts.labels[row])]
        first, *words = words_of(texts, row)
        assert first == "[start]"
        own = [word for word in words if is_cue(word)]
        assert len(own) == 5
        assert all(word.startswith(domain) for word in words if not is_cue(word))
        for word in own:
            assert word.startswith((domain, *CLASSES))
            shared += not word.startswith(domain)
            right += cls in word.split()
            cues += 1
    assert abs(shared / cues - 0.3) < 0.03
    assert abs(right / cues - (0.6 + 0.4 / 4)) < 0.03
    assert texts.labels.bincount().tolist() == [250] * 4
    assert texts.domains.bincount().tolist() == [200] * 5


@pytest.mark.parametrize(("overlap", "shares"), [(0.0, False), (1.0, True)])
def test_the_ends_of_the_overlap(overlap, shares):
    texts = text_domains({"chat": 50}, overlap=overlap)
    own = [word for row in range(50) for word in words_of(texts, row) if is_cue(word)]
    assert all(word.startswith("chat") != shares for word in own)


def test_texts_hang_on_the_seed_alone_and_cues_stand_anywhere():
    counts = {"contracts": 30, "finance news": 10}
    first, again, other = (text_domains(counts, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first.input_ids, again.input_ids)
    assert not torch.equal(first.input_ids, other.input_ids)
    places = {place for row in range(40) for place, word in enumerate(words_of(first, row)) if is_cue(word)}
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
        ({"counts": {"chat": 3}, "length": 13}, "length"),
    ],
)
def test_bad_arguments_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        text_domains(**options)
