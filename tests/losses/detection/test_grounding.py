"""The loss of a detector against a naive loop in double precision, its targets, and its gradients."""

import math

import pytest
import torch

from heldout.losses import alignment_loss, box_regression_loss, grounding_loss, patch_targets
from heldout.nn import generalized_box_iou


def naive_targets(boxes, rows, columns, middle=0.5):
    """For each patch, the smallest box that it answers for, or None."""
    found = []
    for r in range(rows):
        for c in range(columns):
            x, y = (c + 0.5) / columns, (r + 0.5) / rows
            best = None
            for left, top, right, bottom in boxes.tolist():
                if right <= left or bottom <= top:
                    continue
                mid_x, mid_y = (left + right) / 2, (top + bottom) / 2
                near = abs(x - mid_x) <= middle / 2 * (right - left) and abs(y - mid_y) <= middle / 2 * (bottom - top)
                own = min(int(mid_x * columns), columns - 1) == c and min(int(mid_y * rows), rows - 1) == r
                area = (right - left) * (bottom - top)
                if (near or own) and (best is None or area < best[0]):
                    best = (area, (left, top, right, bottom))
            found.append(None if best is None else best[1])
    return found


def scene(seed=0, batch=5, most=3, rows=4, columns=6):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(batch, most, 2, generator=generator, dtype=torch.float64) * 0.6
    size = 0.05 + 0.35 * torch.rand(batch, most, 2, generator=generator, dtype=torch.float64)
    boxes = torch.cat([corner, corner + size], 2)
    boxes[0] = 0  # nothing to be found
    boxes[1, 1:] = 0
    outputs = torch.randn(batch, rows, columns, 5, generator=generator, dtype=torch.float64)
    outputs[..., 3:] = outputs[..., 1:3] + outputs[..., 3:].abs() + 0.1
    return outputs, boxes


@pytest.mark.parametrize("seed", range(4))
def test_targets_are_those_of_a_naive_loop(seed):
    _, boxes = scene(seed)
    found = patch_targets(boxes, 4, 6)
    for picture, positive, own in zip(boxes, found.positive, found.boxes, strict=True):
        want = naive_targets(picture, 4, 6)
        assert positive.flatten().tolist() == [w is not None for w in want]
        for w, box in zip(want, own.flatten(0, 1).tolist(), strict=True):
            assert box == pytest.approx(w or (0, 0, 0, 0))


def test_a_box_smaller_than_a_patch_has_one_and_of_several_the_smallest_counts():
    small = torch.tensor([[[0.26, 0.26, 0.3, 0.3], [0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]]])
    found = patch_targets(small, 4, 4)
    torch.testing.assert_close(found.boxes[0, 1, 1], small[0, 0])
    torch.testing.assert_close(found.boxes[0, 2, 2], small[0, 1])
    assert not found.positive[0, 0, 0]
    at_the_edge = patch_targets(torch.tensor([[[0.9, 0.9, 1.0, 1.0]]]), 1, 1)
    assert at_the_edge.positive.all()


@pytest.mark.parametrize(("gamma", "alpha"), [(0.0, 0.5), (2.0, 0.25), (1.0, 1.0)])
def test_alignment_is_the_focal_loss_over_the_number_of_positives(gamma, alpha):
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(4, 3, 5, generator=generator, dtype=torch.float64)
    positive = torch.rand(4, 3, 5, generator=generator) < 0.3
    positive[2] = False
    found = alignment_loss(logits, positive, gamma=gamma, alpha=alpha)
    for row, wanted, value in zip(logits, positive, found, strict=True):
        total = 0.0
        for logit, yes in zip(row.flatten().tolist(), wanted.flatten().tolist(), strict=True):
            p = 1 / (1 + math.exp(-logit))
            total += -alpha * (1 - p) ** gamma * math.log(p) if yes else -(1 - alpha) * p**gamma * math.log(1 - p)
        assert value.item() == pytest.approx(total / max(1, int(wanted.sum())), abs=1e-9)
    assert found[2] > 0 or alpha == 1  # nothing to be found counts


def test_the_whole_is_alignment_and_the_mean_over_positive_patches_of_the_boxes():
    outputs, boxes = scene()
    found = grounding_loss(outputs, boxes, reduction="none", box_weight=0.7)
    for picture, there, value in zip(outputs, boxes, found, strict=True):
        want = naive_targets(there, 4, 6)
        rows = picture.flatten(0, 1)
        positive = torch.tensor([w is not None for w in want])
        total = alignment_loss(rows[None, :, 0], positive[None]).item()
        parts = []
        for row, w in zip(rows, want, strict=True):
            if w is not None:
                w = torch.tensor(w, dtype=torch.float64)
                parts.append(5 * (row[1:] - w).abs().sum().item() + 2 * (1 - generalized_box_iou(row[1:], w).item()))
        total += 0.7 * sum(parts) / len(parts) if parts else 0.0
        assert value.item() == pytest.approx(total, abs=1e-9)
    assert grounding_loss(outputs, boxes, box_weight=0.7).item() == pytest.approx(found.mean().item())


def test_a_picture_with_nothing_to_find_lowers_scores_and_moves_no_box():
    outputs = torch.zeros(2, 2, 2, 5, dtype=torch.float64)
    outputs[..., 3:] = 0.4
    outputs.requires_grad_()
    boxes = torch.zeros(2, 1, 4, dtype=torch.float64)
    boxes[1, 0] = torch.tensor([0.1, 0.1, 0.4, 0.4])
    grounding_loss(outputs, boxes).backward()
    assert (outputs.grad[0, ..., 0] > 0).all()
    assert (outputs.grad[0, ..., 1:] == 0).all()
    assert outputs.grad[1, 0, 0, 0] < 0
    assert (outputs.grad[1, 0, 0, 1:] != 0).any()


def test_pixels_centres_and_other_formats_are_refused():
    outputs, boxes = scene()
    for wrong in (boxes * 48, torch.cat([boxes[..., 2:], boxes[..., :2]], 2), boxes[..., :3]):
        with pytest.raises(ValueError, match="boxes must be"):
            grounding_loss(outputs, wrong)
    with pytest.raises(ValueError, match="width and a height"):
        grounding_loss(outputs, torch.tensor([[[0.2, 0.2, 0.2, 0.4]]] * 5))
    with pytest.raises(ValueError, match="equally long"):
        grounding_loss(outputs, boxes[:2])
    with pytest.raises(ValueError, match="finite"):
        grounding_loss(outputs, boxes * torch.nan)
    with pytest.raises(ValueError, match="finite"):
        grounding_loss(outputs * torch.nan, boxes)
    with pytest.raises(TypeError, match="positive must be bool"):
        alignment_loss(torch.zeros(1, 2), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="giou must be"):
        box_regression_loss(boxes, boxes, giou=-1.0)
