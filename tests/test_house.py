"""The rules of the house: who may import whom, what the catalog promises, what an import costs."""

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from heldout.catalog import find, ledger, method_factories, module_name, systems
from heldout.method import Method
from heldout.methods import available, parse

SOURCE = Path(__file__).parents[1] / "src" / "heldout"
ORDER = [
    "errors", "sources", "statistics", "method", "language_model",
    "catalog", "study",
    "report",
    "data", "nn", "optim", "losses", "measure", "weights", "adapt", "tasks", "lm", "train",
    "methods", "problem",
    "evals", "improve", "audit", "examples", "reproductions",
    "cli", "__main__",
]  # fmt: skip
BUILT = [system for system in systems().values() if system.built]


def imports(file):
    """(room, whole dotted name) of every heldout module that a file imports when it is loaded or run."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("heldout."):
            yield node.module.split(".")[1], node.module
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("heldout."):
                    yield alias.name.split(".")[1], alias.name


@pytest.mark.parametrize("file", sorted(SOURCE.rglob("*.py")), ids=lambda f: str(f.relative_to(SOURCE)))
def test_imports_run_downward_only(file):
    room = file.relative_to(SOURCE).parts[0].removesuffix(".py")
    if room == "__init__":
        return
    for other, name in imports(file):
        assert other == room or ORDER.index(other) < ORDER.index(room), f"{file.name} in {room} imports {name}"


@pytest.mark.parametrize("file", sorted(SOURCE.rglob("*.py")), ids=lambda f: str(f.relative_to(SOURCE)))
def test_part_rooms_are_entered_by_their_public_face(file):
    room = file.relative_to(SOURCE).parts[0]
    rooms = {"data", "nn", "optim", "losses", "measure", "weights", "adapt", "tasks", "lm"}
    for other, name in imports(file):
        if other in rooms and other != room:
            assert name == f"heldout.{other}", f"{file.name} reaches into {name}"


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


@pytest.mark.parametrize("system", BUILT, ids=lambda s: s.slug)
def test_a_built_system_has_its_parts_its_study_and_its_evidence(system):
    for part in system.parts:
        room, name = part.rsplit(".", 1)
        module = importlib.import_module(room)
        assert name in module.__all__
        assert getattr(module, name).__doc__
    study = importlib.import_module(system.module).study
    assert study.slug == system.slug
    assert study.claims


@pytest.mark.parametrize("system", BUILT, ids=lambda s: s.slug)
def test_recorded_evidence_is_of_the_code_as_it_stands(system):
    from heldout.study import is_stale

    study = importlib.import_module(system.module).study
    recorded = ledger(system.slug)
    assert recorded is not None, f"no evidence: run `heldout reproduce {system.slug} --workers 2 --record`"
    assert not is_stale(recorded, study), f"stale: run `heldout reproduce {system.slug} --workers 2 --record`"


@pytest.mark.parametrize("name", sorted(method_factories()))
def test_every_method_of_the_catalog_can_be_made(name):
    method = parse(name)
    assert isinstance(method, Method)
    assert method.stages
    assert name in available()


@pytest.mark.parametrize(
    "expression", ["__import__('os')", "sam(0.1)", "sam(**{})", "sam.x", "sam - tent", "sam(rho=open('x'))", "", "1"]
)
def test_method_expressions_are_never_evaluated(expression):
    with pytest.raises(ValueError):
        parse(expression)


def test_parse_composes_and_passes_keyword_arguments():
    assert parse("sam(rho=0.1) + ps_kd").stages == ("optimizer", "loss")
    assert parse("own + sam", {"own": Method("x")}).name == "own+sam"
    with pytest.raises(ValueError, match="no method 'nothing'; there are"):
        parse("nothing")
    with pytest.raises(ValueError, match="rho must be finite"):
        parse("sam(rho=-1)")


def test_module_names_of_slugs():
    assert module_name("ps-kd") == "ps_kd"
    assert module_name("3dlabelprop") == "_3dlabelprop"


def test_importing_the_package_or_the_study_engine_does_not_import_torch():
    code = "import sys, heldout, heldout.study, heldout.catalog, heldout.cli; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


def test_the_public_names_exist():
    import heldout

    for name in heldout.__all__:
        assert getattr(heldout, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        heldout.nothing  # noqa: B018


def test_the_readme_shows_the_recorded_evidence():
    root = SOURCE.parents[1]
    sys.path.insert(0, str(root / "tools"))
    from readme_evidence import readme, table

    text = (root / "README.md").read_text(encoding="utf-8")
    assert readme(text) == text
    assert table() in (root / "EVIDENCE.md").read_text(encoding="utf-8")


def test_evidence_files_are_valid_json():
    for file in (SOURCE.parents[1] / "evidence").glob("*.json"):
        assert json.loads(file.read_text())["slug"] == file.stem
