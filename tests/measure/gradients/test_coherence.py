import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from heldout.measure import CoherenceTracker, gradient_coherence, per_example_grads


class Given(nn.Module):
    """A model whose per-example gradients are its inputs."""

    def __init__(self, dim):
        super().__init__()
        self.line = nn.Linear(dim, 1, bias=False).double()

    def forward(self, x):
        return self.line(x)


def coherence(vectors, **options):
    vectors = torch.as_tensor(vectors, dtype=torch.float64)
    data = vectors, torch.zeros(len(vectors))
    return gradient_coherence(Given(vectors.shape[1]), data, lambda outputs, _: outputs[:, 0], **options)


def naive(vectors):
    pairs = vectors @ vectors.T
    return float(pairs.mean() / pairs.diagonal().mean())


def test_closed_forms():
    assert coherence(torch.ones(5, 3)).alpha == pytest.approx(1)
    assert coherence(torch.ones(5, 3)).m_coherence == pytest.approx(5)
    assert coherence(torch.eye(4)).m_coherence == pytest.approx(1)
    assert coherence([[1.0, 2.0], [-1.0, -2.0]]).alpha == pytest.approx(0, abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 20), st.integers(1, 6), st.integers(0, 99), st.floats(0.1, 10))
def test_it_is_the_mean_over_pairs_lies_in_0_1_and_ignores_scale(n, dim, seed, scale):
    vectors = torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    alpha = coherence(vectors, batch_size=3).alpha
    assert alpha == pytest.approx(naive(vectors), rel=1e-5, abs=1e-7)
    assert -1e-9 <= alpha <= 1 + 1e-6
    assert coherence(scale * vectors).alpha == pytest.approx(alpha, rel=1e-5, abs=1e-7)


def test_zero_gradients_dilute_it_in_proportion():
    vectors = torch.randn(12, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mixed = torch.cat([vectors, torch.zeros(12, 4, dtype=torch.float64)])
    assert coherence(mixed).alpha == pytest.approx(0.5 * coherence(vectors).alpha, rel=1e-6)


def test_layers_combine_by_their_share_of_the_energy():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.arange(20) % 3
    found = gradient_coherence(model, (x, y), per_layer=True, batch_size=6)
    assert set(found.by_layer) == {"0", "2"}
    assert sum(found.energy.values()) == pytest.approx(1)
    assert sum(found.energy[k] * found.by_layer[k] for k in found.by_layer) == pytest.approx(found.alpha, rel=1e-5)
    grads = per_example_grads(model, x, y, path="loop")
    assert found.alpha == pytest.approx(naive(torch.cat([g.flatten(1) for g in grads.values()], 1)), rel=1e-5)


def test_gradients_that_are_all_zero_have_no_coherence():
    with pytest.warns(UserWarning, match="all examples are zero"):
        assert math.isnan(coherence(torch.zeros(3, 2)).alpha)


def test_a_single_example_is_refused():
    with pytest.raises(ValueError, match="at least 2 examples, got 1"):
        coherence(torch.ones(1, 2))


def test_the_tracker_measures_in_eval_mode_and_puts_the_mode_back():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2)).train()
    tracker = CoherenceTracker(model, (torch.rand(6, 3), torch.tensor([0, 1] * 3)), every=2)
    for _ in range(3):
        tracker.step()
    assert [step for step, _ in tracker.history] == [0, 2]
    assert tracker.history[0][1] == tracker.history[1][1]
    assert all(module.training for module in model.modules())


def test_float64_models_are_summed_in_float64():
    vectors = torch.randn(20, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert coherence(vectors, batch_size=3).alpha == pytest.approx(naive(vectors), rel=1e-10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_squares_do_not_underflow_in_half_precision(dtype):
    vectors = (1e-5 * torch.randn(20, 8, generator=torch.Generator().manual_seed(0))).to(dtype)
    found = gradient_coherence(nn.Linear(8, 1, bias=False).to(dtype), (vectors, torch.zeros(20)), lambda o, _: o[:, 0])
    assert found.alpha == pytest.approx(naive(vectors.double()), rel=1e-3)


@pytest.mark.parametrize("k", [2, 5])
def test_means_of_k_examples_are_more_coherent_by_the_papers_formula(k):
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(60_000, 4, generator=generator, dtype=torch.float64) + 0.2
    alpha = alpha_of(vectors)
    expected = k * alpha / (1 + (k - 1) * alpha)
    assert alpha_of(vectors.view(-1, k, 4).mean(1)) == pytest.approx(expected, rel=0.02)


def alpha_of(vectors):
    return coherence(vectors, batch_size=len(vectors)).alpha


def test_a_batch_norm_in_train_mode_is_refused_with_advice():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).train()
    with pytest.raises(ValueError, match=r"call model.eval\(\) first"):
        gradient_coherence(model, (torch.rand(6, 3), torch.tensor([0, 1] * 3)))


def test_gradients_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="finite"):
        coherence([[1.0, float("nan")], [1.0, 2.0]])


def test_sparse_embeddings_count_like_dense_ones():
    tokens, labels = torch.randint(0, 5, (12, 3), generator=torch.Generator().manual_seed(0)), torch.arange(12) % 2
    found = []
    for sparse in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(5, 4, sparse=sparse), nn.Flatten(), nn.Linear(12, 2))
        found.append(gradient_coherence(model, (tokens, labels)).alpha)
    assert found[0] == pytest.approx(found[1])
