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
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from types import CodeType
from typing import Any

from heldout.errors import checked
from heldout.study.spec import Study, canonical_json
from heldout.study.statements import (
    VALIDATORS,
    Module,
    Reducer,
    canonical,
    chains_in,
    file_digest,
    imports_in,
    module_file,
    parse,
    stamp,
)

_HELDOUT = Path(__file__).parent.parent
_EXCLUDED = ("heldout.study", "heldout.statistics", "heldout.report", "heldout.errors")


@checked
def run_digest(study: Study) -> str:
    """Hash of the code that a run of the study executes: 64 hexadecimal digits.

    Example:
        >>> def run(arm, seed, profile):
        ...     return {"x": arm["base"] + seed}
        >>> one = Study("demo", {"a": {"base": 1}}, run, {"x": "higher"})
        >>> two = Study("demo", {"a": {"base": 1}, "b": {"base": 2}}, run, {"x": "higher"})
        >>> run_digest(one) == run_digest(two)  # a further arm is no other code
        True
    """
    own = _own_file(study)
    if own is None:  # defined where there is no file
        parts = [_code_digest(inspect.unwrap(study.run))]
    else:
        search = _followed(study, own)
        parts = search.statements()
    for extra in study.source:
        path = own.parent / extra if own else Path(extra)
        parts.append(f"{path.name} {file_digest(str(path), stamp(path))}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@checked
def study_digest(study: Study) -> str:
    """Hash of the run digest and of the declared arms, metrics, claims and checks: 64 hexadecimal digits.

    Example:
        >>> def run(arm, seed, profile):
        ...     return {"x": seed}
        >>> one, two = (Study("demo", {arm: {}}, run, {"x": "higher"}) for arm in ("a", "b"))
        >>> study_digest(one) == study_digest(one), study_digest(one) == study_digest(two)
        (True, False)
    """
    claims, checks = (
        [[type(claim).__name__, asdict(claim)] for claim in listed]  # type: ignore[call-overload]
        for listed in (study.claims, study.checks)
    )
    declared = [study.arms, study.metrics, sorted(study.optional), claims, *([checks] if checks else [])]
    return hashlib.sha256(f"{run_digest(study)} {canonical_json(declared)}".encode()).hexdigest()


@checked
def run_sources(study: Study) -> dict[str, Path]:
    """The files that ``run_digest`` covers in whole or in part, by module name; the study's own one is named ``""``.

    Example:
        >>> import tempfile
        >>> from heldout.study import load_study
        >>> lines = [
        ...     "from heldout.data import soft_labels",
        ...     "from heldout.study import Study",
        ...     "study = Study('demo', {'a': {}}, lambda *_: {'x': 1}, {'x': 'lower'})",
        ... ]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "digest_demo.py").write_text("\\n".join(lines))
        ...     print(sorted(run_sources(load_study(f"{folder}/digest_demo.py"))))
        ['', 'heldout.data.mixing']
    """
    own = _own_file(study)
    if own is None:
        return {}
    search = _followed(study, own)
    return {"" if module == search.own else module: path for module in search.counted if (path := search.file(module))}


def _followed(study: Study, own: Path) -> _Search:
    module = sys.modules[study.run.__module__]
    specification = getattr(module, "__spec__", None)
    name = module.__name__ if module.__name__ != "__main__" else getattr(specification, "name", "__main__")
    if (kept := _latest.get((name, own))) is not None and kept.is_current():
        return kept
    search = _Search(name, own)
    search.add(search.own)
    _latest.clear()
    _latest[name, own] = search
    return search


_latest: dict[tuple[str, Path], _Search] = {}  # of the study asked about last: a search asks for its own many times


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
        self._files: dict[str, Path | None] = {}
        self._stamps: dict[Path, tuple[int, int]] = {}
        self._statements: list[str] = []
        self._package = name.partition(".")[0] if depth else None
        self._root = file.parents[depth] if depth else file.parent
        self._own_file = file

    def statements(self) -> list[str]:
        """Every statement that counts, with the definitions that its names stand for, sorted."""
        if not self._statements:
            self._statements = sorted(
                f"{text} {self._meanings(module, position)}"
                for module, positions in self.counted.items()
                for position in positions
                if (text := self._text(module, position))
            )
        return list(self._statements)

    def is_current(self) -> bool:
        """Whether every module is in the file that it was in, and no file has changed."""
        return all(self._file(module) == file for module, file in self._files.items()) and all(
            file.is_file() and stamp(file) == known for file, known in self._stamps.items()
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
            nearby = [each for node in imports_in(statement) for each in parsed.imported(node)]
            validators = {name for name, (where, _) in [*parsed.bindings.items(), *nearby] if where == VALIDATORS}
            reduced = Reducer(lambda node: self._is_followed(parsed, node), validators).visit(statement)
            self._texts[module, position] = repr(canonical(reduced)) if reduced else ""
        return self._texts[module, position]

    def _is_followed(self, parsed: Module, node: ast.Import | ast.ImportFrom) -> bool:
        names = [parsed.absolute(node)] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
        return all(name.startswith("heldout.") or self.file(name) is not None for name in names)

    def file(self, module: str) -> Path | None:
        """The file of a module that counts, or None."""
        if module not in self._files:
            self._files[module] = self._file(module)
        return self._files[module]

    def _file(self, module: str) -> Path | None:
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
        return module_file(base / rest.replace(".", "/") if rest else base)

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

    def _always_counts(self, parsed: Module, statement: ast.stmt) -> bool:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            return False
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            return any(
                chain[0] in parsed.defined or self.file(parsed.bindings.get(chain[0], ("", ()))[0]) is not None
                for decorator in statement.decorator_list
                for chain in chains_in(decorator)
            )
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        return not (
            isinstance(statement, ast.Assign | ast.AnnAssign) and all(isinstance(each, ast.Name) for each in targets)
        )

    def _parsed(self, module: str) -> Module:
        file = self.file(module)
        assert file is not None
        if file not in self._stamps:
            self._stamps[file] = stamp(file)
        return parse(module, str(file), self._stamps[file])

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


def _code_digest(function: Any) -> str:
    code = getattr(function, "__code__", None)
    return repr(_code(code)) if code else type(function).__qualname__


def _code(code: CodeType) -> Any:
    constants = tuple(_code(each) if isinstance(each, CodeType) else repr(each) for each in code.co_consts)
    return code.co_code.hex(), constants, code.co_names
