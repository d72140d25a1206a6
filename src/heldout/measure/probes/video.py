"""How well a network for clips tells what a whole video shows: the scores of several clips of it, averaged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from heldout.errors import (
    check_at_least,
    check_class_labels,
    check_dimensions,
    check_finite,
    check_same_length,
    checked,
)
from heldout.method import evaluating, forward
from heldout.nn import inputs_for

Model = nn.Module | Callable[[Tensor], Any]


@checked
def clip_starts(length: int, frames: int, n_clips: int) -> list[int]:
    """Returns where clips begin that lie evenly over a video, the first at its start and the last at its end.

    One clip lies in the middle.

    Args:
        length: of the video, in frames.
        frames: of a clip.
        n_clips: how many; beyond ``length - frames + 1``, some are the same.

    Raises:
        ValueError: a video shorter than a clip, or a number below 1.

    Example:
        >>> clip_starts(20, frames=8, n_clips=4)
        [0, 4, 8, 12]
    """
    check_at_least(1, frames=frames, n_clips=n_clips)
    if length < frames:
        raise ValueError(f"length must be at least that of a clip, {frames} frames, got {length}")
    room = length - frames
    return [room // 2] if n_clips == 1 else [round(k * room / (n_clips - 1)) for k in range(n_clips)]


@checked
def video_scores(
    model: Model, videos: Sequence[Tensor] | Tensor, *, frames: int = 16, n_clips: int = 20, crop: int | None = None
) -> Tensor:
    """Returns class probabilities ``(videos, classes)``: the mean of the softmax over clips (and places) of each video.

    Args:
        model: from clips ``(batch, channels, frames, h, w)`` to logits ``(batch, classes)`` or an output with
            ``.logits``; a module is put in eval mode for the call and gets clips in its data type. Sees all clips of a
            video at once.
        videos: each ``(channels, length, height, width)``; lengths may differ. Or one tensor ``(videos, ...)``.
        frames: of a clip.
        n_clips: of each video, evenly spread: 20 in the paper.
        crop: side of squares at the left, the middle and the right (top, middle, bottom of a high video), of which each
            is scored, as in the paper; None: the whole frame.

    Raises:
        ValueError: no videos, one too short for a clip or too small for the crop, or scores that are not finite.

    Source: arXiv:1711.10305, section 4.1: 20 clips x 3 places, averaged.

    Example:
        >>> brightness = lambda clips: torch.stack([clips.mean((1, 2, 3, 4)), torch.zeros(len(clips))], 1)
        >>> video_scores(brightness, [torch.zeros(3, 9, 4, 6)], frames=8, n_clips=2, crop=4)
        tensor([[0.5000, 0.5000]])
    """
    check_at_least(1, frames=frames, n_clips=n_clips, crop=crop)
    if not len(videos):
        raise ValueError("videos must not be empty")
    found = []
    module = model if isinstance(model, nn.Module) else nn.Identity()
    with evaluating(module), torch.no_grad():
        for video in videos:
            check_dimensions(4, videos=video)
            check_finite(videos=video)
            if video.shape[1] < frames:
                raise ValueError(f"videos must have at least {frames} frames, got one of {video.shape[1]}")
            clips = torch.stack([video[:, at : at + frames] for at in clip_starts(video.shape[1], frames, n_clips)])
            given = inputs_for(module, clips if crop is None else _three_places(clips, crop))
            logits = forward(model, given)
            found.append(logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(1).mean(0))
    probabilities = torch.stack(found)
    if not probabilities.isfinite().all():
        raise ValueError("the model must return finite logits, got NaN or infinity")
    return probabilities


@checked
def video_accuracy(
    model: Model,
    videos: Sequence[Tensor] | Tensor,
    labels: Tensor,
    n_clips: int = 20,
    *,
    frames: int = 16,
    crop: int | None = None,
    top: int = 1,
) -> float:
    """Returns the share of videos whose class is among the ``top`` of the clip-averaged scores ("video hit@top").

    Args:
        model, videos, frames, crop: as of ``video_scores``.
        labels: int64 ``(videos,)``.
        n_clips: of each video.
        top: how many guesses a video has.

    Raises:
        ValueError: as ``video_scores``; labels of another length or out of range, ``top`` out of range.

    Source: arXiv:1711.10305, section 4.1, video hit@k.

    Example:
        >>> moving = lambda clips: torch.stack([clips[:, 0, 0, 0, 0], clips[:, 0, -1, 0, 0]], 1)
        >>> video_accuracy(moving, torch.arange(6.0).view(1, 1, 6, 1, 1), torch.tensor([1]), 3, frames=4)
        1.0
    """
    check_dimensions(1, labels=labels)
    check_same_length(videos=videos, labels=labels)
    check_at_least(1, top=top)
    scores = video_scores(model, videos, frames=frames, n_clips=n_clips, crop=crop)
    check_class_labels(scores.shape[1], labels=labels)
    if top > scores.shape[1]:
        raise ValueError(f"top must be at most the number of classes, {scores.shape[1]}, got {top}")
    best = scores.topk(top, dim=1).indices
    return (best == labels.to(best.device).unsqueeze(1)).any(1).double().mean().item()


def _three_places(clips: Tensor, crop: int) -> Tensor:
    """Squares ``(3 * clips, channels, frames, crop, crop)`` along the longer side, in the middle of the shorter."""
    height, width = clips.shape[3:]
    if min(height, width) < crop:
        raise ValueError(f"videos must be at least {crop} pixels high and wide, got {height} x {width}")
    tops, lefts = ([round(share * (length - crop) / 2) for share in (0, 1, 2)] for length in (height, width))
    tops, lefts = (tops, [lefts[1]] * 3) if height > width else ([tops[1]] * 3, lefts)
    return torch.cat([clips[..., top : top + crop, left : left + crop] for top, left in zip(tops, lefts, strict=True)])
