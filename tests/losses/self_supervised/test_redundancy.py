import pytest
import torch
from torch import nn

from heldout.losses import barlow_twins_loss, cca_ssg_loss, cross_correlation


def views(n=9, dim=4):
    generator = torch.Generator().manual_seed(1)
    z1 = torch.randn(n, dim, generator=generator, dtype=torch.float64) * torch.arange(1, dim + 1) + 3
    return z1, 0.4 * z1 + torch.randn(n, dim, generator=generator, dtype=torch.float64)


def loops(z1, z2):
    """Correlations of all columns, one at a time, with the biased variance."""
    n, dim = z1.shape
    found = torch.zeros(dim, dim, dtype=torch.float64)
    for i in range(dim):
        for j in range(dim):
            a, b = z1[:, i], z2[:, j]
            spread = (((a - a.mean()) ** 2).sum() / n) ** 0.5, (((b - b.mean()) ** 2).sum() / n) ** 0.5
            found[i, j] = sum((a[r] - a.mean()) * (b[r] - b.mean()) for r in range(n)) / n / spread[0] / spread[1]
    return found


def whitened(n=40, dim=5):
    z = torch.randn(n, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    q, _ = torch.linalg.qr(z - z.mean(0))
    return q * n**0.5


def test_cross_correlation_equals_loops_and_is_not_its_own_transpose():
    z1, z2 = views()
    torch.testing.assert_close(cross_correlation(z1, z2), loops(z1, z2))
    assert not torch.allclose(cross_correlation(z1, z2), cross_correlation(z2, z1))


def test_cca_ssg_equals_loops():
    z1, z2 = views()
    wanted = -sum(loops(z1, z2)[i, i] for i in range(4))
    for z in (z1, z2):
        wanted = wanted + 0.02 * (loops(z, z) - torch.eye(4)).pow(2).sum()
    torch.testing.assert_close(cca_ssg_loss(z1, z2, 0.02), wanted)


def test_barlow_equals_loops():
    z1, z2 = views()
    c = loops(z1, z2)
    on = sum((1 - c[i, i]) ** 2 for i in range(4))
    off = sum(c[i, j] ** 2 for i in range(4) for j in range(4) if i != j)
    torch.testing.assert_close(barlow_twins_loss(z1, z2), on + off / 4)
    torch.testing.assert_close(barlow_twins_loss(z1, z2, 0.3), on + 0.3 * off)


def test_barlow_is_0_and_cca_is_minus_dim_for_whitened_views_that_are_the_same():
    z = whitened()
    assert barlow_twins_loss(z, z).item() == pytest.approx(0, abs=1e-6)
    assert cca_ssg_loss(z, z, 7.0).item() == pytest.approx(-5, abs=1e-6)
    assert cca_ssg_loss(z, -z, 0.0).item() == pytest.approx(5, abs=1e-6)


def test_scale_and_shift_of_columns_do_not_count():
    z1, z2 = views()
    moved = z2 * torch.tensor([1.0, 5.0, 0.2, 3.0]) - 4
    torch.testing.assert_close(barlow_twins_loss(z1, z2), barlow_twins_loss(z1, moved))
    torch.testing.assert_close(cca_ssg_loss(z1, z2), cca_ssg_loss(z1, moved))


@pytest.mark.parametrize("loss", [cca_ssg_loss, barlow_twins_loss])
def test_a_dead_column_gives_finite_values_and_gradients(loss):
    z1, z2 = views()
    z1[:, 1] = 2.0
    z1.requires_grad_()
    value = loss(z1, z2)
    value.backward()
    assert bool(value.isfinite())
    assert bool(z1.grad.isfinite().all())


@pytest.mark.parametrize("loss", [cca_ssg_loss, barlow_twins_loss])
def test_gradients_reach_both_views(loss):
    z1, z2 = (z.clone().requires_grad_() for z in views())
    assert torch.autograd.gradcheck(loss, (z1, z2))
    layer = nn.Linear(4, 4).double()
    loss(layer(z1), z2).backward()
    assert layer.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("loss", [cca_ssg_loss, barlow_twins_loss, cross_correlation])
@pytest.mark.parametrize(
    ("first", "second", "says"),
    [
        ((4, 3), (4, 2), "z1 and z2 must have the same shape"),
        ((1, 3), (1, 3), "at least 2 rows"),
        ((4, 0), (4, 0), "a column"),
        ((4,), (4,), "z1 must have 2 dimensions"),
    ],
)
def test_bad_shapes_are_refused(loss, first, second, says):
    with pytest.raises(ValueError, match=says):
        loss(torch.ones(first), torch.ones(second))


def test_bad_options_are_refused():
    z1, z2 = views()
    with pytest.raises(ValueError, match="decorrelation"):
        cca_ssg_loss(z1, z2, -1.0)
    with pytest.raises(ValueError, match="off_diagonal"):
        barlow_twins_loss(z1, z2, -1.0)
    with pytest.raises(ValueError, match="eps"):
        barlow_twins_loss(z1, z2, eps=0.0)
