"""Streams that are parsed once."""

import importlib

import pytest

from heldout.tasks import api_stream, kept_api_stream, python_sources

module = importlib.import_module("heldout.tasks.language.kept_api_stream")
GROUPS = {"re": ["re"], "argparse": ["argparse"]}


@pytest.fixture
def parsed(tmp_path, monkeypatch):
    monkeypatch.setenv("HELDOUT_CACHE", str(tmp_path))
    calls = []
    monkeypatch.setattr(module, "api_stream", lambda *a, **k: (calls.append(k), api_stream(*a, **k))[1])
    return calls


def test_what_is_kept_is_what_was_parsed(parsed):
    sources = python_sources("json") | {"own.py": "def f(x):\n    return x"}
    expected = api_stream(sources, GROUPS, val=0.2, test=0.3)
    assert any(some for parts in expected.tasks.values() for some in parts.values())
    for _ in range(2):
        assert kept_api_stream(sources, GROUPS, val=0.2, test=0.3) == expected
    assert len(parsed) == 1


def test_other_sources_groups_their_order_or_shares_are_other_streams(parsed):
    sources = python_sources("json")
    kept_api_stream(sources, GROUPS)
    kept_api_stream(sources | {"json/tool.py": "x = 1"}, GROUPS)
    kept_api_stream(sources, {"re": ["re"]})
    kept_api_stream(sources, dict(reversed(GROUPS.items())))
    kept_api_stream(sources, GROUPS, val=0.15)
    kept_api_stream(sources, GROUPS, test=0.3)
    assert len(parsed) == 6


def test_errors_are_those_of_api_stream(parsed):
    with pytest.raises(ValueError, match="sources"):
        kept_api_stream({}, GROUPS)
    with pytest.raises(ValueError, match="val"):
        kept_api_stream({"a.py": "x = 1"}, GROUPS, val=0.6, test=0.6)
