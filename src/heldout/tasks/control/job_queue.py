"""Jobs on a cluster: each job is a graph of stages, and whoever schedules says which stage runs next, and how wide.

Source: the world of Decima (Mao et al., SIGCOMM 2019), which arXiv:2402.02338 schedules in; deviation: jobs are drawn,
not those of TPC-H, an executor costs no time to move, and a stage keeps its executors until it is done.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from heldout.data import Trajectories
from heldout.errors import check_at_least, check_fields, check_labels, check_nonnegative, check_positive, checked


@dataclass(frozen=True, eq=False)
class Job:
    """One job.

    Args:
        seconds: that a task of each stage takes ``(stages,)``, above 0.
        tasks: of each stage, int64 ``(stages,)``, 1 or more; they run beside each other.
        parents: bool ``(stages, stages)``: row i, column j where stage i waits for stage j, which stands before it.
        arrival: second at which the job is there.

    Raises:
        ValueError: no stages, values out of range, sizes that do not fit, a stage that waits for itself or a later one.

    Example:
        >>> job = Job(torch.tensor([2.0, 1.0]), torch.tensor([3, 1]), torch.tensor([[False, False], [True, False]]))
        >>> job.work
        7.0
    """

    seconds: Tensor
    tasks: Tensor
    parents: Tensor
    arrival: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("seconds", "tasks", "parents"):
            if not isinstance(getattr(self, name), Tensor):
                raise TypeError(f"{name} must be a tensor, got {type(getattr(self, name)).__name__}")
        stages = len(self.seconds)
        if self.seconds.shape != (stages,) or self.tasks.shape != (stages,) or not stages:
            raise ValueError(f"seconds and tasks must be a number for each stage, got {tuple(self.seconds.shape)} and "
                             f"{tuple(self.tasks.shape)}")  # fmt: skip
        check_positive(seconds=self.seconds)
        check_labels(tasks=self.tasks)
        check_at_least(1, tasks=self.tasks)
        check_nonnegative(arrival=self.arrival)
        if self.parents.shape != (stages, stages) or self.parents.dtype != torch.bool:
            raise ValueError(f"parents must be bool {(stages, stages)}, got {tuple(self.parents.shape)}")
        if bool(self.parents.triu().any()):
            raise ValueError("parents must stand before the stages that wait for them")

    @property
    def work(self) -> float:
        """Seconds of one executor that all tasks take."""
        return float((self.seconds * self.tasks).sum())


@checked
def draw_jobs(
    n: int,
    *,
    stages: tuple[int, int] = (2, 5),
    gap: float = 12.0,
    links: float = 0.5,
    scale: float = 1.0,
    seed: int = 0,
) -> list[Job]:
    """Returns jobs that arrive one after the other, with random stages.

    Args:
        n: jobs.
        stages: least and most of a job.
        gap: mean seconds between arrivals (exponential); the first is there at once.
        links: probability that a stage waits for an earlier one.
        scale: of all durations.
        seed: of all draws.

    Raises:
        ValueError: values out of range.

    Example:
        >>> [job.arrival for job in draw_jobs(2, gap=0.0)]
        [0.0, 0.0]
    """
    check_at_least(1, n=n, stages=stages)
    check_nonnegative(gap=gap)
    check_positive(scale=scale)
    if not 0 <= links <= 1:
        raise ValueError(f"links must be between 0 and 1, got {links}")
    if stages[0] > stages[1]:
        raise ValueError(f"stages must be the least and the most, got {stages}")
    generator = torch.Generator().manual_seed(seed)
    jobs, clock = [], 0.0
    for _ in range(n):
        count = int(torch.randint(stages[0], stages[1] + 1, (1,), generator=generator))
        seconds = scale * (0.5 + 3.5 * torch.rand(count, generator=generator) ** 2)
        tasks = torch.randint(1, 9, (count,), generator=generator)
        parents = (torch.rand(count, count, generator=generator) < links).tril(-1)
        jobs.append(Job(seconds, tasks, parents, clock))
        clock += gap * float(-torch.rand(1, generator=generator).clamp(min=1e-6).log())
    return jobs


class JobQueue:
    """A cluster that is asked which stage to start, whenever executors are free and a stage can start.

    An action is ``slot * len(widths) + width``: the stage in that slot of ``observations`` gets ``widths[width]``
    executors, or as many as are free, or as it has tasks, if these are fewer. It takes its tasks' seconds as often as
    these executors need to run them all.

    Args:
        jobs: in any order.
        executors: of the cluster.
        widths: numbers of executors that can be asked for.
        slots: stages that can be shown; of jobs that are there, the oldest come first, and jobs that do not fit wait.

    Attributes:
        clock: seconds.
        finished: second at which each job was done, float64 ``(jobs,)``, NaN before.

    Raises:
        ValueError: no jobs, sizes below 1, a job with more stages than slots.

    Source: Mao et al., SIGCOMM 2019; arXiv:2402.02338, appendix.

    Example:
        >>> queue = JobQueue(draw_jobs(3, gap=0.0), executors=4)
        >>> while not queue.done:
        ...     reward = queue.step(first_come(queue))
        >>> bool(queue.finished.isfinite().all())
        True
    """

    @checked
    def __init__(
        self, jobs: Sequence[Job], executors: int = 10, *, widths: Sequence[int] = (1, 2, 4, 8), slots: int = 24
    ) -> None:
        check_at_least(1, jobs=len(jobs), executors=executors, widths=widths, slots=slots)
        if max(len(job.seconds) for job in jobs) > slots:
            raise ValueError(f"slots must hold the stages of a job, got {slots}")
        self.jobs, self.executors, self.widths, self.slots = list(jobs), executors, tuple(widths), slots
        self.reset()

    def reset(self) -> None:
        """Begins anew: the first job arrives, and the first stage can start."""
        self.clock, self.free = min(job.arrival for job in self.jobs), self.executors
        self.finished = torch.full((len(self.jobs),), float("nan"), dtype=torch.float64)
        self._state = [torch.zeros(len(job.seconds), dtype=torch.int64) for job in self.jobs]  # 1: runs, 2: done
        self._ends: list[tuple[float, int, int, int]] = []
        self._wait()

    @property
    def done(self) -> bool:
        """Whether all jobs are done."""
        return bool(self.finished.isfinite().all())

    @property
    def job_seconds(self) -> Tensor:
        """Seconds that each job was there, from its arrival to its end, float64 ``(jobs,)``; NaN before its end."""
        return self.finished - torch.tensor([job.arrival for job in self.jobs], dtype=torch.float64)

    @property
    def actions(self) -> int:
        """How many actions there are."""
        return self.slots * len(self.widths)

    def shown(self) -> list[tuple[int, int]]:
        """The job and stage of each slot that is in use."""
        here = [k for k, job in enumerate(self.jobs) if job.arrival <= self.clock and self.finished[k].isnan()]
        found: list[tuple[int, int]] = []
        for k in sorted(here, key=lambda k: (self.jobs[k].arrival, k)):
            if len(found) + len(self.jobs[k].seconds) > self.slots:
                break
            found += [(k, stage) for stage in range(len(self.jobs[k].seconds))]
        return found

    def ready(self) -> list[int]:
        """Slots whose stage can start: it has not, and those that it waits for are done."""
        return [slot for slot, (job, stage) in enumerate(self.shown()) if self._can_start(job, stage)]

    def valid(self) -> Tensor:
        """Which actions can be taken, bool ``(actions,)``."""
        found = torch.zeros(self.slots, len(self.widths), dtype=torch.bool)
        found[self.ready()] = True
        return found.flatten()

    @checked
    def work_left(self, job: int) -> float:
        """Returns the executor seconds of the stages of a job that are not done.

        Raises:
            ValueError: a job that there is not.

        Example:
            >>> JobQueue([Job(torch.tensor([2.0]), torch.tensor([4]), torch.tensor([[False]]))]).work_left(0)
            8.0
        """
        check_labels(len(self.jobs), job=job)
        own = self.jobs[job]
        return float((own.seconds * own.tasks * (self._state[job] < 2)).sum())

    def observations(self) -> dict[str, Tensor]:
        """What a policy sees, float32, by name: the graph of all stages that are shown, and the cluster.

        ``stages`` ``(slots, 6)``: 1 (there is one), seconds of a task, tasks / 8, ready, runs, done; ``heard``
        ``(slots, slots)``: a stage hears from those that wait for it, so that what lies behind it is known;
        ``cluster`` ``(2,)``: share of executors that are free, jobs that are there / 10; ``table`` ``(slots * 6,)``: of
        each slot, in their order, executor seconds that are left of its job / 100 and the other numbers of its stage,
        for the mean over a graph does not say which slot is which.
        """
        stages, heard = torch.zeros(self.slots, 6), torch.zeros(self.slots, self.slots)
        shown, ready = self.shown(), self.ready()
        left = {k: self.work_left(k) / 100 for k, _ in shown}
        for slot, (k, stage) in enumerate(shown):
            job, state = self.jobs[k], int(self._state[k][stage])
            seconds, tasks = float(job.seconds[stage]), float(job.tasks[stage])
            numbers = [1, seconds, tasks / 8, slot in ready, state == 1, state == 2]
            stages[slot] = torch.tensor(numbers, dtype=torch.float32)
            for later in range(stage + 1, len(job.seconds)):
                heard[slot, slot + later - stage] = float(job.parents[later, stage])
        table = stages.clone()
        table[: len(shown), 0] = torch.tensor([left[k] for k, _ in shown])
        cluster = torch.tensor([self.free / self.executors, len(left) / 10])
        return {"stages": stages, "heard": heard, "cluster": cluster, "table": table.flatten()}

    @checked
    def step(self, action: int) -> float:
        """Starts a stage, goes on to the next choice, and returns minus the seconds that all jobs together were there.

        The rewards of an episode are minus the sum of the jobs' times from arrival to end.

        Args:
            action: one that is ``valid``.

        Raises:
            ValueError: an action that cannot be taken.

        Example:
            >>> JobQueue([Job(torch.tensor([2.0]), torch.tensor([4]), torch.tensor([[False]]))]).step(1)
            -4.0
        """
        if not 0 <= action < self.actions or not bool(self.valid()[action]):
            raise ValueError(f"action must be valid(), got {action}")
        slot, width = divmod(action, len(self.widths))
        job, stage = self.shown()[slot]
        tasks = int(self.jobs[job].tasks[stage])
        taken = min(self.widths[width], self.free, tasks)
        self.free -= taken
        self._state[job][stage] = 1
        end = self.clock + float(self.jobs[job].seconds[stage]) * -(-tasks // taken)
        heapq.heappush(self._ends, (end, job, stage, taken))
        return self._wait()

    def _can_start(self, job: int, stage: int) -> bool:
        state = self._state[job]
        return int(state[stage]) == 0 and bool((state[self.jobs[job].parents[stage]] == 2).all())

    def _wait(self) -> float:
        """Lets time pass until something can be chosen or all is done."""
        cost = 0.0
        while not self.done and not (self.free and self.ready()):
            arrivals = [job.arrival for job in self.jobs if job.arrival > self.clock]
            following = min([*arrivals, *(end for end, *_ in self._ends[:1])])
            here = sum(job.arrival <= self.clock and bool(self.finished[k].isnan()) for k, job in enumerate(self.jobs))
            cost += here * (following - self.clock)
            self.clock = following
            while self._ends and self._ends[0][0] <= self.clock:
                _, job, stage, taken = heapq.heappop(self._ends)
                self.free += taken
                self._state[job][stage] = 2
                if bool((self._state[job] == 2).all()):
                    self.finished[job] = self.clock
        return -cost


@checked
def first_come(queue: JobQueue) -> int:
    """Returns the action that starts the oldest job's first ready stage with the most executors.

    Example:
        >>> first_come(JobQueue(draw_jobs(2, gap=0.0)))
        3
    """
    return _widest(queue, queue.ready()[0])


@checked
def shortest_job_first(queue: JobQueue) -> int:
    """Returns the action that starts a stage of the job with the least work left, with the most executors.

    Example:
        >>> shortest_job_first(JobQueue(draw_jobs(2, gap=0.0))) % 4
        3
    """
    shown = queue.shown()
    return _widest(queue, min(queue.ready(), key=lambda slot: queue.work_left(shown[slot][0])))


@checked
def fair_share(queue: JobQueue) -> int:
    """Returns the action that starts the oldest job's first ready stage with its share of the executors, or more.

    Example:
        >>> fair_share(JobQueue(draw_jobs(4, gap=0.0), executors=8))
        1
    """
    jobs = len({job for job, _ in queue.shown()})
    share = queue.executors / jobs
    fitting = [k for k, width in enumerate(queue.widths) if width >= share]
    return queue.ready()[0] * len(queue.widths) + (fitting[0] if fitting else len(queue.widths) - 1)


JOB_RULES: dict[str, Callable[[JobQueue], int]] = {
    "first come": first_come,
    "shortest": shortest_job_first,
    "fair": fair_share,
}
"""Rules that schedule, by name."""


@checked
def job_queues(
    n: int, *, jobs: int = 8, gap: float = 2.0, executors: int = 4, slots: int = 16, seed: int = 0
) -> list[JobQueue]:
    """Returns clusters with jobs of one to four stages, which arrive faster than a small cluster can take them.

    Args:
        n: clusters.
        jobs, gap: of each, see ``draw_jobs``.
        executors, slots: see ``JobQueue``.
        seed: of all jobs.

    Raises:
        ValueError: values out of range.

    Example:
        >>> [len(queue.jobs) for queue in job_queues(2, jobs=3)]
        [3, 3]
    """
    check_at_least(1, n=n)
    check_at_least(0, seed=seed)
    seeds = torch.randint(2**31, (n,), generator=torch.Generator().manual_seed(seed)).tolist()
    drawn = [draw_jobs(jobs, gap=gap, stages=(1, 4), seed=own) for own in seeds]
    return [JobQueue(each, executors=executors, slots=slots) for each in drawn]


@checked
def play_jobs(queue: JobQueue, policy: Callable[[JobQueue], int]) -> Trajectories:
    """Returns the episode of a queue under a policy, from its start until all jobs are done.

    Args:
        queue: is reset.
        policy: from the queue to an action.

    Example:
        >>> queue = JobQueue(draw_jobs(3))
        >>> played = play_jobs(queue, first_come)
        >>> torch.allclose(-played.rewards.sum(), queue.job_seconds.sum().float())
        True
    """
    queue.reset()
    seen: list[dict[str, Tensor]] = []
    actions, rewards = [], []
    while not queue.done:
        seen.append(queue.observations())
        actions.append(policy(queue))
        rewards.append(queue.step(actions[-1]))
    ends = torch.arange(1, len(actions) + 1) == len(actions)
    stacked = {name: torch.stack([each[name] for each in seen]) for name in seen[0]}
    return Trajectories(stacked, torch.tensor(actions), torch.tensor(rewards), ends)


@checked
def logged_jobs(queues: Sequence[JobQueue]) -> Trajectories:
    """Returns an episode of each queue, scheduled by ``JOB_RULES`` in turn.

    Args:
        queues: are reset.

    Raises:
        ValueError: no queues.

    Example:
        >>> len(logged_jobs(job_queues(3, jobs=2)))
        3
    """
    check_at_least(1, queues=len(queues))
    rules = [*JOB_RULES.values()]
    return Trajectories.concatenate([play_jobs(queue, rules[k % len(rules)]) for k, queue in enumerate(queues)])


@checked
def job_seconds_of(queues: Sequence[JobQueue], policy: Callable[[JobQueue], int]) -> Tensor:
    """Returns the mean seconds that the jobs of each queue were there under a policy, float32 ``(queues,)``.

    Args:
        queues: are reset, and left as they end.
        policy: from a queue to an action.

    Raises:
        ValueError: no queues.

    Example:
        >>> job_seconds_of(job_queues(3, jobs=2), first_come).shape
        torch.Size([3])
    """
    check_at_least(1, queues=len(queues))
    found = []
    for queue in queues:
        queue.reset()
        while not queue.done:
            queue.step(policy(queue))
        found.append(queue.job_seconds.mean())
    return torch.stack(found).float()


def _widest(queue: JobQueue, slot: int) -> int:
    widths = queue.widths
    return slot * len(widths) + max(range(len(widths)), key=widths.__getitem__)
