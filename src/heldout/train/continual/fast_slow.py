"""Fast and slow weights: the fast ones learn each small task, the slow ones take over only a gated part of it.

After "Few-shot Continual Learning: a Brain-inspired Approach" (arXiv:2104.09034), two-step consolidation. The equations
are a reconstruction: the abstract fixes two sets of weights that depend on each other, meta-plasticity, a fast set that
does not forget and a slow one that does not overfit, and no code is known; how much of it is as the authors have it
cannot be told. Each piece can be switched off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heldout.data import gather, to_device
from heldout.errors import check_at_least, check_fraction, check_nonnegative, check_one_of, checked
from heldout.method import as_dataset, device_of, evaluating, forward
from heldout.nn import PrototypeClassifier, inputs_for
from heldout.train.continual.anchored import EWC, SynapticIntelligence
from heldout.train.continual.exemplars import joined
from heldout.train.continual.fit_stream import TrainTask
from heldout.train.continual.strategy import ContinualStrategy
from heldout.train.supervised import OptimizerFactory, make_optimizer
from heldout.weights import ema_step

ExampleLoss = Callable[[Tensor, Tensor], Tensor]


class FastSlow(ContinualStrategy):
    """Two-step consolidation: fast weights F learn a task near slow weights S, then S takes a gated step towards F.

    Step 1: ``F <- S``, then the loss of the task plus ``strength / 2 * sum_i Omega_i (F_i - S_i)^2``. Step 2: ``Omega
    <- decay Omega + importance on the task``, then ``S_i <- S_i + eta_i (F_i - S_i)`` with
    ``eta_i = eta / (1 + kappa Omega_i / mean(Omega))``: what is used much changes slowly. No gradient reaches S.

    The module that is trained holds F; ``slow`` and ``fast`` put either set into it for a while. With ``kappa`` and
    ``strength`` 0 this is Reptile over the stream; with ``eta`` 1 and ``kappa`` 0, fine-tuning with online EWC; with
    ``eta`` 0 S stays the base model. Buffers of floating point move at ``eta``. Costs two copies of the weights and
    one of Omega, the importance's pass over a task, and a few passes over the weights a step.

    Args:
        strength: lambda, of the pull to S, at least 0; which is right depends on the scale of Omega.
        eta: most that S moves towards F, in [0, 1].
        kappa: how much importance slows, at least 0.
        importance: "fisher", as ``EWC`` has it; "si", as ``SynapticIntelligence``; None: no Omega, and so no pull and
            no gate.
        decay: gamma, of Omega from task to task, in [0, 1].
        reset: whether F starts from S at each task; False goes on with the F of the task before.
        memory_per_class: examples of each class that are kept; ``memory_strength`` times the mean squared distance of
            their outputs from what they were after their task is added to the loss.
        memory_strength: mu, at least 0.
        loss: ``(outputs, targets) -> (batch,)`` of each example for the Fisher information; default: as ``EWC``.
        seed: of the choice of examples to keep.

    Raises:
        ValueError: options out of range.

    Source: arXiv:2104.09034, reconstructed from its abstract; meta-plasticity as in Benna and Fusi, Nature Neuroscience
    19 (2016), Reptile: arXiv:1803.02999.

    Example:
        >>> model, strategy = nn.Linear(1, 2, bias=False), FastSlow(eta=0.5, importance=None)
        >>> before = model.weight.detach().clone()
        >>> data = (torch.ones(4, 1), torch.tensor([0, 1, 0, 0]))
        >>> strategy.begin_task(model, data)
        >>> with torch.no_grad():
        ...     _ = model.weight.add_(1.0)
        >>> strategy.end_task(model, data)
        >>> with strategy.slow(model):
        ...     round((model.weight - before).mean().item(), 4)
        0.5
        >>> round((model.weight - before).mean().item(), 4)
        1.0
    """

    name = "fast_slow"

    @checked
    def __init__(
        self,
        strength: float = 1.0,
        *,
        eta: float = 0.1,
        kappa: float = 1.0,
        importance: Literal["fisher", "si"] | None = "fisher",
        decay: float = 1.0,
        reset: bool = True,
        memory_per_class: int = 0,
        memory_strength: float = 1.0,
        loss: ExampleLoss | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_nonnegative(strength=strength, kappa=kappa, memory_strength=memory_strength)
        check_fraction(eta=eta, decay=decay)
        check_at_least(0, memory_per_class=memory_per_class)
        check_one_of(("fisher", "si"), importance=importance)
        self.eta, self.kappa, self.decay, self.reset = eta, kappa, decay, reset
        self.memory_per_class, self.memory_strength, self.seed = memory_per_class, memory_strength, seed
        self._keeper: EWC | SynapticIntelligence | None = None
        if importance == "fisher":
            self._keeper = EWC(strength, decay=decay, loss=loss)
        elif importance == "si":
            self._keeper = SynapticIntelligence(strength / 2)
        self._slow: dict[str, Tensor] = {}
        self._fast: dict[str, Tensor] = {}
        self._memory: tuple[Any, Tensor] | None = None  # inputs, and the outputs that they had

    @property
    def omega(self) -> dict[str, Tensor]:
        """The importance of each weight, by parameter name; empty before the first."""
        return {} if self._keeper is None else self._keeper.penalty.importance

    @checked
    def rates(self, model: nn.Module) -> dict[str, Tensor]:
        """Returns eta_i of each weight, by the names of the model's state dict: in [0, eta]."""
        state = {name: value for name, value in model.state_dict().items() if value.is_floating_point()}
        wide = {name: torch.promote_types(value.dtype, torch.float32) for name, value in state.items()}
        rates = {name: torch.full_like(value, self.eta, dtype=wide[name]) for name, value in state.items()}
        omega = self.omega
        count = sum(value.numel() for value in omega.values())
        mean = sum(float(value.double().sum()) for value in omega.values()) / count if count else 0.0
        if mean > 0:
            for name, value in omega.items():
                rates[name] = self.eta / (1 + self.kappa * (value.to(wide[name]) / mean))
        first: dict[Any, str] = {}
        for name, value in state.items():  # tied weights move as one
            rates[name] = (
                rates[first.setdefault((value.data_ptr(), value.shape), name)] if value.numel() else rates[name]
            )
        return rates

    @checked
    def protect(self, model: nn.Module, data: Any) -> None:
        """Adds the importance of what the model knows before the stream, such as its base classes.

        Args:
            model: as it will be when the stream begins.
            data: what it knows: a data set or a pair of tensors.

        Raises:
            ValueError: there is no Fisher information: it needs ``importance="fisher"``; or a task was learnt already.
        """
        if not isinstance(self._keeper, EWC):
            raise ValueError('protect needs importance="fisher": other importances come from training')
        if self.tasks_done:
            raise ValueError(f"protect must come before the first task, {self.tasks_done} are learnt")
        self._keeper.end_task(model, data)

    @checked
    def begin_task(self, model: nn.Module, data: Any) -> None:
        """Sets F to S; before the first task S is the model as it is."""
        if not self._slow:
            self._slow = _copied(model)
        if self.reset:
            model.load_state_dict(self._slow)
        if self._keeper is not None:
            if self.omega:
                self._keeper.penalty.replace(self.omega, {name: self._slow[name] for name in self.omega})
            self._keeper.begin_task(model, data)

    def read_gradients(self, model: nn.Module) -> None:
        """Follows the gradient of the loss, where importance comes from the path."""
        if self._keeper is not None:
            self._keeper.read_gradients(model)

    def before_step(self, model: nn.Module) -> None:
        """Adds the gradient of the pull towards S."""
        if self._keeper is not None:
            self._keeper.before_step(model)

    def after_step(self, model: nn.Module) -> None:
        """Follows the path, where importance comes from it."""
        if self._keeper is not None:
            self._keeper.after_step(model)

    @checked
    def extra_loss(self, model: nn.Module, inputs: Any, outputs: Tensor) -> Tensor | float:
        """Returns what the outputs of the memory have drifted; one more forward pass of it."""
        if self._memory is None or not self.memory_strength:
            return 0.0
        kept, known = self._memory
        now = forward(model, inputs_for(model, kept))
        return self.memory_strength * F.mse_loss(now, known.to(now))

    @checked
    def end_task(self, model: nn.Module, data: Any) -> None:
        """Updates Omega with the task, and takes S the gated step towards F; the model keeps F.

        Raises:
            ValueError: ``begin_task`` was not called.
        """
        if not self._slow:
            raise ValueError("end_task needs begin_task before it")
        if isinstance(self._keeper, SynapticIntelligence) and self.omega:
            penalty = self._keeper.penalty
            penalty.replace({name: self.decay * value for name, value in self.omega.items()}, penalty.anchor)
        if self._keeper is not None:
            self._keeper.end_task(model, data)
        if self.memory_per_class:
            self._keep(model, data)
        self._fast = _copied(model)
        self._slow = ema_step(self._slow, self._fast, self.rates(model))
        super().end_task(model, data)

    @checked
    @contextmanager
    def slow(self, model: nn.Module) -> Iterator[nn.Module]:
        """Puts the slow weights into the model inside the block, and what was there back behind it."""
        with _holding(model, self._slow) as held:
            yield held

    @checked
    @contextmanager
    def fast(self, model: nn.Module) -> Iterator[nn.Module]:
        """As ``slow``, with the fast weights as the last task has left them."""
        with _holding(model, self._fast) as held:
            yield held

    def state_dict(self) -> dict[str, Any]:
        """Returns both sets of weights, Omega and the memory beside the count of tasks."""
        keeper = {} if self._keeper is None else self._keeper.state_dict()
        return {
            **super().state_dict(),
            "slow": self._slow,
            "fast": self._fast,
            "keeper": keeper,
            "memory": self._memory,
        }

    @checked
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what ``state_dict`` returned."""
        super().load_state_dict(state)
        self._slow, self._fast, self._memory = dict(state["slow"]), dict(state["fast"]), state["memory"]
        if self._keeper is not None:
            self._keeper.load_state_dict(state["keeper"])

    def _keep(self, model: nn.Module, data: Any) -> None:
        dataset = as_dataset(data, "data")
        inputs, targets = gather(dataset, torch.arange(len(dataset)))
        order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(self.seed + self.tasks_done))
        own = F.one_hot(targets[order].unique(return_inverse=True)[1])
        rank = (own.cumsum(0) * own).sum(1)
        inputs, _ = gather(dataset, order[rank <= self.memory_per_class])
        with evaluating(model), torch.no_grad():
            outputs = forward(model, inputs_for(model, inputs))
        kept = (to_device(inputs, "cpu"), outputs.cpu())
        self._memory = (
            kept if self._memory is None else (joined(self._memory[0], kept[0]), joined(self._memory[1], kept[1]))
        )


@checked
def prototype_training(
    classifier: PrototypeClassifier,
    *,
    steps: int = 40,
    optimizer: OptimizerFactory | None = None,
    classes_at_once: int | None = None,
    refresh: bool = False,
    seed: int = 0,
) -> TrainTask:
    """Returns how ``fit_stream`` is to train an encoder on a few-shot task, with prototypes as its head.

    A step takes all examples of the task (they are few): cross-entropy over all classes so far, with the prototypes of
    the task's classes computed from the batch, through which gradients flow, and those of earlier classes as kept.
    After the last step the classifier takes up the task's prototypes, before the strategy's ``end_task``. The encoder
    is in eval mode in all of it: statistics of BatchNorm stay those of the base classes, and nothing is dropped out.
    The input of an example must be one tensor.

    Args:
        classifier: the head; it must know the classes of earlier tasks, and is given those of the task. Its
            ``logits`` is what the strategy's own loss should be made of.
        steps: for each task, at least 0.
        optimizer: as in ``fit``, made anew for each task; default: that of ``fit``.
        classes_at_once: a step takes all examples of so many classes, drawn anew; default: of all. For tasks that hold
            the data of all tasks so far; the prototypes of the others stay as they were ten steps ago at most.
        refresh: whether the prototypes of all classes in the task's data replace those that are kept; False: an
            earlier class keeps its own.
        seed: of the classes that a step takes.

    Raises:
        ValueError: options out of range.

    Source: arXiv:2104.09034, step 1 as reconstructed in ``FastSlow``; episodes: arXiv:1703.05175.

    Example:
        >>> from heldout.train import FastSlow, fit_stream
        >>> generator, classifier = torch.Generator().manual_seed(0), PrototypeClassifier()
        >>> tasks = [(torch.randn(10, 3, generator=generator), torch.tensor([a, a + 1] * 5)) for a in (0, 2)]
        >>> train = prototype_training(classifier, steps=3)
        >>> result = fit_stream(nn.Linear(3, 4), tasks, FastSlow(importance=None), train=train, evaluate=lambda *_: 0.0)
        >>> classifier.counts.tolist()
        [5, 5, 5, 5]
    """
    check_at_least(0, steps=steps)
    if classes_at_once is not None:
        check_at_least(1, classes_at_once=classes_at_once)
    return _PrototypeTraining(classifier, steps, optimizer, classes_at_once, refresh, seed)


class _PrototypeTraining:
    """``TrainTask`` with what it keeps from task to task: the classifier, and the state of its draws."""

    def __init__(
        self,
        classifier: PrototypeClassifier,
        steps: int,
        optimizer: OptimizerFactory | None,
        classes_at_once: int | None,
        refresh: bool,
        seed: int,
    ) -> None:
        self.classifier, self.steps, self.optimizer = classifier, steps, optimizer
        self.classes_at_once, self.refresh = classes_at_once, refresh
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, model: nn.Module, data: Any, strategy: ContinualStrategy) -> None:
        dataset = as_dataset(data, "data")
        inputs, targets = gather(dataset, torch.arange(len(dataset)))
        if not isinstance(inputs, Tensor):
            raise TypeError(f"data must have one tensor as the input of an example, got {type(inputs).__name__}")
        inputs, targets = inputs_for(model, inputs), to_device(targets, device_of(model))
        with evaluating(model):
            updates = make_optimizer(self.optimizer, model)
            with strategy.attach(updates, model), torch.enable_grad():
                for step in range(self.steps):
                    rows = self._rows(step, model, inputs, targets)
                    own, labels = inputs[rows], targets[rows]
                    mixed, mixed_labels = strategy.mix(own, labels)
                    outputs = forward(model, inputs_for(model, mixed))
                    logits = self.classifier.logits(outputs, fresh=(outputs[: len(labels)], labels))
                    loss = F.cross_entropy(logits, to_device(mixed_labels, outputs.device))
                    loss = loss + strategy.extra_loss(model, mixed, outputs)
                    updates.zero_grad()
                    loss.backward()
                    updates.step()
            _take_up(model, self.classifier, inputs, targets, all_of_them=self.refresh)

    def _rows(self, step: int, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """The examples of a step: all, or those of the classes that are drawn."""
        classes = targets.unique()
        if self.classes_at_once is None or self.classes_at_once >= len(classes):
            return torch.ones_like(targets, dtype=torch.bool)
        if step % 10 == 0:
            _take_up(model, self.classifier, inputs, targets, all_of_them=True)
        drawn = classes[torch.randperm(len(classes), generator=self.generator)[: self.classes_at_once]]
        return torch.isin(targets, drawn)

    def state_dict(self) -> dict[str, Any]:
        return {"classifier": self.classifier.state_dict(), "generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.classifier.load_state_dict(state["classifier"])
        self.generator.set_state(state["generator"])


def _take_up(
    model: nn.Module, classifier: PrototypeClassifier, inputs: Any, targets: Tensor, *, all_of_them: bool
) -> None:
    """Gives the classifier the prototypes of the data's classes: of new ones, or of all in the place of the old."""
    with torch.no_grad():
        z = forward(model, inputs)
    if all_of_them:
        classifier.forget(targets.unique())
    known = classifier.counts.to(targets.device)
    new = torch.ones_like(targets, dtype=torch.bool)
    new[targets < len(known)] = known[targets[targets < len(known)]] == 0
    if new.any():
        classifier.update(z[new], targets[new])


def _copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


@contextmanager
def _holding(model: nn.Module, state: Mapping[str, Tensor]) -> Iterator[nn.Module]:
    if not state:
        raise ValueError("there are no such weights before a task: call begin_task, and end_task for the fast ones")
    before = _copied(model)
    model.load_state_dict(state)
    try:
        yield model
    finally:
        model.load_state_dict(before)
