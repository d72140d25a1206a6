"""The loss of GEM against torch's own parts."""

import pytest
import torch
import torch.nn.functional as F

from heldout.losses import distill_quant

generator = torch.Generator().manual_seed(0)
LOGITS, TEACHER, ROUNDED = (torch.randn(6, 4, generator=generator) for _ in range(3))
LABELS = torch.tensor([0, 3, 1, 2, 2, 0])


def test_it_is_the_sum_of_torchs_parts():
    temperature = 2.5
    student, teacher = (each / temperature for each in (LOGITS, TEACHER))
    kl = F.kl_div(student.log_softmax(1), teacher.log_softmax(1), log_target=True, reduction="batchmean")
    wanted = F.cross_entropy(LOGITS, LABELS) + 0.7 * temperature**2 * kl + 0.3 * F.mse_loss(LOGITS, ROUNDED)
    torch.testing.assert_close(distill_quant(LOGITS, LABELS, TEACHER, ROUNDED, temperature=temperature), wanted)


def test_terms_of_weight_nought_and_a_teacher_that_agrees():
    plain = F.cross_entropy(LOGITS, LABELS)
    torch.testing.assert_close(distill_quant(LOGITS, LABELS, TEACHER, ROUNDED, distillation=0, quantisation=0), plain)
    torch.testing.assert_close(distill_quant(LOGITS, LABELS, LOGITS), plain)
    torch.testing.assert_close(distill_quant(LOGITS, LABELS, LOGITS, LOGITS), plain)


def test_no_gradient_flows_into_the_teacher_or_the_rounded_logits():
    logits, teacher, rounded = (each.clone().requires_grad_() for each in (LOGITS, TEACHER, ROUNDED))
    distill_quant(logits, LABELS, teacher, rounded).backward()
    assert teacher.grad is None
    assert rounded.grad is None
    probabilities, onehot = logits.detach().softmax(1), F.one_hot(LABELS, 4)
    wanted = (probabilities - onehot + 0.7 * (probabilities - TEACHER.softmax(1))) / 6
    wanted += 0.3 * 2 * (LOGITS - ROUNDED) / LOGITS.numel()
    torch.testing.assert_close(logits.grad, wanted)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"labels": LABELS[:3]}, "labels"),
        ({"labels": LABELS + 3}, "labels"),
        ({"teacher_logits": TEACHER[:, :2]}, "teacher_logits"),
        ({"quantised": ROUNDED[:, :2]}, "quantised"),
        ({"distillation": -1.0}, "distillation"),
        ({"quantisation": float("nan")}, "quantisation"),
        ({"temperature": 0.0}, "temperature"),
        ({"logits": LOGITS[0]}, "logits"),
    ],
)
def test_bad_arguments_are_named(changed, words):
    given = {"logits": LOGITS, "labels": LABELS, "teacher_logits": TEACHER, "quantised": ROUNDED} | changed
    with pytest.raises(ValueError, match=words):
        distill_quant(**given)
