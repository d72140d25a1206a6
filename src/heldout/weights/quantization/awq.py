"""AWQ: scale up the input channels that carry large activations before a model's weights are rounded.

The rounding error of a weight hardly changes when it is multiplied by s > 1, but its share of the output falls by 1/s
when the input is divided by s. So each set of linear layers that share an input gets one scale per input channel,
``mean |x| ^ r``, divided out of whatever makes that input; r is searched on a grid for the smallest change of a block's
output, then every group's largest weights are clipped where that helps. Source: arXiv:2306.00978 and its release.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from heldout.errors import check_at_least
from heldout.weights.checkpoint import load_checkpoint, save_checkpoint
from heldout.weights.quantization.blockwise import BlockInputs, Call, evaluating, first, watching
from heldout.weights.quantization.quantize import check_layers, fake_quantize, is_linear, linears, weight_of

_SHRINK_STEPS, _SHRINK_GRID = 10, 20  # of the clip search: the largest weight shrinks to 1, 0.95, ..., 0.55 of itself


@dataclass(frozen=True)
class ScaleGroup:
    """Linear layers of a block that share one input, what makes that input, and where the effect is measured.

    Attributes:
        producer: a normalization with a weight (and bias), a linear layer, or an activation function; its output
            goes to the consumers only. A linear producer may be followed by what commutes with a positive scale of
            its channels: ReLU, a product, attention weights.
        consumers: the linear layers.
        inspect: the module whose output error is minimised, "" for the whole block.
    """

    producer: str
    consumers: tuple[str, ...]
    inspect: str


@dataclass(frozen=True)
class BlockRule:
    """How the linear layers of one kind of block are scaled and clipped; names are relative to the block.

    Attributes:
        groups: what is scaled.
        unclipped: linear layers that the clip search leaves alone: those that make queries and keys.
        notes: what is not done, and why.
    """

    groups: tuple[ScaleGroup, ...]
    unclipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


Rule = Callable[[Any], BlockRule]


@dataclass(frozen=True)
class Scaling:
    """The scale found for one group; names are those of the whole model.

    Attributes:
        producer, consumers: see ``ScaleGroup``.
        scale: ``(in,)``: consumers are multiplied by it, the producer is divided.
        exponent: r of the best scale.
        errors: mean squared output error at each r of the grid 0, 1/n, ..., (n - 1)/n. Where it exceeded the best
            before all batches were seen, the error on the rest counts as 0.
    """

    producer: str
    consumers: tuple[str, ...]
    scale: Tensor
    exponent: float
    errors: tuple[float, ...]


@dataclass
class AWQResult:
    """What ``awq_search`` found; ``apply_awq`` puts it into a model.

    Attributes:
        bits, group_size, symmetric: the quantisation that it was searched for.
        scalings: one for each group of every block.
        clips: linear layer -> largest magnitude in each group ``(out, groups)``.
        notes: what was left out, and why.
    """

    bits: int
    group_size: int
    symmetric: bool
    scalings: list[Scaling] = field(default_factory=list)
    clips: dict[str, Tensor] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def save(self, path: str | Path) -> None:
        """Writes the result to one safetensors file."""
        tensors = {f"scale.{number}": scaling.scale for number, scaling in enumerate(self.scalings)}
        tensors |= {f"clip.{name}": clip for name, clip in self.clips.items()}
        facts = {key: value for key, value in asdict(self).items() if key not in ("scalings", "clips")}
        facts["scalings"] = [{k: v for k, v in asdict(s).items() if k != "scale"} for s in self.scalings]
        save_checkpoint({**tensors, "empty": torch.zeros(1)}, path, {"awq": json.dumps(facts)})

    @classmethod
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


class ScaledActivation(nn.Module):
    """An activation function whose output channels are divided by a scale.

    Args:
        activation: the activation function.
        scale: ``(channels,)``.

    Example:
        >>> ScaledActivation(nn.ReLU(), torch.tensor([1.0, 4.0]))(torch.tensor([2.0, 2.0]))
        tensor([2.0000, 0.5000])
    """

    scale: Tensor

    def __init__(self, activation: nn.Module, scale: Tensor) -> None:
        super().__init__()
        self.activation = activation
        self.register_buffer("scale", scale.clone())

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(x) / self.scale.to(x.dtype)


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
) -> AWQResult:
    """Returns the scales and clips that keep the outputs of a model's blocks when its weights are quantised.

    The model is as before afterwards. Blocks are visited in order, each on the output of the *unquantised* blocks
    before it. Costs at most ``n_grid`` passes of the calibration data through every inspected attention and MLP; an
    exponent is given up with the batch at which its error exceeds that of the best, so that several batches cost
    less than a large one. Where a
    linear layer is inspected itself, and in the clip search, the mean squared error is the quadratic form
    ``dW G dW^T`` in the second moments G of its inputs, so that its cost does not depend on the number of tokens.

    Args:
        model: Llama, Mistral, Qwen2, Qwen3, OPT, GPT-2, GPT-NeoX, BERT or ViT of transformers, or a model of your own
            with a rule for its blocks.
        calib: batches of calibration data: token ids ``(batch, length)``, pixel values, or dicts of the model's
            arguments, without padding. 16 to 128 blocks of text are usual.
        bits, group_size, symmetric: see ``group_quantize``.
        scale: search scales.
        clip: search clips, after the scales.
        n_grid: number of exponents r = 0, 1/n, ..., (n - 1)/n, at least 1.
        rules: kind of block -> function from a block to its ``BlockRule``; goes before the built-in ones.

    Raises:
        ValueError: if ``n_grid`` is below 1; if there is no calibration data or no rule for the model's blocks; if a
            weight or an activation is not finite, a group size does not fit, a weight is shared with another module,
            or a producer feeds something besides its consumers (their scaling would change the block's output).

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
    found = block_rules(model, rules)
    layers = block_linears(model, rules)
    check_layers(layers, group_size)
    quantisation = _Quantisation(bits, group_size, symmetric)
    result = AWQResult(
        bits, group_size, symmetric, notes=list(dict.fromkeys(n for _, r in found.values() for n in r.notes))
    )
    inputs = BlockInputs(model, {name: block for name, (block, _) in found.items()}, calib)
    with evaluating(model), torch.no_grad():
        for name, (block, rule) in found.items():
            own = {
                layer.removeprefix(f"{name}."): module for layer, module in layers.items() if module in _inside(block)
            }
            _check_rule(name, block, rule, own)
            seen = _Activations(block, rule, own, group_size if clip else None)
            with seen.recording():
                outputs = inputs.run(name, block)
            seen.check(name)
            groups = rule.groups if scale else ()
            scalings = [_search_scale(block, group, seen, quantisation, n_grid) for group in groups]
            before = {parameter: parameter.detach().clone() for parameter in block.parameters()}
            wrapped = {s.producer: block.get_submodule(s.producer) for s in scalings}
            try:
                for scaling in scalings:
                    _apply_scaling(block, scaling)
                    seen.rescale(scaling)
                if scalings:
                    _check_unchanged(name, inputs.run(name, block, on=1)[0], outputs[0])
                if clip:
                    for layer in own:
                        if layer not in rule.unclipped:
                            weight = weight_of(block.get_submodule(layer))
                            result.clips[f"{name}.{layer}"] = clip_search(
                                weight, seen.blocks[layer], bits, symmetric=symmetric
                            )
            finally:
                for producer, module in wrapped.items():
                    block.set_submodule(producer, module)
                for parameter, value in before.items():
                    parameter.copy_(value)
            result.scalings += [_absolute(scaling, name) for scaling in scalings]
            inputs.hidden = outputs
    return result


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
    """
    names = {name for name, _ in model.named_modules()}
    wanted = {n for s in result.scalings for n in (s.producer, *s.consumers)} | result.clips.keys()
    if missing := sorted(wanted - names):
        raise ValueError(f"the AWQ result is for another model: there is no {missing[0]}")
    with torch.no_grad():
        for scaling in result.scalings:
            _apply_scaling(model, scaling)
        for name, limit in result.clips.items():
            weight = weight_of(model.get_submodule(name))
            grouped = weight.reshape(*limit.shape, -1)
            limit = limit.to(weight)[..., None]
            weight.copy_(grouped.clamp(-limit, limit).reshape(weight.shape))
    return model


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


def block_rules(
    model: nn.Module, rules: Mapping[type[nn.Module], Rule] | None = None
) -> dict[str, tuple[nn.Module, BlockRule]]:
    """Returns the transformer blocks of a model by name, each with its rule.

    Raises:
        ValueError: if no module of the model has a rule.
    """
    own = rules or {}
    found = {}
    for name, module in model.named_modules():
        rule = own.get(type(module)) or _RULES.get(type(module).__name__)
        if rule is not None:
            found[name] = (module, rule(module))
    if not found:
        raise ValueError(
            f"no rule for the blocks of {type(model).__name__}; there are rules for {', '.join(_RULES)}; "
            f"pass rules={{YourBlock: rule}} for others"
        )
    return found


def block_linears(model: nn.Module, rules: Mapping[type[nn.Module], Rule] | None = None) -> dict[str, nn.Module]:
    """Returns the linear layers inside the transformer blocks by name: what AWQ and GPTQ quantise.

    Embeddings, heads and poolers lie outside and are not quantised; nor is a layer whose weight is shared.
    """
    inside = {module for block, _ in block_rules(model, rules).values() for module in _inside(block)}
    return {name: module for name, module in linears(model, skip=()).items() if module in inside}


class _Quantisation(NamedTuple):
    bits: int
    group_size: int
    symmetric: bool

    def __call__(self, weight: Tensor) -> Tensor:
        return fake_quantize(weight, self.bits, self.group_size, symmetric=self.symmetric)


class _Activations:
    """What the search needs of a block's activations: means, second moments, and calls of the inspected modules."""

    def __init__(
        self, block: nn.Module, rule: BlockRule, layers: Mapping[str, nn.Module], group_size: int | None
    ) -> None:
        self.block, self.layers, self.size = block, list(layers), group_size
        self.whole = {g.inspect for g in rule.groups if g.consumers == (g.inspect,)}
        self.inspected = {g.inspect for g in rule.groups} - self.whole
        # layers with the same input are seen once: consumers of one group after its first
        self.leader = {layer: layer for layer in layers} | {c: g.consumers[0] for g in rule.groups for c in g.consumers}
        self.tokens: dict[str, int] = dict.fromkeys(layers, 0)
        self.mean: dict[str, Tensor] = {}
        self.moments: dict[str, Tensor] = {}
        self.blocks: dict[str, Tensor] = {}
        self.calls: dict[str, list[tuple[Call, Tensor]]] = {name: [] for name in self.inspected}

    def recording(self) -> Any:
        from contextlib import ExitStack

        stack = ExitStack()
        stack.enter_context(watching(self.block, sorted({*self.leader.values()}), self._see))
        for name in self.inspected:
            hook = self._record(self.calls[name])
            handle = self.block.get_submodule(name).register_forward_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        return stack

    def _see(self, name: str, x: Tensor) -> None:
        x = x.float()
        self.tokens[name] += len(x)
        _add(self.mean, name, x.abs().sum(dim=0))
        if name in self.whole:
            _add(self.moments, name, x.T @ x)
        elif self.size is not None:
            groups = x.view(len(x), -1, x.shape[1] if self.size == -1 else self.size).transpose(0, 1)
            _add(self.blocks, name, groups.transpose(1, 2) @ groups)

    @staticmethod
    def _record(calls: list[tuple[Call, Tensor]]) -> Callable[..., None]:
        return lambda _, args, kwargs, output: calls.append(((args, dict(kwargs)), first(output)))

    def check(self, block: str) -> None:
        """Turns sums into means, and raises where a layer saw nothing, or something that is not finite."""
        for name in {*self.leader.values()}:
            if not self.tokens[name]:
                raise ValueError(f"no calibration data reached {block}.{name}")
            self.mean[name] /= self.tokens[name]
            if not bool(torch.isfinite(self.mean[name]).all()):
                raise ValueError(f"the input of {block}.{name} is not finite on the calibration data")
            if name in self.whole:
                self.moments[name] /= self.tokens[name]
            if self.size is None:
                continue
            if name in self.whole:
                size = len(self.mean[name]) if self.size == -1 else self.size
                squares = self.moments[name].view(len(self.mean[name]) // size, size, -1, size)
                self.blocks[name] = squares.diagonal(dim1=0, dim2=2).permute(2, 0, 1).contiguous()
            else:
                self.blocks[name] /= self.tokens[name]
        for layer, leader in self.leader.items():
            if layer != leader and self.size is not None:
                self.blocks[layer] = self.blocks[leader]

    def rescale(self, scaling: Scaling) -> None:
        """Divides the inputs of the consumers by the scale."""
        inverse = scaling.scale.reciprocal()
        for name in scaling.consumers if self.size is not None else ():
            groups = inverse.view(len(self.blocks[name]), -1)
            self.blocks[name] = self.blocks[name] * groups[:, :, None] * groups[:, None, :]


def _search_scale(
    block: nn.Module, group: ScaleGroup, seen: _Activations, quantise: _Quantisation, n_grid: int
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


def _apply_scaling(root: nn.Module, scaling: Scaling) -> None:
    producer = root.get_submodule(scaling.producer)
    if is_linear(producer):
        weight = weight_of(producer)
        weight.div_(scaling.scale.to(weight)[:, None])
    elif isinstance(getattr(producer, "weight", None), Tensor):
        producer.weight.div_(scaling.scale.to(producer.weight))  # type: ignore[operator, union-attr, arg-type]
    else:
        root.set_submodule(scaling.producer, ScaledActivation(producer, scaling.scale))
    if isinstance(bias := getattr(producer, "bias", None), Tensor):
        bias.div_(scaling.scale.to(bias))
    for name in scaling.consumers:
        weight = weight_of(root.get_submodule(name))
        weight.mul_(scaling.scale.to(weight))


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
    tolerance = 1e-3 if before.dtype in (torch.float32, torch.float64) else 5e-2
    if not bool((after - before).float().norm() <= tolerance * before.float().norm()):
        raise ValueError(
            f"scaling changes the output of {name}: a producer of its rule feeds something besides the consumers, "
            f"such as the residual stream"
        )


def _absolute(scaling: Scaling, block: str) -> Scaling:
    names = tuple(f"{block}.{name}" for name in scaling.consumers)
    return Scaling(f"{block}.{scaling.producer}", names, scaling.scale, scaling.exponent, scaling.errors)


def _inside(block: nn.Module) -> set[nn.Module]:
    return set(block.modules())


def _add(sums: dict[str, Tensor], name: str, value: Tensor) -> None:
    sums[name] = sums[name] + value if name in sums else value


def _llama(block: Any) -> BlockRule:
    attention, q_k = "self_attn", ("self_attn.q_proj", "self_attn.k_proj")
    values: tuple[ScaleGroup, ...] = (
        ScaleGroup(f"{attention}.v_proj", (f"{attention}.o_proj",), f"{attention}.o_proj"),
    )
    notes: tuple[str, ...] = ()
    if block.self_attn.v_proj.weight.shape != block.self_attn.o_proj.weight.shape:
        values, notes = (
            (),
            ("grouped-query attention: several heads share a value channel, so v_proj -> o_proj is not scaled",),
        )
    return BlockRule(
        (
            ScaleGroup("input_layernorm", (*q_k, f"{attention}.v_proj"), attention),
            *values,
            ScaleGroup("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj"), "mlp"),
            ScaleGroup("mlp.up_proj", ("mlp.down_proj",), "mlp.down_proj"),
        ),
        q_k,
        notes,
    )


def _opt(block: Any) -> BlockRule:
    q_k = ("self_attn.q_proj", "self_attn.k_proj")
    norms: tuple[ScaleGroup, ...] = (
        ScaleGroup("self_attn_layer_norm", (*q_k, "self_attn.v_proj"), "self_attn"),
        ScaleGroup("final_layer_norm", ("fc1",), "fc1"),
    )
    mlp: tuple[ScaleGroup, ...] = (ScaleGroup("fc1", ("fc2",), "fc2"),)
    notes: list[str] = []
    if not block.do_layer_norm_before:
        norms, notes = (), ["norms after the residual sum feed the residual stream, so they are not scaled"]
    if not isinstance(block.activation_fn, nn.ReLU):
        mlp = (ScaleGroup("activation_fn", ("fc2",), "fc2"),)
    values = ScaleGroup("self_attn.v_proj", ("self_attn.out_proj",), "self_attn.out_proj")
    return BlockRule((*norms, values, *mlp), q_k, tuple(notes))


def _gpt2(_: Any) -> BlockRule:
    return BlockRule(
        (
            ScaleGroup("ln_1", ("attn.c_attn",), "attn"),
            ScaleGroup("ln_2", ("mlp.c_fc",), "mlp"),
            ScaleGroup("mlp.act", ("mlp.c_proj",), "mlp.c_proj"),
        ),
        ("attn.c_attn",),
    )


def _gpt_neox(_: Any) -> BlockRule:
    return BlockRule(
        (
            ScaleGroup("input_layernorm", ("attention.query_key_value",), "attention"),
            ScaleGroup("post_attention_layernorm", ("mlp.dense_h_to_4h",), "mlp"),
            ScaleGroup("mlp.act", ("mlp.dense_4h_to_h",), "mlp.dense_4h_to_h"),
        ),
        ("attention.query_key_value",),
    )


def _bert(_: Any) -> BlockRule:
    return BlockRule(
        (
            ScaleGroup("attention.self.value", ("attention.output.dense",), "attention.output.dense"),
            ScaleGroup("intermediate.intermediate_act_fn", ("output.dense",), "output.dense"),
        ),
        ("attention.self.query", "attention.self.key"),
        ("norms after the residual sum feed the residual stream, so they are not scaled",),
    )


def _vit(_: Any) -> BlockRule:
    q_k = ("attention.q_proj", "attention.k_proj")
    return BlockRule(
        (
            ScaleGroup("layernorm_before", (*q_k, "attention.v_proj"), "attention"),
            ScaleGroup("attention.v_proj", ("attention.o_proj",), "attention.o_proj"),
            ScaleGroup("layernorm_after", ("mlp.fc1",), "mlp"),
            ScaleGroup("mlp.activation_fn", ("mlp.fc2",), "mlp.fc2"),
        ),
        q_k,
    )


_RULES: dict[str, Rule] = {
    "LlamaDecoderLayer": _llama,
    "MistralDecoderLayer": _llama,
    "Qwen2DecoderLayer": _llama,
    "Qwen3DecoderLayer": _llama,
    "OPTDecoderLayer": _opt,
    "GPT2Block": _gpt2,
    "GPTNeoXLayer": _gpt_neox,
    "BertLayer": _bert,
    "ViTLayer": _vit,
}
