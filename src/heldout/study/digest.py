"""Digests: what the results of a study depend on, as one hash.

``run_digest`` covers the code that a run executes: the whole module that defines ``run``, every function, class and
constant that it names, what those name in turn, and so on. Names are followed through imports and re-exports to the
statement that defines them, so ``from heldout.weights import lines`` depends on ``lines`` and what it uses, and on
nothing else in its file or room. Two kinds of top-level statements of a file count as soon as anything in it does:
those that do more than define a name, and definitions under a decorator of the followed code, which may register them.
Followed are modules of the same package, neighbours in the same folder for a study file of its own, and heldout;
what only judges, shows or refuses (``heldout.study``, ``statistics``, ``report``, ``errors``) is left out, and so are
other installed libraries, whose versions are recorded instead.
Nothing is imported for this.

The digest is that of the multiset of statements, each with the definitions that its names stand for: the names of
files and modules, and the imports between them, do not count, so that code may move and be split without a change. Code
counts by its syntax tree: comments, docstrings, layout and the annotations of functions do not. Statements that only
refuse bad input, by calling a validator of ``heldout.errors``, cannot change what a finished run returned and do not
count, nor do its decorators and functions in which nothing else stands. The statement ``study = Study(...)`` does not
count either: what it says of arms and metrics is in the key of each run, so that adding an arm or a claim repeats no
finished run.
``study_digest`` covers the run digest and all of that statement's content; recorded evidence is compared by it.

The analysis is static. What it cannot see (modules that are imported by computed names, data files) belongs into
``Study(source=[...])``.
"""

from __future__ import annotations

import ast
import copy
import hashlib
import inspect
import os
import symtable
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

from heldout.study.spec import Study, StudyError, canonical_json

_HELDOUT = Path(__file__).parent.parent
_EXCLUDED = ("heldout.study", "heldout.statistics", "heldout.report", "heldout.errors")
_VALIDATORS = "heldout.errors"


def run_digest(study: Study) -> str:
    """Hash of the code that a run of the study executes."""
    own = _own_file(study)
    if own is None:  # defined where there is no file
        parts = [_code_digest(inspect.unwrap(study.run))]
    else:
        search = _followed(study, own)
        parts = search.statements()
    for extra in study.source:
        path = own.parent / extra if own else Path(extra)
        parts.append(f"{path.name} {_file_digest(str(path), _stamp(path))}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def study_digest(study: Study) -> str:
    """Hash of the run digest and of the declared arms, metrics, claims and checks."""
    claims, checks = (
        [[type(claim).__name__, asdict(claim)] for claim in listed]  # type: ignore[call-overload]
        for listed in (study.claims, study.checks)
    )
    declared = [study.arms, study.metrics, sorted(study.optional), claims, *([checks] if checks else [])]
    return hashlib.sha256(f"{run_digest(study)} {canonical_json(declared)}".encode()).hexdigest()


def run_sources(study: Study) -> dict[str, Path]:
    """The files that ``run_digest`` covers in whole or in part, by module name; the study's own one is named ``""``."""
    own = _own_file(study)
    if own is None:
        return {}
    search = _followed(study, own)
    return {"" if module == search.own else module: path for module in search.counted if (path := search.file(module))}


def _followed(study: Study, own: Path) -> _Search:
    module = sys.modules[study.run.__module__]
    specification = getattr(module, "__spec__", None)
    name = module.__name__ if module.__name__ != "__main__" else getattr(specification, "name", "__main__")
    search = _Search(name, own)
    search.add(search.own)
    return search


def _own_file(study: Study) -> Path | None:
    """The Python file that defines the study's run function, where there is one."""
    module = sys.modules.get(getattr(study.run, "__module__", None) or "")
    file = getattr(module, "__file__", None)
    return Path(file).resolve() if file and file.endswith(".py") else None


class _Search:
    """Follows names from one module to the statements that define them.

    Attributes:
        own: name of the module that the search starts from.
        counted: positions of the top-level statements that count, by module.
    """

    def __init__(self, name: str, file: Path) -> None:
        depth = name.count(".")
        self.own = name if depth else file.stem
        self.counted: dict[str, set[int]] = {}
        self._texts: dict[tuple[str, int], str] = {}
        self._package = name.partition(".")[0] if depth else None
        self._root = file.parents[depth] if depth else file.parent
        self._own_file = file

    def statements(self) -> list[str]:
        """Every statement that counts, with the definitions that its names stand for, sorted."""
        return sorted(
            f"{text} {self._meanings(module, position)}"
            for module, positions in self.counted.items()
            for position in positions
            if (text := self._text(module, position))
        )

    def _meanings(self, module: str, position: int) -> list[tuple[str, str]]:
        """(name, hash of its definition) of what a statement uses, so that equal names stay apart."""
        meanings = set()
        for use in self._parsed(module).used(position):
            found: list[tuple[str, int]] = []
            self.follow(use.module, use.names, found=found)
            if texts := sorted(self._text(where, at) for where, at in found):
                meanings.add((use.name, hashlib.sha256("\n".join(texts).encode()).hexdigest()))
        return sorted(meanings)

    def _text(self, module: str, position: int) -> str:
        """A statement without imports of followed code and without validators; empty where nothing is left."""
        if (module, position) not in self._texts:
            parsed = self._parsed(module)
            statement = copy.deepcopy(parsed.statements[position])
            nearby = [each for node in _imports(statement) for each in parsed.imported(node)]
            validators = {name for name, (where, _) in [*parsed.bindings.items(), *nearby] if where == _VALIDATORS}
            reduced = _Reducer(lambda node: self._is_followed(parsed, node), validators).visit(statement)
            self._texts[module, position] = repr(_canonical(reduced)) if reduced else ""
        return self._texts[module, position]

    def _is_followed(self, parsed: _Module, node: ast.Import | ast.ImportFrom) -> bool:
        names = [parsed.absolute(node)] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
        return all(name.startswith("heldout.") or self.file(name) is not None for name in names)

    def file(self, module: str) -> Path | None:
        """The file of a module that counts, or None."""
        if module == self.own:
            return self._own_file
        top, _, rest = module.partition(".")
        if any(module == excluded or module.startswith(excluded + ".") for excluded in _EXCLUDED):
            return None
        if top == "heldout":
            base = _HELDOUT
        elif self._package in (None, top):
            base = self._root / top
        else:
            return None
        return _module_file(base / rest.replace(".", "/") if rest else base)

    def add(self, module: str) -> None:
        """The whole of a module counts, with everything that it uses."""
        if self.file(module) is not None:
            self._count(module, range(len(self._parsed(module).statements)))

    def _define(self, module: str, name: str) -> None:
        """The statements of a module that define a name count, and those that always do."""
        parsed = self._parsed(module)
        if module not in self.counted:
            self._count(module, [i for i, each in enumerate(parsed.statements) if self._always_counts(parsed, each)])
        self._count(module, parsed.defined[name])

    def _count(self, module: str, positions: Iterable[int]) -> None:
        counted = self.counted.setdefault(module, set())
        for position in [each for each in positions if each not in counted]:
            counted.add(position)
            for _, target, names in self._parsed(module).used(position):
                self.follow(target, names)

    def _always_counts(self, parsed: _Module, statement: ast.stmt) -> bool:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            return False
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            return any(
                chain[0] in parsed.defined or self.file(parsed.bindings.get(chain[0], ("", ()))[0]) is not None
                for decorator in statement.decorator_list
                for chain in _chains(decorator)
            )
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        return not (
            isinstance(statement, ast.Assign | ast.AnnAssign) and all(isinstance(each, ast.Name) for each in targets)
        )

    def _parsed(self, module: str) -> _Module:
        file = self.file(module)
        assert file is not None
        return _parse(module, str(file), _stamp(file))

    def follow(
        self,
        module: str,
        names: tuple[str, ...],
        seen: frozenset[tuple[str, str]] = frozenset(),
        found: list[tuple[str, int]] | None = None,
    ) -> None:
        """The definition of ``module.names[0].names[1]...`` counts; its statements are appended to ``found``."""
        if (file := self.file(module)) is None:
            return
        if not names:
            self.add(module)
            return
        name, rest = names[0], names[1:]
        if (module, name) in seen or (name.startswith("__") and file.name == "__init__.py"):
            return
        seen |= {(module, name)}
        parsed = self._parsed(module)
        target, inner = parsed.bindings.get(name, (module, (name,)))
        if (target, inner) != (module, (name,)):
            self.follow(target, (*inner, *rest), seen, found)
        elif name in parsed.defined:
            self._define(module, name)
            if found is not None:
                found += [(module, position) for position in parsed.defined[name]]
        elif self.file(f"{module}.{name}") is not None and file.name == "__init__.py":
            self.follow(f"{module}.{name}", rest, seen, found)
        elif parsed.stars:
            for star in parsed.stars:
                self.follow(star, names, seen, found)
        else:
            self.add(module)


class Use(NamedTuple):
    """A name in a statement and what it stands for: a module, and names within it (none for the module itself)."""

    name: str
    module: str
    names: tuple[str, ...]


class _Reducer(ast.NodeTransformer):
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
class _Module:
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
        inside = {name: what for node in _imports(statement) for name, what in self.imported(node)}
        chains: dict[str, set[tuple[str, ...]]] = {name: {()} for name in inside}
        visible = _global_names(statement) | set(inside)
        for first, *rest in _chains(statement):
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


def _imports(tree: ast.AST) -> Iterator[ast.AST]:
    """Import statements anywhere below a node, but for those that only type checkers see."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and _is_for_checkers(node):
            for other in node.orelse:
                yield from _imports(other)
        else:
            yield from _imports(node)


def _chains(tree: ast.AST) -> Iterator[tuple[str, ...]]:
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
            yield from _chains(inner)


def _module_file(base: Path) -> Path | None:
    for file in (base / "__init__.py", base.with_name(base.name + ".py")):
        if file.is_file():
            return file
    return None


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError as error:
        raise StudyError(f"cannot read the source file {path}: {error.strerror}") from None
    return status.st_mtime_ns, status.st_size


@lru_cache(maxsize=4096)
def _parse(name: str, file: str, _changed: tuple[int, int]) -> _Module:
    package = name if file.endswith("__init__.py") else name.rpartition(".")[0]
    try:
        tree = ast.parse(Path(file).read_bytes(), file)
    except (SyntaxError, ValueError) as error:
        raise StudyError(f"cannot read the source file {file}: {error}") from None
    validators = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == _VALIDATORS
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
    return _Module(name, package, tree)


@lru_cache(maxsize=4096)
def _file_digest(file: str, _changed: tuple[int, int]) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _canonical(node: Any) -> Any:
    """A syntax tree as nested tuples, the same under every Python version: without positions and empty fields."""
    if isinstance(node, list):
        return tuple(_canonical(each) for each in node)
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = []
    for name, value in ast.iter_fields(node):
        if name == "body" and isinstance(value, list):
            value = _without_docstring(value) if isinstance(node, _DOCUMENTED) else value
        if value is not None and value != [] and name not in ("ctx", "kind", "type_comment"):
            fields.append((name, _canonical(value)))
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


def _code_digest(function: Any) -> str:
    code = getattr(function, "__code__", None)
    return repr(_code(code)) if code else type(function).__qualname__


def _code(code: CodeType) -> Any:
    constants = tuple(_code(each) if isinstance(each, CodeType) else repr(each) for each in code.co_consts)
    return code.co_code.hex(), constants, code.co_names
