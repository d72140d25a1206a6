import ast
import sys
import textwrap
import zlib
from pathlib import Path

import pytest
import torch

from heldout.tasks import call_graph, returns_value

pytest.importorskip("torch_geometric")

FIRST = '''
"""Not a word of this counts: zebra."""
def load(path, mode="r") -> str:
    "Returns the zebra."
    def inner(): return 1
    return parse(path) + inner()
def parse(text):
    text.save()
    missing(text)
class Box:
    def save(self): load(self.path)
    async def loadAllHTTPFiles(self): yield load
'''
SECOND = """
import first
def parse(x): return None
def use(x):
    load(x)
    parse(x)
    parse(x)
    use(x)
    lambda: many()
def many(): pass
"""


def package(folder, **files):
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text), "utf-8")
    return folder


def edges_of(graph):
    return {(graph.names[a], graph.names[b]) for a, b in graph.edge_index.T.tolist()}


def both(*pairs):
    return {*pairs, *((b, a) for a, b in pairs)}


@pytest.fixture
def graph(tmp_path):
    return call_graph(package(tmp_path, first=FIRST, sub__second=SECOND))


def test_functions_stand_in_the_order_of_files_and_lines(graph):
    first = ["load", "load.inner", "parse", "Box.save", "Box.loadAllHTTPFiles"]
    second = ["parse", "use", "many"]
    assert graph.names == [f"first:{name}" for name in first] + [f"sub.second:{name}" for name in second]


def test_calls_lead_to_the_same_file_first(graph):
    assert edges_of(graph) == both(
        ("first:load", "first:parse"),
        ("first:load", "first:load.inner"),
        ("first:parse", "first:Box.save"),
        ("first:Box.save", "first:load"),
        ("sub.second:use", "first:load"),
        ("sub.second:use", "sub.second:parse"),
        ("sub.second:use", "sub.second:many"),
    )
    codes = graph.edge_index[0] * len(graph.names) + graph.edge_index[1]
    assert torch.equal(codes, codes.unique())


def test_labels_are_whether_a_value_comes_back(graph):
    assert graph.y.tolist() == [1, 1, 0, 0, 1, 0, 0, 0]
    assert graph.y.dtype == torch.int64


@pytest.mark.parametrize(
    ("body", "value"),
    [
        ("return 1", 1), ("return", 0), ("return None", 0), ("pass", 0), ("yield", 1), ("yield from x", 1),
        ("if x:\n        return x", 1), ("lambda: (yield)", 0), ("def g(): return 1", 0),
        ("class A:\n        def g(self): return 1", 0), ("for _ in x:\n        with x: return 0", 1),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["def", "async def"])
def test_a_value_is_returned_by_the_function_itself(body, value, kind):
    source = f"{kind} f(x):\n    {body}"
    if kind == "async def" and "yield from" in body:
        return
    assert returns_value(ast.parse(source).body[0]) == value


def test_only_an_expression_or_function_is_judged():
    with pytest.raises(TypeError, match="function"):
        returns_value(ast.parse("x = 1").body[0])


def columns(*words):
    return {zlib.crc32(word.encode()) % 4096 for word in words}


def test_words_are_those_of_identifiers_and_kinds_of_syntax(tmp_path):
    source = '''
    def loadHTTPFile_v2(some_path: Hint = DEFAULT, *args, key=None, **options) -> Answer:
        """zebra"""
        "giraffe"
        def inner(hidden): return hidden
        value = some_path.size if True else None
        return value
    '''
    graph = call_graph(package(tmp_path, one=source), features=4096)
    expected = columns(
        *("Expr", "Assign", "IfExp", "Attribute", "Name"),
        *("load", "http", "file", "v", "some", "path", "hint", "default", "args", "key", "options", "value", "size"),
    )
    assert set(graph.x[0].nonzero().flatten().tolist()) == expected
    assert set(graph.x[0].tolist()) == {0.0, 1.0}
    assert set(graph.x[1].nonzero().flatten().tolist()) == columns("inner", "hidden", "Name")


def test_what_comes_back_is_not_told_by_the_words(tmp_path):
    pairs = {
        "returns": ("def f(x) -> int: x; return x", "def f(x): x; x"),
        "yields": ("def f(x) -> Iterator: x; yield x", "def f(x): x; x"),
        "yields from": ("def f(x): yield from x", "def f(x): x"),
        "none": ("def f(x): x; return None", "def f(x): x; return 1"),
    }
    for name, (one, other) in pairs.items():
        first, second = (call_graph(package(tmp_path / f"{name}{n}", m=text)) for n, text in enumerate((one, other)))
        assert torch.equal(first.x, second.x)
        assert first.y.item() != second.y.item()


def test_an_ambiguous_name_leads_nowhere(tmp_path):
    files = {f"m{number}": "def get(): pass" for number in range(4)}
    caller = "def use(): get()"
    assert call_graph(package(tmp_path / "four", **files, user=caller)).num_edges == 0
    del files["m0"]
    assert call_graph(package(tmp_path / "three", **files, user=caller)).num_edges == 6


def test_many_of_a_name_in_the_same_file_are_all_linked(tmp_path):
    classes = "".join(f"class C{number}:\n    def get(self): pass\n" for number in range(5))
    assert call_graph(package(tmp_path, one=classes + "def use(): get()")).num_edges == 10


def test_labels_may_be_ones_own_and_folders_left_out(tmp_path):
    folder = package(tmp_path, first=FIRST, tests__second=SECOND)
    graph = call_graph(folder, skip=("tests",), label=lambda node: len(node.args.args))
    assert graph.y.tolist() == [2, 0, 1, 1, 1]
    with pytest.raises(ValueError, match="label"):
        call_graph(folder, label=lambda node: -1)
    assert len(call_graph(folder / "tests", skip=("tests",)).y) == 3  # of the folder itself, the name does not count


def test_what_is_no_python_is_passed_over(tmp_path):
    folder = package(tmp_path, good="def f(): pass", bad="def f(:", old="print 'x'")
    (tmp_path / "null.py").write_bytes(b"\0")
    (tmp_path / "latin.py").write_bytes(b"# -*- coding: latin-1 -*-\ndef caf\xe9(): pass")
    assert call_graph(folder).names == ["good:f", "latin:café"]


def test_nothing_is_imported(tmp_path):
    folder = package(tmp_path, boom="def f(): pass\nraise SystemExit")
    assert call_graph(folder).names == ["boom:f"]
    before = {*sys.modules}
    call_graph("xmlrpc")
    call_graph("wsgiref")
    assert not {name for name in {*sys.modules} - before if name.split(".")[0] in ("xmlrpc", "wsgiref")}


def test_a_module_of_one_file_and_a_path_are_taken():
    import textwrap as module

    by_name, by_path = call_graph("textwrap"), call_graph(Path(module.__file__))
    assert by_name.names == by_path.names
    assert by_name.names[0] == "textwrap:TextWrapper.__init__"
    assert torch.equal(by_name.x, by_path.x)


@pytest.mark.parametrize(
    ("given", "fault", "words"),
    [
        ("no_such_package_here", FileNotFoundError, "no_such_package_here"),
        ("os.path", ValueError, "top-level"),
        ("", ValueError, "top-level"),
        ("sys", FileNotFoundError, "source"),
        (Path("/no/such/folder"), FileNotFoundError, "source"),
    ],
)
def test_what_is_no_package_is_named(given, fault, words):
    with pytest.raises(fault, match=words):
        call_graph(given)


def test_a_package_without_functions_is_refused(tmp_path):
    with pytest.raises(ValueError, match="functions"):
        call_graph(package(tmp_path, one="x = 1"))
    with pytest.raises(ValueError, match="features"):
        call_graph(tmp_path, features=0)
