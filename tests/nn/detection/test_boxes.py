"""Overlaps of boxes against pictures of pixels, and suppression against a naive loop."""

import pytest
import torch

from heldout.nn import box_iou, check_boxes, generalized_box_iou, suppress_overlaps


def drawn(count, seed=0, batch=()):
    """Boxes with whole numbers as corners, so that pixels can be counted."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.randint(0, 12, (*batch, count, 2), generator=generator)
    size = torch.randint(1, 8, (*batch, count, 2), generator=generator)
    return torch.cat([corner, corner + size], -1).double()


def pixels(box):
    left, top, right, bottom = (int(v) for v in box)
    return {(x, y) for x in range(left, right) for y in range(top, bottom)}


def test_overlap_is_that_of_counted_pixels():
    first, second = drawn(15, 0), drawn(11, 1)
    found = box_iou(first, second)
    assert found.shape == (15, 11)
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            want = len(pixels(a) & pixels(b)) / len(pixels(a) | pixels(b))
            assert found[i, j].item() == pytest.approx(want, abs=1e-12)


def test_generalised_overlap_takes_off_what_neither_covers_of_the_box_around_both():
    first, second = drawn(40, 2), drawn(40, 3)
    found = generalized_box_iou(first, second)
    for a, b, value in zip(first, second, found, strict=True):
        low, high = torch.minimum(a, b)[:2], torch.maximum(a, b)[2:]
        around, union = pixels([*low, *high]), pixels(a) | pixels(b)
        want = len(pixels(a) & pixels(b)) / len(union) - (len(around) - len(union)) / len(around)
        assert value.item() == pytest.approx(want, abs=1e-12)
    assert found.min() < -0.2


def test_generalised_overlap_pulls_boxes_that_do_not_meet():
    box = torch.tensor([[0.0, 0.0, 1.0, 1.0]], requires_grad=True)
    (1 - generalized_box_iou(box, torch.tensor([[3.0, 0.0, 4.0, 1.0]]))).sum().backward()
    assert box.grad[0, 2] < 0  # its right side is to go to the right


def test_a_box_without_area_overlaps_with_none():
    point = torch.full((1, 4), 0.5)
    assert box_iou(point, point).item() == 0
    assert generalized_box_iou(point, point).isfinite().all()


def naive(boxes, scores, iou):
    kept = []
    for place in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        if all(box_iou(boxes[place][None], boxes[k][None]).item() <= iou for k in kept):
            kept.append(place)
    return [place in kept for place in range(len(boxes))]


@pytest.mark.parametrize("iou", [0.0, 0.2, 0.5, 1.0])
def test_suppression_is_that_of_a_naive_loop(iou):
    boxes = drawn(14, 4, (6,))
    scores = torch.rand(6, 14, generator=torch.Generator().manual_seed(5))
    scores[0, :4] = scores[0, 0]  # equal ones: the first comes first
    found = suppress_overlaps(boxes, scores, iou=iou)
    assert found.tolist() == [naive(b, s.tolist(), iou) for b, s in zip(boxes, scores, strict=True)]


def test_a_box_that_was_left_out_leaves_out_no_other():
    boxes = torch.tensor([[[0.0, 0, 4, 1], [1.5, 0, 5.5, 1], [3.0, 0, 7.0, 1]]])
    assert suppress_overlaps(boxes, torch.tensor([[0.9, 0.8, 0.7]]), iou=0.4).tolist() == [[True, False, True]]


@pytest.mark.parametrize("boxes", [[0.5, 0.5, 0.2, 0.2], [0.1, 0.5, 0.2, 0.4], [0.0, 0.0, float("nan"), 1.0]])
def test_other_formats_are_refused_by_name(boxes):
    for call in (box_iou, generalized_box_iou):
        with pytest.raises(ValueError, match="first must be"):
            call(torch.tensor([boxes]), torch.ones(1, 4))
    with pytest.raises(ValueError, match="mine must be"):
        check_boxes(mine=torch.zeros(3, 5))
    with pytest.raises(ValueError, match="scores must be"):
        suppress_overlaps(torch.zeros(1, 2, 4), torch.zeros(1, 3))
    with pytest.raises(ValueError, match="one shape"):
        generalized_box_iou(torch.zeros(1, 4), torch.zeros(2, 4))
