"""Jobs on a cluster: times by hand, and what rewards add up to."""

import pytest
import torch

from heldout.nn import FactoredHead, FeatureSpec, ModalityEncoder, ReturnConditionedPolicy
from heldout.tasks import (
    JOB_RULES,
    Job,
    JobQueue,
    draw_jobs,
    fair_share,
    first_come,
    job_queues,
    job_seconds_of,
    logged_jobs,
    play_jobs,
    shortest_job_first,
)
from heldout.train import fit_policy, policy_loss
from tests.nn.control.test_backbone import llama


def job(seconds, tasks, waits=(), arrival=0.0):
    parents = torch.zeros(len(seconds), len(seconds), dtype=torch.bool)
    for later, earlier in waits:
        parents[later, earlier] = True
    return Job(torch.tensor(seconds), torch.tensor(tasks), parents, arrival)


def test_a_chain_of_stages_takes_what_a_sum_by_hand_says():
    queue = JobQueue([job([2.0, 3.0], [4, 1], [(1, 0)])], executors=3)
    assert queue.ready() == [0]
    assert queue.step(0 * 4 + 1) == pytest.approx(-4.0)  # four tasks on two executors
    assert (queue.clock, queue.free, queue.ready()) == (4.0, 3, [1])
    assert queue.step(1 * 4 + 3) == pytest.approx(-3.0)
    assert queue.done
    assert queue.finished.tolist() == [7.0]


def test_stages_run_beside_each_other_and_executors_come_back():
    queue = JobQueue([job([2.0], [4]), job([5.0], [2], arrival=1.0)], executors=4)
    assert queue.step(0 * 4 + 1) == pytest.approx(-1.0)  # ends at 4; the second is there at 1
    assert (queue.clock, queue.free) == (1.0, 2)
    assert queue.ready() == [1]
    assert queue.step(1 * 4 + 3) == pytest.approx(-(2 * 3 + 1 * 2))  # two executors are free: it ends at 6
    assert queue.finished.tolist() == [4.0, 6.0]
    assert queue.job_seconds.tolist() == [4.0, 5.0]


def test_what_is_seen_says_who_waits_for_whom():
    queue = JobQueue([job([2.0, 1.0, 1.5], [4, 1, 8], [(1, 0), (2, 0)])], executors=3, slots=4)
    seen = queue.observations()
    assert seen["stages"].tolist() == [[1, 2, 0.5, 1, 0, 0], [1, 1, 0.125, 0, 0, 0], [1, 1.5, 1, 0, 0, 0], [0] * 6]
    assert seen["heard"].nonzero().tolist() == [[0, 1], [0, 2]]
    assert seen["table"].view(4, 6)[:, 1:].tolist() == seen["stages"][:, 1:].tolist()
    assert seen["table"].view(4, 6)[:, 0].tolist() == pytest.approx([0.21, 0.21, 0.21, 0])  # 2 x 4 + 1 x 1 + 1.5 x 8
    queue.step(3)
    assert queue.work_left(0) == pytest.approx(13.0)  # the first stage is done
    assert queue.job_seconds.isnan().tolist() == [True]
    assert queue.observations()["stages"][:, 3:].tolist() == [[0, 0, 1], [1, 0, 0], [1, 0, 0], [0, 0, 0]]
    assert queue.valid().view(4, 4).all(1).tolist() == [False, True, True, False]


def test_seconds_are_exact_where_jobs_arrive_at_time_stamps():
    queue = JobQueue([job([2.0], [4], arrival=1.7e9)])
    assert queue.step(1) == -4.0
    assert queue.job_seconds.tolist() == [4.0]
    assert queue.finished.tolist() == [1.7e9 + 4]


def test_a_stage_takes_whole_rounds_and_no_more_executors_than_it_has_tasks():
    queue = JobQueue([job([2.0], [3]), job([1.0], [1]), job([1.0], [8], arrival=0.5)], executors=8)
    assert queue.step(0 * 4 + 1) == pytest.approx(0.0)  # three tasks on two: two rounds, until 4
    assert queue.free == 6
    assert queue.work_left(0) == pytest.approx(6.0)  # it runs, and is not done
    assert queue.step(1 * 4 + 3) == pytest.approx(-2 * 0.5)  # one task takes one of them
    assert queue.free == 5
    assert queue.observations()["cluster"].tolist() == pytest.approx([5 / 8, 3 / 10])
    queue.step(2 * 4 + 1)  # four rounds on two: until 4.5
    assert (queue.clock, queue.done) == (4.5, True)
    assert queue.finished.tolist() == [4.0, 1.0, 4.5]
    assert queue.free == 8


def test_an_executor_comes_back_alone():
    queue = JobQueue([job([1.0, 5.0, 1.0], [1, 1, 1], [(2, 0)])], executors=2, slots=4)
    queue.step(0)
    queue.step(4)  # ends at 5; the first at 1, and then one executor is free
    assert (queue.clock, queue.free) == (1.0, 1)


def test_drawn_jobs_wait_for_the_stage_before_them_as_often_as_asked_and_short_tasks_are_usual():
    jobs = draw_jobs(400, stages=(3, 3), links=0.5, seed=1)
    parents = torch.stack([each.parents for each in jobs]).double().mean(0)
    for later, earlier in ((1, 0), (2, 1), (2, 0)):
        assert float(parents[later, earlier]) == pytest.approx(0.5, abs=0.07)
    seconds = torch.cat([each.seconds for each in jobs])
    assert float(seconds.mean()) == pytest.approx(0.5 + 3.5 / 3, abs=0.1)  # 3.5 times a square


@pytest.mark.parametrize("policy", [first_come, shortest_job_first, fair_share])
def test_rewards_add_up_to_the_times_of_the_jobs(policy):
    queue = JobQueue(draw_jobs(8, gap=6.0, seed=3), executors=5, slots=12)
    played = play_jobs(queue, policy)
    times = queue.finished - torch.tensor([each.arrival for each in queue.jobs])
    assert float(-played.rewards.sum()) == pytest.approx(float(times.sum()), rel=1e-5)
    assert bool((times > 0).all())
    assert len(played.actions) == sum(len(each.seconds) for each in queue.jobs)
    assert torch.equal(played.rewards, play_jobs(queue, policy).rewards)


def test_rules_choose_as_they_say():
    queue = JobQueue([job([4.0], [8]), job([1.0], [8], arrival=0.0)], executors=8)
    assert first_come(queue) == 3
    assert shortest_job_first(queue) == 7
    assert fair_share(queue) == 2  # four of eight executors
    times = {}
    for rule in (first_come, shortest_job_first):
        play_jobs(queue, rule)
        times[rule] = float(queue.finished.mean())
    assert times[shortest_job_first] < times[first_come]


def test_a_language_model_learns_to_schedule_from_graphs_with_two_heads():
    stores = [play_jobs(JobQueue(draw_jobs(4, seed=k), slots=12), shortest_job_first) for k in range(12)]
    from heldout.data import Trajectories

    logged = Trajectories.concatenate(stores)
    specs = {"stages": FeatureSpec("graph", 6, edges="heard"), "cluster": FeatureSpec("vector", 2)}
    torch.manual_seed(0)
    policy = ReturnConditionedPolicy(
        llama(), ModalityEncoder(specs, 16, hidden=32), 48, window=10, head=FactoredHead(16, (12, 4))
    )
    before = policy_loss(policy, logged, window=10)
    fit_policy(policy, logged, logged.returns() / 100, window=10, steps=60, batch_size=8, lr=1e-2, clip=1.0)
    assert policy_loss(policy, logged, logged.returns() / 100, window=10) < 0.6 * before


def test_clusters_of_a_seed_have_other_jobs_each_and_rules_take_turns():
    queues = job_queues(4, jobs=3, seed=1)
    assert len({tuple(each.seconds.sum() for each in queue.jobs) for queue in queues}) == 4
    again = job_queues(4, jobs=3, seed=1)
    assert [q.jobs[1].arrival for q in queues] == [q.jobs[1].arrival for q in again]
    logged = logged_jobs(queues)
    played = [play_jobs(queue, rule) for queue, rule in zip(queues, [*JOB_RULES.values(), first_come], strict=True)]
    assert torch.equal(logged.actions, torch.cat([each.actions for each in played]))
    for rule in JOB_RULES.values():
        times = job_seconds_of(queues, rule)
        play_jobs(queues[2], rule)
        assert times[2] == queues[2].job_seconds.mean().float()


def test_bad_jobs_and_actions_are_refused_by_name():
    good = job([1.0], [1])
    queue = JobQueue([good])
    for action in (-1, 4, 96):
        with pytest.raises(ValueError, match="action"):
            queue.step(action)
    for arguments, message in (
        (([0.0], [1]), "seconds"), (([1.0], [0]), "tasks"), (([1.0, 1.0], [1]), "seconds and tasks"),
        (([1.0, 1.0], [1, 1], [(0, 1)]), "parents"), (([1.0], [1], (), -1.0), "arrival"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            job(*arguments)
    with pytest.raises(ValueError, match="slots"):
        JobQueue([job([1.0] * 3, [1] * 3)], slots=2)
    with pytest.raises(ValueError, match="jobs"):
        JobQueue([])
    with pytest.raises(ValueError, match="executors"):
        JobQueue([good], executors=0)
    for queues in (lambda: job_queues(0), lambda: logged_jobs([]), lambda: job_seconds_of([], first_come)):
        with pytest.raises(ValueError, match=r"n must|queues"):
            queues()
    with pytest.raises(ValueError, match="job must"):
        queue.work_left(1)
    with pytest.raises(ValueError, match="links"):
        draw_jobs(2, links=1.5)
    with pytest.raises(ValueError, match="stages"):
        draw_jobs(2, stages=(5, 2))
