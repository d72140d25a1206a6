"""A sequence policy that schedules jobs on clusters, many clusters in step.

Source: arXiv:2402.02338, section 4 (cluster job scheduling).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from heldout.data import RewardScale
from heldout.errors import check_at_least, check_nonempty, checked
from heldout.nn import FeatureSpec, HistoryPolicy, ReturnConditionedPolicy, SequenceActor
from heldout.tasks.control.job_queue import JobQueue


@checked
def job_features(slots: int) -> dict[str, FeatureSpec]:
    """Returns what ``JobQueue.observations`` are to a ``ModalityEncoder``: the graph, the cluster and the table.

    Args:
        slots: of the queues.

    Raises:
        ValueError: ``slots`` below 1.

    Source: arXiv:2402.02338, section 4.1 (a graph network for the jobs' graphs).

    Example:
        >>> [*job_features(16)]
        ['stages', 'cluster', 'table']
    """
    check_at_least(1, slots=slots)
    return {
        "stages": FeatureSpec("graph", 6, edges="heard"),
        "cluster": FeatureSpec("vector", 2),
        "table": FeatureSpec("vector", 6 * slots),
    }


@checked
@torch.no_grad()
def schedule_jobs(
    policy: ReturnConditionedPolicy | HistoryPolicy,
    queues: Sequence[JobQueue],
    *,
    target_return: float = 0.0,
    scale: RewardScale | None = None,
    slide: int = 1,
) -> Tensor:
    """Returns the mean seconds that the jobs of each queue were there, float32 ``(queues,)``, under a trained policy.

    The policy is asked for all queues at once; each takes its most probable action that is valid. Queues that are done
    wait for the others.

    Args:
        policy: of the features of ``JobQueue.observations`` and as many actions as the queues have.
        queues: with equally many slots and widths; are reset, and left as they end.
        target_return: asked for at the start, scaled as in training.
        scale: of rewards, as in training; None: as they are.
        slide: of ``SequenceActor``.

    Raises:
        ValueError: no queues, a policy of another number of actions; as for ``SequenceActor``.

    Source: arXiv:2402.02338, official code.

    Example:
        >>> from heldout.nn import FactoredHead, FeatureSpec, ModalityEncoder
        >>> from heldout.tasks import draw_jobs
        >>> from transformers import GPT2Config, GPT2Model
        >>> lm = GPT2Model(GPT2Config(vocab_size=8, n_embd=8, n_layer=1, n_head=2, n_positions=64))
        >>> encoder = ModalityEncoder({"table": FeatureSpec("vector", 8 * 6)}, width=8)
        >>> policy = ReturnConditionedPolicy(lm, encoder, 8 * 4, window=5, head=FactoredHead(8, (8, 4)))
        >>> schedule_jobs(policy, [JobQueue(draw_jobs(2, seed=k), slots=8) for k in range(3)]).shape
        torch.Size([3])
    """
    check_nonempty(queues=queues)
    for queue in queues:
        if queue.actions != policy.actions:
            raise ValueError(f"policy must have the {queue.actions} actions of the queues, got {policy.actions}")
        queue.reset()
    check_at_least(1, slide=slide)
    device = next(policy.parameters()).device
    actor = SequenceActor(policy, len(queues), target_return=target_return, slide=slide)
    while not all(queue.done for queue in queues):
        seen = [queue.observations() for queue in queues]
        logits = actor.logits({name: torch.stack([each[name] for each in seen]).to(device) for name in seen[0]})
        valid = torch.stack([queue.valid() if not queue.done else torch.ones(queue.actions).bool() for queue in queues])
        actions = logits.masked_fill(~valid.to(device), -torch.inf).argmax(-1)
        rewards = [
            0.0 if queue.done else queue.step(action) for queue, action in zip(queues, actions.tolist(), strict=True)
        ]
        given = torch.tensor(rewards, device=device)
        actor.record(actions, given if scale is None else scale(given))
    return torch.stack([queue.job_seconds.mean() for queue in queues]).float()
