"""Workers that are Ray actors, on this machine or on many.

Every machine needs heldout installed. A study that is a file of its own is sent by value, with the neighbours that it
imports; a study in a package is imported where it runs, so that the package must be installed there too.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from heldout.errors import MissingExtraError, require
from heldout.study.execution.isolation import thread_environment
from heldout.study.execution.runs import Outcome, Task, perform
from heldout.study.execution.workers import Worker, WorkerDiedError
from heldout.study.loading import Reference, only_a_file
from heldout.study.spec import Run, StudyError

_PATIENCE = 120.0  # seconds that a Ray of our own has to bring up a worker; others may have to wait for a processor


class _Actor:
    """What lives in a Ray worker process."""

    def __init__(self, path: Sequence[str]) -> None:
        sys.path.extend(folder for folder in path if folder not in sys.path)

    def load(self, function: bytes) -> None:
        from ray import cloudpickle

        self._run = cloudpickle.loads(function)

    def make(self, task: Task) -> Outcome:
        return perform(self._run, task)


class RayWorker:
    """One actor; one that is not up after ``patience`` seconds counts as dead."""

    def __init__(self, actor: Any, patience: float | None = None) -> None:
        self.since: float | None = None
        self._patience = patience
        self._asked = 0.0
        self.call: Any = None
        self._actor = actor
        self._loaded: Any = None
        self._task: Task | None = None

    def start(self, run: Any, task: Task) -> None:
        self.since, self._task = None, task
        if self._loaded is run:
            self._make()
        else:
            self._loaded, self._asked = run, time.monotonic()
            self.call = self._actor.load.remote(run)

    def answer(self) -> Outcome | None:
        import ray

        if not ray.wait([self.call], timeout=0)[0]:
            if self.since is None and self._patience and time.monotonic() - self._asked > self._patience:
                raise WorkerDiedError(f"Ray did not bring it up within {self._patience:g} s")
            return None
        try:
            answer = ray.get(self.call)
        except ray.exceptions.RayActorError as error:
            raise WorkerDiedError(_first_line(error)) from None
        except ray.exceptions.RayTaskError as error:
            self._loaded = None
            text = f"the worker cannot load run: {_first_line(error.cause)}"
            return Outcome(0.0, cause="raised", error=text, key=self._task.key if self._task else "")
        if self.since is None:
            self._make()
            return None
        return answer

    def kill(self) -> None:
        import ray

        with suppress(Exception):  # also where the cluster itself is gone
            ray.kill(self._actor)

    def _make(self) -> None:
        self.since = time.monotonic()
        self.call = self._actor.make.remote(self._task)


class RayActors:
    """Starts and awaits actors; starts a local Ray where none is given and none runs."""

    def __init__(self, address: str | None, threads: int) -> None:
        try:
            ray = require("ray")
        except MissingExtraError as error:
            raise StudyError(f"on='ray': {error}") from None
        self._ours = not ray.is_initialized()
        if self._ours:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            try:
                ray.init(
                    address,
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                    include_dashboard=None if address else False,
                )
            except Exception as error:
                raise StudyError(f"cannot reach Ray at {address or 'this machine'}: {_first_line(error)}") from None
        environment = {"env_vars": thread_environment(threads)}
        self._class = ray.remote(num_cpus=1, runtime_env=environment)(_Actor)
        self._sent: dict[bytes, Any] = {}
        self._patience = _PATIENCE if self._ours and not (address or os.environ.get("RAY_ADDRESS")) else None
        self.slots = max(1, int(ray.cluster_resources().get("CPU", 1)))

    def portable(self, run: Run) -> Any:
        import ray

        function = _pickled(run)
        if function not in self._sent:
            self._sent[function] = ray.put(function)
        return self._sent[function]

    def new(self) -> Worker:
        return RayWorker(self._class.remote(list(sys.path)), self._patience)

    def wait(self, busy: Sequence[Worker], timeout: float) -> None:
        import ray

        calls = [worker.call for worker in busy if isinstance(worker, RayWorker)]
        ray.wait(calls, num_returns=1, timeout=timeout)

    def close(self) -> None:
        import ray

        if self._ours:
            ray.shutdown()


def _pickled(run: Run) -> bytes:
    """The function by reference, or by value with its neighbours where its module is only a file."""
    from ray import cloudpickle

    reference = Reference.to(run)
    modules = _modules_of_folder(reference) if only_a_file(reference) else []
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        return cloudpickle.dumps(run)
    except Exception as error:
        raise StudyError(f"run cannot be sent to other machines: {_first_line(error)}") from None
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)


def _modules_of_folder(reference: Reference) -> list[ModuleType]:
    """Loaded modules in the folder of the study's file; ``__main__`` goes by value anyway."""
    folder = Path(reference.file or "").parent
    found = []
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file and Path(file).parent.resolve() == folder and module.__name__ == name != "__main__":
            found.append(module)
    return found


def _first_line(error: object) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
