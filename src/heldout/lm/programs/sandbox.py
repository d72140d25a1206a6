"""Programs that a language model wrote, run behind a boundary that the operating system enforces, with limits."""

from __future__ import annotations

import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, get_args

from heldout.errors import check_fields, checked

Isolation = Literal["auto", "namespaces+landlock+seccomp", "landlock+seccomp", "none"]

_SHOWN = 20_000  # characters of output that are kept
_PRINTED = 2**20  # bytes of output that end a program
_ENTRIES = 1000  # files and folders that a program may make
_LOOK = 0.02  # seconds between two looks at what a program has written
# The child loads its three modules only, from their folder: this package, with torch behind it, is not imported.
_START = """import sys
for name in ("heldout", "heldout.lm", "heldout.lm.programs"):
    sys.modules[name] = type(sys)(name)
    sys.modules[name].__path__ = [sys.argv[1]]
del sys.argv[1], name
from heldout.lm.programs.child import main
main()
"""


class IsolationError(RuntimeError):
    """The system cannot isolate a program as asked; nothing was run.

    Example:
        >>> issubclass(IsolationError, RuntimeError)  # no ValueError: what is missing is a part of the system
        True
    """


@dataclass(frozen=True)
class PythonResult:
    """How a program ended.

    Attributes:
        ok: of ``run_python``: its exit code was 0, which a program may also choose to end early; of ``run_tests``: its
            tests ran to their end.
        output: what it printed, at most 20,000 characters; of ``run_tests``, what the tests printed.
        error: the end of its traceback, or what limit it met; empty if it is ok.
        isolation: the boundary that it ran behind: one of the values of ``Isolation`` but "auto".

    Example:
        >>> result = run_python("print(42); print(1 / 0)")
        >>> result.ok, int(result.output), result.error.splitlines()[-1]
        (False, 42, 'ZeroDivisionError: division by zero')
    """

    ok: bool
    output: str
    error: str = ""
    isolation: str = ""

    def __post_init__(self) -> None:
        check_fields(self)


@checked
def run_python(
    source: str,
    *,
    seconds: float = 5.0,
    memory: int = 512 * 2**20,
    file_size: int = 2**20,
    disk: int = 16 * 2**20,
    isolation: Isolation = "auto",
) -> PythonResult:
    """Returns how a Python program ended that ran in a process of its own, isolated from the rest of the system.

    It has the standard library, an empty folder where it may write, no environment variables and no input. The kernel
    refuses everything else, to native code as well: other files (landlock), and system calls that reach other
    processes, the network, shared memory, owners, modes or links (seccomp). It can start threads, no processes.
    Privileges are dropped, those of root too. No rights are needed: ordinary users have the same boundary.

    - "namespaces+landlock+seccomp": its folder is a file system of its own in memory, whose size the kernel limits.
    - "landlock+seccomp": where the system gives no namespaces, as in many containers. The folder lies on the disk, and
      its size is looked at every 20 ms: a fast program can go beyond ``disk`` by what it writes in that time.
    - "auto": the first of these two that the system has.
    - "none": limits only; for programs that you would run yourself.

    It can still see whether a path exists, its size and its dates, but not read it, and it can read the clock. Programs
    on the same kernel share its faults: against those, run heldout in a virtual machine.

    Args:
        source: of the program.
        seconds: of processor time, and about as many of real time.
        memory: bytes of address space.
        file_size: bytes of each file that it writes.
        disk: bytes of all files that it writes.
        isolation: the boundary.

    Raises:
        IsolationError: if the system does not have that boundary.
        ValueError: if a limit is not positive, or the isolation is not known.
        OSError: on Windows, which has no resource limits.

    Example:
        >>> run_python("print(6 * 7)").output
        '42\\n'
    """
    return _run(source, None, (), seconds, memory, file_size, disk, isolation)


@checked
def run_tests(
    source: str,
    tests: str,
    *,
    entry_points: Sequence[str] = (),
    seconds: float = 5.0,
    memory: int = 512 * 2**20,
    file_size: int = 2**20,
    disk: int = 16 * 2**20,
    isolation: Isolation = "auto",
) -> PythonResult:
    """Returns how tests of a program ended, which they and the program cannot tell but by passing.

    Program and tests run in two processes behind the boundary of ``run_python``. The tests call what the program
    defines under its name; plain values (numbers, text, lists, dicts, sets, tuples, dates, fractions) cross as copies,
    and lists, dicts and sets that a function changes in its arguments are changed for the tests. Other objects stay
    with the program: the tests use their attributes, methods, items and length, and compare them with each other, but
    they never equal a plain value, whatever their class says. Exceptions cross with their class, message and arguments.
    When the tests have ended without an exception, their process says so with a secret that the program never holds.

    Args:
        source: of the program; it must run to its end.
        tests: source with assertions. Built-in functions are their own: a program does not replace ``all`` or ``abs``.
        entry_points: names of built-in functions that the program defines and the tests are to test.
        seconds: of processor time of each process, and about as many of real time in all.
        memory: bytes of address space of each process.
        file_size: bytes of each file.
        disk: bytes of all files.
        isolation: the boundary, as in ``run_python``; with "none" a program can reach the process of its tests.

    Raises:
        IsolationError: if the system does not have that boundary.
        ValueError: if the tests are no Python program, a limit is not positive, or the isolation is not known.
        OSError: on Windows, which has no resource limits.

    Example:
        >>> run_tests("def double(x):\\n    return 2 * x", "assert double(4) == 8").ok
        True
        >>> run_tests("raise SystemExit", "assert double(4) == 8").error.splitlines()[-1]
        'RuntimeError: the program failed: SystemExit:  (line 1 of the program)'
    """
    try:
        compile(tests, "tests.py", "exec")
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"tests are no Python program: {error}") from None
    return _run(source, tests, entry_points, seconds, memory, file_size, disk, isolation)


def _run(
    source: str,
    tests: str | None,
    entry_points: Sequence[str],
    seconds: float,
    memory: int,
    file_size: int,
    disk: int,
    isolation: Isolation,
) -> PythonResult:
    if os.name != "posix":
        raise OSError("programs are judged on systems with resource limits only: Linux, macOS")
    if isolation not in get_args(Isolation):
        raise ValueError(f"isolation must be one of {', '.join(get_args(Isolation))}, got {isolation!r}")
    for name, value in (("seconds", seconds), ("memory", memory), ("file_size", file_size), ("disk", disk)):
        if not 0 < value < 2**62:
            raise ValueError(f"{name} must be positive, got {value!r}")
    if isolation != "none" and sys.platform != "linux":
        raise IsolationError(_remedy(f"{sys.platform} has no boundary that heldout knows"))
    secret = secrets.token_hex(16)
    program = source.encode("utf-8", "surrogatepass")
    job = program if tests is None else program + f"{secret}\n{tests}".encode("utf-8", "surrogatepass")
    names = ["-"] if tests is None else list(entry_points)
    with tempfile.TemporaryDirectory(prefix="heldout-program-") as folder, tempfile.TemporaryFile() as texts:
        texts.write(job)
        texts.seek(0)
        read_end, write_end = os.pipe()
        with open(read_end, "rb", buffering=0) as report:
            try:
                limits = [max(1, round(seconds)), int(memory), int(file_size), int(disk)]
                arguments = [*limits, isolation, folder, write_end, len(program), *names]
                process = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-X", "utf8", "-c", _START, str(Path(__file__).parent)]
                    + [str(argument) for argument in arguments],
                    cwd=folder,
                    env={},
                    stdin=texts,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    pass_fds=[write_end],
                    start_new_session=True,
                )
            finally:
                os.close(write_end)
            with process:
                try:
                    said, limit = _watch(process, report, Path(folder), seconds, disk)
                finally:
                    _end(process)
        reported = dict(line.partition(" ")[::2] for line in said[2].decode(errors="replace").splitlines())
    if "refused" in reported:
        raise IsolationError(_remedy(reported["refused"]))
    output, errors = (said[at].decode(errors="replace") for at in (0, 1))
    used, code = reported.get("isolation", ""), process.returncode
    passed = code == 0 if tests is None else reported.get("passed") == secret
    if limit is None and not passed:
        limit = f"it was ended by signal {-code}, at a limit" if code < 0 else errors[-_SHOWN // 10 :]
        limit = limit or ("" if tests is None else "the tests were ended before they had passed")
    return PythonResult(passed and limit is None, output[:_SHOWN], limit or "", used)


def _watch(
    process: subprocess.Popen[bytes], report: IO[bytes], folder: Path, seconds: float, disk: int
) -> tuple[list[bytearray], str | None]:
    """Returns what came on standard output, error and the report until all are closed, and what limit was met."""
    assert process.stdout is not None
    assert process.stderr is not None
    end = time.monotonic() + seconds + 2.0
    said = [bytearray(), bytearray(), bytearray()]
    with selectors.DefaultSelector() as streams:
        for at, stream in enumerate((process.stdout, process.stderr, report)):
            streams.register(stream, selectors.EVENT_READ, at)
        looked = time.monotonic()
        while streams.get_map():
            for key, _ in streams.select(_LOOK):
                part = os.read(key.fd, 1 << 16)
                if not part:
                    streams.unregister(key.fileobj)
                said[key.data] += part
            now = time.monotonic()
            if now > end:
                return said, f"it ran longer than {seconds:g} s"
            if max(map(len, said)) > _PRINTED:
                return said, f"it printed more than {_PRINTED:,} bytes"
            if now - looked >= _LOOK:
                looked = now
                if _size_of(folder, disk) > disk:
                    return said, f"it wrote more than {disk:,} bytes or {_ENTRIES:,} files"
    try:
        process.wait(max(0.0, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        return said, f"it ran longer than {seconds:g} s"
    over = _size_of(folder, disk) > disk
    return said, f"it wrote more than {disk:,} bytes or {_ENTRIES:,} files" if over else None


def _size_of(folder: Path, most: int) -> int:
    """Returns the bytes of a folder's files, as far as they are needed to know that they are more than ``most``."""
    total, entries, waiting = 0, 0, [folder]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as found:
                for entry in found:
                    entries += 1
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(Path(entry.path))
                    else:
                        total += entry.stat(follow_symlinks=False).st_blocks * 512
                    if total > most or entries > _ENTRIES:
                        return most + 1
        except OSError:
            continue  # it went away meanwhile
    return total


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the process and those of its session."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        process.kill()
    process.wait()


def _remedy(reason: str) -> str:
    return (
        f"programs cannot be isolated here: {reason}. Use Linux 5.13 or later with landlock and seccomp, or a virtual "
        "machine with it; for programs that you trust as your own, pass isolation='none'"
    )
