"""Watches how training samples are routed while a mixture of experts trains, without any test set.

Source: arXiv:2506.21551 (Li, Fan, Zhou).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heldout.errors import check_at_least, check_labels, checked
from heldout.measure.mechanisms.residual import check_ids
from heldout.measure.mechanisms.routing import RoutingRecorder
from heldout.measure.routing.balance import load_variation, routing_entropy
from heldout.measure.routing.pathways import (
    Unit,
    pathway_consistency,
    pathway_distance,
    pathway_distance_by_layer,
    pathways,
    permute_experts,
)
from heldout.method import device_of, evaluating, forward


class SampleRouting(NamedTuple):
    """How samples were routed.

    Attributes:
        weights: float64 ``(samples, layers, experts)``, each the mean over a sample's tokens; rows sum to 1.
        entropy: float64 ``(layers,)``, mean entropy of a token's weights in nats.
        load: int64 ``(layers, experts)``, tokens that the model sent to each expert.
        losses: float64 ``(samples,)``, mean loss of the tokens of each that count.

    Example:
        >>> from transformers import OlmoeConfig, OlmoeForCausalLM
        >>> config = OlmoeConfig(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        ...     num_attention_heads=2, num_experts=4, num_experts_per_tok=2, pad_token_id=0)
        >>> routing = sample_routing(OlmoeForCausalLM(config), [torch.tensor([[1, 2, 3]])])
        >>> round(routing.weights.sum(2).item(), 6), int(routing.load.sum()), len(routing.losses)
        (1.0, 6, 1)
    """

    weights: Tensor
    entropy: Tensor
    load: Tensor
    losses: Tensor


@checked
def sample_routing(
    model: nn.Module, batches: Iterable[Tensor | Mapping[str, Any]], gates: Sequence[str] | None = None
) -> SampleRouting:
    """Returns the routing of each sample, the mean over its tokens, and its loss: one forward pass in eval mode.

    Args:
        model: a mixture of experts, token ids ``(batch, length)`` -> logits ``(batch, length, vocabulary)``, or an
            output with ``logits``, that ``RoutingRecorder`` reads.
        batches: token ids, integers ``(batch, length)``; or dicts with ``input_ids`` and further arguments of the
            model, where tokens with an ``attention_mask`` of 0 are left out of the routing. ``labels``
            ``(batch, length)`` are the tokens that are asked for, -100 where none is (not shifted, as in transformers,
            and not given to the model); default: all tokens but the first, and those next to padding.
        gates: names of the routers, in the order of layers; default: found.

    Raises:
        ValueError: a dense model, no batches, ids or labels that are none of the model's tokens, a sample without
            tokens or without any that counts for the loss, a loss that is not finite, or routers that read something
            else than the tokens of a batch.

    Example:
        >>> from transformers import OlmoeConfig, OlmoeForCausalLM
        >>> config = OlmoeConfig(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=2,
        ...     num_attention_heads=2, num_experts=4, num_experts_per_tok=2, pad_token_id=0)
        >>> routing = sample_routing(OlmoeForCausalLM(config), [torch.tensor([[1, 2, 3], [4, 5, 6]])])
        >>> routing.weights.shape, routing.load.sum(1).tolist()
        (torch.Size([2, 2, 4]), [12, 12])
    """
    weights, entropies, loads, losses = [], [], [], []
    with evaluating(model), torch.no_grad(), RoutingRecorder(model, gates) as routing:
        for batch in batches:
            given, ids, mask, targets = _parts(model, batch)
            routing.clear()
            losses.append(_losses(forward(model, given), targets))
            found = routing.weights.double()
            layers, count, experts = found.shape
            if count != ids.numel():
                raise ValueError(f"gates must be routers of all tokens: a batch has {ids.numel()}, they read {count}")
            share = mask.double() / mask.sum(1, keepdim=True)
            weights.append(torch.einsum("lnte,nt->nle", found.view(layers, *ids.shape, experts), share))
            there = mask.flatten()
            entropies.append(routing_entropy(found[:, there]))
            loads.append(F.one_hot(routing.selected[:, there], experts).sum((1, 2)))
    if not weights:
        raise ValueError("batches must not be empty")
    values = torch.cat(losses)
    if not bool(values.isfinite().all()):
        raise ValueError(f"the model's loss is not finite on sample {int((~values.isfinite()).nonzero()[0])}")
    return SampleRouting(torch.cat(weights), torch.cat(entropies, 1).mean(1), torch.stack(loads).sum(0), values)


@checked
def gate_rows(model: nn.Module, gates: Sequence[str] | None = None) -> list[Tensor]:
    """Returns the weight of each router, ``(experts, width)``, by layer: what ``pathway_consistency`` compares.

    Args:
        model: as for ``sample_routing``.
        gates: names of the routers; default: found.

    Raises:
        ValueError: a dense model, or routers without a weight matrix.

    Example:
        >>> layer = nn.ModuleDict({"gate": nn.Linear(8, 4, bias=False)})
        >>> [rows.shape for rows in gate_rows(layer, ["gate"])]
        [torch.Size([4, 8])]
    """
    modules, found = dict(model.named_modules()), []
    for name in RoutingRecorder(model, gates).gates:
        weight = getattr(modules[name], "weight", None)
        if not isinstance(weight, Tensor) or weight.ndim != 2:
            raise ValueError(f"gates must have a weight (experts, width), and {name} has none")
        found.append(weight.detach().clone())
    return found


class GeneralizationMonitor:
    """Measures, as training goes on, how training samples share pathways and how smooth these are.

    A falling distance and a rising consistency, while the loss no longer moves, are the paper's sign that what was
    memorised becomes a rule. Nothing of the model changes. A measurement is one forward pass over the probe and
    ``pairs`` edit distances.

    Args:
        model: a mixture of experts, as for ``sample_routing``; the object that is trained.
        probe_batches: a fixed sample of the training data, as for ``sample_routing``; all of one domain, for domains
            are learned at times of their own. At least 2 samples; kept as a list.
        gates: names of the routers; default: found.
        threshold, top_k: which experts a pathway holds, see ``pathways``.
        unit: what is edited, see ``pathway_distance``.
        pairs: of samples, the same at each measurement; None: all of them.
        seed: of the pairs, and of the null.

    Attributes:
        history: what ``log`` returned, in order.
        losses: float64 ``(samples,)`` of each measurement: ``memorization_steps(torch.stack(monitor.losses))``.

    Raises:
        ValueError: a dense model or one layer, fewer than 2 samples, and as ``sample_routing``.

    Source: arXiv:2506.21551, sections 3 and 4.

    Example:
        >>> from transformers import OlmoeConfig, OlmoeForCausalLM
        >>> config = OlmoeConfig(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=2,
        ...     num_attention_heads=2, num_experts=4, num_experts_per_tok=2, pad_token_id=0)
        >>> model = OlmoeForCausalLM(config)
        >>> monitor = GeneralizationMonitor(model, [torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 1]])])
        >>> for step in (0, 100):
        ...     found = monitor.log(step)
        >>> found["step"], 0 <= found["pathway_distance"] <= 1, -1 <= found["pathway_consistency"] <= 1
        (100, True, True)
    """

    @checked
    def __init__(
        self,
        model: nn.Module,
        probe_batches: Iterable[Tensor | Mapping[str, Any]],
        *,
        gates: Sequence[str] | None = None,
        threshold: float = 0.7,
        top_k: int | None = None,
        unit: Unit = "expert",
        pairs: int | None = 2000,
        seed: int = 0,
    ) -> None:
        self.model, self.probe_batches = model, list(probe_batches)
        self.gates = RoutingRecorder(model, gates).gates
        self._cut = {"threshold": threshold, "top_k": top_k}
        self._unit, self._pairs, self._seed = unit, pairs, seed
        self.history: list[dict[str, float]] = []
        self.losses: list[Tensor] = []
        self._measured()  # what cannot be measured is refused before training, not after

    @checked
    def log(self, step: int) -> dict[str, float]:
        """Measures, keeps and returns what was found.

        Args:
            step: of training, goes into the record.

        Returns:
            ``step``, mean ``loss`` of the samples, ``pathway_distance`` and ``pathway_distance_layer_0``, ...,
            ``pathway_distance_null`` of renamed experts, ``pathway_consistency``, ``pathway_length`` (experts of a
            pathway), ``routing_entropy`` in nats and ``load_variation``, both means over layers.

        Raises:
            ValueError: a step below 0, or a loss that is not finite.
        """
        check_at_least(0, step=step)
        found, losses = self._measured()
        self.losses.append(losses.cpu())
        self.history.append({"step": step} | found)
        return self.history[-1]

    def trainer_callback(self, every: int | None = None) -> Any:
        """Returns a callback for transformers' Trainer, which measures as it trains the monitor's model.

        Args:
            every: steps between measurements, at least 1; default: whenever the Trainer logs.

        Raises:
            ValueError: ``every`` below 1.
        """
        if every is not None:
            check_at_least(1, every=every)
        from transformers import TrainerCallback

        monitor = self

        class Monitoring(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if every is not None and state.global_step % every == 0:
                    monitor.log(state.global_step)

            def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
                if every is None and logs and "loss" in logs:
                    monitor.log(state.global_step)

        return Monitoring()

    def _measured(self) -> tuple[dict[str, float], Tensor]:
        routing = sample_routing(self.model, self.probe_batches, self.gates)
        paths = pathways(routing.weights, **self._cut)  # type: ignore[arg-type]
        options: dict[str, Any] = {"pairs": self._pairs, "seed": self._seed}
        consistency = pathway_consistency(routing.weights, gate_rows(self.model, self.gates), **self._cut)  # type: ignore[arg-type]
        null = permute_experts(paths, routing.weights.shape[2], self._seed)
        found = {
            "loss": float(routing.losses.mean()),
            "pathway_distance": pathway_distance(paths, self._unit, **options),
            "pathway_distance_null": pathway_distance(null, self._unit, **options),
            "pathway_consistency": float(consistency.mean()),
            "pathway_length": sum(len(layer) for path in paths for layer in path) / len(paths),
            "routing_entropy": float(routing.entropy.mean()),
            "load_variation": float(load_variation(routing.load).mean()),
        }
        by_layer = pathway_distance_by_layer(paths, **options)
        return found | {f"pathway_distance_layer_{n}": value for n, value in enumerate(by_layer)}, routing.losses


def _parts(model: nn.Module, batch: Tensor | Mapping[str, Any]) -> tuple[Any, Tensor, Tensor, Tensor]:
    """What the model is given, token ids, which of them are no padding, and what is asked of the next token."""
    batch, device = {"input_ids": batch} if isinstance(batch, Tensor) else batch, device_of(model)
    parts = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
    if not isinstance(ids := parts.get("input_ids"), Tensor):
        raise ValueError("batches must be token ids, or dicts with input_ids")
    check_ids(model, ids)
    for name in ("attention_mask", "labels"):
        if name in parts and getattr(parts[name], "shape", None) != ids.shape:
            raise ValueError(f"batches must have {name} of the shape of input_ids, {tuple(ids.shape)}")
    mask = parts.get("attention_mask")
    mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask != 0
    labels = parts.pop("labels", None)
    if labels is None:
        labels = ids.masked_fill(~(mask & mask.roll(1, 1)), -100)
    targets = labels[:, 1:]
    if not bool(mask.any(1).all()):
        raise ValueError("batches must not hold samples of padding alone")
    if not bool((targets != -100).any(1).all()):
        raise ValueError("batches must have a token that counts for the loss, and not the first, in each sample")
    return (ids if list(parts) == ["input_ids"] else parts), ids, mask, targets


def _losses(logits: Tensor, targets: Tensor) -> Tensor:
    asked = targets != -100
    check_labels(logits.shape[-1], labels=targets[asked])
    losses = F.cross_entropy(logits[:, :-1].double().flatten(0, 1), targets.long().flatten(), reduction="none")
    return losses.view(targets.shape).sum(1) / asked.sum(1)
