import importlib
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from heldout.data import nearest_instances

module = importlib.import_module("heldout.data.selection.nearest_instances")


def brute(target, pool, per_item, barred):
    """Target after target, the nearest first."""
    rows = []
    for one in target.double():
        far = [1 - float(F.cosine_similarity(one, other, dim=0)) for other in pool.double()]
        order = sorted((i for i in range(len(pool)) if i not in barred), key=lambda i: far[i])
        rows += order[:per_item]
    return rows


@given(seed=st.integers(0, 1000), per_item=st.integers(1, 4), barred=st.sets(st.integers(0, 14), max_size=8))
@settings(max_examples=30, deadline=None)
def test_it_is_what_brute_force_finds(seed, per_item, barred):
    generator = torch.Generator().manual_seed(seed)
    target, pool = torch.randn(6, 5, generator=generator), torch.randn(15, 5, generator=generator)
    pool[3] *= 20  # length does not count
    exclude = torch.tensor(sorted(barred), dtype=torch.long)
    expected = brute(target, pool, per_item, barred)
    assert nearest_instances(target, pool, per_item, dedup=False, exclude=exclude).tolist() == expected
    once = nearest_instances(target, pool, per_item, exclude=exclude).tolist()
    assert once == list(dict.fromkeys(expected))
    assert not barred & set(once)


def test_chunks_change_nothing(monkeypatch):
    target, pool = torch.randn(20, 4), torch.randn(30, 4)
    whole = nearest_instances(target, pool, 2, dedup=False)
    monkeypatch.setattr(module, "_SIMILARITIES_AT_ONCE", 70)
    assert nearest_instances(target, pool, 2, dedup=False).equal(whole)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target_emb": torch.zeros(0, 2)}, "target_emb must not be empty"),
        ({"target_emb": torch.full((1, 2), math.nan)}, "target_emb must be finite"),
        ({"pool_emb": torch.zeros(3, 4)}, "equally wide"),
        ({"pool_emb": torch.zeros(3)}, "pool_emb must have 2 dimensions"),
        ({"per_item": 0}, "per_item must be at least 1"),
        ({"per_item": 4}, "per_item must be at most 3"),
        ({"exclude": torch.tensor([0, 1, 2])}, "per_item must be at most 0"),
        ({"exclude": torch.tensor([3])}, "exclude must be integers from 0 to 2"),
    ],
)
def test_bad_input_is_refused(change, message):
    given = {"target_emb": torch.ones(2, 2), "pool_emb": torch.ones(3, 2)}
    with pytest.raises(ValueError, match=message):
        nearest_instances(**(given | change))
