import math

import pytest
import torch

from heldout.losses import confident_cross_entropy


def naive(logits, guesses, threshold):
    total = 0.0
    for own, other in zip(logits.tolist(), guesses.tolist(), strict=True):
        exps = [math.exp(z) for z in other]
        confidence, label = max((e / sum(exps), i) for i, e in enumerate(exps))
        if confidence >= threshold:
            total += math.log(sum(math.exp(z) for z in own)) - own[label]
    return total / len(logits)


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.9, 1.0])
def test_it_is_the_sum_over_sure_guesses_divided_by_all(threshold):
    generator = torch.Generator().manual_seed(0)
    logits, guesses = torch.randn(2, 30, 3, generator=generator, dtype=torch.float64) * 2
    found = confident_cross_entropy(logits, guesses, threshold).item()
    assert found == pytest.approx(naive(logits, guesses, threshold), abs=1e-6)
    assert (found > 0) == (threshold < 1)


def test_no_gradient_enters_the_guesses_and_none_comes_from_unsure_ones():
    logits = torch.tensor([[1.0, 0.0], [0.2, 0.0]], requires_grad=True)
    guesses = torch.tensor([[5.0, 0.0], [0.1, 0.0]], requires_grad=True)
    confident_cross_entropy(logits, guesses, 0.9).backward()
    assert guesses.grad is None
    assert logits.grad[1].tolist() == [0.0, 0.0]
    assert logits.grad[0].tolist() == pytest.approx([-0.5 * (1 - 1 / (1 + math.exp(-1))), 0.5 / (1 + math.e)])


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="guesses must have the shape of logits"):
        confident_cross_entropy(torch.zeros(2, 3), torch.zeros(2, 2))
    with pytest.raises(ValueError, match="threshold must be between 0 and 1"):
        confident_cross_entropy(torch.zeros(2, 3), torch.zeros(2, 3), 1.5)
    with pytest.raises(ValueError, match="logits must not be empty"):
        confident_cross_entropy(torch.zeros(0, 3), torch.zeros(0, 3))
