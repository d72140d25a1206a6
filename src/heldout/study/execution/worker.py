"""The work of a worker process, see ``heldout.study.execution.processes``.

It receives (reference, task) pairs, says when the code is loaded and the run starts, and answers with an outcome. It
ends when the pipe to the process that started it closes, also in the middle of a run, so that a killed study leaves no
worker behind.
"""

from __future__ import annotations

import ctypes
import os
import queue
import signal
import sys
import threading
from multiprocessing.connection import Connection
from typing import Any

from heldout.study.execution.runs import Outcome, Task, perform
from heldout.study.loading import Reference
from heldout.study.spec import StudyError

_PR_SET_PDEATHSIG = 1


def main(descriptor: int) -> None:
    """Serves the connection on a file descriptor until it closes."""
    os.set_inheritable(descriptor, False)
    _die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    connection = Connection(descriptor)
    requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(connection, requests), daemon=True).start()
    while True:
        reference, task = requests.get()
        connection.send(_outcome(reference, task, connection))


def _outcome(reference: Reference, task: Task, connection: Any) -> Outcome:
    try:
        run = reference.load()
    except (StudyError, ImportError, AttributeError) as error:
        text = f"the worker cannot load {reference.qualname}: {error}"
        return Outcome(0.0, cause="raised", error=text, key=task.key)
    connection.send(("started", task.key))
    try:
        return perform(run, task)
    except KeyboardInterrupt:  # SIGINT is ignored here: the run raised it
        return Outcome(0.0, cause="raised", error="KeyboardInterrupt", key=task.key)


def _receive(connection: Any, requests: queue.SimpleQueue[Any]) -> None:
    try:
        while True:
            requests.put(connection.recv())
    except (EOFError, OSError):
        os._exit(0)


def _die_with_parent() -> None:
    """Asks Linux to kill this process with its parent, for runs that never let another thread in."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent or parent == 1:
            os._exit(0)
