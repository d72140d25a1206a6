"""Core: Which weights of a model are one tensor, known from its configuration.

A head that is tied to the embedding is stored once, twice, or under the other's name. Merging, quantising, scaling by
depth and task vectors ask here, so that they agree. The model of the configuration is built without memory and asked.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from heldout.errors import checked, require
from heldout.weights.checkpoint import Checkpoint, Reader, open_checkpoint, pieces
from heldout.weights.task_vector import check_same_parameters

_CONFIG = "config.json"


def model_class(folder: str | Path) -> tuple[type[nn.Module], Any]:
    """Returns the transformers class of the model in a folder, and its configuration. No code of the folder is run.

    Raises:
        FileNotFoundError: if there is no config.json.
        ValueError: if transformers does not understand it, or it needs code of its own.
        MissingExtraError: if transformers is not installed.
    """
    file = Path(folder) / _CONFIG
    if not file.is_file():
        raise FileNotFoundError(f"{folder} holds no {_CONFIG}, so it is not a transformers folder")
    transformers = require("transformers")
    raw = read_config(folder)
    name = next(iter(raw.get("architectures") or ()), None)
    own = "auto_map" in raw and not hasattr(transformers, str(name))
    if own:
        raise ValueError(
            f"{file} names code of its own (auto_map), which is never run: only models of transformers are"
        )
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, OSError, KeyError) as error:
        raise ValueError(f"{file} is not understood: {str(error).splitlines()[0]}") from None
    kind = getattr(transformers, name, None) if isinstance(name, str) else None
    if not isinstance(kind, type) or not issubclass(kind, transformers.PreTrainedModel):
        raise ValueError(f"{file} names the architecture {name!r}, which transformers does not have")
    return kind, config


def read_config(folder: str | Path) -> dict[str, Any]:
    """Returns the config.json of a folder, {} where there is none.

    Raises:
        ValueError: if it is not a JSON object.
    """
    file = Path(folder) / _CONFIG
    if not file.is_file():
        return {}
    try:
        config = json.loads(file.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{file} is not a JSON object")
    return config


def ties(checkpoint: Checkpoint) -> dict[str, str]:
    """Returns the names of a checkpoint's model that are one weight with another: alias -> a name that is stored.

    An alias may be stored besides, with equal values. Where the values differ the two are two weights, whatever the
    configuration says, as transformers has it. What counts is the file's metadata and, for a transformers folder, the
    model that its configuration names; a configuration that transformers cannot build is not asked.

    Raises:
        MissingExtraError: if the folder has a configuration that may tie weights, and transformers is not installed.
    """
    found = dict(checkpoint.aliases)
    groups: dict[str, list[str]] = {}
    by_config = _tied_by_config(checkpoint.path)
    for alias, source in by_config.tied.items():
        groups.setdefault(source, [source]).append(alias)
    for group in groups.values():
        names = [_stored(name, by_config.prefix, checkpoint) for name in group]
        present = [name for name in names if name in checkpoint.entries]
        if not present:
            continue
        first = present[0]
        for name in names:
            if name not in checkpoint.entries or (name != first and same_values(checkpoint, name, first)):
                found.setdefault(name, first)
    found.pop("", None)
    return {alias: name for alias, name in found.items() if alias != name}


def stored_twice(checkpoint: Checkpoint) -> dict[str, str]:
    """Returns the names under which a checkpoint stores a tied weight again: alias -> the first name."""
    config = read_config(checkpoint.path) if checkpoint.path.is_dir() else {}
    sizes = {part.get("vocab_size") for part in (config, *config.values()) if isinstance(part, dict)} - {None}
    if sum(entry.shape[:1] in {(size,) for size in sizes} for entry in checkpoint.entries.values()) < 2:
        return {}  # what is tied has a row for each token; so transformers is only asked where there are two
    return {alias: name for alias, name in ties(checkpoint).items() if alias in checkpoint.entries}


@checked
def load_checkpoint(path: str | Path) -> dict[str, torch.Tensor]:
    """Returns the state dict in a checkpoint, with tied weights tied again. Reads what ``open_checkpoint`` does.

    Of a transformers folder also the names that its configuration ties, so that the state dicts of two models of one
    kind have the same names, however their files were written.

    Example:
        >>> import tempfile
        >>> from heldout.weights import save_checkpoint
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_checkpoint({"w": torch.ones(1)}, f"{folder}/model.safetensors")
        ...     load_checkpoint(folder)
        {'w': tensor([1.])}
    """
    with open_checkpoint(path) as checkpoint:
        tied = ties(checkpoint)
        state = {name: checkpoint.tensor(name) for name in checkpoint.entries if name not in tied}
        return state | {alias: state[name] for alias, name in tied.items()}


def matched_names(base: Checkpoint, model: Checkpoint) -> dict[str, str]:
    """Returns where a model stores each tensor that its base stores; tied weights may lie under either name, or both.

    Raises:
        ValueError: if names or shapes differ otherwise, floating point meets integers, or weights that are one in the
            base have values of their own in the model.
    """
    place = {name: name for name in base.entries if name in model.entries}
    twice: set[str] = set()
    if model.entries.keys() != base.entries.keys():
        in_base, in_model = ties(base), ties(model)
        for name in base.entries.keys() - place.keys():
            twins = [in_model.get(name), in_base.get(name), *(a for a, target in in_base.items() if target == name)]
            if found := [twin for twin in twins if twin in model.entries]:
                place[name] = str(found[0])
        for alias, target in (in_model | in_base).items():
            if alias in model.entries and target in place and alias not in place.values():
                if not same_values(model, alias, place[target]):
                    raise ValueError(
                        f"{alias} and {target} are one tied weight in {base.path} but two, with values of their own, "
                        f"in {model.path}: untie them in the base (tie_word_embeddings), or tie them in the model"
                    )
                twice.add(alias)
    used = set(place.values()) | twice
    known = {name: model.entries[there] for name, there in place.items()}
    more = {name: entry for name, entry in model.entries.items() if name not in used}
    check_same_parameters({str(base.path): base.entries, str(model.path): known | more})
    for name, entry in base.entries.items():
        if entry.dtype.is_floating_point != known[name].dtype.is_floating_point:
            raise ValueError(f"{name} is {entry.dtype} in {base.path} but {known[name].dtype} in {model.path}")
    return place


class _Tied:
    """What a configuration ties (alias -> source, names of the whole model) and the prefix of its trunk."""

    def __init__(self, tied: Mapping[str, str], prefix: str = "") -> None:
        self.tied, self.prefix = tied, prefix


def _tied_by_config(path: Path) -> _Tied:
    file = path / _CONFIG
    if not file.is_file():
        return _Tied({})
    return _tied_by_file(path, file.stat().st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _tied_by_file(folder: Path, changed: int) -> _Tied:
    raw = read_config(folder)
    plain = not raw.get("is_encoder_decoder") and not any(isinstance(part, dict) for part in raw.values())
    if not raw.get("architectures") or (plain and raw.get("tie_word_embeddings") is False):
        return _Tied({})
    try:
        kind, config = model_class(folder)
        with torch.device("meta"):
            model: Any = kind(config)
    except (ValueError, TypeError, AttributeError, RuntimeError, ImportError) as error:
        if isinstance(error, ImportError):
            raise
        return _Tied({})
    return _Tied(dict(getattr(model, "all_tied_weights_keys", None) or {}), f"{model.base_model_prefix}.")


def _stored(name: str, prefix: str, checkpoint: Checkpoint) -> str:
    """Returns a name of the whole model as the checkpoint has it, which may be that of the trunk alone."""
    bare = name.removeprefix(prefix)
    return bare if name not in checkpoint.entries and bare in checkpoint.entries else name


def same_values(checkpoint: Checkpoint, one: str, other: str) -> bool:
    """Whether two tensors of a checkpoint are equal in data type, shape and values."""
    a, b = checkpoint.entries[one], checkpoint.entries[other]
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    readers = Reader(checkpoint), Reader(checkpoint)
    return all(
        torch.equal(readers[0].read(one, first, count), readers[1].read(other, first, count))
        for first, count in pieces(a.numel)
    )
