"""Core: A network seen as a row of stages, whose outputs can be read and replaced without changing the network."""

from __future__ import annotations

import functools
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from heldout.errors import check_nonempty, checked
from heldout.method import evaluating, forward
from heldout.nn.features import split_head

Edit = Callable[[Tensor], Tensor]


class AffineChain(nn.Module):
    """Element-wise affine layers with ReLU between them: the identity on non-negative values when it is new.

    Args:
        shape: of the scale and shift of each layer; it broadcasts against ``(batch, *shape)``.
        depth: number of layers. A single one has no ReLU and is the identity on all values; none is the identity.

    Raises:
        ValueError: a negative depth.

    Example:
        >>> chain = AffineChain((4, 1, 1), depth=5)
        >>> x = torch.rand(2, 4, 3, 3)
        >>> torch.equal(chain(x), x)
        True

    Source: arXiv:2304.04494, sections 3.1 and 3.2.
    """

    @checked
    def __init__(self, shape: Sequence[int], depth: int = 5) -> None:
        check_nonempty(shape=shape)
        super().__init__()
        if depth < 0:
            raise ValueError(f"depth must not be negative, got {depth}")
        self.weight = nn.ParameterList(torch.ones(*shape) for _ in range(depth))
        self.bias = nn.ParameterList(torch.zeros(*shape) for _ in range(depth))

    @checked
    def forward(self, values: Tensor) -> Tensor:
        for number, (weight, bias) in enumerate(zip(self.weight, self.bias, strict=True)):
            values = torch.addcmul(bias, values.relu() if number else values, weight)
        return values


class StagedModel(nn.Module):
    """A classifier with named points between its stages; it shares the parameters of the network it describes.

    Made of stages, or ``from_module`` of any network by the names of its submodules. Calling it is calling the network.

    Args:
        stages: modules, each on the output of the one before.
        pool: the last stage's output to features ``(batch, dim)``.
        head: features to logits.
        example_inputs: a small batch, to learn the shapes of the stage outputs.

    Attributes:
        module: the whole network.
        split_points: names of the submodules whose outputs are the stage outputs.
        shapes: shape of each stage output without the batch.
        channel_dims: the axis of channels of each stage output: 1, or -1 for tokens ``(batch, tokens, dim)``.
        signed: whether a stage output has negative values.
        dim: length of the feature vector that enters the head.

    Raises:
        ValueError: a split point that is missing, does not give one tensor, or runs more than once.

    Example:
        >>> stages = [nn.Sequential(nn.Conv2d(c, 4, 3), nn.ReLU()) for c in (3, 4)]
        >>> pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> model = StagedModel(stages, pool, nn.Linear(4, 10), example_inputs=torch.rand(2, 3, 8, 8))
        >>> model.shapes, model.dim
        ([(4, 6, 6), (4, 4, 4)], 4)
    """

    @checked
    def __init__(self, stages: Sequence[nn.Module], pool: nn.Module, head: nn.Linear, *, example_inputs: Any) -> None:
        check_nonempty(stages=stages)
        super().__init__()
        parts = OrderedDict((f"stage{number}", stage) for number, stage in enumerate(stages, start=1))
        self._describe(nn.Sequential(parts | {"pool": pool, "head": head}), list(parts), example_inputs)

    @classmethod
    @checked
    def from_module(
        cls, module: nn.Module, example_inputs: Any, split_points: Sequence[str] | None = None
    ) -> StagedModel:
        """Returns the staged view of a network. Nothing is copied, and no hook stays behind.

        Args:
            module: a classifier; its last ``nn.Linear`` is the head, see ``split_head``.
            example_inputs: a small batch of its inputs.
            split_points: names of submodules in the order in which they run; by default ``find_stages``.

        Example:
            >>> from heldout.nn import small_cnn
            >>> StagedModel.from_module(small_cnn(1, 10), torch.rand(2, 1, 28, 28)).split_points
            ['block1', 'block2', 'block3']
        """
        staged = cls.__new__(cls)
        nn.Module.__init__(staged)
        names = find_stages(module, example_inputs) if split_points is None else list(split_points)
        staged._describe(module, names, example_inputs)
        return staged

    def _describe(self, module: nn.Module, names: list[str], example_inputs: Any) -> None:
        known = dict(module.named_modules())
        if missing := [name for name in names if not name or name not in known]:
            raise ValueError(f"the model has no submodule {missing[0]!r}: split points are names of named_modules()")
        if not names or len(set(names)) < len(names):
            raise ValueError(f"split_points needs at least one name, each once, got {names}")
        self.module, self.split_points = module, names
        _, head = split_head(module, example_inputs)
        self._head = next(name for name, part in known.items() if part is head)
        if not self._head:
            raise ValueError("the model is a single nn.Linear: it has no stages")
        self.shapes: list[tuple[int, ...]] = []
        self.channel_dims: list[int] = []
        self.signed: list[bool] = []
        with evaluating(module), torch.no_grad():
            features, _, outputs = self.run(example_inputs)
        self.dim = features.shape[1]
        widths = {m.normalized_shape[-1] for m in module.modules() if isinstance(m, nn.LayerNorm | nn.RMSNorm)}
        convolves = any(isinstance(m, nn.Conv1d) for m in module.modules())
        for output in outputs:
            self.shapes.append(tuple(output.shape[1:]))
            tokens = output.ndim == 3 and (output.shape[-1] in widths or not convolves)
            self.channel_dims.append(-1 if tokens else 1)
            self.signed.append(bool((output < 0).any()))

    @property
    def head(self) -> nn.Linear:
        """The classification layer."""
        return self.module.get_submodule(self._head)  # type: ignore[return-value]

    def backbone_parameters(self) -> list[nn.Parameter]:
        """Returns the trainable parameters of everything but the head."""
        head = {id(p) for p in self.head.parameters()}
        return [p for p in self.module.parameters() if p.requires_grad and id(p) not in head]

    def forward(self, *inputs: Any, **named_inputs: Any) -> Tensor:
        return forward(self.module, named_inputs or inputs)

    @checked
    def run(self, inputs: Any, edits: Mapping[int, Edit] | None = None) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Returns the features that enter the head, the logits, and the stage outputs of one forward pass.

        Args:
            inputs: a tensor, a tuple of them, or a dict of keyword arguments.
            edits: by stage number from 0, what goes on in place of the stage's output. A row of more examples than
                came in is carried through to the logits.

        Raises:
            ValueError: a stage did not run, or ran more than once.
        """
        edits = edits or {}
        outputs: list[Tensor | None] = [None] * len(self.split_points)
        entered: list[Tensor] = []

        def at(number: int) -> Callable[..., Tensor]:
            def hook(_module: nn.Module, _args: Any, output: Any) -> Tensor:
                name = self.split_points[number]
                if not isinstance(output, Tensor):
                    raise ValueError(f"stage {name!r} must give a tensor, it gives a {type(output).__name__}")
                if outputs[number] is not None:
                    raise ValueError(f"stage {name!r} runs more than once in a forward pass")
                outputs[number] = output
                return edits[number](output) if number in edits else output

            return hook

        handles = [
            self.module.get_submodule(name).register_forward_hook(at(number))
            for number, name in enumerate(self.split_points)
        ]
        handles.append(self.head.register_forward_pre_hook(lambda _, args: entered.append(args[0])))
        try:
            logits = forward(self.module, inputs)
        finally:
            for handle in handles:
                handle.remove()
        for name, output in zip(self.split_points, outputs, strict=True):
            if output is None:
                raise ValueError(f"stage {name!r} does not run in a forward pass")
        if len(entered) != 1 or entered[0].ndim != 2:
            raise ValueError("the head must run once, on one vector (batch, dim) for each example")
        return entered[0], logits, outputs  # type: ignore[return-value]


@checked
def stages_of(model: StagedModel) -> dict[str, Any]:
    """Returns what a staged view says of its network, as JSON takes it; the other side of it is ``staged_as``.

    Example:
        >>> from heldout.nn import small_cnn
        >>> network = small_cnn(1, 10)
        >>> known = stages_of(StagedModel.from_module(network, torch.rand(2, 1, 28, 28)))
        >>> staged_as(network, known).split_points
        ['block1', 'block2', 'block3']
    """
    return {
        "split_points": list(model.split_points),
        "head": next(name for name, part in model.module.named_modules() if part is model.head),
        "shapes": [list(shape) for shape in model.shapes],
        "channel_dims": list(model.channel_dims),
        "signed": list(model.signed),
        "dim": model.dim,
    }


@checked
def staged_as(module: nn.Module, stages: Mapping[str, Any]) -> StagedModel:
    """Returns the staged view of a network that ``stages_of`` a network like it has told; nothing is run.

    Args:
        module: a network with submodules of the same names.
        stages: what ``stages_of`` returned, also after JSON.

    Raises:
        ValueError: the network has no submodule of one of the names, or nothing is told.

    Example:
        >>> from heldout.nn import small_cnn
        >>> known = stages_of(StagedModel.from_module(small_cnn(1, 10), torch.rand(2, 1, 28, 28)))
        >>> other = small_cnn(1, 10)
        >>> staged = staged_as(other, known)
        >>> staged.module is other, stages_of(staged) == known
        (True, True)
    """
    check_nonempty(stages=stages)
    known = dict(module.named_modules())
    if missing := [name for name in (*stages["split_points"], stages["head"]) if name not in known]:
        raise ValueError(f"the model has no submodule {missing[0]!r}, at which its stages were")
    staged = StagedModel.__new__(StagedModel)
    nn.Module.__init__(staged)
    staged.module, staged.split_points, staged._head = module, list(stages["split_points"]), stages["head"]
    staged.shapes = [tuple(shape) for shape in stages["shapes"]]
    staged.channel_dims, staged.signed = list(stages["channel_dims"]), list(stages["signed"])
    staged.dim = stages["dim"]
    return staged


@checked
def find_stages(module: nn.Module, example_inputs: Any) -> list[str]:
    """Returns names of submodules at which a network divides into stages, in the order in which they run.

    In a convolutional network a stage ends where the resolution is about to change: at the last of the outermost
    submodules with outputs of that resolution. In a transformer the longest list of blocks on tokens of one shape is
    divided into up to four equal parts. Submodules that run more than once are left out, and so are those behind which
    a batch of twice the size is not carried to the logits, such as a branch that is added outside of any submodule:
    the next candidate is tried then. Costs one forward pass, and one more for each candidate.

    Args:
        module: a classifier, used in eval mode.
        example_inputs: a small batch of its inputs.

    Raises:
        ValueError: fewer than two stages can be found; name the split points yourself then.

    Example:
        >>> from heldout.nn import tiny_vit
        >>> find_stages(tiny_vit(8, 4, dim=16, depth=8, heads=2), torch.rand(1, 3, 8, 8))
        ['blocks.1', 'blocks.3', 'blocks.5', 'blocks.7']
    """
    trace: list[tuple[str, tuple[int, ...]]] = []
    handles = []
    for name, part in module.named_modules():
        if name:

            def hook(_module: nn.Module, _args: Any, output: Any, name: str = name) -> None:
                trace.append((name, tuple(output.shape[1:]) if isinstance(output, Tensor) else ()))

            handles.append(part.register_forward_hook(hook))
    try:
        with evaluating(module), torch.no_grad():
            forward(module, example_inputs)
    finally:
        for handle in handles:
            handle.remove()
    runs: dict[str, int] = {}
    for name, _ in trace:
        runs[name] = runs.get(name, 0) + 1
    once = [(name, shape) for name, shape in trace if runs[name] == 1]
    carries = functools.cache(functools.partial(_carries, module, example_inputs))
    found = _by_resolution([(name, shape) for name, shape in once if len(shape) >= 3], carries)
    if len(found) < 2:
        found = [name for name in _by_blocks(module, dict(once)) if carries(name)]
    if len(found) < 2 and any(isinstance(part, nn.Conv1d) for part in module.modules()):
        found = _by_resolution([(name, shape) for name, shape in once if len(shape) == 2], carries)
    if len(found) < 2:
        raise ValueError(
            "no stages can be found in the model (behind a stage, two views share a pass as one larger batch): "
            "name the submodules to split at as split_points"
        )
    return found


def _carries(module: nn.Module, example_inputs: Any, name: str) -> bool:
    """Whether a batch that is doubled behind a submodule arrives at the logits, the same in both halves."""
    with evaluating(module), torch.no_grad():
        plain = forward(module, example_inputs)
        handle = module.get_submodule(name).register_forward_hook(lambda _m, _a, output: torch.cat([output, output]))
        try:
            doubled = forward(module, example_inputs)
        except (RuntimeError, ValueError, IndexError):
            return False
        finally:
            handle.remove()
    twice = torch.cat([plain, plain])
    return doubled.shape == twice.shape and torch.allclose(doubled, twice, rtol=1e-3, atol=1e-4, equal_nan=True)


def _by_resolution(trace: Sequence[tuple[str, tuple[int, ...]]], carries: Callable[[str], bool]) -> list[str]:
    candidates: dict[tuple[int, ...], list[str]] = {}
    for name, shape in trace:
        if math.prod(shape[1:]) > 1:
            candidates.setdefault(shape[1:], []).append(name)
    order = {name: number for number, (name, _) in enumerate(trace)}
    found = []
    for names in candidates.values():
        outermost_last_first = sorted(names, key=lambda name: (name.count("."), -order[name]))
        if best := next(filter(carries, outermost_last_first), None):
            found.append(best)
    return sorted(found, key=order.__getitem__)


def _by_blocks(module: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    best: list[str] = []
    for name, part in module.named_modules():
        if not isinstance(part, nn.ModuleList | nn.Sequential):
            continue
        blocks = [f"{name}.{child}" if name else child for child, _ in part.named_children()]
        of_one_shape = {shapes.get(block, ()) for block in blocks}
        if len(of_one_shape) == 1 and len(next(iter(of_one_shape))) == 2 and len(blocks) > len(best):
            best = blocks
    parts = min(4, len(best))
    return [best[(number + 1) * len(best) // parts - 1] for number in range(parts)]
