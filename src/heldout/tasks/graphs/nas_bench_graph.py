"""NAS-Bench-Graph: 26,206 architectures of graph networks, each trained and measured on eight graph data sets.

The package's files are pickles. They are read by an unpickler that makes dicts, numbers and texts and nothing else.
Source: arXiv:2206.09166 (Qin et al., NeurIPS 2022).
"""

from __future__ import annotations

import hashlib
import io
import pickle
import struct
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from heldout.errors import check_labels, check_one_of, checked, require
from heldout.sources import NAS, SourceError

_SHA256 = {
    "arxiv": "7ee21a7653297a806c0ed1be3efe6ecc06acc84e48e942da0bfde0e5d287debe",
    "citeseer": "99c7f79b73372636305bf73fb32a58b63c57bd1871a152dd62ec72d984c8c50f",
    "computers": "fdb3dc0cf405d62322f0ab9614b2083c2a5e6576c2f43e4f2214be64bc62b1b3",
    "cora": "5e69b2f9bb08d8927d9ffd4921f8494a3cea349c9c3a461334cb9dc9e11701a8",
    "cs": "71ae8469930517160b024f52db6000a4897f1aff5d765beb27bb60952ed5bd31",
    "photo": "5511b4dc3f63fa988792177227db7901290fb9b27fc6c02e3036b29e134ed6df",
    "physics": "1e309bafee0b832c8b84fa3c039c36992bc0a910238b128f26b7e9190d7f2aea",
    "pubmed": "10b4dcf6cfd3a24f6059f7d541a4a872960b4adac0b3dba26abed1bb9a3d904d",
}
GRAPH_DATASETS = tuple(_SHA256)
GRAPH_OPERATIONS = ("gat", "gcn", "gin", "cheb", "sage", "arma", "graph", "fc", "skip")
GRAPH_LINKS = (
    (0, 0, 0, 0), (0, 0, 0, 1), (0, 0, 1, 1), (0, 0, 1, 2), (0, 0, 1, 3),
    (0, 1, 1, 1), (0, 1, 1, 2), (0, 1, 2, 2), (0, 1, 2, 3),
)  # fmt: skip


class GraphBenchmark(NamedTuple):
    """What the architectures reach on one data set; rows are architectures, in the same order for every data set.

    Attributes:
        links: int64 ``(n, 4)``, from which node each of the four nodes takes its input: 0 is the network's.
        operations: int64 ``(n, 4)``, positions in ``GRAPH_OPERATIONS``.
        validation, test: float64 ``(n,)``, accuracy, mean of three trainings.
        latency: float64 ``(n,)``, seconds.
        parameters: float64 ``(n,)``, millions.

    Example:
        >>> numbers = torch.tensor([0.81, 0.84], dtype=torch.float64)
        >>> links, operations = torch.tensor([[0, 0, 1, 1], [0, 1, 2, 3]]), torch.tensor([[0, 1, 8, 8], [1, 1, 1, 1]])
        >>> found = GraphBenchmark(links, operations, numbers, numbers - 0.02, numbers, numbers)
        >>> best = found.validation.argmax()
        >>> [GRAPH_OPERATIONS[each] for each in found.operations[best]], round(found.test[best].item(), 2)
        (['gcn', 'gcn', 'gcn', 'gcn'], 0.82)
    """

    links: Tensor
    operations: Tensor
    validation: Tensor
    test: Tensor
    latency: Tensor
    parameters: Tensor


@checked
def nas_bench_graph(dataset: str = "cora", folder: str | Path | None = None) -> GraphBenchmark:
    """Returns the measured architectures of one of ``GRAPH_DATASETS``, up to isomorphism, from the source NAS.

    A look-up of networks that were each trained alone: it tells what a search by trial would have found. It holds
    nothing that a search by gradient descent would need, neither shared weights nor outputs.

    Args:
        dataset: which graph.
        folder: that holds ``cora.bench`` and so on, which are taken as they are; default: of the installed package,
            whose files' digests are checked.

    Raises:
        ValueError: another data set; a folder without its file; a file that holds something else than dicts of
            numbers.
        SourceError: the package is not installed, or its file is another one; the message has the command.

    Source: arXiv:2206.09166.

    Example:
        >>> import tempfile
        >>> entry = {"valid_perf": 0.7, "perf": 0.8, "latency": 0.01, "para": 1.5}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "cora.bench").write_bytes(pickle.dumps({88876: entry}))
        ...     found = nas_bench_graph("cora", folder)
        >>> [GRAPH_OPERATIONS[each] for each in found.operations[0]]
        ['skip', 'skip', 'fc', 'graph']
    """
    check_one_of(GRAPH_DATASETS, dataset=dataset)
    path = (NAS.files()[0].parent if folder is None else Path(folder)) / f"{dataset}.bench"
    if folder is not None and not path.is_file():
        raise ValueError(f"folder must hold {path.name}, {folder} does not")
    content = path.read_bytes()
    if folder is None and hashlib.sha256(content).hexdigest() != _SHA256[dataset]:
        raise SourceError(f"{path} is not that of the source NAS (its SHA-256 is another): run {NAS.command()}")
    table = read_numbers(content)
    if not isinstance(table, dict) or not table:
        raise ValueError(f"{path} must hold a dict of architectures, got {type(table).__name__}")
    for code, entry in table.items():
        if (
            not isinstance(code, int)
            or not isinstance(entry, dict)
            or not all(isinstance(entry.get(name), int | float) for name in _COLUMNS)
        ):
            raise ValueError(f"{path} must hold {', '.join(_COLUMNS)} for each architecture, at {code!r} it does not")
    rows = [[float(table[code][name]) for name in _COLUMNS] for code in sorted(table)]
    found = [_architecture(code) for code in sorted(table)]
    numbers = torch.tensor(rows, dtype=torch.float64)
    if not numbers.isfinite().all():
        raise ValueError(f"{path} holds numbers that are not finite")
    links, operations = (torch.tensor(each) for each in zip(*found, strict=True))
    return GraphBenchmark(links, operations, *numbers.unbind(1))


@checked
def architecture_graph(links: ArrayLike, operations: ArrayLike) -> Any:
    """Returns an architecture as a ``torch_geometric.data.Data`` of six nodes: input, four operations, output.

    ``op`` int64 ``(6,)`` holds positions in ``GRAPH_OPERATIONS``, and for input and output the two that follow.
    ``edge_index`` int64 ``(2, edges)`` is the flow of data; the output takes what no operation takes.

    Args:
        links: ``(4,)``, a row of ``GraphBenchmark.links`` or of ``GRAPH_LINKS``.
        operations: ``(4,)``, positions in ``GRAPH_OPERATIONS``.

    Raises:
        ValueError: not four of each, a link to a node that does not come before, an operation outside of the list.
        MissingExtraError: without torch-geometric.

    Source: arXiv:2206.09166, figure 1.

    Example:
        >>> graph = architecture_graph((0, 0, 1, 2), [1, 4, 4, 8])
        >>> graph.op.tolist(), graph.edge_index.tolist()
        ([9, 1, 4, 4, 8, 10], [[0, 0, 1, 2, 3, 4], [1, 2, 3, 4, 5, 5]])
    """
    geometric = require("torch_geometric.data")
    sources, codes = torch.as_tensor(links), torch.as_tensor(operations)
    for name, values in (("links", sources), ("operations", codes)):
        if values.shape != (4,) or values.is_floating_point():
            raise ValueError(f"{name} must be 4 integers, got {values.dtype} of shape {tuple(values.shape)}")
    check_labels(len(GRAPH_OPERATIONS), operations=codes)
    places = torch.arange(1, 5)
    if not bool(((sources >= 0) & (sources < places)).all()):
        raise ValueError(f"links must lead from the input, 0, or an earlier node, got {sources.tolist()}")
    leaves = places[~torch.isin(places, sources)]
    edges = torch.stack([torch.cat([sources, leaves]), torch.cat([places, torch.full_like(leaves, 5)])])
    ends = len(GRAPH_OPERATIONS)
    op = torch.cat([torch.tensor([ends]), codes, torch.tensor([ends + 1])])
    return geometric.Data(op=op.long(), edge_index=edges.long(), num_nodes=6)


_COLUMNS = ("valid_perf", "perf", "latency", "para")


def _architecture(code: int) -> tuple[tuple[int, ...], list[int]]:
    """The links and operations that a key stands for: base 10, the links first."""
    digits = [int(each) for each in f"{code:05d}"]
    if len(digits) != 5 or max(digits) >= len(GRAPH_OPERATIONS):
        raise ValueError(f"an architecture's key must be five digits below 9, got {code}")
    return GRAPH_LINKS[digits[0]], digits[1:]


@checked
def read_numbers(content: bytes) -> Any:
    """Returns what a pickle holds, as long as that is dicts, lists, tuples, texts, numbers and NumPy's numbers.

    Nothing is imported for it and nothing of it is called: a NumPy number comes as a float or an int.

    Raises:
        ValueError: it holds anything else, or is no pickle.

    Example:
        >>> read_numbers(pickle.dumps({"a": [1, 2.5]}))
        {'a': [1, 2.5]}
        >>> read_numbers(pickle.dumps(print))
        Traceback (most recent call last):
        ValueError: content must hold plain numbers and containers only, got builtins.print
    """
    try:
        return _Numbers(io.BytesIO(content)).load()
    except ValueError:
        raise
    except Exception as error:  # what is no pickle can fail in any way
        raise ValueError(f"content must be a pickle of numbers: {error}") from None


class _Type:
    """Stands in for numpy.dtype: knows the name of a number's type, and takes the state that pickle gives it."""

    def __init__(self, name: str, *_: Any) -> None:
        if name not in _FORMATS:
            raise ValueError(f"content must hold plain numbers and containers only, got a NumPy type {name!r}")
        self.format = "<" + _FORMATS[name]

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.format = (">" if state[1] == ">" else "<") + self.format[1:]


_FORMATS = {"f4": "f", "f8": "d", "i4": "i", "i8": "q"}


def _number(kind: Any, value: Any) -> float | int:
    """Stands in for numpy's scalar."""
    if not isinstance(kind, _Type) or not isinstance(value, bytes):
        raise ValueError("content must hold plain numbers and containers only, got a NumPy object")
    return struct.unpack(kind.format, value)[0]


class _Numbers(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "scalar":
            return _number
        if (module, name) == ("numpy", "dtype"):
            return _Type
        raise ValueError(f"content must hold plain numbers and containers only, got {module}.{name}")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise ValueError("content must hold plain numbers and containers only, got a persistent id")
