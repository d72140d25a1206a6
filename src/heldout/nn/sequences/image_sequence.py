"""Core: A network that reads a sequence of images and names one class: a small CNN with a Transformer behind it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from heldout.errors import check_at_least, check_dimensions, check_fraction, check_positive, checked
from heldout.nn.sequences.seq2seq import SinusoidalPositions


class ImageSequenceClassifier(nn.Module):
    """Reads images by a module, then all of a sequence by attention, and gives logits for the whole.

    Args:
        image_model: from images ``(n, channels, height, width)`` to features ``(n, dim)``.
        num_classes: of the whole sequence.
        dim: of the features, a multiple of ``heads`` and even.
        heads: of each attention.
        layers: of the Transformer.
        feedforward: hidden units of the perceptron in each layer.
        dropout: within layers, in [0, 1).

    Raises:
        ValueError: sizes out of range, or that do not divide.

    Source: arXiv:1706.03762; as a baseline of arXiv:2210.01603.

    Example:
        >>> from heldout.nn import small_cnn
        >>> model = ImageSequenceClassifier(small_cnn(1, 16, widths=(8, 16)), num_classes=5, dim=16, heads=2)
        >>> model(torch.rand(3, 4, 1, 8, 8), torch.tensor([4, 2, 1])).shape
        torch.Size([3, 5])
    """

    @checked
    def __init__(
        self,
        image_model: nn.Module,
        num_classes: int,
        dim: int = 64,
        heads: int = 4,
        layers: int = 2,
        feedforward: int = 128,
        dropout: float = 0.1,
    ) -> None:
        check_at_least(1, num_classes=num_classes, heads=heads, layers=layers, feedforward=feedforward)
        check_positive(dim=dim)
        check_fraction(dropout=dropout)
        if dim % heads or dim % 2:
            raise ValueError(f"dim must be even and a multiple of heads, got {dim} and {heads}")
        super().__init__()
        self.image_model, self.dim = image_model, dim
        self.positions = SinusoidalPositions(dim)
        self.start = nn.Parameter(torch.randn(dim) * 0.02)
        layer = nn.TransformerEncoderLayer(dim, heads, feedforward, dropout, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, nn.LayerNorm(dim), enable_nested_tensor=False)
        self.head = nn.Linear(dim, num_classes)

    @checked
    def forward(self, images: Tensor, lengths: Tensor) -> Tensor:
        """Returns logits ``(batch, num_classes)``; what stands behind a sequence's end is not looked at.

        Args:
            images: ``(batch, length, channels, height, width)``.
            lengths: int64 ``(batch,)``, images of each sequence, at least 1.

        Raises:
            ValueError: other dimensions, or lengths that the sequences do not have.
        """
        check_dimensions(5, images=images)
        check_dimensions(1, lengths=lengths)
        check_at_least(1, lengths=lengths)
        if lengths.is_floating_point() or len(lengths) != len(images) or int(lengths.max()) > images.shape[1]:
            raise ValueError(f"lengths must be integers from 1 to {images.shape[1]}, one for each of images")
        shown = torch.arange(images.shape[1], device=images.device) < lengths.unsqueeze(1)
        features = images.new_zeros(*images.shape[:2], self.dim)
        features[shown] = self.image_model(images[shown]).to(features.dtype)
        states = self.positions(features * math.sqrt(self.dim))
        states = torch.cat([self.start.expand(len(states), 1, -1), states], 1)
        hidden = torch.cat([torch.zeros_like(shown[:, :1]), ~shown], 1)
        return self.head(self.encoder(states, src_key_padding_mask=hidden)[:, 0])
