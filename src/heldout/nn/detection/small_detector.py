"""A small convolutional detector with prompts, for small pictures or for the features of another network."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heldout.errors import check_at_least, check_between, checked
from heldout.nn.detection.prompt_detector import PromptDetector
from heldout.nn.knowledge.entity_encoders import BagOfWordsEncoder

_GROUPS = 4


@checked
def small_prompt_detector(
    channels: int = 3,
    *,
    words: int | None = None,
    text_dim: int | None = None,
    width: int = 32,
    dim: int = 64,
    halvings: int = 2,
    seed: int = 0,
) -> PromptDetector:
    """Returns a ``PromptDetector`` of convolutions, three residual blocks after some halvings, and a bag of words.

    About 50,000 parameters by default. It has group normalisation and no dropout, so that it does in training what it
    does later.

    Args:
        channels: of pictures, or of features.
        words: how many words there are, for prompts int64 ``(batch, length)`` of word ids, 0 is none: their order says
            nothing; or None, with ``text_dim``.
        text_dim: width of prompts that are vectors already, such as those of a sentence encoder.
        width: of the convolutions, a multiple of 8.
        dim: of the space in which patches and texts are compared.
        halvings: how often height and width are halved, 0 for features.
        seed: of the weights.

    Raises:
        ValueError: neither or both of words and text_dim, sizes out of range.

    Example:
        >>> model = small_prompt_detector(words=20)
        >>> model(torch.rand(2, 3, 48, 48), torch.tensor([[1, 5, 0], [2, 7, 9]])).shape
        torch.Size([2, 12, 12, 5])
        >>> small_prompt_detector(112, text_dim=384, halvings=0)(torch.rand(1, 112, 8, 8), torch.rand(1, 384)).shape
        torch.Size([1, 8, 8, 5])
    """
    if (words is None) == (text_dim is None):
        raise ValueError("give words, for prompts of word ids, or text_dim, for vectors, one of the two")
    check_at_least(1, channels=channels, dim=dim)
    check_at_least(2, words=words)
    check_at_least(1, text_dim=text_dim)
    check_between(0, 8, halvings=halvings)
    check_between(0, 2**62, seed=seed)
    if width < 1 or width % (2 * _GROUPS):
        raise ValueError(f"width must be a multiple of {2 * _GROUPS}, got {width}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = [] if halvings else [nn.Conv2d(channels, width, 1)]
        for step in range(halvings):
            before, after = (channels if step == 0 else width // 2), (width if step == halvings - 1 else width // 2)
            layers.append(nn.Conv2d(before, after, 5 if step == 0 else 3, 2, 2 if step == 0 else 1))
            if step < halvings - 1:
                layers += [nn.GroupNorm(_GROUPS, after), nn.GELU()]
        layers += [
            _Residual(width, 1),
            _Residual(width, 1),
            _Residual(width, 2),
            nn.GroupNorm(_GROUPS, width),
            nn.GELU(),
        ]
        texts = nn.Identity() if words is None else _Words(words, dim)
        return PromptDetector(nn.Sequential(*layers), texts, dim, image_dim=width, text_dim=text_dim or dim)


class _Residual(nn.Module):
    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(_GROUPS, width)
        self.convolution = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.convolution(F.gelu(self.norm(x)))


class _Words(nn.Module):
    """Ids of words -> the mean of their vectors, through a perceptron."""

    def __init__(self, words: int, width: int) -> None:
        super().__init__()
        self.bag = BagOfWordsEncoder(3 * torch.randn(words, width))
        self.out = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.bag(ids, ids > 0))
