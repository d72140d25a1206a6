"""Core: Syntax trees of the functions of Python packages as graphs, with the use of a construct to be found.

Source is parsed by ``ast`` and never imported. Larger functions use more constructs: size is a natural confounder.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from heldout.errors import check_at_least, check_length, checked, require
from heldout.tasks.graphs.call_graphs import call_graph

SYNTAX_KINDS = (
    *("Attribute", "Await", "BinOp", "BoolOp", "Call", "Compare", "Constant", "Dict", "DictComp", "FormattedValue"),
    *("GeneratorExp", "IfExp", "JoinedStr", "Lambda", "List", "ListComp", "Name", "NamedExpr", "Set", "SetComp"),
    *("Slice", "Starred", "Subscript", "Tuple", "UnaryOp", "Yield", "YieldFrom", "statement", "other"),
)
"""Columns of ``x``: the kinds of expressions, any statement, and all else."""

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_WITHOUT_NODE = (ast.expr_context, ast.operator, ast.unaryop, ast.boolop, ast.cmpop)


@checked
def syntax_graphs(
    package: str | Path, construct: str = "For", *, nodes: tuple[int, int] = (10, 120), skip: tuple[str, ...] = ()
) -> list[Any]:
    """Returns the syntax trees of a package's functions as ``torch_geometric.data.Data``, in the order of the files.

    ``y`` is 1 where the body holds the construct, and nothing names it: ``x``, float32 ``(nodes, 29)``, tells which
    kind of expression a node is, but of a statement only that it is one (``SYNTAX_KINDS``); what stands below it tells
    the rest. ``edge_index`` has both directions of each edge between a node and what is directly part of it. Functions
    within a function are no part of it and graphs of their own; contexts and operators have no node.

    Args:
        package: as ``call_graph`` takes it.
        construct: name of a kind of statement in ``ast``, such as "For", "While", "With", "Try", "Raise" or "If".
        nodes: least and most nodes of the functions that are wanted.
        skip: names of folders to leave out, such as tests.

    Raises:
        ValueError: a construct that is no kind of statement, nodes that are no range, no functions in the package.
        FileNotFoundError: no such package or folder, or one without Python source.
        MissingExtraError: without torch-geometric.

    Example:
        >>> graphs = syntax_graphs("json", "For")
        >>> graphs[0].x.shape[1], sorted({int(graph.y) for graph in graphs})
        (29, [0, 1])
    """
    kind = getattr(ast, construct, None)
    if not (isinstance(kind, type) and issubclass(kind, ast.stmt) and kind is not ast.stmt):
        raise ValueError(f"construct must be a kind of statement of ast, such as 'For', got {construct!r}")
    check_length(2, nodes=nodes)
    check_at_least(2, nodes=nodes)
    if nodes[0] > nodes[1]:
        raise ValueError(f"nodes must be (least, most), got {nodes}")
    functions: list[Any] = []

    def collect(function: Any) -> int:
        functions.append(function)
        return 0

    call_graph(package, features=1, label=collect, skip=skip)
    geometric = require("torch_geometric.data")
    graphs = []
    for function in functions:
        kinds, edges, found = _tree(function, kind)
        if nodes[0] <= len(kinds) <= nodes[1]:
            x = torch.nn.functional.one_hot(kinds, len(SYNTAX_KINDS)).float()
            graphs.append(geometric.Data(x=x, edge_index=edges, y=torch.tensor([int(found)])))
    return graphs


def _tree(function: ast.AST, construct: type) -> tuple[Tensor, Tensor, bool]:
    """Kinds of the nodes, edges in both directions, and whether the construct is there."""
    kinds, pairs, found = [SYNTAX_KINDS.index("statement")], [], False
    todo: list[tuple[ast.AST, int]] = [(function, 0)]
    while todo:
        node, place = todo.pop()
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (*_WITHOUT_NODE, *_FUNCTIONS)):
                continue
            found = found or isinstance(child, construct)
            name = "statement" if isinstance(child, ast.stmt) else type(child).__name__
            pairs.append((place, len(kinds)))
            todo.append((child, len(kinds)))
            kinds.append(SYNTAX_KINDS.index(name if name in SYNTAX_KINDS else "other"))
    edges = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T
    both = torch.cat([edges, edges.flip(0)], 1)
    return torch.tensor(kinds), both[:, (both[0] * len(kinds) + both[1]).argsort()], found
