import collections
import os
import pickle
import struct

import numpy as np
import pytest
import torch

from heldout.sources import NAS, SourceError
from heldout.tasks import GRAPH_LINKS, GRAPH_OPERATIONS, architecture_graph, nas_bench_graph, read_numbers

here = pytest.mark.skipif(not NAS.here(), reason="the package of the source NAS is not installed")


def table(**changes):
    entry = {"valid_perf": 0.7, "perf": np.float64(0.8), "latency": 0.01, "para": 1.5}
    return {88876: entry | {"perf": 0.5}, 123: entry, 71000: {**entry, "valid_perf": 0.25} | changes}


def written(tmp_path, content):
    (tmp_path / "cora.bench").write_bytes(content)
    return tmp_path


@pytest.mark.parametrize("protocol", range(3, pickle.HIGHEST_PROTOCOL + 1))
def test_rows_are_architectures_in_the_order_of_their_codes(tmp_path, protocol):
    found = nas_bench_graph("cora", written(tmp_path, pickle.dumps(table(), protocol)))
    assert found.links.tolist() == [list(GRAPH_LINKS[i]) for i in (0, 7, 8)]
    assert found.operations.tolist() == [[0, 1, 2, 3], [1, 0, 0, 0], [8, 8, 7, 6]]
    assert found.validation.tolist() == [0.7, 0.25, 0.7]
    assert found.test.tolist() == [0.8, 0.8, 0.5]
    assert found.latency.tolist() == [0.01] * 3
    assert found.parameters.tolist() == [1.5] * 3
    assert [GRAPH_OPERATIONS[i] for i in found.operations[0]] == ["gat", "gcn", "gin", "cheb"]


class Called:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "what",
    [
        Called(os.system, ("false",)),
        Called(eval, ("1",)),
        Called(getattr, ({}, "keys")),
        Called(__import__, ("os",)),
        collections.OrderedDict(a=1),
        np.arange(3),
        np.dtype("f8"),
        torch.zeros(1),
        len,
        {"a": [1, {"b": Called(os.getcwd, ())}]},
    ],
)
def test_nothing_but_numbers_and_containers_is_read_and_nothing_is_called(what, tmp_path, monkeypatch):
    content = pickle.dumps(what)
    for module, name in (("os", "system"), ("os", "getcwd"), ("builtins", "eval")):
        monkeypatch.setattr(f"{module}.{name}", lambda *_: pytest.fail("something was called"))
    if isinstance(what, np.dtype):
        assert not isinstance(read_numbers(content), np.dtype)  # a stand-in that can do nothing
        return
    with pytest.raises(ValueError, match="content must"):
        read_numbers(content)


def scalar_call(kind, value):
    """A pickle that calls numpy's scalar with a type and bytes of one's own."""
    return b"".join([
        b"\x80\x02cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(X", struct.pack("<I", len(kind)), kind, b"tR",
        b"X", struct.pack("<I", len(value)), value, b"tR.",
    ])  # fmt: skip


def test_objects_and_texts_in_the_place_of_numbers_are_refused():
    with pytest.raises(ValueError, match="NumPy type 'O8'"):
        read_numbers(scalar_call(b"O8", b"12345678"))
    with pytest.raises(ValueError, match="NumPy object"):
        read_numbers(scalar_call(b"f8", b"12345678"))  # a text, not bytes


@pytest.mark.parametrize(
    "value", [np.float64(2.5), np.float32(2.5), np.int64(-3), np.int32(7), np.dtype(">f8").type(1)]
)
def test_numbers_of_numpy_come_as_plain_ones(value):
    found = read_numbers(pickle.dumps(value))
    assert type(found) in (int, float)
    assert found == value


def test_big_endian_numbers_are_read_as_such():
    little = pickle.dumps(np.float64(2.5), 3)
    big = little.replace(b"<", b">").replace(struct.pack("<d", 2.5), struct.pack(">d", 2.5))
    assert big != little
    assert read_numbers(big) == read_numbers(little) == 2.5


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps(table())[:-20], b"\x80\x04N"])
def test_what_is_no_whole_pickle_is_refused(content):
    with pytest.raises(ValueError, match="content must"):
        read_numbers(content)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ([1, 2], "must hold a dict"),
        ({}, "must hold a dict"),
        ({"a": {}}, "must hold valid_perf"),
        ({123: {"perf": 1.0}}, "must hold valid_perf"),
        ({123: table()[123], "a": {}}, "must hold valid_perf"),
        (table(perf=[0.5]), "must hold valid_perf"),
        ({9123: table()[123]}, "below 9"),
        ({1234567: table()[123]}, "five digits"),
        (table(perf=float("nan")), "not finite"),
    ],
)
def test_other_tables_are_refused(tmp_path, changed, said):
    with pytest.raises(ValueError, match=said):
        nas_bench_graph("cora", written(tmp_path, pickle.dumps(changed)))


def test_a_folder_without_the_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"folder must hold cora\.bench"):
        nas_bench_graph("cora", tmp_path)


def test_other_data_sets_are_refused_and_a_missing_package_is_told(monkeypatch):
    with pytest.raises(ValueError, match="dataset must be one of 'arxiv'"):
        nas_bench_graph("proteins")
    monkeypatch.setattr("heldout.sources.Package.find", lambda self, folder=None: None)
    with pytest.raises(SourceError, match=r"pip install --no-deps nas-bench-graph==1\.4\.0"):
        nas_bench_graph("cora")


def test_a_file_of_the_package_that_is_another_is_refused(tmp_path, monkeypatch):
    written(tmp_path, pickle.dumps(table()))
    monkeypatch.setattr("heldout.sources.Source.files", lambda self, folder=None: (tmp_path / "cora.bench",))
    with pytest.raises(SourceError, match="SHA-256 is another"):
        nas_bench_graph("cora")


@here
def test_the_package_holds_the_published_space():
    cora, pubmed = nas_bench_graph("cora"), nas_bench_graph("pubmed")
    assert len(cora.test) == 26_206
    assert torch.equal(cora.operations, pubmed.operations)
    assert torch.equal(cora.links, pubmed.links)
    assert ((cora.test > 0) & (cora.test < 0.9)).all()
    best = cora.validation.argmax()
    assert cora.test[best] > cora.test.median()


@pytest.mark.parametrize(
    ("links", "edges"),
    [
        ((0, 1, 2, 3), {(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)}),
        ((0, 0, 1, 3), {(0, 1), (0, 2), (1, 3), (3, 4), (2, 5), (4, 5)}),
        ((0, 0, 0, 0), {(0, 1), (0, 2), (0, 3), (0, 4), (1, 5), (2, 5), (3, 5), (4, 5)}),
    ],
)
def test_an_architecture_is_a_graph_whose_output_takes_the_leaves(links, edges):
    graph = architecture_graph(torch.tensor(links), [0, 3, 8, 5])
    assert set(map(tuple, graph.edge_index.T.tolist())) == edges
    assert graph.op.tolist() == [9, 0, 3, 8, 5, 10]
    assert (graph.op.dtype, graph.edge_index.dtype, graph.num_nodes) == (torch.int64, torch.int64, 6)


@pytest.mark.parametrize(
    ("links", "operations", "argument"),
    [
        ((0, 1, 2), (0, 0, 0, 0), "links"),
        ((0, 2, 0, 0), (0, 0, 0, 0), "links"),
        ((-1, 0, 0, 0), (0, 0, 0, 0), "links"),
        ((0, 0, 0, 0), (0, 0, 0, 9), "operations"),
        ((0, 0, 0, 0), (0.5, 0, 0, 0), "operations"),
        ((0, 0, 0, 0), (), "operations"),
    ],
)
def test_what_is_no_architecture_is_refused_by_name(links, operations, argument):
    with pytest.raises(ValueError, match=argument):
        architecture_graph(links, operations)
