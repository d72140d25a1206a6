"""Coloured drawings are those that their names say."""

import pytest
import torch

from heldout.sources import ENET, STYLE, TAGS, missing
from heldout.tasks import DRAWN_COLORS, DRAWN_SHAPES, coloured_drawings, drawings

pytestmark = pytest.mark.skipif(bool(missing([STYLE, TAGS, ENET])), reason="the data packages are not installed")


def test_each_pair_is_drawn_in_each_style_and_looks_as_it_is_called():
    drawn = coloured_drawings(size=64)
    assert drawn.features.shape == (len(drawn.colors), 80)
    cells = set(zip(drawn.colors.tolist(), drawn.shapes.tolist(), drawn.styles.tolist(), strict=True))
    assert len(cells) == len(DRAWN_COLORS) * len(DRAWN_SHAPES) * 4
    assert drawn.features.isfinite().all()
    pictures = drawings(label="name", size=64)
    red = [i for i, thing in enumerate(pictures.things.tolist()) if pictures.names[thing] == "red-circle"]
    middle = pictures.images[red][:, :, 32, 32].float()
    assert (middle[:, 0] > 1.5 * middle[:, 2]).all()
    assert int(((drawn.colors == 0) & (drawn.shapes == 0)).sum()) == len(red) == 4


def test_the_last_features_are_those_that_enter_the_head():
    drawn = coloured_drawings(("red", "blue"), ("circle", "heart"), before="dropout", size=64)
    assert drawn.features.shape == (16, 1280)
    assert drawn.colors.bincount().tolist() == drawn.shapes.bincount().tolist() == [8, 8]


def test_pictures_of_one_colour_are_nearer_to_each_other_across_styles_than_chance():
    drawn = coloured_drawings(size=64)
    one, other = drawn.styles == 0, drawn.styles == 1
    features = torch.nn.functional.normalize(drawn.features - drawn.features.mean(0), dim=1)
    nearest = (features[one] @ features[other].T).argmax(1)
    same = (drawn.colors[other][nearest] == drawn.colors[one]).double().mean()
    assert float(same) > 3 / len(DRAWN_COLORS)


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
