"""Core: A small vision transformer. Source: arXiv:2010.11929, with normalization before each sublayer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heldout.errors import check_at_least, checked


class VisionTransformer(nn.Module):
    """Patches of an image with a class token through transformer blocks, then a linear head; see ``tiny_vit``.

    Args:
        image_size: height and width in pixels, a multiple of ``patch_size``.
        patch_size: height and width of a patch in pixels.
        dim: size of a token, a multiple of ``heads``.
        depth: number of transformer blocks.
        heads: attention heads of each block.
        num_classes: number of outputs.
        channels: of the images.

    Raises:
        ValueError: sizes that do not divide, or numbers below 1.

    Example:
        >>> model = VisionTransformer(8, 4, dim=16, depth=1, heads=2, num_classes=10, channels=1)
        >>> images = torch.rand(5, 1, 8, 8)
        >>> model.positions.shape, model(images).equal(model.head(model.features(images)))
        (torch.Size([1, 5, 16]), True)
    """

    @checked
    def __init__(
        self, image_size: int, patch_size: int, dim: int, depth: int, heads: int, num_classes: int, channels: int
    ) -> None:
        check_at_least(1, patch_size=patch_size, num_classes=num_classes, channels=channels)
        check_at_least(1, heads=heads)
        super().__init__()
        if image_size % patch_size:
            raise ValueError(f"image_size must be a multiple of patch_size, got {image_size} and {patch_size}")
        if dim % heads:
            raise ValueError(f"dim must be a multiple of heads, got {dim} and {heads}")
        self.patch_embedding = nn.Conv2d(channels, dim, patch_size, stride=patch_size)
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.positions = nn.Parameter(torch.randn(1, 1 + (image_size // patch_size) ** 2, dim) * 0.02)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)

    @checked
    def features(self, images: Tensor) -> Tensor:
        """Returns the normalised class token ``(batch, dim)`` that the head reads."""
        patches = self.patch_embedding(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(images), -1, -1), patches], dim=1) + self.positions
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens[:, 0])

    @checked
    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


class Block(nn.Module):
    """Attention, then a two-layer perceptron of width ``4 * dim``, each normalised before and added to its input."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.projection = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, tokens: Tensor) -> Tensor:
        batch, length, dim = tokens.shape
        qkv = self.qkv(self.norm1(tokens)).view(batch, length, 3, self.heads, dim // self.heads)
        attended = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))
        tokens = tokens + self.projection(attended.transpose(1, 2).reshape(batch, length, dim))
        return tokens + self.mlp(self.norm2(tokens))


@checked
def tiny_vit(
    image_size: int = 28,
    patch_size: int = 7,
    dim: int = 64,
    depth: int = 6,
    heads: int = 4,
    num_classes: int = 10,
    channels: int = 3,
) -> VisionTransformer:
    """Returns a vision transformer for images ``(batch, channels, image_size, image_size)``; it gives the logits.

    ``model.features(images)`` gives what the head reads, ``(batch, dim)``. The default has 0.3 million parameters.

    Args:
        image_size: height and width, a multiple of ``patch_size``.
        patch_size: height and width of a patch.
        dim: size of a token, a multiple of ``heads``.
        depth: number of transformer blocks.
        heads: attention heads of each block.
        num_classes: number of outputs.
        channels: 1 for grey images, 3 for colour.

    Raises:
        ValueError: if the sizes do not divide.

    Example:
        >>> model = tiny_vit(image_size=8, patch_size=4, dim=16, depth=2, heads=2, channels=1)
        >>> model(torch.zeros(5, 1, 8, 8)).shape, model.features(torch.zeros(5, 1, 8, 8)).shape
        (torch.Size([5, 10]), torch.Size([5, 16]))
    """
    check_at_least(1, patch_size=patch_size, num_classes=num_classes, channels=channels)
    check_at_least(1, heads=heads)
    return VisionTransformer(image_size, patch_size, dim, depth, heads, num_classes, channels)
