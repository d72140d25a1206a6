"""The statements of a source file, as digests see them: what each defines and uses, in a canonical form."""

from __future__ import annotations

import ast
import hashlib
import os
import symtable
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from heldout.study.spec import StudyError

VALIDATORS = "heldout.errors"


class Use(NamedTuple):
    """A name in a statement and what it stands for: a module, and names within it (none for the module itself)."""

    name: str
    module: str
    names: tuple[str, ...]


class Reducer(ast.NodeTransformer):
    """Takes out imports that are followed, bare calls of validators, and functions that do nothing else."""

    def __init__(self, followed: Callable[[ast.Import | ast.ImportFrom], bool], validators: set[str]) -> None:
        self._followed = followed
        self._validators = validators

    def visit_Import(self, node: ast.Import) -> ast.Import | None:
        return None if self._followed(node) else node

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.ImportFrom | None:
        return None if self._followed(node) else node

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        called = node.value.func if isinstance(node.value, ast.Call) else None
        return None if isinstance(called, ast.Name) and called.id in self._validators else node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef | None:
        before = len(node.body)
        self.generic_visit(node)
        return None if len(node.body) < before and not _without_docstring(node.body) else node


@dataclass(frozen=True)
class Module:
    """What the syntax of a module says of its names."""

    name: str
    package: str
    tree: ast.Module
    uses: dict[int, list[Use]] = field(default_factory=dict, repr=False)

    @cached_property
    def statements(self) -> list[ast.stmt]:
        """The top-level statements that can count: not the docstring, a declared study, or what only checkers see."""
        return [
            each
            for each in _without_docstring(self.tree.body)
            if not (
                _declares_a_study(each) or (isinstance(each, ast.If) and _is_for_checkers(each) and not each.orelse)
            )
        ]

    @cached_property
    def bindings(self) -> dict[str, tuple[str, tuple[str, ...]]]:
        """Names that are imported, or listed in a table of lazily imported ones: (module, names within it)."""
        found: dict[str, tuple[str, tuple[str, ...]]] = {}
        for node in _top_level(self.tree.body):
            if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Dict):
                found |= _lazy_table(node.value)
        for node in _top_level(self.tree.body):
            found |= dict(self.imported(node))
        return found

    @cached_property
    def defined(self) -> dict[str, list[int]]:
        """Positions of the statements other than imports that define a name."""
        found: dict[str, list[int]] = {}
        for position, statement in enumerate(self.statements):
            for name in _defines(statement):
                found.setdefault(name, []).append(position)
        return found

    @cached_property
    def stars(self) -> list[str]:
        """Modules that are imported with ``*``."""
        nodes = [node for node in ast.walk(self.tree) if isinstance(node, ast.ImportFrom)]
        return [self.absolute(node) for node in nodes if node.names[0].name == "*"]

    @cached_property
    def _named(self) -> set[str]:
        """Every name that the module mentions."""
        return {node.id for node in ast.walk(self.tree) if isinstance(node, ast.Name)}

    def used(self, position: int) -> list[Use]:
        """(name, module, names within it) of what a statement uses; an import that nothing uses counts itself."""
        if position not in self.uses:
            self.uses[position] = sorted(self._used(self.statements[position]))
        return self.uses[position]

    def _used(self, statement: ast.stmt) -> set[Use]:
        found: set[Use] = set()
        if isinstance(statement, ast.Import | ast.ImportFrom):
            if isinstance(statement, ast.ImportFrom) and statement.names[0].name == "*":
                found.add(Use("*", self.absolute(statement), ()))
            return found | {Use(name, *what) for name, what in self.imported(statement) if name not in self._named}
        inside = {name: what for node in imports_in(statement) for name, what in self.imported(node)}
        chains: dict[str, set[tuple[str, ...]]] = {name: {()} for name in inside}
        visible = _global_names(statement) | set(inside)
        for first, *rest in chains_in(statement):
            if first not in visible:
                continue
            if chains.get(first) == {()} and rest:
                chains[first] = set()
            chains.setdefault(first, set()).add(tuple(rest))
        for name, attributes in chains.items():
            if name in inside or name in self.bindings:
                target, inner = inside.get(name) or self.bindings[name]
                found |= {Use(".".join((name, *rest)), target, (*inner, *rest)) for rest in attributes}
            elif name in self.defined:
                found.add(Use(name, self.name, (name,)))
            elif self.stars or name in ("globals", "vars"):
                found.add(Use(name, self.name, ()))
        return found

    def imported(self, node: ast.AST) -> Iterator[tuple[str, tuple[str, tuple[str, ...]]]]:
        """(name, what it stands for) of what an import binds."""
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                yield (alias.asname, (alias.name, ())) if alias.asname else (top, (top, ()))
        elif isinstance(node, ast.ImportFrom):
            target = self.absolute(node)
            for alias in node.names:
                if alias.name != "*":
                    yield alias.asname or alias.name, (target, (alias.name,))

    def absolute(self, node: ast.ImportFrom) -> str:
        """The whole name of the module that an import names."""
        if not node.level:
            return node.module or ""
        parts = self.package.split(".") if self.package else []
        parts = parts[: len(parts) - (node.level - 1)]
        return ".".join([*parts, *([node.module] if node.module else [])])


def _lazy_table(node: ast.Dict) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Entries of a literal {"name": "package.module"} or {"name": "package.module:attribute"}."""
    table: dict[str, tuple[str, tuple[str, ...]]] = {}
    for key, value in zip(node.keys, node.values, strict=True):
        if not (isinstance(key, ast.Constant) and isinstance(value, ast.Constant)):
            continue
        if isinstance(key.value, str) and isinstance(value.value, str):
            module, _, attribute = value.value.partition(":")
            if module.replace(".", "").replace("_", "").isalnum() and "." in module:
                table[key.value] = (module, (attribute or key.value,))
    return table


def _top_level(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements of a module body, those inside of if, try and with included."""
    for node in body:
        if isinstance(node, ast.If | ast.Try | ast.With):
            handlers = [handler.body for handler in getattr(node, "handlers", [])]
            for block in (node.body, getattr(node, "orelse", []), *handlers, getattr(node, "finalbody", [])):
                yield from _top_level(block)
        else:
            yield node


def _defines(statement: ast.stmt) -> set[str]:
    """Names that a top-level statement other than an import defines."""
    names: set[str] = set()
    for node in _top_level([statement]):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif not isinstance(node, ast.Import | ast.ImportFrom):
            names |= {
                each.id for each in ast.walk(node) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)
            }
    return names


def _global_names(statement: ast.stmt) -> set[str]:
    """Names in a top-level statement that stand for something of its module, not for what a function defines."""
    names: set[str] = set()
    tables = [symtable.symtable(ast.unparse(statement), "statement", "exec")]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        at_top = table.get_type() == "module"
        names |= {each.get_name() for each in table.get_symbols() if each.is_global() or at_top}
    return names


def _is_for_checkers(node: ast.If) -> bool:
    return "TYPE_CHECKING" in ast.dump(node.test)


def imports_in(tree: ast.AST) -> Iterator[ast.AST]:
    """Import statements anywhere below a node, but for those that only type checkers see."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and _is_for_checkers(node):
            for other in node.orelse:
                yield from imports_in(other)
        else:
            yield from imports_in(node)


def chains_in(tree: ast.AST) -> Iterator[tuple[str, ...]]:
    """Every ``name.attribute.attribute`` of a tree, itself included, and every bare name, as tuples."""
    for node in [tree] if isinstance(tree, ast.Name | ast.Attribute) else ast.iter_child_nodes(tree):
        chain: list[str] = []
        inner = node
        while isinstance(inner, ast.Attribute):
            chain.insert(0, inner.attr)
            inner = inner.value
        if isinstance(inner, ast.Name):
            yield (inner.id, *chain)
        else:
            yield from chains_in(inner)


def module_file(base: Path) -> Path | None:
    for file in (base / "__init__.py", base.with_name(base.name + ".py")):
        if file.is_file():
            return file
    return None


def stamp(path: Path) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError as error:
        raise StudyError(f"cannot read the source file {path}: {error.strerror}") from None
    return status.st_mtime_ns, status.st_size


@lru_cache(maxsize=4096)
def parse(name: str, file: str, _changed: tuple[int, int]) -> Module:
    package = name if file.endswith("__init__.py") else name.rpartition(".")[0]
    try:
        tree = ast.parse(Path(file).read_bytes(), file)
    except (SyntaxError, ValueError) as error:
        raise StudyError(f"cannot read the source file {file}: {error}") from None
    validators = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == VALIDATORS
        for alias in node.names
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.decorator_list = [
                each for each in node.decorator_list if not (isinstance(each, ast.Name) and each.id in validators)
            ]
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.decorator_list:
            node.returns = None
            for argument in ast.walk(node.args):
                if isinstance(argument, ast.arg):
                    argument.annotation = None
    return Module(name, package, tree)


@lru_cache(maxsize=4096)
def file_digest(file: str, _changed: tuple[int, int]) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def canonical(node: Any) -> Any:
    """A syntax tree as nested tuples, the same under every Python version: without positions and empty fields."""
    if isinstance(node, list):
        return tuple(canonical(each) for each in node)
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = []
    for name, value in ast.iter_fields(node):
        if name == "body" and isinstance(value, list):
            value = _without_docstring(value) if isinstance(node, _DOCUMENTED) else value
        if value is not None and value != [] and name not in ("ctx", "kind", "type_comment"):
            fields.append((name, canonical(value)))
    return type(node).__name__, tuple(fields)


_DOCUMENTED = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def _without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    first = body[0] if body else None
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        return body[1:]
    return body


def _declares_a_study(node: ast.stmt) -> bool:
    value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
    called = value.func if isinstance(value, ast.Call) else None
    return (getattr(called, "id", None) or getattr(called, "attr", None)) == "Study"
