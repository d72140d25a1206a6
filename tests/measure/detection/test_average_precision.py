"""Average precision: cases by hand, a naive reference, and a real library where it is installed."""

import pytest
import torch
from torch import nn

from heldout.measure import average_precision, prompt_gap, prompted_precision

A, B, C = ([0.0, 0.0, 1.0, 1.0], [2.0, 0.0, 3.0, 1.0], [5.0, 5.0, 6.0, 6.0])


def boxes(*rows):
    return torch.tensor(rows).reshape(-1, 4).float()


def one(found, scores, there, **options):
    return average_precision([boxes(*found)], [torch.tensor(scores)], [boxes(*there)], **options)


def test_by_hand():
    assert one([A, B], [0.9, 0.8], [A, B]) == 1.0
    assert one([], [], [A, B]) == 0.0
    assert one([C], [0.9], [A, B]) == 0.0
    assert one([A], [0.9], [A, B]) == 0.5
    assert one([A, A, B], [0.9, 0.8, 0.7], [A, B]) == pytest.approx(0.5 + 0.5 * 2 / 3)  # a duplicate lowers it
    assert one([A, B, A], [0.9, 0.8, 0.7], [A, B]) == 1.0  # not where all is found before it
    assert one([C, A, B], [0.9, 0.8, 0.7], [A, B]) == pytest.approx(2 / 3)  # the best precision at or beyond a recall


def test_a_picture_with_nothing_to_be_found_counts():
    found, scores, there = [boxes(A), boxes(A)], [torch.tensor([0.6]), torch.tensor([0.9])], [boxes(A), boxes()]
    assert average_precision(found, scores, there) == 0.5
    assert average_precision(found[:1], scores[:1], there[:1]) == 1.0


def test_the_overlap_decides_and_a_box_is_found_once_by_the_best():
    half = [0.0, 0.0, 1.0, 0.5]
    assert one([half], [0.9], [A], iou=0.5) == 1.0
    assert one([half], [0.9], [A], iou=0.51) == 0.0
    # the better box takes the target that it overlaps most, so that the other target is left to the second
    left, right, middle = [0.0, 0.0, 2.0, 1.0], [0.5, 0.0, 2.5, 1.0], [0.4, 0.0, 2.4, 1.0]
    assert one([middle, left], [0.9, 0.8], [left, right], iou=0.5) == 1.0


def naive(found, scores, there, iou, points):
    """Precision and recall at each threshold, one box at a time."""
    ranked = sorted(
        ((-float(s), i, j) for i, each in enumerate(scores) for j, s in enumerate(each)), key=lambda row: row[0]
    )
    taken, right, curve = set(), 0, []
    total = sum(len(each) for each in there)
    for rank, (_, i, j) in enumerate(ranked, start=1):
        a, best, which = found[i][j].tolist(), iou, None
        for k, b in enumerate(there[i].tolist()):
            wide = min(a[2], b[2]) - max(a[0], b[0])
            high = min(a[3], b[3]) - max(a[1], b[1])
            shared = max(0, wide) * max(0, high)
            union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
            if (i, k) not in taken and shared / union >= best and (which is None or shared / union > best):
                best, which = shared / union, k
        if which is not None:
            taken.add((i, which))
            right += 1
        curve.append((right / total, right / rank))
    if points is None:
        area, before = 0.0, 0.0
        for place, (recall, _) in enumerate(curve):
            area += (recall - before) * max(p for _, p in curve[place:])
            before = recall
        return area
    wanted = [k / (points - 1) for k in range(points)]
    return sum(max((p for r, p in curve if r >= w - 1e-12), default=0.0) for w in wanted) / points


def drawn(seed, pictures=8):
    generator = torch.Generator().manual_seed(seed)

    def draw(count):
        corner = torch.rand(count, 2, generator=generator) * 6
        return torch.cat([corner, corner + 1 + 3 * torch.rand(count, 2, generator=generator)], 1)

    there = [draw(int(torch.randint(0, 4, (), generator=generator))) for _ in range(pictures)]
    found, scores = [], []
    for each in there:
        near = each + 0.6 * torch.randn(each.shape, generator=generator)
        near[:, 2:] = torch.maximum(near[:, 2:], near[:, :2] + 0.1)
        found.append(torch.cat([near, near[:1], draw(int(torch.randint(0, 4, (), generator=generator)))]))
        scores.append(torch.rand(len(found[-1]), generator=generator))
    return found, scores, there


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("points", [None, 11, 101])
@pytest.mark.parametrize("iou", [0.3, 0.5, 0.75])
def test_equal_to_a_naive_reference_on_random_boxes(seed, points, iou):
    found, scores, there = drawn(seed)
    want = naive(found, scores, there, iou, points)
    assert average_precision(found, scores, there, iou=iou, points=points) == pytest.approx(want, abs=1e-9)


def test_parity_with_torchmetrics():
    pytest.importorskip("pycocotools")
    pytest.importorskip("torchvision")
    detection = pytest.importorskip("torchmetrics.detection")
    for seed in range(6):
        found, scores, there = drawn(seed)
        metric = detection.MeanAveragePrecision(iou_thresholds=[0.5])
        zeros = [torch.zeros(len(each), dtype=torch.int64) for each in found]
        metric.update(
            [{"boxes": b, "scores": s, "labels": z} for b, s, z in zip(found, scores, zeros, strict=True)],
            [{"boxes": b, "labels": torch.zeros(len(b), dtype=torch.int64)} for b in there],
        )
        assert average_precision(found, scores, there, points=101) == pytest.approx(
            metric.compute()["map"].item(), abs=1e-6
        )


def test_bad_input_is_named():
    good = ([boxes(A)], [torch.tensor([0.9])], [boxes(B)])
    for place, wrong, name in (
        (0, [boxes(A, B)], r"boxes\[0\] and scores\[0\]"),
        (0, [boxes([1.0, 1.0, 0.0, 0.0])], r"boxes\[0\]"),
        (1, [torch.tensor([float("nan")])], r"scores\[0\]"),
        (2, [boxes()], "targets must hold"),
        (2, [torch.zeros(2, 5)], r"targets\[0\]"),
        (2, [boxes(A), boxes(A)], "equally long"),
    ):
        with pytest.raises(ValueError, match=name):
            average_precision(*good[:place], wrong, *good[place + 1 :])
    for options in ({"iou": 0.0}, {"iou": 1.5}, {"points": 1}):
        with pytest.raises(ValueError, match=next(iter(options))):
            average_precision(*good, **options)
    with pytest.raises(ValueError, match="boxes must not be empty"):
        average_precision([], [], [])


class Told(nn.Module):
    """Says the boxes that its prompts are, with the score that the picture is; in training mode nothing right."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def forward(self, images, prompts):
        self.sizes.append(len(images))
        boxes = prompts[:, None, None] * (0.5 if self.training else 1.0)
        return torch.cat([images.mean((1, 2, 3)).view(-1, 1, 1, 1), boxes], 3)


def test_a_detector_is_scored_over_pairs_in_eval_mode_batch_by_batch():
    boxes = torch.tensor([[0.1, 0.1, 0.5, 0.5], [0.2, 0.2, 0.9, 0.9], [0.0, 0.5, 0.5, 1.0]])
    there = torch.stack([boxes, torch.zeros_like(boxes)], 1)
    images = torch.tensor([3.0, 2.0, 1.0]).view(3, 1, 1, 1).expand(3, 3, 2, 2)
    model = Told().train()
    assert prompted_precision(model, images, boxes, there, batch_size=2) == 1.0
    assert model.sizes == [2, 1]
    assert model.training  # as it was
    there[0] = 0  # the best one is wrong now
    assert prompted_precision(model, images, boxes, there) == pytest.approx(2 / 3)
    assert prompted_precision(model, images, boxes.flip(0), there[[0, 2, 1]], iou=0.9) < 0.5
    with pytest.raises(ValueError, match="equally long"):
        prompted_precision(model, images, boxes[:2], there)
    with pytest.raises(ValueError, match="targets must hold"):
        prompted_precision(model, images, boxes, 0 * there)
    with pytest.raises(ValueError, match="boxes must be"):
        prompted_precision(model, images, boxes, there[..., :3])


def test_what_is_scored_too_low_is_not_found():
    boxes = torch.tensor([[0.1, 0.1, 0.5, 0.5], [0.2, 0.2, 0.9, 0.9]])
    images = torch.tensor([2.0, -2.0]).view(2, 1, 1, 1).expand(2, 3, 2, 2)
    assert prompted_precision(Told(), images, boxes, boxes[:, None]) == 1.0
    assert prompted_precision(Told(), images, boxes, boxes[:, None], least=0.5) == 0.5


def test_of_equal_scores_earlier_pictures_and_boxes_come_first():
    there, elsewhere = torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[5.0, 5.0, 6.0, 6.0]])
    same = [torch.tensor([0.5]), torch.tensor([0.5])]
    nothing = torch.zeros(0, 4)
    assert average_precision([there, elsewhere], same, [there, nothing]) == 1.0
    assert average_precision([elsewhere, there], same, [nothing, there]) == 0.5
    both = [torch.cat([there, elsewhere])], [torch.cat([elsewhere, there])]
    assert [average_precision(boxes, [torch.full((2,), 0.5)], [there]) for boxes in both] == [1.0, 0.5]


class Reads(nn.Module):
    """Two patches, a box on the left and one on the right; the prompt says how much more the left one is liked."""

    def forward(self, images, prompts):
        boxes = torch.tensor([[0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 1.0]]).expand(len(images), 2, 4)
        logits = torch.stack([prompts, -prompts], 1)
        return torch.cat([logits.unsqueeze(2), boxes], 2).unsqueeze(1)


def test_the_gap_is_what_the_own_prompts_are_worth():
    images = torch.zeros(2, 3, 4, 4)
    boxes = torch.tensor([[[0.0, 0.0, 0.5, 1.0]], [[0.5, 0.0, 1.0, 1.0]]])
    own, wrong = torch.tensor([2.0, -2.0]), torch.tensor([-2.0, 2.0])
    arguments = (Reads(), images, own, boxes)
    assert prompted_precision(*arguments) == 1.0
    assert prompt_gap(*arguments, [wrong]) == pytest.approx(1 - 0.5)
    assert prompt_gap(*arguments, [wrong, own]) == pytest.approx((0.5 + 0) / 2)
    assert prompt_gap(*arguments, [wrong], least=0.6) == 1.0  # options are those of the precision
    assert prompt_gap(Reads(), images, wrong, boxes, [own]) == pytest.approx(-0.5)
    for others, name in (([], "others"), ([wrong[:1]], "equally long"), ([wrong * torch.nan], r"others\[0\]")):
        with pytest.raises(ValueError, match=name):
            prompt_gap(*arguments, others)
