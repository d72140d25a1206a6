"""PromptDetector: finds what a text asks for, by comparing the text with each patch of a picture.

Sources: arXiv:2112.03857 (GLIP), section 3.1, for scores that are products of regions and words; arXiv:1904.01355
(FCOS), section 3.1, for boxes that each place of a map gives by its distances to four sides. Both much smaller here.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heldout.errors import check_at_least, check_dimensions, check_finite, check_fraction, checked
from heldout.nn.detection.boxes import check_boxes, suppress_overlaps

_RARE = 0.02  # of the patches show what is asked for, an untrained detector says


class Detections(NamedTuple):
    """What was found in one picture, best first.

    Attributes:
        boxes: ``(found, 4)``, left, top, right and bottom, as parts of the picture's width and height.
        scores: ``(found,)``, in [0, 1].

    Example:
        >>> found = Detections(torch.tensor([[0.1, 0.1, 0.4, 0.5]]), torch.tensor([0.9]))
        >>> len(found.boxes)
        1
    """

    boxes: Tensor
    scores: Tensor


class PromptDetector(nn.Module):
    """Scores each patch of a picture by its product with a text, and gives the box of what lies there.

    Patches and texts are mapped to one space; nothing but their product tells whether a patch shows what the text says,
    so that texts of new combinations of known words can be asked. Boxes do not depend on the text. Give its outputs to
    ``grounding_loss`` for training, and to ``detections`` for boxes.

    Args:
        image_encoder: from pictures to a map of patches ``(batch, image_dim, rows, columns)``, or to tokens ``(batch,
            patches, image_dim)`` of a square of patches, without a class token.
        text_encoder: from prompts to vectors ``(batch, text_dim)``; called with what follows the pictures in the call.
        dim: of the space in which they are compared.
        image_dim, text_dim: width of what the encoders give; default: ``dim``.

    Raises:
        ValueError: sizes below 1; in the call, encoders that give other shapes, or another number of prompts than of
            pictures.

    Source: arXiv:2112.03857, section 3.1 (equation 3), without deep fusion; boxes: arXiv:1904.01355, section 3.1.

    Example:
        >>> model = PromptDetector(nn.Conv2d(3, 8, 4, stride=4), nn.Linear(5, 8), 8)
        >>> outputs = model(torch.rand(2, 3, 24, 24), torch.rand(2, 5))
        >>> outputs.shape, len(detections(outputs, most=3)[0].boxes)
        (torch.Size([2, 6, 6, 5]), 3)
    """

    @checked
    def __init__(
        self,
        image_encoder: nn.Module,
        text_encoder: nn.Module,
        dim: int,
        *,
        image_dim: int | None = None,
        text_dim: int | None = None,
    ) -> None:
        image_dim, text_dim = (dim if width is None else width for width in (image_dim, text_dim))
        check_at_least(1, dim=dim, image_dim=image_dim, text_dim=text_dim)
        super().__init__()
        self.image_encoder, self.text_encoder, self.dim = image_encoder, text_encoder, dim
        self.patch, self.text, self.sides = nn.Linear(image_dim, dim), nn.Linear(text_dim, dim), nn.Linear(image_dim, 4)
        self.bias = nn.Parameter(torch.tensor(math.log(_RARE / (1 - _RARE))))

    @checked
    def forward(self, images: Tensor, *prompts: Any) -> Tensor:
        """Returns ``(batch, rows, columns, 5)``: a logit, and left, top, right and bottom of the box, for each patch.

        Boxes are parts of the picture's width and height; they may reach beyond it.

        Args:
            images: as the image encoder takes them, ``(batch, ...)``.
            prompts: as the text encoder takes them, such as ids and a mask, or vectors; one for each picture.

        Raises:
            ValueError: see the class.
        """
        patches = self._patches(self.image_encoder(images))
        texts = self.text_encoder(*prompts)
        if texts.ndim != 2 or len(texts) != len(patches):
            raise ValueError(
                f"prompts must be one for each of {len(patches)} images, and the text encoder give (batch, text_dim), "
                f"got {tuple(texts.shape)}"
            )
        rows, columns = patches.shape[1:3]
        logits = torch.einsum("brcd,bd->brc", self.patch(patches), self.text(texts)) / math.sqrt(self.dim) + self.bias
        centres = patch_centres(rows, columns).to(patches)
        reach = 2 * F.softplus(self.sides(patches)) / patches.new_tensor([columns, rows, columns, rows])
        boxes = torch.cat([centres - reach[..., :2], centres + reach[..., 2:]], 3)
        return torch.cat([logits.unsqueeze(3), boxes], 3)

    def _patches(self, found: Tensor) -> Tensor:
        """Patches ``(batch, rows, columns, image_dim)``."""
        width = self.patch.in_features
        if found.ndim == 4 and found.shape[1] == width:
            return found.permute(0, 2, 3, 1)
        side = math.isqrt(found.shape[1]) if found.ndim == 3 else 0
        if side and side**2 == found.shape[1] and found.shape[2] == width:
            return found.unflatten(1, (side, side))
        raise ValueError(
            f"image_encoder must give (batch, {width}, rows, columns) or (batch, patches, {width}) of a square, got "
            f"{tuple(found.shape)}"
        )


@checked
def patch_centres(rows: int, columns: int) -> Tensor:
    """Returns where the centres of patches lie, ``(rows, columns, 2)``: across and down, as parts of the picture.

    Args:
        rows, columns: of the map, at least 1.

    Raises:
        ValueError: numbers below 1.

    Example:
        >>> patch_centres(1, 2).tolist()
        [[[0.25, 0.5], [0.75, 0.5]]]
    """
    check_at_least(1, rows=rows, columns=columns)
    down, across = ((torch.arange(count) + 0.5) / count for count in (rows, columns))
    return torch.stack(torch.meshgrid(across, down, indexing="xy"), 2)


@checked
def detections(outputs: Tensor, *, most: int = 10, least: float = 0.0, iou: float = 0.5) -> list[Detections]:
    """Returns the boxes that a detector's outputs tell of each picture, those that overlap with a better one left out.

    Of each picture the 5 ``most`` best patches are looked at, boxes are cut at its edges.

    Args:
        outputs: ``(batch, rows, columns, 5)`` of ``PromptDetector``.
        most: boxes of a picture at most, at least 1.
        least: score below which there is nothing, in [0, 1].
        iou: overlap above which the worse box is left out, in [0, 1].

    Raises:
        ValueError: outputs of another shape or not finite, options out of range.

    Example:
        >>> patches = torch.tensor([[2.0, 0.0, 0.0, 0.5, 1.0], [-2.0, 0.5, 0.0, 1.0, 1.0]])
        >>> [found] = detections(patches.view(1, 1, 2, 5), least=0.5)
        >>> found.boxes.tolist(), round(found.scores.item(), 3)
        ([[0.0, 0.0, 0.5, 1.0]], 0.881)
    """
    check_outputs(outputs)
    check_at_least(1, most=most)
    check_fraction(least=least, iou=iou)
    flat = outputs.detach().flatten(1, 2)
    logits, places = flat[..., 0].topk(min(5 * most, flat.shape[1]), dim=1)
    boxes = flat[..., 1:].gather(1, places.unsqueeze(2).expand(-1, -1, 4)).clamp(0, 1)
    scores = logits.sigmoid()
    kept = suppress_overlaps(boxes, logits, iou=iou) & (scores >= least)
    return [Detections(b[k][:most], s[k][:most]) for b, s, k in zip(boxes, scores, kept, strict=True)]


def check_outputs(outputs: Tensor) -> None:
    """Refuses what is not finite outputs ``(batch, rows, columns, 5)`` of a detector.

    Raises:
        ValueError: another shape, values that are not finite, or boxes of another format.

    Example:
        >>> check_outputs(torch.zeros(2, 6, 6, 5))
    """
    check_dimensions(4, outputs=outputs)
    if outputs.shape[3] != 5 or 0 in outputs.shape[1:]:
        raise ValueError(f"outputs must be (batch, rows, columns, 5), got {tuple(outputs.shape)}")
    check_finite(outputs=outputs)
    check_boxes(outputs=outputs[..., 1:])
