"""Merging checkpoints on disk into a new one, piece by piece, so that a model larger than memory can be merged.

The arithmetic is that of the functions on state dicts (``interpolate``, ``task_arithmetic``, ``ties``, ``consensus``,
``lines``, ``lines_merge``), whose results it equals to the bit. Floor: one read of every checkpoint and one write;
TIES reads two more times, because the magnitude that each task keeps is a quantile over all layers.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from heldout.errors import check_fields, checked
from heldout.weights.blocks import BlockIndex, find_blocks
from heldout.weights.checkpoint import CHUNK, Checkpoint, Reader, open_checkpoint, pieces, write_file, write_folder
from heldout.weights.merging.adapters import Adapter, is_adapter
from heldout.weights.merging.lines import layer_ramp
from heldout.weights.merging.merge import consensus_entries, sum_entries, ties_entries
from heldout.weights.merging.wise_ft import check_alpha
from heldout.weights.quantised_files import check_not_quantised
from heldout.weights.task_vector import wide
from heldout.weights.tying import matched_names, same_values, stored_twice, ties

MERGE_METHODS: dict[str, tuple[str, ...]] = {
    "wise-ft": ("alpha",),
    "task-arithmetic": ("scale",),
    "ties": ("scale", "density"),
    "consensus": ("scale",),
    "lines": ("alpha", "beta"),
}
_PIECE = 1 << 16  # elements per step: the buffers of a base and a few tasks fit a second-level cache


@dataclass(frozen=True)
class MergeReport:
    """What ``merge_checkpoints`` did.

    Attributes:
        out: the folder or file that was written.
        method: the merge.
        options: the options in force, defaults included.
        tensors: number of tensors written.
        parameters: number of their elements.
        copied: tensors copied from the base: integer and boolean ones, and those that no adapter changes.

    Example:
        >>> from heldout.weights import save_checkpoint
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name, value in {"base": 0.0, "one": 1.0}.items():
        ...         tensors = {"w": torch.full((2, 3), value), "step": torch.tensor(7)}
        ...         save_checkpoint(tensors, f"{folder}/{name}.safetensors")
        ...     base, one = f"{folder}/base.safetensors", f"{folder}/one.safetensors"
        ...     report = merge_checkpoints(base, [one], f"{folder}/out", method="wise-ft")
        >>> report.tensors, report.parameters, report.copied, dict(report.options)
        (2, 7, 1, {'alpha': 0.5})
    """

    out: Path
    method: str
    options: Mapping[str, float]
    tensors: int
    parameters: int
    copied: int

    def __post_init__(self) -> None:
        check_fields(self)


@checked
def merge_checkpoints(
    base: str | Path,
    finetuned: Sequence[str | Path],
    out: str | Path,
    *,
    method: str,
    alpha: float | None = None,
    beta: float | None = None,
    scale: float | None = None,
    density: float | None = None,
) -> MergeReport:
    """Merges fine-tuned checkpoints into their base and writes the result to a new folder, in little memory.

    The output has the base's names, shards, data types, tied weights and integer buffers, and the configuration and
    tokenizer files of a base folder. It appears when it is complete; a merge that fails leaves nothing.

    LoRA adapters of peft are merged as changes of the base's weights, whatever their ranks; weights that no adapter
    changes are copied, and ``density`` counts those that one does change.

    Args:
        base: the common start: a safetensors file, or a transformers folder, sharded or not.
        finetuned: models fine-tuned from it: files or folders with the same tensors, or LoRA adapter folders.
        out: the folder to create; a file where ``base`` is one and ``out`` ends in ``.safetensors``.
        method: "wise-ft" (one model: ``interpolate``), "task-arithmetic", "ties", "consensus" (two or more), or
            "lines" (one model: ``lines``; several: ``lines_merge`` on their sum).
        alpha: wise-ft: weight of the fine-tuned model, in [0, 1], default 0.5. lines: factor of the first block, in
            [0, 1], default 0.3 for one model and 1 / their number for several.
        beta: lines: what the last block gets on top of alpha, default 1 - alpha.
        scale: factor of the merged change, default 1.
        density: ties: fraction of each task's entries that is kept, default 0.2.

    Raises:
        ValueError: if a method, option or the number of models does not fit, tensors differ in names or shapes, a
            weight is NaN or infinite, a file is damaged, quantised or not safetensors, weights tied in the base have
            values of their own in a fine-tuned model, or an adapter is of a kind that is not a change of weights.
        FileNotFoundError: if a checkpoint is not there.
        FileExistsError: if ``out`` exists.

    Source: arXiv:2109.01903, 2212.04089, 2306.01708, 2405.07813, 2410.17146.

    Example:
        >>> from heldout.weights import load_checkpoint, save_checkpoint
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name, value in {"base": 0.0, "one": 1.0, "two": 2.0}.items():
        ...     save_checkpoint({"w": torch.tensor([value])}, folder / f"{name}.safetensors")
        >>> files = [folder / "one.safetensors", folder / "two.safetensors"]
        >>> report = merge_checkpoints(folder / "base.safetensors", files, folder / "out", method="task-arithmetic")
        >>> load_checkpoint(report.out)["w"]
        tensor([3.])
    """
    given = {"alpha": alpha, "beta": beta, "scale": scale, "density": density}
    out = Path(out)
    options = _options(method, {name: value for name, value in given.items() if value is not None}, len(finetuned))
    if out.exists() or out.is_symlink():
        raise FileExistsError(f"the output {out} exists already: remove it or name another")
    with ExitStack() as files:
        start = files.enter_context(_open(Path(base)))
        one_file = out.suffix == ".safetensors"
        if one_file and start.path.is_dir():
            raise ValueError(f"the base {base} is a folder, so the output must be one, got {out}")
        models: list[_Model] = []
        for path in map(Path, finetuned):
            if is_adapter(path):
                shapes = {name: entry.shape for name, entry in start.entries.items()}
                models.append(_Lora(Adapter(path, shapes, ties(start))))
            else:
                models.append(_Full(start, files.enter_context(_open(path))))
        merge = _Merge(start, models, method, options)
        with _complete_or_nothing(out, one_file=one_file) as target:
            if start.path.is_dir():
                write_folder(target, start, merge.parts)
            else:
                write_file(target / "model.safetensors", start, list(start.entries), merge.parts)
    entries = start.entries.values()
    copied = len(entries) - len(merge.changed)
    return MergeReport(out, method, options, len(entries), sum(entry.numel for entry in entries), copied)


def _options(method: str, given: Mapping[str, float], models: int) -> dict[str, float]:
    if method not in MERGE_METHODS:
        raise ValueError(f"method must be one of {', '.join(MERGE_METHODS)}, got {method!r}")
    if wrong := [name for name in given if name not in MERGE_METHODS[method]]:
        fits = " and ".join(MERGE_METHODS[method])
        raise ValueError(f"{method} takes {fits}, not {' or '.join(wrong)}")
    least, most = {"wise-ft": (1, 1), "consensus": (2, math.inf)}.get(method, (1, math.inf))
    if models == 0:
        raise ValueError("there is no fine-tuned model to merge: name at least one after the base")
    if not least <= models <= most:
        count = "at least 2 fine-tuned models" if least > 1 else "exactly 1 fine-tuned model"
        raise ValueError(f"{method} needs {count}, got {models}")
    if infinite := [name for name, value in given.items() if not math.isfinite(value)]:
        raise ValueError(f"{infinite[0]} must be finite, got {given[infinite[0]]}")
    options = {"scale": 1.0, "density": 0.2, "alpha": 0.5} | dict(given)
    if method == "lines":
        options["alpha"] = given.get("alpha", 0.3 if models == 1 else 1.0 / models)
        options["beta"] = given.get("beta", 1 - options["alpha"])
    check_alpha(options["alpha"])
    if not 0 < options["density"] <= 1:
        raise ValueError(f"density must be above 0 and at most 1, got {options['density']}")
    return {name: float(options[name]) for name in MERGE_METHODS[method]}


class _Full:
    """A fine-tuned checkpoint with the tensors of the base."""

    def __init__(self, base: Checkpoint, checkpoint: Checkpoint) -> None:
        self.path = checkpoint.path
        self._stored = matched_names(base, checkpoint)
        self._checkpoint, self._reader = checkpoint, Reader(checkpoint)
        self.wide = {name: _wide_type(checkpoint.entries[place].dtype) for name, place in self._stored.items()}

    def changes(self, name: str) -> bool:
        return True

    def tied(self, one: str, other: str) -> bool:
        return same_values(self._checkpoint, self._stored[one], self._stored[other])

    def piece_size(self, name: str) -> int | None:
        return None

    def end(self, name: str, first: int, count: int) -> Tensor:
        return wide(self._reader.read(self._stored[name], first, count))

    def delta(self, name: str, first: int, count: int, start: Tensor) -> Tensor:
        end = self.end(name, first, count)
        return end.sub_(start) if end.dtype == start.dtype else end - start


class _Lora:
    """A LoRA adapter of the base."""

    def __init__(self, adapter: Adapter) -> None:
        self.path, self._adapter = adapter.path, adapter

    def changes(self, name: str) -> bool:
        return name in self._adapter.names

    def tied(self, one: str, other: str) -> bool:
        return True  # it changes both alike, or is refused

    def piece_size(self, name: str) -> int | None:
        return self._adapter.piece_size(name)

    def delta(self, name: str, first: int, count: int, start: Tensor) -> Tensor:
        return self._adapter.delta(name, first, count, start)


_Model = _Full | _Lora


class _Merge:
    """The pieces of the merged tensors, in the base's data types."""

    def __init__(self, base: Checkpoint, models: Sequence[_Model], method: str, options: Mapping[str, float]) -> None:
        self.base, self.models = base, models
        self._reader = Reader(base)
        self.changed = [
            name
            for name, entry in base.entries.items()
            if entry.dtype.is_floating_point and any(model.changes(name) for model in models)
        ]
        self._is_changed = frozenset(self.changed)
        factor: Callable[[str], float]
        if method == "wise-ft":
            factor = lambda name: options["alpha"]  # noqa: E731
        elif method == "lines":
            index = BlockIndex(base.entries, find_blocks(base.entries))
            factor = layer_ramp(index, options["alpha"], options["beta"]).__getitem__
        else:
            factor = lambda name: options["scale"]  # noqa: E731
        self._factor = factor
        self._entries: Callable[[Sequence[Tensor]], Tensor] = sum_entries
        if method == "consensus":
            self._entries = consensus_entries
        elif method == "ties":
            thresholds = self._thresholds(options["density"])
            self._entries = lambda parts: ties_entries(parts, thresholds)
        # a single full model moves along the line between the two states, as interpolate does
        self._line = models[0] if method in ("wise-ft", "lines") and len(models) == 1 else None

    def parts(self, name: str) -> Iterator[Tensor]:
        """Yields the flat pieces of a merged tensor."""
        dtype = self.base.entries[name].dtype
        for first, count in self._pieces(name):
            stored = self._reader.read(name, first, count)
            if name not in self._is_changed:
                if dtype.is_floating_point and not _is_finite(stored) and stored.float().isnan().any():
                    raise ValueError(f"{self.base.path} holds NaN in {name!r}")
                yield stored
                continue
            result = self._merged(name, first, count, wide(stored)).to(dtype)
            if not _is_finite(result):
                result = self._same_everywhere(name, first, count)
            yield result

    def _merged(self, name: str, first: int, count: int, start: Tensor) -> Tensor:
        if isinstance(self._line, _Full):
            end = self._line.end(name, first, count)
            dtype = torch.promote_types(start.dtype, end.dtype)
            return torch.lerp(start.to(dtype), end.to(dtype), self._factor(name))
        change = self._entries(self._deltas(name, first, count, start))
        return torch.add(start, change, alpha=self._factor(name))

    def _deltas(self, name: str, first: int, count: int, start: Tensor) -> list[Tensor]:
        deltas = [model.delta(name, first, count, start) for model in self.models]
        if not all(_is_finite(delta) for delta in deltas):
            self._same_everywhere(name, first, count)
            return [torch.zeros_like(delta) for delta in deltas]
        return deltas

    def _same_everywhere(self, name: str, first: int, count: int) -> Tensor:
        """Returns the base's piece if all models hold the same infinite values (a mask), or says which is broken."""
        start = self._reader.read(name, first, count)
        ends = [
            (model.path, model.end(name, first, count).clone()) for model in self.models if isinstance(model, _Full)
        ]
        for path, part in [(self.base.path, start), *ends]:
            if part.float().isnan().any():
                raise ValueError(f"{path} holds NaN in {name!r}")
        if all(torch.equal(wide(part), wide(start)) for _, part in ends) and not _is_finite(start):
            return start
        for path, part in [*ends, (self.base.path, start)]:
            if not _is_finite(part):
                raise ValueError(f"{path} holds infinite values in {name!r}")
        raise ValueError(f"the merged {name!r} is too large for {start.dtype}")

    def _pieces(self, name: str, size: int = _PIECE) -> Iterable[tuple[int, int]]:
        size = next(filter(None, (model.piece_size(name) for model in self.models)), size)
        return pieces(self.base.entries[name].numel, size)

    def _thresholds(self, density: float) -> list[Tensor]:
        """Returns the smallest magnitude that each task keeps, over all layers."""
        twice = {
            alias
            for alias, name in stored_twice(self.base).items()
            if all(model.tied(alias, name) for model in self.models)
        }
        counted = [name for name in self.changed if name not in twice]
        entries = [self.base.entries[name] for name in counted]
        kept = math.ceil(density * sum(entry.numel for entry in entries))
        stored = [entry.dtype for entry in entries]
        for model in self.models:
            if isinstance(model, _Full):
                stored += [model.wide[name] for name in counted]
        dtype = torch.float64 if torch.float64 in stored else torch.float32
        selections = [Selection(kept, dtype) for _ in self.models]
        while not selections[0].done:
            for name in counted:
                for first, count in self._pieces(name, CHUNK):  # a histogram of 65536 bins for each
                    start = wide(self._reader.read(name, first, count))
                    for selection, delta in zip(selections, self._deltas(name, first, count, start), strict=True):
                        selection.add(delta)
            for selection in selections:
                selection.narrow()
        return [selection.value() for selection in selections]


class Selection:
    """The k-th largest magnitude of a stream that can be read again, exactly and in fixed memory.

    The bit patterns of magnitudes are ordered like the magnitudes: each pass over the stream counts 16 bits of them,
    from the top, so that float32 takes two passes and float64 four.

    Args:
        rank: k, counted from 1.
        dtype: torch.float32 or torch.float64; what is added is converted to it.

    Example:
        >>> selection = Selection(2, torch.float32)
        >>> while not selection.done:
        ...     for part in ([3.0, -1.0], [0.5, -2.0]):
        ...         selection.add(torch.tensor(part))
        ...     selection.narrow()
        >>> selection.value()
        tensor(2.)
    """

    def __init__(self, rank: int, dtype: torch.dtype) -> None:
        self._rank, self._dtype = rank, dtype
        self._pattern_type = {torch.float32: torch.int32, torch.float64: torch.int64}[dtype]
        self._known = 8 * dtype.itemsize - 1  # bits below the known ones; the sign is none of them
        self._prefix = 0
        self._clear()

    @property
    def done(self) -> bool:
        """Whether all bits are known."""
        return self._known == 0

    def add(self, part: Tensor) -> None:
        """Counts the entries of one part of the stream."""
        patterns = part.to(self._dtype).abs().view(self._pattern_type)
        if self._prefix or self._known < 8 * self._dtype.itemsize - 1:
            patterns = patterns[patterns >> self._known == self._prefix] & ((1 << self._known) - 1)
        self._counts += torch.bincount(patterns >> self._shift, minlength=len(self._counts))

    def narrow(self) -> None:
        """Ends a pass: fixes the next bits."""
        from_top = self._counts.flip(0).cumsum(0)
        place = int(torch.searchsorted(from_top, self._rank))
        if place == len(from_top):
            raise ValueError(f"the stream holds {int(from_top[-1])} entries in reach, fewer than the rank {self._rank}")
        self._rank -= int(from_top[place - 1]) if place else 0
        digit = len(self._counts) - 1 - place
        self._prefix = (self._prefix << (self._known - self._shift)) | digit
        self._known = self._shift
        self._clear()

    def value(self) -> Tensor:
        """Returns the k-th largest magnitude, a scalar."""
        return torch.tensor(self._prefix, dtype=self._pattern_type).view(self._dtype)

    def _clear(self) -> None:
        self._shift = max(0, self._known - 16)
        self._counts = torch.zeros(1 << (self._known - self._shift), dtype=torch.int64)


def _open(path: Path) -> Checkpoint:
    if path.is_file() and path.suffix != ".safetensors":
        raise ValueError(f"{path} is not a .safetensors file; pickled checkpoints are not read: a pickle can run code")
    try:
        checkpoint = open_checkpoint(path)
    except FileNotFoundError:
        pickled = sorted(path.glob("*.bin")) + sorted(path.glob("*.pt")) if path.is_dir() else []
        if pickled:
            raise ValueError(
                f"{path} holds {pickled[0].name}, a pickle, where safetensors is expected: a pickle can run code"
            ) from None
        raise
    try:
        check_not_quantised(checkpoint)
    except ValueError:
        checkpoint.close()
        raise
    return checkpoint


def _is_finite(part: Tensor) -> bool:
    part = wide(part) if part.dtype.itemsize == 1 else part  # torch adds up no float8
    return bool(part.sum(dtype=_wide_type(part.dtype)).isfinite()) or bool(wide(part).isfinite().all())


def _wide_type(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


@contextmanager
def _complete_or_nothing(out: Path, *, one_file: bool) -> Iterator[Path]:
    """Yields a hidden folder beside ``out`` that becomes it at the end, or is removed.

    A lock on the folder tells a merge that is running from one that was killed, whose folder the next one removes.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{out.name}.merging-"
    for left in out.parent.glob(f"{prefix}*"):
        with ExitStack() as stack:
            if _locked(left, stack):
                shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=out.parent))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        _locked(folder, stack)
        yield folder
        if out.exists():
            raise FileExistsError(f"the output {out} appeared during the merge")
        if one_file:
            (folder / "model.safetensors").rename(out)
        else:
            folder.chmod(0o755)
            folder.rename(out)


def _locked(folder: Path, stack: ExitStack) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows: what a killed merge left stays
        return False
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        stack.callback(os.close, descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
