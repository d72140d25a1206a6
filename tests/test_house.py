"""The rules of the house: who may import whom, what the catalog promises, what an import costs."""

import ast
import importlib
import json
import re
import subprocess
import sys
import tomllib
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from heldout.catalog import ledger, outdated, systems
from heldout.errors import EXTRAS

SOURCE = Path(__file__).parents[1] / "src" / "heldout"
ORDER = [
    "annotations", "errors", "sources", "statistics", "method", "language_model",
    "catalog", "study",
    "report",
    "data", "nn", "optim", "losses", "measure", "weights", "adapt", "tasks", "lm", "train",
    "methods", "sklearn", "problem", "saved",
    "evals", "improve", "audit", "examples", "reproductions",
    "cli", "__main__",
]  # fmt: skip
ROOMS = [name for name in ORDER if (SOURCE / name).is_dir() and name not in ("examples", "reproductions", "cli")]
# Split, but renaming what their halves share would change statements that recorded studies execute.
SPLIT_LATELY = [
    "measure/datasets/required_bias.py", "measure/gradients/per_example.py",
    "tasks/images/biases.py", "tasks/images/domains.py", "train/diversify.py",
]  # fmt: skip
# Sources without a test file of their own name, by the tests that reach them: this list may only become shorter.
# (No test loads examples/fashion.py yet: its pictures come in a package of the system.)
REACHED_BY = {
    "adapt/test_protocol.py": ["adapt/pseudo_label.py"],
    "audit/test_parts.py": ["audit/examine.py", "audit/report.py"],
    "cli/test_quantize.py": ["cli/weights.py"],
    "cli/test_catalog.py": ["report/cards.py", "report/terminal.py"],
    "cli/test_verbs.py": ["cli/options.py", "cli/output.py", "cli/studies.py"],
    "evals/test_run.py": ["evals/protocol.py", "evals/report.py"],
    "improve/test_search.py": ["improve/trials.py"],
    "lm/models/test_bases.py": ["lm/models/trained_once.py"],
    "lm/models/test_kept_answers.py": ["language_model.py", "lm/models/scripted.py", "lm/models/usage.py"],
    "lm/models/test_local.py": ["lm/models/encoding.py", "lm/models/generation.py", "lm/models/stopping.py"],
    "lm/programs/test_sandbox.py": ["lm/programs/boundary.py", "lm/programs/child.py"],
    "lm/strategies/test_routing.py": ["lm/strategies/model_pool.py"],
    "measure/datasets/test_required_bias.py": ["measure/datasets/gram.py", "measure/datasets/noncentral_chi2.py"],
    "measure/gradients/test_per_example.py": ["measure/gradients/layer_gradients.py"],
    "problem/test_problem.py": [
        "examples/digits.py", "examples/fashion.py", "problem/checks.py", "problem/loading.py",
    ],
    "study/execution/test_executors.py": [
        "study/execution/on_ray.py", "study/execution/processes.py", "study/execution/supervisor.py",
        "study/execution/worker.py", "study/execution/workers.py",
    ],
    "study/execution/test_isolation.py": ["study/execution/runs.py"],
    "study/test_digest.py": ["study/statements.py"],
    "study/test_store.py": ["study/results.py"],
    "tasks/images/test_shifts.py": ["tasks/images/checks.py", "tasks/seeds.py"],
    "train/engines/test_engines.py": ["train/engines/transformers.py"],
    "train/reinforcement/test_grpo.py": ["train/tuning/dpo.py", "train/tuning/tuned.py"],
    "train/test_diversify.py": ["tasks/vectors/points.py"],
    "weights/merging/test_bang.py": ["weights/merging/wise_ft.py"],
    "weights/quantization/test_awq.py": ["weights/quantization/activations.py"],
    "weights/quantization/test_gptq.py": ["weights/quantization/blockwise.py"],
    "weights/quantization/test_quantized_folder.py": ["weights/quantization/calibration.py"],
    "weights/test_checkpoint.py": ["weights/streaming.py"],
}  # fmt: skip
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
def test_rooms_are_entered_by_their_public_face(file):
    room = file.relative_to(SOURCE).parts[0].removesuffix(".py")
    for other, name in imports(file):
        if other != room:
            assert name == f"heldout.{other}", f"{file.name} reaches into {name}"


def test_no_module_imports_itself_by_way_of_others():
    files = {module_of(file): file for file in SOURCE.rglob("*.py")}
    edges = {module: set(loaded(file)) & set(files) for module, file in files.items()}
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        pytest.fail("a circle of imports: " + " -> ".join(error.args[1]))


def module_of(file):
    parts = ("heldout", *file.relative_to(SOURCE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def loaded(file):
    """Names of the modules, or of what may be modules, that a file imports as soon as it is loaded."""
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("file", sorted(SOURCE.rglob("*.py")), ids=lambda f: str(f.relative_to(SOURCE)))
def test_private_names_stay_in_their_file(file):
    if str(file.relative_to(SOURCE)) in SPLIT_LATELY:
        return
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("heldout."):
            private = [alias.name for alias in node.names if alias.name.startswith("_")]
            assert not private, f"{file.name} imports {private} from {node.module}"


def test_a_test_file_stands_beside_every_source_file():
    """But for reproductions, which one test file runs, and for what ``REACHED_BY`` names."""
    tests = SOURCE.parents[1] / "tests"
    sources = {file.relative_to(SOURCE) for file in SOURCE.rglob("*.py") if not file.name.startswith("__")}
    alone = {
        str(file)
        for file in sources
        if file.parts[0] != "reproductions" and not (tests / file.with_name(f"test_{file.name}")).is_file()
    }
    assert alone == {source for reached in REACHED_BY.values() for source in reached}
    assert [test for test in REACHED_BY if not (tests / test).is_file()] == []


def test_every_public_name_is_exported_by_one_room():
    homes = {}
    for room in ROOMS:
        for name in importlib.import_module(f"heldout.{room}").__all__:
            homes.setdefault(name, []).append(room)
    assert {name: rooms for name, rooms in homes.items() if len(rooms) > 1} == {}


@pytest.mark.parametrize(
    "room", sorted({f.parent for f in SOURCE.rglob("__init__.py")} - {SOURCE}), ids=lambda d: d.name
)
def test_a_room_says_what_it_answers_and_fits_on_a_page(room):
    assert ast.get_docstring(ast.parse((room / "__init__.py").read_text())).splitlines()[0].strip()
    if room.name not in ("reproductions", "study"):
        assert len([file for file in room.glob("*.py") if file.name != "__init__.py"]) <= 16


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
    if recorded is None and system.slug in outdated():
        return  # its study is written, and to be recorded
    assert recorded is not None, f"no evidence: run `heldout reproduce {system.slug} --workers 2 --record`"
    if system.slug in outdated():
        assert is_stale(recorded, study), "recorded: take it out of evidence/outdated.txt"
    else:
        assert not is_stale(recorded, study), f"stale: run `heldout reproduce {system.slug} --workers 2 --record`"


def test_importing_the_package_or_the_study_engine_does_not_import_torch():
    code = "import sys, heldout, heldout.study, heldout.catalog, heldout.cli; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


def test_fit_is_loaded_without_language_models_measures_or_worlds():
    code = "import sys; from heldout import fit; print(*[m for m in sys.modules if m.startswith('heldout.')])"
    modules = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert "heldout.train" in modules
    assert not {"heldout.lm", "heldout.measure", "heldout.tasks", "heldout.study"} & set(modules)


def test_every_extra_brings_what_heldout_imports():
    project = tomllib.loads((SOURCE.parents[1] / "pyproject.toml").read_text())["project"]
    named = {system.extra for system in systems().values() if system.extra}
    assert named <= set(EXTRAS) <= set(project["optional-dependencies"])
    imported = {top for file in SOURCE.rglob("*.py") for top in libraries(file)}
    for extra, modules in EXTRAS.items():
        assert imported & set(modules), f"nothing imports what {extra} brings"
    listed = re.fullmatch(r"heldout\[(.*)\]", project["optional-dependencies"]["all"][0])
    assert listed.group(1).split(",") == list(EXTRAS)
    brought = {extra: " ".join(project["optional-dependencies"][extra]) for extra in EXTRAS}
    assert "optuna" in brought["search"]
    readme = (SOURCE.parents[1] / "README.md").read_text()
    told = readme[readme.index("Extras, each named by") : readme.index("or `all`")]
    assert [extra for extra in EXTRAS if f"`{extra}`" not in told] == []


def libraries(file):
    """Top-level names of everything that a file imports, or requires by name."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]
        elif isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)


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
