"""Core: Samples of unequal length packed into blocks, each at a random position, so that every position is trained.

Source: arXiv:2310.16028 (Zhou et al.), section 4: training setup.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from heldout.data.pairs.tokens import PAD
from heldout.errors import check_at_least, check_dimensions, check_labels, check_nonempty, checked


class PackedBlocks(NamedTuple):
    """Samples side by side, for a causal model.

    A sample begins where ``position_ids`` do not go on by one: causal models of transformers, called with them, without
    an attention mask and with ``use_cache=False``, let no sample see another; so does ``heldout.nn.CausalTransformer``.

    Attributes:
        ids: int64 ``(blocks, block)``, filled up with ``PAD`` at the right.
        answer_mask: bool, of the same shape: what is asked for.
        position_ids: int64, of the same shape: consecutive within a sample, 0 in the filling.

    Example:
        >>> samples = torch.tensor([[1, 5, 2], [1, 2, 0]]), torch.tensor([[False, True, True], [False, True, False]])
        >>> packed = pack_with_offset(samples, 4, max_offset=0)  # the second does not fit into the first block
        >>> packed.ids.tolist(), packed.answer_mask.sum(1).tolist()
        ([[1, 5, 2, 0], [1, 2, 0, 0]], [2, 1])
    """

    ids: Tensor
    answer_mask: Tensor
    position_ids: Tensor


@checked
def pack_with_offset(
    samples: tuple[Tensor, Tensor],
    block: int,
    *,
    positions: int | None = None,
    max_offset: int | None = None,
    generator: torch.Generator | None = None,
) -> PackedBlocks:
    """Returns samples in their order, each whole, as many in a block as fit, and each at a random first position.

    Offsets are uniform over all that leave room for the sample. One that would go on where the sample before ended
    is drawn anew, for it would join the two.

    Args:
        samples: token ids, int64 ``(n, longest)``, filled up with ``PAD`` at the right, and which of them are asked
            for, bool of the same shape, as ``SequenceTask.sample`` gives them.
        block: tokens of a block, at least those of the longest sample.
        positions: that the model has; default: ``block``.
        max_offset: the largest first position; default: the largest that fits. 0 starts each sample at 0, as is usual.
        generator: of the offsets; default: torch's own.

    Raises:
        ValueError: no samples, an empty one, or one that is longer than ``block`` or ``positions``.

    Source: arXiv:2310.16028, section 4.

    Deviation: the paper's samples of one context see each other; here they do not, and each has an offset of its own.

    Example:
        >>> samples = torch.tensor([[1, 5, 2], [1, 2, 0]]), torch.tensor([[False, True, True], [False, True, False]])
        >>> packed = pack_with_offset(samples, 6, max_offset=0)
        >>> packed.ids.tolist(), packed.position_ids.tolist()
        ([[1, 5, 2, 1, 2, 0]], [[0, 1, 2, 0, 1, 0]])
    """
    ids, asked = samples
    check_dimensions(2, samples=ids)
    check_labels(samples=ids)
    check_nonempty(samples=ids)
    check_at_least(1, block=block, positions=positions)
    check_at_least(0, max_offset=max_offset)
    if asked.shape != ids.shape or asked.dtype != torch.bool:
        raise ValueError(f"samples must tell for each token whether it is asked for, as bool {tuple(ids.shape)}")
    used = ids != PAD
    sizes = used.sum(1)
    if not bool((used == (torch.arange(ids.shape[1], device=ids.device) < sizes[:, None])).all()) or not sizes.all():
        raise ValueError("samples must hold tokens, and be filled up with 0 at the right only")
    longest, positions = int(sizes.max()), block if positions is None else positions
    if longest > block:
        raise ValueError(f"block must be at least {longest}, the tokens of the longest sample, got {block}")
    if longest > positions:
        raise ValueError(f"positions must be at least {longest}, the tokens of the longest sample, got {positions}")
    numbers, starts, number, room = [], [], 0, 0
    for size in sizes.tolist():
        if room + size > block:
            number, room = number + 1, 0
        numbers.append(number)
        starts.append(room)
        room += size
    most = positions - sizes if max_offset is None else (positions - sizes).clamp(max=max_offset)
    offsets = _drawn(sizes, most, torch.tensor(starts, device=ids.device), generator)
    places = torch.tensor(numbers, device=ids.device) * block + torch.tensor(starts, device=ids.device)
    within = torch.arange(ids.shape[1], device=ids.device)
    target = (places[:, None] + within)[used]
    packed = [
        torch.zeros((number + 1) * block, dtype=values.dtype, device=ids.device)
        .index_put((target,), values[used])
        .view(-1, block)
        for values in (ids, asked, offsets[:, None] + within)
    ]
    return PackedBlocks(*packed)


def _drawn(sizes: Tensor, most: Tensor, starts: Tensor, generator: torch.Generator | None) -> Tensor:
    """Offsets from 0 to ``most``, none of which goes on where the neighbour at the left ended."""
    device = torch.device("cpu") if generator is None else generator.device

    def draw(limits: Tensor) -> Tensor:
        shares = torch.rand(len(limits), generator=generator, dtype=torch.float64, device=device).to(limits.device)
        return (shares * (limits + 1)).long().clamp(max=limits)

    offsets = draw(most)
    while True:
        joined = offsets == (offsets + sizes).roll(1)
        joined[0] = False
        joined &= starts > 0
        if not bool(joined.any()):
            return offsets
        offsets[joined] = draw(most[joined])
