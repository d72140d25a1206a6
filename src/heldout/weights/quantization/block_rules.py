"""Core: Which linear layers of a transformer block share an input, and what makes that input: asked of the block.

One forward pass tells which layers take the same tensor and which module has made it; whether that maker may be divided
by a scale, and the layers multiplied, is tried: the output of the block must stay as it is. So no list of architectures
is kept, and a norm that adds one to its gain (Gemma) or feeds the residual stream (BERT) is found out as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from heldout.errors import check_fields, checked
from heldout.weights.blocks import find_blocks
from heldout.weights.quantization.blockwise import first
from heldout.weights.quantization.quantize import is_linear, linears, weight_of

_QUERIES_AND_KEYS = {"q", "k", "qk", "qkv", "wqkv", "query", "key", "wq", "wk"}  # words of a layer's name
_CANDIDATES = 4  # linear layers that are tried as the maker of an input, the latest first
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}


@dataclass(frozen=True)
class ScaleGroup:
    """Linear layers of a block that share one input, what makes that input, and where the effect is measured.

    Attributes:
        producer: a normalization with a weight (and bias), a linear layer, or an activation function; its output
            goes to the consumers only. A linear producer may be followed by what commutes with a positive scale of
            its channels: ReLU, a product, attention weights.
        consumers: the linear layers.
        inspect: the module whose output error is minimised, "" for the whole block.

    Example:
        >>> ScaleGroup("norm", ("query", "key", "value"), inspect="attention").consumers
        ('query', 'key', 'value')
    """

    producer: str
    consumers: tuple[str, ...]
    inspect: str

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class BlockRule:
    """How the linear layers of one kind of block are scaled and clipped; names are relative to the block.

    Attributes:
        groups: what is scaled.
        unclipped: linear layers that the clip search leaves alone: those that make queries and keys.
        notes: what is not done, and why.

    Example:
        >>> def rule(block):
        ...     norm = ScaleGroup("norm", ("query", "key", "value"), inspect="attention")
        ...     return BlockRule((norm, ScaleGroup("up", ("down",), inspect="down")), unclipped=("query", "key"))
        >>> [group.producer for group in rule(nn.Identity()).groups]
        ['norm', 'up']
    """

    groups: tuple[ScaleGroup, ...]
    unclipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)


Rule = Callable[[Any], BlockRule]


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

    @checked
    def __init__(self, activation: nn.Module, scale: Tensor) -> None:
        super().__init__()
        self.activation = activation
        self.register_buffer("scale", scale.clone())

    @checked
    def forward(self, x: Tensor) -> Tensor:
        return self.activation(x) / self.scale.to(x.dtype)


def block_stacks(model: nn.Module, rules: Mapping[type[nn.Module], Rule] | None = None) -> list[dict[str, nn.Module]]:
    """Returns the transformer blocks of a model by name, one dict for each stack of blocks that run in turn.

    Args:
        model: any module whose blocks hold linear layers.
        rules: kinds of block; where the model has any of them, they alone are its blocks.

    Raises:
        ValueError: if the model holds no list of blocks with linear layers inside.
    """
    own = [name for name, module in model.named_modules() if type(module) in (rules or {})]
    if own:
        stacks: dict[str, list[str]] = {}
        for name in own:
            stacks.setdefault(name.rpartition(".")[0], []).append(name)
        names = list(stacks.values())
    else:
        names = _lists_of_blocks(model)
    if not names:
        raise ValueError(
            f"found no list of blocks with linear layers in {type(model).__name__}; name the kind of its blocks: "
            "rules={YourBlock: rule}"
        )
    return [{name: model.get_submodule(name) for name in stack} for stack in names]


@checked
def block_linears(model: nn.Module, rules: Mapping[type[nn.Module], Rule] | None = None) -> dict[str, nn.Module]:
    """Returns the linear layers inside the transformer blocks by name: what AWQ and GPTQ quantise.

    Embeddings, heads and poolers lie outside and are not quantised; nor is a layer whose weight is shared.

    Args:
        model: any module whose blocks hold linear layers.
        rules: kinds of block; where the model has any of them, they alone are its blocks.

    Raises:
        ValueError: if the model holds no list of blocks with linear layers inside.

    Example:
        >>> blocks = [nn.ModuleDict({"up": nn.Linear(4, 8), "down": nn.Linear(8, 4)}) for _ in range(2)]
        >>> model = nn.ModuleDict({"h": nn.ModuleList(blocks), "head": nn.Linear(4, 10)})
        >>> list(block_linears(model))
        ['h.0.up', 'h.0.down', 'h.1.up', 'h.1.down']
    """
    blocks = [block for stack in block_stacks(model, rules) for block in stack.values()]
    inside = {module for block in blocks for module in block.modules()}
    return {name: module for name, module in linears(model, skip=()).items() if module in inside}


@checked
def derive_rule(
    block: nn.Module, layers: Mapping[str, nn.Module], run: Callable[[], Tensor], *, activations: bool = True
) -> BlockRule:
    """Returns how a block is scaled and clipped, found by running and changing it; the block is left as it was.

    Costs one forward pass of the block for each maker that is tried, two or three for every input of linear layers.

    Args:
        block: the block, in evaluation mode.
        layers: its linear layers, by name in the block.
        run: returns the block's output on some calibration data.
        activations: scale the outputs of activation functions, too, which become ``ScaledActivation``.

    Example:
        >>> class Own(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)
        ...     def forward(self, x):
        ...         return x + self.down(torch.relu(self.up(self.norm(x))))
        >>> block, x = Own(), torch.randn(32, 8)
        >>> with torch.no_grad():
        ...     rule = derive_rule(block, {"up": block.up, "down": block.down}, lambda: block(x))
        >>> [(group.producer, group.consumers) for group in rule.groups]
        [('norm', ('up',)), ('up', ('down',))]
    """
    trace = _Trace(block, layers)
    with trace.recording():
        before = run()
    groups: list[ScaleGroup] = []
    notes: list[str] = []
    for consumers in trace.inputs():
        width = weight_of(layers[consumers[0]]).shape[1]
        maker = trace.maker(consumers[0])
        made = block.get_submodule(maker) if maker else None
        if made is not None and (is_linear(made) or gain_offset(made) is not None):
            producers = [maker] if maker not in consumers else []
        else:
            earlier = trace.before(consumers[0])
            producers = [p for p in earlier if len(weight_of(layers[p])) == width and p not in consumers][:_CANDIDATES]
            if made is not None and activations and not any(True for _ in made.parameters()):
                producers.append(maker)
        for producer in producers:
            group = ScaleGroup(producer, consumers, trace.inspected(consumers, producer))
            if _keeps_output(block, group, run, before, width):
                groups.append(group)
                break
        else:
            notes.append(_why_not(consumers, made, activations))
    unclipped = tuple(layer for layer in layers if _makes_queries_or_keys(layer))
    return BlockRule(tuple(groups), unclipped, tuple(dict.fromkeys(notes)))


def gain_offset(module: nn.Module) -> float | None:
    """Returns what a normalization adds to its weight before it multiplies: 0, or 1; None for what is no such module.

    Asked by setting the weight to the opposite: the output is then zero.

    Example:
        >>> gain_offset(nn.LayerNorm(4)), gain_offset(nn.ReLU())
        (0.0, None)
    """
    weight = getattr(module, "weight", None)
    if is_linear(module) or not isinstance(weight, Tensor) or weight.dim() != 1 or any(True for _ in module.children()):
        return None
    x = torch.linspace(-1, 2, 3 * len(weight), dtype=weight.dtype, device=weight.device).view(3, -1)
    kept = {name: parameter.detach().clone() for name, parameter in module.named_parameters(recurse=False)}
    try:
        with torch.no_grad():
            for name, parameter in module.named_parameters(recurse=False):
                if name != "weight":
                    parameter.zero_()
            for offset in (0.0, 1.0):
                weight.fill_(-offset)
                if not bool(module(x).any()):
                    return offset
    except (RuntimeError, TypeError, ValueError):  # takes something else than a matrix
        return None
    finally:
        with torch.no_grad():
            for name, parameter in module.named_parameters(recurse=False):
                parameter.copy_(kept[name])
    return None


def scale_group(root: nn.Module, producer: str, consumers: Sequence[str], scale: Tensor) -> None:
    """Divides what a producer makes by a scale, and multiplies the consumers' weights by it, in place."""
    made = root.get_submodule(producer)
    weight: Any = getattr(made, "weight", None)
    if is_linear(made):
        rows = weight_of(made)
        rows.div_(scale.to(rows)[:, None])
    elif isinstance(weight, Tensor):
        offset = gain_offset(made) or 0.0
        weight.add_(offset).div_(scale.to(weight)).sub_(offset)
    else:
        root.set_submodule(producer, ScaledActivation(made, scale))
    if isinstance(bias := getattr(made, "bias", None), Tensor):
        bias.div_(scale.to(bias))
    for name in consumers:
        columns = weight_of(root.get_submodule(name))
        columns.mul_(scale.to(columns))


def same_output(after: Tensor, before: Tensor, tolerance: float) -> bool:
    """Whether two outputs differ by at most a share of their norm."""
    return bool((after - before).float().norm() <= tolerance * before.float().norm())


@contextmanager
def restoring(block: nn.Module, producers: Collection[str]) -> Iterator[None]:
    """Gives a block its parameters, and these submodules, back in the end."""
    before = {parameter: parameter.detach().clone() for parameter in block.parameters()}
    modules = {name: block.get_submodule(name) for name in producers}
    try:
        yield
    finally:
        for name, module in modules.items():
            block.set_submodule(name, module)
        for parameter, value in before.items():
            parameter.copy_(value)


class _Trace:
    """Which tensor each linear layer of a block takes, which module made it, and in which order they run."""

    def __init__(self, block: nn.Module, layers: Mapping[str, nn.Module]) -> None:
        self._block, self._layers = block, layers
        self._made: dict[Any, str] = {}
        self._taken: dict[str, Any] = {}
        self._order: list[str] = []
        self._called: dict[str, int] = {}
        self._kept: list[Tensor] = []  # a tensor that is freed gives its address to another

    @contextmanager
    def recording(self) -> Iterator[None]:
        with ExitStack() as stack:
            for name, module in self._block.named_modules():
                if name:
                    before = module.register_forward_pre_hook(self._before(name), with_kwargs=True)
                    stack.callback(before.remove)
                if name and not any(True for _ in module.children()):
                    stack.callback(module.register_forward_hook(self._after(name)).remove)
            yield

    def _before(self, name: str) -> Callable[..., None]:
        def see(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            self._called[name] = self._called.get(name, 0) + 1
            if name in self._layers and args and isinstance(args[0], Tensor):
                self._taken[name] = self._key(args[0])
                self._order.append(name)

        return see

    def _after(self, name: str) -> Callable[..., None]:
        def see(_: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                self._made.setdefault(self._key(output), name)

        return see

    def _key(self, tensor: Tensor) -> tuple[int, int]:
        self._kept.append(tensor)
        return tensor.data_ptr(), tensor.numel()

    def inputs(self) -> list[tuple[str, ...]]:
        """Returns the layers that take one tensor, in the order in which they run."""
        groups: dict[Any, list[str]] = {}
        for name in dict.fromkeys(self._order):
            groups.setdefault(self._taken[name], []).append(name)
        return [tuple(group) for group in groups.values()]

    def maker(self, layer: str) -> str:
        """Returns the module whose output is the layer's input, "" for none."""
        return self._made.get(self._taken[layer], "")

    def before(self, layer: str) -> list[str]:
        """Returns the linear layers that run before another, the latest first."""
        return list(dict.fromkeys(reversed(self._order[: self._order.index(layer)])))

    def inspected(self, consumers: tuple[str, ...], producer: str) -> str:
        """Returns where the error is measured: the smallest module around the consumers, or a single one itself."""
        norm = gain_offset(self._block.get_submodule(producer)) is not None
        if len(consumers) == 1 and not norm:
            return consumers[0]
        common = ".".join(_common([name.split(".")[:-1] for name in consumers]))
        while common and self._called.get(common) != 1:
            common = common.rpartition(".")[0]
        return common or (consumers[0] if len(consumers) == 1 else "")


def _common(paths: list[list[str]]) -> list[str]:
    shared = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return shared


def _keeps_output(block: nn.Module, group: ScaleGroup, run: Callable[[], Tensor], before: Tensor, width: int) -> bool:
    generator = torch.Generator().manual_seed(0)
    scale = torch.rand(width, generator=generator).mul_(2 * math.log(2)).sub_(math.log(2)).exp_().to(before.device)
    with restoring(block, [group.producer]):
        scale_group(block, group.producer, group.consumers, scale)
        return same_output(first(run()), before, _TOLERANCE.get(before.dtype, 2e-2))


def _why_not(consumers: tuple[str, ...], made: nn.Module | None, activations: bool) -> str:
    layers = ", ".join(consumers)
    if made is not None and not any(True for _ in made.parameters()) and not activations:
        return f"{layers}: follows an activation function, whose output a saved model cannot scale: it is clipped only"
    if made is not None:
        return f"{layers}: not scaled, because the norm before feeds something else too, such as the residual stream"
    return (
        f"{layers}: not scaled, because nothing that makes its input commutes with a scale (grouped-query attention, a "
        "fused projection, or an input from outside the block)"
    )


def _makes_queries_or_keys(layer: str) -> bool:
    last = layer.rpartition(".")[2].lower()
    return last == "c_attn" or bool(_QUERIES_AND_KEYS & set(last.split("_")))


def _lists_of_blocks(model: nn.Module) -> list[list[str]]:
    try:
        found = [[path for paths in blocks for path in paths] for blocks in find_blocks(model).values()]
    except ValueError:  # a single block resembles no other
        found = []
    stacks = [stack for stack in found if all(_holds_linears(model.get_submodule(name)) for name in stack)]
    if not stacks:
        for name, module in model.named_modules():
            inside = any(name.startswith(f"{block}.") for stack in stacks for block in stack)
            if isinstance(module, nn.ModuleList) and len(module) and not inside and all(map(_holds_linears, module)):
                stacks.append([f"{name}.{number}" if name else str(number) for number in range(len(module))])
    return stacks


def _holds_linears(module: nn.Module) -> bool:
    return not is_linear(module) and any(map(is_linear, module.modules()))
