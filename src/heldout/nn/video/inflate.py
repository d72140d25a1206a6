"""Core: Networks for pictures made into networks for video, and the weights of 2-D networks put into 3-D ones."""

from __future__ import annotations

import copy
import difflib
import re
import warnings
from collections.abc import Sequence
from itertools import cycle
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from heldout.errors import check_between, check_dimensions, check_nonempty, check_one_of, checked
from heldout.method import evaluating, forward
from heldout.nn.video.pseudo_3d import P3DUnit

TemporalInit = Literal["he", "identity", "zero"]
_NORMS = (nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class TemporalInsert(nn.Module):
    """A 2-D convolution S of single frames, and beside or behind it one over time, T: without anything between.

    Inputs ``(clips * frames, in_channels, h, w)``, the frames of a clip one after the other. A is T(S(x)), B is
    S(x) + T(x), C is S(x) + T(S(x)); T, a convolution of kernel (3, 1) over (time, pixels), has the groups of S.

    Args:
        spatial: the convolution, which is kept.
        variant: "A", "B" or "C".

    Attributes:
        frames: of each clip in the inputs; ``FrameAverage`` sets it in every forward pass.
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups: those of S, for code that asks the
            convolution in its place for them.

    Raises:
        ValueError: an unknown variant; in the forward pass, other than whole clips, or S is dilated or padded so that
            B's branches differ in shape.

    Example:
        >>> insert = TemporalInsert(nn.Conv2d(3, 8, 3, padding=1), "A")
        >>> insert.frames = 4
        >>> insert(torch.zeros(2 * 4, 3, 6, 6)).shape
        torch.Size([8, 8, 6, 6])
    """

    @checked
    def __init__(self, spatial: nn.Conv2d, variant: Literal["A", "B", "C"]) -> None:
        super().__init__()
        self.spatial, self.variant, self.frames = spatial, variant, 1
        self.in_channels, self.out_channels, self.groups = spatial.in_channels, spatial.out_channels, spatial.groups
        self.kernel_size, self.stride = spatial.kernel_size, spatial.stride
        self.padding, self.dilation = spatial.padding, spatial.dilation
        before = self.in_channels if variant == "B" else self.out_channels
        self.temporal = nn.Conv2d(before, self.out_channels, (3, 1), padding=(1, 0), groups=self.groups, bias=False)
        self.temporal.to(spatial.weight.device, spatial.weight.dtype)

    @checked
    def forward(self, images: Tensor) -> Tensor:
        check_dimensions(4, images=images)
        over_space = self.spatial(images)
        if len(images) % self.frames:
            raise ValueError(f"images must be the frames of whole clips of {self.frames}, got {len(images)}")
        seen = images[..., :: self.stride[0], :: self.stride[1]] if self.variant == "B" else over_space
        clips = seen.unflatten(0, (-1, self.frames)).transpose(1, 2).flatten(3)
        over_time = self.temporal(clips).transpose(1, 2).flatten(0, 1).unflatten(2, seen.shape[2:])
        if self.variant == "A":
            return over_time
        if over_time.shape != over_space.shape:
            raise ValueError(
                f"images of shape {tuple(images.shape)} leave the convolution as {tuple(over_space.shape)}, which its "
                "stride alone does not explain: variant B needs padding of half the kernel"
            )
        return over_space + over_time


class FrameAverage(nn.Module):
    """A network for pictures run on every frame of clips ``(batch, channels, time, h, w)``, its logits averaged.

    Convolutions over time that ``add_temporal`` has put into the network see the frames of their own clip.

    Args:
        model: from images ``(n, channels, h, w)`` to logits ``(n, classes)``, or to an output with ``.logits``.

    Raises:
        ValueError: in the forward pass, clips of another number of dimensions.

    Example:
        >>> frames = FrameAverage(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)))
        >>> frames(torch.zeros(2, 3, 7, 2, 2)).shape
        torch.Size([2, 5])
    """

    @checked
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.training = model, model.training

    @checked
    def forward(self, clips: Tensor) -> Tensor:
        check_dimensions(5, clips=clips)
        check_nonempty(clips=clips)
        count, time = clips.shape[0], clips.shape[2]
        for part in self.model.modules():
            if isinstance(part, TemporalInsert):
                part.frames = time
        logits = forward(self.model, clips.transpose(1, 2).flatten(0, 1))
        return logits.unflatten(0, (count, time)).mean(1)


@checked
def add_temporal(
    model2d: nn.Module,
    variants: str | Sequence[str] = "ABC",
    *,
    temporal_init: TemporalInit = "identity",
    names: Sequence[str] | None = None,
    seed: int = 0,
) -> FrameAverage:
    """Returns a network for video: a copy of one for pictures, with a convolution over time at each one over space.

    All that the network does besides (BatchNorm, activations, shortcuts, squeezing, its head) stays as it is and runs
    on frames; the logits of a clip are the mean over its frames. Works for any network of ``nn.Conv2d``: ResNets of
    torchvision, timm or transformers, EfficientNet (where T is depthwise as S is), one's own.

    Args:
        model2d: a network for pictures; it is not changed.
        variants: "A", "B" and "C" in turn along the depth.
        temporal_init: "identity": the video network answers as the 2-D one averaged over frames does, until T learns
            (A: T passes on each frame; B and C: T is zero); "he": T is random, the paper's; "zero": T is zero, for B
            and C only.
        names: of the convolutions to change, wherever else they are used; by default all whose kernel is larger than
            1 x 1, but for the first, as the paper does.
        seed: of random T.

    Raises:
        ValueError: no such convolution, an unknown variant, or "zero" with A, which would pass on nothing.

    Source: arXiv:1711.10305, section 3. deviation: the paper puts BatchNorm and ReLU between S and T, which are not
    known to be free to move in a network that is not ours; here those of the network follow the sum.

    Example:
        >>> images = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.Flatten())
        >>> clips, video = torch.rand(2, 3, 4, 6, 6), add_temporal(images, "A")
        >>> torch.allclose(video(clips), FrameAverage(images)(clips), atol=1e-5)
        True
    """
    check_nonempty(variants=variants)
    check_between(0, 2**63 - 1, seed=seed)
    for each in variants:
        check_one_of("ABC", variants=each)
    if temporal_init == "zero" and "A" in variants:
        raise ValueError("temporal_init must be 'identity' or 'he' for variant A, which passes on nothing but T(S(x))")
    copied = copy.deepcopy(model2d)
    everywhere = copied.named_modules(remove_duplicate=False)  # a convolution that is used twice is changed twice
    parts = {name: part for name, part in everywhere if isinstance(part, nn.Conv2d)}
    if names is None:
        large = [(name, part) for name, part in parts.items() if max(part.kernel_size) > 1]
        names = [name for name, part in large if part is not large[0][1]]
    if unknown := [name for name in names if name not in parts]:
        raise ValueError(f"names must be those of nn.Conv2d in the model, got {unknown[0]!r}")
    if not names:
        raise ValueError("model2d must hold an nn.Conv2d over space besides its first one, got none")
    chosen = {id(parts[name]): parts[name] for name in names}
    inserts: dict[int, TemporalInsert] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for (key, part), variant in zip(chosen.items(), cycle(variants), strict=False):
            inserts[key] = TemporalInsert(part, variant).train(part.training)  # type: ignore[arg-type]
            _start(inserts[key].temporal, None, variant, temporal_init)
    for name, part in parts.items():
        if id(part) not in inserts:
            continue
        if not name:
            return FrameAverage(inserts[id(part)])
        copied.set_submodule(name, inserts[id(part)])
    return FrameAverage(copied)


class _Layer(NamedTuple):
    """A convolution and the BatchNorm behind it; a linear layer; or whatever else holds weights by itself."""

    name: str
    module: nn.Module
    norm: nn.Module | None


@checked
def inflate_2d(
    model2d: nn.Module, model3d: nn.Module, temporal_init: TemporalInit = "he", *, seed: int = 0
) -> nn.Module:
    """Returns the 3-D network, changed in place: the weights of a 2-D one in its convolutions over space.

    Layers are told from the order in which they run and matched by their shapes, so that names do not matter: ResNets
    of torchvision, timm or transformers. A k x k kernel becomes 1 x k x k, 1 x 1 becomes 1 x 1 x 1, BatchNorm follows
    its convolution; linear layers, other normalisation and single parameters are copied. A kernel of t x k x k gets the
    2-D one t times, divided by t (with "identity" once, in the middle). What has no partner stays as it is and is told
    in a warning. BatchNorm behind a whole ``P3DUnit``, or the only one behind S and T, is taken for that of S; where
    S has its own, it becomes neutral.

    Args:
        model2d: with the weights, such as a 2-D ResNet trained on single frames: of ``nn.Conv2d``, or of ``nn.Conv3d``
            over one frame, as ``P3DResNet(variants=["2D"])``.
        model3d: such as ``P3DResNet``; any network of ``nn.Conv3d``.
        temporal_init: of the convolutions over time alone, and of their BatchNorm. "he": random, as published.
            "identity": in eval mode, where BatchNorm keeps statistics, the network answers on a clip of equal frames as
            the 2-D one does (A: T passes on each frame; B and C: T is silent, its BatchNorm's weight is 0). "zero": T
            is silent in all; of A nothing is left but the input that is added.
        seed: of random T.

    Raises:
        ValueError: nothing fits, no convolutions, some over time in ``model2d``, or "identity" where a convolution over
            time alone has other channels in than out.

    Source: arXiv:1711.10305, section 4.1; t times divided by t: arXiv:1705.07750, section 3.

    Example:
        >>> images = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        >>> video = nn.Sequential(nn.Conv3d(3, 8, (1, 3, 3)), nn.BatchNorm3d(8), nn.ReLU())
        >>> frame = torch.rand(1, 3, 6, 6)
        >>> torch.allclose(inflate_2d(images, video)(frame.unsqueeze(2)).squeeze(2), images(frame), atol=1e-5)
        True
    """
    check_between(0, 2**63 - 1, seed=seed)
    flat = any(isinstance(part, nn.Conv2d) for part in model2d.modules())
    theirs = _layers(model2d, nn.Conv2d, (64, 64)) if flat else _layers(model2d, nn.Conv3d, (1, 64, 64))
    units = {
        id(part.temporal): part for part in model3d.modules() if isinstance(part, P3DUnit) and part.temporal is not None
    }
    ours, outer = _outer_norms(_layers(model3d, nn.Conv3d, (16, 64, 64)), units)
    if any(isinstance(layer.module, nn.Conv3d) and layer.module.kernel_size[0] > 1 for layer in theirs):
        raise ValueError("model2d must look at single frames, got an nn.Conv3d over time")
    for argument, layers in (("model2d", theirs), ("model3d", ours)):
        if not any(isinstance(layer.module, nn.Conv2d | nn.Conv3d) for layer in layers):
            raise ValueError(f"{argument} must hold convolutions, got none")
    temporal = [layer for layer in ours if _over_time_alone(layer.module)]
    for layer in temporal:
        part: Any = layer.module
        if temporal_init == "identity" and id(part) not in units and part.in_channels != part.out_channels:
            raise ValueError(
                f"temporal_init must not be 'identity' where model3d.{layer.name} has {part.in_channels} channels in "
                f"and {part.out_channels} out"
            )
    over_space = [layer for layer in ours if not _over_time_alone(layer.module)]
    source_keys, target_keys = ([_key(layer.module) for layer in layers] for layers in (theirs, over_space))
    pairs = [
        (theirs[block.a + k], over_space[block.b + k])
        for block in difflib.SequenceMatcher(None, source_keys, target_keys, autojunk=False).get_matching_blocks()
        for k in range(block.size)
    ]
    if not pairs:
        raise ValueError("model2d must have layers of the shapes of model3d's, got none that fits")
    left = []
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for norm in outer:
            _make_neutral(norm)
        for source, target in pairs:
            left += _copied(source, target, temporal_init)
        for layer in temporal:
            variant = units[id(layer.module)].variant if id(layer.module) in units else "A"
            _start(layer.module, layer.norm, variant, temporal_init)
    done = {id(layer) for pair in pairs for layer in pair}
    left += [f"model2d.{layer.name}".rstrip(".") for layer in theirs if id(layer) not in done]
    left += [f"model3d.{layer.name}".rstrip(".") for layer in over_space if id(layer) not in done]
    if left:
        warnings.warn(f"inflate_2d leaves what has no partner of its shape: {', '.join(left)}", stacklevel=3)
    return model3d


def _layers(model: nn.Module, convolution: type, size: tuple[int, ...]) -> list[_Layer]:
    """All that holds weights, in the order in which it runs, else of registration; BatchNorm with its convolution."""
    parts = {name: part for name, part in model.named_modules() if _own(part)}
    found: list[_Layer] = []
    for name in _order(model, parts, convolution, size):
        part = parts[name]
        if (
            isinstance(part, _NORMS)
            and found
            and found[-1].norm is None
            and getattr(found[-1].module, "out_channels", None) == part.num_features
        ):
            found[-1] = found[-1]._replace(norm=part)
        else:
            found.append(_Layer(name, part, None))
    return found


def _outer_norms(layers: list[_Layer], units: dict[int, P3DUnit]) -> tuple[list[_Layer], list[nn.Module]]:
    """The layers, where no T has a BatchNorm that is not its own, and those: S's where it has none, else no layer's."""
    found: list[_Layer] = []
    outer: list[nn.Module] = []
    for layer in layers:
        part, norm = layer.module, layer.norm
        last: Any = found[-1] if found else _Layer("", nn.Identity(), None)
        if isinstance(part, _NORMS) and id(last.module) in units:  # behind T's own
            outer.append(part)
            continue
        unit = units.get(id(part))
        if unit is not None:
            foreign = norm is not unit.temporal_norm
        else:  # the only one behind S and T
            s_alone = last.norm is None and getattr(last.module, "out_channels", None) == getattr(
                part, "in_channels", 0
            )
            foreign = _over_time_alone(part) and s_alone
        if norm is not None and foreign:
            outer.append(norm)
            if last.norm is None:
                found[-1] = last._replace(norm=norm)
            layer = layer._replace(norm=None)
        found.append(layer)
    return found, outer


def _order(model: nn.Module, parts: dict[str, nn.Module], convolution: type, size: tuple[int, ...]) -> list[str]:
    first: Any = next((part for part in parts.values() if isinstance(part, convolution)), None)
    if first is None:
        return []
    ran: dict[str, None] = {}
    handles = [
        part.register_forward_pre_hook(lambda _module, _args, name=name: ran.setdefault(name))
        for name, part in parts.items()
    ]
    weight = first.weight
    inputs = torch.zeros(1, first.in_channels, *size, device=weight.device, dtype=weight.dtype)
    try:
        with evaluating(model), torch.no_grad():
            model(inputs)
    except (RuntimeError, ValueError, TypeError):
        return list(parts)  # not a network of one picture or clip of this size
    finally:
        for handle in handles:
            handle.remove()
    return [*ran, *(name for name in parts if name not in ran)]


def _own(module: nn.Module) -> dict[str, Tensor]:
    """The parameters and saved buffers of a module, without those of its parts; they share their memory."""
    names = [*module._parameters, *module._buffers]
    return {name: value for name, value in module.state_dict().items() if name in names}


def _key(module: Any) -> tuple[Any, ...]:
    """What must agree for weights to fit; time is not looked at."""
    if isinstance(module, nn.Conv2d | nn.Conv3d):
        shape = tuple(module.weight.shape)
        return (module.groups, *shape[:2], *shape[-2:])
    if isinstance(module, nn.Linear):
        return ("linear", *module.weight.shape)
    kind = (
        "BatchNorm" if isinstance(module, _NORMS) else re.sub("[23]d", "", type(module).__name__, flags=re.IGNORECASE)
    )
    return (kind, *((name, *(n for n in value.shape if n > 1)) for name, value in _own(module).items()))


def _over_time_alone(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv3d) and module.kernel_size[0] > 1 and module.kernel_size[1:] == (1, 1)


def _copied(source: _Layer, target: _Layer, temporal_init: str) -> list[str]:
    """Copies a layer's weights; returns the names of what has no partner."""
    theirs: Any = source.module
    ours: Any = target.module
    if not isinstance(ours, nn.Conv3d | nn.Linear):
        return _own_copied(theirs, ours, f"model2d.{source.name}")
    left = []
    weight = theirs.weight
    if isinstance(ours, nn.Conv3d):
        weight = weight.squeeze(2) if isinstance(theirs, nn.Conv3d) else weight
        time = ours.kernel_size[0]
        if temporal_init == "identity":
            ours.weight.zero_()
            ours.weight[:, :, time // 2] = weight.to(ours.weight)
        else:
            ours.weight.copy_(weight.unsqueeze(2).expand_as(ours.weight) / time)
    else:
        ours.weight.copy_(weight)
    if ours.bias is not None and theirs.bias is not None:
        ours.bias.copy_(theirs.bias)
    elif ours.bias is not None:
        ours.bias.zero_()
    elif theirs.bias is not None:
        left.append(f"model2d.{source.name}.bias")
    if source.norm is not None and target.norm is not None:
        left += _own_copied(source.norm, target.norm, f"the BatchNorm of model2d.{source.name}")
    elif source.norm is not None or target.norm is not None:
        left.append(f"the BatchNorm of model2d.{source.name} or model3d.{target.name}")
    return left


def _own_copied(theirs: Any, ours: Any, name: str) -> list[str]:
    """Copies a module's own weights; returns the names of what only one of the two has."""
    if isinstance(ours, _NORMS):
        ours.reset_parameters()
        ours.eps, ours.momentum = theirs.eps, theirs.momentum
    source, target = _own(theirs), _own(ours)
    if isinstance(ours, _NORMS):
        source = {name: value for name, value in target.items() if name in ("weight", "bias")} | source  # 1 and 0
    for key in source.keys() & target.keys():
        target[key].copy_(source[key].reshape(target[key].shape))
    return [f"{name}: {key}" for key in sorted(source.keys() ^ target.keys())]


def _make_neutral(norm: Any) -> None:
    """In eval mode, BatchNorm returns what it gets, if it keeps statistics."""
    norm.reset_parameters()
    if norm.weight is not None:
        norm.weight.fill_((1 + norm.eps) ** 0.5)
    elif norm.running_var is not None:
        norm.running_var.fill_(1 - norm.eps)


def _start(temporal: Any, norm: Any, variant: str, temporal_init: str) -> None:
    """The first weights of a convolution over time and of the BatchNorm behind it."""
    with torch.no_grad():
        if temporal.bias is not None:
            temporal.bias.zero_()
        if norm is not None:
            norm.reset_parameters()
        if temporal_init == "identity" and variant == "A":
            temporal.weight.zero_()
            per_group = temporal.out_channels // temporal.groups
            for channel in range(temporal.out_channels):
                temporal.weight[channel, channel % per_group, temporal.kernel_size[0] // 2] = 1
            if norm is not None:
                _make_neutral(norm)
            return
        nn.init.kaiming_normal_(temporal.weight, mode="fan_out", nonlinearity="relu")
        if temporal_init != "he":
            silent = temporal.weight if norm is None or norm.weight is None else norm.weight
            silent.zero_()
