import importlib
import subprocess
import sys
import textwrap

import pytest

from heldout.study import Study, StudyError, better, higher_is_better, load_study, run_digest, run_sources, study_digest

PACKAGE = {
    "__init__.py": """
        from typing import TYPE_CHECKING

        __version__ = "1"
        _NAMES = {"fit": "PACKAGE.train"}

        if TYPE_CHECKING:
            from PACKAGE import weights
            from PACKAGE.train import fit

        def __getattr__(name):
            if name not in _NAMES:
                raise AttributeError(name)
            return getattr(__import__(_NAMES[name], fromlist=[name]), name)
        """,
    "weights/__init__.py": """
        from PACKAGE.weights.lines import lines
        from .merge import average as average, scale
        """,
    "weights/lines.py": "from PACKAGE.weights.core import add\ndef lines(x): return add(x, 1)\n",
    "weights/merge.py": "def average(x): return x\ndef scale(x): return x\n",
    "weights/core.py": "def add(x, y): return x + y\n",
    "train/__init__.py": "from PACKAGE.train.supervised import fit\nfrom PACKAGE.train.distil import distil\n",
    "train/supervised.py": "def fit(x): return x\n",
    "train/distil.py": "def distil(x): return x\n",
    "tables.py": '_LAZY = {"mean": "PACKAGE.weights.merge:average"}\ndef __getattr__(name): ...\n',
    "starred.py": "from PACKAGE.weights.core import *\n",
    "work.py": """
        import PACKAGE
        from PACKAGE.weights import lines

        def run(arm, seed, profile):
            return {"score": lines(PACKAGE.fit(arm["x"]))}

        from heldout.study import Study, better, higher_is_better
        study = Study(slug="work", arms={"a": {"x": 1}, "b": {"x": 2}}, run=run, metrics={"score": higher_is_better})
        """,
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package in a folder; a function writes one of its files and gives the study of ``work``, freshly loaded."""
    name = f"pack{tmp_path.name.replace('-', '_')}"
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])

    def write(file, text):
        path = tmp_path / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text).replace("PACKAGE", name))

    def changed(file=None, text=None, old=None):
        if file:
            write(file, text if old is None else PACKAGE[file].replace(old, text))
        for module in [each for each in sys.modules if each.partition(".")[0] == name]:
            del sys.modules[module]
        importlib.invalidate_caches()
        sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
        study = load_study(f"{name}.work")
        sys.dont_write_bytecode = before
        return study

    for file, text in PACKAGE.items():
        write(file, text)
    yield changed
    for module in [each for each in sys.modules if each.partition(".")[0] == name]:
        del sys.modules[module]


def sources(study):
    return {name.partition(".")[2] for name in run_sources(study)}


def test_names_are_followed_to_the_files_that_define_them(package):
    assert sources(package()) == {"", "weights.lines", "weights.core", "train.supervised"}


@pytest.mark.parametrize(
    ("imports", "expected"),
    [
        ("from PACKAGE.weights import scale as s", {"weights.merge"}),
        ("from PACKAGE import weights\nx = weights.scale", {"weights.merge"}),
        ("import PACKAGE.weights as w\nx = w.scale(1)", {"weights.merge"}),
        ("import PACKAGE.weights.merge\nx = PACKAGE.weights.merge.scale", {"weights.merge"}),
        ("from PACKAGE import fit", {"train.supervised"}),
        ("from PACKAGE.tables import mean", {"weights.merge"}),
        ("from PACKAGE.starred import add", {"weights.core"}),
        ("from .weights.core import add", {"weights.core"}),
        ("from . import weights\nx = weights.average", {"weights.merge"}),
        ("def f():\n    from PACKAGE.weights import scale", {"weights.merge"}),
        ("from PACKAGE import weights\nstr(weights)", {"weights", "weights.lines", "weights.core", "weights.merge"}),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from PACKAGE.weights import scale", set()),
        ("import numpy as np\nfrom heldout.study import interval", set()),
        ("from PACKAGE import __version__", set()),
    ],
)
def test_every_way_to_import_a_name_is_understood(package, imports, expected):
    work = f"{imports}\ndef run(arm, seed, profile): ...\n" + textwrap.dedent(
        """
        from heldout.study import Study, higher_is_better
        study = Study(slug="work", arms={"a": {}}, run=run, metrics={"score": higher_is_better})
        """
    )
    study = package("work.py", work)
    assert sources(study) - {""} == expected


def test_a_moved_file_and_a_split_one_change_nothing(package):
    before = study_digest(package())
    package("weights/layers.py", PACKAGE["weights/lines.py"])
    package("weights/sums.py", PACKAGE["weights/core.py"])
    package("weights/core.py", "from PACKAGE.weights.sums import add\n")
    moved = package("weights/__init__.py", "weights.layers import lines", old="weights.lines import lines")
    assert sources(moved) == {"", "weights.layers", "weights.sums", "train.supervised"}
    assert study_digest(moved) == before


def test_a_constant_is_seen_wherever_it_lies(package):
    package("weights/sizes.py", "SIZE = 1\n")
    core = "from PACKAGE.weights.sizes import SIZE\ndef add(x, y): return x + y * SIZE\n"
    before = run_digest(package("weights/core.py", core))
    assert run_digest(package("weights/sizes.py", "SIZE = 2\n")) != before


def test_two_definitions_of_one_name_are_not_taken_for_each_other(package):
    work = """
        from PACKAGE.weights.FIRST import scale
        from PACKAGE.weights.SECOND import scale as other

        def run(arm, seed, profile):
            return {"score": scale(arm["x"]) - other(1)}

        from heldout.study import Study, higher_is_better
        study = Study(slug="work", arms={"a": {"x": 1}}, run=run, metrics={"score": higher_is_better})
        """
    package("weights/a.py", "def scale(x): return x\n")
    package("weights/b.py", "def scale(x): return 2 * x\n")
    one = package("work.py", work.replace("FIRST", "a").replace("SECOND", "b"))
    digest = run_digest(one)
    other = package("work.py", work.replace("FIRST", "b").replace("SECOND", "a"))
    assert run_digest(other) != digest


def test_a_local_name_is_no_use_of_the_files_own(package):
    text = "def total(x): return x\ndef add(x, y):\n    total = x + y\n    return total\n"
    before = run_digest(package("weights/core.py", text))
    assert run_digest(package("weights/core.py", text.replace("return x\n", "return -x\n"))) == before


def test_a_validator_of_bad_input_does_not_count(package):
    before = run_digest(package("weights/core.py", CORE.replace(": ", ":\n    ")))
    checked = "def add(x, y):\n    from heldout.errors import finite\n    finite(x, 'x')\n    return x + y\n"
    assert run_digest(package("weights/core.py", checked)) == before
    used = checked.replace("finite(x, 'x')", "x = finite(x, 'x')")
    assert run_digest(package("weights/core.py", used)) != before


def test_a_decorator_that_refuses_bad_input_does_not_count(package):
    before = run_digest(package())
    decorated = "from heldout.errors import checked\n@checked\ndef add(x: float, y: float) -> float: return x + y\n"
    assert run_digest(package("weights/core.py", decorated)) == before
    another = decorated.replace("from heldout.errors import checked", "from functools import cache as checked")
    assert run_digest(package("weights/core.py", another)) != before


def test_a_method_that_only_refuses_bad_input_does_not_count(package):
    plain = "class Adder:\n    def __call__(self, x, y): return x + y\nadd = Adder()\n"
    before = run_digest(package("weights/core.py", plain))
    method = "    def __post_init__(self):\n        'Refuses.'\n        check_fields(self)\n"
    refusing = plain.replace("add =", "    def nothing(self): pass\nadd =").replace(
        "    def nothing(self): pass\n", method
    )
    assert run_digest(package("weights/core.py", "from heldout.errors import check_fields\n" + refusing)) == before
    assert (
        run_digest(package("weights/core.py", "from dataclasses import fields as check_fields\n" + refusing)) != before
    )


def test_a_change_of_code_that_is_used_changes_the_digest(package):
    before = run_digest(package())
    assert run_digest(package("weights/core.py", "def add(x, y): return y + x\n")) != before


def test_a_change_of_code_that_is_not_used_does_not(package):
    before = run_digest(package())
    assert run_digest(package("weights/merge.py", "def average(x): return 2\ndef scale(x): return 3\n")) == before
    assert run_digest(package("train/distil.py", "def distil(x): return 2\n")) == before


CORE = "def add(x, y): return x + y\n"


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        (CORE + "def other(x): return x\nOTHER = 3\n", False),
        ("def add(x: int, y: 'int') -> int: return x + y\n", False),
        ("import math\n" + CORE, False),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from os import path\n" + CORE, False),
        (CORE + "print('imported')\n", True),
        (CORE + "TABLE = {}\nTABLE['x'] = 1\n", True),
        (CORE + "def keep(f): return f\n@keep\ndef other(x): return x\n", True),
        (CORE + "def add(x, y): return y - x\n", True),
        ("try:\n    import fast\nexcept ImportError:\n    fast = None\n" + CORE, True),
        ("OFFSET = 1\ndef helper(x): return x + OFFSET\ndef add(x, y): return helper(x) + y\n", True),
    ],
)
def test_only_what_is_used_of_a_file_counts(package, text, counts):
    package("weights/core.py", CORE)
    before = run_digest(package())
    assert (run_digest(package("weights/core.py", text)) != before) == counts


def test_what_a_used_function_names_in_its_own_file_counts(package):
    text = "OFFSET = 1\nLIMIT = 9\ndef helper(x): return x + OFFSET\ndef add(x, y): return helper(x) + y\n"
    before = run_digest(package("weights/core.py", text))
    assert run_digest(package("weights/core.py", text.replace("OFFSET = 1", "OFFSET = 2"))) != before
    assert run_digest(package("weights/core.py", text.replace("LIMIT = 9", "LIMIT = 8"))) == before


def test_globals_makes_the_whole_file_count(package):
    text = "OTHER = 1\ndef add(x, y): return globals()['OTHER']\n"
    before = run_digest(package("weights/core.py", text))
    assert run_digest(package("weights/core.py", text.replace("OTHER = 1", "OTHER = 2"))) != before


def test_comments_docstrings_and_layout_do_not_count(package):
    before = study_digest(package())
    documented = '"""Doc."""\n# why\ndef add(x,\n        y):\n    """Sum."""\n    return (x + y)  # sum\n'
    assert study_digest(package("weights/core.py", documented)) == before


def test_arms_claims_and_title_change_the_evidence_digest_and_repeat_no_run(package):
    study = package()
    changed = package("work.py", '"b": {"x": 3}, "c": {"x": 4}', old='"b": {"x": 2}')
    assert run_digest(changed) == run_digest(study)
    assert study_digest(changed) != study_digest(study)


def test_a_claims_margin_is_part_of_the_evidence_digest():
    def run(arm, seed, profile): ...

    def study(margin):
        claims = [better("a", than="b", on="score", margin=margin)]
        return Study(slug="s", arms={"a": {}, "b": {}}, run=run, metrics={"score": higher_is_better}, claims=claims)

    assert study_digest(study(0.1)) == study_digest(study(0.1)) != study_digest(study(0.2))


STUDY_FILE = """
from heldout.study import Study, higher_is_better
from neighbour import BASE

def run(arm, seed, profile):
    return {"score": BASE}

study = Study(slug="file", arms={"a": {}}, run=run, metrics={"score": higher_is_better})
if __name__ == "__main__":
    from heldout.study import study_digest
    print(study_digest(study))
"""


def test_a_study_file_depends_on_its_neighbours_and_not_on_its_place(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    digests = []
    for folder, base in (("one", 1), ("two", 1), ("three", 2)):
        sys.modules.pop("neighbour", None)
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "neighbour.py").write_text(f"BASE = {base}\n")
        (tmp_path / folder / "my_study.py").write_text(STUDY_FILE)
        digests.append(study_digest(load_study(tmp_path / folder / "my_study.py")))
    assert digests[0] == digests[1] != digests[2]


def test_a_script_has_the_digest_of_its_file(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "neighbour.py").write_text("BASE = 1\n")
    (tmp_path / "my_study.py").write_text(STUDY_FILE)
    sys.modules.pop("neighbour", None)
    loaded = study_digest(load_study(tmp_path / "my_study.py"))
    environment = {"PYTHONPATH": ":".join(filter(None, sys.path)), "PATH": ""}
    printed = subprocess.check_output([sys.executable, str(tmp_path / "my_study.py")], env=environment, text=True)
    assert printed.strip() == loaded


def test_source_names_further_files(tmp_path):
    def run(arm, seed, profile): ...

    data = tmp_path / "data.csv"
    data.write_text("1,2")

    def digest():
        return run_digest(Study(slug="s", arms={"a": {}}, run=run, metrics={"score": higher_is_better}, source=[data]))

    before = digest()
    data.write_text("1,2,3")
    assert digest() != before
    data.unlink()
    with pytest.raises(StudyError, match=r"cannot read the source file .*data.csv"):
        digest()


def test_functions_without_a_file_differ_by_their_code():
    def study(text):
        space = {}
        exec(text, space)
        return Study(slug="s", arms={"a": {}}, run=space["run"], metrics={"score": higher_is_better})

    one, other = "def run(arm, seed, profile): return 1", "def run(arm, seed, profile): return 2"
    assert run_digest(study(one)) == run_digest(study(one)) != run_digest(study(other))
