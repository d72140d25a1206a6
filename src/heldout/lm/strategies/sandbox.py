"""Programs that a language model wrote, run in a process of their own with limits."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

_SHOWN = 20_000  # characters of output that are kept

# Runs inside the new process. Limits come first, then a network namespace without interfaces where the system allows
# one, then a hook that nothing can take away again.
_GUARD = r"""
import os, resource, sys
seconds, memory, size, folder, program = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5]
for kind, limit in (("CPU", seconds), ("AS", memory), ("FSIZE", size), ("CORE", 0), ("NOFILE", 32)):
    resource.setrlimit(getattr(resource, "RLIMIT_" + kind), (limit, limit))
if hasattr(os, "unshare"):
    try:
        os.unshare(os.CLONE_NEWUSER | os.CLONE_NEWNET)
    except OSError:
        pass
source = open(program, encoding="utf-8").read()
def guarded(inside, realpath=os.path.realpath, fsdecode=os.fsdecode):
    refused = (
        "socket.", "subprocess.", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.system", "os.kill", "pty.",
        "ctypes.", "signal.", "os.chmod", "os.chown", "os.link", "os.symlink", "os.putenv", "os.chdir", "os.fchdir",
        "code.__new__", "sys.addaudithook",
    )
    modules = ("ctypes", "_ctypes", "_posixsubprocess", "gc")
    changing = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.truncate", "os.utime")
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    def within(path):
        return isinstance(path, (str, bytes)) and realpath(fsdecode(path)).startswith(inside)
    def guard(event, arguments):
        if event.startswith(refused) or event == "import" and arguments[0] in modules:
            raise PermissionError("not allowed in a judged program: " + event)
        if event in changing and not all(within(path) for path in arguments if isinstance(path, (str, bytes))):
            raise PermissionError("not allowed outside the program's folder: " + event)
        if event == "open" and arguments[2] & writing and not within(arguments[0]):
            raise PermissionError("files can be written in the program's folder only")
    return guard
code = compile(source, "program.py", "exec")
guard = guarded(os.path.realpath(folder) + os.sep)
sys.argv[:] = ["program.py"]
sys.addaudithook(guard)
del guard, guarded
exec(code, {"__name__": "__main__"})
"""


@dataclass(frozen=True)
class PythonResult:
    """How a program ended.

    Attributes:
        ok: it ran to its end.
        output: what it printed, at most 20,000 characters.
        error: the end of its traceback, or what limit it met; empty if it is ok.
    """

    ok: bool
    output: str
    error: str = ""


def run_python(source: str, *, seconds: float = 5.0, memory: int = 512 * 2**20, file_size: int = 2**20) -> PythonResult:
    """Returns how a Python program ended that ran in a process of its own, isolated from the rest of the system.

    It has the standard library, an empty folder where it may write, no environment variables, no input, and limits of
    time, memory and the size of files. Network, other processes and writing elsewhere are refused by an audit hook, and
    by a network namespace where the system gives one to everybody. It may read files that the user may read. That
    stops careless programs and simple attacks; against programs written to break out, run heldout in a container.

    Args:
        source: of the program.
        seconds: of processor time, and about as many of real time.
        memory: bytes of address space.
        file_size: bytes of each file that it writes.

    Raises:
        OSError: on systems without resource limits (Windows).

    Example:
        >>> run_python("print(6 * 7)")
        PythonResult(ok=True, output='42\\n', error='')
    """
    if os.name != "posix":
        raise OSError("programs are judged on systems with resource limits only: Linux, macOS")
    with tempfile.TemporaryDirectory(prefix="heldout-program-") as folder:
        program = Path(folder) / "program.py"
        program.write_text(source, "utf-8")
        limits = [str(max(1, round(seconds))), str(memory), str(file_size)]
        output, errors = Path(folder) / ".output", Path(folder) / ".errors"
        with output.open("wb") as out, errors.open("wb") as err:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _GUARD, *limits, folder, str(program)],
                cwd=folder,
                env={},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
            try:
                code = process.wait(seconds + 2.0)
                late = False
            except subprocess.TimeoutExpired:
                late = True
            finally:
                _end(process)
        said = _text(output)[:_SHOWN]
        if late:
            return PythonResult(False, said, f"it ran longer than {seconds:g} s")
        if code < 0:
            return PythonResult(False, said, f"it was ended by signal {-code}, at a limit")
        return PythonResult(code == 0, said, "" if code == 0 else _text(errors)[-_SHOWN // 10 :])


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the process and whatever it may have started."""
    import signal

    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        process.kill()
    process.wait()


def _text(path: Path) -> str:
    return path.read_bytes().decode(errors="replace")
