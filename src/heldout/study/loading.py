"""Finding a study in a file or module, and finding its ``run`` function again in another process."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from heldout.errors import checked
from heldout.study.spec import Study, StudyError


@checked
def load_study(source: str | Path | ModuleType) -> Study:
    """The object named ``study`` of a Python file, of a module given by its dotted name, or of a module.

    The folder of a file is put on ``sys.path``, as ``python FILE`` does, so that the file can import its neighbours.

    Raises:
        StudyError: in one line, why there is no study to be had.

    Example:
        >>> import tempfile
        >>> text = "import heldout.study as s; study = s.Study('demo', {'a': {}}, lambda *_: {'x': 1}, {'x': 'lower'})"
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "demo_study.py").write_text(text)
        ...     print(load_study(f"{folder}/demo_study.py").slug)
        demo
    """
    if isinstance(source, ModuleType):
        module, name = source, source.__name__
    elif isinstance(source, Path) or source.endswith(".py") or "/" in source:
        name = str(source)
        module = load_file(source)
    else:
        name = source
        try:
            module = importlib.import_module(source)
        except ModuleNotFoundError as error:
            raise StudyError(f"{name} cannot be imported: {error}") from None
    study = getattr(module, "study", None)
    if study is None:
        raise StudyError(f"{name} defines no `study`; it needs a line like `study = Study(...)`")
    if not isinstance(study, Study):
        raise StudyError(f"`study` in {name} must be a heldout.study.Study, got {type(study).__name__}")
    return study


@checked
def load_file(path: str | Path) -> ModuleType:
    """The module of a Python file, executed once per process, and again when its text has changed since.

    The folder of the file is put on ``sys.path``.

    Raises:
        StudyError: what is wrong and where: no such file, no Python file, or an error while it was executed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "half_a_study.py").write_text("answer = 42")
        ...     print(load_file(f"{folder}/half_a_study.py").answer)
        42
    """
    given, path = path, Path(path).resolve()
    if not path.is_file():
        raise StudyError(f"there is no file {given}")
    if path.suffix != ".py":
        raise StudyError(f"{given} is not a Python file")
    name = f"heldout_file_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}_{path.stem}"
    try:
        source = path.read_bytes()
    except OSError as error:
        raise StudyError(f"{given} cannot be read: {error.strerror or error}") from None
    known = sys.modules.get(name)
    if known is not None and known.__dict__.get("__source__") == source:
        return known
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    specification = importlib.util.spec_from_file_location(name, path)
    if specification is None or specification.loader is None:
        raise StudyError(f"{given} is not a Python file")
    module = importlib.util.module_from_spec(specification)
    module.__dict__["__source__"] = source
    sys.modules[name] = module
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)  # no bytecode: its date may be that of another text
    except KeyboardInterrupt:
        del sys.modules[name]
        raise
    except BaseException as error:
        del sys.modules[name]
        raise StudyError(f"{given} cannot be imported: {_where(error, path)}") from error
    return module


def _where(error: BaseException, path: Path) -> str:
    """One line: the error and the last line of the file that led to it."""
    text = "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f"{text} (line {error.lineno})"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f"{text} (line {lines[-1]})" if lines else text


@dataclass(frozen=True)
class Reference:
    """Where a module-level function is defined, so that another process can load it."""

    module: str
    file: str | None
    qualname: str
    path: tuple[str, ...]

    @classmethod
    def to(cls, function: Callable[..., Any]) -> Reference:
        """Raises StudyError for a function that another process could not find."""
        qualname = getattr(function, "__qualname__", "")
        module = sys.modules.get(getattr(function, "__module__", None) or "")
        found: Any = module
        for part in qualname.split("."):
            found = getattr(found, part, None)
        if module is None or found is not function:
            shown = qualname or type(function).__name__
            raise StudyError(f"run must be a function at the top level of a module to run elsewhere, got {shown}")
        file = getattr(module, "__file__", None)
        if file is None and module.__name__ == "__main__":
            raise StudyError("run is defined in an interactive session; put the study into a file to run it elsewhere")
        return cls(module.__name__, file and str(Path(file).resolve()), qualname, tuple(sys.path))

    def load(self) -> Callable[..., Any]:
        """The function, in this process."""
        global _loading
        sys.path.extend(folder for folder in self.path if folder not in sys.path)
        _loading = True
        try:
            return _loaded(self)
        finally:
            _loading = False


_loading = False


def is_loading_for_a_worker() -> bool:
    """Whether this process is a worker that imports a study's code at this moment."""
    return _loading


@cache
def _loaded(reference: Reference) -> Callable[..., Any]:
    found: Any
    if reference.file is not None and only_a_file(reference):
        found = load_file(reference.file)
    else:
        found = importlib.import_module(reference.module)
    for part in reference.qualname.split("."):
        found = getattr(found, part)
    return found


def only_a_file(reference: Reference) -> bool:
    """Whether the module's file cannot be had by importing its name."""
    if reference.file is None:
        return False
    origin = _origin(reference.module)
    return origin is None or Path(origin).resolve() != Path(reference.file)


def _origin(name: str) -> str | None:
    """The file that importing a module would execute, were it not loaded yet; nothing is imported for this."""
    full, path, specification = "", None, None
    for part in name.split("."):
        full = f"{full}.{part}" if full else part
        found = (finder.find_spec(full, path) for finder in sys.meta_path)
        specification = next((each for each in found if each is not None), None)
        if specification is None:
            return None
        path = specification.submodule_search_locations
    return specification.origin if specification else None
