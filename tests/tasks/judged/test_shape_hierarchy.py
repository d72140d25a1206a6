"""Shapes with a hierarchy, and the judges that know it."""

import pytest
import torch

from heldout.tasks import SHAPE_KINDS, judged_choices, judged_similarity, shape_hierarchy


def test_items_come_by_class_and_kind_and_a_seed_gives_the_same():
    items = shape_hierarchy([3, 13, 39], 4, classes_per_kind=10, seed=1)
    assert items.images.shape == (12, 3, 28, 28)
    assert items.kinds.tolist() == [0] * 4 + [1] * 4 + [3] * 4
    assert items.parts.shape == (12, 5)
    assert len(items.parts.unique(dim=0)) == 3
    assert torch.equal(items.parts[0], items.parts[3])
    assert items.images.min() >= 0
    assert items.images.max() <= 1
    assert torch.equal(items.images, shape_hierarchy([3, 13, 39], 4, classes_per_kind=10, seed=1).images)
    assert not torch.equal(items.images, shape_hierarchy([3, 13, 39], 4, classes_per_kind=10, seed=2).images)


def test_a_class_has_the_same_outline_whatever_else_is_drawn():
    alone, among = shape_hierarchy([5], 1, seed=3), shape_hierarchy([5, 7], 1, seed=3)
    lit = [each.images[0].mean(0) > 0.45 for each in (alone, among)]
    outlines = torch.stack([shape_hierarchy([c], 40, seed=4).images.mean((0, 1)) for c in (5, 7, 5)])
    assert lit[0].any()
    assert (outlines[0] - outlines[2]).abs().max() == 0
    assert (outlines[0] - outlines[1]).abs().max() > 0.1


@pytest.mark.parametrize("outline", [0.0, 1.0])
def test_only_parts_tell_the_kind(outline):
    """Item by item the same picture but for the parts, which vanish without contrast."""
    shown, hidden = (
        shape_hierarchy(range(4), 8, classes_per_kind=1, outline=outline, part_contrast=c) for c in (0.8, 0.0)
    )
    change = (shown.images - hidden.images).abs().mean(1).view(4, 8, 28, 28).mean(1)
    assert [float((each > 0.05).double().mean()) > 0.01 for each in change] == [True] * 4
    assert (change > 0.05).double().mean() < 0.2
    rows = (change * torch.arange(28)[:, None]).sum((1, 2)) / change.sum((1, 2))
    low = shown.parts[::8, 1]  # of each kind
    assert (rows - 13.5 - 14 * low).abs().max() < 3
    assert SHAPE_KINDS == ("wheels", "leaves", "windows", "ears")
    assert rows[0] > 18
    assert rows[1] < 9
    assert (rows[2:] - 13.5).abs().max() < 2.5


def test_judges_add_up_kind_class_and_features_and_choose_by_softmax():
    classes, kinds = torch.tensor([0, 0, 1, 2]), torch.tensor([0, 0, 0, 1])
    features = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0], [1.0, 1.0]])
    found = judged_similarity(classes, kinds, features, kind=2.0, basic=3.0, feature=0.5)
    assert found[0].tolist() == pytest.approx([5.5, 5.0, 2.5, 0.5 / 2**0.5])
    q = judged_choices(found, torch.tensor([[0, 3, 1]]), temperature=2.0)
    expected = (torch.tensor([found[0, 3], found[0, 1], found[3, 1]]) / 2).softmax(0)
    torch.testing.assert_close(q[0], expected)


def test_bad_options_are_refused():
    for name, call in {
        "classes": lambda: shape_hierarchy([24], 1),
        "empty": lambda: shape_hierarchy([], 1),
        "outline": lambda: shape_hierarchy([0], 1, outline=1.5),
        "part_contrast": lambda: shape_hierarchy([0], 1, part_contrast=2.0),
        "size": lambda: shape_hierarchy([0], 1, size=8),
        "basic": lambda: judged_similarity(torch.zeros(2).long(), torch.zeros(2).long(), torch.ones(2, 1), basic=-1.0),
        "triplets": lambda: judged_choices(torch.eye(3), torch.tensor([[0, 1, 3]])),
        "temperature": lambda: judged_choices(torch.eye(3), torch.tensor([[0, 1, 2]]), temperature=0.0),
    }.items():
        with pytest.raises(ValueError, match=name):
            call()
