"""What the Linux kernel enforces on this process and all that it runs: landlock, seccomp, namespaces, limits.

It is loaded by a bare interpreter (``-I -S``), so it uses the standard library only. Nothing here can be undone: rules
of landlock and filters of seccomp stay until the process ends, whatever it runs, native code included.

Source: the kernel's documentation of landlock, of seccomp filters and of no_new_privs.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys

_LIBC = ctypes.CDLL(None, use_errno=True)

# System calls that a Python program needs, as name:number on x86_64:number on aarch64. What is not named is refused:
# other processes, sockets that lead outside, shared memory, tracing, mounting, changes of owners and modes, links.
_CALLS = """
read:0:63 write:1:64 open:2:- openat:257:56 close:3:57 stat:4:- fstat:5:80 lstat:6:- newfstatat:262:79
statx:332:291 poll:7:- ppoll:271:73 lseek:8:62 mmap:9:222 mprotect:10:226 munmap:11:215 mremap:25:216
madvise:28:233 brk:12:214 rt_sigaction:13:134 rt_sigprocmask:14:135 rt_sigreturn:15:139 rt_sigpending:127:136
rt_sigtimedwait:128:137 rt_sigsuspend:130:133 sigaltstack:131:132 pread64:17:67 pwrite64:18:68 readv:19:65
writev:20:66 access:21:- faccessat:269:48 faccessat2:439:439 pipe:22:- pipe2:293:59 select:23:- pselect6:270:72
sched_yield:24:124 dup:32:23 dup2:33:- dup3:292:24 nanosleep:35:101 clock_nanosleep:230:115 getitimer:36:102
setitimer:38:103 alarm:37:- pause:34:- getpid:39:172 gettid:186:178 getppid:110:173 getuid:102:174
geteuid:107:175 getgid:104:176 getegid:108:177 getgroups:115:158 getresuid:118:148 getresgid:120:150
getpgrp:111:- getpgid:121:155 getsid:124:156 getrlimit:97:163 getrandom:318:278 clock_gettime:228:113
clock_getres:229:114 gettimeofday:96:169 time:201:- times:100:153 getrusage:98:165 uname:63:160 sysinfo:99:179
getcwd:79:17 chdir:80:49 fchdir:81:50 rename:82:- renameat:264:38 renameat2:316:276 mkdir:83:- mkdirat:258:34
rmdir:84:- unlink:87:- unlinkat:263:35 ftruncate:77:46 fallocate:285:47 fsync:74:82 fdatasync:75:83 flock:73:32
getdents64:217:61 readlink:89:- readlinkat:267:78 umask:95:166 futex:202:98 set_robust_list:273:99
get_robust_list:274:100 rseq:334:293 set_tid_address:218:96 exit:60:93 exit_group:231:94 arch_prctl:158:-
sched_getaffinity:204:123 sched_getparam:143:121 sched_getscheduler:145:120 getpriority:140:141 getcpu:309:168
epoll_create:213:- epoll_create1:291:20 epoll_ctl:233:21 epoll_wait:232:- epoll_pwait:281:22
epoll_pwait2:441:441 eventfd2:290:19 timerfd_create:283:85 timerfd_settime:286:86 timerfd_gettime:287:87
membarrier:324:283 recvfrom:45:207 getsockopt:55:209 setsockopt:54:208 getsockname:51:204 getpeername:52:205
shutdown:48:210 wait4:61:260 waitid:247:95 restart_syscall:219:128 sendfile:40:71 copy_file_range:326:285
close_range:436:436 fadvise64:221:223 mincore:27:232 capget:125:90 ioctl:16:29 fcntl:72:25 prctl:157:167
prlimit64:302:261 socketpair:53:199 sendto:44:206 kill:62:129 tgkill:234:131 clone:56:220 clone3:435:435
"""
_MACHINES = {"x86_64": (0xC000003E, 1), "aarch64": (0xC00000B7, 2)}  # AUDIT_ARCH, column of _CALLS
_LANDLOCK = 444  # landlock_create_ruleset, _add_rule, _restrict_self follow one another on every machine
_ALLOW, _REFUSE, _MISSING, _KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000  # ERRNO: EPERM, ENOSYS
_LOAD, _AND, _EQUALS, _RETURN = 0x20, 0x54, 0x15, 0x06  # instructions of the filter's machine
_WORD = 0xFFFFFFFF

_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_CHANGES = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8 | 1 << 13 | 1 << 14  # write, remove, make, refer, truncate
_TERMINAL = (0x5401, 0x5413, 0x5421, 0x541B, 0x5450, 0x5451)  # ioctl: TCGETS, TIOCGWINSZ, FIONBIO, FIONREAD, FIO(N)CLEX
_FILE_FLAGS = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1032)  # fcntl: no owner of signals, no leases, no notices

Condition = tuple[int, int, int, int]  # argument, half (0 low, 1 high), mask, value


class NoBoundaryError(Exception):
    """The kernel does not enforce what is needed here; the text says what is missing."""


def limit(seconds: int, memory: int, file_size: int) -> None:
    """Sets the limits of processor time, address space, sizes of files and their number, without a way back."""
    for kind, most in (("CPU", seconds), ("AS", memory), ("FSIZE", file_size), ("CORE", 0), ("NOFILE", 64)):
        name = getattr(resource, "RLIMIT_" + kind)
        hard = resource.getrlimit(name)[1]
        if hard != resource.RLIM_INFINITY:
            most = min(most, hard)
        try:
            resource.setrlimit(name, (most, most))
        except (OSError, ValueError):
            if sys.platform == "linux":
                raise  # elsewhere some of them are not known


def end_with_parent() -> None:
    """Has the kernel end this process when the one that started it ends."""
    if sys.platform == "linux":
        _LIBC.prctl(1, 9, 0, 0, 0)


def own_folder(folder: str, disk: int) -> bool:
    """Returns whether ``folder`` became a file system of ``disk`` bytes in memory that only this process sees."""
    user, group = os.getuid(), os.getgid()
    if _LIBC.unshare(0x10000000 | 0x00020000 | 0x08000000):  # CLONE_NEWUSER, NEWNS, NEWIPC
        return False
    try:
        for file, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            with open(f"/proc/self/{file}", "w") as out:
                out.write(text)
        _call("mount", b"none", b"/", None, 0x4000 | 0x40000, None)  # MS_REC, MS_PRIVATE
        options = f"size={max(disk, 4096)},nr_inodes=1000,mode=0700".encode()
        _call("mount", b"tmpfs", folder.encode(), b"tmpfs", 0x2 | 0x4 | 0x8, options)  # NOSUID, NODEV, NOEXEC
        os.chdir(folder)
    except OSError:
        return False
    return True


def confine(folder: str) -> None:
    """Restricts this process to reading Python's own files and changing ``folder``, and takes its privileges away.

    Raises:
        NoBoundaryError: if the kernel has no landlock.
    """
    _call("prctl", 38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    version = _LIBC.syscall(_LANDLOCK, None, 0, 1)
    if version < 1:
        raise NoBoundaryError(
            "the kernel has no landlock (Linux 5.13 or later, with landlock among its security modules)"
        )
    known = (1 << (13 if version == 1 else 14 if version == 2 else 15 if version < 5 else 16)) - 1
    rules = (ctypes.c_uint64 * 3)(known, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = _LIBC.syscall(_LANDLOCK, rules, size, 0)
    if ruleset < 0:
        raise NoBoundaryError(f"landlock: {os.strerror(ctypes.get_errno())}")
    for path in _readable():
        _permit(ruleset, path, (_READ_FILE | _READ_DIR) & known)
    for path in ("/dev/null", "/dev/zero", "/dev/full"):
        _permit(ruleset, path, _READ_FILE | 1 << 1)
    _permit(ruleset, folder, (_READ_FILE | _READ_DIR | _CHANGES) & known)
    if _LIBC.syscall(_LANDLOCK + 2, ruleset, 0):
        raise NoBoundaryError(f"landlock: {os.strerror(ctypes.get_errno())}")
    os.close(ruleset)
    for capability in range(64):
        if _LIBC.prctl(24, capability, 0, 0, 0):  # PR_CAPBSET_DROP: without the privilege there is nothing to drop
            break
    header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    _call("capset", header, nothing)


def filter_calls() -> None:
    """Refuses every system call of this process that a program does not need; its own process id is the only target.

    Raises:
        NoBoundaryError: if the kernel has no seccomp filters, or the machine is neither x86_64 nor aarch64.
    """
    if os.uname().machine not in _MACHINES:
        raise NoBoundaryError(
            f"no list of system calls for the machine {os.uname().machine!r}: x86_64 and aarch64 have one"
        )
    instructions = program(os.uname().machine, os.getpid())
    code = b"".join(
        operation.to_bytes(2, "little") + bytes((yes, no)) + value.to_bytes(4, "little")
        for operation, yes, no, value in instructions
    )
    text = ctypes.create_string_buffer(code, len(code))
    head = ctypes.create_string_buffer(16)
    ctypes.memmove(head, len(instructions).to_bytes(8, "little") + ctypes.addressof(text).to_bytes(8, "little"), 16)
    if _LIBC.prctl(22, 2, head, 0, 0):  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
        raise NoBoundaryError(f"seccomp: {os.strerror(ctypes.get_errno())}")


def program(machine: str, process: int) -> list[tuple[int, int, int, int]]:
    """Returns the filter for ``machine`` as (operation, jump if so, jump if not, value) rows."""
    audited, column = _MACHINES[machine]
    rows = [(_LOAD, 0, 0, 4), (_EQUALS, 1, 0, audited), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
    special = _special(process)
    for call in _CALLS.split():
        name, number = call.split(":")[0], call.split(":")[column]
        if number == "-":
            continue
        if name == "clone3":
            body = [(_RETURN, 0, 0, _MISSING)]  # the C library then uses clone, whose flags can be seen
        elif name in special:
            body = [row for way in special[name] for row in _way(way)] + [(_RETURN, 0, 0, _REFUSE)]
        else:
            body = [(_RETURN, 0, 0, _ALLOW)]
        rows += [(_EQUALS, 0, len(body), int(number)), *body]
    return [*rows, (_RETURN, 0, 0, _REFUSE)]


def _special(process: int) -> dict[str, list[list[Condition]]]:
    """What some calls are held to: ways, in each of which every condition must be met."""

    def opened(at: int) -> list[list[Condition]]:
        # Truncation without a mode of writing would escape the older landlocks.
        return [[(at, 0, 0o1000, 0)], [(at, 0, 3, os.O_WRONLY)], [(at, 0, 3, os.O_RDWR)]]

    return {
        "open": opened(1),
        "openat": opened(2),
        "ioctl": [[(1, 0, _WORD, command)] for command in _TERMINAL],
        "fcntl": [[(1, 0, _WORD, command)] for command in _FILE_FLAGS],
        "prctl": [[(0, 0, _WORD, option)] for option in (15, 16, 0x53564D41)],  # names of threads and of memory
        "prlimit64": [[(0, 0, _WORD, 0), (2, 0, _WORD, 0), (2, 1, _WORD, 0)]],  # reading its own
        "socketpair": [[(0, 0, _WORD, 1), (1, 0, 0xF, 1)]],  # UNIX streams: they have no other address
        "sendto": [[(4, 0, _WORD, 0), (4, 1, _WORD, 0)]],
        "kill": [[(0, 0, _WORD, process)]],
        "tgkill": [[(0, 0, _WORD, process)]],
        "clone": [[(0, 0, 0x10000, 0x10000), (0, 0, 0x7E020000, 0)]],  # threads, without namespaces
    }


def _way(conditions: list[Condition]) -> list[tuple[int, int, int, int]]:
    """Instructions that allow the call if all conditions hold, and fall through if not."""
    blocks = []
    for argument, half, mask, value in conditions:
        block = [(_LOAD, 0, 0, 16 + 8 * argument + 4 * half)]
        if mask != _WORD:
            block.append((_AND, 0, 0, mask))
        blocks.append([*block, (_EQUALS, 0, 0, value)])
    length = sum(map(len, blocks)) + 1
    rows: list[tuple[int, int, int, int]] = []
    for block in blocks:
        *head, (operation, _, _, value) = block
        rows += head
        rows.append((operation, 0, length - len(rows) - 1, value))
    return [*rows, (_RETURN, 0, 0, _ALLOW)]


def _readable() -> list[str]:
    """Folders and files of Python and of the libraries that it loads."""
    system = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/share/zoneinfo", "/etc/ld.so.cache"]
    system += ["/etc/localtime", "/dev/urandom", "/dev/random"]
    return [*filter(None, sys.path), os.path.join(sys.base_prefix, "lib"), *system]


def _permit(ruleset: int, path: str, rights: int) -> None:
    try:
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # not on this machine
    if not os.path.isdir(path):
        rights &= _READ_FILE | 1 << 1
    rule = ctypes.create_string_buffer(rights.to_bytes(8, "little") + opened.to_bytes(4, "little"), 12)
    failed = _LIBC.syscall(_LANDLOCK + 1, ruleset, 1, rule, 0)
    os.close(opened)
    if failed:
        raise NoBoundaryError(f"landlock: {os.strerror(ctypes.get_errno())}")


def _call(name: str, *arguments: object) -> None:
    if getattr(_LIBC, name)(*arguments):
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
