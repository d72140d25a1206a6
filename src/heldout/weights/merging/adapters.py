"""peft LoRA adapters on disk as changes of a base model's weights, so that they merge like fine-tuned models."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from heldout.errors import checked
from heldout.weights.checkpoint import CHUNK, open_checkpoint, pieces
from heldout.weights.task_vector import State, TaskVector, aliases, state_of, wide

_CONFIG = "adapter_config.json"
_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(.+)\.lora_(embedding_)?([AB])(?:\.weight)?")
# what adapter_config.json may hold for the change to be the product of the two matrices; whatever else is set there,
# today or by a later peft, is refused
_READ = {"peft_type", "lora_alpha", "alpha_pattern", "use_rslora", "fan_in_fan_out", "bias", "modules_to_save"}
# fmt: off
_NO_MATTER = {  # how it was trained, and where: the tensors of the file say that
    "r", "rank_pattern", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "lora_dropout",
    "inference_mode", "base_model_name_or_path", "revision", "task_type", "auto_mapping", "peft_version", "eva_config",
    "ensure_weight_tying",
}
# fmt: on
_DEFAULTS: dict[str, Any] = {"megatron_core": "megatron.core", "qalora_group_size": 16}
_STARTS = (True, False, "gaussian", "eva", "orthogonal")  # that leave the base weights as they are
_WHY = {
    "use_dora": "its change depends on the weights (DoRA)",
    "alora_invocation_tokens": "it acts on some tokens only (activated LoRA)",
    "trainable_token_indices": "it replaces rows of the embedding",
    "target_parameters": "it changes parameters that are no layers, such as fused experts",
    "layer_replication": "it repeats layers",
    "lora_bias": "its matrices have biases",
}


@dataclass(frozen=True)
class LowRank:
    """The change ``scaling * left @ right`` of a weight: ``(rows, r)`` times ``(r, columns)``."""

    left: Tensor
    right: Tensor
    scaling: float

    def equals(self, other: LowRank) -> bool:
        """Whether another stands for the same change, up to rounding."""
        return self.left.shape == other.left.shape and bool(
            torch.allclose(self.left @ self.right * self.scaling, other.left @ other.right * other.scaling)
        )

    def piece(self, first: int, count: int) -> Tensor:
        """Returns ``count`` elements from position ``first`` on, flat; both are multiples of a row's length."""
        columns = self.right.shape[1]
        rows = self.left[first // columns : (first + count) // columns]
        return (rows @ self.right).mul_(self.scaling).flatten()


def row_aligned(columns: int) -> int:
    """Returns the size of a piece that holds whole rows, and at least one."""
    return max(1, CHUNK // columns) * columns


class Adapter:
    """A LoRA adapter folder of peft, seen from the base model that it belongs to.

    Attributes:
        path: the folder.
        low_rank: the factored change by name in the base model.
        saved: weights that the adapter holds whole (``modules_to_save``, biases), by name in the base model.

    Args:
        path: a folder with adapter_config.json and adapter_model.safetensors.
        shapes: shape of every tensor of the base model, by name.
        tied: further names of weights that the base ties -> the name in ``shapes``; both may be in it.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if the adapter is not a plain LoRA, does not fit the base model, or changes one of several modules
            that share a weight.
    """

    def __init__(
        self, path: str | Path, shapes: Mapping[str, Sequence[int]], tied: Mapping[str, str] | None = None
    ) -> None:
        self.path, self._tied = Path(path), dict(tied or {})
        self.low_rank: dict[str, LowRank] = {}
        self.saved: dict[str, Tensor] = {}
        config = _config(self.path)
        if not (self.path / "adapter_model.safetensors").is_file():
            raise FileNotFoundError(
                f"{path} holds no adapter_model.safetensors (pickled adapters are not read: a pickle can run code)"
            )
        self._ensured = bool(config.get("ensure_weight_tying"))
        whole = {str(module) for module in config.get("modules_to_save") or ()}
        with open_checkpoint(self.path / "adapter_model.safetensors") as file:
            tensors = {name: file.tensor(name) for name in file.entries}
        factors: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            if "lora_magnitude" in key or "lora_B.bias" in key:
                raise ValueError(f"{path} is not a plain LoRA adapter ({key}), and cannot be merged as a change")
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise ValueError(f"{path} holds NaN or infinite values in {key!r}")
            key = key.removeprefix(_PREFIX).replace(".base_layer.", ".")
            if match := _FACTOR.fullmatch(key):
                factors.setdefault(match[1], {})[f"{match[2] or ''}{match[3]}"] = wide(tensor)
            elif "lora_" in key:
                raise ValueError(f"{path} holds {key!r}, which is no LoRA matrix")
            else:
                name = self._place(shapes, key, alone=key.rpartition(".")[0].rpartition(".")[2] in whole)
                if tuple(tensor.shape) != tuple(shapes[name]):
                    raise ValueError(
                        f"{path} holds {name} of shape {tuple(tensor.shape)}, the base {tuple(shapes[name])}"
                    )
                if name in self.saved and not torch.equal(self.saved[name], tensor):
                    raise ValueError(f"{path} holds two different tensors for {name}, which the base ties")
                self.saved[name] = tensor
        if config.get("fan_in_fan_out") and not _stored_turned(factors, shapes, self.path):
            config = {**config, "fan_in_fan_out": False}
        for module, pair in factors.items():
            name = self._place(shapes, f"{module}.weight", alone=True)
            found = _low_rank(self.path, module, pair, config, tuple(shapes[name]))
            if name in self.low_rank and not (self._ensured and self.low_rank[name].equals(found)):
                raise ValueError(f"{path} changes {name} twice")
            self.low_rank[name] = found
        for alias, name in self._tied.items():  # stored twice, or changed as one
            if alias in shapes and name in self.low_rank:
                self.low_rank.setdefault(alias, self.low_rank[name])
            if alias in shapes and name in self.saved:
                self.saved.setdefault(alias, self.saved[name])
        if not self.low_rank and not self.saved:
            raise ValueError(f"{path} holds no tensors")

    def _place(self, shapes: Collection[str], key: str, *, alone: bool) -> str:
        """Returns the base's name of a weight; raises where changing it would change a module that shares it."""
        names = {*shapes, *self._tied}
        name = _name_in(names, key, self.path)
        target = self._tied.get(name, name)
        others = ({alias for alias, to in self._tied.items() if to == target} | {target}) - {name}
        if alone and others and not self._ensured:
            raise ValueError(
                f"{self.path} changes {name}, which the base ties to {', '.join(sorted(others))}: merged, it would "
                "change that as well, which the adapter alone does not; train it with ensure_weight_tying=True, or "
                "save the base with tie_word_embeddings false and both weights"
            )
        return target

    def delta(self, name: str, first: int, count: int, start: Tensor) -> Tensor:
        """Returns the change of ``count`` elements of a base weight from position ``first`` on, flat.

        Args:
            name: the weight.
            first: a multiple of ``piece_size(name)``.
            count: elements; ``piece_size(name)``, or fewer at the end.
            start: these elements in the base, in at least float32.
        """
        change = torch.zeros_like(start)
        if name in self.saved:  # an embedding that peft keeps beside its LoRA matrices, or a module trained whole
            change = wide(self.saved[name].flatten()[first : first + count]) - start
        if name in self.low_rank:
            factored = self.low_rank[name].piece(first, count)
            change = change + factored if name in self.saved else factored
        return change

    def piece_size(self, name: str) -> int | None:
        """Returns the number of elements by which a weight must be read to keep whole rows together, None for any."""
        return row_aligned(self.low_rank[name].right.shape[1]) if name in self.low_rank else None

    @property
    def names(self) -> Collection[str]:
        """The names that the adapter changes."""
        return self.low_rank.keys() | self.saved.keys()


def is_adapter(path: str | Path) -> bool:
    """Tells whether a folder is a peft adapter."""
    return (Path(path) / _CONFIG).is_file()


@checked
def adapter_task_vectors(base: nn.Module | State, adapters: Sequence[str | Path]) -> list[TaskVector]:
    """Returns the task vector of each LoRA adapter: its change of the base model's weights.

    All have the same names, those that any of the adapters changes, with zeros where one does not.

    Args:
        base: the base model or its state dict; names may differ from the adapter's by a prefix.
        adapters: peft folders (adapter_config.json and adapter_model.safetensors).

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if an adapter is no plain LoRA (other peft types, fields of its configuration that are not known to
            be harmless, initialisations that change the base), changes one of several modules that share a weight
            without ``ensure_weight_tying``, or does not fit the base.

    Example:
        >>> import tempfile
        >>> from heldout.weights import save_checkpoint
        >>> matrices = {"lora_A": torch.tensor([[1.0, 2.0]]), "lora_B": torch.tensor([[1.0], [3.0]])}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "adapter_config.json").write_text('{"peft_type": "LORA", "r": 1, "lora_alpha": 2}')
        ...     tensors = {f"base_model.model.up.{name}.weight": value for name, value in matrices.items()}
        ...     save_checkpoint(tensors, f"{folder}/adapter_model.safetensors")
        ...     vectors = adapter_task_vectors({"up.weight": torch.zeros(2, 2)}, [folder])
        >>> vectors[0].delta["up.weight"]
        tensor([[ 2.,  4.],
                [ 6., 12.]])
    """
    state = state_of(base)
    first = aliases(state)
    tied = {alias: name for alias, name in first.items() if alias != name}
    shapes = {name: value.shape for name, value in state.items() if name not in tied}
    found = [Adapter(path, shapes, tied) for path in adapters]
    names = [name for name in state if any(name in adapter.names for adapter in found)]

    def change(adapter: Adapter, name: str) -> Tensor:
        start = wide(state[name]).detach()
        flat, size = start.flatten(), adapter.piece_size(name)
        parts = [
            adapter.delta(name, first, count, flat[first : first + count]) for first, count in pieces(len(flat), size)
        ]
        return torch.cat(parts).view(start.shape)

    return [TaskVector.from_delta({name: change(adapter, name) for name in names}) for adapter in found]


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads((path / _CONFIG).read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path / _CONFIG} is not JSON: {error}") from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise ValueError(f"{path} is not a LoRA adapter (peft_type {kind!r}): only LoRA is a change that can be merged")
    for field, value in config.items():
        if field in _READ or field in _NO_MATTER or value in (None, False, {}, [], "", _DEFAULTS.get(field)):
            continue
        if field == "init_lora_weights":
            if any(value is start or (isinstance(start, str) and value == start) for start in _STARTS):
                continue
            raise ValueError(
                f"{path} was initialised by {value!r} (init_lora_weights), which is not known to leave the base as it "
                "is: convert it to plain LoRA first (save_pretrained with path_initial_model_for_weight_conversion)"
            )
        why = _WHY.get(field, "which is not known here to be a change of weights that can be merged")
        raise ValueError(
            f"{path} is not a plain LoRA adapter: its adapter_config.json sets {field} to {value!r}: {why}; merge it "
            "with peft first, and give the merged model"
        )
    alphas = [config.setdefault("lora_alpha", 8), *(config.get("alpha_pattern") or {}).values()]
    if not all(isinstance(alpha, int | float) and math.isfinite(alpha) for alpha in alphas):
        raise ValueError(f"{path / _CONFIG} has a lora_alpha or an alpha_pattern that is no number")
    return config


def _stored_turned(
    factors: Mapping[str, Mapping[str, Tensor]], shapes: Mapping[str, Sequence[int]], path: Path
) -> bool:
    """Whether ``fan_in_fan_out`` can be true, as weights that are not square tell: peft ignores it for ``nn.Linear``.

    Where all are square, or some are turned (an output head never is), the configuration is believed.
    """
    straight = turned = False
    for module, pair in factors.items():
        if "A" in pair and "B" in pair:
            rows, columns = pair["B"].flatten(1).shape[0], pair["A"].flatten(1).shape[1]
            shape = tuple(shapes[_name_in(shapes, f"{module}.weight", path)])
            straight |= rows != columns and shape == (rows, columns)
            turned |= rows != columns and shape == (columns, rows)
    return turned or not straight


def _low_rank(
    path: Path, module: str, pair: Mapping[str, Tensor], config: Mapping[str, Any], shape: tuple[int, ...]
) -> LowRank:
    embedding = "embedding_A" in pair
    try:
        a, b = (pair[f"{'embedding_' if embedding else ''}{part}"].flatten(1) for part in "AB")
    except KeyError:
        raise ValueError(f"{path} holds only one of the two LoRA matrices of {module}") from None
    if a.shape[0] != b.shape[1]:
        raise ValueError(f"{path}: the LoRA matrices of {module} do not fit, {tuple(a.shape)} and {tuple(b.shape)}")
    wanted = (shape[0], math.prod(shape[1:]))
    straight = (b.shape[0], a.shape[1])
    if straight == wanted and not (embedding or (config.get("fan_in_fan_out") and len(shape) == 2)):
        left, right = b, a
    elif straight == wanted[::-1] and len(shape) == 2:
        left, right = a.T.contiguous(), b.T.contiguous()
    elif straight == wanted:
        left, right = b, a
    else:
        raise ValueError(f"{path} changes {module} of shape {straight}, the base has {shape}")
    patterns = config.get("alpha_pattern") or {}
    alpha = next(
        (value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), config["lora_alpha"]
    )
    rank = a.shape[0]
    return LowRank(left, right, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _name_in(names: Collection[str], name: str, path: Path) -> str:
    if name in names:
        return name
    close = [other for other in names if other.endswith(f".{name}") or name.endswith(f".{other}")]
    if len(close) != 1:
        raise ValueError(f"{path} changes {name}, which the base does not hold under this name (a tied weight?)")
    return close[0]
