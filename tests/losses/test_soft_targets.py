import pytest
import torch
import torch.nn.functional as F

from heldout.losses import soft_cross_entropy


def random_batch(seed=0, shape=(6, 5)):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    return logits, torch.randn(shape, generator=generator, dtype=torch.float64).softmax(-1)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_one_hot_targets_give_the_cross_entropy(reduction):
    logits, _ = random_batch()
    labels = torch.tensor([0, 4, 2, 2, 1, 3])
    loss = soft_cross_entropy(logits, F.one_hot(labels, 5).double(), reduction)
    torch.testing.assert_close(loss, F.cross_entropy(logits, labels, reduction=reduction))


@pytest.mark.parametrize("shape", [(6, 5), (2, 3, 5)])
def test_gradient_is_prediction_minus_target_over_the_number_of_predictions(shape):
    logits, targets = random_batch(shape=shape)
    (gradient,) = torch.autograd.grad(soft_cross_entropy(logits, targets), logits)
    torch.testing.assert_close(gradient, (logits.softmax(-1) - targets) / 6)


def test_label_smoothing_is_a_soft_target():
    logits, _ = random_batch()
    labels = torch.tensor([0, 4, 2, 2, 1, 3])
    smooth = 0.9 * F.one_hot(labels, 5) + 0.1 / 5
    torch.testing.assert_close(
        soft_cross_entropy(logits, smooth.double()), F.cross_entropy(logits, labels, label_smoothing=0.1)
    )


def test_bad_input_is_named():
    logits, targets = random_batch()
    with pytest.raises(ValueError, match="shape of logits"):
        soft_cross_entropy(logits, targets[:, :4])
    with pytest.raises(ValueError, match="reduction"):
        soft_cross_entropy(logits, targets, "average")
