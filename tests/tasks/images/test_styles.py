import pytest
import torch
import torch.nn.functional as F

from heldout.tasks import STYLES, digits, style_domains, styled


def grey(n=12, size=14):
    return torch.rand(n, 1, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("size", [8, 14, 28])
def test_a_style_is_colour_in_range_and_decided_by_the_seed(style, size):
    images = grey(size=size)
    before, state = images.clone(), torch.get_rng_state()
    out = styled(images, style, seed=3)
    assert out.shape == (12, 3, size, size)
    assert out.dtype == images.dtype
    assert out.min() >= 0
    assert out.max() <= 1
    assert torch.equal(out, styled(images, style, seed=torch.Generator().manual_seed(3)))
    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("style", sorted(set(STYLES) - {"plain", "blurred"}))
def test_another_seed_draws_other_images(style):
    assert not torch.equal(styled(grey(), style, seed=0), styled(grey(), style, seed=1))


@pytest.mark.parametrize("style", STYLES)
def test_black_images_stay_finite(style):
    assert styled(torch.zeros(2, 1, 8, 8), style).isfinite().all()


@pytest.mark.parametrize("style", ["stripes", "edges", "noise"])
def test_these_styles_are_no_affine_change_of_the_grey_image(style):
    images, _ = digits()
    plain, other = (styled(images[:100], name).mean(1).flatten(1) for name in ("plain", style))
    x, y = (F.normalize(p - p.mean(1, keepdim=True), dim=1) for p in (plain, other))
    assert 1 - (x * y).sum(1).square().mean() > 0.03


def test_domains_are_even_disjoint_and_stratified():
    images, labels = digits()
    painted, same, domain = style_domains(images, labels, ("plain", "edges", "noise"), seed=1)
    assert painted.shape == (1797, 3, 8, 8)
    assert torch.equal(same, labels)
    assert domain.bincount().tolist() == [599, 599, 599]
    for number in range(3):
        counts = labels[domain == number].bincount()
        assert (counts - labels.bincount() / 3).abs().max() <= 6
    torch.testing.assert_close(painted[domain == 0], images[domain == 0].repeat(1, 3, 1, 1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: styled(grey(), "oil"), "style must be one of plain, colour"),
        (lambda: styled(grey().repeat(1, 3, 1, 1), "plain"), "only images with 1 channel"),
        (lambda: styled(grey() * 255, "plain"), r"in \[0, 1\]"),
        (lambda: style_domains(grey(), torch.zeros(12).long(), ("plain",)), "at least 2 styles"),
        (
            lambda: style_domains(grey(), torch.zeros(5).long()),
            r"one label per image|images and labels must be equally long",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
