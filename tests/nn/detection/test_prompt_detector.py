"""The detector with other encoders, what its numbers mean, and what is refused."""

import math

import pytest
import torch
from torch import nn

from heldout.nn import BagOfWordsEncoder, PromptDetector, detections, patch_centres


class Tokens(nn.Module):
    """As a vision transformer gives them: tokens, with BatchNorm and dropout on the way."""

    def __init__(self):
        super().__init__()
        self.map = nn.Sequential(nn.Conv2d(3, 6, 8, stride=8), nn.BatchNorm2d(6), nn.Dropout(0.1))

    def forward(self, images):
        return self.map(images).flatten(2).transpose(1, 2)


def detector(dim=8, **options):
    torch.manual_seed(0)
    options = {"image_dim": 6, "text_dim": 5} | options
    return PromptDetector(nn.Conv2d(3, 6, 8, stride=8), nn.Linear(4, 5), dim, **options).eval()


def test_scores_are_products_and_boxes_do_not_depend_on_the_text():
    model, images = detector(), torch.rand(2, 3, 16, 24)
    outputs = model(images, torch.rand(2, 4))
    assert outputs.shape == (2, 2, 3, 5)
    other = model(images, torch.rand(2, 4))
    assert torch.equal(outputs[..., 1:], other[..., 1:])
    assert not torch.equal(outputs[..., 0], other[..., 0])
    text = torch.rand(2, 4)
    patches = model.patch(model.image_encoder(images).permute(0, 2, 3, 1))
    vectors = model.text(model.text_encoder(text))
    want = (patches[1, 0, 2] * vectors[1]).sum() / math.sqrt(8) + model.bias
    torch.testing.assert_close(model(images, text)[1, 0, 2, 0], want)


def test_a_box_lies_around_the_centre_of_its_patch():
    boxes = detector()(torch.rand(1, 3, 16, 24), torch.rand(1, 4))[0, ..., 1:]
    centres = patch_centres(2, 3)
    assert (boxes[..., :2] < centres).all()
    assert (boxes[..., 2:] > centres).all()
    torch.testing.assert_close(centres[1, 2], torch.tensor([2.5 / 3, 0.75]))


def test_an_untrained_sides_layer_gives_boxes_of_about_three_patches():
    model = detector()
    nn.init.zeros_(model.sides.weight)
    nn.init.zeros_(model.sides.bias)
    box = model(torch.rand(1, 3, 16, 24), torch.rand(1, 4))[0, 0, 0, 1:]
    torch.testing.assert_close(box[2] - box[0], torch.tensor(4 * math.log(2) / 3))
    torch.testing.assert_close(box[3] - box[1], torch.tensor(4 * math.log(2) / 2))


def test_tokens_words_and_half_precision_are_taken_too():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.bag = BagOfWordsEncoder(torch.randn(9, 5))

        def forward(self, ids, mask):
            return self.bag(ids, mask)

    model = PromptDetector(Tokens(), Words(), 8, image_dim=6, text_dim=5)
    ids = torch.tensor([[1, 2, 0], [3, 0, 0]])
    outputs = model(torch.rand(2, 3, 32, 32), ids, ids > 0)
    assert outputs.shape == (2, 4, 4, 5)
    outputs.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    half = detector().bfloat16()
    assert half(torch.rand(1, 3, 16, 16).bfloat16(), torch.rand(1, 4).bfloat16()).dtype == torch.bfloat16


def test_detections_are_cut_sorted_suppressed_and_at_most_as_many():
    generator = torch.Generator().manual_seed(1)
    outputs = torch.randn(3, 4, 4, 5, generator=generator)
    outputs[..., 3:] = outputs[..., 1:3].clamp(-1, 1) + torch.rand(3, 4, 4, 2, generator=generator) * 3
    outputs[..., 1:3] = outputs[..., 1:3].clamp(-1, 1)
    for found, logits in zip(detections(outputs, most=4, iou=0.3), outputs[..., 0], strict=True):
        assert len(found.boxes) <= 4
        assert found.boxes.min() >= 0
        assert found.boxes.max() <= 1
        assert (found.scores.diff() <= 0).all()
        assert found.scores[0] == logits.max().sigmoid()
    least = detections(outputs, least=0.7)
    assert all((found.scores >= 0.7).all() for found in least)


def test_patches_behind_those_that_are_left_out_are_looked_at():
    """The two best patches have one box: the second thing is the third best patch."""
    patches = torch.tensor([[3.0, 0.0, 0.0, 0.4, 0.4], [2.0, 0.0, 0.0, 0.4, 0.41], [1.0, 0.6, 0.6, 1.0, 1.0]])
    [found] = detections(patches.view(1, 1, 3, 5), most=2)
    torch.testing.assert_close(found.boxes, patches[[0, 2], 1:])
    torch.testing.assert_close(found.scores, patches[[0, 2], 0].sigmoid())


def test_nothing_is_lost_where_all_scores_are_equal_to_one():
    outputs = torch.tensor([[80.0, 0, 0, 0.4, 0.4], [90.0, 0.6, 0.6, 1, 1]]).view(1, 1, 2, 5)
    [found] = detections(outputs)
    assert found.boxes[0].tolist() == pytest.approx([0.6, 0.6, 1, 1])  # the better logit comes first


def test_wrong_encoders_and_outputs_are_refused():
    with pytest.raises(ValueError, match="image_encoder must give"):
        PromptDetector(nn.Flatten(), nn.Identity(), 4)(torch.rand(2, 3, 8, 8), torch.rand(2, 4))
    with pytest.raises(ValueError, match="image_encoder must give"):
        detector(image_dim=7)(torch.rand(2, 3, 16, 16), torch.rand(2, 4))
    with pytest.raises(ValueError, match="prompts must be one for each of 2"):
        detector()(torch.rand(2, 3, 16, 16), torch.rand(3, 4))
    with pytest.raises(ValueError, match="dim must be at least 1"):
        detector(0)
    with pytest.raises(ValueError, match="outputs must be"):
        detections(torch.zeros(1, 2, 2, 4))
    with pytest.raises(ValueError, match="finite"):
        detections(torch.full((1, 1, 1, 5), torch.nan))
