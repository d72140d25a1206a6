"""What pictures with prompts hold, and where things lie."""

import pytest
import torch

from heldout.data import gather
from heldout.tasks import PromptedPictures, cells_of


def test_examples_end_with_their_boxes_and_targets_leave_out_what_is_none():
    boxes = torch.tensor([[[0.1, 0.1, 0.2, 0.3], [0, 0, 0, 0]], [[0.0] * 4] * 2])
    made = PromptedPictures(torch.rand(2, 3, 8, 8), torch.tensor([[1], [2]]), boxes, ("a", "b"))
    (images, prompts), found = gather(made.dataset, torch.tensor([1, 0]))
    assert torch.equal(images, made.images.flip(0))
    assert prompts.tolist() == [[2], [1]]
    assert torch.equal(found, boxes.flip(0))
    assert [len(each) for each in made.targets] == [1, 0]


def test_a_box_at_the_corner_of_the_picture_is_none_only_if_it_is_all_zeros():
    made = PromptedPictures(torch.rand(1, 3, 8, 8), torch.tensor([[1]]), torch.tensor([[[0.0, 0, 0.3, 0.3]]]), ("a",))
    assert len(made.targets[0]) == 1


def test_things_of_a_picture_lie_in_different_cells_and_all_cells_are_used():
    cells = cells_of(300, 5, 3, seed=1000)
    places = cells[..., 0] * 3 + cells[..., 1]
    assert all(len(row.unique()) == 5 for row in places)
    counts = places.flatten().bincount(minlength=9)
    assert counts.min() > 120
    assert counts.max() < 220
    assert torch.equal(cells, cells_of(300, 5, 3, seed=1000))
    with pytest.raises(ValueError, match="count must be at most 4"):
        cells_of(1, 5, 2)
