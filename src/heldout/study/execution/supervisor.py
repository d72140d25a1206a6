"""The program of a worker process and, on Linux, of its supervisor, see ``heldout.study.execution.processes``.

The supervisor forks the worker before anything is imported, and outlives it. Processes that a run leaves behind become
its children, whatever session they opened, so it ends all of them with the worker: when the worker ends, when the
study asks for it (SIGTERM), and when the study itself is killed (the kernel then sends that SIGTERM).

A memory limit is watched from here, not set with RLIMIT_AS: torch and CUDA reserve many times the address space that
they use. What counts is resident memory of the worker and what it started, shared pages once; it is looked at every
20 ms, so a run may be beyond the limit for that long before it is killed.

This file is executed by its path and imports nothing of heldout before the fork.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
OVER_MEMORY = "memory limit"
_LOOK = 0.02
_LOOK_FOR_CHILDREN = 0.2
_PATIENCE = 10.0


def main() -> None:
    """Arguments: the worker's file descriptor, the process that started this one, a memory limit or 0, sys.path."""
    descriptor, parent, limit = map(int, sys.argv[1:4])
    if sys.platform == "linux":
        supervise(descriptor, parent, limit)
    _work(descriptor)


def supervise(descriptor: int, parent: int, limit: int) -> None:
    """Returns in the worker; the supervisor ends with the worker, and as it did."""
    import ctypes

    asked = {signal.SIGCHLD, signal.SIGTERM}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, asked)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    control = ctypes.CDLL(None).prctl
    control(_PR_SET_CHILD_SUBREAPER, 1)
    control(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(0)
    worker = os.fork()
    if worker == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return
    os.close(descriptor)
    looked, tree = 0.0, [worker]
    while True:
        received = signal.sigtimedwait(asked, _LOOK) if limit else signal.sigwaitinfo(asked)
        if received is not None and received.si_signo == signal.SIGTERM:
            _end_all()
            os._exit(0)
        if (status := _reaped().get(worker)) is not None:
            _end_all()
            _end_like(status)
        if limit:
            if time.monotonic() - looked > _LOOK_FOR_CHILDREN:
                looked, tree = time.monotonic(), _descendants(os.getpid())
            if sum(map(_resident, tree)) > limit and sum(map(_proportional, tree)) > limit:
                os.write(1, OVER_MEMORY.encode())
                _end_all()
                os._exit(0)


def _work(descriptor: int) -> None:
    os.dup2(2, 1)  # what runs print; stdout is the supervisor's
    path = json.loads(sys.argv[4])
    sys.argv = [""]
    sys.path[:] = path
    from heldout.study.execution.worker import main

    main(descriptor)


def _reaped() -> dict[int, int]:
    """Status by process of the children that have ended."""
    ended = {}
    try:
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            ended[found[0]] = found[1]
    except ChildProcessError:
        pass
    return ended


def _end_all() -> None:
    """Kills everything below this process, again and again until nothing is left."""
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        for process in _descendants(os.getpid()):
            try:
                os.kill(process, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                continue
        _reaped()
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        time.sleep(0.002)


def _end_like(status: int) -> None:
    if os.WIFEXITED(status):
        os._exit(os.WEXITSTATUS(status))
    import resource

    number = os.WTERMSIG(status)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    os.kill(os.getpid(), number)
    os._exit(128 + number)


def _descendants(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    parent = int(file.read().rpartition(b")")[2].split()[1])
            except (OSError, IndexError, ValueError):
                continue
            children.setdefault(parent, []).append(int(name))
    found, left = [], [root]
    while left:
        below = children.get(left.pop(), [])
        found += below
        left += below
    return found


def _resident(process: int) -> int:
    """Bytes of memory; pages that are shared with other processes count in each of them."""
    try:
        with open(f"/proc/{process}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
    except (OSError, IndexError):
        return 0


def _proportional(process: int) -> int:
    """Bytes of memory; a page that n processes share counts as one n-th."""
    try:
        with open(f"/proc/{process}/smaps_rollup") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("Pss:"))
    except (OSError, StopIteration):
        return _resident(process)


if __name__ == "__main__":
    main()
