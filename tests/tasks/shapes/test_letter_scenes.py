import pytest
import torch

from heldout.tasks import SCENE_COLORS, SCENE_SHAPES, render_scene


def every_object():
    color, shape = torch.meshgrid(torch.arange(1, 11), torch.arange(1, 27), indexing="ij")
    return torch.stack([color, shape], 2)


def test_every_object_has_a_picture_of_its_own():
    pictures = render_scene(every_object())
    cells = (
        pictures.unfold(1, 8, 8)
        .unfold(2, 8, 8)
        .permute(1, 2, 0, 3, 4)
        .reshape(len(SCENE_COLORS) * len(SCENE_SHAPES), -1)
    )
    assert len(cells.unique(dim=0)) == 260
    assert 0 <= float(pictures.min()) <= float(pictures.max()) <= 1
    assert (cells.sum(1) > 0).all()


def test_an_object_is_drawn_in_its_own_cell_and_colour():
    scene = torch.zeros(2, 2, 3, 2, dtype=torch.int64)
    scene[1, 1, 2] = torch.tensor([3, 20])  # a blue "t" at the right of the second row
    pictures = render_scene(scene, cell=12)
    assert pictures.shape == (2, 3, 24, 36)
    assert pictures[0].sum() == 0
    assert pictures[1, :, :12].sum() == pictures[1, :, 12:, :24].sum() == 0
    assert (pictures[1, :, 12:14, 24:34] == torch.tensor([40, 80, 235.0]).div(255)[:, None, None]).all()  # its bar
    assert pictures[1, :, 14:22, 24:28].sum() == 0


def test_what_has_no_picture_is_refused():
    scene = torch.ones(2, 2, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match="cell"):
        render_scene(scene, cell=5)
    for wrong in ([11, 1], [1, 27], [0, 1], [1, 0]):
        with pytest.raises(ValueError, match="scene"):
            render_scene(torch.tensor(wrong).expand(2, 2, 2))
