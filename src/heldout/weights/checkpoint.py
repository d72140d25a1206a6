"""Core: Checkpoints on disk: read safely and piece by piece, written whole or not at all.

safetensors files are read with plain reads instead of a memory map, so that a merge of checkpoints larger than
memory holds a few MB at any time. Pickled objects are never loaded.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import torch
from torch import Tensor, nn

from heldout.errors import checked
from heldout.weights.header import Entry, header_bytes, read_header
from heldout.weights.task_vector import State, aliases, state_of

CHUNK = 1 << 18  # elements per step: two float32 buffers of this size fit a second-level cache
_INDEX = "model.safetensors.index.json"
_SINGLE_FILES = ("model.safetensors", "adapter_model.safetensors")
_COMPANIONS = (".json", ".txt", ".model", ".jinja", ".tiktoken", ".py")  # what a transformers folder loads besides


class Checkpoint:
    """The tensors of an open checkpoint, read on demand. Use ``open_checkpoint`` to get one.

    Attributes:
        path: the file or folder.
        entries: dtype and shape of every tensor by name, in the order in which they lie on disk.
        files: names of the files that hold them.
        aliases: further names of tied weights -> the name that is stored.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_checkpoint({"w": torch.arange(6.0).view(2, 3)}, f"{folder}/model.safetensors")
        ...     with open_checkpoint(folder) as checkpoint:
        ...         shape, last = checkpoint.entries["w"].shape, torch.empty(2)
        ...         checkpoint.read_into("w", last, first=4)
        >>> shape, last
        ((2, 3), tensor([4., 5.]))
    """

    @checked
    def __init__(self, path: Path, files: Sequence[Path]) -> None:
        self.path, self.files = path, [file.name for file in files]
        self.entries: dict[str, Entry] = {}
        self.aliases: dict[str, str] = {}
        self._handles: list[IO[bytes]] = []
        try:
            for number, file in enumerate(files):
                found = self._open_safetensors(file, number) if _is_safetensors(file) else _open_torch(file, number)
                if twice := found.keys() & self.entries.keys():
                    raise ValueError(f"{path} holds {min(twice)!r} twice")
                self.entries.update(found)
        except BaseException:
            self.close()
            raise
        if not self.entries:
            raise ValueError(f"{path} holds no tensors")
        for alias, name in self.aliases.items():
            if alias in self.entries:
                self.close()
                raise ValueError(
                    f"{path} stores {alias!r}, which its metadata calls another name of {name!r}: take the note out, "
                    "or store it once"
                )

    def _open_safetensors(self, file: Path, number: int) -> dict[str, Entry]:
        handle = file.open("rb", buffering=0)
        self._handles.append(handle)
        entries, notes = read_header(file, handle, number)
        self.aliases.update({alias: name for alias, name in notes.items() if name in entries})
        return entries

    @checked
    def read_into(self, name: str, out: Tensor, first: int = 0) -> None:
        """Fills the flat tensor ``out``, of the entry's dtype, with its elements from position ``first`` on."""
        entry = self.entries[name]
        if entry.tensor is not None:
            out.copy_(entry.tensor.reshape(-1)[first : first + len(out)])
            return
        handle, view = self._handles[entry.file], _bytes(out)
        handle.seek(entry.start + first * entry.dtype.itemsize)
        while len(view):
            count = handle.readinto(view)  # type: ignore[attr-defined]
            if not count:
                raise ValueError(f"{self.path} ended early while reading {name!r}")
            view = view[count:]

    @checked
    def tensor(self, name: str) -> Tensor:
        """Returns one tensor, in memory of its own."""
        entry = self.entries[name]
        out = torch.empty(entry.numel, dtype=entry.dtype)
        self.read_into(name, out)
        return out.view(entry.shape)

    def close(self) -> None:
        """Closes the files."""
        for handle in self._handles:
            handle.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@checked
def open_checkpoint(path: str | Path) -> Checkpoint:
    """Opens a checkpoint for reading: safetensors, a transformers folder, or a ``torch.save`` file of tensors.

    Args:
        path: a ``.safetensors`` file; a folder with ``model.safetensors``, its shards and
            ``model.safetensors.index.json``, or ``adapter_model.safetensors``; or a ``.pt``, ``.pth`` or ``.bin``
            file, which is loaded with ``weights_only=True``.

    Raises:
        FileNotFoundError: if there is no such file, or no safetensors in the folder.
        ValueError: if a file is damaged (whatever safetensors refuses) or holds pickled objects;
            if an index does not fit its shards; or if a file of a folder is a link that leads out of it. The message
            names the file and the tensor.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"w": torch.ones(2)}, f"{folder}/model.pt")
        ...     with open_checkpoint(f"{folder}/model.pt") as checkpoint:
        ...         print(checkpoint.tensor("w"))
        tensor([1., 1.])
    """
    path = Path(path)
    if path.is_file():
        return Checkpoint(path, [path])
    if not path.is_dir():
        raise FileNotFoundError(f"no checkpoint at {path}")
    if (path / _INDEX).is_file():
        return _open_shards(path)
    for name in _SINGLE_FILES:
        if (path / name).is_file():
            return Checkpoint(path, [inside(path, path / name)])
    raise FileNotFoundError(f"{path} holds neither {_INDEX} nor {' nor '.join(_SINGLE_FILES)}")


@checked
def save_checkpoint(model: nn.Module | State, path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Writes the tensors of a model to one safetensors file, whole or not at all.

    Tied weights are written once and noted in the metadata, in the way ``safetensors.torch.load_model`` and
    ``load_checkpoint`` understand.

    Args:
        model: a module or state dict.
        path: the file, which is replaced if it exists.
        metadata: further entries of the file's header.

    Raises:
        FileNotFoundError: if the folder of the file is not there.

    Example:
        >>> weight = torch.ones(4, 2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_checkpoint({"embed.weight": weight, "head.weight": weight}, f"{folder}/tied.safetensors")
        ...     with open_checkpoint(f"{folder}/tied.safetensors") as checkpoint:
        ...         print(list(checkpoint.entries), checkpoint.aliases)
        ['embed.weight'] {'head.weight': 'embed.weight'}
    """
    state = state_of(model)
    names = aliases(state)
    stored = {name: value for name, value in state.items() if names[name] == name}
    stored = dict(sorted(stored.items(), key=lambda item: -item[1].element_size()))  # keeps every tensor aligned
    notes = {"format": "pt"} | {alias: name for alias, name in names.items() if alias != name} | dict(metadata or {})
    with _replacing(Path(path)) as file:
        file.write(header_bytes({name: (value.dtype, tuple(value.shape)) for name, value in stored.items()}, notes))
        for value in stored.values():
            file.write(_bytes(value.detach().cpu().contiguous().reshape(-1)))


class Reader:
    """Reads flat pieces of a checkpoint's tensors into one buffer per data type, which the next read overwrites."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self._buffers: dict[torch.dtype, Tensor] = {}

    def read(self, name: str, first: int, count: int) -> Tensor:
        """Returns ``count`` elements of a tensor from position ``first`` on, in the data type in which it is stored."""
        dtype = self.checkpoint.entries[name].dtype
        if dtype not in self._buffers or len(self._buffers[dtype]) < count:
            self._buffers[dtype] = torch.empty(max(count, CHUNK), dtype=dtype)
        part = self._buffers[dtype][:count]
        self.checkpoint.read_into(name, part, first)
        return part


def pieces(numel: int, size: int | None = None) -> Iterator[tuple[int, int]]:
    """Returns the first position and the length of each piece of a flat tensor."""
    size = size or CHUNK
    return ((first, min(size, numel - first)) for first in range(0, numel, size))


def write_folder(folder: Path, layout: Checkpoint, parts: Callable[[str], Iterable[Tensor]]) -> None:
    """Writes the files of a checkpoint folder into ``folder``, and its configuration and tokenizer files beside them.

    Args:
        folder: an existing folder.
        layout: the checkpoint whose names, shapes, data types and shards are used.
        parts: from a name to the flat pieces of that tensor, in order and in the layout's data type.
    """
    beside = companions(layout.path)
    index = layout.path / _INDEX
    if index.is_file():
        beside.append(inside(layout.path, index))
    for number, file in enumerate(layout.files):
        write_file(folder / file, layout, [n for n, e in layout.entries.items() if e.file == number], parts)
    for companion in beside:
        shutil.copyfile(companion, folder / companion.name)


def write_file(out: Path, layout: Checkpoint, names: Sequence[str], parts: Callable[[str], Iterable[Tensor]]) -> None:
    """Writes some tensors of a layout to one file, whole or not at all. Arguments as in ``write_folder``."""
    notes = {"format": "pt"} | {alias: name for alias, name in layout.aliases.items() if name in names}
    with _replacing(out) as file:
        file.write(
            header_bytes({name: (layout.entries[name].dtype, layout.entries[name].shape) for name in names}, notes)
        )
        for name in names:
            for part in parts(name):
                file.write(_bytes(part))


def _is_safetensors(file: Path) -> bool:
    if file.suffix not in (".safetensors", ".pt", ".pth", ".bin"):
        raise ValueError(f"{file} is not a checkpoint: expected .safetensors, .pt, .pth or .bin")
    return file.suffix == ".safetensors"


def inside(folder: Path, file: Path) -> Path:
    """Returns a file of a folder, and raises ValueError where it is a link that leads out of the folder.

    The cache of the Hugging Face hub, whose snapshots link to the blobs beside them, counts as one folder.
    """
    target, home = file.resolve(), folder.resolve()
    homes = [home] + ([home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [])
    if not any(target.is_relative_to(each) for each in homes):
        raise ValueError(f"{file} is a link that leads out of its folder, and is not followed: put a copy in its place")
    return file


def companions(folder: Path) -> list[Path]:
    """Returns the configuration and tokenizer files of a transformers folder, without indices of its weights.

    Raises:
        ValueError: if one of them is a link that leads out of the folder.
    """
    found = [file for file in sorted(folder.iterdir()) if file.suffix in _COMPANIONS and file.is_file()]
    return [inside(folder, file) for file in found if not file.name.endswith(".index.json")]


def _open_shards(folder: Path) -> Checkpoint:
    index = folder / _INDEX
    try:
        weight_map = json.loads(index.read_text("utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
        local = all(isinstance(name, str) and Path(name).name == name for name in names)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{index} is not an index of shards: {error!r}") from None
    if not local:
        raise ValueError(f"{index} names shards outside its folder")
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise FileNotFoundError(f"{folder} lacks the shard {missing[0]}")
    single = _SINGLE_FILES[0]
    if single not in names and (folder / single).is_file():
        raise ValueError(
            f"{folder} holds {single} and {_INDEX}, which does not name it: transformers would load the one, not the "
            "shards of the other; remove what is stale"
        )
    checkpoint = Checkpoint(folder, [inside(folder, folder / name) for name in names])
    stored = {name: checkpoint.files[entry.file] for name, entry in checkpoint.entries.items()}
    stored |= {alias: weight_map[alias] for alias in checkpoint.aliases.keys() & weight_map.keys()}
    if lost := [name for name, file in weight_map.items() if stored.get(name) != file]:
        checkpoint.close()
        raise ValueError(f"{index} promises {lost[0]!r} in {weight_map[lost[0]]}, which does not hold it")
    return checkpoint


def _open_torch(file: Path, number: int) -> dict[str, Entry]:
    with file.open("rb") as handle:
        zipped = handle.read(2) == b"PK"  # the older format cannot be mapped into memory
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError:
        raise ValueError(
            f"{file} holds pickled objects besides tensors; it is refused because a pickle can run code"
        ) from None
    except (RuntimeError, EOFError, OSError) as error:
        said = next(iter(str(error).splitlines()), "it is empty or damaged")
        raise ValueError(f"{file} cannot be read: {said}") from None
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise ValueError(f"{file} holds no state dict of tensors")
    for name, value in state.items():
        if value.layout != torch.strided or value.is_quantized or value.is_nested or value.device.type != "cpu":
            kind = "a meta tensor" if value.is_meta else "sparse, quantised or nested"
            raise ValueError(f"{file} holds {name!r}, which is {kind}: only ordinary tensors are read")
    return {
        name: Entry(value.dtype, tuple(value.shape), number, tensor=value.detach()) for name, value in state.items()
    }


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _bytes(flat: Tensor) -> memoryview:
    return memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]
