"""Every Method factory under one name: ``from heldout.methods import useful, sam, lines``.

The names come from the catalog: a system's slug with underscores; a name of their own where a system has several or is
better known by it (``divdis`` and ``dbat`` of diversification, ``rm3`` of gradient-coherence); and the plain methods
that serve as comparisons (``sam``, ``ema``, ``mixup``, ``tent`` ...). Each is loaded when it is first used.

What is worth searching of a Method, its *space*, stands in the catalog, too, so that a search costs no change of the
Methods themselves: a trial is an expression such as ``sam(rho=0.1)``.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from inspect import signature
from typing import Any

from heldout.catalog import method_factories, method_spaces, module_name, named_methods, systems
from heldout.errors import checked
from heldout.method import Method

__all__ = ["available", "default_settings", "factory_files", "on_request", "parse", "space", "with_settings"]

Space = dict[str, list[Any] | tuple[float, float, str]]


def available() -> list[str]:
    """Returns the names of all Method factories.

    Example:
        >>> {"bang", "mixup", "sam"} <= set(available())
        True
    """
    return sorted(method_factories())


def on_request() -> list[str]:
    """Returns the names of the Methods that ``heldout improve`` tries only when asked to.

    They buy gains by compute, or ask what something costs.

    Example:
        >>> on_request()
        ['awq', 'deep_ensemble', 'learned_weights', 'repeated_data', 'rtn']
    """
    named = [name for name, method in named_methods().items() if method.on_request]
    return sorted([*named, *(module_name(system.slug) for system in systems().values() if system.on_request)])


def __getattr__(name: str) -> Callable[..., Method]:
    path = method_factories().get(name)
    if path is None:
        raise AttributeError(f"module 'heldout.methods' has no attribute {name!r}")
    module, function = path.split(":")
    return getattr(import_module(module), function)


def __dir__() -> list[str]:
    return [*__all__, *available()]


def factory_files() -> list[str]:
    """Returns the files that the Method factories are defined in: what the outcome of a search depends on.

    Example:
        >>> any(file.endswith("sam.py") for file in factory_files())
        True
    """
    factories = [__getattr__(name) for name in available()]
    return sorted({sys.modules[factory.__module__].__file__ or "" for factory in factories})


@checked
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


@checked
def space(expression: str, own: Mapping[str, Method | Callable[..., Method]] | None = None) -> Space:
    """Returns what is worth searching of a Method, by ``"method.parameter"``: published values, or a range.

    A composition has the parameters of all its parts. What the expression sets is the user's choice, and Methods of
    one's own have none: both are left out.

    Args:
        expression: as for ``parse``.
        own: further Methods by name, which go before those of the catalog.

    Returns:
        A list of values, or ``(low, high, "log")`` for a range that is searched by orders of magnitude.

    Raises:
        ValueError: as ``parse``.

    Example:
        >>> space("sam + ps_kd(alpha_T=0.7) + t3a")
        {'sam.rho': (0.01, 0.5, 'log'), 't3a.filter_k': [1, 5, 20, 50, 100]}
    """
    parse(expression, own)
    found: Space = {}
    for name, call in _parts(expression):
        given = {keyword.arg for keyword in call.keywords} if call else set()
        if call is not None or name not in (own or {}):
            for parameter, values in method_spaces().get(name, {}).items():
                if parameter not in given:
                    log = len(values) == 3 and values[2] == "log"
                    found[f"{name}.{parameter}"] = (values[0], values[1], "log") if log else list(values)
    return found


@checked
def default_settings(
    expression: str, own: Mapping[str, Method | Callable[..., Method]] | None = None
) -> dict[str, Any]:
    """Returns what the parameters in ``space`` are where nothing is set.

    Example:
        >>> default_settings("sam + t3a")
        {'sam.rho': 0.05, 't3a.filter_k': 100}
    """
    found = {}
    for key in space(expression, own):
        name, _, parameter = key.rpartition(".")
        found[key] = signature(__getattr__(name)).parameters[parameter].default
    return found


@checked
def with_settings(expression: str, settings: Mapping[str, Any]) -> str:
    """Returns the expression with parameters set, by ``"method.parameter"`` as in ``space``.

    Raises:
        ValueError: as ``parse``, or a setting of a method that is not in the expression.

    Example:
        >>> with_settings("sam + ps_kd", {"sam.rho": 0.1})
        'sam(rho=0.1)+ps_kd'
    """
    parts = []
    left = dict(settings)
    for name, call in _parts(expression):
        arguments = [ast.unparse(keyword).replace(" ", "") for keyword in call.keywords] if call else []
        own = [key for key in left if key.rpartition(".")[0] == name]
        arguments += [f"{key.rpartition('.')[2]}={left.pop(key)!r}" for key in own]
        parts.append(f"{name}({','.join(arguments)})" if arguments else name)
    if left:
        raise ValueError(f"{next(iter(left))!r} is no parameter of a method in {expression!r}")
    return "+".join(parts)


def _parts(expression: str) -> list[tuple[str, ast.Call | None]]:
    """The methods of a composition that ``parse`` accepts, in order: name, and call where there is one."""

    def parts(node: ast.expr) -> list[tuple[str, ast.Call | None]]:
        if isinstance(node, ast.BinOp):
            return parts(node.left) + parts(node.right)
        call = node if isinstance(node, ast.Call) else None
        name = call.func if call else node
        return [(name.id if isinstance(name, ast.Name) else "", call)]

    try:
        return parts(ast.parse(expression.strip(), mode="eval").body)
    except SyntaxError:
        raise ValueError(f"cannot read the expression {expression!r}: write it like 'useful + sam(rho=0.1)'") from None
