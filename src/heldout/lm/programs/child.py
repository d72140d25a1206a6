"""What runs in the new process: it goes behind the boundary, then runs a program, or a program and its tests.

It is loaded by a bare interpreter, so it uses the standard library only.
"""

from __future__ import annotations

import builtins
import os
import sys
from typing import Any

from heldout.lm.programs import boundary
from heldout.lm.programs.remote import Peer, ProgramExit, Proxy

FOLDER_OF_ITS_OWN, SHARED_FOLDER, NONE = "namespaces+landlock+seccomp", "landlock+seccomp", "none"


def main() -> None:
    """Runs the job whose settings are the arguments and whose texts come on standard input."""
    seconds, memory, file_size, disk, isolation, folder, status, size = sys.argv[1:9]
    tested = sys.argv[9:]  # names that stand before the built-in ones in the tests; "-" where there are no tests
    report = int(status)
    source = _exactly(int(size))
    boundary.end_with_parent()
    boundary.limit(int(seconds), int(memory), int(file_size))
    used = isolation
    if isolation != NONE:
        used = SHARED_FOLDER
        if isolation in ("auto", FOLDER_OF_ITS_OWN) and boundary.own_folder(folder, int(disk)):
            used = FOLDER_OF_ITS_OWN
        try:
            if isolation not in ("auto", used):
                raise boundary.NoBoundaryError("the system gives ordinary users no namespaces")
            boundary.confine(folder)
        except (boundary.NoBoundaryError, OSError) as error:
            _refuse(report, error)
    sys.argv[:] = ["program.py"]
    if tested == ["-"]:
        _behind(used, report)
        os.write(report, f"isolation {used}\n".encode())
        os.close(report)
        _forget()
        exec(compile(source, "program.py", "exec"), {"__name__": "__main__"})
    else:
        _with_tests(source, tested, used, report)


def _with_tests(source: bytes, tested: list[str], used: str, report: int) -> None:
    """The program runs in a process that never held the tests, nor what they print when they have passed."""
    questions, answers = os.pipe(), os.pipe()
    if os.fork() == 0:
        try:
            boundary.end_with_parent()
            for used_by_tests in (report, questions[1], answers[0]):
                os.close(used_by_tests)
            nothing = os.open("/dev/null", os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(nothing, stream)
            os.close(nothing)
            _behind(used, None)
            _program(Peer(questions[0], answers[1], trusts=True), source)
        finally:
            os._exit(1)
    os.close(questions[0])
    os.close(answers[1])
    _behind(used, report)
    os.write(report, f"isolation {used}\n".encode())
    secret, _, tests = _exactly(None).partition(b"\n")
    peer = Peer(answers[0], questions[1], trusts=False)
    module = type(sys)("__main__")
    names = vars(module)
    names.update(_names(peer, tested))
    _forget()
    sys.modules["__main__"] = module
    try:
        exec(compile(tests, "tests.py", "exec"), names)
    except SystemExit as error:
        if isinstance(error, ProgramExit) or error.code not in (None, 0):
            raise RuntimeError("the tests were ended before they had passed") from error
    sys.stdout.flush()
    os.write(report, b"passed " + secret + b"\n")
    os._exit(0)


def _program(peer: Peer, source: bytes) -> None:
    """Runs the program and then does what its tests ask."""
    names: dict[str, Any] = {"__name__": "__main__"}
    _forget()
    try:
        exec(compile(source, "program.py", "exec"), names)
    except BaseException as error:
        lines = [error.lineno] if isinstance(error, SyntaxError) else []
        trace = error.__traceback__
        while trace is not None:
            lines.append(trace.tb_lineno)
            trace = trace.tb_next
        peer.given[0] = {"": f"{type(error).__name__}: {error} (line {lines[-1] if lines else '?'} of the program)"}
    else:
        peer.given[0] = {name: value for name, value in names.items() if name[:2] != "__"}
    peer.serve()


def _names(peer: Peer, tested: list[str]) -> dict[str, Any]:
    """Returns what the program defines, but what would stand in for a built-in function that the tests may use."""
    try:
        found = peer.ask("plain", Proxy(peer, 0, ""))
    except EOFError:
        raise RuntimeError("the program ended before its tests could run") from None
    if "" in found:
        raise RuntimeError(f"the program failed: {found['']}")
    allowed = {name for name in found if type(name) is str and name.isidentifier() and name[:2] != "__"}
    return {name: found[name] for name in allowed if not hasattr(builtins, name) or name in tested}


def _behind(used: str, report: int | None) -> None:
    if used == NONE:
        return
    try:
        boundary.filter_calls()
    except (boundary.NoBoundaryError, OSError) as error:
        if report is None:
            raise
        _refuse(report, error)


def _refuse(report: int, error: Exception) -> None:
    os.write(report, f"refused {error}\n".encode())
    os._exit(3)


def _forget() -> None:
    """Takes this package out of what a program can import by name."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "heldout"]:
        del sys.modules[name]


def _exactly(size: int | None) -> bytes:
    """Returns ``size`` bytes of standard input, or all that is left; it reads no further."""
    parts = []
    while size is None or size:
        part = os.read(0, 1 << 16 if size is None else min(size, 1 << 16))
        if not part:
            break
        parts.append(part)
        size = None if size is None else size - len(part)
    return b"".join(parts)
