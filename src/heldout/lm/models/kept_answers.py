"""Answers of a language model, kept on disk."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import sqlite3
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from heldout.errors import check_at_least, check_fraction, check_nonnegative, checked
from heldout.language_model import LM, Completion, Prompt

_FIELDS = {field.name for field in fields(Completion)}
_VARIABLES = 900  # keys in one query: SQLite's smallest limit is 999


class CachedLM:
    """An ``LM`` that keeps what another one answers in an SQLite file, and asks it only for what is not there.

    An answer is found by all that it depends on: the model, the prompt and every option; the seed only where something
    is sampled. Samples of a local model also depend on the prompts in their batch; those drawn first are kept. Several
    processes may use the file at once.

    Args:
        lm: the language model.
        path: of the file; it is made if missing, and its folder with it.
        identity: what tells this model from others; default ``lm.identity``.

    Attributes:
        hits, misses: prompts that were answered from the file, and by the model.

    Raises:
        ValueError: if the model has no identity and none is given.

    Example:
        >>> import tempfile
        >>> from heldout.lm import ScriptedLM
        >>> lm = CachedLM(ScriptedLM({"2 + 2 =": "4"}), tempfile.mkdtemp() + "/answers.db")
        >>> [lm.generate(["2 + 2 ="])[0][0].text for _ in range(3)], lm.hits
        (['4', '4', '4'], 2)
    """

    @checked
    def __init__(self, lm: LM, path: str | Path, *, identity: str | None = None) -> None:
        identity = identity or getattr(lm, "identity", None)
        if not identity:
            raise ValueError(f"{type(lm).__name__} has no identity: CachedLM needs identity=")
        self.lm, self.path, self.identity = lm, Path(path), identity
        self.hits = self.misses = 0
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._open() as file:
            file.execute("PRAGMA journal_mode = WAL")
            file.execute("CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID")

    @checked
    def generate(
        self,
        prompts: Sequence[Prompt],
        n: int = 1,
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        stop: Sequence[str] = (),
        max_tokens: int = 256,
        seed: int = 0,
        **further: Any,
    ) -> list[list[Completion]]:
        """Returns ``n`` completions of each prompt, those that the file has from there; see ``LM``.

        Further options, such as top_k, are those of the model.

        Where the model tells of answers as they arrive, each is kept at once, whatever happens to the others. A model
        with a ``batch_size`` that does not tell, as a local one, is asked batch by batch, and each is kept as it ends.
        Where a model fails half-way and its error says what had ``finished``, that is kept before the error goes on.
        """
        check_at_least(1, n=n, max_tokens=max_tokens)
        check_nonnegative(temperature=temperature)
        check_fraction(top_p=top_p)
        options: dict[str, Any] = {
            "temperature": temperature,
            "top_p": top_p,
            "stop": list(stop),
            "max_tokens": max_tokens,
            "seed": seed,
            **further,
        }
        kept = options if temperature > 0 else {**options, "seed": 0, "top_p": 1.0}

        def ask(missing: list[int]) -> list[Any]:
            def arrived(number: int, row: list[Completion]) -> None:
                self._write({keys[missing[number]]: [asdict(completion) for completion in row]})

            telling: Any = self.lm.generate
            if _tells(telling):
                found = telling([prompts[i] for i in missing], n, **options, arrived=arrived)
                return [[asdict(completion) for completion in row] for row in found]
            rows: dict[int, list[dict[str, Any]]] = {}
            parts = _parts(self.lm, missing, prompts, n)
            for part in parts:
                # Parts with one seed would draw the same numbers.
                drawn = seed if len(parts) == 1 else (seed + int.from_bytes(keys[part[0]][:4])) % 2**32
                found = self.lm.generate([prompts[i] for i in part], n, **{**options, "seed": drawn})
                rows |= {i: [asdict(each) for each in row] for i, row in zip(part, found, strict=True)}
                self._write({keys[i]: rows[i] for i in part})
            return [rows[i] for i in missing]

        keys = [_key(self.identity, "generate", prompt, n, kept) for prompt in prompts]

        def usable(row: Any, number: int) -> bool:
            return isinstance(row, list) and len(row) == n and all(map(_is_completion, row))

        return [[Completion(**entry) for entry in row] for row in self._answers(keys, ask, usable)]

    @checked
    def score(self, prompts: Sequence[Prompt], continuations: Sequence[Sequence[str]]) -> list[list[float]]:
        """Returns the log likelihood of each continuation, those that the file has from there; see ``LM``."""
        if len(prompts) != len(continuations):
            raise ValueError(
                f"score needs the continuations of each prompt, got {len(continuations)} for {len(prompts)}"
            )

        def ask(missing: list[int]) -> list[Any]:
            def arrived(number: int, row: list[float]) -> None:
                self._write({keys[missing[number]]: row})

            telling: Any = self.lm.score
            if _tells(telling):
                return telling([prompts[i] for i in missing], [continuations[i] for i in missing], arrived=arrived)
            rows: dict[int, list[float]] = {}
            for part in _parts(self.lm, missing, prompts, max((len(continuations[i]) for i in missing), default=1)):
                found = self.lm.score([prompts[i] for i in part], [continuations[i] for i in part])
                rows |= dict(zip(part, found, strict=True))
                self._write({keys[i]: rows[i] for i in part})
            return [rows[i] for i in missing]

        def usable(row: Any, number: int) -> bool:
            return (
                isinstance(row, list)
                and len(row) == len(continuations[number])
                and all(isinstance(value, int | float) and not isinstance(value, bool) for value in row)
            )

        keys = [
            _key(self.identity, "score", prompt, list(row)) for prompt, row in zip(prompts, continuations, strict=True)
        ]
        return self._answers(keys, ask, usable)

    def _answers(
        self, keys: list[bytes], ask: Callable[[list[int]], list[Any]], usable: Callable[[Any, int], bool]
    ) -> list[Any]:
        known = self._read(keys)
        damaged = {key for i, key in enumerate(keys) if key in known and not usable(known[key], i)}
        if damaged:
            warnings.warn(f"{self.path} has {len(damaged)} damaged answers, which are asked for again", stacklevel=3)
            with self._open() as file:
                file.executemany("DELETE FROM answers WHERE key = ?", [(key,) for key in damaged])
            known = {key: row for key, row in known.items() if key not in damaged}
        missing = list({key: i for i, key in enumerate(keys) if key not in known}.values())
        self.hits += len(keys) - len(missing)
        self.misses += len(missing)
        if missing:
            try:
                found = dict(zip((keys[i] for i in missing), ask(missing), strict=True))
            except Exception as error:
                finished = getattr(error, "finished", None) or {}
                self._write({keys[missing[k]]: [asdict(c) for c in row] for k, row in finished.items()})
                raise
            self._write(found)
            known |= found
        return [known[key] for key in keys]

    def _read(self, keys: Sequence[bytes]) -> dict[bytes, Any]:
        known: dict[bytes, Any] = {}
        with self._open() as file:
            for start in range(0, len(keys), _VARIABLES):
                part = keys[start : start + _VARIABLES]
                marks = ", ".join("?" * len(part))
                rows = file.execute(f"SELECT key, value FROM answers WHERE key IN ({marks})", part)
                known |= {key: _read_value(value) for key, value in rows}
        return known

    def _write(self, found: Mapping[bytes, Any]) -> None:
        with self._open() as file:
            rows = [(key, json.dumps(value)) for key, value in found.items()]
            file.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?)", rows)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        file = sqlite3.connect(self.path, timeout=60)
        try:
            with file:
                yield file
        except sqlite3.DatabaseError as error:
            raise OSError(f"cannot use {self.path} as a file of kept answers ({error}); move it away") from error
        finally:
            file.close()


def _parts(lm: Any, missing: list[int], prompts: Sequence[Prompt], each: int) -> list[list[int]]:
    """Returns numbers of prompts that are asked together: as many as a batch holds, of similar length."""
    size = getattr(lm, "batch_size", None)
    if not isinstance(size, int):
        return [missing]
    order = sorted(missing, key=lambda i: len(str(prompts[i])))
    count = max(1, size // max(1, each))
    return [order[start : start + count] for start in range(0, len(order), count)]


def _key(*parts: Any) -> bytes:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=_plain).encode()).digest()


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else list(value)


def _read_value(text: Any) -> Any:
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return None


def _is_completion(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("text"), str) or not entry.keys() <= _FIELDS:
        return False
    numbers = {name: value for name, value in entry.items() if name not in ("text", "finish_reason")}
    if any(isinstance(v, bool) or not isinstance(v, int | float) or not math.isfinite(v) for v in numbers.values()):
        return False
    counts = [numbers.get(name, 0) for name in ("tokens", "prompt_tokens")]
    whole = all(isinstance(count, int) for count in counts) and min(*counts, numbers.get("cost", 0)) >= 0
    return whole and isinstance(entry.get("finish_reason", ""), str)


def _tells(method: Callable[..., Any]) -> bool:
    """Whether a model's method tells of answers as they arrive."""
    return "arrived" in inspect.signature(method).parameters
