import pytest
import torch
import torch.nn.functional as F

from heldout.losses import distillation_loss, soft_cross_entropy


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


@pytest.mark.parametrize("shape", [(6, 5), (2, 3, 5)])
def test_distillation_is_the_kl_divergence_of_torch(shape):
    logits, _ = random_batch(shape=shape)
    teacher, _ = random_batch(seed=1, shape=shape)
    rows = (logits.log_softmax(-1).flatten(0, -2), teacher.log_softmax(-1).flatten(0, -2))
    torch.testing.assert_close(
        distillation_loss(logits, teacher), F.kl_div(*rows, log_target=True, reduction="batchmean")
    )


def test_distillation_is_zero_at_the_teacher_and_moves_the_student_alone():
    logits, _ = random_batch()
    torch.testing.assert_close(distillation_loss(logits, logits + 3.0), torch.tensor(0.0, dtype=torch.float64))
    teacher, _ = random_batch(seed=1)
    own, other = torch.autograd.grad(distillation_loss(logits, teacher), [logits, teacher], allow_unused=True)
    torch.testing.assert_close(own, (logits.softmax(-1) - teacher.softmax(-1)) / 6)
    assert other is None
    sure = torch.tensor([[200.0, -200.0]])
    assert distillation_loss(sure, sure) == 0  # a probability that is 0 in its type
    with pytest.raises(ValueError, match="teacher_logits"):
        distillation_loss(logits, teacher[:, :4])
