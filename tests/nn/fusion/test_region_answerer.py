"""What is masked has no influence, and both parts together are what the network is."""

import pytest
import torch
from torch import nn

from heldout.nn import RegionAnswerer


def made():
    torch.manual_seed(0)
    picture = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 8))
    return RegionAnswerer(10, 4, picture, width=8, heads=2)


def batch():
    generator = torch.Generator().manual_seed(1)
    words = torch.tensor([[1, 2, 3, 0], [4, 5, 6, 7]])
    here = torch.tensor([[True, True, False], [True, True, True]])
    return (
        words, torch.rand(2, 3, 3, 2, 2, generator=generator), torch.rand(2, 3, 4, generator=generator), here,
    )  # fmt: skip


def test_words_and_regions_come_in_their_places_and_nothing_where_there_is_no_region():
    model, (words, pictures, boxes, here) = made(), batch()
    features = model.encode(words, pictures, boxes, here)
    assert features.shape == (2, 7, 8)
    assert (features[0, 6] == 0).all()
    region = model.region_norm(model.picture(pictures[1, 2:]) + model.box(boxes[1, 2:]))
    assert features[1, 6].allclose(region[0], atol=1e-6)
    word = model.word_norm(model.gru(model.words(words[1:, :2]))[0])
    assert features[1, :2].allclose(word[0], atol=1e-6)


def test_filling_has_no_influence_and_everything_else_has():
    model, (words, pictures, boxes, here) = made(), batch()
    answers = model.answer(model.encode(words, pictures, boxes, here), words, here)
    features = model.encode(words, pictures, boxes, here).detach()
    for row, position in ((0, 3), (0, 6)):
        other = features.clone()
        other[row, position] = 9.0
        assert model.answer(other, words, here).allclose(answers, atol=1e-5)
    for row, position in ((0, 0), (0, 2), (0, 4), (1, 3), (1, 6)):
        other = features.clone()
        other[row, position] += torch.arange(8.0)
        assert not model.answer(other, words, here)[row].allclose(answers[row], atol=1e-4)
        assert model.answer(other, words, here)[1 - row].allclose(answers[1 - row], atol=1e-5)
    longer = torch.cat([words, torch.zeros(2, 2).long()], 1)
    assert model.answer(model.encode(longer, pictures, boxes, here), longer, here).allclose(answers, atol=1e-5)


def test_the_order_of_regions_does_not_matter():
    model, (words, pictures, boxes, here) = made(), batch()
    answers = model.answer(model.encode(words, pictures, boxes, here), words, here)
    order = [2, 0, 1]
    turned = model.encode(words, pictures[:, order], boxes[:, order], here[:, order])
    assert model.answer(turned, words, here[:, order]).allclose(answers, atol=1e-5)


def test_a_picture_without_regions_is_answered_by_nothing():
    model, (words, pictures, boxes, here) = made(), batch()
    none = torch.zeros_like(here)
    answers = model.answer(model.encode(words, pictures, boxes, none), words, none)
    assert answers.isfinite().all()
    answers.sum().backward()
    assert model.nothing.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, w, p, b, h: m.encode(w, p[:, :2], b, h), "pictures"),
        (lambda m, w, p, b, h: m.encode(w, p, b, h.long()), "here"),
        (lambda m, w, p, b, h: m.encode(w + 9, p, b, h), "words"),
        (lambda m, w, p, b, h: m.encode(w[:1], p, b, h), "words"),
        (lambda m, w, p, b, h: m.answer(torch.zeros(2, 6, 8), w, h), "features"),
        (lambda m, w, p, b, h: m.answer(torch.zeros(2, 7, 8), w * 0, h), "words"),
        (lambda m, w, p, b, h: RegionAnswerer(10, 4, nn.Identity(), width=9), "heads"),
        (lambda m, w, p, b, h: RegionAnswerer(10, 1, nn.Identity()), "classes"),
    ],
)
def test_shapes_that_do_not_match_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(made(), *batch())
