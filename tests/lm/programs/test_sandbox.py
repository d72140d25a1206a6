# ruff: noqa: E501
"""Programs run behind the kernel's boundary: what they may do works, and every way out is refused."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from heldout.lm import IsolationError, run_python, run_tests

BOUNDARIES = ("namespaces+landlock+seccomp", "landlock+seccomp")
SYSCALL = "import ctypes; libc = ctypes.CDLL(None, use_errno=True); "
# Each of them must not print "out"; where it is only a program that fails, the second text says why.
ESCAPES = {
    "object graph to a process": (
        "close = [c for c in object.__subclasses__() if c.__name__ == '_wrap_close'][0]\n"
        "assert close.__init__.__globals__['system']('id') == 0",
        "AssertionError",
    ),
    "hook taken off by a builtin module": (
        "import _imp, importlib.machinery as m\n"
        "gc = _imp.create_builtin(m.ModuleSpec('gc', None)); import os\n"
        "[o for o in gc.get_objects() if callable(o)]; open('/etc/passwd').read()",
        "PermissionError",
    ),
    "frames": (
        "import sys, os\nf = sys._getframe()\nwhile f.f_back: f = f.f_back\nf.f_locals.clear(); os.fork()",
        "PermissionError",
    ),
    "frame of a traceback": (
        "import os\ntry: 1 / 0\nexcept ZeroDivisionError as e: e.__traceback__.tb_frame.f_globals.clear()\n"
        "os.listdir('/')",
        "Error",
    ),
    "ctypes system": (SYSCALL + "assert libc.system(b'echo out') == 0", "AssertionError"),
    "ctypes open": (SYSCALL + "assert libc.open(b'/etc/passwd', 0) >= 0", "AssertionError"),
    "ctypes fork": (SYSCALL + "assert libc.fork() >= 0", "AssertionError"),
    "machine code that the program writes": (
        "import mmap, ctypes\n"
        "m = mmap.mmap(-1, 4096, prot=7); m.write(bytes.fromhex('b8390000000f05c3'))\n"  # fork on x86_64
        "f = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))\n"
        "assert __import__('os').uname().machine == 'x86_64' and f() >= 0",
        "AssertionError",
    ),
    "32-bit system call": (
        "import mmap, ctypes\n"
        "m = mmap.mmap(-1, 4096, prot=7); m.write(bytes.fromhex('b802000000cd80c3'))\n"  # fork by int 0x80
        "f = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))\n"
        "assert __import__('os').uname().machine == 'x86_64'; f(); print('out')",
        "signal|AssertionError",
    ),
    "fork": ("import os; os.fork()", "PermissionError"),
    "posix_spawn": ("import os; os.posix_spawn('/bin/ls', ['ls'], {})", "PermissionError"),
    "exec": ("import os; os.execv('/bin/ls', ['ls'])", "PermissionError"),
    "exec of a file in memory": ("import os; os.memfd_create('x')", "PermissionError"),
    "subprocess": ("import subprocess; subprocess.run(['ls'])", "PermissionError"),
    "multiprocessing": (
        "import multiprocessing as m; m.get_context('fork').Process(target=print, args=('out',)).start()",
        "PermissionError",
    ),
    "pty": ("import pty; pty.fork()", "Error"),
    "internet socket": ("import socket; socket.create_connection(('127.0.0.1', 80))", "PermissionError"),
    "datagram": ("import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM)", "PermissionError"),
    "unix socket": ("import socket; socket.socket(socket.AF_UNIX).connect('/run/systemd/notify')", "PermissionError"),
    "datagram pair": ("import socket; socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)", "PermissionError"),
    "netlink": ("import socket; socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)", "PermissionError"),
    "signal to the parent": ("import os; os.kill(os.getppid(), 0)", "PermissionError"),
    "signal to all": ("import os; os.kill(-1, 0)", "PermissionError"),
    "signal by pidfd": ("import os; os.pidfd_open(os.getppid())", "PermissionError"),
    "signal by owner of a pipe": (
        "import fcntl, os; fcntl.fcntl(os.pipe()[0], 8, os.getppid())",
        "PermissionError",
    ),
    "limits of the parent": (
        "import os, resource; resource.prlimit(os.getppid(), resource.RLIMIT_CPU)",
        "PermissionError",
    ),
    "own limits": ("import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1))", "Error"),
    "environment of the parent": ("import os; open(f'/proc/{os.getppid()}/environ').read()", "Error"),
    "memory of the parent": ("import os; open(f'/proc/{os.getppid()}/mem', 'rb').read(1)", "Error"),
    "own memory by file": ("open('/proc/self/mem', 'r+b')", "Error"),
    "tracing": (SYSCALL + "import os; assert libc.ptrace(16, os.getppid(), None, None) == 0", "AssertionError"),
    "reading another process": (
        SYSCALL + "import os; assert libc.process_vm_readv(os.getppid(), None, 0, None, 0, 0) == 0",
        "AssertionError",
    ),
    "password file": ("open('/etc/passwd').read()", "PermissionError"),
    "home": ("import os; os.listdir(@HOME@)", "PermissionError"),
    "root": ("import os; os.listdir('/')", "PermissionError"),
    "file elsewhere": ("open('/tmp/heldout-escape', 'w')", "PermissionError"),
    "file relative to an open folder": (
        "import os; os.open('passwd', os.O_RDONLY, dir_fd=os.open('/etc', os.O_PATH))",
        "PermissionError",
    ),
    "up and out": ("import os; os.chdir('/tmp'); open('heldout-escape', 'w')", "PermissionError"),
    "database elsewhere": ("import sqlite3; sqlite3.connect('/tmp/heldout-escape.db').execute('create table a (b)')", "Error"),
    "truncation of a module": ("import os; os.open(os.__file__, os.O_RDONLY | os.O_TRUNC)", "PermissionError"),
    "truncation by path": ("import os; os.truncate(os.__file__, 0)", "PermissionError"),
    "change of a module": ("import os; open(os.__file__, 'a')", "PermissionError"),
    "removal of a module": ("import os; os.remove(os.__file__)", "PermissionError"),
    "mode of a module": ("import os; os.chmod(os.__file__, 0o777)", "PermissionError"),
    "dates of a module": ("import os; os.utime(os.__file__)", "PermissionError"),
    "owner": ("import os; os.chown('.', 0, 0)", "PermissionError"),
    "rename out": ("import os; open('a', 'w').close(); os.rename('a', '/tmp/heldout-escape')", "Error"),
    "symbolic link": ("import os; os.symlink('/etc/passwd', 'a'); print(open('a').read())", "PermissionError"),
    "hard link": ("import os; os.link('/etc/passwd', 'a')", "PermissionError"),
    "named pipe": ("import os; os.mkfifo('a')", "PermissionError"),
    "device": ("import os; os.mknod('a', 0o20666, os.makedev(1, 1))", "PermissionError"),
    "shared memory by name": ("open('/dev/shm/heldout-escape', 'w')", "PermissionError"),
    "shared memory of a module": (
        "from multiprocessing.shared_memory import SharedMemory; SharedMemory('heldout-escape', True, 10)",
        "PermissionError",
    ),
    "shared memory of system V": (SYSCALL + "assert libc.shmget(7, 4096, 0o1666) >= 0", "AssertionError"),
    "namespaces": (SYSCALL + "assert libc.unshare(0x10000000) == 0", "AssertionError"),
    "mount": (SYSCALL + "assert libc.mount(b'none', b'.', b'tmpfs', 0, None) == 0", "AssertionError"),
    "root folder": ("import os; os.chroot('.')", "PermissionError"),
    "other user": ("import os; os.setresuid(0, 0, 12345)", "PermissionError"),
    "session": ("import os; os.setsid()", "PermissionError"),
    "io_uring": (SYSCALL + "import ctypes as c; assert libc.syscall(425, 8, c.create_string_buffer(120)) >= 0", "AssertionError"),
    "keys of the kernel": (SYSCALL + "assert libc.syscall(250, 6, -3, 0, 0, 0) == 0", "AssertionError"),
    "terminal": ("import fcntl; fcntl.ioctl(0, 0x5412, b'x')", "Error"),
    "processes without end": ("import os\nwhile True: os.fork()", "PermissionError"),
    "memory": ("x = bytearray(10**10)", "MemoryError"),
    "threads without end": (
        "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(9,), daemon=True).start()",
        "Error|signal|longer",
    ),
    "open files without end": ("files = [open('a', 'w') for _ in range(5000)]", "Too many open files"),
    "a large file": ("open('big', 'w').write('x' * 10**7)", "File too large|signal"),
    "many files": (
        "for i in range(3000): open(str(i), 'w').write('x' * 10**5)",
        "No space left|wrote more",
    ),
    "many empty files": ("for i in range(3000): open(str(i), 'w').close()\n__import__('time').sleep(1)", "No space left|wrote more"),
    "a large file without content": (
        "import os; f = os.open('a', os.O_RDWR | os.O_CREAT); os.posix_fallocate(f, 0, 10**7)",
        "File too large|signal",
    ),
    "flood of output": ("while True: print('x' * 10**4)", "printed more"),
    "flood of errors": ("import sys\nwhile True: sys.stderr.write('x' * 10**4)", "printed more"),
    "processor time": ("import signal; signal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass", "signal|longer"),
    "sleep": ("import time; time.sleep(60)", "longer"),
}  # fmt: skip


@pytest.mark.parametrize("isolation", BOUNDARIES)
@pytest.mark.parametrize("name", ESCAPES)
def test_there_is_no_way_out(name, isolation):
    program, reason = ESCAPES[name]
    program = program.replace("@HOME@", repr(str(Path.home())))
    result = _run(program + "\nprint('out')", isolation, seconds=0.5)
    assert not result.ok
    assert "out\n" not in result.output[:10]
    assert any(part in result.error for part in reason.split("|")), result.error
    assert result.isolation == isolation
    assert not list(Path("/tmp").glob("heldout-escape*"))
    assert not Path("/dev/shm/heldout-escape").exists()


@pytest.mark.parametrize("isolation", BOUNDARIES)
def test_what_a_program_needs_works(isolation):
    program = """
import asyncio, collections, concurrent.futures, dataclasses, datetime, decimal, hashlib, json, os, random, re
import shutil, signal, sqlite3, ssl, string, subprocess, tempfile, threading, time, typing, unittest, zoneinfo
assert not os.environ.get("HOME") and os.listdir(".") == []
open("a.txt", "w").write("hi"); os.makedirs("b/c"); os.rename("a.txt", "b/c/a.txt")
with tempfile.TemporaryFile(dir=".") as f: f.write(b"x")
assert open("b/c/a.txt").read() == "hi"; shutil.rmtree("b")
with concurrent.futures.ThreadPoolExecutor(2) as pool: assert list(pool.map(abs, [-1, 2])) == [1, 2]
async def f(): await asyncio.sleep(0.001); return 7
assert asyncio.run(f()) == 7
sqlite3.connect("d.db").execute("create table a (b)")
signal.signal(signal.SIGUSR1, lambda *a: print("signal")); os.kill(os.getpid(), signal.SIGUSR1)
hashlib.sha256(os.urandom(4)); random.random(); datetime.datetime.now()
print(sum(range(4)))
"""
    result = _run(program, isolation, memory=2**30)
    assert result.error == ""
    assert (result.ok, result.output) == (True, "signal\n6\n")


def test_without_a_boundary_nothing_runs_unless_it_is_asked_for(monkeypatch):
    monkeypatch.setattr(sys, "platform", "plan9")
    with pytest.raises(IsolationError, match="pass isolation='none'"):
        run_python("print(1)")
    assert run_python("print(1)", isolation="none").isolation == "none"


def test_a_boundary_that_the_kernel_lacks_is_refused(tmp_path):
    # A machine whose system calls are not listed has no filter; nothing of the program runs.
    from heldout.lm.programs import sandbox

    other = sandbox._START.replace("main()", "import os; os.uname = lambda: type(sys)('u'); main()")
    other = other.replace("main\nimport", "main\nimport").replace(
        "type(sys)('u')", "type('U', (), {'machine': 'vax'})()"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sandbox, "_START", other)
        with pytest.raises(IsolationError, match="no list of system calls for the machine 'vax'"):
            run_python(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"isolation": "jail"}, "isolation must be one of"),
        ({"seconds": 0}, "seconds must be positive"),
        ({"memory": -1}, "memory must be positive"),
        ({"disk": float("nan")}, "disk must be an integer"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        run_python("", **options)
    with pytest.raises(ValueError, match="tests are no Python program"):
        run_tests("", "assert (")


def test_every_filter_names_each_system_call_once_and_jumps_within_itself():
    from heldout.lm.programs import boundary

    for machine in ("x86_64", "aarch64"):
        rows = boundary.program(machine, 7)
        assert len(rows) < 4096  # the kernel's limit
        for at, (operation, yes, no, _) in enumerate(rows):
            if operation == boundary._EQUALS:
                assert at + 1 + max(yes, no) < len(rows)
        numbers = [call.split(":")[0] for call in boundary._CALLS.split()]
        assert len(set(numbers)) == len(numbers)


def test_nothing_is_left_of_a_program_that_is_late():
    before = set(Path("/tmp").glob("heldout-program-*"))
    start = time.monotonic()
    result = run_tests("", "import time; time.sleep(30)", seconds=0.2)
    assert (result.ok, result.error) == (False, "it ran longer than 0.2 s")
    assert time.monotonic() - start < 10
    assert set(Path("/tmp").glob("heldout-program-*")) <= before


def _run(program, isolation, **limits):
    try:
        return run_python(program, isolation=isolation, **{"memory": 256 * 2**20, **limits})
    except IsolationError as error:
        if "namespaces" in isolation and "namespaces" in str(error):
            pytest.skip(str(error))
        raise
