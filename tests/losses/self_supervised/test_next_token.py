"""The loss of each sequence."""

import math

import pytest
import torch

from heldout.losses import next_token_losses


def test_losses_are_those_of_a_plain_loop():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 6, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 5, (4, 6), generator=generator)
    labels[0, 2:4] = labels[1, :3] = labels[3, 1:] = -100
    expected = []
    for row, ids in zip(logits.detach(), labels.tolist(), strict=True):
        terms = [-row[p - 1].log_softmax(0)[ids[p]].item() for p in range(1, 6) if ids[p] != -100]
        expected.append(sum(terms) / len(terms) if terms else 0.0)
    found = next_token_losses(logits, labels)
    assert found.tolist() == pytest.approx(expected)
    found.sum().backward()
    assert logits.grad[:, -1].abs().max() == 0
    assert logits.grad[3].abs().max() == 0
    assert logits.grad[0, 0].abs().max() > 0


def test_half_precision_stays_half():
    losses = next_token_losses(torch.zeros(2, 3, 4, dtype=torch.bfloat16), torch.zeros(2, 3, dtype=torch.int64))
    assert losses.dtype == torch.bfloat16
    assert losses.tolist() == pytest.approx([math.log(4)] * 2, rel=1e-2)


def test_bad_input_is_refused_by_name():
    with pytest.raises(ValueError, match="logits"):
        next_token_losses(torch.zeros(2, 3), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="labels"):
        next_token_losses(torch.zeros(2, 3, 4), torch.zeros(2, 2, dtype=torch.int64))
    for bad in (-1, 4):
        with pytest.raises(ValueError, match="labels"):
            next_token_losses(torch.zeros(1, 2, 4), torch.tensor([[0, bad]]))
