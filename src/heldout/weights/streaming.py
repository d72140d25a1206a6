"""Core: Writing a checkpoint that is computed from others, piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from heldout.weights.checkpoint import Checkpoint, Reader, pieces, write_file, write_folder
from heldout.weights.quantised_files import check_not_quantised
from heldout.weights.task_vector import wide
from heldout.weights.tying import matched_names


def stream_checkpoint(
    sources: Sequence[Checkpoint],
    out: str | Path,
    combine: Callable[..., Tensor],
) -> None:
    """Writes a checkpoint computed entry by entry from others, laid out like the last of them.

    Integer and boolean tensors are copied from the last source. A folder of shards gives a folder of shards, with
    the configuration and tokenizer files beside it.

    Args:
        sources: checkpoints with the same tensors; weights that one ties may be stored twice, equal, by another.
        out: a file, or a folder where the last source is one and ``out`` does not end in ``.safetensors``.
        combine: ``(name, first, ..., last) -> result``: gets one piece of a tensor from each source, flat and in
            float32 (float64 where stored so), and may work in place on any of them.

    Raises:
        ValueError: if names or shapes differ, a source is quantised, ``out`` is one of the sources, or a result is not
            finite where the sources differ.
    """
    out, last = Path(out), sources[-1]
    for source in sources:
        check_not_quantised(source)
    places = [matched_names(last, source) for source in sources]
    for source in sources:
        if out.resolve() in (source.path.resolve(), *source.path.resolve().parents):
            raise ValueError(f"the output {out} is, or holds, the checkpoint {source.path} that is read")
    readers = [Reader(source) for source in sources]

    def read(name: str, first: int, count: int) -> list[Tensor]:
        return [reader.read(place[name], first, count) for reader, place in zip(readers, places, strict=True)]

    def merged(name: str) -> Iterator[Tensor]:
        entry = last.entries[name]
        for first, count in pieces(entry.numel):
            if not entry.dtype.is_floating_point:
                yield readers[-1].read(name, first, count)
                continue
            result = combine(name, *(wide(part) for part in read(name, first, count)))
            if not result.sum().isfinite() and not result.isfinite().all():
                parts = read(name, first, count)
                if not all(torch.equal(part, parts[-1]) for part in parts):
                    raise ValueError(f"the result is not finite in {name!r}")
                result = parts[-1]
            yield result.to(entry.dtype)

    if last.path.is_dir() and out.suffix != ".safetensors":
        out.mkdir(parents=True, exist_ok=True)
        write_folder(out, last, merged)
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_file(out, last, list(last.entries), merged)
