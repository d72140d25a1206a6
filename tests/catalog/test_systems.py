"""What the catalog promises."""

import pytest

from heldout.catalog import find, module_name, systems


def test_the_catalog_lists_the_117_systems():
    assert len(systems()) == 117
    for slug, system in systems().items():
        assert slug == system.slug
        assert system.title
        assert system.authors
        assert 2015 <= system.year <= 2026
        assert len(system.arxiv) == 10
        assert system.rooms
        assert system.summary


def test_an_unknown_slug_names_its_neighbours():
    with pytest.raises(ValueError, match=r"did you mean .*ps-kd"):
        find("pskd")


def test_module_names_of_slugs():
    assert module_name("ps-kd") == "ps_kd"
    assert module_name("3dlabelprop") == "_3dlabelprop"
