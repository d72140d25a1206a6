"""What image worlds refuse: pictures and labels of the wrong form."""

from __future__ import annotations

from torch import Tensor


def check_images(images: Tensor) -> None:
    if not isinstance(images, Tensor) or images.ndim != 4:
        got = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"images must be a tensor (n, channels, height, width), got {got}")
    if not images.is_floating_point():
        raise ValueError(f"images must be floating point in [0, 1], got {images.dtype}")
    if images.numel():
        low, high = images.aminmax()
        if not (low >= 0 and high <= 1):  # false for NaN too
            raise ValueError(f"images must be finite and in [0, 1], got values from {low:.4g} to {high:.4g}")


def check_pair(images: Tensor, labels: Tensor) -> None:
    check_images(images)
    if labels.shape != images.shape[:1]:
        raise ValueError(f"needs one label per image ({len(images)}), got labels of shape {tuple(labels.shape)}")


def _num_classes(labels: Tensor, num_classes: int | None) -> int:
    low, high = (int(labels.min()), int(labels.max())) if len(labels) else (0, -1)
    classes = high + 1 if num_classes is None else num_classes
    if low < 0 or high >= classes:
        raise ValueError(f"labels must be in 0..{classes - 1}, got {low}..{high}")
    return classes
