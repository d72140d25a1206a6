import pytest
import torch

from heldout.tasks import coloured_conflict


def world(n=6000, **options):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(n, 1, 4, 4, generator=generator) * 0.5 + 0.5
    labels = torch.randint(0, 10, (n,), generator=generator)
    return labels, *coloured_conflict(images, labels, **options)


def test_shares_of_colour_and_noise_are_those_asked_for():
    labels, images, binary, domain = world(tint=False)
    assert set(binary.tolist()) == {0, 1}
    is_cyan = (images[:, 1] > images[:, 0]).float().mean((1, 2)).round().long()
    for number, share in enumerate((0.9, 0.8, 0.1)):
        mine = domain == number
        assert (is_cyan == binary)[mine].float().mean() == pytest.approx(share, abs=0.03)
        assert (binary == (labels >= 5))[mine].float().mean() == pytest.approx(0.75, abs=0.002)
    assert (is_cyan == binary).float().mean() == pytest.approx(0.6, abs=0.02)
    assert domain.bincount().tolist() == [2000, 2000, 2000]


def test_the_tint_shows_the_domain_and_without_it_nothing_does():
    _, with_tint, _, domain = world()
    _, without, _, _ = world(tint=False)
    background = (with_tint - without).mean((2, 3))
    hue = background.argmax(1)
    assert all(len(hue[domain == number].unique()) == 1 for number in range(3))
    assert len(hue.unique()) == 3
    assert with_tint.max() <= 1


def test_the_seed_decides():
    first, again, other = (world(n=60, seed=seed)[1] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"agreement": (0.9,)}, "at least 2 domains"),
        ({"agreement": (0.9, 1.2)}, r"in \[0, 1\]"),
        ({"noise": 1.5}, r"rate|noise must be between 0 and 1"),
    ],
)
def test_bad_input_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        world(n=30, **options)
