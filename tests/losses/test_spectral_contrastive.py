import math

import pytest
import torch
import torch.nn.functional as F

from heldout.losses import spectral_contrastive


def naive(v, spectra, tau):
    v, spectra, total = v.double(), spectra.double(), 0.0
    for i in range(len(v)):
        others = [r for r in range(len(v)) if r != i]
        closeness = [math.exp(-float((spectra[i] - spectra[r]).norm())) for r in others]
        scores = [math.exp(float(F.cosine_similarity(v[i], v[r], dim=0)) / tau) for r in others]
        total -= sum(a / sum(closeness) * math.log(s / sum(scores)) for a, s in zip(closeness, scores, strict=True))
    return total / len(v)


@pytest.mark.parametrize("tau", [0.1, 1.0])
def test_it_is_the_formula(tau):
    generator = torch.Generator().manual_seed(0)
    v, spectra = torch.randn(6, 4, generator=generator), torch.rand(6, 3, generator=generator)
    assert spectral_contrastive(v, spectra, tau).item() == pytest.approx(naive(v, spectra, tau), rel=1e-5)


def test_one_hot_weights_are_infonce():
    v = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    spectra = torch.tensor([0.0, 0.0, 1.0, 1.0, 2.0, 2.0])[:, None] * 1e4  # each has one other of the same spectrum
    unit = F.normalize(v, dim=1)
    logits = (unit @ unit.T / 0.5).fill_diagonal_(-torch.inf)
    expected = F.cross_entropy(logits, torch.tensor([1, 0, 3, 2, 5, 4]))
    torch.testing.assert_close(spectral_contrastive(v, spectra, 0.5), expected)


def test_similarity_in_the_order_of_the_spectra_is_better_than_in_another():
    angles = torch.tensor([0.0, 0.3, 0.9, 2.0])
    v, spectra = torch.stack([angles.cos(), angles.sin()], 1), angles[:, None]
    assert spectral_contrastive(v, spectra) < spectral_contrastive(v[[2, 0, 3, 1]], spectra)
    assert spectral_contrastive(v * 7, spectra).item() == pytest.approx(spectral_contrastive(v, spectra).item())


def test_gradients_are_finite():
    v = torch.randn(3, 2, generator=torch.Generator().manual_seed(2)).requires_grad_()
    spectral_contrastive(v, torch.zeros(3, 2)).backward()
    assert bool(v.grad.isfinite().all())
    assert v.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        ((torch.ones(1, 2), torch.ones(1, 2)), "v"),
        ((torch.ones(3, 2), torch.ones(2, 2)), "spectra"),
        ((torch.ones(3, 2), torch.full((3, 2), torch.nan)), "spectra"),
        ((torch.ones(3, 2), torch.ones(3, 2), 0.0), "tau"),
    ],
)
def test_bad_input_is_refused_by_name(arguments, argument):
    with pytest.raises(ValueError, match=argument):
        spectral_contrastive(*arguments)
