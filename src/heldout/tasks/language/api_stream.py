"""Core: Streams of APIs: functions of real programs by the group of libraries that they call, and their call sites.

Source is parsed by ``ast`` and never imported. What is called is told by imports, by objects that are made of imported
classes in the same function, class or module, and by base classes; what no import tells is not counted as a call site.

Source: arXiv:2305.04106 (Weyssow et al.), section 3: a stream of groups of APIs that pretraining has not seen.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import re
import sysconfig
import textwrap
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from heldout.errors import check_fields, check_fraction, check_nonempty, checked

StreamPart = Literal["train", "val", "test"]

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class CallSite:
    """A call of an API in a function's text, as positions of characters.

    Attributes:
        api: the dotted name of what is called, such as ``os.path.join``.
        start: where the usage begins: receiver, name and arguments.
        name_start, name_end: the name that is called, such as ``join``; an opening bracket follows.
        end: behind the closing bracket.

    Example:
        >>> CallSite("os.getcwd", start=21, name_start=24, name_end=30, end=32).api
        'os.getcwd'
    """

    api: str
    start: int
    name_start: int
    name_end: int
    end: int

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 <= self.start <= self.name_start <= self.name_end <= self.end:
            raise ValueError(f"start, name_start, name_end and end must be in order from 0, got {self}")


@dataclass(frozen=True)
class ApiFunction:
    """A function's source without its docstring, at no indentation, with its calls of one group of APIs.

    Attributes:
        file: that it comes from.
        text: its source.
        calls: in the order of their ends.
        group: of the calls.

    Example:
        >>> ApiFunction("a.py", "def f(x): return x", (), "io").names()
        []
    """

    file: str
    text: str
    calls: tuple[CallSite, ...]
    group: str

    def __post_init__(self) -> None:
        check_fields(self)

    def names(self) -> list[str]:
        """Returns the names that its call sites call."""
        return [self.text[call.name_start : call.name_end] for call in self.calls]


@dataclass(frozen=True)
class ApiStream:
    """What a model may be pretrained on, and the tasks of a stream.

    Attributes:
        pretrain: functions of files for training that import no library of any group.
        tasks: by group and part ("train", "val", "test"), functions with their calls of the group.

    Example:
        >>> source = "import os\\ndef f():\\n    return os.getcwd()"
        >>> stream = api_stream({"a.py": source}, {"io": ["os"]}, val=0, test=0)
        >>> [function.names() for function in stream.tasks["io"]["train"]]
        [['getcwd']]
    """

    pretrain: list[str]
    tasks: dict[str, dict[StreamPart, list[ApiFunction]]]

    def exclusive_names(self) -> dict[str, set[str]]:
        """Returns the names that are called in the training functions of a group and in those of no other group."""
        called = {
            group: {name for function in parts["train"] for name in function.names()}
            for group, parts in self.tasks.items()
        }
        return {
            group: names - set().union(*(other for key, other in called.items() if key != group))
            for group, names in called.items()
        }


@checked
def python_sources(
    package: str | Path, *, skip: Collection[str] = (), mentions: Collection[str] = (), most: int | None = None
) -> dict[str, str]:
    """Returns the Python sources of an installed package by file name, such as ``json/decoder.py``, unimported.

    Args:
        package: a top-level name; "stdlib" for the whole standard library; or the ``Path`` of a folder.
        skip: names of folders and files to leave out.
        mentions: keep files that have one of these words; empty keeps all.
        most: of the files that are left, as many as this, chosen by a hash of their names; default: all.

    Raises:
        FileNotFoundError: no such package or folder, or one without source.
        ValueError: a dotted name, or ``most`` below 1.

    Example:
        >>> sorted(python_sources("json", skip=["__init__.py"]))
        ['json/decoder.py', 'json/encoder.py', 'json/scanner.py', 'json/tool.py']
    """
    if most is not None and most < 1:
        raise ValueError(f"most must be at least 1, got {most}")
    folder = _folder(package)
    skipped, prefix = {*skip, "site-packages", "dist-packages"}, "" if package == "stdlib" else f"{folder.name}/"
    word = re.compile(rf"\b(?:{'|'.join(map(re.escape, mentions))})\b") if mentions else None
    files = {}
    for file in folder.rglob("*.py"):
        inside = file.relative_to(folder)
        if not skipped.intersection(inside.parts):
            files[prefix + inside.as_posix()] = file
    found: dict[str, str] = {}
    for name in sorted(files, key=lambda name: _hash(f"chosen {name}")):
        if most is not None and len(found) == most:
            break
        text = files[name].read_text("utf-8", errors="replace")
        if word is None or word.search(text):
            found[name] = text
    if not found:
        raise FileNotFoundError(f"package {package} has no source of Python in {folder}")
    return dict(sorted(found.items()))


@checked
def sources_digest(sources: Mapping[str, str]) -> str:
    """Returns a hash of files and their contents.

    Example:
        >>> len(sources_digest({"a.py": "x = 1"}))
        64
    """
    check_nonempty(sources=sources)
    digest = hashlib.sha256()
    for name in sorted(sources):
        digest.update(f"{name}\0{sources[name]}\0".encode("utf-8", "replace"))
    return digest.hexdigest()


@checked
def api_functions(
    source: str, groups: Mapping[str, Sequence[str]], *, file: str = ""
) -> tuple[list[ApiFunction], list[str]]:
    """Returns the functions of a source that call a group of APIs, and the functions that know of no group.

    A function is one of a module or a class; those within it are part of it. One that calls several groups is of the
    first of them in ``groups``, so name rare ones first; calls of the others are no call sites then. Left out:
    functions that name a library of a group without calling any; those that are not plain ASCII. Where the source
    imports a library of any group, no function counts as one that knows none.

    Args:
        source: of a file; one that is not of this version of Python has no functions.
        groups: for each group dotted names of modules, such as ``{"io": ["os", "shutil"]}``.
        file: what to call it.

    Raises:
        ValueError: no groups, or a group without modules.

    Example:
        >>> used, plain = api_functions("import os\\ndef f(x):\\n    return os.path.join(x, 'a')", {"io": ["os"]})
        >>> used[0].calls[0].api, used[0].names(), plain
        ('os.path.join', ['join'], [])
    """
    check_nonempty(groups=groups)
    for name, modules in groups.items():
        check_nonempty(**{f"groups[{name!r}]": modules})
    tree = _parsed(source)
    if tree is None:
        return [], []
    lines = source.splitlines(keepends=True)
    known = _Names(groups)
    known.learn(_outside_functions(tree))
    imports = any(
        known.group_of(name)
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in _imported(node).values()
    )
    used, plain = [], []
    inside: dict[int, _Names] = {}
    for node, owner in sorted(_functions_of(tree), key=lambda found: found[0].lineno):
        found = _plain_text(node, lines)
        if found is None:
            continue
        text, body = found
        if id(owner) not in inside:
            inside[id(owner)] = known.within(owner)
        names = inside[id(owner)].within(None)
        nodes = list(ast.walk(body))
        names.learn(nodes)
        calls, seen = _calls(nodes, text, names)
        if not imports and not seen:
            plain.append(text)
        group = next((group for group in groups if calls.get(group)), None)
        if group is not None:
            sites = sorted(calls[group], key=lambda site: (site.end, site.start))
            used.append(ApiFunction(file, text, tuple(sites), group))
    return used, plain


@checked
def api_stream(
    sources: Mapping[str, str], groups: Mapping[str, Sequence[str]], *, val: float = 0.1, test: float = 0.2
) -> ApiStream:
    """Returns what to pretrain on, and a stream of tasks, one for each group of APIs.

    Files are split, by a hash of their names: no part has seen a file of another one. A function that comes twice
    counts once, in the earlier of train, val, test. In val and test a call site is dropped whose lines, but for
    spaces, are lines of a file for training, or, in test, of one for validation, wherever they stand; a function
    without a site is dropped then.

    Args:
        sources: files by name, such as those of ``python_sources``.
        groups: as for ``api_functions``, in the order of the stream.
        val, test: shares of the files.

    Raises:
        ValueError: no sources, no groups, shares out of range.

    Source: arXiv:2305.04106, section 3.

    Example:
        >>> stream = api_stream(python_sources("json"), {"re": ["re"], "argparse": ["argparse"]})
        >>> sorted(stream.tasks["re"])
        ['test', 'train', 'val']
    """
    check_nonempty(sources=sources, groups=groups)
    if val or test:
        check_fraction(**{"val + test": val + test})
    if min(val, test) < 0:
        raise ValueError(f"val and test must be at least 0, got {val} and {test}")
    parts: dict[StreamPart, list[str]] = {"train": [], "val": [], "test": []}
    for name in sorted(sources):
        share = int(_hash(name)[:8], 16) / 16**8
        parts["test" if share < test else "val" if share < test + val else "train"].append(name)
    tasks: dict[str, dict[StreamPart, list[ApiFunction]]] = {g: {"train": [], "val": [], "test": []} for g in groups}
    pretrain: list[str] = []
    texts, known_lines = set[str](), set[str]()
    for part, names in parts.items():
        for name in names:
            used, plain = api_functions(sources[name], groups, file=name)
            for function in used:
                if (key := _squeezed(function.text)) not in texts:
                    texts.add(key)
                    kept = function if part == "train" else _without_known(function, known_lines)
                    if kept.calls:
                        tasks[function.group][part].append(kept)
            if part == "train":
                if not _is_of(name, groups):
                    pretrain += [text for text in plain if _squeezed(text) not in texts]
                texts.update(map(_squeezed, plain))
        known_lines.update(_squeezed(line) for name in names for line in sources[name].splitlines())
    stream = ApiStream(list(dict.fromkeys(pretrain)), tasks)
    exclusive = set().union(*stream.exclusive_names().values())
    return ApiStream([text for text in stream.pretrain if not exclusive & _called(text)], tasks)


def _is_of(file: str, groups: Mapping[str, Sequence[str]]) -> bool:
    """Whether a file is itself of a module of a group."""
    module = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    return any(module == m or module.startswith(f"{m}.") for modules in groups.values() for m in modules)


def _called(text: str) -> set[str]:
    """The names of attributes that a function calls."""
    calls = (node.func for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call))
    return {called.attr for called in calls if isinstance(called, ast.Attribute)}


class _Names:
    """What local names stand for, as dotted names of what was imported."""

    def __init__(self, groups: Mapping[str, Sequence[str]], known: Mapping[str, str] | None = None) -> None:
        self.groups, self.known = groups, dict(known or {})
        self.base = ""
        self.own: set[str] = set()

    def group_of(self, name: str | None) -> str | None:
        if name is None:
            return None
        return next(
            (g for g, modules in self.groups.items() if any(name == m or name.startswith(f"{m}.") for m in modules)),
            None,
        )

    def within(self, owner: ast.ClassDef | None) -> _Names:
        """The names inside a class, whose own methods hide those of its base."""
        names = _Names(self.groups, self.known)
        names.base, names.own = self.base, self.own
        if owner is not None:
            bases = [found for base in owner.bases if (found := self.resolve(base))]
            names.base = bases[0] if len(owner.bases) == 1 and bases else ""
            names.own = {node.name for node in owner.body if isinstance(node, _FUNCTIONS)}
            names.learn(node for node in ast.walk(owner) if _assigns_to_self(node))
        return names

    def learn(self, nodes: Iterable[ast.AST]) -> None:
        """Takes up imports, and names for objects of known classes."""
        found = list(nodes)
        for node in found:
            if isinstance(node, ast.Import | ast.ImportFrom):
                self.known.update(_imported(node))
        for node in found:
            for target, value in _bindings(node):
                key = _key(target)
                if key and (name := self._made_by(value)):
                    self.known[key] = name

    def resolve(self, node: ast.AST) -> str | None:
        if isinstance(node, ast.Name):
            return self.known.get(node.id)
        if isinstance(node, ast.Call):
            return self._made_by(node)
        if not isinstance(node, ast.Attribute):
            return None
        if isinstance(node.value, ast.Name) and node.value.id == "self":
            inherited = self.base and node.attr not in self.own
            return self.known.get(f"self.{node.attr}") or (f"{self.base}.{node.attr}" if inherited else None)
        before = self.resolve(node.value)
        return before and f"{before}.{node.attr}"

    def _made_by(self, node: ast.AST) -> str | None:
        """The class of the object that a call makes: something is a class that begins with a capital letter."""
        name = self.resolve(node.func) if isinstance(node, ast.Call) else None
        if name is None:
            return None
        *module, last = name.split(".")
        return name if last.lstrip("_")[:1].isupper() or module[-1:] == [last] else None


def _imported(node: ast.Import | ast.ImportFrom) -> dict[str, str]:
    """Local names and what they stand for; relative imports stay unknown."""
    if isinstance(node, ast.Import):
        return {
            alias.asname or alias.name.partition(".")[0]: alias.name if alias.asname else alias.name.partition(".")[0]
            for alias in node.names
        }
    if node.level:
        return {}
    return {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}


def _bindings(node: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
    if isinstance(node, ast.Assign):
        yield from ((target, node.value) for target in node.targets)
    elif isinstance(node, ast.AnnAssign) and node.value is not None:
        yield node.target, node.value
    elif isinstance(node, ast.With | ast.AsyncWith):
        yield from ((item.optional_vars, item.context_expr) for item in node.items if item.optional_vars is not None)


def _key(node: ast.AST) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
        return f"self.{node.attr}"
    return None


def _assigns_to_self(node: ast.AST) -> bool:
    return any((_key(target) or "").startswith("self.") for target, _ in _bindings(node))


def _outside_functions(tree: ast.AST) -> Iterator[ast.AST]:
    todo = [tree]
    while todo:
        node = todo.pop()
        yield node
        todo += [child for child in ast.iter_child_nodes(node) if not isinstance(child, (*_FUNCTIONS, ast.ClassDef))]


def _functions_of(tree: ast.Module) -> Iterator[tuple[Any, ast.ClassDef | None]]:
    todo: list[tuple[ast.AST, ast.ClassDef | None]] = [(tree, None)]
    while todo:
        node, owner = todo.pop()
        for child in ast.iter_child_nodes(node):
            if isinstance(child, _FUNCTIONS):
                yield child, owner
            elif isinstance(child, ast.stmt | ast.ExceptHandler):
                todo.append((child, child if isinstance(child, ast.ClassDef) else owner))


def _plain_text(node: Any, lines: list[str]) -> tuple[str, ast.stmt] | None:
    """A function's lines without docstring and indentation, and their tree, where they still are one and ASCII."""
    own = lines[node.lineno - 1 : node.end_lineno]
    if ast.get_docstring(node, clean=False) is not None:
        first = node.body[0]
        own = own[: first.lineno - node.lineno] + own[first.end_lineno - node.lineno + 1 :]
    text = textwrap.dedent("".join(own)).rstrip()
    tree = _parsed(text) if text.isascii() else None
    return (text, tree.body[0]) if tree and len(tree.body) == 1 and isinstance(tree.body[0], _FUNCTIONS) else None


def _calls(nodes: list[ast.AST], text: str, names: _Names) -> tuple[dict[str, list[CallSite]], bool]:
    """Call sites of APIs in a function by group, and whether it knows of any."""
    begins = [0]
    for line in text.splitlines(keepends=True):
        begins.append(begins[-1] + len(line))
    sites: dict[str, list[CallSite]] = {}
    seen = False
    for node in nodes:
        if not seen and isinstance(node, ast.Name | ast.Attribute):
            seen = names.group_of(names.resolve(node)) is not None
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name | ast.Attribute):
            continue
        api = names.resolve(node.func)
        group = names.group_of(api)
        if api is None or group is None:
            continue
        name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
        place: Any = node
        end_of_name = begins[place.func.end_lineno - 1] + place.func.end_col_offset
        if text[end_of_name - len(name) : end_of_name + 1] == f"{name}(":
            start = begins[place.lineno - 1] + place.col_offset
            end = begins[place.end_lineno - 1] + place.end_col_offset
            sites.setdefault(group, []).append(CallSite(api, start, end_of_name - len(name), end_of_name, end))
    return sites, seen


def _without_known(function: ApiFunction, known: set[str]) -> ApiFunction:
    """Without the sites all of whose lines are known."""
    kept = []
    for call in function.calls:
        first = function.text.rfind("\n", 0, call.start) + 1
        last = function.text.find("\n", call.end - 1)
        lines = function.text[first : last if last >= 0 else None].splitlines()
        if any(_squeezed(line) not in known for line in lines):
            kept.append(call)
    return ApiFunction(function.file, function.text, tuple(kept), function.group)


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()


def _parsed(source: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _folder(package: str | Path) -> Path:
    if isinstance(package, Path):
        if not package.is_dir():
            raise FileNotFoundError(f"package must be a folder, and {package} is none")
        return package
    if package == "stdlib":
        return Path(sysconfig.get_paths()["stdlib"])
    if not package.isidentifier():  # find_spec would import the parents of a dotted name
        raise ValueError(f"package must be a top-level name, or the Path of a folder, got {package!r}")
    spec = importlib.util.find_spec(package)
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    if not places:
        raise FileNotFoundError(f"no package {package!r} is installed")
    return Path(places[0])
