"""A network as a directed acyclic graph of primitive operations, whatever library or design space it comes from.

Source: arXiv:2211.17226, section "Computation graphs"; vocabulary and node features as in the official code.
"""

from __future__ import annotations

import inspect
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from heldout.errors import check_finite, check_nonempty, checked, require
from heldout.method import evaluating

CG_OPERATIONS = (
    "input", "output", "conv", "depthwise", "batchnorm", "relu", "relu6", "matmul", "add", "mul", "concat", "maxpool",
    "avgpool", "sigmoid", "tanh", "swish", "gelu", "padding", "mean", "space_to_batch", "batch_to_space",
    "space_to_depth", "depth_to_space", "global", "identity", "zero", "layernorm", "softmax", "leaky_relu", "reserved4",
    "reserved5", "oov",
)  # fmt: skip
CG_KERNELS = 8
"""How many sizes of kernels are told apart: 1 to 7, and 8 or more."""

_NAMES = {
    "batchnorm": "batchnorm syncbatchnorm nativebatchnorm",
    "relu": "relu",
    "relu6": "relu6 hardtanh",
    "matmul": "linear matmul mm bmm addmm baddbmm einsum bilinear",
    "conv": "conv convtranspose convolution",
    "add": "add iadd radd sub isub rsub",
    "mul": "mul imul rmul div truediv itruediv neg pow square",
    "concat": "cat concat concatenate stack hstack",
    "maxpool": "maxpool adaptivemaxpool maxpoolwithindices",
    "avgpool": "avgpool adaptiveavgpool",
    "mean": "mean sum globalaveragepool",
    "sigmoid": "sigmoid hardsigmoid",
    "tanh": "tanh",
    "swish": "silu hardswish",
    "gelu": "gelu geluactivation newgeluactivation",
    "padding": "pad constantpad zeropad reflectionpad replicationpad circularpad constantpadnd",
    "space_to_depth": "pixelunshuffle",
    "depth_to_space": "pixelshuffle",
    "identity": "identity dropout alphadropout featurealphadropout",
    "zero": "zeros zeroslike",
    "layernorm": "layernorm groupnorm instancenorm rmsnorm nativelayernorm",
    "softmax": "softmax logsoftmax softmin",
    "leaky_relu": "leakyrelu elu selu celu prelu rrelu softplus mish",
}
_OPERATION = {name: operation for operation, names in _NAMES.items() for name in names.split()}
_BOOKKEEPING = (
    *("view", "reshape", "flatten", "unflatten", "permute", "transpose", "swapaxes", "movedim", "t", "contiguous"),
    *("clone", "detach", "to", "typeas", "float", "half", "double", "squeeze", "unsqueeze", "expand", "expandas"),
    *("chunk", "split", "splitwithsizes", "unbind", "getitem", "getattr", "alias", "liftfresh", "narrow", "select"),
    *("slice", "copy", "unsafeview", "viewas", "tensor", "size", "dim", "numel"),
)


@dataclass(frozen=True)
class _Step:
    """A primitive operation, or bookkeeping (``operation`` None) that is to be passed over."""

    operation: str | None
    sources: tuple[int, ...]
    out: tuple[int, ...]
    kernel: tuple[int, int] | None = None
    bias: bool = False


@checked
def computation_graph(model: nn.Module, example_input: Any) -> Any:
    """Returns the graph of a model's primitive operations as a ``torch_geometric.data.Data``.

    Traced with ``torch.fx``, and with ``torch.export`` where that fails, in eval mode and on one forward pass; modules,
    functions and methods of tensors count alike, names do not. Views, reshapes and splits are passed over; operations
    outside of the vocabulary become "oov". Nodes are in the order of execution:

    - ``op`` int64 ``(nodes,)``: positions in ``CG_OPERATIONS``.
    - ``shape`` float32 ``(nodes, 6)``: height, width and channels of the first input and of the output. Tokens
      ``(batch, tokens, channels)`` have their number as height, and what has three axes counts as tokens; vectors have
      height and width 1.
    - ``weighted`` bool ``(nodes,)``: convolutions, and products with a weight.
    - ``kernel`` int64 ``(nodes, 2)``: a weighted node's height and width of kernel less 1, at most 7; others 0.
    - ``bias`` int64 ``(nodes,)``: 1 where a weighted node has a bias.
    - ``edge_index`` int64 ``(2, edges)``: the flow of data.
    - ``flops`` (of one example, multiplications and additions), ``parameters``: numbers of the whole model; a warning
      tells where torch counts none.

    Args:
        model: is not changed, buffers that its ``forward`` counts up included; stays in its mode.
        example_input: a tensor or a tuple of them, with the batch in front. Another resolution gives other shapes, and
            so another prediction.

    Raises:
        ValueError: a model that cannot be traced (the message says where), an input that is empty or not finite.
        TypeError: an input that is no tensor.
        MissingExtraError: without torch-geometric.

    deviation: three of the five names that the published vocabulary reserves are given to what transformers need.

    Source: arXiv:2211.17226; github.com/Ascend-Research/GENNAPE.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
        >>> graph = computation_graph(model, torch.zeros(1, 1, 8, 8))
        >>> [CG_OPERATIONS[each] for each in graph.op]
        ['input', 'conv', 'relu', 'matmul', 'output']
        >>> graph.shape[1].tolist(), graph.kernel[1].tolist()
        ([8.0, 8.0, 1.0, 6.0, 6.0, 4.0], [2, 2])
    """
    geometric = require("torch_geometric.data")
    inputs = example_input if isinstance(example_input, tuple) else (example_input,)
    if not inputs or not all(isinstance(each, Tensor) for each in inputs):
        raise TypeError(f"example_input must be a tensor or a tuple of them, got {type(example_input).__name__}")
    for each in inputs:
        check_nonempty(example_input=each)
        check_finite(example_input=each)
    with evaluating(model), torch.no_grad(), _same_buffers(model):
        steps, unknown, flops = _traced(model, inputs)
    if not flops and any(parameter.ndim > 1 for parameter in model.parameters()):
        warnings.warn("torch counts no FLOPs of this model: flops is 0", stacklevel=3)
    if unknown:
        warnings.warn(f"outside of the vocabulary: {', '.join(sorted(unknown))}", stacklevel=3)
    nodes = _contracted(steps)
    kernels = [tuple(min(size, CG_KERNELS) - 1 for size in each.kernel or (1, 1)) for each in nodes]
    edges = [(source, target) for target, each in enumerate(nodes) for source in each.sources]
    return geometric.Data(
        op=torch.tensor([CG_OPERATIONS.index(each.operation or "oov") for each in nodes]),
        shape=torch.tensor(
            [[*_sizes(nodes[each.sources[0]].out if each.sources else each.out), *_sizes(each.out)] for each in nodes],
            dtype=torch.float32,
        ),
        weighted=torch.tensor([each.kernel is not None for each in nodes]),
        kernel=torch.tensor(kernels),
        bias=torch.tensor([int(each.bias) for each in nodes]),
        edge_index=torch.tensor(edges, dtype=torch.long).reshape(-1, 2).T.contiguous(),
        num_nodes=len(nodes),
        flops=flops / len(inputs[0]),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
    )


@checked
def shape_maxima(graphs: Sequence[Any]) -> tuple[float, float, float]:
    """Returns the largest height, width and number of channels in computation graphs: what shapes are divided by.

    Raises:
        ValueError: no graphs, or one without ``shape``.

    Example:
        >>> shape_maxima([computation_graph(nn.Conv2d(1, 4, 3), torch.zeros(1, 1, 8, 6))])
        (8.0, 6.0, 4.0)
    """
    check_nonempty(graphs=graphs)
    if not all(isinstance(getattr(graph, "shape", None), Tensor) for graph in graphs):
        raise ValueError("graphs must have shape, as those of computation_graph have")
    height, width, channels = (
        torch.cat([graph.shape for graph in graphs]).unflatten(1, (2, 3)).amax((0, 1)).clamp(min=1).tolist()
    )
    return height, width, channels


def _traced(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[list[_Step], set[str], float]:
    """Steps, names of unknown operations, and FLOPs of the whole batch."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # fused operators, of a layer or attention, count as nothing
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(*inputs)  # what fails here is the model's own error, and a bad example
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    flops = float(counter.get_total_flops())
    try:
        return *_by_fx(model, inputs), flops
    except Exception as error:
        first = error
    try:
        exported = torch.export.export(model, inputs, strict=False)
        return *_by_export(exported), flops
    except Exception as error:
        told = " ".join(str(error).split())[:300]
        raise ValueError(f"model cannot be traced, by torch.fx ({first}) nor by torch.export ({told})") from None


@contextmanager
def _same_buffers(model: nn.Module) -> Iterator[None]:
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for buffer, value in before:
            buffer.copy_(value)


class _Shapes(fx.Interpreter):
    """Runs a graph and notes the shape of the first tensor that each node gives, None where there is none."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[fx.Node, tuple[int, ...] | None] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        self.shapes[n] = _shape_of(result)
        return result


def _by_fx(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[list[_Step], set[str]]:
    parameters = list(inspect.signature(model.forward).parameters.values())[len(inputs) :]
    default = {each.name: each.default for each in parameters if each.default is not each.empty}
    graph = fx.symbolic_trace(model, concrete_args=default or None)
    interpreter = _Shapes(graph)
    interpreter.run(*inputs, *(value for value in default.values()))
    steps, unknown, position = list[_Step](), set[str](), dict[fx.Node, int]()
    given = 0
    for node in graph.graph.nodes:
        out = interpreter.shapes.get(node)
        sources = tuple(position[each] for each in node.all_input_nodes if each in position)
        if node.op == "placeholder":
            given += 1
            if given > len(inputs) or out is None:
                continue
            step = _Step("input", (), out)
        elif node.op == "get_attr" or (out is None and node.op != "output"):
            continue  # a weight, or a number
        elif node.op == "output":
            step = _Step("output", sources, out or ())
        elif node.op == "call_module":
            module = graph.get_submodule(str(node.target))
            step = _module_step(module, sources, out or ())
            unknown |= {type(module).__name__} if step.operation == "oov" else set()
        else:
            step = _function_step(node, sources, out or (), lambda each: interpreter.shapes.get(each), _is_weight)
            unknown |= {_word(node)} if step.operation == "oov" else set()
        position[node] = len(steps)
        steps.append(step)
    return steps, unknown


def _is_weight(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.op == "get_attr"


def _by_export(exported: Any) -> tuple[list[_Step], set[str]]:
    inputs = {each.arg.name for each in exported.graph_signature.input_specs if each.kind.name == "USER_INPUT"}
    steps, unknown, position = list[_Step](), set[str](), dict[fx.Node, int]()

    def shape_of(node: fx.Node) -> tuple[int, ...] | None:
        return _shape_of(node.meta.get("val"))

    def is_weight(node: Any) -> bool:
        return isinstance(node, fx.Node) and node.op == "placeholder" and node.name not in inputs

    for node in exported.graph.nodes:
        out = shape_of(node)
        sources = tuple(position[each] for each in node.all_input_nodes if each in position)
        if node.op == "placeholder" and node.name in inputs and out is not None:
            step = _Step("input", (), out)
        elif node.op == "output":
            step = _Step("output", sources, steps[sources[0]].out if sources else ())
        elif node.op in ("placeholder", "get_attr") or out is None:
            continue
        else:
            step = _function_step(node, sources, out, shape_of, is_weight)
            unknown |= {_word(node)} if step.operation == "oov" else set()
        position[node] = len(steps)
        steps.append(step)
    return steps, unknown


def _module_step(module: nn.Module, sources: tuple[int, ...], out: tuple[int, ...]) -> _Step:
    words = [_plain(kind.__name__) for kind in type(module).__mro__]  # a parametrised Linear is one
    word = next((each for each in words if each in _OPERATION), words[0])
    if word in _BOOKKEEPING:
        return _Step(None, sources, out)
    step = _Step(_OPERATION.get(word, "oov"), sources, out)
    if step.operation == "conv" and isinstance(module, nn.modules.conv._ConvNd):
        depthwise = module.groups > 1 and module.groups == module.in_channels
        operation = "depthwise" if depthwise else "conv"
        return replace(step, operation=operation, kernel=_pair(module.kernel_size), bias=module.bias is not None)
    if step.operation == "matmul":
        return replace(step, kernel=(1, 1), bias=getattr(module, "bias", None) is not None)
    return replace(step, operation="mean") if _pools_all(word, step.operation, out) else step


def _function_step(
    node: fx.Node, sources: tuple[int, ...], out: tuple[int, ...], shape_of: Any, is_weight: Any
) -> _Step:
    word = _word(node)
    if word in _BOOKKEEPING or not sources:  # what has no input is a constant
        return _Step(None, sources, out)
    step = _Step(_OPERATION.get(word, "oov"), sources, out)
    arguments = [*node.args, *node.kwargs.values()]
    weights = [shape_of(each) for each in arguments if is_weight(each)]
    if step.operation in ("conv", "matmul") and weights:
        bias = len(weights) > 1
        if step.operation == "matmul":
            return replace(step, kernel=(1, 1), bias=bias)
        weight = weights[0]
        last = node.args[6] if len(node.args) > 6 else node.kwargs.get("groups", 1)
        groups = last if isinstance(last, int) and not isinstance(last, bool) else 1
        operation = "depthwise" if groups > 1 and weight[1] == 1 else "conv"
        return replace(step, operation=operation, kernel=_pair(weight[2:]), bias=bias)
    return replace(step, operation="mean") if _pools_all(word, step.operation, out) else step


def _pools_all(word: str, operation: str | None, out: tuple[int, ...]) -> bool:
    return operation == "avgpool" and word.startswith("adaptive") and math.prod(out[2:]) == 1


def _contracted(steps: list[_Step]) -> list[_Step]:
    """Steps that the output depends on, and inputs, without bookkeeping, whose sources pass through."""
    through: list[tuple[int, ...]] = []
    for number, step in enumerate(steps):
        if step.operation is not None:
            through.append((number,))
        else:
            through.append(tuple(dict.fromkeys(each for source in step.sources for each in through[source])))
    sources = [tuple(dict.fromkeys(each for source in step.sources for each in through[source])) for step in steps]
    needed, todo = {number for number, step in enumerate(steps) if step.operation == "input"}, [len(steps) - 1]
    while todo:
        number = todo.pop()
        needed.add(number)
        todo += [each for each in sources[number] if each not in needed]
    kept = [number for number in range(len(steps)) if number in needed and steps[number].operation is not None]
    place = {number: position for position, number in enumerate(kept)}
    return [replace(steps[number], sources=tuple(place[each] for each in sources[number])) for number in kept]


def _shape_of(value: Any) -> tuple[int, ...] | None:
    if isinstance(value, Tensor):
        return tuple(int(size) for size in value.shape)
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, tuple | list):
        return next((shape for each in value if (shape := _shape_of(each)) is not None), None)
    return None


def _word(node: fx.Node) -> str:
    """The plain name of what a node calls: a method, a function, or an operator such as aten.conv2d.default."""
    target: Any = node.target
    if hasattr(target, "overloadpacket"):
        return _plain(target.overloadpacket.__name__)
    return _plain(target if isinstance(target, str) else getattr(target, "__name__", str(target)))


def _plain(name: str) -> str:
    """Without case, underscores and the number of dimensions: ``adaptive_avg_pool2d`` and ``AdaptiveAvgPool2d``."""
    return re.sub(r"[123]d$", "", name.replace("_", "").lower())


def _pair(kernel: Any) -> tuple[int, int]:
    sizes = [int(each) for each in (kernel if isinstance(kernel, Sequence) else (kernel,))]
    return (sizes[-2] if len(sizes) > 1 else 1, sizes[-1]) if sizes else (1, 1)


def _sizes(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Height, width and channels of a tensor with the batch in front."""
    if len(shape) == 4:
        return shape[2], shape[3], shape[1]
    return (math.prod(shape[1:-1]), 1, shape[-1]) if shape else (1, 1, 1)
