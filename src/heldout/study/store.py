"""The store: one SQLite file per output folder that keeps every run, written by one process.

Each run is committed as soon as it ends, to a write-ahead log: killing the process at any moment loses no run that was
reported as finished. (A power failure may cost the last few commits; it never damages the file.) An exclusive lock on
``study.lock`` keeps a second process out; readers are free to open the database meanwhile.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from heldout.errors import checked
from heldout.study.execution.runs import Outcome, Task
from heldout.study.results import environment
from heldout.study.spec import StudyError, canonical_json
from heldout.study.text import plain_name, plain_text

FILE = "study.sqlite"
LOCK = "study.lock"
APPLICATION_ID = 0x68656C64  # "held"
VERSION = 1

_TABLES = """
CREATE TABLE sessions (id INTEGER PRIMARY KEY, started REAL NOT NULL, environment TEXT NOT NULL);
CREATE TABLE runs (
    key TEXT PRIMARY KEY, slug TEXT NOT NULL, arm TEXT NOT NULL, parameters TEXT NOT NULL, seed INTEGER NOT NULL,
    profile TEXT NOT NULL, status TEXT NOT NULL, metrics TEXT NOT NULL, curves TEXT NOT NULL, figures TEXT NOT NULL,
    seconds REAL NOT NULL, cause TEXT, error TEXT NOT NULL, traceback TEXT NOT NULL,
    session INTEGER NOT NULL REFERENCES sessions, time REAL NOT NULL
) WITHOUT ROWID;
"""


class StoreError(StudyError):
    """The output folder cannot be used; the message says why and what to do.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, FILE).write_text("notes of my own")
        ...     Store.open(folder)
        Traceback (most recent call last):
        heldout.study.store.StoreError: ... is not a SQLite database (or a truncated one); move it away or ...
    """


class DamagedStoreError(StoreError):
    """The store can be opened, but what it holds of a run cannot be read.

    Example:
        >>> issubclass(DamagedStoreError, StoreError), issubclass(StoreError, StudyError)
        (True, True)
    """


class Store:
    """The runs that one output folder holds. Use as a context manager; ``Store.open(None)`` keeps them in memory.

    Example:
        >>> with Store.open(None) as store:
        ...     list(store.rows(["no such key"]))
        []
    """

    @checked
    def __init__(self, database: sqlite3.Connection, folder: Path | None, lock: int | None) -> None:
        self.folder = folder
        self._database = database
        self._lock = lock
        self._session: int | None = None

    @classmethod
    @checked
    def open(cls, folder: str | Path | None) -> Store:
        """Opens or creates the store of a folder and locks it.

        Raises:
            StoreError: the folder cannot be written, another process has it, its ``study.sqlite`` is damaged or of
                another program, or the file system cannot keep a write-ahead log. Nothing is overwritten.
        """
        if folder is None:
            database = sqlite3.connect(":memory:", isolation_level=None)
            database.executescript(_TABLES)
            return cls(database, None, None)
        folder = Path(folder).absolute()  # a run may change the working directory
        path = folder / FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot create the output folder {folder}: {error.strerror}") from None
        _check_header(path)
        lock = _locked(folder)
        try:
            with _explained(folder):
                database = _opened(path)
        except BaseException:
            os.close(lock)
            raise
        return cls(database, folder, lock)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file and gives the folder free."""
        try:
            self._database.close()
        finally:
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None

    @checked
    def finished(self, keys: Iterable[str]) -> set[str]:
        """Those of the given keys whose run is finished."""
        return {key for key, status in self._select("key, status", keys) if status == "finished"}

    @checked
    def put(self, slug: str, task: Task, outcome: Outcome) -> None:
        """Keeps the outcome of a run, for good once this returns; a finished run is never replaced.

        Raises:
            ValueError: the outcome is that of another run.
        """
        if outcome.key and outcome.key != task.key:
            raise ValueError(f"the outcome of run {outcome.key!r} was given for run {task.key!r}")
        status = "finished" if outcome.cause is None else "failed"
        texts = [json.dumps(value, allow_nan=False) for value in (outcome.metrics, outcome.curves, outcome.figures)]
        row = (task.key, slug, task.arm, canonical_json(task.parameters), task.seed, task.profile, status, *texts)
        failure = (
            outcome.cause,
            *(text.encode("utf-8", "replace").decode() for text in (outcome.error, outcome.traceback)),
        )
        with _explained(self.folder):
            self._database.execute("BEGIN IMMEDIATE")
            try:
                self._database.execute(
                    f"INSERT INTO runs VALUES ({', '.join('?' * 16)}) ON CONFLICT (key) DO UPDATE SET "
                    "status = excluded.status, metrics = excluded.metrics, curves = excluded.curves, "
                    "figures = excluded.figures, seconds = excluded.seconds, cause = excluded.cause, "
                    "error = excluded.error, traceback = excluded.traceback, session = excluded.session, "
                    "time = excluded.time WHERE runs.status != 'finished'",
                    (*row, outcome.seconds, *failure, self._current_session(), time.time()),
                )
                self._database.execute("COMMIT")
            except BaseException:
                self._session = None  # it may have been written in this transaction
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise

    @checked
    def rows(self, keys: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        """(key, run) of those of the given keys that the store holds, as dictionaries of the outcome and its status.

        Raises:
            DamagedStoreError: what is kept of a run cannot be read.
        """
        columns = "status, metrics, curves, figures, seconds, cause, error, traceback"
        for key, *values in self._select(f"key, {columns}", keys):
            try:
                yield key, _decoded(dict(zip(columns.split(", "), values, strict=True)))
            except (ValueError, TypeError, RecursionError) as error:
                file = FILE if self.folder is None else self.folder / FILE
                text = f"{file} is damaged (run {key[:12]}: {plain_name(str(error))}); restore a copy or move it away"
                raise DamagedStoreError(text) from None

    def _select(self, columns: str, keys: Iterable[str]) -> Iterator[tuple[Any, ...]]:
        wanted = list(keys)
        with _explained(self.folder):
            for start in range(0, len(wanted), 500):
                part = wanted[start : start + 500]
                marks = ", ".join("?" * len(part))
                yield from self._database.execute(f"SELECT {columns} FROM runs WHERE key IN ({marks})", part)

    def _current_session(self) -> int:
        if self._session is None:
            values = (time.time(), json.dumps(environment()))
            cursor = self._database.execute("INSERT INTO sessions (started, environment) VALUES (?, ?)", values)
            self._session = cursor.lastrowid
        return self._session  # type: ignore[return-value]


def _decoded(run: dict[str, Any]) -> dict[str, Any]:
    """A row as a dictionary; raises ValueError or TypeError where it does not have the form that ``put`` gave it."""
    decoded = {**run, **{name: _loaded(name, run[name]) for name in ("metrics", "curves", "figures")}}
    for name, value in decoded["metrics"].items():
        if not isinstance(value, int | float):
            raise ValueError(f"metric {name} is no number")
    for name, curve in decoded["curves"].items():
        if not isinstance(curve, list) or not all(isinstance(point, list) and len(point) == 2 for point in curve):
            raise ValueError(f"curve {name} is no list of points")
    if not isinstance(run["seconds"], int | float) or run["status"] not in ("finished", "failed"):
        raise ValueError("its status or seconds are none")
    if run["cause"] or run["error"] or run["traceback"]:
        texts = {name: None if run[name] is None else plain_text(run[name]) for name in ("cause", "error", "traceback")}
        decoded.update(texts)
    return decoded


def _loaded(name: str, text: str) -> dict[str, Any]:
    if text == "{}":
        return {}
    loaded = json.loads(text, parse_constant=_no_constant)
    if not isinstance(loaded, dict):
        raise ValueError(f"{name} is no JSON object")
    return loaded


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is no JSON number")


def _check_header(path: Path) -> None:
    """Raises StoreError unless the file is absent, empty or starts like one of ours. Reads, never writes."""
    try:
        with path.open("rb") as file:
            header = file.read(100)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from None
    if not header:
        return
    if len(header) < 100 or not header.startswith(b"SQLite format 3\0"):
        raise StoreError(f"{path} is not a SQLite database (or a truncated one); move it away or choose another folder")
    version, application = (int.from_bytes(header[at : at + 4], "big") for at in (60, 68))
    if application != APPLICATION_ID:
        raise StoreError(f"{path} was written by another program; choose another folder")
    if version > VERSION:
        raise StoreError(f"{path} was written by a newer heldout (format {version}, this one reads {VERSION})")


def _locked(folder: Path) -> int:
    """A file descriptor that holds the folder's lock until it is closed or this process ends."""
    path = folder / LOCK
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise StoreError(f"cannot write to the output folder {folder}: {error.strerror}") from None
    try:
        import fcntl
    except ImportError:  # no advisory locks on this platform
        return descriptor
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(descriptor, 20).decode("ascii", "replace").strip() or "unknown"
        os.close(descriptor)
        raise StoreError(f"{folder} is in use by another heldout process (PID {owner})") from None
    except OSError as error:
        os.close(descriptor)
        raise StoreError(f"the file system of {folder} cannot lock files: {error.strerror}") from None
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    except OSError as error:
        os.close(descriptor)
        raise StoreError(f"cannot write to the output folder {folder}: {error.strerror}") from None
    return descriptor


def _opened(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        if (damage := database.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise sqlite3.DatabaseError(damage)
        if not database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            # The identification is written with the tables and before the log exists, so that a half-made
            # file is either empty or recognisable.
            identity = f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {VERSION};"
            database.executescript(f"BEGIN IMMEDIATE; {identity} {_TABLES} COMMIT;")
        if (mode := database.execute("PRAGMA journal_mode = WAL").fetchone()[0]) != "wal":
            raise StoreError(
                f"the file system of {path.parent} cannot keep a SQLite write-ahead log (journal mode {mode}); "
                "choose a folder on a local disk"
            )
        database.execute("PRAGMA synchronous = NORMAL")
    except BaseException:
        database.close()
        raise
    return database


@contextmanager
def _explained(folder: Path | None) -> Iterator[None]:
    """Turns SQLite's errors into one line for the user."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorname", "") or ""
        file = Path(FILE) if folder is None else folder / FILE
        if code.startswith("SQLITE_FULL"):
            text = f"the disk of {folder} is full; runs that were reported as finished are kept, free some space"
        elif code.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN")):
            text = f"{file} cannot be written: {error}"
        elif code.startswith("SQLITE_IOERR"):
            text = (
                f"{file} cannot be read or written ({error}); is the disk full or its file system unsuited to SQLite?"
            )
        elif code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            text = f"{file} is locked by another program"
        else:
            text = f"{file} is damaged ({error}); move it away or restore a copy"
        raise StoreError(" ".join(text.split())) from None
