"""Core: Samplers that draw as often as one likes: in passes without end, or some examples at a fixed share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler

from heldout.errors import check_at_least, check_fraction, checked


class EndlessSampler(Sampler):
    """Draws a number of positions from passes of another sampler, and goes on where it stopped.

    What equal training needs where data sets are of unequal size: the same number of steps, whatever an epoch is.

    Args:
        sampler: gives a pass over positions, each time it is asked.
        draws: positions in an epoch, at least 1.

    Raises:
        ValueError: a pass that is empty.

    Example:
        >>> sampler = EndlessSampler([4, 5, 6], draws=4)
        >>> list(sampler), list(sampler)
        ([4, 5, 6, 4], [5, 6, 4, 5])
    """

    @checked
    def __init__(self, sampler: Iterable[int], draws: int) -> None:
        check_at_least(1, draws=draws)
        self.sampler, self.draws = sampler, draws
        self._going: Iterator[int] = iter(())

    def __len__(self) -> int:
        return self.draws

    def __iter__(self) -> Iterator[int]:
        for _ in range(self.draws):
            position = next(self._going, None)
            if position is None:
                self._going = iter(self.sampler)
                position = next(self._going, None)
                if position is None:
                    raise ValueError("sampler must give positions, got an empty pass")
            yield position


class ShareSampler(Sampler):
    """Draws marked examples at a fixed share, evenly spread, and the others at the rest; both in shuffled passes.

    Every batch of 10 holds one marked example where the share is 0.1.

    Args:
        mask: bool ``(n,)``, the marked examples: at least one, and not all.
        share: of the draws, in [0, 1].
        draws: positions in an epoch; default: n.
        seed: of the orders.

    Raises:
        ValueError: a mask that marks all or none.

    Example:
        >>> sampler = ShareSampler(torch.tensor([True, False, False]), share=0.5, draws=4)
        >>> [position == 0 for position in sampler]
        [False, True, False, True]
    """

    @checked
    def __init__(self, mask: Tensor, share: float, *, draws: int | None = None, seed: int = 0) -> None:
        check_fraction(share=share)
        check_at_least(1, draws=draws)
        check_at_least(0, seed=seed)
        if mask.dtype != torch.bool or mask.ndim != 1:
            raise ValueError(f"mask must be bool (n,), got {mask.dtype} {tuple(mask.shape)}")
        if mask.all() or not mask.any():
            raise ValueError("mask must mark some examples, and not all")
        self.share, self.draws = share, len(mask) if draws is None else draws
        self.generator = torch.Generator().manual_seed(seed)
        self.marked, self.others = (part.nonzero().squeeze(1) for part in (mask, ~mask))
        self._passes = _endless(self.marked, self.generator), _endless(self.others, self.generator)
        self._drawn = 0

    def __len__(self) -> int:
        return self.draws

    def __iter__(self) -> Iterator[int]:
        for _ in range(self.draws):
            before, self._drawn = self._drawn, self._drawn + 1
            due = int(self._drawn * self.share + 1e-9) > int(before * self.share + 1e-9)
            yield next(self._passes[0 if due else 1])


def _endless(positions: Tensor, generator: torch.Generator) -> Iterator[int]:
    while True:
        yield from positions[torch.randperm(len(positions), generator=generator)].tolist()
