import pytest
import torch

from heldout.data import strong_view, weak_view


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_weak_views_of_images_are_moved_by_up_to_an_eighth_with_their_edges_repeated():
    x = torch.rand(200, 2, 16, 24, generator=generator())
    moved = weak_view(x, generator(1))
    padded = torch.nn.functional.pad(x, (3, 3, 2, 2), mode="replicate")
    seen = set()
    for image, frame in zip(moved, padded, strict=True):
        places = [
            (dy, dx) for dy in range(5) for dx in range(7) if torch.equal(image, frame[:, dy : dy + 16, dx : dx + 24])
        ]
        assert len(places) == 1
        seen.add(places[0])
    assert len(seen) == 35


def test_vectors_get_noise_in_proportion_to_each_features_deviation():
    x = torch.randn(4000, 2, generator=generator()) * torch.tensor([1.0, 10.0])
    weak, strong = weak_view(x, generator(1)), strong_view(x, generator(1))
    ratio = (weak - x).std(0) / x.std(0, correction=0)
    assert ratio.tolist() == pytest.approx([0.1, 0.1], rel=0.05)
    dropped = strong == x.mean(0)
    assert dropped.float().mean(0).tolist() == pytest.approx([0.3, 0.3], abs=0.03)
    kept = ~dropped[:, 1]
    assert ((strong - x)[kept, 1].std() / x[:, 1].std()).item() == pytest.approx(0.3, rel=0.05)


def test_strong_views_of_images_cut_a_square_and_change_contrast_by_image():
    x = torch.rand(300, 3, 16, 16, generator=generator())
    strong = strong_view(x, generator(1))
    mean = strong.new_tensor([])
    cut = []
    for image in strong:
        values, counts = image[0].flatten().unique(return_counts=True)
        cut.append(counts.max().item())
        mean = torch.cat([mean, values[counts.argmax()].view(1)])
    assert max(cut) == 64
    assert min(cut) >= 16  # a quarter of the square at a corner
    assert mean.std() < 0.05  # what is cut is each image's mean
    spread = strong.flatten(1).std(1) / x.flatten(1).std(1)
    assert spread.min() < 0.75
    assert spread.max() > 1.25


def test_a_strong_view_without_a_cut_keeps_every_place():
    x = torch.rand(50, 1, 16, 16, generator=generator())
    whole = strong_view(x, generator(1), cut=0.0)
    assert all(image.unique().numel() == 256 for image in whole)
    with pytest.raises(ValueError, match="cut must be between 0 and 1"):
        strong_view(x, generator(), cut=2.0)


def test_views_follow_the_generator_only_and_leave_inputs_as_they_are():
    x = torch.rand(5, 1, 8, 8, generator=generator())
    before = x.clone()
    for view in (weak_view, strong_view):
        first, again, other = view(x, generator(2)), view(x, generator(2)), view(x, generator(3))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        assert first.dtype == x.dtype
        assert first.shape == x.shape
    assert torch.equal(x, before)


@pytest.mark.parametrize("view", [weak_view, strong_view])
def test_tokens_and_nan_are_refused(view):
    with pytest.raises(TypeError, match="inputs must be real numbers"):
        view(torch.zeros(3, 4, dtype=torch.long), generator())
    with pytest.raises(ValueError, match="inputs must be finite"):
        view(torch.full((3, 4), torch.nan), generator())
    with pytest.raises(ValueError, match="inputs must not be empty"):
        view(torch.zeros(0, 4), generator())
