"""Core: Tokens of several whole numbers as vectors, and a classifier of two streams of them.

Source: arXiv:2401.15030, section 2, and its code.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from heldout.errors import check_at_least, check_dimensions, check_labels, check_nonempty, checked
from heldout.nn.sequences.seq2seq import SinusoidalPositions


class FieldEmbedding(nn.Module):
    """Embeds tokens of several fields, such as a colour and a shape, as the sum of one learned vector for each field.

    The sum starts as large as the positions that are added to it, a mean square of 1/2: larger vectors bury them.

    Args:
        sizes: how many values each field has, from 0.
        d: of the vectors, even.
        raw: a linear map of the whole numbers instead, as the paper's code feeds them; learns far more slowly.
        positions: whether sines and cosines of the tokens' positions are added.

    Raises:
        ValueError: sizes out of range.

    Source: arXiv:2401.15030, its code (models/transformer.py) for ``raw``; deviation: learned vectors by default.

    Example:
        >>> FieldEmbedding((3, 4), 8)(torch.tensor([[[0, 1], [2, 3]]])).shape
        torch.Size([1, 2, 8])
    """

    @checked
    def __init__(self, sizes: Sequence[int], d: int, *, raw: bool = False, positions: bool = True) -> None:
        check_nonempty(sizes=sizes)
        check_at_least(1, d=d, sizes=min(sizes))
        super().__init__()
        self.sizes = tuple(sizes)
        self.positions = SinusoidalPositions(d) if positions else nn.Identity()
        self.linear = nn.Linear(len(sizes), d) if raw else None
        self.vectors = nn.ModuleList([] if raw else [nn.Embedding(size, d) for size in sizes])
        for each in self.vectors:
            nn.init.normal_(each.weight, std=(2 * len(sizes)) ** -0.5)  # type: ignore[arg-type]

    @checked
    def forward(self, tokens: Tensor) -> Tensor:
        """Returns vectors ``(batch, length, d)``.

        Args:
            tokens: whole numbers ``(batch, length, fields)``.

        Raises:
            ValueError: another number of fields, or values that they do not have.
        """
        check_dimensions(3, tokens=tokens)
        if tokens.shape[2] != len(self.sizes):
            raise ValueError(f"tokens must have {len(self.sizes)} fields, got {tokens.shape[2]}")
        check_labels(tokens=tokens)
        tokens = tokens.long()
        if (tokens >= tokens.new_tensor(self.sizes)).any():
            raise ValueError(f"tokens must lie below the sizes {self.sizes} of their fields")
        if self.linear is not None:
            return self.positions(self.linear(tokens.to(self.linear.weight.dtype)))
        summed = torch.stack([each(tokens[..., field]) for field, each in enumerate(self.vectors)]).sum(0)
        return self.positions(summed)


class FusionClassifier(nn.Module):
    """Classifies pairs of an instruction and a scene: an encoder of each, what brings them together, a linear map.

    Args:
        encoder_a: from the instruction to tokens ``(batch, length, d)``.
        encoder_b: the same of the scene.
        fusion: of the two, such as ``CrossAttentionFusion``; has a ``width``.
        classes: how many.

    Raises:
        ValueError: fewer than two classes, or a fusion without a width.

    Example:
        >>> from heldout.nn import CrossAttentionFusion
        >>> model = FusionClassifier(FieldEmbedding((5,), 8), FieldEmbedding((3, 4), 8), CrossAttentionFusion(8), 7)
        >>> rules, mask = torch.zeros(2, 4, 1, dtype=torch.int64), torch.ones(2, 4, dtype=torch.bool)
        >>> model(rules, mask, torch.zeros(2, 9, 2, dtype=torch.int64)).shape
        torch.Size([2, 7])
    """

    @checked
    def __init__(self, encoder_a: nn.Module, encoder_b: nn.Module, fusion: nn.Module, classes: int) -> None:
        check_at_least(2, classes=classes)
        width = getattr(fusion, "width", None)
        if not isinstance(width, int):
            raise ValueError(f"fusion must have a width, got {type(fusion).__name__}")
        super().__init__()
        self.encoder_a, self.encoder_b, self.fusion = encoder_a, encoder_b, fusion
        self.output = nn.Linear(width, classes)

    @checked
    def forward(self, tokens_a: Tensor, mask_a: Tensor | None, tokens_b: Tensor) -> Tensor:
        """Returns logits ``(batch, classes)``, from the inputs of ``heldout.tasks.GCOGTrials`` in their order.

        Args:
            tokens_a: instructions, as their encoder takes them.
            mask_a: bool ``(batch, length)``, what is a token of the instruction; None: all are.
            tokens_b: scenes, as their encoder takes them.

        Raises:
            ValueError: what encoders and fusion refuse.
        """
        return self.output(self.fusion(self.encoder_a(tokens_a), self.encoder_b(tokens_b), mask_a, None))
