"""ITTA: a consistency loss that learns to agree with the main task, and small layers that it adapts at test time.

Source: arXiv:2304.04494 (Chen et al., Improved Test-Time Adaptation for Domain Generalization, CVPR 2023).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import Optimizer

from heldout.adapt.protocol import Stream, TestTimeAdapter, batch_size_of, outside_inference, sparing
from heldout.data import gather
from heldout.errors import check_at_least, check_positive, checked
from heldout.losses import LearnedConsistency, gradient_distance
from heldout.method import Batch, Method, Run, Splits, evaluating
from heldout.nn import AffineChain, StagedModel, draw_mix, inputs_for, mix_style, why_no_head

_ALIGNMENT = 0.1  # weight of the alignment loss and, in the released code, of its learning rate


@dataclass(frozen=True)
class Mix:
    """One random draw for a second view: after which stage styles are mixed, with whom and how much."""

    stage: int
    partner: Tensor
    weight: Tensor


@dataclass(frozen=True)
class ITTAState:
    """What ITTA's training produces and its test-time step needs.

    Args:
        model: the trained classifier, in stages.
        consistency: the learned loss on the difference of two views' features.
        alpha: of the Beta distribution of MixStyle's weights.
        mix_after: stages after one of which, drawn for each batch, the second view is mixed.

    Raises:
        ValueError: a stage that does not exist or whose output has no positions.
    """

    model: StagedModel
    consistency: LearnedConsistency
    alpha: float = 0.1
    mix_after: tuple[int, ...] = (0, 1)

    def __post_init__(self) -> None:
        for stage in self.mix_after:
            if not 0 <= stage < len(self.model.shapes):
                raise ValueError(f"mix_after must name stages 0..{len(self.model.shapes) - 1}, got {stage}")
            if len(self.model.shapes[stage]) < 2:
                raise ValueError(
                    f"styles cannot be mixed after stage {self.model.split_points[stage]!r}: "
                    f"its output {self.model.shapes[stage]} has no positions"
                )

    @classmethod
    @checked
    def of(
        cls,
        module: nn.Module,
        example_inputs: Any,
        split_points: Sequence[str] | None = None,
        *,
        depth: int = 10,
        alpha: float = 0.1,
    ) -> ITTAState:
        """Returns the state of a classifier with a new consistency loss; it shares the classifier's parameters.

        For a classifier that was trained without ITTA the loss stays as it is, unlearned.

        Args:
            module: any classifier that ``StagedModel.from_module`` can divide.
            example_inputs: a small batch of its inputs.
            split_points: names of submodules after which stages end; by default they are found.
            depth: of the ``LearnedConsistency``.
            alpha: as above.

        Example:
            >>> from heldout.nn import small_cnn
            >>> state = ITTAState.of(small_cnn(1, 10), torch.rand(2, 1, 8, 8))
            >>> adapter = ITTA(state, lr=1e-3)
            >>> adapter.probabilities(torch.rand(16, 1, 8, 8)).shape
            torch.Size([16, 10])
        """
        model = StagedModel.from_module(module, example_inputs, split_points)
        like = model.head.weight
        consistency = LearnedConsistency(model.dim, depth).to(like.device, like.dtype)
        return cls(model, consistency, alpha, tuple(range(min(2, len(model.shapes)))))

    @checked
    def draw(self, batch: int, generator: torch.Generator) -> Mix:
        """Returns a random mix for a batch of this size."""
        stage = self.mix_after[int(torch.randint(len(self.mix_after), (), generator=generator))]
        return Mix(stage, *draw_mix(batch, self.alpha, generator))

    @checked
    def views(
        self, inputs: Any, mix: Mix, layers: Sequence[nn.Module] | nn.ModuleList | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns features and logits of a batch, then features and logits of its style-mixed second view.

        One forward pass: up to the stage that is mixed the views are one, behind it they are one batch of twice the
        size (deviation: so that a BatchNorm in training mode sees both; the released code keeps BatchNorm frozen).

        Args:
            inputs: what the model takes.
            mix: from ``draw``.
            layers: one module for each stage, put behind it in both views.

        Raises:
            ValueError: the model does not carry a batch of another size through.
        """

        def doubled(output: Tensor) -> Tensor:
            partner = mix.partner.to(output.device)
            mixed = mix_style(output, partner, mix.weight, channel_dim=self.model.channel_dims[mix.stage])
            both = torch.cat([output, mixed])
            return layers[mix.stage](both) if layers else both

        edits: dict[int, Any] = dict(enumerate(layers or ()))
        edits[mix.stage] = doubled
        features, logits, _ = self.model.run(inputs, edits)
        size = len(mix.partner)
        if len(features) != 2 * size or len(logits) != 2 * size:
            raise ValueError("the model fixes the number of examples at its inputs: two views cannot share a pass")
        return features[:size], logits[:size], features[size:], logits[size:]


class ITTA(TestTimeAdapter):
    """Lowers the learned consistency loss on each batch over small layers between the stages, then predicts it.

    The layers, a chain of element-wise affine ones behind each stage, are the identity to begin with; the model and
    the loss stay as they are. Styles are mixed among the examples of a batch, so that a larger and more varied batch
    gives more signal, and a single example none. Works in eval mode (deviation: the released code leaves dropout on).
    Each step costs a forward pass of both views and a backward pass to the first layers, without weight gradients;
    predicting costs one more forward pass.

    The released code multiplies the loss by 1e-6, to which Adam is indifferent but for ``eps``: a factor c on the
    loss is ``eps / c``, so that 1e-6 is ``eps=1e-2``.

    Args:
        state: what training produced, or ``ITTAState.of`` any classifier.
        lr: learning rate of Adam; the paper's is a tenth of the training's.
        eps: Adam's; the larger, the weaker do small gradients act.
        steps: gradient steps per batch, each with a new draw of styles.
        size: "full" gives each position of a stage output its own scale and shift, as in the paper, which ties the
            adapter to one resolution; "channel" gives each channel one.
        depth: affine layers behind each stage; None is 5, or 1 where a stage output is negative somewhere, since
            the chain is the identity on non-negative values only.
        parameters: "layers", or "backbone" to adapt a copy of the whole backbone instead (the paper's ablation).
        reset: "never", or "batch" to start each batch afresh.
        single: what becomes of a batch of one example: "raise", or "predict" it without adapting.
        seed: of the mixed styles.

    Attributes:
        last_change: ``consistency`` (the loss before the last step), ``parameter_change`` (norm of the batch's
            update) and ``changed`` (mask ``(batch,)`` of the predictions that the update changed).

    Raises:
        ValueError: a batch of one example, a negative stage output under a chain with ReLU, another resolution, a
            frozen backbone that is to be adapted, or options out of range.

    Example:
        >>> from heldout.nn import small_cnn
        >>> adapter = ITTA(ITTAState.of(small_cnn(3, 10), torch.rand(2, 3, 8, 8)), lr=1e-2)
        >>> adapter(torch.rand(32, 3, 8, 8)).shape, sorted(adapter.last_change)
        (torch.Size([32, 10]), ['changed', 'consistency', 'parameter_change'])
    """

    @outside_inference
    @checked
    def __init__(
        self,
        state: ITTAState,
        *,
        lr: float = 1e-4,
        eps: float = 1e-8,
        steps: int = 1,
        size: Literal["full", "channel"] = "full",
        depth: int | None = None,
        parameters: Literal["layers", "backbone"] = "layers",
        reset: Literal["never", "batch"] = "never",
        single: Literal["raise", "predict"] = "raise",
        seed: int = 0,
    ) -> None:
        if steps < 1 or not lr > 0 or not eps > 0 or (depth is not None and depth < 1):
            raise ValueError(f"needs steps >= 1, depth >= 1, lr > 0 and eps > 0, got {steps}, {depth}, {lr} and {eps}")
        for name, value, allowed in (
            ("size", size, ("full", "channel")),
            ("parameters", parameters, ("layers", "backbone")),
            ("reset", reset, ("never", "batch")),
            ("single", single, ("raise", "predict")),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be {allowed[0]!r} or {allowed[1]!r}, got {value!r}")
        self.lr, self.eps, self.steps, self.seed = lr, eps, steps, seed
        self._fresh_batches, self._single = reset == "batch", single
        self.last_change: dict[str, Any] = {}
        self.layers: nn.ModuleList | None = None
        if parameters == "backbone":
            self.state = ITTAState(
                copy.deepcopy(state.model), copy.deepcopy(state.consistency), state.alpha, state.mix_after
            )
            self._parameters = self.state.model.backbone_parameters()
            if not self._parameters:
                raise ValueError(
                    'parameters="backbone" has nothing to adapt: no parameter before the head requires a gradient; '
                    'unfreeze some of them (requires_grad_), or use parameters="layers"'
                )
        else:
            self.state = state
            self.layers = _layers(state.model, size, depth)
            self._parameters = list(self.layers.parameters())
        self._start = [p.detach().clone() for p in self._parameters]
        self.reset()

    @sparing
    def __call__(self, inputs: Any) -> Tensor:
        batch = batch_size_of(inputs)
        if batch < 2 and self._single == "raise":
            raise ValueError(f"itta needs at least 2 examples in a batch, got {batch}: a style is mixed with another's")
        if self._fresh_batches:
            self.reset()
        module = self.state.model.module
        with evaluating(module), evaluating(self.state.consistency):
            for layer in self.layers or ():
                layer.examples = batch  # type: ignore[assignment]
            before = [p.detach().clone() for p in self._parameters]
            first: Tensor | None = None
            loss = math.nan
            for _ in range(self.steps if batch > 1 else 0):
                mix = self.state.draw(batch, self._generator)
                with torch.enable_grad():
                    z, logits, other_z, _ = self.state.views(inputs, mix, self.layers)
                    value = self.state.consistency(other_z - z)
                first = logits.detach() if first is None else first
                loss = value.item()
                gradients = torch.autograd.grad(value, self._parameters, allow_unused=True)
                for parameter, gradient in zip(self._parameters, gradients, strict=True):
                    parameter.grad = gradient
                self._optimizer.step()
                self._optimizer.zero_grad()
            with torch.no_grad():
                _, logits, _ = self.state.model.run(inputs, dict(enumerate(self.layers or ())))
        moved = [(p.detach() - b).square().sum() for p, b in zip(self._parameters, before, strict=True)]
        self.last_change = {
            "consistency": loss,
            "parameter_change": torch.stack(moved).sum().sqrt().item(),
            "changed": torch.zeros(batch, dtype=torch.bool, device=logits.device)
            if first is None
            else first.argmax(1) != logits.argmax(1),
        }
        return logits.log_softmax(1)

    @outside_inference
    def reset(self) -> None:
        with torch.no_grad():
            for parameter, start in zip(self._parameters, self._start, strict=True):
                parameter.copy_(start)
        self._optimizer = torch.optim.Adam(self._parameters, lr=self.lr, eps=self.eps)
        self._generator = torch.Generator().manual_seed(self.seed)
        self.last_change = {}

    def state_dict(self) -> dict[str, Any]:
        learnt = {"parameters": [p.detach() for p in self._parameters], "optimizer": self._optimizer.state_dict()}
        return copy.deepcopy(learnt) | {"generator": self._generator.get_state()}

    @checked
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        with torch.no_grad():
            for parameter, value in zip(self._parameters, state["parameters"], strict=True):
                parameter.copy_(value)
        self._optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self._generator.set_state(state["generator"].cpu())


class _Layer(AffineChain):
    """The chain behind one stage, which refuses what it would not leave alone when new.

    Only the first view is looked at, the first ``examples`` rows: mixing styles can make a value negative.
    """

    def __init__(self, shape: Sequence[int], depth: int, stage: str, output: tuple[int, ...] | None) -> None:
        super().__init__(shape, depth)
        self.stage, self.output = stage, output
        self.examples: int | None = None

    def forward(self, values: Tensor) -> Tensor:
        if self.output is not None and tuple(values.shape[1:]) != self.output:
            raise ValueError(
                f"the adaptive layers are for outputs {self.output} of stage {self.stage!r}, "
                f'got {tuple(values.shape[1:])}: use size="channel" for images of several resolutions'
            )
        if len(self.weight) > 1 and bool((values[: self.examples] < 0).any()):
            raise ValueError(
                f"stage {self.stage!r} gives negative values, which adaptive layers with ReLU would cut off: "
                "split behind its activation, or use depth=1"
            )
        return super().forward(values)


def _layers(model: StagedModel, size: str, depth: int | None) -> nn.ModuleList:
    layers, full = nn.ModuleList(), size == "full"
    stages = zip(model.split_points, model.shapes, model.channel_dims, model.signed, strict=True)
    for name, shape, channel_dim, signed in stages:
        channels = (shape[0], *[1] * (len(shape) - 1)) if channel_dim == 1 else shape[-1:]
        layers.append(_Layer(shape if full else channels, depth or (1 if signed else 5), name, shape if full else None))
    like = model.head.weight
    return layers.to(like.device, like.dtype)


class _WithGradient(torch.autograd.Function):
    """A loss whose gradient is known already: its backward pass hands it out."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor | None], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return None, None, *(None if g is None else upstream * g for g in ctx.gradients)


class _Training:
    """The two updates of a training step on one forward pass of both views.

    The gradients of the main loss and of the consistency loss are needed apart, for the alignment, and summed, for the
    model; so the model's own backward pass is their sum. One more pass gives the weighting its gradient. That is one
    forward and 3 backward passes of both views, where the released code needs 2 and 4.
    """

    def __init__(
        self, state: ITTAState, optimizer: Optimizer | None, lr: float | None, align_every: int | None
    ) -> None:
        self.state, self.lr, self.align_every = state, lr, align_every
        self._main_optimizer = optimizer
        self._weighting = list(state.consistency.parameters()) if align_every else []
        self._optimizer = torch.optim.Adam(self._weighting, lr=self._rate()) if self._weighting else None
        self._mix: Mix | None = None

    def _rate(self) -> float:
        if self.lr is not None:
            return self.lr
        optimizer = self._main_optimizer  # the paper's is Adam; the rate of another kind says nothing for Adam's
        adaptive = optimizer is not None and "adam" in type(optimizer).__name__.lower()
        return _ALIGNMENT * (optimizer.param_groups[0]["lr"] if optimizer is not None and adaptive else 1e-3)

    def loss(self, run: Run, batch: Batch) -> Tensor:
        if run.evaluation == 0 or self._mix is None:
            self._mix = self.state.draw(len(batch.targets), run.generator)
        due = run.evaluation == 0 and run.step % (self.align_every or 1) == 0
        aligning = due and self._optimizer is not None
        with _twice_differentiable(aligning):
            z, batch.cached_logits, other_z, other_logits = self.state.views(batch.inputs, self._mix)
        main = run.objective(batch.cached_logits, batch.targets) + run.objective(other_logits, batch.targets)
        consistency = self.state.consistency(other_z - z)
        if not aligning or self._optimizer is None:
            return main + consistency
        backbone = self.state.model.backbone_parameters()
        head = [p for p in self.state.model.head.parameters() if p.requires_grad]
        goal = torch.autograd.grad(main, [*backbone, *head], retain_graph=True, allow_unused=True)
        pull = torch.autograd.grad(consistency, backbone, create_graph=True, allow_unused=True)
        self._align(_ALIGNMENT * gradient_distance(pull, goal[: len(backbone)]))
        total = [_sum(a, b) for a, b in zip(goal, [*pull, *[None] * len(head)], strict=True)]
        return _WithGradient.apply((main + consistency).detach(), total, *backbone, *head)  # type: ignore[no-any-return]

    def _align(self, distance: Tensor) -> None:
        if self._optimizer is None:
            return
        for parameter, gradient in zip(
            self._weighting, torch.autograd.grad(distance, self._weighting, allow_unused=True), strict=True
        ):
            parameter.grad = gradient
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate()
        self._optimizer.step()
        self._optimizer.zero_grad()


@checked
def itta(
    *,
    split_points: Sequence[str] | None = None,
    depth: int = 10,
    alpha: float = 0.1,
    consistency_lr: float | None = None,
    align_every: int | None = 4,
    lr: float = 1e-4,
    eps: float = 1e-8,
    steps: int = 1,
    size: Literal["full", "channel"] = "full",
    batch_size: int = 32,
) -> Method:
    """Trains on style-mixed second views with a consistency loss that learns to agree; adapts small layers by it.

    Needs a network whose stages can be found or named: convolutional ones, and transformers (where the adaptive
    layers are single affine ones, since tokens are negative too). The state that training produced is
    ``fitted.predictor.state``. A last test batch of a single example is predicted without adapting.

    Deviations: the weighting learns in every fourth step only, which keeps a training step below three plain ones
    (``align_every=1`` is the paper's), and at the parameters that the step starts from, not at those it ends with,
    which saves a forward and two backward passes. Counting a forward pass of one view as 1, a backward pass as 2, and
    taking the views as one up to the stage that is mixed, a plain step costs 3, a step that does not align up to 6, and
    one that does up to 14.

    Args:
        split_points: names of submodules after which stages end; by default they are found.
        depth: affine layers of the learned consistency; 0 is a plain mean squared difference.
        alpha: of MixStyle's Beta distribution.
        consistency_lr: learning rate of Adam for the consistency; None is a tenth of the model's at each step where
            that is of the Adam family, and 1e-4 elsewhere.
        align_every: steps from one update of the consistency to the next; None leaves it unlearned, as ReLU.
        lr: of the adaptive layers at test time, see ``ITTA``.
        eps: of their Adam.
        steps: their gradient steps per batch.
        size: "full" or "channel".
        batch_size: of the test batches.

    Source: arXiv:2304.04494.

    Example:
        >>> itta(lr=1e-3).name
        'itta'
    """
    check_positive(lr=lr, eps=eps, alpha=alpha)
    check_at_least(1, steps=steps, batch_size=batch_size)
    check_at_least(0, depth=depth)
    if align_every is not None and align_every < 1:
        raise ValueError(f"align_every must be at least 1 or None, got {align_every}")

    def state_of(module: nn.Module, splits: Splits) -> ITTAState:
        inputs, _ = gather(splits.train, torch.arange(min(2, len(splits.train))))  # type: ignore[arg-type]
        return ITTAState.of(module, inputs_for(module, inputs), split_points, depth=depth, alpha=alpha)

    def check(module: nn.Module, splits: Splits) -> str | None:
        if reason := why_no_head(module, splits):
            return reason
        try:
            _try(state_of(module, splits), module, splits)
        except (ValueError, RuntimeError) as error:
            return str(error).splitlines()[0]
        return None

    def optimizer(run: Run, optimizer: Optimizer) -> Optimizer:
        run.state["itta-optimizer"] = optimizer
        return optimizer

    def loss(run: Run, batch: Batch) -> Tensor:
        if "itta" not in run.state:
            state = state_of(run.module, run.splits)
            run.state["itta"] = _Training(state, run.state.get("itta-optimizer"), consistency_lr, align_every)
        return run.state["itta"].loss(run, batch)

    def predict(run: Run, module: nn.Module) -> Stream:
        state = state_of(module, run.splits)
        if "itta" in run.state:
            state = ITTAState(state.model, run.state["itta"].state.consistency, alpha, state.mix_after)
        return Stream(ITTA(state, lr=lr, eps=eps, steps=steps, size=size, single="predict"), batch_size)

    return Method("itta", optimizer=optimizer, loss=loss, predict=predict, check=check)


def _try(state: ITTAState, module: nn.Module, splits: Splits) -> None:
    """Raises where two views cannot share a pass, or gradients cannot be differentiated again."""
    inputs, _ = gather(splits.train, torch.arange(min(2, len(splits.train))))  # type: ignore[arg-type]
    inputs = inputs_for(module, inputs)
    size = batch_size_of(inputs)
    with evaluating(module), torch.enable_grad():
        _, plain, _ = state.model.run(inputs)
        for stage in state.mix_after:
            mix = Mix(stage, torch.arange(size).flip(0), torch.zeros(size))
            with _twice_differentiable(True):
                z, logits, other_z, _ = state.views(inputs, mix)
            if not torch.allclose(logits, plain, rtol=1e-3, atol=1e-4):
                raise ValueError("the model mixes the examples of a batch: two views cannot share a pass")
        parameters = state.model.backbone_parameters()
        weighting = list(state.consistency.parameters())
        if weighting:
            goal = torch.autograd.grad(logits.sum(), parameters, retain_graph=True, allow_unused=True)
            pull = torch.autograd.grad(state.consistency(other_z - z), parameters, create_graph=True, allow_unused=True)
            torch.autograd.grad(gradient_distance(pull, goal), weighting, allow_unused=True)


@contextmanager
def _twice_differentiable(needed: bool) -> Iterator[None]:
    """Attention in its plain form, the only one whose backward pass has a derivative."""
    if needed:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    else:
        yield


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return a if b is None else b.detach()
    return a + b.detach()
