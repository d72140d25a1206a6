"""Runs that do not depend on what ran before them.

Around every run, the settings of its process are noted and put back: working directory, environment, umask, resource
limits, signal handlers, warnings filters, the standard streams, numpy's error handling, torch's default dtype and
device, gradient mode, deterministic algorithms, precision of float32 arithmetic, numbers of threads and the like. The
global generators are seeded. What cannot be put back makes the process *spoiled*: a worker is then replaced.

A run may still leave behind what it keeps in its own modules (a cache is allowed, that is what ``shared_setup`` is
for), what it patches in the modules of others, and files.

torch is never imported from here; it is set up where a run has imported it, also when that happens during the run.
Sums in several threads depend on how the work was split, so a run has the same number of threads wherever it is made.
"""

from __future__ import annotations

import gc
import importlib.machinery
import os
import random
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

from heldout.errors import check_at_least, checked

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


_LIBRARIES = ("numpy", "torch")


def seed_generators(seed: int) -> None:
    """Seeds the global generators of ``random``, numpy and torch, the last two where they are imported."""
    random.seed(seed)
    for name in _LIBRARIES:
        _seed_library(name, seed)


def _seed_library(name: str, seed: int) -> None:
    library = sys.modules.get(name)
    if name == "numpy" and hasattr(library, "random"):
        library.random.seed(seed % 2**32)  # type: ignore[union-attr]
    if name == "torch" and hasattr(library, "manual_seed"):
        library.manual_seed(seed)  # type: ignore[union-attr]


def thread_environment(threads: int) -> dict[str, str]:
    """Environment variables that give a new process this many threads of arithmetic."""
    return dict.fromkeys(THREAD_VARIABLES, str(threads))


@checked
@contextmanager
def limited_threads(threads: int) -> Iterator[None]:
    """This many threads of arithmetic inside the block, for loaded libraries and for those that it loads.

    A library that is first loaded inside the block keeps that number after it.

    Raises:
        ValueError: fewer than 1.

    Example:
        >>> with limited_threads(1):
        ...     os.environ["OMP_NUM_THREADS"]
        '1'
    """
    check_at_least(1, threads=threads)
    from threadpoolctl import threadpool_limits

    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    torch = sys.modules.get("torch")
    torch_threads = torch.get_num_threads() if hasattr(torch, "get_num_threads") else None  # type: ignore[union-attr]
    os.environ.update(thread_environment(threads))
    try:
        with threadpool_limits(threads):
            if torch_threads is not None:
                torch.set_num_threads(threads)  # type: ignore[union-attr]
            yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        if torch_threads is not None:
            torch.set_num_threads(torch_threads)  # type: ignore[union-attr]


@contextmanager
def kept_generators() -> Iterator[None]:
    """Gives the global generators back as they were before the block."""
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    states = random.getstate(), numpy and numpy.random.get_state()
    torch_state = torch.get_rng_state() if hasattr(torch, "get_rng_state") else None  # type: ignore[union-attr]
    try:
        yield
    finally:
        random.setstate(states[0])
        if numpy:
            numpy.random.set_state(states[1])
        if torch_state is not None:
            torch.set_rng_state(torch_state)  # type: ignore[union-attr]


class _Setting(NamedTuple):
    """Something that a run may change: how to read it and how to put a value that was read back."""

    name: str
    get: Callable[[], Any]
    put: Callable[[Any], Any]


@dataclass
class Isolation:
    """The settings of a process before a run; ``spoiled`` tells afterwards that not all of them could be put back."""

    spoiled: bool = False
    _kept: dict[str, tuple[_Setting, Any]] = field(default_factory=dict)

    def keep(self, settings: Sequence[_Setting]) -> None:
        for setting in settings:
            with suppress(Exception):  # a version of a library without it
                self._kept[setting.name] = setting, setting.get()

    @contextmanager
    def adopting(self) -> Iterator[None]:
        """What changes inside the block stays: it is not put back."""
        before = self._values()
        yield
        for name, value in self._values().items():
            if name in before and value != before[name]:
                self._kept[name] = self._kept[name][0], value

    def _values(self) -> dict[str, Any]:
        return {name: setting.get() for name, (setting, _) in self._kept.items()}

    def put_back(self) -> None:
        for setting, value in self._kept.values():
            try:
                if setting.get() != value:
                    setting.put(value)
                    self.spoiled |= setting.get() != value
            except Exception:
                self.spoiled = True


@contextmanager
def isolated(seed: int) -> Iterator[Isolation]:
    """Seeds the global generators, and puts the settings of this process back after the block."""
    isolation = Isolation()
    isolation.keep(_thread_settings())  # first: what looks at threads sets a variable as it is imported
    isolation.keep(_process_settings())
    for name in _LIBRARIES:
        isolation.keep(_library_settings(name))

    @contextmanager
    def importing(name: str) -> Iterator[None]:
        with (
            kept_generators(),
            isolation.adopting(),
        ):  # a library sets up the process once, for the runs that find it imported too
            yield
        isolation.keep(_library_settings(name))
        _seed_library(name, seed)

    seed_generators(seed)
    with _around_imports([name for name in _LIBRARIES if name not in sys.modules], importing):
        try:
            yield isolation
        finally:
            isolation.put_back()


def _process_settings() -> list[_Setting]:
    count = len(sys.path)
    settings = [
        _Setting("working directory", os.getcwd, os.chdir),
        _Setting("environment", lambda: dict(os.environ), _put_environment),
        _Setting("recursion limit", sys.getrecursionlimit, sys.setrecursionlimit),
        _Setting("sys.path", lambda: sys.path[:count], _put_path),
        _Setting("sys.argv", lambda: list(sys.argv), lambda value: setattr(sys, "argv", value)),
        _Setting("streams", lambda: [sys.stdin, sys.stdout, sys.stderr], _put_streams),
        _Setting("excepthook", lambda: sys.excepthook, lambda value: setattr(sys, "excepthook", value)),
        _Setting("warnings filters", lambda: list(warnings.filters), _put_filters),
        _Setting("showwarning", lambda: warnings.showwarning, lambda value: setattr(warnings, "showwarning", value)),
        _Setting("garbage collection", lambda: (gc.isenabled(), gc.get_threshold()), _put_collection),
    ]
    if os.name == "posix":
        settings += [_Setting("umask", _umask, os.umask), _Setting("resource limits", _limits, _put_limits)]
        if threading.current_thread() is threading.main_thread():
            settings.append(_Setting("signals", _signals, _put_signals))
    if decimal := sys.modules.get("decimal"):
        getcontext, setcontext = decimal.getcontext, decimal.setcontext
        context = getcontext().copy()
        settings.append(_Setting("decimal", lambda: repr(getcontext()), lambda _: setcontext(context)))
    if locale := sys.modules.get("locale"):
        setlocale, everything = locale.setlocale, locale.LC_ALL
        settings.append(_Setting("locale", lambda: setlocale(everything), lambda value: setlocale(everything, value)))
    if logging := sys.modules.get("logging"):
        root, manager = logging.root, logging.root.manager
        settings += [
            _Setting("log level", lambda: root.level, root.setLevel),
            _Setting("disabled log level", lambda: manager.disable, lambda value: setattr(manager, "disable", value)),
        ]
    return settings


def _put_environment(value: dict[str, str]) -> None:
    zone = os.environ.get("TZ")
    for name in os.environ.keys() - value.keys():
        del os.environ[name]
    os.environ.update(value)
    if zone != os.environ.get("TZ") and hasattr(time, "tzset"):
        time.tzset()


def _put_path(value: list[str]) -> None:
    """What was there comes first again; what a library added for its own later imports stays behind it."""
    sys.path[:] = [*value, *(folder for folder in sys.path if folder not in value)]


def _put_streams(value: list[Any]) -> None:
    sys.stdin, sys.stdout, sys.stderr = value


def _put_filters(value: list[Any]) -> None:
    warnings.filters[:] = value  # type: ignore[index]
    warnings._filters_mutated()  # type: ignore[attr-defined]


def _put_collection(value: tuple[bool, tuple[int, int, int]]) -> None:
    (gc.enable if value[0] else gc.disable)()
    gc.set_threshold(*value[1])


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _limits() -> list[tuple[int, int]]:
    import resource

    names = ("RLIMIT_AS", "RLIMIT_DATA", "RLIMIT_STACK", "RLIMIT_NOFILE", "RLIMIT_CPU", "RLIMIT_FSIZE", "RLIMIT_NPROC")
    return [(number, *resource.getrlimit(number)) for name in names if (number := getattr(resource, name, None))]  # type: ignore[misc]


def _put_limits(value: list[tuple[int, int, int]]) -> None:
    import resource

    for number, soft, hard in value:
        resource.setrlimit(number, (soft, hard))


_SIGNAL_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGALRM", "SIGCHLD", "SIGUSR1", "SIGUSR2", "SIGPIPE", "SIGFPE")
_SIGNALS = [getattr(signal, name) for name in _SIGNAL_NAMES if hasattr(signal, name)]


def _signals() -> tuple[Any, ...]:
    return (signal.pthread_sigmask(signal.SIG_BLOCK, []), [signal.getsignal(number) for number in _SIGNALS])


def _put_signals(value: tuple[Any, ...]) -> None:
    for number, handler in zip(_SIGNALS, value[1], strict=True):
        if handler is not None:  # None: not set from Python
            signal.signal(number, handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, value[0])


_controllers: dict[int, Any] = {}


def _thread_settings() -> list[_Setting]:
    """Threads of the loaded BLAS and OpenMP libraries; they are looked for again once there are further modules."""
    if len(sys.modules) not in _controllers:
        from threadpoolctl import ThreadpoolController

        _controllers.clear()
        controller = ThreadpoolController()
        _controllers[len(sys.modules)] = controller
    (controller,) = _controllers.values()
    libraries = controller.lib_controllers

    def put(value: list[int]) -> None:
        for library, threads in zip(libraries, value, strict=True):
            library.set_num_threads(threads)

    return [_Setting("library threads", lambda: [library.get_num_threads() for library in libraries], put)]


def _library_settings(name: str) -> list[_Setting]:
    library = sys.modules.get(name)
    if library is None or not hasattr(library, "__version__"):
        return []
    return _numpy_settings(library) if name == "numpy" else _torch_settings(library)


def _numpy_settings(numpy: Any) -> list[_Setting]:
    return [
        _Setting("numpy errors", numpy.geterr, lambda value: numpy.seterr(**value)),
        _Setting("numpy error call", numpy.geterrcall, numpy.seterrcall),
    ]


def _torch_settings(torch: Any) -> list[_Setting]:
    backends, utils = torch.backends, torch.utils

    def attribute(owner: Any, name: str) -> _Setting:
        title = f"{getattr(owner, '__name__', type(owner).__name__)}.{name}"
        return _Setting(title, lambda: getattr(owner, name), lambda value: setattr(owner, name, value))

    def deterministic() -> tuple[bool, bool]:
        return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()

    def put_device(value: Any) -> None:
        torch.set_default_device(None if value == torch.device("cpu") else value)

    def flushed() -> bool:
        return not float(torch.tensor(5e-324, dtype=torch.float64, device="cpu") * 1)

    def modes() -> tuple[Any, ...]:
        return (
            torch.is_inference_mode_enabled(),
            torch._C._len_torch_function_stack(),
            torch._C._len_torch_dispatch_stack(),
        )

    def cannot(value: Any) -> None:
        raise RuntimeError("cannot be put back")

    settings = [
        _Setting("torch dtype", torch.get_default_dtype, torch.set_default_dtype),
        _Setting("torch device", torch.get_default_device, put_device),
        _Setting("torch modes", modes, cannot),
        _Setting("torch gradients", torch.is_grad_enabled, torch.set_grad_enabled),
        _Setting("torch threads", torch.get_num_threads, torch.set_num_threads),
        _Setting("torch deterministic", deterministic,
                 lambda value: torch.use_deterministic_algorithms(value[0], warn_only=value[1])),
        _Setting("torch precision", torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
        _Setting("torch anomalies", lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
                 lambda value: torch.autograd.set_detect_anomaly(*value)),
        _Setting("torch denormals", flushed, torch.set_flush_denormal),
        _Setting("torch attention", backends.mha.get_fastpath_enabled, backends.mha.set_fastpath_enabled),
        attribute(utils.deterministic, "fill_uninitialized_memory"),
        attribute(backends.mkldnn, "enabled"),
        attribute(backends.opt_einsum, "enabled"),
        *(attribute(backends.cudnn, name) for name in ("enabled", "benchmark", "deterministic")),
    ]  # fmt: skip
    for kind in ("flash", "math", "mem_efficient", "cudnn"):
        if hasattr(backends.cuda, f"{kind}_sdp_enabled"):
            get, put = getattr(backends.cuda, f"{kind}_sdp_enabled"), getattr(backends.cuda, f"enable_{kind}_sdp")
            settings.append(_Setting(f"torch {kind} attention", get, put))
    for kind in ("cpu", "cuda"):
        settings += [
            _Setting(
                f"torch autocast {kind}",
                partial(torch.is_autocast_enabled, kind),
                partial(torch.set_autocast_enabled, kind),
            ),
            _Setting(
                f"torch autocast dtype {kind}",
                partial(torch.get_autocast_dtype, kind),
                partial(torch.set_autocast_dtype, kind),
            ),
        ]
    if hasattr(backends, "fp32_precision"):
        owners = [backends, backends.cuda.matmul, backends.cudnn, backends.mkldnn, backends.mkldnn.matmul]
        owners += [backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn.conv, backends.mkldnn.rnn]
        for number, owner in enumerate(owners):
            settings.append(attribute(owner, "fp32_precision")._replace(name=f"torch precision {number}"))
    else:
        settings += [attribute(backends.cudnn, "allow_tf32"), attribute(backends.cuda.matmul, "allow_tf32")]
    if torch.cuda.is_initialized():
        settings.append(_Setting("torch cuda device", torch.cuda.current_device, torch.cuda.set_device))
    return settings


@contextmanager
def _around_imports(names: Sequence[str], around: Callable[[str], AbstractContextManager[None]]) -> Iterator[None]:
    """Enters ``around`` of the name of each of these modules while it is imported inside the block."""
    if not names:
        yield
        return
    finder = _Watch(names, around)
    sys.meta_path.insert(0, finder)  # type: ignore[arg-type]
    try:
        yield
    finally:
        with suppress(ValueError):
            sys.meta_path.remove(finder)  # type: ignore[arg-type]


class _Watch:
    """A finder of modules that finds nothing itself, but wraps the execution of those in ``names``."""

    def __init__(self, names: Sequence[str], around: Callable[[str], AbstractContextManager[None]]) -> None:
        self._names = set(names)
        self._around = around

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name not in self._names:
            return None
        self._names.discard(name)
        others = (each.find_spec(name, path, target) for each in sys.meta_path if each is not self)
        specification = next((each for each in others if each is not None), None)
        if specification is not None and hasattr(specification.loader, "exec_module"):
            specification.loader = _WrappedLoader(specification.loader, self._around(name))  # type: ignore[assignment]
        return specification


class _WrappedLoader:
    """The loader of one module, with a context around its execution."""

    def __init__(self, loader: Any, around: AbstractContextManager[None]) -> None:
        self._loader = loader
        self._around = around

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        with self._around:
            self._loader.exec_module(module)
