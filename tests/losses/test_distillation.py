import math

import pytest
import torch

from heldout.losses import distillation_loss, feature_loss, soft_cross_entropy


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_it_is_the_divergence_by_hand(temperature):
    student, teacher = drawn(5, 3), drawn(5, 3, seed=1)
    total = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        p, q = ([math.exp(v / temperature) for v in row] for row in (t, s))
        total += sum(a / sum(p) * math.log((a / sum(p)) / (b / sum(q))) for a, b in zip(p, q, strict=True))
    expected = temperature**2 * total / 5
    assert float(distillation_loss(student, teacher, temperature)) == pytest.approx(expected, rel=1e-5)


def test_at_one_it_is_soft_cross_entropy_less_the_teachers_entropy():
    student, teacher = drawn(7, 4).float(), drawn(7, 4, seed=1).float()
    probs = teacher.softmax(-1)
    entropy = -(probs * probs.log()).sum(-1).mean()
    expected = soft_cross_entropy(student, probs) - entropy
    assert torch.allclose(distillation_loss(student, teacher), expected, atol=1e-6)


def test_gradients_keep_their_size_and_reach_the_student_alone():
    student, teacher = drawn(6, 3).requires_grad_(), drawn(6, 3, seed=1).requires_grad_()
    distillation_loss(student, teacher, 1000.0).backward()
    centred = lambda x: x - x.mean(1, keepdim=True)  # noqa: E731
    matched = (centred(student.detach()) - centred(teacher.detach())) / (3 * 6)  # equation 4: logits are matched
    assert torch.allclose(student.grad, matched, rtol=0.02, atol=1e-4)
    assert teacher.grad is None


def test_sequences_average_over_all_places():
    student, teacher = drawn(2, 5, 3), drawn(2, 5, 3, seed=1)
    flat = distillation_loss(student.flatten(0, 1), teacher.flatten(0, 1), 2.0)
    assert torch.allclose(distillation_loss(student, teacher, 2.0), flat)


def test_features_by_hand():
    own, taught = drawn(4, 3).requires_grad_(), drawn(4, 3, seed=1).requires_grad_()
    value = feature_loss(own, taught)
    value.backward()
    assert float(value) == pytest.approx(float(((own - taught).detach() ** 2).sum() / 12), rel=1e-5)
    assert taught.grad is None
    assert torch.allclose(own.grad, 2 * (own - taught).detach() / 12, atol=1e-6)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="shape of logits"):
        distillation_loss(drawn(2, 3), drawn(2, 4))
    with pytest.raises(ValueError, match="temperature"):
        distillation_loss(drawn(2, 3), drawn(2, 3), 0.0)
    with pytest.raises(ValueError, match="shape of features"):
        feature_loss(drawn(2, 3), drawn(3, 2))
