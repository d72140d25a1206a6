"""The small detector: its shapes, its seed, that it learns to tell words apart, and what is refused."""

import pytest
import torch

from heldout.losses import grounding_loss
from heldout.measure import prompted_precision
from heldout.nn import small_prompt_detector


@pytest.mark.parametrize(("halvings", "cells"), [(0, 24), (1, 12), (2, 6), (3, 3)])
def test_each_halving_halves_the_map(halvings, cells):
    model = small_prompt_detector(5, words=4, halvings=halvings, width=16)
    assert model(torch.rand(2, 5, 24, 24), torch.tensor([[1, 2], [3, 0]])).shape == (2, cells, cells, 5)


def test_weights_are_those_of_the_seed_and_the_order_of_words_says_nothing():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (small_prompt_detector(words=6, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    images = torch.rand(1, 3, 24, 24)
    outputs = first(images, torch.tensor([[1, 4, 0]]))
    torch.testing.assert_close(outputs, again(images, torch.tensor([[4, 1, 0]])))
    torch.testing.assert_close(outputs, again(images, torch.tensor([[4, 0, 1]])))
    assert not torch.allclose(outputs, other(images, torch.tensor([[1, 4, 0]])))
    assert not torch.allclose(outputs, first(images, torch.tensor([[1, 5, 0]])))


def test_it_learns_which_word_means_which_square():
    """Each picture has a bright square on one side and a dark one on the other; the word says which is meant."""
    generator = torch.Generator().manual_seed(0)
    n = 64
    sides, asked = (torch.randint(0, 2, (n,), generator=generator) for _ in range(2))
    images, boxes = torch.full((n, 3, 24, 24), 0.5), torch.zeros(n, 1, 4)
    for i in range(n):
        for word, grey in ((0, 1.0), (1, 0.0)):
            left = 3 if (int(sides[i]) == word) else 14
            images[i, :, 8:16, left : left + 8] = grey
            if word == asked[i]:
                boxes[i, 0] = torch.tensor([left, 8, left + 8, 16]) / 24
    prompts = asked[:, None] + 1
    model = small_prompt_detector(words=3, width=16)
    assert prompted_precision(model, images, prompts, boxes) < 0.5
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for step in range(120):
        rows = torch.arange(16) + 16 * (step % 4)
        optimizer.zero_grad()
        grounding_loss(model(images[rows], prompts[rows]), boxes[rows]).backward()
        optimizer.step()
    assert prompted_precision(model, images, prompts, boxes) > 0.95
    assert prompted_precision(model, images, 3 - prompts, boxes) < 0.2  # the other word finds the other square


def test_bad_input_is_named():
    for options in ({}, {"words": 3, "text_dim": 4}):
        with pytest.raises(ValueError, match="words"):
            small_prompt_detector(**options)
    for options, name in (({"width": 12}, "width"), ({"halvings": 9}, "halvings"), ({"dim": 0}, "dim")):
        with pytest.raises(ValueError, match=name):
            small_prompt_detector(words=3, **options)
