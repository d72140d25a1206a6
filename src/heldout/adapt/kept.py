"""Predictors in a form that can be kept: plain settings and tensors, from which one like it is made around a model.

Adapters, streams of them, and ensembles of models like the trained one have such a form. Others are made again by the
predict stage of their Method.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from heldout.adapt.adanpc import AdaNPC, AdaNPCBN
from heldout.adapt.drm import DRM, SteerConfig, discriminator_gap, domain_means, prototype_gap
from heldout.adapt.itta import ITTA, ITTAState
from heldout.adapt.protocol import Stream, flattened, restored
from heldout.adapt.pseudo_label import PseudoLabel
from heldout.adapt.t3a import T3A
from heldout.adapt.tent import Tent
from heldout.data import gather
from heldout.errors import checked
from heldout.losses import LearnedConsistency
from heldout.method import Run, device_of, evaluating, forward
from heldout.nn import Encoder, LogitEnsemble, MultiHead, inputs_for, staged_as, stages_of

Predictor = Callable[[Any], Tensor]

COMPARED = 8  # training examples on which a kept predictor must answer like the original


class Kept(NamedTuple):
    """A predictor as plain settings and tensors.

    Attributes:
        settings: what JSON holds; "kind" says which predictor it is.
        tensors: name -> tensor, to which the settings point.

    Example:
        >>> kept = Kept({"kind": "Stream", "batch_size": 8, "adapter": {"kind": "Module"}}, {})
        >>> predictor_from(kept, nn.Linear(2, 2)).batch_size
        8
    """

    settings: dict[str, Any]
    tensors: dict[str, Tensor]


class _HasNoFormError(Exception):
    """This predictor cannot be told by settings and tensors."""


@checked
def kept_of(predictor: Any, run: Run) -> Kept | None:
    """Returns a predictor as settings and tensors, or None where it has no such form.

    It is made again from them at once, and compared with the original on a few training examples: what does not answer
    alike has no form, either. The state of the predictor is as before.

    Args:
        predictor: of a predict stage, or the trained model itself.
        run: whose ``module`` is the trained model.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
        >>> from heldout.train import fit
        >>> run = fit(model, (torch.randn(9, 4), torch.arange(9) % 3), epochs=1).run
        >>> kept = kept_of(Tent(run.module, lr=0.1), run)
        >>> kept.settings["kind"], predictor_from(kept, run.module).lr
        ('Tent', 0.1)
    """
    try:
        kept = _form(predictor, run)
        again = predictor_from(kept, copy.deepcopy(run.module))
    except (_HasNoFormError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return kept if alike(answers_of(predictor, run), answers_of(again, run)) else None


@checked
def predictor_from(kept: Kept, module: nn.Module) -> Any:
    """Returns the predictor that ``kept_of`` has told, around a model like the one that it was around.

    Args:
        kept: settings and tensors.
        module: the trained model, in eval mode.

    Raises:
        ValueError: settings of no known kind.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> predictor_from(Kept({"kind": "Module"}, {}), model) is model
        True
    """
    settings, tensors = dict(kept.settings), {name: value.to(device_of(module)) for name, value in kept.tensors.items()}
    kind = settings.pop("kind", None)
    if kind == "Module":
        return module
    if kind == "Stream":
        return Stream(predictor_from(Kept(settings["adapter"], tensors), module), settings["batch_size"])
    if kind not in _KINDS:
        raise ValueError(f"no kind of predictor is called {kind!r}")
    state = restored(settings.pop("state"), tensors)
    predictor = _KINDS[kind].made(settings, tensors, state, module)
    if state is not None:
        predictor.load_state_dict(state)
    return predictor


@checked
def note_on(predictor: Any, module: nn.Module) -> str:
    """Returns what somebody who deploys a predictor has to know: what it needs at test time; empty for a plain model.

    Args:
        predictor: of a predict stage, or the trained model itself.
        module: the trained model.

    Example:
        >>> note_on(nn.Linear(2, 2), nn.Linear(2, 2))
        'It answers with a model of its own, not with the trained module alone.'
    """
    if predictor is module:
        return ""
    size = f", {predictor.batch_size} at a time" if isinstance(predictor, Stream) else ""
    adapter = predictor.adapter if isinstance(predictor, Stream) else predictor
    whole = f"It adapts to the test inputs as it answers them{size}: give it whole batches, not single examples, and "
    whole += "call reset() before another data set."
    of = {ITTA: " of two views", PseudoLabel: " of the classification layer", AdaNPCBN: " of a scale and shift"}
    steps = adapter.steer.steps if isinstance(adapter, DRM) and adapter.steer else getattr(adapter, "steps", 0)
    if isinstance(adapter, Tent | PseudoLabel | ITTA | AdaNPCBN | DRM) and steps:
        passes = f"{steps} training step{'s' if steps > 1 else ''}{of.get(type(adapter), '')}"
        return f"{whole} Each batch costs {passes}{'' if isinstance(adapter, Tent) else ' and a forward pass'}."
    if isinstance(adapter, T3A | AdaNPC):
        return f"{whole} Each batch costs one forward pass."
    if isinstance(adapter, DRM):
        return "It weighs the heads of the module for each example: the module alone gives the logits of all heads."
    if isinstance(adapter, LogitEnsemble):
        return f"It averages {len(adapter.models)} models: each answer takes {len(adapter.models)} forward passes."
    if isinstance(adapter, nn.Module):
        return "It answers with a model of its own, not with the trained module alone."
    return "It answers by the predict stage of its Method, not by the trained module alone."


class _Kind(NamedTuple):
    told: Callable[[Any, Run, dict[str, Tensor]], dict[str, Any]]
    made: Callable[[dict[str, Any], dict[str, Tensor], Any, nn.Module], Any]


def _form(predictor: Any, run: Run) -> Kept:
    if predictor is run.module:
        return Kept({"kind": "Module"}, {})
    if type(predictor) is Stream:
        inner = _form(predictor.adapter, run)
        stream = {"kind": "Stream", "batch_size": predictor.batch_size, "adapter": inner.settings}
        return Kept(stream, inner.tensors)
    kind = type(predictor).__name__
    if kind not in _KINDS or type(predictor) is not _TYPES[kind]:
        raise _HasNoFormError
    tensors: dict[str, Tensor] = {}
    told = _KINDS[kind].told(predictor, run, tensors)
    state = None if isinstance(predictor, nn.Module) else flattened(predictor.state_dict(), "state", tensors)  # type: ignore[attr-defined]
    return Kept({"kind": kind, **told, "state": state}, tensors)


@checked
def answers_of(predictor: Any, run: Run) -> Tensor | None:
    """Returns a predictor's answers to the first training examples, or None where it cannot answer so few.

    Its state is as before, where it has a ``state_dict()``; where it has not, it is reset before and afterwards.

    Args:
        predictor: any callable from inputs to outputs.
        run: with the training data, and the trained model as ``module``.

    Returns:
        outputs for the first ``COMPARED`` examples, or all where there are fewer.

    Example:
        >>> from heldout.train import fit
        >>> run = fit(nn.Linear(4, 3), (torch.randn(9, 4), torch.arange(9) % 3), epochs=1).run
        >>> answers_of(run.module, run).shape
        torch.Size([8, 3])
    """
    train: Any = run.splits.train
    inputs, _ = gather(train, torch.arange(min(COMPARED, len(train))))
    inputs = inputs_for(run.module, inputs)
    stateful = not isinstance(predictor, nn.Module) and hasattr(predictor, "load_state_dict")
    state = predictor.state_dict() if stateful else None
    reset = (
        (lambda: None) if isinstance(predictor, nn.Module) or stateful else getattr(predictor, "reset", lambda: None)
    )
    mode = evaluating(predictor) if isinstance(predictor, nn.Module) else nullcontext()
    reset()
    try:
        with mode, torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return forward(predictor, inputs).detach()
    except (ValueError, TypeError, RuntimeError):
        return None
    finally:
        reset()
        if state is not None:
            predictor.load_state_dict(state)


@checked
def alike(first: Tensor | None, second: Tensor | None) -> bool:
    """Returns whether two predictors answer alike, within rounding (relative 1e-4, absolute 1e-5; NaN is like NaN).

    Args:
        first, second: answers of one shape, or None where there are none; None is like None alone.

    Example:
        >>> answers = torch.tensor([1.0, float("nan")])
        >>> alike(answers, answers * 1.00001), alike(answers, answers + 1), alike(answers, None)
        (True, False, False)
    """
    if first is None or second is None:
        return first is second
    same = first.shape == second.shape
    return same and torch.allclose(first.cpu(), second.cpu(), rtol=1e-4, atol=1e-5, equal_nan=True)


def _name_of(part: nn.Module, module: nn.Module) -> str:
    for name, own in module.named_modules():
        if own is part:
            return name
    raise _HasNoFormError


def _head_name(encoder: Any, run: Run) -> str:
    if not isinstance(encoder, Encoder) or encoder.module is not run.module:
        raise _HasNoFormError
    return _name_of(encoder.head, run.module)


def _encoder(module: nn.Module, name: str) -> Encoder:
    head = module.get_submodule(name)
    if not isinstance(head, nn.Linear):
        raise ValueError(f"the classification layer {name!r} must be an nn.Linear, got {type(head).__name__}")
    return Encoder(module, head)


def _attributes(adapter: Any, *names: str) -> dict[str, Any]:
    return {name: getattr(adapter, name) for name in names}


def _adanpc_told(adapter: AdaNPC, run: Run, tensors: dict[str, Tensor]) -> dict[str, Any]:
    names = ["num_classes", "k", "tau", "beta", "max_added", "max_per_class", "confidence", "eps_ball"]
    names += ["lr", "steps"] if isinstance(adapter, AdaNPCBN) else []
    return {
        "head": _head_name(adapter.encoder, run),
        "backend": adapter.memory.backend,
        **_attributes(adapter, *names),
    }


def _adanpc_made(kind: type[AdaNPC]) -> Callable[..., AdaNPC]:
    def made(settings: dict[str, Any], tensors: dict[str, Tensor], state: Any, module: nn.Module) -> AdaNPC:
        encoder, memory = _encoder(module, settings.pop("head")), state["memory"]
        source = [tuple(memory[name][: memory["protected"]] for name in ("features", "labels"))]
        adapter = kind(lambda features: features, source, **settings)
        adapter.encoder = encoder
        return adapter

    return made


def _t3a_made(settings: dict[str, Any], tensors: dict[str, Tensor], state: Any, module: nn.Module) -> T3A:
    encoder = _encoder(module, settings["head"])
    return T3A(encoder, encoder.head, filter_k=settings["filter_k"])


def _pseudo_label_made(
    settings: dict[str, Any], tensors: dict[str, Tensor], state: Any, module: nn.Module
) -> PseudoLabel:
    encoder = _encoder(module, settings.pop("head"))
    return PseudoLabel(encoder, encoder.head, **settings)


def _itta_told(adapter: ITTA, run: Run, tensors: dict[str, Tensor]) -> dict[str, Any]:
    model, consistency = adapter.state.model, adapter.state.consistency
    tensors |= {f"consistency.{name}": value for name, value in consistency.state_dict().items()}
    depths = [len(layer.weight) for layer in adapter.layers or ()]  # type: ignore[union-attr,arg-type]
    by_default = depths == [1 if signed else 5 for signed in model.signed]
    full = any(layer.output is not None for layer in adapter.layers or ())
    return {
        **_attributes(adapter, "lr", "eps", "steps", "seed"),
        "size": "full" if full or not depths else "channel",
        "depth": None if by_default or not depths else depths[0],
        "parameters": "backbone" if adapter.layers is None else "layers",
        "reset": "batch" if adapter._fresh_batches else "never",
        "single": adapter._single,
        "alpha": adapter.state.alpha,
        "mix_after": list(adapter.state.mix_after),
        "consistency_depth": len(consistency.weighting.weight),
        "stages": stages_of(model),
    }


def _itta_made(settings: dict[str, Any], tensors: dict[str, Tensor], state: Any, module: nn.Module) -> ITTA:
    model = staged_as(module, settings.pop("stages"))
    consistency = LearnedConsistency(model.dim, settings.pop("consistency_depth")).to(model.head.weight)
    known = {name: value for name, value in tensors.items() if name.startswith("consistency.")}
    consistency.load_state_dict({name.removeprefix("consistency."): value for name, value in known.items()})
    alpha, mix_after = settings.pop("alpha"), tuple(settings.pop("mix_after"))
    return ITTA(ITTAState(model, consistency, alpha, mix_after), **settings)


def _drm_told(adapter: DRM, run: Run, tensors: dict[str, Tensor]) -> dict[str, Any]:
    heads = run.module
    if not isinstance(heads, MultiHead):
        raise _HasNoFormError
    estimate: Any = adapter.estimate
    if callable(estimate) and "drm-discriminator" in run.state:
        classifier: nn.Linear = run.state["drm-discriminator"][0]
        estimate = "discriminator"
        tensors |= {"gap.weight": classifier.weight.detach(), "gap.bias": classifier.bias.detach()}
    elif callable(estimate):
        estimate = "prototype"
        tensors["gap.means"] = domain_means(heads, run.splits.train, run.state["drm-domains"])
    return {
        "gamma": adapter.gamma,
        "hard": adapter.hard,
        "include_shared": adapter.used > heads.heads.num_domains,
        "estimate": estimate,
        "steer": asdict(adapter.steer) if adapter.steer else None,
    }


def _drm_made(settings: dict[str, Any], tensors: dict[str, Tensor], state: Any, module: nn.Module) -> DRM:
    if not isinstance(module, MultiHead):
        raise ValueError(f"a DRM needs a MultiHead, got a {type(module).__name__}")
    if settings["estimate"] == "discriminator":
        domains, dim = tensors["gap.weight"].shape
        classifier = nn.Linear(dim, domains).to(tensors["gap.weight"])
        classifier.load_state_dict({"weight": tensors["gap.weight"], "bias": tensors["gap.bias"]})
        settings["estimate"] = discriminator_gap(classifier)
    elif settings["estimate"] == "prototype":
        settings["estimate"] = prototype_gap(tensors["gap.means"])
    settings["steer"] = SteerConfig(**settings["steer"]) if settings["steer"] else None
    return DRM(module, **settings)


def _ensemble_told(ensemble: LogitEnsemble, run: Run, tensors: dict[str, Tensor]) -> dict[str, Any]:
    own = [number for number, member in enumerate(ensemble.models) if member is run.module]
    for number, member in enumerate(ensemble.models):
        if number not in own:
            tensors |= {f"member.{number}.{name}": value for name, value in member.state_dict().items()}
    return {"mode": ensemble.mode, "members": len(ensemble.models), "own": own}


def _ensemble_made(
    settings: dict[str, Any], tensors: dict[str, Tensor], state: Any, module: nn.Module
) -> LogitEnsemble:
    members = []
    for number in range(settings["members"]):
        member = module if number in settings["own"] else copy.deepcopy(module)
        if number not in settings["own"]:
            start = f"member.{number}."
            member.load_state_dict({n.removeprefix(start): v for n, v in tensors.items() if n.startswith(start)})
        members.append(member)
    return LogitEnsemble(members, mode=settings["mode"]).eval()


def _plain(kind: type) -> Callable[..., Any]:
    return lambda settings, tensors, state, module: kind(module, **settings)


_TYPES: Mapping[str, type] = {
    kind.__name__: kind for kind in (AdaNPC, AdaNPCBN, DRM, ITTA, LogitEnsemble, PseudoLabel, T3A, Tent)
}
_KINDS: Mapping[str, _Kind] = {
    "AdaNPC": _Kind(_adanpc_told, _adanpc_made(AdaNPC)),
    "AdaNPCBN": _Kind(_adanpc_told, _adanpc_made(AdaNPCBN)),
    "DRM": _Kind(_drm_told, _drm_made),
    "ITTA": _Kind(_itta_told, _itta_made),
    "LogitEnsemble": _Kind(_ensemble_told, _ensemble_made),
    "PseudoLabel": _Kind(
        lambda adapter, run, tensors: {
            "head": _head_name(adapter.encoder, run),
            **_attributes(adapter, "lr", "threshold", "steps"),
        },
        _pseudo_label_made,
    ),
    "T3A": _Kind(
        lambda adapter, run, tensors: {"head": _head_name(adapter.encoder, run), "filter_k": adapter.filter_k},
        _t3a_made,
    ),
    "Tent": _Kind(lambda adapter, run, tensors: _attributes(adapter, "lr", "steps"), _plain(Tent)),
}
