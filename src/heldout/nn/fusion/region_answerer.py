"""RegionAnswerer: answers a question about the regions of a picture, in two parts between which both are one sequence.

Source: arXiv:2505.23045 (Li et al., IJCAI 2025), for the place where primitives are replaced; the network is small.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heldout.errors import check_at_least, check_dimensions, check_labels, check_same_length, checked
from heldout.nn.fusion.attention_block import check_heads


class RegionAnswerer(nn.Module):
    """A GRU over words, a network of one's own on each region, and attention from words to regions.

    Words and regions are normalised to one length, and a learned vector for "nothing" can be attended to, so that what
    is not there can be told. Answers are read from the mean over words.

    Args:
        vocabulary: how many words there are; word 0 is none.
        classes: how many answers.
        picture: from pictures ``(n, ...)`` to features ``(n, width)``.
        width: of words and regions, a multiple of ``heads``.
        heads: of each attention.
        layers: of attention.

    Raises:
        ValueError: sizes out of range, or that do not divide.

    Example:
        >>> model = RegionAnswerer(10, 4, nn.Linear(5, 8), width=8)
        >>> words, here = torch.tensor([[1, 2, 0]]), torch.tensor([[True, True, False, False]])
        >>> features = model.encode(words, torch.rand(1, 4, 5), torch.rand(1, 4, 4), here)
        >>> features.shape, model.answer(features, words, here).shape
        (torch.Size([1, 7, 8]), torch.Size([1, 4]))
    """

    @checked
    def __init__(
        self, vocabulary: int, classes: int, picture: nn.Module, width: int = 64, heads: int = 4, layers: int = 2
    ) -> None:
        check_at_least(2, vocabulary=vocabulary, classes=classes)
        check_at_least(1, width=width, layers=layers)
        check_heads(width, heads)
        super().__init__()
        self.width = width
        self.words = nn.Embedding(vocabulary, width, padding_idx=0)
        self.gru = nn.GRU(width, width, batch_first=True)
        self.picture, self.box = picture, nn.Linear(4, width)
        self.word_norm, self.region_norm, self.norm = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.nothing = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.layers = nn.ModuleList(_Attends(width, heads) for _ in range(layers))
        self.out = nn.Linear(width, classes)

    @checked
    def encode(self, words: Tensor, pictures: Tensor, boxes: Tensor, here: Tensor) -> Tensor:
        """Returns words and then regions ``(batch, length + regions, width)``; zeros where there is no region.

        Args:
            words: int64 ``(batch, length)``, filled up with 0.
            pictures: ``(batch, regions, ...)``.
            boxes: ``(batch, regions, 4)``.
            here: bool ``(batch, regions)``, where there is a region.

        Raises:
            ValueError: shapes that do not match, or unknown words.
        """
        check_dimensions(2, words=words, here=here)
        check_same_length(words=words, pictures=pictures, boxes=boxes, here=here)
        check_labels(self.words.num_embeddings, words=words)
        if here.dtype != torch.bool or pictures.shape[:2] != here.shape or boxes.shape != (*here.shape, 4):
            raise ValueError(
                f"here must be bool (batch, regions), pictures and boxes (batch, regions, ...), got {here.dtype} "
                f"{tuple(here.shape)}, {tuple(pictures.shape)} and {tuple(boxes.shape)}"
            )
        regions = boxes.new_zeros(*here.shape, self.width)
        regions[here] = self.region_norm(self.picture(pictures[here]) + self.box(boxes[here]))
        return torch.cat([self.word_norm(self.gru(self.words(words))[0]), regions], 1)

    @checked
    def answer(self, features: Tensor, words: Tensor, here: Tensor) -> Tensor:
        """Returns logits ``(batch, classes)``.

        Args:
            features: as of ``encode``, or others in their place.
            words, here: as of ``encode``; which positions are there.

        Raises:
            ValueError: shapes that do not match, or a question without words.
        """
        check_dimensions(3, features=features)
        check_dimensions(2, words=words, here=here)
        check_same_length(words=words, here=here)
        check_labels(self.words.num_embeddings, words=words)
        if here.dtype != torch.bool or features.shape != (len(words), words.shape[1] + here.shape[1], self.width):
            raise ValueError(
                f"features must be (batch, length + regions, {self.width}), got {tuple(features.shape)} for words "
                f"{tuple(words.shape)} and here {here.dtype} {tuple(here.shape)}"
            )
        asked = words > 0
        if not asked.any(1).all():
            raise ValueError("words must be there in each row")
        hidden, regions = features.split([words.shape[1], here.shape[1]], 1)
        regions = torch.cat([regions, self.nothing.expand(len(regions), -1, -1)], 1)
        for layer in self.layers:
            hidden = layer(hidden, regions, F.pad(here, (0, 1), value=True))
        share = asked.unsqueeze(2) / asked.sum(1).view(-1, 1, 1)
        return self.out((self.norm(hidden) * share).sum(1))


class _Attends(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key_value, self.out = (nn.Linear(width, times * width) for times in (1, 2, 1))
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.perceptron = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))

    def forward(self, words: Tensor, regions: Tensor, mask: Tensor) -> Tensor:
        query = self.query(self.norm1(words)).unflatten(2, (self.heads, -1)).transpose(1, 2)
        key, value = self.key_value(regions).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None])
        words = words + self.out(found.transpose(1, 2).flatten(2))
        return words + self.perceptron(self.norm2(words))
