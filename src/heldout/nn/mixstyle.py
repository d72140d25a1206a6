"""Core: MixStyle: feature maps under the channel statistics of other examples.

Source: arXiv:2104.02008 (Zhou et al., ICLR 2021), equation 5.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from heldout.errors import (
    check_at_least,
    check_dimensions,
    check_finite,
    check_labels,
    check_same_length,
    checked,
)

_EPS = 1e-6  # added to the variance


@checked
def mix_style(features: Tensor, partner: Tensor, weight: Tensor, *, channel_dim: int = 1) -> Tensor:
    """Returns the features with each channel's mean and deviation moved towards those of a partner in the batch.

    Mean and deviation are taken over all positions of an example and carry no gradient. The deviation is that of the
    population (deviation: the released code divides by n - 1, which is undefined for a single position).

    Args:
        features: ``(batch, channels, ...)``, or ``(batch, tokens, channels)`` with ``channel_dim=-1``.
        partner: int64 ``(batch,)``, whose statistics are mixed in.
        weight: ``(batch,)``, the share in [0, 1] that an example keeps of its own statistics.
        channel_dim: the axis of channels.

    Raises:
        ValueError: features without positions ``(batch, channels)``.

    Example:
        >>> x = torch.tensor([[[0.0, 2.0]], [[10.0, 14.0]]])
        >>> mix_style(x, torch.tensor([1, 0]), torch.zeros(2))[0].round()
        tensor([[10., 14.]])
    """
    check_dimensions(3, 4, 5, features=features)
    check_same_length(features=features, partner=partner, weight=weight)
    check_labels(len(features), partner=partner)
    check_finite(weight=weight)
    if features.ndim < 3:
        raise ValueError(f"mix_style needs features with positions (batch, channels, ...), got {tuple(features.shape)}")
    axes = [axis for axis in range(1, features.ndim) if axis != channel_dim % features.ndim]
    with torch.no_grad():
        mean = features.mean(axes, keepdim=True)
        variance = (features - mean).square_().mean(axes, keepdim=True)  # var_mean is several times slower on CPU
        deviation = (variance + _EPS).sqrt()
        share = weight.to(features).view(-1, *[1] * (features.ndim - 1))
        scale = (share * deviation + (1 - share) * deviation[partner]) / deviation
        shift = share * mean + (1 - share) * mean[partner] - scale * mean
        alone = (partner == torch.arange(len(partner), device=partner.device)).view_as(share)
        scale, shift = scale.masked_fill(alone, 1), shift.masked_fill(alone, 0)  # exactly the input, without rounding
    return torch.addcmul(shift, features, scale)


@checked
def draw_mix(batch: int, alpha: float, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Returns a random permutation ``(batch,)`` and weights ``(batch,)`` from Beta(alpha, alpha), for ``mix_style``.

    Args:
        batch: how many examples.
        alpha: of the Beta distribution, 0.01 or more (below, draws underflow); small values give weights near 0 and 1.
        generator: where randomness comes from (CPU); None is torch's own.

    Returns:
        int64 positions and float32 weights in [0, 1].

    Raises:
        ValueError: a negative batch, or alpha below 0.01 or infinite.

    Example:
        >>> partner, weight = draw_mix(4, 0.1, torch.Generator().manual_seed(0))
        >>> sorted(partner.tolist()), bool(((weight >= 0) & (weight <= 1)).all())
        ([0, 1, 2, 3], True)
    """
    check_at_least(0, batch=batch)
    check_at_least(0.01, alpha=alpha)
    check_finite(alpha=alpha)
    partner = torch.randperm(batch, generator=generator)
    gammas = torch._standard_gamma(torch.full((2, batch), alpha, dtype=torch.float64), generator=generator)
    return partner, (gammas[0] / gammas.sum(0)).float()


class MixStyle(nn.Module):
    """Mixes the style of the examples of a batch, with probability ``p`` per call in training mode.

    Put it behind an early stage of a convolutional network. In eval mode, and for a single example, it returns its
    input.

    Args:
        alpha: of the Beta distribution of the weights; small values keep one of two styles almost whole.
        p: probability that a batch is mixed.
        channel_dim: the axis of channels: 1, or -1 for tokens.
        generator: where randomness comes from (CPU); None is torch's own, as for dropout.

    Raises:
        ValueError: options out of range.

    Example:
        >>> layer = MixStyle(p=1.0, generator=torch.Generator().manual_seed(0))
        >>> x = torch.rand(8, 3, 4, 4)
        >>> torch.equal(layer(x), x), torch.equal(layer.eval()(x), x)
        (False, True)

    Source: arXiv:2104.02008.
    """

    @checked
    def __init__(
        self,
        alpha: float = 0.1,
        p: float = 0.5,
        *,
        channel_dim: int = 1,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not alpha > 0 or not 0 <= p <= 1:
            raise ValueError(f"needs alpha > 0 and p in [0, 1], got alpha={alpha} and p={p}")
        self.alpha, self.p, self.channel_dim, self.generator = alpha, p, channel_dim, generator

    @checked
    def forward(self, features: Tensor) -> Tensor:
        if not self.training or len(features) < 2 or torch.rand((), generator=self.generator) >= self.p:
            return features
        partner, weight = draw_mix(len(features), self.alpha, self.generator)
        return mix_style(features, partner.to(features.device), weight, channel_dim=self.channel_dim)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, p={self.p}"
