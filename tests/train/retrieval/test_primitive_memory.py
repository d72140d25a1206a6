"""A memory of primitives finds what brute force finds, and never one's own example."""

import pytest
import torch
import torch.nn.functional as F

from heldout.train import PrimitiveMemory


def filled(count=60, dim=5, capacity=100, keys=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, dim, generator=generator) * torch.rand(count, 1, generator=generator) * 9
    memory = PrimitiveMemory(dim, capacity, tau=0.3)
    marks = torch.randint(0, keys, (count,), generator=generator), torch.arange(count) // 3
    memory.add(features, marks[0], "vision", marks[1])
    return memory, features, *marks


def by_brute_force(features, keys, samples, query, k, tau, key=None, exclude=None):
    """Loops in float64: (features, weights) of one query."""
    allowed = [
        i
        for i in range(len(features))
        if (key is None or keys[i] == key) and (exclude is None or samples[i] != exclude)
    ]
    cosines = {
        i: float(features[i].double() @ query.double() / features[i].double().norm() / query.double().norm())
        for i in allowed
    }
    best = sorted(cosines, key=lambda i: -cosines[i])[:k]
    weights = torch.tensor([cosines[i] / tau for i in best], dtype=torch.float64).softmax(0)
    return features[best], weights


@pytest.mark.parametrize("with_keys", [False, True])
@pytest.mark.parametrize("excluding", [False, True])
def test_search_is_cosine_top_k_by_brute_force(with_keys, excluding):
    memory, features, keys, samples = filled()
    query = torch.randn(12, 5, generator=torch.Generator().manual_seed(1))
    wanted = torch.arange(12) % 4 if with_keys else None
    own = torch.arange(12) if excluding else None
    found = memory.search(query, 6, "vision", keys=wanted, exclude=own)
    assert found.weights.sum(1).allclose(torch.ones(12))
    for i in range(12):
        expected, weights = by_brute_force(
            features, keys, samples, query[i], 6, 0.3,
            None if wanted is None else int(wanted[i]), None if own is None else i,
        )  # fmt: skip
        assert found.features[i, : len(expected)].allclose(expected, atol=1e-4)
        assert found.weights[i, : len(weights)].double().allclose(weights, atol=1e-5)
        assert found.mean[i].double().allclose((weights[:, None] * expected.double()).sum(0), atol=1e-4)
        assert (found.weights[i, len(weights) :] == 0).all()


def test_ones_own_example_is_never_found_even_where_nothing_else_is():
    memory = PrimitiveMemory(3, 10)
    memory.add(torch.eye(3), torch.zeros(3).long(), "language", torch.tensor([5, 5, 6]))
    found = memory.search(torch.ones(2, 3), 3, "language", exclude=torch.tensor([5, 6]))
    assert found.features[0, 0].tolist() == [0, 0, 1]
    assert found.weights[0].tolist() == [1, 0, 0]
    assert (found.features[0, 1:] == 0).all()
    assert (found.features[1, 2] == 0).all()
    assert (found.features[1, :2, 2] == 0).all()
    memory = PrimitiveMemory(3, 10)
    memory.add(torch.eye(3), torch.zeros(3).long(), "language", torch.full((3,), 5))
    nothing = memory.search(torch.ones(1, 3), 2, "language", exclude=torch.tensor([5]))
    assert (nothing.weights == 0).all()
    assert (nothing.features == 0).all()


def test_a_key_that_no_entry_has_finds_nothing():
    memory, *_ = filled(keys=2)
    found = memory.search(torch.ones(2, 5), 3, "vision", keys=torch.tensor([1, 9]))
    assert found.weights.sum(1).tolist() == pytest.approx([1, 0])
    assert (found.features[1] == 0).all()


def test_the_oldest_entries_go_first_and_lengths_and_marks_go_with_them():
    memory = PrimitiveMemory(2, 3)
    for number in range(5):
        memory.add(torch.tensor([[1.0 + number, 0.0]]), torch.tensor([number]), "language", torch.tensor([number]))
    assert memory.count("language") == 3
    found = memory.search(torch.tensor([[1.0, 0.0]]), 3, "language")
    assert sorted(found.features[0, :, 0].tolist()) == [3, 4, 5]
    last = memory.search(torch.tensor([[1.0, 0.0]]), 1, "language", keys=torch.tensor([4]))
    assert last.features[0, 0].tolist() == [5, 0]
    memory.add(torch.arange(1.0, 9).unsqueeze(1).expand(8, 2), torch.arange(8), "language")
    found = memory.search(torch.ones(1, 2), 3, "language")
    assert sorted(found.features[0, :, 0].tolist()) == pytest.approx([6, 7, 8])
    memory.clear()
    assert memory.count("language") == 0


def test_entries_and_what_is_found_carry_no_gradient():
    memory = PrimitiveMemory(2, 3)
    memory.add(torch.ones(2, 2, requires_grad=True), torch.tensor([0, 1]), "vision")
    found = memory.search(torch.ones(1, 2, requires_grad=True), 2, "vision")
    assert not found.features.requires_grad
    assert not found.weights.requires_grad


def test_random_entries_are_spread_over_the_database_and_not_of_ones_own_example():
    memory, features, _, samples = filled(count=9)
    found = memory.draw(
        torch.ones(600, 5), 4, "vision", exclude=torch.zeros(600).long(), generator=torch.Generator().manual_seed(2)
    )
    same = (found.features.unsqueeze(2) - features).abs().amax(3) < 1e-4  # (600, 4, entries)
    counts = same.sum((0, 1))
    assert (counts[samples == 0] == 0).all()
    assert counts[samples != 0].min() > 200  # 600 * 4 / 9 = 267
    known = found.weights.sum(1) > 0
    assert found.weights[known].sum(1).allclose(torch.ones(int(known.sum())))
    cosines = F.cosine_similarity(found.features, torch.ones(5), dim=2)
    ratio = found.weights[0, 0] / found.weights[0, 1]
    if same[0, :2].any(1).all():
        assert float(ratio) == pytest.approx(float(((cosines[0, 0] - cosines[0, 1]) / 0.3).exp()), rel=1e-3)


def test_half_precision_queries_get_half_precision_back():
    memory, *_ = filled()
    assert memory.search(torch.ones(1, 5, dtype=torch.bfloat16), 2, "vision").features.dtype == torch.bfloat16


def test_mixed_precision_and_another_default_type_change_nothing():
    memory, *_ = filled()
    query, keys = torch.randn(7, 5, generator=torch.Generator().manual_seed(3)), torch.arange(7) % 4
    expected = memory.search(query, 3, "vision", keys=keys)
    with torch.autocast("cpu", torch.bfloat16):
        found = memory.search(query, 3, "vision", keys=keys)
        drawn = memory.draw(query, 3, "vision", generator=torch.Generator().manual_seed(0))
    assert torch.equal(found.features, expected.features)
    assert torch.equal(found.weights, expected.weights)
    assert drawn.features.dtype == torch.float32
    torch.set_default_dtype(torch.float64)
    try:
        other, *_ = filled()
        assert other.search(query.double(), 3, "vision").features.dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_many_queries_are_searched_in_blocks(monkeypatch):
    memory, *_ = filled()
    query = torch.randn(40, 5, generator=torch.Generator().manual_seed(3))
    whole = memory.search(query, 3, "vision", exclude=torch.arange(40))
    monkeypatch.setattr("heldout.train.retrieval.primitive_memory._SIMILARITIES_AT_ONCE", 130)
    blocks = memory.search(query, 3, "vision", exclude=torch.arange(40))
    assert blocks.features.allclose(whole.features, atol=1e-5)
    assert blocks.weights.allclose(whole.weights, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.search(torch.ones(1, 5), 1, "language"), "memory is empty"),
        (lambda m: m.search(torch.ones(1, 5), 61, "vision"), "k must lie in 1..60"),
        (lambda m: m.search(torch.ones(1, 5), 1, "sound"), "modality must be one of"),
        (lambda m: m.search(torch.ones(1, 4), 1, "vision"), "query must be real numbers"),
        (lambda m: m.search(torch.full((1, 5), torch.nan), 1, "vision"), "query"),
        (lambda m: m.search(torch.ones(2, 5), 1, "vision", keys=torch.tensor([0])), "keys"),
        (lambda m: m.add(torch.full((1, 5), torch.nan), torch.tensor([0]), "vision"), "features"),
        (lambda m: m.add(torch.ones(1, 5), torch.tensor([-1]), "vision"), "keys"),
        (lambda m: m.add(torch.ones(2, 5), torch.tensor([0]), "vision"), "keys"),
        (lambda m: PrimitiveMemory(5, 10, ["a", "a"]), "modalities must differ"),
        (lambda m: PrimitiveMemory(5, 10, tau=0.0), "tau"),
    ],
)
def test_what_cannot_be_searched_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(filled()[0])
