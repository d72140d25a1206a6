"""One training for every method that acts after it: such methods cost no training of their own in a search."""

from __future__ import annotations

import copy
import time
from collections import OrderedDict

import torch

from heldout.method import Method
from heldout.problem import Problem
from heldout.train import Fitted, TaskStream, finish, in_order, seeded

MOST_BYTES = 2**29  # of parameters and buffers that are kept between runs


def acts_after_training(method: Method) -> bool:
    """Returns whether a method changes nothing before the end of training, so that the plain training serves it.

    Example:
        >>> acts_after_training(Method("average", weights=lambda run, module: module))
        True
        >>> acts_after_training(Method("data", data=lambda run, train_set: train_set))
        False
    """
    return bool(method.stages) and set(method.stages) <= {"weights", "predict"}


class SharedTraining:
    """Fits a problem's model under methods; the latest plain trainings are kept for methods that act after them.

    Runs of the same seed follow each other in a search, so that few need to be kept: as many as ``most_bytes`` hold,
    at least one.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._kept: OrderedDict[tuple[int, int, float], tuple[Problem, Fitted]] = OrderedDict()
        self._most_bytes = most_bytes

    def fit(self, problem: Problem, method: Method | None, *, seed: int, epochs: int, rate: float = 1.0) -> Fitted:
        """Returns what ``problem.fit`` returns, up to what the weights and predict stages draw at random.

        ``seconds`` includes the training, whoever paid for it.
        """
        if method is not None and not acts_after_training(method):
            return problem.fit(method, seed=seed, epochs=epochs, rate=rate)
        plain = self._plain(problem, seed, epochs, rate)
        return plain if method is None else _under(plain, method)

    def _plain(self, problem: Problem, seed: int, epochs: int, rate: float) -> Fitted:
        key = seed, epochs, rate
        kept = self._kept.get(key)
        if kept is None or kept[0] is not problem:
            self._kept[key] = problem, problem.fit(None, seed=seed, epochs=epochs, rate=rate)
        self._kept.move_to_end(key)
        while len(self._kept) > 1 and sum(_size(fitted) for _, fitted in self._kept.values()) > self._most_bytes:
            self._kept.popitem(last=False)
        return self._kept[key][1]


def _under(plain: Fitted, method: Method) -> Fitted:
    run, started = copy.copy(plain.run), time.perf_counter()
    if isinstance(run.splits, TaskStream):
        method = in_order() + method  # which sees what is at hand after training
    run.module, run.state = copy.deepcopy(plain.run.module), {}
    run.generator = torch.Generator().manual_seed(run.seed)
    if method.check and (reason := method.check(run.module, run.splits)):
        raise ValueError(f"{method.name} cannot act here: {reason}")
    run.module.train()
    with seeded(run.seed):
        fitted = finish(run, method)
    fitted.history, fitted.seconds = plain.history, plain.seconds + time.perf_counter() - started
    return fitted


def _size(fitted: Fitted) -> int:
    return sum(value.numel() * value.element_size() for value in fitted.module.state_dict().values())
