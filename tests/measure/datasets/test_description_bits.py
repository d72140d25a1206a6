import lzma
import zlib

import numpy as np
import pytest
import torch

from heldout.errors import MissingExtraError
from heldout.measure import STDLIB_COMPRESSORS, description_bits


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_random_numbers_take_about_their_raw_size_and_never_more(dtype):
    values = torch.rand(2000, generator=torch.Generator().manual_seed(0), dtype=dtype)
    raw = 8 * values.element_size() * 2000
    assert 0.8 * raw < description_bits(values) <= raw


def test_constants_take_next_to_nothing():
    assert description_bits(np.full(10_000, 0.1)) < 0.01 * 64 * 10_000


@pytest.mark.parametrize("size", [1, 2, 7])
def test_short_forms_are_kept_raw(size):
    values = np.random.default_rng(0).random(size)
    assert description_bits(values) == 64 * size
    assert description_bits(b"xyz") == 24


def test_it_is_the_shortest_of_the_named_compressors():
    text = "the quick brown fox " * 50
    raw = text.encode()
    found = {name: description_bits(text, compressors=(name,)) for name in STDLIB_COMPRESSORS}
    assert found["zlib"] == 8 * len(zlib.compress(raw, 9))
    assert found["lzma"] == pytest.approx(8 * len(lzma.compress(raw, preset=9)), abs=64)
    assert found["none"] == 8 * len(raw)
    assert description_bits(text) == min(found.values())


def test_differences_of_elements_shorten_a_ramp():
    ramp = np.arange(5000, dtype=np.int32)
    assert description_bits(ramp, compressors=("delta+zlib",)) < 0.2 * description_bits(ramp, compressors=("zlib",))


def test_the_number_depends_on_values_and_type_and_not_on_layout():
    values = np.random.default_rng(0).integers(0, 5, (30, 40)).astype(float)
    assert description_bits(values) == description_bits(np.asfortranarray(values))
    assert description_bits(values) == description_bits(torch.from_numpy(values))
    assert description_bits(values.T) == description_bits(torch.from_numpy(values).T)
    assert description_bits(values) == description_bits(values.astype(">f8"))
    assert description_bits([1.0, 2.0]) == 128


@pytest.mark.parametrize(
    ("value", "options", "error", "what"),
    [
        ("", {}, ValueError, "array_or_source must not be empty"),
        (np.array([]), {}, ValueError, "array_or_source must not be empty"),
        (np.array([1.0, np.nan]), {}, ValueError, "array_or_source must be finite"),
        (np.array(["a"]), {}, TypeError, "array_or_source must hold numbers"),
        ("a", {"compressors": ("zip",)}, ValueError, "compressors must be one of"),
        ("a", {"compressors": ()}, ValueError, "compressors must not be empty"),
    ],
)
def test_what_cannot_be_described_is_refused(value, options, error, what):
    with pytest.raises(error, match=what):
        description_bits(value, **options)


def test_a_compressor_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "brotli", None)
    with pytest.raises(MissingExtraError, match="brotli is not installed"):
        description_bits("a", compressors=("brotli",))
