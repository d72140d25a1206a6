"""AWQ: scale up the input channels that carry large activations before a model's weights are rounded.

The rounding error of a weight hardly changes when it is multiplied by s > 1, but its share of the output falls by 1/s
when the input is divided by s. So each set of linear layers that share an input gets one scale per input channel,
``mean |x| ^ r``, divided out of whatever makes that input; r is searched on a grid for the smallest change of a block's
output, then every group's largest weights are clipped where that helps. Source: arXiv:2306.00978 and its release.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from heldout.errors import check_at_least, check_dimensions, check_fields, check_values, checked
from heldout.weights.checkpoint import save_checkpoint
from heldout.weights.quantization.activations import Activations
from heldout.weights.quantization.block_rules import (
    BlockRule,
    Rule,
    ScaleGroup,
    block_linears,
    block_stacks,
    derive_rule,
    restoring,
    same_output,
    scale_group,
)
from heldout.weights.quantization.blockwise import BlockInputs, evaluating, first
from heldout.weights.quantization.quantize import check_layers, fake_quantize, weight_of
from heldout.weights.tying import load_checkpoint

_SHRINK_STEPS, _SHRINK_GRID = 10, 20  # of the clip search: the largest weight shrinks to 1, 0.95, ..., 0.55 of itself


@dataclass(frozen=True)
class Scaling:
    """The scale found for one group; names are those of the whole model.

    Attributes:
        producer, consumers: see ``ScaleGroup``.
        scale: ``(in,)``: consumers are multiplied by it, the producer is divided.
        exponent: r of the best scale.
        errors: mean squared output error at each r of the grid 0, 1/n, ..., (n - 1)/n. Where it exceeded the best
            before all batches were seen, the error on the rest counts as 0.

    Example:
        >>> found = Scaling("norm", ("query", "key"), torch.tensor([1.0, 2.0]), exponent=0.5, errors=(0.3, 0.2))
        >>> found.errors.index(min(found.errors)) / len(found.errors) == found.exponent
        True
    """

    producer: str
    consumers: tuple[str, ...]
    scale: Tensor
    exponent: float
    errors: tuple[float, ...]

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass
class AWQResult:
    """What ``awq_search`` found; ``apply_awq`` puts it into a model.

    Attributes:
        bits, group_size, symmetric: the quantisation that it was searched for.
        scalings: one for each group of every block.
        clips: linear layer -> largest magnitude in each group ``(out, groups)``.
        notes: what was left out, and why.

    Example:
        >>> import tempfile
        >>> found = AWQResult(bits=4, group_size=8, symmetric=False, clips={"0.up": torch.full((16, 1), 0.5)})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     found.save(f"{folder}/awq.safetensors")
        ...     again = AWQResult.load(f"{folder}/awq.safetensors")
        >>> again.bits, torch.equal(again.clips["0.up"], found.clips["0.up"])
        (4, True)
    """

    bits: int
    group_size: int
    symmetric: bool
    scalings: list[Scaling] = field(default_factory=list)
    clips: dict[str, Tensor] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_fields(self)

    @checked
    def save(self, path: str | Path) -> None:
        """Writes the result to one safetensors file."""
        tensors = {f"scale.{number}": scaling.scale for number, scaling in enumerate(self.scalings)}
        tensors |= {f"clip.{name}": clip for name, clip in self.clips.items()}
        facts = {key: value for key, value in asdict(self).items() if key not in ("scalings", "clips")}
        facts["scalings"] = [{k: v for k, v in asdict(s).items() if k != "scale"} for s in self.scalings]
        save_checkpoint({**tensors, "empty": torch.zeros(1)}, path, {"awq": json.dumps(facts)})

    @classmethod
    @checked
    def load(cls, path: str | Path) -> AWQResult:
        """Returns the result in a file that ``save`` has written.

        Raises:
            ValueError: if the file is no safetensors file, or holds something else.
        """
        from safetensors import safe_open

        tensors = load_checkpoint(path)
        with safe_open(str(path), "pt") as file:
            facts = json.loads((file.metadata() or {}).get("awq", "null"))
        if facts is None:
            raise ValueError(f"{path} holds no AWQ result")
        scalings = [
            Scaling(s["producer"], tuple(s["consumers"]), tensors[f"scale.{n}"], s["exponent"], tuple(s["errors"]))
            for n, s in enumerate(facts.pop("scalings"))
        ]
        clips = {name.removeprefix("clip."): tensor for name, tensor in tensors.items() if name.startswith("clip.")}
        return cls(**facts, scalings=scalings, clips=clips)


@checked
def awq_search(
    model: nn.Module,
    calib: Iterable[Tensor | Mapping[str, Any]],
    bits: int = 4,
    group_size: int = 128,
    *,
    symmetric: bool = False,
    scale: bool = True,
    clip: bool = True,
    n_grid: int = 20,
    rules: Mapping[type[nn.Module], Rule] | None = None,
    activations: bool = True,
) -> AWQResult:
    """Returns the scales and clips that keep the outputs of a model's blocks when its weights are quantised.

    The model is as before afterwards. Blocks are visited in order, each on the output of the *unquantised* blocks
    before it. Costs at most ``n_grid`` passes of the calibration data through every inspected attention and MLP; an
    exponent is given up with the batch at which its error exceeds that of the best, so that several batches cost
    less than a large one. Where a
    linear layer is inspected itself, and in the clip search, the mean squared error is the quadratic form
    ``dW G dW^T`` in the second moments G of its inputs, so that its cost does not depend on the number of tokens.

    Args:
        model: any transformer whose blocks lie in a list: what shares an input, and what may be scaled, is found out by
            running the blocks on the first batch (see ``derive_rule``).
        calib: batches of calibration data: token ids ``(batch, length)``, pixel values, or dicts of the model's
            arguments, without padding. 16 to 128 blocks of text are usual.
        bits, group_size, symmetric: see ``group_quantize``.
        scale: search scales.
        clip: search clips, after the scales.
        n_grid: number of exponents r = 0, 1/n, ..., (n - 1)/n, at least 1.
        rules: kind of block -> function from a block to its ``BlockRule``; where the model has such blocks, they alone
            are scaled, and nothing is found out.
        activations: scale the outputs of activation functions, too; they become ``ScaledActivation``, which a saved
            model cannot hold.

    Raises:
        ValueError: if ``n_grid`` is below 1; if there is no calibration data or no list of blocks in the model; if a
            weight or an activation is not finite, a group size does not fit, a rule of ``rules`` names a consumer whose
            weight is shared with another module (found out, such layers are left alone), or a producer feeds something
            besides its consumers (their scaling would change the block's output).

    Source: arXiv:2306.00978, section 3.2, eq. 4 and 5, and the released auto_scale and auto_clip.
    deviation: the clip error is the mean over all calibration tokens, not over 512 of them.

    Example:
        >>> class Block(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)
        ...     def forward(self, x):
        ...         return x + self.down(torch.relu(self.up(self.norm(x))))
        >>> def rule(block):
        ...     return BlockRule((ScaleGroup("norm", ("up",), "up"), ScaleGroup("up", ("down",), "down")))
        >>> model, x = nn.Sequential(Block(), Block()), torch.randn(32, 8)
        >>> result = awq_search(model, [x], bits=3, group_size=8, rules={Block: rule})
        >>> before = model(x)
        >>> result.clips.clear()
        >>> torch.allclose(apply_awq(model, result)(x), before, atol=1e-5)
        True
    """
    check_at_least(1, n_grid=n_grid)
    stacks = block_stacks(model, rules)
    layers = block_linears(model, rules)
    check_layers(layers, group_size)
    quantisation = _Quantisation(bits, group_size, symmetric)
    result = AWQResult(bits, group_size, symmetric)
    inputs = BlockInputs(model, stacks, calib)
    derived: dict[Any, BlockRule] = {}
    with evaluating(model), torch.no_grad():
        for name, block in ((name, block) for stack in stacks for name, block in stack.items()):
            inputs.enter(name)
            inside = set(block.modules())
            own = {layer.removeprefix(f"{name}."): module for layer, module in layers.items() if module in inside}
            if make := (rules or {}).get(type(block)):
                rule = make(block)
            else:
                kind = type(block), tuple((layer, weight_of(module).shape) for layer, module in own.items())
                if kind not in derived:
                    run = functools.partial(_first_output, inputs, name, block)
                    derived[kind] = derive_rule(block, own, run, activations=activations)
                rule = derived[kind]
            _check_rule(name, block, rule, own)
            seen = Activations(block, rule, own, group_size if clip else None)
            with seen.recording():
                outputs = inputs.run(name, block)
            seen.check(name)
            groups = rule.groups if scale else ()
            scalings = [_search_scale(block, group, seen, quantisation, n_grid) for group in groups]
            with restoring(block, [scaling.producer for scaling in scalings]):
                for scaling in scalings:
                    scale_group(block, scaling.producer, scaling.consumers, scaling.scale)
                    seen.rescale(scaling.consumers, scaling.scale)
                if scalings:
                    _check_unchanged(name, inputs.run(name, block, on=1)[0], outputs[0])
                for layer in own if clip else ():
                    if layer not in rule.unclipped:
                        weight = weight_of(block.get_submodule(layer))
                        limit = clip_search(weight, seen.blocks[layer], bits, symmetric=symmetric)
                        result.clips[f"{name}.{layer}"] = limit
            result.scalings += [_absolute(scaling, name) for scaling in scalings]
            result.notes += [note for note in rule.notes if note not in result.notes]
            inputs.hidden = outputs
    return result


def _first_output(inputs: BlockInputs, name: str, block: nn.Module) -> Tensor:
    return inputs.run(name, block, on=1)[0]


@checked
def apply_awq(model: nn.Module, result: AWQResult) -> nn.Module:
    """Scales and clips the weights of a model in place; ``rtn`` then quantises them. Returns the model.

    Scaling alone leaves the model's outputs as they are. An activation function that is a producer becomes a
    ``ScaledActivation``.

    Args:
        model: the model that was searched, unchanged since.
        result: what ``awq_search`` found for it.

    Raises:
        ValueError: if the model lacks a module that the result names.

    Source: arXiv:2306.00978, section 3.2.

    Example:
        >>> model, x = nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 2)), torch.randn(4, 3)
        >>> scaling = Scaling("0", ("1",), torch.tensor([1.0, 2.0, 4.0]), exponent=0.5, errors=(0.2, 0.1))
        >>> before, weight = model(x), model[1].weight.detach().clone()
        >>> _ = apply_awq(model, AWQResult(4, 3, False, [scaling]))
        >>> torch.allclose(model(x), before, atol=1e-5), torch.equal(model[1].weight, weight * scaling.scale)
        (True, True)
    """
    names = {name for name, _ in model.named_modules()}
    wanted = {n for s in result.scalings for n in (s.producer, *s.consumers)} | result.clips.keys()
    if missing := sorted(wanted - names):
        raise ValueError(f"the AWQ result is for another model: there is no {missing[0]}")
    with torch.no_grad():
        for scaling in result.scalings:
            scale_group(model, scaling.producer, scaling.consumers, scaling.scale)
        for name, limit in result.clips.items():
            weight = weight_of(model.get_submodule(name))
            grouped = weight.reshape(*limit.shape, -1)
            limit = limit.to(weight)[..., None]
            weight.copy_(grouped.clamp(-limit, limit).reshape(weight.shape))
    return model


@checked
def clip_search(weight: Tensor, moments: Tensor, bits: int, *, symmetric: bool = False) -> Tensor:
    """Returns the largest magnitude ``(out, groups)`` to clip each group of weights to before it is quantised.

    Tried are 1, 0.95, ..., 0.55 of the group's largest magnitude; the best changes the group's share of the output
    least, so clipping is never worse than not clipping.

    Args:
        weight: ``(out, in)``.
        moments: second moments of the inputs within each group, ``(groups, group_size, group_size)``.
        bits, symmetric: see ``group_quantize``.

    Source: arXiv:2306.00978, released auto_clip.

    Example:
        >>> clip_search(torch.tensor([[0.1, -0.2, 1.0, 0.3]]), torch.eye(4)[None], bits=2).shape
        torch.Size([1, 1])
    """
    check_dimensions(2, weight=weight)
    check_dimensions(3, moments=moments)
    check_values(weight=weight, moments=moments)
    count, size = moments.shape[:2]
    groups = weight.float().reshape(-1, count, size)
    largest = groups.abs().amax(dim=-1)
    best, least = largest.clone(), torch.full_like(largest, torch.inf)
    for step in range(_SHRINK_STEPS):
        limit = largest * (1 - step / _SHRINK_GRID)
        clipped = groups.clamp(-limit[..., None], limit[..., None]).flatten(1)
        change = (fake_quantize(clipped, bits, size, symmetric=symmetric).view_as(groups) - groups).transpose(0, 1)
        error = (torch.bmm(change, moments) * change).sum(dim=-1).T
        better = error < least
        best, least = torch.where(better, limit, best), torch.where(better, error, least)
    return best


class _Quantisation(NamedTuple):
    bits: int
    group_size: int
    symmetric: bool

    def __call__(self, weight: Tensor) -> Tensor:
        return fake_quantize(weight, self.bits, self.group_size, symmetric=self.symmetric)


def _search_scale(
    block: nn.Module, group: ScaleGroup, seen: Activations, quantise: _Quantisation, n_grid: int
) -> Scaling:
    layers = [block.get_submodule(name) for name in group.consumers]
    weights = [weight_of(layer) for layer in layers]
    rows = [len(weight) for weight in weights]
    joined = torch.cat(weights).float()
    mean = seen.mean[group.consumers[0]]
    if group.inspect in seen.whole:
        moments = seen.moments[group.inspect]

        def error(tried: Tensor, least: float) -> float:
            change = tried.sub_(joined)
            return float((change @ moments).mul_(change).sum()) / len(change)

    else:
        inspected, calls = block.get_submodule(group.inspect), seen.calls[group.inspect]

        count = sum(output.numel() for _, output in calls)

        def error(tried: Tensor, least: float) -> float:
            total = 0.0
            with _weights(layers, tried.split(rows)):
                for (args, kwargs), output in calls:
                    change = first(inspected(*args, **kwargs)).sub(output).float()
                    total += float(change.flatten().dot(change.flatten())) / count
                    if total > least:
                        break
            return total

    scales = [_centred(mean.pow(step / n_grid).clamp(min=1e-4)) for step in range(n_grid)]
    errors = [torch.inf] * n_grid
    for step in sorted(range(n_grid), key=lambda step: abs(2 * step - n_grid)):  # good ones first: more are given up
        tried = quantise(joined * scales[step]).div_(scales[step])
        errors[step] = error(tried, min(errors))
        if not math.isfinite(errors[step]):
            raise ValueError(f"the output of {group.inspect or 'the block'} is not finite on the calibration data")
    best = min(range(n_grid), key=errors.__getitem__)
    return Scaling(group.producer, group.consumers, scales[best], best / n_grid, tuple(errors))


def _centred(scale: Tensor) -> Tensor:
    return scale / (scale.max() * scale.min()).sqrt()


class _weights:  # noqa: N801
    """Gives linear layers other weights ``(out, in)`` for a while."""

    def __init__(self, layers: Sequence[nn.Module], weights: Sequence[Tensor]) -> None:
        self.layers, self.weights = layers, weights

    def __enter__(self) -> None:
        self.before = [layer.weight.data for layer in self.layers]
        for layer, weight in zip(self.layers, self.weights, strict=True):
            data = weight if isinstance(layer, nn.Linear) else weight.T
            layer.weight.data = data.to(layer.weight.dtype)  # type: ignore[union-attr, operator, arg-type]

    def __exit__(self, *_: object) -> None:
        for layer, data in zip(self.layers, self.before, strict=True):
            layer.weight.data = data  # type: ignore[assignment]


def _check_rule(name: str, block: nn.Module, rule: BlockRule, layers: Mapping[str, nn.Module]) -> None:
    present = {path for path, _ in block.named_modules()}
    for group in rule.groups:
        for path in (group.producer, group.inspect):
            if path not in present:
                raise ValueError(f"the rule for {type(block).__name__} names {path!r}, which {name} does not have")
        for path in group.consumers:
            if path not in layers:
                raise ValueError(f"{name}.{path} is not a linear layer with a weight of its own")


def _check_unchanged(name: str, after: Tensor, before: Tensor) -> None:
    if not same_output(after, before, 1e-3 if before.dtype in (torch.float32, torch.float64) else 5e-2):
        raise ValueError(
            f"scaling changes the output of {name}: a producer of its rule feeds something besides the consumers, "
            f"such as the residual stream"
        )


def _absolute(scaling: Scaling, block: str) -> Scaling:
    names = tuple(f"{block}.{name}" for name in scaling.consumers)
    return Scaling(f"{block}.{scaling.producer}", names, scaling.scale, scaling.exponent, scaling.errors)
