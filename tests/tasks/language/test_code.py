import ast

import pytest

from heldout.tasks import stdlib_code, stdlib_digest, stdlib_docstrings
from heldout.tasks.language.code import _PARTS, _files, _split

PARTS = ("calibration", "eval")


def test_the_parts_are_disjoint_and_cover_every_module():
    files = [{file.name for file in _files(part)} for part in _PARTS]
    assert sum(map(len, files)) == len(set.union(*files))
    assert len(set.union(*files)) > 100
    assert set().union(*_PARTS.values()) == set(range(100))
    assert len(files[list(_PARTS).index("train")]) > 0.6 * sum(map(len, files))


@pytest.mark.parametrize("part", PARTS)
def test_both_domains_are_full_and_the_same_again(part):
    code, prose = stdlib_code(part), stdlib_docstrings(part)
    assert sum(map(len, code)) > 100_000
    assert sum(map(len, prose)) > 10_000
    assert stdlib_code(part) == code
    assert stdlib_digest(part) == stdlib_digest(part) != stdlib_digest("train")


def test_docstrings_are_cut_out_of_the_code_and_nothing_else():
    source = (
        '"""Top."""\nimport os\n\nclass A:\n    """About A.\n\n    More."""\n\n'
        '    def f(self):\n        "short"\n        return "kept"\n'
    )
    code, prose = _split(source)
    assert code == 'import os\n\nclass A:\n\n    def f(self):\n        return "kept"\n'
    assert prose == "Top.\n\nAbout A.\n\nMore.\n\nshort"
    ast.parse(code)


def test_an_unknown_part_is_refused():
    with pytest.raises(
        ValueError,
        match=r"part must be one of 'train', 'eval', 'calibration'",
    ):
        stdlib_code("test")
