import pytest

from heldout.sources import HPO, missing
from heldout.tasks import phenotypes
from heldout.tasks.clinical.phenotypes import _read

needs_hpo = pytest.mark.skipif(bool(missing([HPO])), reason=missing([HPO]))

ONTOLOGY = r"""format-version: 1.2

[Term]
id: HP:1
name: Cyst
def: "A \"sac\", of fluid: \nlarge." [https://example.org]
comment: "not this"
is_a: HP:2 ! Growth
is_a: HP:3 ! Other

[Term]
id: HP:2
name: Growth

[Term]
id: HP:9
name: obsolete Thing
is_obsolete: true

[Typedef]
id: part_of
name: part of
"""
ANNOTATIONS = "#c\ndatabase_id\tname\tqualifier\thpo_id\n" + "".join(
    f"{disease}\tx\t{qualifier}\t{term}\tPMID\n"
    for disease, qualifier, term in (
        ("D:1", "", "HP:1"),
        ("D:2", "NOT", "HP:1"),
        ("D:3", "", "HP:1"),
        ("D:1", "", "HP:9"),
    )
)


def test_terms_are_read_with_their_definitions_parents_and_diseases(tmp_path):
    (tmp_path / "o").write_text(ONTOLOGY)
    (tmp_path / "a").write_text(ANNOTATIONS)
    found = _read(tmp_path / "o", tmp_path / "a")
    assert set(found) == {"HP:1", "HP:2"}
    assert found["HP:1"] == ("Cyst", 'A "sac", of fluid: large.', ("HP:2", "HP:3"), {"D:1", "D:3"})
    assert found["HP:2"] == ("Growth", "", (), set())


@needs_hpo
def test_the_ontology_is_whole():
    found = phenotypes()
    assert len(found) == 19034
    assert sum(bool(term.definition) for term in found.values()) == 16449
    assert sum(len(term.parents) for term in found.values()) > 23000
    assert all(parent in found for term in found.values() for parent in term.parents)
    assert found["HP:0000003"].name == "Multicystic kidney dysplasia"
    assert "OMIM:107480" in found["HP:0000003"].diseases
    assert not any("\\" in term.definition for term in found.values())
