"""Core: WiSE-FT: the average of a model's weights before and after fine-tuning. Source: arXiv:2109.01903."""

from __future__ import annotations

import copy
import math
import warnings

from torch import nn

from heldout.errors import checked
from heldout.weights.task_vector import interpolate


@checked
def wise_ft(
    model_pre: nn.Module, model_ft: nn.Module, alpha: float = 0.5, *, allow_extrapolation: bool = False
) -> nn.Module:
    """Returns a copy of the fine-tuned model with the weights ``(1 - alpha) * pre + alpha * ft``.

    All floating-point parameters and buffers are averaged, the output layer included; integer buffers are those of
    ``model_ft`` and tied weights stay tied. Running statistics of BatchNorm do not belong to averaged weights:
    call ``update_batch_norm`` afterwards.

    Args:
        model_pre: the model before fine-tuning.
        model_ft: the model after it.
        alpha: 0 gives the weights of ``model_pre``, 1 those of ``model_ft``.
        allow_extrapolation: accept ``alpha`` outside [0, 1].

    Raises:
        ValueError: if ``alpha`` is outside [0, 1], or names or shapes differ.

    Warns:
        UserWarning: where the average holds BatchNorm statistics of neither model.

    Source: arXiv:2109.01903, eq. 1.

    Example:
        >>> import torch
        >>> pre, ft = nn.Linear(1, 1), nn.Linear(1, 1)
        >>> middle = wise_ft(pre, ft)
        >>> torch.allclose(middle.weight, (pre.weight + ft.weight) / 2)
        True
    """
    check_alpha(alpha, allow_extrapolation=allow_extrapolation)
    result = copy.deepcopy(model_ft)
    result.load_state_dict(interpolate(model_pre, model_ft, alpha, allow_extrapolation=allow_extrapolation))
    if alpha not in (0, 1) and has_batch_norm(result):
        warnings.warn(
            "averaged weights need BatchNorm statistics of their own: call heldout.weights.update_batch_norm",
            stacklevel=2,
        )
    return result


def has_batch_norm(module: nn.Module) -> bool:
    """Tells whether a module keeps running statistics of BatchNorm."""
    return any(
        isinstance(part, nn.modules.batchnorm._BatchNorm) and part.track_running_stats for part in module.modules()
    )


def check_alpha(alpha: float, *, allow_extrapolation: bool = False) -> None:
    """Raises ValueError unless ``alpha`` is finite and, without extrapolation, in [0, 1]."""
    if not math.isfinite(alpha) or not (allow_extrapolation or 0 <= alpha <= 1):
        raise ValueError(f"alpha must lie in [0, 1], got {alpha}")
