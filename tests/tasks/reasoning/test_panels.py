import itertools

import pytest
import torch

from heldout.tasks import PANEL_RULES, row_panels


@pytest.mark.parametrize("attribute", ["colour", "size", "shape"])
def test_labels_say_whether_the_asked_rule_is_constant(attribute):
    panels = row_panels(400, attribute=attribute, size=18, seed=1)
    asked = ("colour", "size", "shape").index(attribute)
    assert torch.equal(panels.labels, (panels.rules[:, asked] == 0).long())
    assert panels.rules[:, asked].bincount().tolist() == [200, 100, 100]
    others = panels.rules[:, [i for i in range(3) if i != asked]].flatten().bincount()
    assert others.min() > 200  # of 800 in three rules


def test_rows_follow_their_rules():
    panels = row_panels(300, size=18, seed=2)
    spans = (6, 5, 5)
    ups = set()
    for rules, values in zip(panels.rules, panels.values, strict=True):
        for attribute, (rule, rows) in enumerate(zip(rules.tolist(), values.tolist(), strict=True)):
            assert 0 <= min(map(min, rows)) <= max(map(max, rows)) < spans[attribute]
            kind = PANEL_RULES[rule]
            if kind == "constant":
                assert all(len(set(row)) == 1 for row in rows)
                assert len({row[0] for row in rows}) == 3
            elif kind == "progression":
                steps = {b - a for row in rows for a, b in itertools.pairwise(row)}
                assert steps in ({1}, {-1})
                ups |= steps
            else:
                assert len({tuple(sorted(row)) for row in rows}) == 1
                assert len(set(rows[0])) == 3
    assert ups == {1, -1}


def test_pictures_show_the_colours_where_the_cells_are():
    panels = row_panels(50, size=36, noise=0.0, seed=3)
    for image, colours in zip(panels.images, panels.values[:, 0], strict=True):
        found = {}
        for row, column in itertools.product(range(3), range(3)):
            cell = image[:, row * 12 : row * 12 + 12, column * 12 : column * 12 + 12].flatten(1)
            spread = cell.max(0).values - cell.min(0).values
            assert (spread > 0.5).any()  # a saturated shape on grey ground
            assert (spread < 1e-5).any()
            found[row, column] = tuple(cell[:, spread.argmax()].mul(100).round().int().tolist())
        names = {(r, c): int(colours[r, c]) for r, c in found}
        for a, b in itertools.combinations(found, 2):
            assert (found[a] == found[b]) == (names[a] == names[b])


def test_sizes_and_shapes_are_seen():
    panels = row_panels(200, size=36, noise=0.0, seed=4)
    cells = panels.images.unfold(2, 12, 12).unfold(3, 12, 12).permute(0, 2, 3, 1, 4, 5)
    area = ((cells.max(3).values - cells.min(3).values) > 0.5).float().mean((3, 4))
    for shape in range(5):
        areas = [area[(panels.values[:, 2] == shape) & (panels.values[:, 1] == size)].mean() for size in range(5)]
        assert all(a < b for a, b in itertools.pairwise(areas))
    largest = [area[(panels.values[:, 2] == shape) & (panels.values[:, 1] == 4)].mean().item() for shape in range(5)]
    assert len({round(each, 2) for each in largest}) == 5


def test_labels_come_in_random_order_on_random_grounds():
    panels = row_panels(200, size=37, noise=0.0, seed=8)  # the last row and column lie behind the cells
    assert 40 < panels.labels[::2].sum() < 60  # of 100, neither all nor none
    corner, right, bottom = (panels.images[:, 0, i, j] for i, j in ((36, 36), (0, 36), (36, 0)))
    assert corner.std() > 0.1
    assert (corner - right).std() > 0.05
    assert (corner - bottom).std() > 0.05
    assert abs(torch.corrcoef(torch.stack([corner, panels.labels.float()]))[0, 1]) < 0.25


def test_seeds_noise_and_range():
    first, again, other = (row_panels(8, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, other.images)
    assert first.images.shape == (8, 3, 36, 36)
    assert 0 <= first.images.min() <= first.images.max() <= 1
    clean, noisy = row_panels(20, noise=0.0, seed=7).images, row_panels(20, noise=0.05, seed=7).images
    inside = (clean > 0.2) & (clean < 0.8)
    assert (noisy - clean)[inside].std() == pytest.approx(0.05, rel=0.05)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"count": 0}, "count must be at least 1"),
        ({"size": 17}, "size must be at least 18"),
        ({"noise": -0.1}, "noise must be at least 0"),
        ({"attribute": "weight"}, "attribute must be one of"),
    ],
)
def test_numbers_out_of_range_are_refused(options, what):
    with pytest.raises((ValueError, TypeError), match=what):
        row_panels(**{"count": 4, **options})
