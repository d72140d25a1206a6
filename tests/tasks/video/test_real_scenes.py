"""Photographs, their pieces, and drawings cut out of their paper."""

import pytest
import torch

from heldout.tasks import cut_out, photo_crops, photographs


def test_the_photographs_are_scikit_learns():
    from sklearn.datasets import load_sample_image

    pictures = photographs()
    assert list(pictures) == ["china", "flower"]
    assert torch.equal(pictures["china"].permute(1, 2, 0), torch.tensor(load_sample_image("china.jpg")))


def test_pieces_lie_inside_at_all_scales_and_half_are_mirrored():
    picture = torch.zeros(3, 64, 96, dtype=torch.uint8)
    picture[0] = torch.arange(96) * 2  # red tells the column, green the row
    picture[1] = (torch.arange(64) * 3).view(-1, 1)
    pieces = photo_crops(picture, 400, size=16, seed=0)
    assert pieces.shape == (400, 3, 16, 16)
    across = (pieces[:, 0, 0, 1:] - pieces[:, 0, 0, :-1]).mean(1) * 255 / 2  # columns of the picture a pixel
    assert 0.4 < (across < 0).float().mean() < 0.6
    scale = across.abs()
    assert scale.min() >= 0.99
    assert scale.max() <= 4.01
    assert 1.8 < scale.log().mean().exp() < 2.2  # even in the logarithm: the middle of 1 and 4 is 2
    left, top = pieces[:, 0].amin((1, 2)) * 255 / 2, pieces[:, 1].amin((1, 2)) * 255 / 3
    assert left.min() < 3
    assert (left + scale * 16).max() > 93
    assert (top + scale * 16).max() > 62
    down = (pieces[:, 1, 1:] - pieces[:, 1, :-1]).mean((1, 2)) * 255 / 3
    torch.testing.assert_close(down, scale, rtol=0.05, atol=0.05)
    assert torch.equal(pieces, photo_crops(picture, 400, size=16, seed=0))


def test_paper_is_what_is_white_up_to_the_border():
    image = torch.ones(2, 3, 9, 9)
    image[:, :, 2:8, 2:8] = 0.2
    image[:, :, 4:6, 4:6] = 1.0  # an eye
    image[1, :, 4, :4] = 0.99  # a slit from the border to the eye
    sprites = cut_out(image)
    assert torch.equal(sprites[:, :3], image)
    assert sprites[0, 3].sum() == 36
    assert sprites[1, 3].sum() == 36 - 4 - 2
    touching = torch.ones(1, 3, 5, 5)
    touching[:, 0] = 0.5  # nothing is white in all channels
    assert cut_out(touching)[0, 3].all()


def test_other_forms_are_refused():
    for picture in (torch.zeros(3, 8, 8), torch.zeros(1, 40, 40).byte(), torch.zeros(3, 8, 40).byte()):
        with pytest.raises(ValueError, match="picture"):
            photo_crops(picture, 2, size=16)
    for images in (torch.zeros(1, 1, 4, 4), torch.full((1, 3, 4, 4), 2.0), torch.zeros(3, 4, 4)):
        with pytest.raises(ValueError, match="images"):
            cut_out(images)
