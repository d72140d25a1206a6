"""Core: What a student loses against a teacher: outputs at a temperature, and features.

Source: arXiv:1503.02531 (Hinton et al.), section 2, for outputs; arXiv:1412.6550 (Romero et al., FitNets), equation 3,
for features.
"""

from __future__ import annotations

from torch import Tensor

from heldout.errors import check_positive, checked


@checked
def distillation_loss(logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Returns ``T^2 KL(softmax(teacher / T) || softmax(student / T))``, averaged over all axes but the last.

    With the factor the gradient keeps its size whatever the temperature is.

    Args:
        logits: the student's ``(..., classes)``.
        teacher_logits: of the same shape; no gradient flows into them.
        temperature: T, above 0.

    Raises:
        ValueError: shapes that differ, or a temperature that is not above 0.

    Example:
        >>> import torch
        >>> distillation_loss(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 2.0]]), 4.0)
        tensor(0.)
    """
    check_positive(temperature=temperature)
    if logits.shape != teacher_logits.shape or not logits.ndim:
        raise ValueError(
            f"teacher_logits must have the shape of logits {tuple(logits.shape)}, got {tuple(teacher_logits.shape)}"
        )
    student = (logits.float() / temperature).log_softmax(-1)
    teacher = (teacher_logits.detach().float() / temperature).log_softmax(-1)
    return temperature**2 * (teacher.exp() * (teacher - student)).sum(-1).mean()


@checked
def feature_loss(features: Tensor, teacher_features: Tensor) -> Tensor:
    """Returns the mean squared difference of features of one shape; no gradient flows into the teacher's.

    Raises:
        ValueError: shapes that differ.

    Example:
        >>> import torch
        >>> feature_loss(torch.zeros(1, 2), torch.tensor([[1.0, 3.0]]))
        tensor(5.)
    """
    if features.shape != teacher_features.shape:
        raise ValueError(
            f"teacher_features must have the shape of features {tuple(features.shape)}, "
            f"got {tuple(teacher_features.shape)}"
        )
    return (features.float() - teacher_features.detach().float()).square().mean()
