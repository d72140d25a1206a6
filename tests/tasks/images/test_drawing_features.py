"""Drawings as EfficientNet-Lite0 sees them: the first things of each class always, features where the packages are."""

import pytest
import torch

from heldout.nn import efficientnet_lite0
from heldout.sources import ENET, STYLE, TAGS, missing
from heldout.tasks import Drawings, drawing_features, first_drawings

SOURCES = (STYLE, TAGS, ENET)
needs_all = pytest.mark.skipif(not all(source.here() for source in SOURCES), reason=missing(SOURCES))


def made():
    """Two styles of five things, of classes 1, 0, 1, 1, 0."""
    labels, things = torch.tensor([1, 0, 1, 1, 0]).repeat(2), torch.arange(5).repeat(2)
    images = torch.arange(10).view(-1, 1, 1, 1).expand(10, 3, 8, 8)
    return Drawings(images, labels, torch.arange(10) // 5, things, ("a", "b"), tuple("pqrst"))


@pytest.mark.parametrize(("things", "kept"), [(1, [0, 1]), (2, [0, 1, 2, 4]), (9, [0, 1, 2, 3, 4])])
def test_the_first_things_of_each_class_stay_in_every_style(things, kept):
    few = first_drawings(made(), things)
    assert few.things.tolist() == kept * 2
    assert few.images[:, 0, 0, 0].tolist() == kept + [5 + number for number in kept]
    assert few.labels.tolist() == made().labels[few.images[:, 0, 0, 0]].tolist()
    assert few.domains.tolist() == [0] * len(kept) + [1] * len(kept)


def test_less_than_one_thing_is_refused():
    with pytest.raises(ValueError, match="things"):
        first_drawings(made(), 0)


@needs_all
def test_features_are_those_of_the_network_up_to_the_part():
    pictures, maps = drawing_features(32, before="stage6", things=1)
    assert len(pictures.images) == 4 * 12
    assert maps.shape[1:] == (112, 2, 2)
    net = efficientnet_lite0()
    whole = net(pictures.images[:2] / 255)
    rest = net[[name for name, _ in net.named_children()].index("stage6") :]
    torch.testing.assert_close(rest(maps[:2]), whole)


@needs_all
def test_a_part_that_the_network_lacks_is_refused():
    with pytest.raises(ValueError, match="before must be one of"):
        drawing_features(32, before="stage9")
