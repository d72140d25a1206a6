"""Scores of videos against means written out, and where their clips lie."""

import pytest
import torch
from torch import nn

from heldout.measure import clip_starts, video_accuracy, video_scores


def test_clips_lie_evenly_from_the_first_frame_to_the_last():
    assert clip_starts(100, 16, 5) == [0, 21, 42, 63, 84]
    assert clip_starts(16, 16, 4) == [0, 0, 0, 0]
    assert clip_starts(19, 16, 1) == [1]
    assert clip_starts(17, 16, 3) == [0, 0, 1]
    assert clip_starts(10, 8, 4) == [0, 1, 1, 2]
    for arguments, word in (((15, 16, 2), "length"), ((20, 0, 2), "frames"), ((20, 4, 0), "n_clips")):
        with pytest.raises(ValueError, match=word):
            clip_starts(*arguments)


class Net(nn.Module):
    """BatchNorm and dropout, so that a network left in train mode is seen."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.drop, self.linear = nn.BatchNorm3d(2), nn.Dropout(0.5), nn.Linear(2 * 4, 3)
        self.shapes = []

    def forward(self, clips):
        self.shapes.append(tuple(clips.shape))
        return self.linear(self.drop(self.norm(clips)).mean((3, 4)).flatten(1)) * 5


def videos(*lengths):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, length, 5, 9, generator=generator) for length in lengths]


def test_probabilities_not_logits_are_averaged_over_the_clips_of_each_video():
    net, given = Net(), videos(10, 4, 7)
    net.norm.eval()
    scores = video_scores(net, given, frames=4, n_clips=3)
    assert (net.training, net.norm.training, net.drop.training) == (True, False, True)
    assert net.norm.num_batches_tracked == 0
    net.eval()
    for video, score in zip(given, scores, strict=True):
        starts = clip_starts(video.shape[1], 4, 3)
        each = [net(video[None, :, s : s + 4]).softmax(1)[0] for s in starts]
        torch.testing.assert_close(score, torch.stack(each).mean(0))
    assert not scores.requires_grad


def test_a_model_gets_clips_in_its_own_data_type_and_its_scores_are_added_in_single_precision():
    net, given = Net().eval(), videos(10, 4)
    wanted = video_scores(net, given, frames=4, n_clips=3)
    for dtype, seen in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        scores = video_scores(net.to(dtype), given, frames=4, n_clips=3)
        assert scores.dtype == seen
        torch.testing.assert_close(scores.float(), wanted, rtol=0.1, atol=0.03)


def test_three_squares_lie_along_the_longer_side():
    seen = []

    def model(clips):
        seen.append(clips)
        return clips.new_zeros(len(clips), 2)

    wide = torch.arange(45.0).view(1, 1, 5, 9)
    video_scores(model, [wide, wide.transpose(2, 3)], frames=1, n_clips=1, crop=3)
    corners = [clip[0, 0, 0, 0].item() for clip in seen[0]]
    assert corners == [9.0, 12.0, 15.0]  # row 1 of 5; columns 0, 3, 6
    assert [clip[0, 0, 0, 0].item() for clip in seen[1]] == corners
    assert seen[0].shape == (3, 1, 1, 3, 3)


def test_hits_are_counted_among_the_best_classes_of_a_video():
    table = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 4.0]])
    given = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1, 1).expand(2, 1, 4, 2, 2)

    def model(clips):
        return table[clips[:, 0, 0, 0, 0].long()]

    labels = torch.tensor([2, 2])
    assert [video_accuracy(model, given, labels, 2, frames=2, top=k) for k in (1, 2, 3)] == [0.0, 1.0, 1.0]
    assert video_accuracy(model, given, torch.tensor([0, 2]), 2, frames=2) == 0.5


def test_averaging_over_clips_finds_what_one_clip_misses():
    video = torch.zeros(1, 12, 1, 1)
    video[:, :3] = 9.0

    def model(clips):
        first = clips.mean((1, 2, 3, 4))
        return torch.stack([first, torch.ones_like(first)], dim=1)

    assert video_accuracy(model, [video], torch.tensor([0]), 2, frames=3) == 1.0
    assert video_accuracy(model, [video], torch.tensor([0]), 1, frames=3) == 0.0


def test_bad_input_is_refused():
    net, given = Net().eval(), videos(6)
    labels = torch.tensor([1])
    for options, word in (
        ({"frames": 7}, "videos"), ({"crop": 6}, "videos"), ({"n_clips": 0}, "n_clips"), ({"top": 4}, "top"),
        ({"labels": torch.tensor([3])}, "labels"), ({"labels": torch.tensor([0, 1])}, "labels"),
        ({"videos": []}, "videos"), ({"videos": [given[0] * torch.nan]}, "videos"), ({"videos": given[0]}, "videos"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=word):
            video_accuracy(**({"model": net, "videos": given, "labels": labels, "n_clips": 2, "frames": 4} | options))
    with pytest.raises(ValueError, match="finite logits"):
        video_scores(lambda clips: clips.new_full((len(clips), 2), torch.nan), given, frames=4, n_clips=1)
