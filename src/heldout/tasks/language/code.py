"""The code world: Python's standard library as source text, and its docstrings as a second domain of prose.

Both come with every Python, so nothing is downloaded; what they hold depends on its version. Modules, not lines, are
split, so that no part has seen a file of another.
"""

from __future__ import annotations

import ast
import hashlib
import sysconfig
from functools import lru_cache
from pathlib import Path
from typing import Literal

from heldout.errors import checked

Part = Literal["train", "eval", "calibration"]

_PARTS = {"calibration": range(10), "eval": range(10, 20), "train": range(20, 100)}  # percent of the modules
_DEFINITIONS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@checked
def stdlib_code(part: Part = "train") -> list[str]:
    """Returns the source of the standard library's top-level modules without their docstrings, one text per module.

    Args:
        part: "train" (about 80 % of the modules), "eval" or "calibration" (about 10 % each). Which part a module
            belongs to depends on its name only.

    Example:
        >>> texts = stdlib_code("calibration")
        >>> any("import " in text for text in texts)
        True
    """
    return [code for code, _ in _texts(part)]


@checked
def stdlib_docstrings(part: Part = "train") -> list[str]:
    """Returns the docstrings of the same modules, one text per module that has any.

    Args:
        part: see ``stdlib_code``; the parts hold the same modules in both domains.

    Example:
        >>> len(stdlib_docstrings("eval")) <= len(stdlib_code("eval"))
        True
    """
    return [prose for _, prose in _texts(part) if prose]


@checked
def stdlib_digest(part: Part = "train") -> str:
    """Returns a hash of the modules in a part: what ``stdlib_code`` and ``stdlib_docstrings`` depend on.

    Example:
        >>> len(stdlib_digest("eval"))
        64
    """
    digest = hashlib.sha256()
    for file in _files(part):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def _files(part: Part) -> list[Path]:
    if part not in _PARTS:
        raise ValueError(f"part must be one of {', '.join(_PARTS)}, got {part!r}")
    folder = Path(sysconfig.get_paths()["stdlib"])
    files = [
        file
        for file in sorted(folder.glob("*.py"))
        if int(hashlib.sha256(file.stem.encode()).hexdigest(), 16) % 100 in _PARTS[part]
    ]
    if not files:
        raise FileNotFoundError(f"the sources of the standard library are not in {folder}")
    return files


@lru_cache(maxsize=3)
def _texts(part: Part) -> list[tuple[str, str]]:
    return [_split(file.read_text("utf-8", errors="replace")) for file in _files(part)]


def _split(source: str) -> tuple[str, str]:
    """Returns the code without docstrings, and the docstrings."""
    lines = source.splitlines(keepends=True)
    prose = []
    todo: list[ast.AST] = [ast.parse(source)]
    while todo:
        node = todo.pop()
        if isinstance(node, _DEFINITIONS):
            text = ast.get_docstring(node)
            if text is not None:
                prose.append((node.body[0].lineno, text))
                for number in range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1):
                    lines[number - 1] = ""
        todo += getattr(node, "body", ())
    return "".join(lines), "\n\n".join(text for _, text in sorted(prose))
