"""Coloured drawings are those that their names say."""

import pytest
import torch

from heldout.sources import ENET, STYLE, TAGS, missing
from heldout.tasks import DRAWN_COLORS, DRAWN_SHAPES, ColouredDrawings, coloured_drawings, drawings

INSTALLED = pytest.mark.skipif(bool(missing([STYLE, TAGS, ENET])), reason="the data packages are not installed")


@pytest.fixture(scope="module")
def drawn():
    return coloured_drawings(size=64)


def test_objects_are_drawn_as_they_are_and_in_the_styles_asked_for():
    grid = torch.cartesian_prod(torch.arange(2), torch.arange(2), torch.arange(3)).repeat(2, 1)
    drawn = ColouredDrawings(torch.arange(24.0).unsqueeze(1), *grid.unbind(1))
    objects = torch.randint(0, 2, (200, 3, 3), generator=torch.Generator().manual_seed(0))
    objects[:, 2] = -1
    for within in (True, False):
        found = drawn.of_objects(objects, 1, within=within, seed=3)
        assert found.shape == (200, 3, 1)
        assert (found[:, 2] == 0).all()
        which = found[:, :2, 0].long()
        assert torch.equal(drawn.colors[which], objects[:, :2, 0])
        assert torch.equal(drawn.shapes[which], objects[:, :2, 1])
        assert ((drawn.styles[which] == 1) == within).all()
        assert len(which.unique()) == (8 if within else 16)  # each that fits is taken
        assert torch.equal(found, drawn.of_objects(objects, 1, within=within, seed=3))
        assert not torch.equal(found, drawn.of_objects(objects, 1, within=within, seed=4))
    with pytest.raises(ValueError, match="objects must be drawn"):
        drawn.of_objects(objects, 5, within=True)


@INSTALLED
def test_each_pair_is_drawn_in_each_style_and_looks_as_it_is_called(drawn):
    assert drawn.features.shape == (len(drawn.colors), 80)
    cells = set(zip(drawn.colors.tolist(), drawn.shapes.tolist(), drawn.styles.tolist(), strict=True))
    assert len(cells) == len(DRAWN_COLORS) * len(DRAWN_SHAPES) * 4
    assert drawn.features.isfinite().all()
    pictures = drawings(label="name", size=64)
    red = [i for i, thing in enumerate(pictures.things.tolist()) if pictures.names[thing] == "red-circle"]
    middle = pictures.images[red][:, :, 32, 32].float()
    assert (middle[:, 0] > 1.5 * middle[:, 2]).all()
    assert int(((drawn.colors == 0) & (drawn.shapes == 0)).sum()) == len(red) == 4


@INSTALLED
def test_the_last_features_are_those_that_enter_the_head():
    drawn = coloured_drawings(("red", "blue"), ("circle", "heart"), before="dropout", size=64)
    assert drawn.features.shape == (16, 1280)
    assert drawn.colors.bincount().tolist() == drawn.shapes.bincount().tolist() == [8, 8]


@INSTALLED
def test_pictures_of_one_colour_are_nearer_to_each_other_across_styles_than_chance(drawn):
    one, other = drawn.styles == 0, drawn.styles == 1
    features = torch.nn.functional.normalize(drawn.features - drawn.features.mean(0), dim=1)
    nearest = (features[one] @ features[other].T).argmax(1)
    same = (drawn.colors[other][nearest] == drawn.colors[one]).double().mean()
    assert float(same) > 3 / len(DRAWN_COLORS)


@INSTALLED
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"colors": ()}, "colors"),
        ({"colors": ("red", "turquoise")}, "no turquoise"),
        ({"size": 4}, "size"),
        ({"before": "stage9"}, "before"),
    ],
)
def test_what_is_not_drawn_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        coloured_drawings(**{"size": 64, **options})
