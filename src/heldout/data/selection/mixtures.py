"""Core: Mixtures of data sets of unequal size: how much of each is drawn, and a sampler that draws it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Dataset, Sampler

from heldout.errors import (
    check_at_least,
    check_dimensions,
    check_has,
    check_labels,
    check_nonempty,
    check_nonnegative,
    check_one_of,
    checked,
)
from heldout.method import Method, Run, Splits

NEARLY_THE_SAME = 0.02  # a change of each share below which mixing otherwise changes next to nothing


@checked
def mixture_weights(
    sizes: Mapping[str, int],
    *,
    cap: int | None = None,
    temperature: float = 1.0,
    group: Mapping[str, str] | None = None,
    group_weights: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Returns the share of each data set in a mixture, ``min(size, cap) ^ (1 / temperature)``, normalised.

    Temperature 1 without a cap is proportional to size; with one, it is examples-proportional mixing; an infinite
    temperature makes all alike. In two levels, a set's share is that of its group times its share among the group's.

    Args:
        sizes: examples of each set, at least 1.
        cap: the size that larger sets count as, at least 1; None leaves all as they are.
        temperature: above 0; ``math.inf`` for equal shares.
        group: the group of each set.
        group_weights: what each group is worth, from 0 on; they need not sum to 1. Given with ``group``, and only then.

    Raises:
        ValueError: an empty set, a cap below 1, groups without weights or the other way round, all weights 0.

    Source: arXiv:1910.10683, section 3.5.2 (cap and temperature); arXiv:2212.12017 (two levels).

    Example:
        >>> shares = mixture_weights({"a": 10, "b": 100, "c": 1000}, cap=100)
        >>> [round(share * 210) for share in shares.values()]
        [10, 100, 100]
        >>> mixture_weights({"a": 10, "b": 1000}, temperature=float("inf"))
        {'a': 0.5, 'b': 0.5}
        >>> groups = {"a": "x", "b": "x", "c": "y"}
        >>> mixture_weights({"a": 1, "b": 3, "c": 9}, group=groups, group_weights={"x": 1, "y": 1})
        {'a': 0.125, 'b': 0.375, 'c': 0.5}
    """
    check_nonempty(sizes=sizes)
    check_at_least(1, cap=cap, **{f"sizes[{name!r}]": size for name, size in sizes.items()})
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    if (group is None) != (group_weights is None):
        raise ValueError("group and group_weights belong together: one of them is missing")
    own = {name: (size if cap is None else min(size, cap)) ** (1 / temperature) for name, size in sizes.items()}
    of_group = dict.fromkeys(sizes, "") if group is None else group
    worth = {"": 1.0} if group_weights is None else group_weights
    if missing := [name for name in sizes if name not in of_group]:
        raise ValueError(f"group must have every set, got none for {missing[0]!r}")
    check_one_of(worth, **{f"group[{name!r}]": of_group[name] for name in sizes})
    check_nonnegative(**{f"group_weights[{name!r}]": value for name, value in worth.items()})
    totals = {each: sum(own[name] for name in sizes if of_group[name] == each) for each in worth}
    whole = sum(value for each, value in worth.items() if totals[each])
    if not whole > 0:
        raise ValueError("group_weights must be above 0 for a group that has sets")
    return {name: worth[of_group[name]] / whole * own[name] / totals[of_group[name]] for name in sizes}


class MixtureSampler(Sampler):
    """Draws examples of several data sets at given shares, those of each set in shuffled passes.

    Which set is next is drawn by chance; of it comes the next example of its pass, so that none repeats before all were
    seen. Passes go on from one epoch to the next.

    Args:
        member: int64 ``(n,)``, the number of the set that each example is of.
        weights: ``(sets,)``, from 0 on, the share of each; they need not sum to 1. A set without examples has 0.
        draws: positions in an epoch; default: n.
        seed: of the draws and the orders.

    Raises:
        ValueError: numbers out of range, weights that are all 0, or of a set without examples.

    Source: arXiv:1910.10683, section 3.5.2.

    Example:
        >>> sampler = MixtureSampler(torch.tensor([0] * 90 + [1] * 10), torch.tensor([1.0, 1.0]), draws=1000)
        >>> 400 < sum(position >= 90 for position in sampler) < 600
        True
    """

    @checked
    def __init__(self, member: Tensor, weights: Tensor, *, draws: int | None = None, seed: int = 0) -> None:
        check_dimensions(1, member=member, weights=weights)
        check_nonempty(member=member)
        check_nonnegative(weights=weights)
        check_labels(len(weights), member=member)
        check_at_least(1, draws=draws)
        check_at_least(0, seed=seed)
        counts = member.long().bincount(minlength=len(weights))
        if not bool((weights > 0).any()) or bool(((weights > 0) & (counts == 0)).any()):
            raise ValueError("weights must be above 0 for some set, and for none that has no examples")
        self.member, self.weights = member.long().cpu(), weights.double().cpu()
        self.draws = len(member) if draws is None else draws
        self.generator = torch.Generator().manual_seed(seed)
        self._passes: dict[int, Iterator[int]] = {}

    def __len__(self) -> int:
        return self.draws

    def __iter__(self) -> Iterator[int]:
        for which in torch.multinomial(self.weights, self.draws, True, generator=self.generator).tolist():
            yield next(self._passes.setdefault(which, self._endless(which)))

    def _endless(self, which: int) -> Iterator[int]:
        positions = (self.member == which).nonzero().squeeze(1)
        while True:
            yield from positions[torch.randperm(len(positions), generator=self.generator)].tolist()


class Mixture(ConcatDataset):
    """Several named data sets as one, and the shares at which they are to be drawn.

    Args:
        datasets: by name, each with ``__len__`` and ``__getitem__``: torch's, lists, or those of Hugging Face.
        cap, temperature, group, group_weights: see ``mixture_weights``.

    Attributes:
        names: of the sets, in order.
        member: int64 ``(n,)``, the number of the set that each example is of: what ``Splits`` takes as ``domains``.

    Raises:
        ValueError: no sets, an empty one, or options out of range.
        TypeError: a set that has no length or no ``__getitem__``.

    Source: arXiv:2212.12017.

    Example:
        >>> mixture = Mixture({"long": list(range(90)), "short": list(range(10))}, temperature=2.0)
        >>> {name: round(share, 2) for name, share in mixture.weights().items()}
        {'long': 0.75, 'short': 0.25}
        >>> loader = torch.utils.data.DataLoader(mixture, batch_size=8, sampler=mixture.sampler(seed=1))
        >>> len(loader), mixture.member.bincount().tolist()
        (13, [90, 10])
    """

    @checked
    def __init__(
        self,
        datasets: Mapping[str, Any],
        *,
        cap: int | None = None,
        temperature: float = 1.0,
        group: Mapping[str, str] | None = None,
        group_weights: Mapping[str, float] | None = None,
    ) -> None:
        check_nonempty(datasets=datasets)
        check_has("__len__", "__getitem__", **{f"datasets[{name!r}]": each for name, each in datasets.items()})
        self.sizes = {name: len(each) for name, each in datasets.items()}
        self._shares = mixture_weights(
            self.sizes, cap=cap, temperature=temperature, group=group, group_weights=group_weights
        )
        super().__init__(list(datasets.values()))
        self.names = list(datasets)
        self.member = torch.arange(len(self.names)).repeat_interleave(torch.tensor([*self.sizes.values()]))

    def weights(self) -> dict[str, float]:
        """Returns the share of each set, by name; they sum to 1."""
        return dict(self._shares)

    def sampler(self, draws: int | None = None, *, seed: int = 0) -> MixtureSampler:
        """Returns the sampler that draws the sets at their shares: ``draws`` positions an epoch, default all examples'.

        Raises:
            ValueError: fewer than 1 draw, a negative seed.
        """
        return MixtureSampler(self.member, torch.tensor([*self._shares.values()]), draws=draws, seed=seed)


@checked
def domain_mixing(temperature: float = 2.0, cap: int | None = None) -> Method:
    """Returns the Method that draws training domains at other shares than their sizes: small ones more often.

    An epoch is as long as before. ``Splits`` must have ``domains``: of texts, the sets that they come from.

    Args:
        temperature: a domain's share goes with its size to the power of ``1 / temperature``; ``math.inf``: all alike.
        cap: the size that larger domains count as.

    Raises:
        ValueError: a temperature that is not above 0, a cap below 1.

    Source: arXiv:1910.10683, section 3.5.2; arXiv:2212.12017.

    Example:
        >>> domain_mixing(temperature=4.0).stages
        ('data',)
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    check_at_least(1, cap=cap)

    def shares(domains: Tensor) -> tuple[Tensor, Tensor]:
        known, member = torch.as_tensor(domains).cpu().unique(return_inverse=True)
        sizes = {str(number): int(count) for number, count in enumerate(member.bincount(minlength=len(known)))}
        return member, torch.tensor([*mixture_weights(sizes, cap=cap, temperature=temperature).values()])

    def data(run: Run, train_set: Dataset | Sampler) -> Sampler:
        if isinstance(train_set, Sampler) or len(train_set) != len(run.splits.train):  # type: ignore[arg-type]
            raise TypeError("domain_mixing draws from the training set as given: write it without that method")
        assert run.splits.domains is not None
        member, weights = shares(run.splits.domains)
        return MixtureSampler(member, weights, seed=int(torch.randint(2**31, (), generator=run.generator)))

    def check(module: nn.Module, splits: Splits) -> str | None:
        if getattr(splits, "tasks", None) is not None:  # a TaskStream
            return "it draws from the whole training set, which comes task after task"
        if splits.domains is None:
            return "it needs domains=, the domain of each training example"
        member, weights = shares(splits.domains)
        plain = member.bincount().double() / len(member)
        nearly = float((weights - plain).abs().max()) < NEARLY_THE_SAME
        return "it would draw the domains nearly as they are, since their sizes are alike" if nearly else None

    return Method("domain_mixing", data=data, check=check)
