import importlib.util

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier

from heldout.nn import KNNMemory


def random_entries(n, dim=8, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, dim, generator=generator)
    return z, torch.randint(0, classes, (n,), generator=generator)


def filled(n=50, dim=8, classes=3, **options):
    memory = KNNMemory(dim, **options)
    memory.add(*random_entries(n, dim, classes))
    return memory


def naive_vote(query, z, y, k, tau, classes):
    rows = []
    for q in query:
        scored = sorted(((float(torch.dot(q / q.norm(), m / m.norm())), int(c)) for m, c in zip(z, y)), reverse=True)
        weights = np.exp(np.array([s for s, _ in scored[:k]]) / tau)
        weights /= weights.sum()
        rows.append([sum(w for w, (_, c) in zip(weights, scored) if c == label) for label in range(classes)])
    return torch.tensor(rows, dtype=torch.float32)


@pytest.mark.parametrize("k", [1, 5, 50])
@pytest.mark.parametrize("tau", [0.05, 1.0])
def test_vote_equals_a_naive_loop_over_the_memory(k, tau):
    z, y = random_entries(50)
    query, _ = random_entries(6, seed=1)
    torch.testing.assert_close(filled().vote(query, k, tau, 3), naive_vote(query, z, y, k, tau, 3))


def test_vote_of_all_entries_at_infinite_temperature_is_the_class_frequencies():
    memory = filled()
    frequencies = memory.labels.bincount() / len(memory)
    vote = memory.vote(torch.randn(4, 8, generator=torch.Generator().manual_seed(2)), k=50, tau=1e9, num_classes=3)
    torch.testing.assert_close(vote, frequencies.expand(4, 3))


def test_one_neighbour_is_the_nearest_neighbour_classifier_of_sklearn():
    z, y = random_entries(200)
    query, _ = random_entries(40, seed=3)
    reference = KNeighborsClassifier(1, metric="cosine").fit(z.numpy(), y.numpy()).predict(query.numpy())
    memory = filled(200)
    assert memory.vote(query, k=1, tau=1e-3, num_classes=3).argmax(1).tolist() == reference.tolist()


def test_votes_sum_to_one_and_absent_classes_get_zero():
    vote = filled().vote(random_entries(5, seed=4)[0], k=7, tau=0.1, num_classes=9)
    torch.testing.assert_close(vote.sum(1), torch.ones(5))
    assert (vote[:, 3:] == 0).all()


def test_vote_within_a_radius_equals_the_vote_of_exactly_these_entries():
    memory, (query, _) = filled(), random_entries(3, seed=5)
    wide = memory.vote_within(query, radius=-1.0, tau=0.2, num_classes=3)
    torch.testing.assert_close(wide, memory.vote(query, k=50, tau=0.2, num_classes=3))
    similarity, _ = memory.query(query, k=50)
    radius = float(similarity[0, 4] + similarity[0, 5]) / 2
    narrow = memory.vote_within(query[:1], radius, tau=0.2, num_classes=3)
    torch.testing.assert_close(narrow, memory.vote(query[:1], k=5, tau=0.2, num_classes=3))
    assert (memory.vote_within(query, radius=1.1, tau=0.2, num_classes=3) == 0).all()


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
def test_similarities_are_those_of_the_metric_and_carry_the_gradient_of_a_full_product(metric):
    z, _ = random_entries(30)
    query = random_entries(4, seed=6)[0].requires_grad_()
    similarity, _ = filled(30, metric=metric).query(query, k=5)
    if metric == "cosine":
        full = torch.nn.functional.normalize(query) @ torch.nn.functional.normalize(z).T
    else:
        full = query @ z.T if metric == "dot" else -(query.unsqueeze(1) - z).square().sum(2)
    expected = full.topk(5).values
    torch.testing.assert_close(similarity, expected)
    (gradient,) = torch.autograd.grad(similarity.square().sum(), query)
    (reference,) = torch.autograd.grad(expected.square().sum(), query)
    torch.testing.assert_close(gradient, reference)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=12),
    st.one_of(st.none(), st.integers(1, 12)),
    st.integers(0, 10),
)
def test_a_full_memory_holds_the_protected_and_the_newest_entries(sizes, max_added, protected):
    memory = KNNMemory(1, metric="dot")
    memory.add(torch.arange(protected).float().unsqueeze(1), torch.arange(protected))
    memory.protect(max_added)
    kept, later = list(range(protected)), []
    for size in sizes:
        values = torch.arange(100 + len(later), 100 + len(later) + size)
        memory.add(values.float().unsqueeze(1), values)
        later += values.tolist()
    kept += later if max_added is None else later[max(0, len(later) - max_added) :]
    assert sorted(memory.labels.tolist()) == sorted(kept)
    assert memory.features.flatten().tolist() == memory.labels.tolist()
    assert memory.state_dict()["labels"].tolist() == kept
    memory.truncate(min(len(kept), protected + 2))
    assert memory.labels.tolist() == kept[: protected + 2]


def test_capacity_replaces_the_oldest_entries_first():
    memory = filled(0, dim=2, capacity=4)
    for value in range(7):
        memory.add(torch.eye(2)[:1], torch.tensor([value]))
    assert len(memory) == 4
    assert memory.state_dict()["labels"].tolist() == [3, 4, 5, 6]


def test_appends_reallocate_a_logarithmic_number_of_times():
    memory, addresses = KNNMemory(4), set()
    for _ in range(2000):
        memory.add(torch.ones(1, 4), torch.zeros(1, dtype=torch.int64))
        addresses.add(len(memory._features))
    assert len(addresses) <= 5


def test_state_dict_round_trip_restores_entries_and_limits_exactly():
    memory = filled(20, capacity=25)
    memory.protect(10)
    memory.add(*random_entries(14, seed=7))
    other = KNNMemory(8)
    other.load_state_dict(memory.state_dict())
    assert (other.capacity, other.protected, len(other)) == (30, 20, 30)
    assert torch.equal(other.features, memory.features)
    for m in (memory, other):
        m.add(*random_entries(3, seed=8))
    assert torch.equal(other.features, memory.features)
    assert torch.equal(other.labels, memory.labels)


def test_half_precision_storage_agrees_with_float32():
    query, _ = random_entries(20, seed=9)
    half = filled(200, dtype=torch.float16)
    exact, exact_labels = filled(200).query(query, k=1)
    similarity, labels = half.query(query, k=1)
    assert half.features.dtype == torch.float16
    torch.testing.assert_close(similarity, exact, atol=1e-3, rtol=0)
    assert torch.equal(labels, exact_labels)


@pytest.mark.skipif(importlib.util.find_spec("faiss") is None, reason="faiss is not installed")
@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
def test_faiss_backend_agrees_with_torch(metric):
    query, _ = random_entries(20, seed=10)
    expected, expected_labels = filled(200, metric=metric).query(query, k=5)
    similarity, labels = filled(200, metric=metric, backend="faiss").query(query, k=5)
    torch.testing.assert_close(similarity, expected, atol=1e-3, rtol=1e-4)
    assert torch.equal(labels, expected_labels)


def test_large_queries_are_searched_in_blocks(monkeypatch):
    query, _ = random_entries(33, seed=11)
    whole = filled().query(query, k=3)
    monkeypatch.setattr("heldout.nn.knn_memory._SIMILARITIES_AT_ONCE", 200)
    blocked = filled().query(query, k=3)
    torch.testing.assert_close(blocked[0], whole[0])
    assert torch.equal(blocked[1], whole[1])


def test_later_entries_do_not_disturb_a_pending_gradient():
    memory = filled(10)
    query = torch.ones(1, 8, requires_grad=True)
    similarity, _ = memory.query(query, k=2)
    memory.add(*random_entries(500, seed=12))
    similarity.sum().backward()
    assert query.grad.isfinite().all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.query(torch.ones(1, 8), 51), "k must lie in 1..50"),
        (lambda m: m.query(torch.ones(1, 7), 1), r"features must be \(batch, 8\)"),
        (lambda m: m.query(torch.full((1, 8), float("nan")), 1), r"NaN|z must be finite"),
        (lambda m: m.add(torch.full((1, 8), float("inf")), torch.tensor([0])), r"NaN or infinity|z must be finite"),
        (
            lambda m: m.add(torch.ones(2, 8), torch.tensor([0])),
            r"labels must be 2 class indices|z and y must be equally long",
        ),
        (
            lambda m: m.add(torch.ones(1, 8), torch.tensor([-1])),
            r"class indices from 0|y must be integers of at least 0",
        ),
        (lambda m: m.add(torch.ones(1, 8), torch.tensor([0.5])), r"class indices|y must be integers of at least 0"),
        (lambda m: m.vote(torch.ones(1, 8), 3, 0.1, 2), "outside the 2 classes"),
        (lambda m: m.vote(torch.ones(1, 8), 3, 0.0, 3), "tau must be positive"),
        (lambda m: m.truncate(51), r"n must lie in 0\.\.50"),
        (lambda m: m.protect(-1), "max_added"),
        (lambda m: m.load_state_dict(KNNMemory(3).state_dict()), r"features \(entries, 8\)"),
        (lambda m: KNNMemory(8).query(torch.ones(1, 8), 1), "the number of entries in memory"),
        (lambda m: KNNMemory(0), "dim"),
        (lambda m: KNNMemory(8, capacity=0), "capacity"),
        (lambda m: KNNMemory(8, metric="manhattan"), "metric"),
        (lambda m: KNNMemory(8, backend="annoy"), "backend"),
        (lambda m: KNNMemory(8, dtype=torch.float64), "dtype"),
        (lambda m: KNNMemory(8, backend="faiss", dtype=torch.float16), "float32 entries on the CPU"),
    ],
)
def test_bad_input_is_named(call, message):
    memory = filled()
    with pytest.raises(ValueError, match=message):
        call(memory)
