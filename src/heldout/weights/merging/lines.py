"""LiNeS: after fine-tuning or merging, scale each block's change of weights by a factor that grows with depth.

Shallow layers hold features that every task shares; scaling their change down regains the abilities that
fine-tuning lost, while the deep layers keep what it was for. Source: arXiv:2410.17146. Costs one multiply-add per
parameter: the time is that of reading two checkpoints and writing one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from heldout.data import batches, to_device
from heldout.errors import check_nonempty, checked
from heldout.method import Method, Run, Splits, forward
from heldout.weights.blocks import BlockIndex, block_index, find_blocks
from heldout.weights.checkpoint import open_checkpoint
from heldout.weights.merging.merge import consensus, task_arithmetic, ties
from heldout.weights.streaming import stream_checkpoint
from heldout.weights.task_vector import State, TaskVector, interpolate, state_of

Merge = Callable[[Sequence[TaskVector]], TaskVector]
_MERGES: dict[str, Merge] = {"sum": task_arithmetic, "ties": ties, "consensus": consensus}


@checked
def layer_ramp(
    index: Mapping[str, int | None], alpha: float, beta: float, outside: float | None = None
) -> dict[str, float]:
    """Returns the factor of every parameter: ``alpha + beta * l / (L - 1)`` in block l of L.

    Args:
        index: block number by parameter name, from ``block_index`` (where each stack has its own L); in a plain
            mapping L is the highest number + 1.
        alpha: factor of the first block.
        beta: what the last block gets on top of it.
        outside: factor of the parameters outside the blocks, ``alpha`` by default.

    Raises:
        ValueError: with fewer than 2 blocks, or a factor that is not finite.

    Source: arXiv:2410.17146, eq. 2.

    Example:
        >>> layer_ramp({"embed": None, "h.0": 0, "h.1": 1, "h.2": 2}, alpha=0.2, beta=0.8)
        {'embed': 0.2, 'h.0': 0.2, 'h.1': 0.6000000000000001, 'h.2': 1.0}
    """
    check_nonempty(index=index)
    around = alpha if outside is None else outside
    if not all(map(math.isfinite, (alpha, beta, around))):
        raise ValueError(f"the ramp needs finite factors, got alpha={alpha}, beta={beta}, outside={around}")
    numbers = [number for number in index.values() if number is not None]
    depth = dict.fromkeys(index, max(numbers, default=-1) + 1)
    if isinstance(index, BlockIndex):
        depth |= index.depths
    shallow = min((depth[name] for name, number in index.items() if number is not None), default=0)
    if shallow < 2:
        raise ValueError(f"a ramp over depth needs at least 2 blocks, got {shallow}")
    return {
        name: around if number is None else alpha + beta * (number / (depth[name] - 1))
        for name, number in index.items()
    }


@checked
def lines(
    pre: nn.Module | State,
    ft: nn.Module | State,
    alpha: float,
    beta: float | None = None,
    blocks: str | Sequence[str] | None = None,
    *,
    keep: Collection[str] = (),
) -> dict[str, Tensor]:
    """Returns the fine-tuned state dict with the change of each block scaled by its depth.

    Parameters outside the blocks (embeddings, final normalization, projections) get ``alpha``. The floating-point
    statistics of normalizations are scaled like parameters: after editing a BatchNorm network, call
    ``update_batch_norm``. Give modules rather than state dicts for networks without repeated blocks.

    Args:
        pre: the pretrained model or state dict.
        ft: the fine-tuned one.
        alpha: factor of the first block; 1 (with ``beta=0``) gives ``ft`` back, 0 ``pre``.
        beta: what the last block gets on top; ``1 - alpha`` by default, which leaves the last block as fine-tuned.
        blocks: as in ``block_index``; None finds them.
        keep: modules that stay as fine-tuned, such as a task head that ``pre`` does not have.

    Raises:
        ValueError: if names or shapes differ, no 2 blocks are found, a weight is not finite, or the states hold
            LoRA matrices (see ``lines_lora``).

    Source: arXiv:2410.17146, eq. 2. Deviation: the release matches ``".{l}."`` in names, this matches module paths;
    encoder and decoder get a ramp each.

    Example:
        >>> pre = {f"h.{i}.{part}.weight": torch.zeros(1, 1) for i in range(3) for part in ("attn", "mlp")}
        >>> ft = {name: torch.ones(1, 1) for name in pre}
        >>> [round(float(value), 2) for value in lines(pre, ft, alpha=0.2).values()]
        [0.2, 0.2, 0.6, 0.6, 1.0, 1.0]
    """
    start, end = state_of(pre), state_of(ft)
    if lora := next((name for name in end if "lora_" in name), None):
        raise ValueError(f"the states hold LoRA matrices ({lora}), whose product is the change: use lines_lora")
    own = {name for name in end if _is_under(name, keep)}
    changed = {name: value for name, value in end.items() if name not in own}
    start = {name: value for name, value in start.items() if not _is_under(name, keep)}
    model = next((model for model in (ft, pre) if isinstance(model, nn.Module)), changed)
    index = BlockIndex(changed, find_blocks(model, blocks))
    ramp = layer_ramp(index, alpha, _beta(alpha, beta))
    edited = interpolate(start, changed, ramp, allow_extrapolation=True)
    return {name: value.clone() if name in own else edited[name] for name, value in end.items()}


@checked
def lines_lora(
    adapter: nn.Module | State, alpha: float, beta: float | None = None, blocks: str | Sequence[str] | None = None
) -> dict[str, Tensor]:
    """Returns the state dict of a peft LoRA adapter with ``lora_B`` scaled by depth, and so the change of weights.

    Entries that are not LoRA matrices (modules saved whole) stay as they are.

    Args:
        adapter: a peft model, or the adapter's state dict.
        alpha: factor of the first block.
        beta: what the last block gets on top; ``1 - alpha`` by default.
        blocks: as in ``block_index``.

    Raises:
        ValueError: if there is no ``lora_B``, no 2 blocks are found, or the adapter is DoRA, whose change is not
            proportional to ``lora_B``.

    Example:
        >>> adapter = {f"layers.{i}.q.lora_{ab}.weight": torch.ones(1, 1) for i in range(2) for ab in "AB"}
        >>> lines_lora(adapter, alpha=0.5)["layers.0.q.lora_B.weight"]
        tensor([[0.5000]])
    """
    state = {name: value for name, value in state_of(adapter).items() if _is_adapter(adapter, name)}
    if dora := next((name for name in state if "lora_magnitude" in name), None):
        raise ValueError(f"the adapter is DoRA ({dora}): its change of weights cannot be scaled by scaling lora_B")
    scaled = [name for name in state if "lora_B" in name or "lora_embedding_B" in name]
    if not scaled:
        raise ValueError("the adapter holds no lora_B matrices")
    ramp = layer_ramp(block_index(state, blocks), alpha, _beta(alpha, beta))
    result = {name: value.clone() for name, value in state.items()}
    for name in scaled:
        result[name] = (state[name].float() * ramp[name]).to(state[name].dtype)
        if not result[name].isfinite().all():
            raise ValueError(f"the adapter is not finite in {name!r}")
    return result


@checked
def norm_alpha(vectors: Sequence[TaskVector], merged: TaskVector) -> float:
    """Returns ``|sum_t tau_t|_1 / |merged|_1 / T``: the ramp's start for a merge of T tasks (1/T for a plain sum).

    Raises:
        ValueError: if the merged vector is zero.

    Args:
        vectors: the T task vectors tau_t that were merged.
        merged: the result of the merge.

    Example:
        >>> pre = {"weight": torch.zeros(2)}
        >>> tasks = [TaskVector(pre, {"weight": torch.tensor(w)}) for w in ([1.0, 0.0], [1.0, 2.0])]
        >>> norm_alpha(tasks, task_arithmetic(tasks)), norm_alpha(tasks, consensus(tasks))
        (0.5, 1.0)
    """
    size = merged.l1_norm()
    if size == 0:
        raise ValueError("the merged task vector is zero: the models do not differ from pre")
    return task_arithmetic(vectors).l1_norm() / size / len(vectors)


@checked
def lines_merge(
    pre: nn.Module | State,
    fts: Sequence[nn.Module | State],
    *,
    beta: float,
    method: Literal["sum", "ties", "consensus"] | Merge = "sum",
    alpha: float | Literal["norm"] = "norm",
    blocks: str | Sequence[str] | None = None,
) -> dict[str, Tensor]:
    """Returns the state dict of several fine-tuned models merged, with the merged change scaled by depth.

    To try many values of ``beta``, merge once: ``merged.apply_to(pre, layer_ramp(index, alpha, beta))``.

    Args:
        pre: the common start.
        fts: the fine-tuned models; without their task heads.
        beta: what the last block gets on top of ``alpha``; search it on validation data over the grid of the
            merge's own scale.
        method: task arithmetic, TIES, Consensus, or a function from task vectors to one.
        alpha: factor of the first block; ``"norm"`` takes it from ``norm_alpha``.
        blocks: as in ``block_index``.

    Raises:
        ValueError: if names or shapes differ, no 2 blocks are found, or ``method`` is unknown.

    Source: arXiv:2410.17146, section 4.2.

    Example:
        >>> pre = {f"h.{i}.{part}.weight": torch.zeros(1, 1) for i in range(2) for part in ("attn", "mlp")}
        >>> ft = {name: torch.ones(1, 1) for name in pre}
        >>> lines_merge(pre, [ft, ft], beta=0.5)["h.1.mlp.weight"]
        tensor([[2.]])
    """
    check_nonempty(fts=fts)
    if not fts:
        raise ValueError("lines_merge needs at least 1 fine-tuned model, got 0")
    merge = _MERGES.get(method) if isinstance(method, str) else method
    if merge is None:
        raise ValueError(f"method must be one of {', '.join(_MERGES)} or a function, got {method!r}")
    vectors = [TaskVector(pre, ft) for ft in fts]
    merged = merge(vectors)
    start = norm_alpha(vectors, merged) if alpha == "norm" else float(alpha)
    index = BlockIndex(merged.delta, find_blocks(pre, blocks))
    return merged.apply_to(dict(state_of(pre)), layer_ramp(index, start, beta))


@checked
def lines_files(
    pre: str | Path,
    ft: str | Path,
    out: str | Path,
    *,
    alpha: float,
    beta: float | None = None,
    blocks: str | Sequence[str] | None = None,
) -> None:
    """Writes the checkpoint ``ft`` with each block's change from ``pre`` scaled by its depth, in a few MB of memory.

    One read of both checkpoints and one write; ``out`` appears when it is complete.

    Args:
        pre: the pretrained checkpoint: a safetensors file, a transformers folder (sharded or not), or a ``.pt``
            file of tensors.
        ft: the fine-tuned checkpoint, with the same tensors.
        out: the file, or the folder where ``ft`` is a folder.
        alpha: factor of the first block.
        beta: what the last block gets on top; ``1 - alpha`` by default.
        blocks: as in ``block_index``.

    Raises:
        ValueError: if the tensors differ in names or shapes (weights that the configuration ties may be stored once or
            twice), no 2 blocks are found, a weight is not finite, or a file is quantised, damaged or holds a pickle.
        FileNotFoundError: if a checkpoint is not there.

    Example:
        >>> import tempfile
        >>> from heldout.weights import load_checkpoint, save_checkpoint
        >>> names = [f"h.{i}.{part}.weight" for i in range(3) for part in ("attn", "mlp")]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     files = [Path(folder, f"{name}.safetensors") for name in ("pre", "ft", "out")]
        ...     for value, file in enumerate(files[:2]):
        ...         save_checkpoint({name: torch.full((1, 1), float(value)) for name in names}, file)
        ...     lines_files(*files, alpha=0.5)
        ...     print([load_checkpoint(files[2])[f"h.{i}.mlp.weight"].item() for i in range(3)])
        [0.5, 0.75, 1.0]
    """
    with open_checkpoint(pre) as start, open_checkpoint(ft) as end:
        ramp = layer_ramp(block_index(end.entries, blocks), alpha, _beta(alpha, beta))
        stream_checkpoint([start, end], out, lambda name, a, b: torch.lerp(a, b, ramp[name], out=a))


@checked
def update_batch_norm(module: nn.Module, dataset: torch.utils.data.Dataset, batch_size: int = 256) -> nn.Module:
    """Re-estimates the running statistics of every BatchNorm, in place, as averages over batches; returns the module.

    Needed after any edit of the weights of a BatchNorm network. One forward pass over the data; does nothing to a
    network without BatchNorm statistics. A last batch of a single example is left out, since it has no statistics.

    Args:
        module: the network.
        dataset: training data, ``(inputs, target)`` items.
        batch_size: examples per forward pass; all batches count the same, a smaller last one too.

    Example:
        >>> norm, x = nn.BatchNorm1d(1), torch.tensor([[1.0], [3.0], [5.0], [7.0]])
        >>> dataset = torch.utils.data.TensorDataset(x, torch.zeros(4))
        >>> update_batch_norm(norm, dataset, batch_size=2).running_mean
        tensor([4.])
    """
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if not norms:
        return module
    momenta, modes = [norm.momentum for norm in norms], [part.training for part in module.modules()]
    device = next(module.parameters()).device
    count = len(dataset)  # type: ignore[arg-type]
    order = torch.arange(count - 1 if count > 1 and count % batch_size == 1 else count)
    module.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's sign for the average over all batches
        norm.train()
    try:
        with torch.no_grad():
            for inputs, _, _ in batches(dataset, batch_size, order):
                forward(module, to_device(inputs, device))
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for part, mode in zip(module.modules(), modes, strict=True):
            part.training = mode
    return module


@checked
def lines_method(alpha: float = 0.3) -> Method:
    """Returns the Method that scales the change since the pretrained state by depth, after training.

    The output layer stays as fine-tuned, BatchNorm statistics are re-estimated on the training data. It applies to
    fine-tuning only: the data must come with the pretrained state, ``Splits(initial_state=...)``.

    Args:
        alpha: factor of the first block; the last block stays as fine-tuned.

    Raises:
        ValueError: an ``alpha`` that is not finite.

    Source: arXiv:2410.17146, eq. 2.

    Example:
        >>> import heldout
        >>> start = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> splits = Splits(train=(torch.randn(16, 4), torch.arange(16) % 2), initial_state=start.state_dict())
        >>> fitted = heldout.fit(start, splits, lines_method(alpha=0.0), epochs=1)
        >>> torch.equal(fitted.module[0].weight, start[0].weight), torch.equal(fitted.module[2].weight, start[2].weight)
        (True, False)
    """

    def weights(run: Run, module: nn.Module) -> nn.Module:
        own = module.state_dict()
        start = {name: run.initial_state[name] for name in own if name in run.initial_state}
        module.load_state_dict(lines(start, module, alpha, keep=_output_layer(module)))
        return update_batch_norm(module, run.train_set, run.batch_size)

    def check(module: nn.Module, splits: Splits) -> str | None:
        if splits.initial_state is None:
            return (
                "lines needs the pretrained state in Splits(initial_state=...): without one it would scale towards "
                "the random initialisation"
            )
        try:
            keep = _output_layer(module)
            start = {name: splits.initial_state[name] for name in module.state_dict() if name in splits.initial_state}
            lines(start, module, alpha, keep=keep)
        except ValueError as error:
            return f"lines cannot scale this model by depth: {error}"
        return None

    if not math.isfinite(alpha):
        raise ValueError(f"lines needs a finite alpha, got {alpha}")
    return Method("lines", weights=weights, check=check)


def _beta(alpha: float, beta: float | None) -> float:
    return 1 - alpha if beta is None else beta


def _is_under(name: str, modules: Collection[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _is_adapter(adapter: nn.Module | State, name: str) -> bool:
    return not isinstance(adapter, nn.Module) or "lora_" in name or "modules_to_save" in name


def _output_layer(module: nn.Module) -> list[str]:
    matrices = [name for name, parameter in module.named_parameters() if parameter.ndim >= 2]
    return [matrices[-1].rpartition(".")[0]] if matrices else []
