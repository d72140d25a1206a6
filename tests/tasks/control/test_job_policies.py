"""A sequence policy on many clusters at once, against the rule that it imitates, played one by one."""

import pytest
import torch

from heldout.data import RewardScale
from heldout.nn import FactoredHead, HistoryPolicy, ModalityEncoder, ReturnConditionedPolicy, SequenceActor
from heldout.tasks import JobQueue, draw_jobs, first_come, job_features, play_jobs, schedule_jobs
from tests.nn.control.test_backbone import llama

SLOTS = 8


class Scripted(HistoryPolicy):
    """Says the first slot, ready or not; among ready ones it is ``first_come``. Notes what it was given."""

    def __init__(self, ready_first):
        super().__init__(SLOTS * 6 + SLOTS * SLOTS + 2 + SLOTS * 6, SLOTS * 4, window=40, use_returns=True)
        self.ready_first, self.given = ready_first, []

    def forward(self, batch):
        self.given.append((batch.returns[:, -1], batch.actions.clone()))
        ready = batch.observations["stages"][..., 3] if self.ready_first else 0.0
        value = 100 * ready - torch.arange(SLOTS).float() + torch.zeros(*batch.returns.shape, SLOTS)
        return (value[..., None] + 0.1 * torch.arange(4)).flatten(-2)


def test_the_graph_that_is_read_says_who_hears_from_whom():
    features = job_features(SLOTS)
    assert features["stages"].edges == "heard"
    assert {name: spec.size for name, spec in features.items()} == {"stages": 6, "cluster": 2, "table": 6 * SLOTS}


def queues(count=4):
    return [JobQueue(draw_jobs(2 + k, gap=2.0, stages=(1, 3), seed=k), executors=3, slots=SLOTS) for k in range(count)]


@pytest.mark.parametrize("ready_first", [True, False])
def test_it_schedules_as_the_rule_does_in_each_queue(ready_first):
    found = schedule_jobs(Scripted(ready_first), queues())  # what is not valid is never done
    for queue, seconds in zip(queues(), found.tolist(), strict=True):
        play_jobs(queue, first_come)
        assert seconds == pytest.approx(float(queue.job_seconds.mean()), rel=1e-6)


def test_what_the_jobs_cost_is_taken_off_the_return_in_the_units_of_training():
    policy, own = Scripted(True), queues()
    schedule_jobs(policy, own, target_return=5.0, scale=RewardScale(-10.0, 0.0, scale=2.0))
    lengths = [sum(len(job.seconds) for job in queue.jobs) for queue in own]
    played = [play_jobs(queue, first_come).rewards for queue in own]
    for row, (length, rewards) in enumerate(zip(lengths, played, strict=True)):
        left = [5.0 - float(((rewards[:step] + 10) / 20).sum()) for step in range(length)]
        assert [float(each[0][row]) for each in policy.given[:length]] == pytest.approx(left, abs=1e-4)


def test_queues_are_reset_and_left_as_they_end():
    own = queues(2)
    first = schedule_jobs(Scripted(True), own)
    assert all(queue.done for queue in own)
    assert torch.equal(first, schedule_jobs(Scripted(True), own))


def test_bad_queues_and_policies_are_refused_by_name():
    with pytest.raises(ValueError, match="queues"):
        schedule_jobs(Scripted(True), [])
    with pytest.raises(ValueError, match="policy must have the 32 actions"):
        schedule_jobs(HistoryPolicy(3, 4), queues(1))
    with pytest.raises(ValueError, match="slide"):
        schedule_jobs(Scripted(True), queues(1), slide=0)
    with pytest.raises(ValueError, match="target_return"):
        schedule_jobs(Scripted(True), queues(1), target_return=float("nan"))


def test_a_graph_says_what_waits_for_whom():
    pytest.importorskip("torch_geometric")
    torch.manual_seed(0)
    encoder = ModalityEncoder(job_features(SLOTS), 16, hidden=8)
    policy = ReturnConditionedPolicy(llama(), encoder, SLOTS * 4, window=5, head=FactoredHead(16, (SLOTS, 4))).eval()
    seen = {name: value[None] for name, value in queues(1)[0].observations().items()}
    seen["stages"][0, :4] = torch.rand(4, 6) + 0.1
    linked = seen | {"heard": seen["heard"].clone()}
    linked["heard"][0, 0, 3] = 1 - linked["heard"][0, 0, 3]
    said = [SequenceActor(policy, 1).logits(each) for each in (seen, linked)]
    assert not torch.allclose(*said, atol=1e-6)
    assert schedule_jobs(policy, queues(2), slide=2).shape == (2,)
