"""Every Method factory under one name: ``from heldout.methods import useful, sam, lines``.

The names come from the catalog: a system's slug with underscores; a name of their own where a system has several or is
better known by it (``divdis`` and ``dbat`` of diversification, ``rm3`` of gradient-coherence); and the plain methods
that serve as comparisons (``sam``, ``tent``, ``t3a``). Each is loaded when it is first used.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from heldout.catalog import method_factories
from heldout.method import Method

__all__ = ["available", "factory_files", "parse"]


def available() -> list[str]:
    """Returns the names of all Method factories."""
    return sorted(method_factories())


def __getattr__(name: str) -> Callable[..., Method]:
    path = method_factories().get(name)
    if path is None:
        raise AttributeError(f"module 'heldout.methods' has no attribute {name!r}")
    module, function = path.split(":")
    return getattr(import_module(module), function)


def __dir__() -> list[str]:
    return [*__all__, *available()]


def factory_files() -> list[str]:
    """Returns the files that the Method factories are defined in: what the outcome of a search depends on."""
    factories = [__getattr__(name) for name in available()]
    return sorted({sys.modules[factory.__module__].__file__ or "" for factory in factories})


def parse(expression: str, own: Mapping[str, Method | Callable[..., Method]] | None = None) -> Method:
    """Returns the Method that an expression such as ``"useful + sam(rho=0.1)"`` stands for.

    Nothing is evaluated: names, calls with literal keyword arguments and ``+`` are all that is understood.

    Args:
        expression: the text.
        own: further Methods, or functions that make them, by name; they go before those of the catalog.

    Raises:
        ValueError: an unknown name, or anything else than names, literal keyword arguments and ``+``.

    Example:
        >>> parse("sam(rho=0.1) + ps_kd").name
        'sam(rho=0.1)+ps_kd'
    """
    try:
        tree = ast.parse(expression.strip(), mode="eval").body
    except SyntaxError:
        raise ValueError(f"cannot read the method {expression!r}: write it like 'useful + sam(rho=0.1)'") from None
    return _build(tree, expression, own or {})


def _build(node: ast.expr, expression: str, own: Mapping[str, Method | Callable[..., Method]]) -> Method:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _build(node.left, expression, own) + _build(node.right, expression, own)
    call = node if isinstance(node, ast.Call) else None
    name = call.func if call else node
    if not isinstance(name, ast.Name) or (call and (call.args or any(k.arg is None for k in call.keywords))):
        raise ValueError(f"cannot read the method {expression!r}: write it like 'useful + sam(rho=0.1)'")
    made = own.get(name.id)
    if isinstance(made, Method) and call is None:
        return made.renamed(name.id)
    if made is None and name.id not in method_factories():
        raise ValueError(f"no method {name.id!r}; there are {', '.join([*own, *available()])}")
    try:
        arguments: dict[str, Any] = {k.arg: ast.literal_eval(k.value) for k in (call.keywords if call else []) if k.arg}
        factory = __getattr__(name.id) if made is None or isinstance(made, Method) else made
        return factory(**arguments).renamed(ast.unparse(node).replace(" ", ""))
    except (TypeError, ValueError) as error:
        raise ValueError(f"method {ast.unparse(node)!r}: {error}") from None
