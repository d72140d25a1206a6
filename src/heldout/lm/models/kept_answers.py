"""Answers of a language model, kept on disk."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from heldout.language_model import LM, Completion, Prompt

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

        Where the model fails half-way and its error says what had ``finished``, that is kept before the error goes on.
        """
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
            found = self.lm.generate([prompts[i] for i in missing], n, **options)
            return [[asdict(completion) for completion in row] for row in found]

        keys = [_key(self.identity, "generate", prompt, n, kept) for prompt in prompts]
        return [[Completion(**entry) for entry in row] for row in self._answers(keys, ask)]

    def score(self, prompts: Sequence[Prompt], continuations: Sequence[Sequence[str]]) -> list[list[float]]:
        """Returns the log likelihood of each continuation, those that the file has from there; see ``LM``."""
        if len(prompts) != len(continuations):
            raise ValueError(
                f"score needs the continuations of each prompt, got {len(continuations)} for {len(prompts)}"
            )

        def ask(missing: list[int]) -> list[Any]:
            return self.lm.score([prompts[i] for i in missing], [continuations[i] for i in missing])

        keys = [
            _key(self.identity, "score", prompt, list(row)) for prompt, row in zip(prompts, continuations, strict=True)
        ]
        return self._answers(keys, ask)

    def _answers(self, keys: list[bytes], ask: Callable[[list[int]], list[Any]]) -> list[Any]:
        known = self._read(keys)
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
                known |= {key: json.loads(value) for key, value in rows}
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
        finally:
            file.close()


def _key(*parts: Any) -> bytes:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=list).encode()).digest()
