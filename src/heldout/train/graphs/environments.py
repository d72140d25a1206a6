"""EERM: environments of a graph that are made by editing its edges, so that a model's errors differ, and kept alike.

Source: arXiv:2202.02466 (Wu et al., ICLR 2022), equations 7 to 9 and algorithm 1.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from heldout.data import EDGE_FIELDS, edge_hook, with_edges
from heldout.errors import check_at_least, check_dimensions, check_labels, check_nonnegative, check_positive, checked
from heldout.method import Batch, Method, Run, Splits, forward


class EdgeEditors:
    """Policies that each edit a few edges into every node of a graph, and learn to by a reward.

    A policy draws, for each node, ``edits`` sources from the node's neighbours and ``candidates`` other nodes; an edge
    from a source that is there goes, one that is not is added. Memory and time are linear in edges plus ``candidates``
    times nodes.

    Args:
        edge_index: int64 ``(2, edges)``.
        num_nodes: of the graph.
        environments: number of policies.
        edits: draws for each node, with replacement.
        candidates: nodes that are no neighbours, drawn once for each node, for all policies.
        lr: of the policies, by Adam.
        seed: of candidates and draws.

    Attributes:
        logits: ``(environments, pairs)``, of the policies, zeros at first.
        pairs: int64 ``(2, pairs)``, what may be edited, without repetition.

    Raises:
        ValueError: numbers out of range, or edges of other nodes.

    Source: arXiv:2202.02466, equation 8 and appendix. deviation: there all other nodes are candidates, which takes
    ``nodes`` x ``nodes`` numbers for each policy; and draws are without replacement, though their probability is
    counted as with it.

    Example:
        >>> editors = EdgeEditors(torch.tensor([[0, 1], [1, 2]]), 3, environments=2, candidates=1)
        >>> edges, log_probability = editors.draw(0)
        >>> log_probability.shape
        torch.Size([])
    """

    @checked
    def __init__(
        self,
        edge_index: Tensor,
        num_nodes: int,
        *,
        environments: int = 3,
        edits: int = 1,
        candidates: int = 16,
        lr: float = 0.01,
        seed: int = 0,
    ) -> None:
        check_dimensions(2, edge_index=edge_index)
        check_positive(num_nodes=num_nodes, environments=environments, edits=edits, lr=lr)
        check_nonnegative(candidates=candidates)
        check_labels(num_nodes, edge_index=edge_index)
        self.num_nodes, self.environments, self.edits, self.lr = num_nodes, environments, edits, lr
        self.edge_index = edge_index
        self._generator = torch.Generator().manual_seed(seed)
        place = edge_index.device
        others = torch.randint(num_nodes, (num_nodes * candidates,), generator=self._generator).to(place)
        to = torch.arange(num_nodes, device=place).repeat_interleave(candidates)
        given = edge_index[1] * num_nodes + edge_index[0]
        keys = torch.cat([given, (to * num_nodes + others)[to != others]]).unique()
        self.pairs = torch.stack([keys % num_nodes, keys // num_nodes])
        self._given, self._keys, self._there = given, keys, torch.isin(keys, given)
        self.logits = torch.zeros(environments, len(keys), device=place, requires_grad=True)
        self._adam = torch.optim.Adam([self.logits], lr=lr)

    @checked
    def log_probabilities(self, environment: int) -> Tensor:
        """Returns the logarithm of a pair's chance in a draw for its node, ``(pairs,)``."""
        check_labels(self.environments, environment=environment)
        logits, to = self.logits[environment], self.pairs[1]
        top = logits.detach().new_full((self.num_nodes,), -torch.inf)
        top = top.scatter_reduce(0, to, logits.detach(), "amax")[to]
        total = logits.new_zeros(self.num_nodes).index_add(0, to, (logits - top).exp())
        return logits - top - total[to].log()

    @checked
    def draw(self, environment: int) -> tuple[Tensor, Tensor]:
        """Returns the edges of an environment, int64 ``(2, edges)``, and the log-probability of its draws, a scalar.

        What the graph holds keeps its order; what is added stands behind it.
        """
        log_probabilities = self.log_probabilities(environment)
        chosen = torch.zeros_like(self._there)
        total = log_probabilities.new_zeros(())
        to = self.pairs[1]
        for _ in range(self.edits):
            uniform = torch.rand(len(to), generator=self._generator).to(to.device).clamp(1e-20)
            score = log_probabilities.detach() - (-uniform.log()).log()
            best = score.new_full((self.num_nodes,), -torch.inf).scatter_reduce(0, to, score, "amax")
            picked = score == best[to]
            chosen |= picked
            total = total + log_probabilities[picked].sum()
        gone = torch.isin(self._given, self._keys[chosen & self._there])
        return torch.cat([self.edge_index[:, ~gone], self.pairs[:, chosen & ~self._there]], 1), total

    @checked
    def reward(self, log_probabilities: Tensor, reward: float) -> None:
        """Makes draws likelier in proportion to a reward: one step of REINFORCE.

        Args:
            log_probabilities: ``(environments,)``, from ``draw``, with their graph.
            reward: for all of them.
        """
        self._adam.zero_grad()
        (-reward * log_probabilities.sum()).backward()
        self._adam.step()


@checked
def eerm(environments: int = 3, edits: int = 1, variance: float = 1.0, lr: float = 0.01) -> Method:
    """Trains on several environments of a graph, made to differ as the model's losses do: mean plus variance of losses.

    Each environment has other edges, which a policy edits that is rewarded by the variance; see ``EdgeEditors``. For
    nodes of graphs whose edges have no weights and attributes. A step costs as much as ``environments`` steps.

    Args:
        environments: K.
        edits: for each node and environment.
        variance: weight of the variance of losses, beside their mean: 1 / beta of the paper.
        lr: of the policies.

    Raises:
        ValueError: fewer than two environments, or numbers out of range.

    Source: arXiv:2202.02466, algorithm 1. deviation: policies move once in each step of the model.

    Example:
        >>> eerm(environments=2).stages
        ('model', 'loss', 'weights')
    """
    check_at_least(2, environments=environments)
    check_positive(edits=edits, lr=lr)
    check_nonnegative(variance=variance)

    def model(run: Run, module: nn.Module) -> nn.Module:
        graph = cast(Any, run.splits.train).graph
        editors = EdgeEditors(
            graph.edge_index.to(run.device), len(graph.x), environments=environments, edits=edits, lr=lr, seed=run.seed
        )
        run.state["eerm"] = _Environments(module, editors)
        return module

    def loss(run: Run, batch: Batch) -> Tensor:
        known = run.state["eerm"]
        chances = []
        if run.evaluation <= 0:  # SAM's second evaluation in a step is of the same environments
            drawn = [known.editors.draw(number) for number in range(environments)]
            known.drawn, chances = [edges for edges, _ in drawn], [chance for _, chance in drawn]
        outputs = [known.answers(batch, edges) for edges in known.drawn]
        batch.cached_logits = outputs[0]
        losses = torch.stack([run.objective(output, batch.targets) for output in outputs])
        if chances:
            known.editors.reward(torch.stack(chances), float(losses.detach().var()))
        return losses.mean() + variance * losses.var()

    def weights(run: Run, module: nn.Module) -> nn.Module:
        run.state.pop("eerm").handle.remove()
        return module

    return Method("eerm", model=model, loss=loss, weights=weights, check=_why_no_environments)


class _Environments:
    """Lets a module that is called with a graph see other edges than the graph's, where it is asked to."""

    def __init__(self, module: nn.Module, editors: EdgeEditors) -> None:
        self.editors, self.drawn = editors, list[Tensor]()
        self._edges: Tensor | None = None
        self.handle = edge_hook(module, self._put)

    def answers(self, batch: Batch, edges: Tensor) -> Tensor:
        self._edges = edges
        try:
            return forward(batch.module, batch.inputs)
        finally:
            self._edges = None

    def _put(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._edges is None:
            return None
        return with_edges(args, kwargs, self._edges)

    _put.place = 0  # type: ignore[attr-defined]  # before others leave edges out


def _why_no_environments(module: nn.Module, splits: Splits) -> str | None:
    graph = getattr(splits.train, "graph", None)
    if not hasattr(graph, "edge_index"):
        return "it edits the graph whose nodes are training examples, and they are no nodes of a graph"
    if any(getattr(graph, name, None) is not None for name in EDGE_FIELDS):
        return "it adds edges, and the graph's edges have weights or attributes, which it cannot make"
    return None
