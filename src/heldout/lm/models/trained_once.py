"""Core: Models that were trained here once, kept in the user's cache folder and checked before use.

A base is a transformers folder named by a digest of its recipe. Beside the model lie the checksums of its files, which
are compared before it is used; a damaged base is made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from heldout.errors import checked

_CHECKSUMS = "checksums.json"


@checked
def cached_base(name: str, recipe: Any, make: Callable[[], tuple[Any, Any]]) -> tuple[Any, Any]:
    """Returns a model in evaluation mode and its tokenizer, read from the cache, or made and kept there.

    Processes that ask for the same base at once wait for the one that makes it.

    Args:
        name: what the base is called; the folder begins with it.
        recipe: all that the base depends on, as JSON has it: another recipe is another base. Code is not looked at;
            a version number in the recipe says that it changed.
        make: ``() -> (model, tokenizer)``, of transformers.

    Example:
        >>> model, tokenizer = cached_base("lists", {"seed": 0, "version": 1}, make)  # doctest: +SKIP
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    folder = base_folder(name, recipe)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_suffix(".lock")):
        if not _is_whole(folder):
            _make(folder, make)
    seq2seq = AutoConfig.from_pretrained(folder).is_encoder_decoder
    model = (AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM).from_pretrained(folder)
    return model.eval(), AutoTokenizer.from_pretrained(folder)


@checked
def base_folder(name: str, recipe: Any) -> Path:
    """Returns where a base lies, or will: in $HELDOUT_CACHE, $XDG_CACHE_HOME/heldout or ~/.cache/heldout.

    Example:
        >>> base_folder("lists", {"seed": 0}).name
        'lists-de7d7744ccd7722e'
    """
    cache = os.environ.get("HELDOUT_CACHE")
    root = Path(cache) if cache else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "heldout"
    key = json.dumps(recipe, sort_keys=True, allow_nan=False)
    return root / "bases" / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"


def _make(folder: Path, make: Callable[[], tuple[Any, Any]]) -> None:
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        model, tokenizer = make()
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        sums = {file.name: _checksum(file) for file in sorted(temporary.iterdir())}
        (temporary / _CHECKSUMS).write_text(json.dumps(sums, indent=1), "utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _is_whole(folder: Path) -> bool:
    try:
        sums = json.loads((folder / _CHECKSUMS).read_text("utf-8"))
        return "model.safetensors" in sums and all(_checksum(folder / name) == found for name, found in sums.items())
    except (OSError, ValueError, TypeError):
        return False


def _checksum(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Lets one process at a time make a base; where the system has no such lock, two may make the same one."""
    with path.open("w") as file:
        with suppress(ImportError, OSError):
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield
