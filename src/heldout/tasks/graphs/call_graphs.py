"""Core: Call graphs of Python packages: which function calls which, with the words that each is written in.

Source is parsed by ``ast`` and never imported, so that any installed package or folder will do. Names are not resolved
as Python does it: a call leads to the functions that have its name, in the same file if there are any.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import warnings
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from heldout.errors import check_at_least, check_nonnegative, checked, require

_AMBIGUOUS = 3  # functions of one name in other files: of more, a call says nothing
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_UNTOLD = (ast.Return, ast.Yield, ast.YieldFrom, ast.expr_context, ast.Constant)  # a docstring is a constant
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


@checked
def call_graph(
    package: str | Path, *, features: int = 256, label: Callable[[Any], int] | None = None, skip: tuple[str, ...] = ()
) -> Any:
    """Returns the functions of a package and their calls of each other as a ``torch_geometric.data.Data``.

    Attributes: ``x`` float32 ``(functions, features)``, 1 where a word occurs, hashed: those of the function's name,
    its parameters and the identifiers in its body, and the kinds of syntax there (``If``, ``Compare``, ...) but
    ``return`` and ``yield``; strings, docstrings and what the function is said to return do not count. ``y`` int64
    ``(functions,)``. ``edge_index`` int64 ``(2, edges)``, both directions of each call, sorted, no loops. ``names``
    the functions as ``file:Class.name``, in the order of the files and of their lines.

    A call by a name or an attribute leads to the functions of that name in the same file, or else in other files
    unless more than 3 have it. A function within another is a node of its own, and no part of the outer one.

    Args:
        package: name of an installed top-level package or module, or the ``Path`` of a folder or file of Python.
        features: number of columns to hash words into.
        label: class of a function, from its ``ast.FunctionDef`` or ``ast.AsyncFunctionDef``; default:
            ``returns_value``, which the features do not state.
        skip: names of folders to leave out, such as tests.

    Raises:
        ValueError: no functions in it, labels that are no class indices, a name with dots.
        FileNotFoundError: no such package or folder, or one without Python source.
        MissingExtraError: without torch-geometric.

    Example:
        >>> graph = call_graph("json")
        >>> "encoder:JSONEncoder.encode" in graph.names
        True
        >>> graph.x.shape[1], graph.y.unique().tolist()
        (256, [0, 1])
    """
    check_at_least(1, features=features)
    geometric = require("torch_geometric.data")
    folder, files = _files(package, skip)
    functions = [(name, node) for file in files for name, node in _functions_of(file, folder)]
    if not functions:
        raise ValueError(f"package must have functions, and {package} has none in {len(files)} files")
    modules = [name.partition(":")[0] for name, _ in functions]
    near, far = defaultdict(list), defaultdict(list)
    for number, (_, node) in enumerate(functions):
        near[modules[number], node.name].append(number)
        far[node.name].append(number)
    x, codes = torch.zeros(len(functions), features), []
    for number, (_, node) in enumerate(functions):
        words = {word for name in _identifiers(node) for word in _words(name)} | _kinds(node)
        x[number, [zlib.crc32(word.encode()) % features for word in sorted(words)]] = 1.0
        for name in _calls(node):
            found = near.get((modules[number], name)) or far.get(name, [])
            if len(found) <= _AMBIGUOUS or (modules[number], name) in near:
                codes += [(number, other) for other in found if other != number]
    pairs = np.array(codes, dtype=np.int64).reshape(-1, 2)
    pairs = np.unique(np.concatenate([pairs, pairs[:, ::-1]]), axis=0)
    labels = torch.tensor([int((label or returns_value)(node)) for _, node in functions])
    check_nonnegative(label=labels)
    edges = torch.from_numpy(pairs.T.copy())
    return geometric.Data(x=x, y=labels, edge_index=edges, names=[name for name, _ in functions])


@checked
def returns_value(function: ast.AST) -> int:
    """Returns 1 if a function has a ``return`` of anything but a bare None, or yields, and 0 if it has not.

    Functions, lambdas and classes within it do not count.

    Args:
        function: ``ast.FunctionDef`` or ``ast.AsyncFunctionDef``.

    Raises:
        TypeError: another kind of node.

    Example:
        >>> [returns_value(node) for node in ast.parse("def f(x): return x\\ndef g(x): print(x)").body]
        [1, 0]
    """
    if not isinstance(function, _FUNCTIONS):
        raise TypeError(f"function must be an ast.FunctionDef or ast.AsyncFunctionDef, got {type(function).__name__}")
    for node in _within(function.body, (*_FUNCTIONS, ast.Lambda, ast.ClassDef)):
        if isinstance(node, ast.Yield | ast.YieldFrom):
            return 1
        if isinstance(node, ast.Return) and (node.value is not None and ast.unparse(node.value) != "None"):
            return 1
    return 0


def _files(package: str | Path, skip: tuple[str, ...]) -> tuple[Path, list[Path]]:
    """Returns the folder that names of files begin at, and the files of Python in it."""
    if isinstance(package, Path):
        place = package
    else:
        if not package.isidentifier():  # find_spec would import the parents of a dotted name
            raise ValueError(f"package must be a top-level name, or the Path of a folder, got {package!r}")
        try:
            spec = importlib.util.find_spec(package)
        except ValueError:  # of a module that is loaded without a spec, such as __main__
            spec = None
        places = [] if spec is None else [*(spec.submodule_search_locations or ()), spec.origin or ""]
        if not places:
            raise FileNotFoundError(f"no package {package!r} is installed")
        place = Path(places[0])
    if place.is_file() and place.suffix == ".py":
        return place.parent, [place]
    files = [file for file in sorted(place.rglob("*.py")) if not set(file.relative_to(place).parts[:-1]) & {*skip}]
    if not files:
        raise FileNotFoundError(f"there is no source of Python in {place}")
    return place, files


def _functions_of(file: Path, folder: Path) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Yields the functions of a file with their names; a file that is not of this version of Python has none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    module = ".".join(file.relative_to(folder).with_suffix("").parts)
    todo: list[tuple[ast.AST, str]] = [(tree, "")]
    found = []
    while todo:
        node, prefix = todo.pop()
        for child in ast.iter_child_nodes(node):
            inner = prefix
            if isinstance(child, (*_FUNCTIONS, ast.ClassDef)):
                inner = f"{prefix}{child.name}."
                if isinstance(child, _FUNCTIONS):
                    found.append((f"{module}:{inner[:-1]}", child))
            todo.append((child, inner))
    yield from sorted(found, key=lambda each: (each[1].lineno, each[1].col_offset))


def _within(body: list[Any], without: tuple[type, ...]) -> Iterator[ast.AST]:
    """Yields the nodes in a body, at any depth, and nothing of such nodes as are to be left out."""
    todo = [node for node in body if not isinstance(node, without)]
    while todo:
        node = todo.pop()
        yield node
        todo += [child for child in ast.iter_child_nodes(node) if not isinstance(child, without)]


def _identifiers(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    yield function.name
    for node in _within([function.args, *function.body], _FUNCTIONS):
        if isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr


def _kinds(function: ast.FunctionDef | ast.AsyncFunctionDef) -> set[str]:
    return {type(node).__name__ for node in _within(function.body, _FUNCTIONS) if not isinstance(node, _UNTOLD)}


def _words(name: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(name)]


def _calls(function: ast.FunctionDef | ast.AsyncFunctionDef) -> set[str]:
    called = (node.func for node in _within(function.body, _FUNCTIONS) if isinstance(node, ast.Call))
    return {
        node.id if isinstance(node, ast.Name) else node.attr
        for node in called
        if isinstance(node, ast.Name | ast.Attribute)
    }
