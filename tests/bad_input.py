"""Bad input for every public callable: calls from the examples of the docstrings, with one argument corrupted.

A profile hook notes the arguments with which an example enters public functions and methods, itself or through a
library (``module(x)`` enters forward); what heldout calls in its turn is not noted, for that depends on what is cached.
``bad_input_calls.py`` has the calls of what no example can show. What is a corruption follows from the value and the
annotation: see ``corruptions``. One is *judged* where the argument is wrong whatever the function does (NaN, another
kind, a label that is no integer ...); others (0, an extra dimension) may be right, so that only an error that names
nothing, or NaN in the answer, is held against the function.

The same calls are judged on every machine: nothing is left out for want of time. The limit on one call is of processor
time, and far from what any needs.
"""

import copy
import dataclasses
import doctest
import importlib
import inspect
import io
import math
import os
import pkgutil
import random
import re
import signal
import sys
import tempfile
import typing
import warnings
from collections.abc import Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import heldout
from heldout.study import StudyError
from tests import bad_input_calls

NAN, INF = math.nan, math.inf
LABELS = re.compile(r"(^|_)(labels?|targets?|y|classes|index|indices|positions?|ids|groups|votes|used|answers)$")
NOT_NEGATIVE = re.compile(
    r"(^|_)(lr|rho|temperature|tau|eps|epsilon|sigma|std|decay|fraction|share|probability|dropout|smoothing|momentum)$"
)
UP_TO_ONE = re.compile(r"(^|_)(fraction|share|probability|dropout|smoothing|momentum)$")
SIGNED = re.compile(r"(^|_)(dim|axis|seed|layer|start|shift|offset|degrees|angle|ignore_index|depth)$")
USERS_ERRORS = (ValueError, TypeError, StudyError)
LIMIT = 10.0  # seconds of processor time for one call
WAIT = 120.0  # seconds by the clock
HELDOUT = str(Path(heldout.__file__).parent)
CALLS = bad_input_calls.__file__
WRAPPERS = {"refuse_then_call", "outside", "predicted"}  # of ``checked``, and of test-time adapters


class Call(NamedTuple):
    """A call that an example makes. ``self`` is among the arguments of a method."""

    label: str
    name: str
    function: Any
    arguments: dict[str, Any]


class Corruption(NamedTuple):
    kind: str
    value: Any
    judged: bool


class Outcome(NamedTuple):
    """What a corrupted call did: named, obscure, silent, nan, slow, or fine."""

    verdict: str
    label: str
    argument: str
    kind: str
    said: str


class _TooSlow(BaseException):
    pass


def modules_of(room):
    module = importlib.import_module(f"heldout.{room}")
    found = [module]
    for each in pkgutil.walk_packages(getattr(module, "__path__", []), module.__name__ + "."):
        try:
            found.append(importlib.import_module(each.name))
        except ImportError:  # a library of an extra that is not installed
            continue
    return found


def public(room):
    """name -> object of a room."""
    module = importlib.import_module(f"heldout.{room}")
    own = [name for name, each in vars(module).items() if getattr(each, "__module__", None) == module.__name__]
    names = getattr(module, "__all__", [name for name in own if not name.startswith("_")])
    return {name: getattr(module, name) for name in names}


def codes(room):
    """Code object -> [(label, public name, what to call)] for the public functions and methods of a room."""
    found = {}

    def add(bare, *target):
        if callable(bare) and (code := getattr(inspect.unwrap(bare), "__code__", None)) is not None:
            found.setdefault(code, []).append(target)

    for name, each in public(room).items():
        if not inspect.isclass(each):
            add(each, f"{room}.{name}", name, each)
            continue
        add(each.__init__, f"{room}.{name}", name, each)
        for method, member in vars(each).items():
            if inspect.isfunction(member) and (not method.startswith("_") or method == "__call__"):
                add(member, f"{room}.{name}.{method}", name, member)
            elif isinstance(member, classmethod) and not method.startswith("_"):
                add(member.__func__, f"{room}.{name}.{method}", name, getattr(each, method))
    return found


def recorded(room):
    """label -> the first call that an example makes, or a function of ``bad_input_calls`` with the room's name."""
    targets, calls = codes(room), {}

    def note(frame, event, _):
        if event != "call" or frame.f_code not in targets or not _from_an_example(frame):
            return
        own = type(frame.f_locals.get("self"))
        found = targets[frame.f_code]
        label, name, function = next((each for each in found if each[2] is own), found[0])
        if (inspect.isclass(function) and function is not own) or label in calls:
            return
        sys.setprofile(None)
        calls[label] = Call(label, name, function, {k: copied(v) for k, v in frame.f_locals.items()})
        sys.setprofile(note)

    def watched(work, *arguments, **options):
        seed()
        sys.setprofile(note)
        try:
            work(*arguments, **options)
        finally:
            sys.setprofile(None)

    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    with quiet():
        for module in modules_of(room):
            for test in doctest.DocTestFinder(exclude_empty=True).find(module):
                runner = doctest.DocTestRunner(verbose=False, optionflags=flags)
                watched(runner.run, test, out=lambda text: None, clear_globs=True)
        for work in bad_input_calls.CALLS.get(room, ()):
            watched(work)
    return calls


def _from_an_example(frame):
    """Whether nothing of heldout lies between a call and the example."""
    above = frame.f_back
    while above is not None:
        file = above.f_code.co_filename
        if file.startswith("<doctest") or file == CALLS:
            return True
        generated = file == "<string>" and above.f_code.co_name == "__init__"  # of a dataclass, before __post_init__
        if (file.startswith(HELDOUT) and above.f_code.co_name not in WRAPPERS) or generated:
            return False
        above = above.f_back
    return False


def seed():
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    random.seed(0)


def needs_no_call(each):
    """Whether a public name takes no arguments of one's own: a value, a record of results, nothing to pass."""
    if not callable(each) or typing.get_origin(each) is not None:
        return True
    if inspect.isclass(each):
        record = dataclasses.is_dataclass(each) or issubclass(each, tuple | BaseException)
        return record or getattr(each, "_is_protocol", False) or typing.is_typeddict(each)
    return not inspect.signature(each).parameters


def not_covered(room, calls):
    """The public names of a room, defined in it, that take arguments, and that no example calls."""
    covered = {id(inspect.unwrap(public(room)[call.name])) for call in calls.values()}
    return {
        name
        for name, each in public(room).items()
        if id(inspect.unwrap(each) if callable(each) else each) not in covered
        and not needs_no_call(each)
        and each.__module__.startswith(f"heldout.{room}")
    }


def copied(value):
    if isinstance(value, torch.Generator):
        twin = torch.Generator(device=value.device)
        twin.set_state(value.get_state())
        return twin
    try:
        return copy.deepcopy(value)
    except Exception:
        return value


@contextmanager
def quiet():
    """Nothing is printed or left behind: an empty working directory, no warnings."""
    here = os.getcwd()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.chdir(folder)
        try:
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                yield
        finally:
            os.chdir(here)


def called(function, arguments):
    """Calls with arguments by name, the variable ones spread."""
    bare = function.__init__ if inspect.isclass(function) else function
    positional, named = [], {}
    for parameter in inspect.signature(inspect.unwrap(bare)).parameters.values():
        if parameter.name not in arguments or (inspect.isclass(function) and parameter.name == "self"):
            continue
        value = arguments[parameter.name]
        if parameter.kind is parameter.VAR_POSITIONAL:
            positional += value
        elif parameter.kind is parameter.VAR_KEYWORD:
            named |= value
        elif parameter.kind is parameter.KEYWORD_ONLY:
            named[parameter.name] = value
        else:
            positional.append(value)
    result = function(*positional, **named)
    return list(zip(range(3), result, strict=False)) if inspect.isgenerator(result) else result


def timed(function, arguments):
    """The result of a call that takes no longer than the limit."""

    def stop(*_):
        raise _TooSlow

    clocks = {signal.SIGPROF: (signal.ITIMER_PROF, LIMIT), signal.SIGALRM: (signal.ITIMER_REAL, WAIT)}
    before = {number: signal.signal(number, stop) for number in clocks}
    try:
        for timer, seconds in clocks.values():
            signal.setitimer(timer, seconds)
        seed()
        return called(function, arguments)
    finally:
        for number, (timer, _) in clocks.items():
            signal.setitimer(timer, 0)
            signal.signal(number, before[number])


def corruptions(name, value, parameter, peers):
    """What is wrong for an argument, by the kind of its value and by its annotation."""
    annotation = "" if parameter.annotation is parameter.empty else str(parameter.annotation)
    anything = annotation in ("", "Any", "object") or annotation.endswith("| Any")
    optional = "None" in annotation or parameter.default is None
    wrong_kind = [] if anything else [] if optional else [Corruption("None", None, True)]
    other = [] if anything else [Corruption("an object", object(), True)]
    anything_in_it = re.search(r"Sequence\[(Any|Hashable|object)\]", annotation) is not None
    label = LABELS.search(name) is not None and not anything_in_it
    if isinstance(value, bool):
        return [*wrong_kind, *other]
    if isinstance(value, int) and "float" not in annotation:
        return [
            *wrong_kind, *other,
            Corruption("text", "text", "str" not in annotation and not anything),
            Corruption("1.5", 1.5, not anything and "float" not in annotation),
            Corruption("-1", -1, not SIGNED.search(name) and not anything), Corruption("0", 0, False),
        ]  # fmt: skip
    if isinstance(value, int | float):
        return [
            *wrong_kind, *other, Corruption("NaN", NAN, not anything), Corruption("inf", INF, False),
            Corruption("text", "text", "str" not in annotation and "Literal" not in annotation and not anything),
            Corruption("-1", -1.0, NOT_NEGATIVE.search(name) is not None),
            Corruption("2", 2.0, UP_TO_ONE.search(name) is not None),
        ]  # fmt: skip
    if isinstance(value, str):
        return [*wrong_kind, *other, Corruption("an unknown word", "no such", "Literal" in annotation)]
    if isinstance(value, nn.Module) or (callable(value) and not isinstance(value, type)):
        return [*wrong_kind, *other, *([] if anything else [Corruption("text", "text", "str" not in annotation)])]
    if isinstance(value, Tensor | np.ndarray) and value.ndim and len(value):
        return [*wrong_kind, *other, *_of_array(name, value, label, peers)]
    if isinstance(value, list | tuple) and value:
        return [*wrong_kind, *other, *_of_sequence(name, value, label, peers, anything_in_it)]
    if isinstance(value, Mapping):
        return [*wrong_kind, *other, Corruption("empty", type(value)() if isinstance(value, dict) else {}, False)]
    return [*wrong_kind, *other]


def _of_array(name, value, label, peers):
    tensor = isinstance(value, Tensor)
    found = [Corruption("empty", value[:0], False), Corruption("one more dimension", value[None], False)]
    first = (0,) * value.ndim

    def put(entry, twin=None):
        twin = (value.detach().clone() if tensor else value.copy()) if twin is None else twin
        twin[first] = entry
        return twin

    kind = "f" if (value.is_floating_point() if tensor else value.dtype.kind == "f") else "i"
    if kind == "f":
        found += [Corruption("NaN", put(NAN), True), Corruption("inf", put(INF), False)]
    elif value.dtype in (torch.int32, torch.int64, np.int32, np.int64):
        classes = any(isinstance(peer, Tensor | np.ndarray) and peer.ndim == 2 for peer in peers.values())
        found += [
            Corruption("a label of -1", put(-1), label), Corruption("a label of 10**6", put(10**6), label and classes),
            Corruption("labels that are no integers", (value.float() if tensor else value.astype(float)) + 0.5, label),
            Corruption("one class", value * 0, False),
        ]  # fmt: skip
    if any(key != name and _length(peer) == len(value) for key, peer in peers.items()) and len(value) > 1:
        found.append(Corruption("one entry less", value[:-1], label))
    return found


def _of_sequence(name, value, label, peers, anything_in_it):
    kind = type(value) if type(value) in (list, tuple) else list
    found = [Corruption("empty", kind(), False)]
    numbers = all(isinstance(entry, int | float) and not isinstance(entry, bool) for entry in value)
    if numbers and any(isinstance(entry, float) for entry in value):
        found.append(Corruption("NaN", kind([NAN, *value[1:]]), True))
    if numbers:
        found.append(Corruption("text in it", kind(["text", *value[1:]]), not anything_in_it))
        if label and all(isinstance(entry, int) for entry in value):
            found.append(Corruption("a label of -1", kind([-1, *value[1:]]), True))
    elif all(isinstance(entry, Tensor) and entry.is_floating_point() for entry in value):
        twin = value[0].detach().clone()
        twin[(0,) * twin.ndim] = NAN
        found.append(Corruption("NaN", kind([twin, *value[1:]]), True))
    if not isinstance(value[0], str):
        found.append(Corruption("an object in it", kind([object(), *value[1:]]), False))
    if any(key != name and _length(peer) == len(value) for key, peer in peers.items()) and len(value) > 1:
        found.append(Corruption("one entry less", kind(value[:-1]), label))
    return found


def _length(value):
    sized = isinstance(value, list | tuple | np.ndarray | Tensor)
    return len(value) if sized and getattr(value, "ndim", 1) else None


def numbers_in(value, depth=5):
    """The floating-point numbers of an answer, as tensors."""
    if isinstance(value, float):
        yield torch.tensor(value, dtype=torch.float64)
    elif isinstance(value, Tensor):
        if value.is_floating_point():
            yield value.detach()
    elif isinstance(value, np.ndarray | np.floating):
        if value.dtype.kind == "f":
            yield torch.as_tensor(np.asarray(value, dtype=float))
    elif depth and isinstance(value, Mapping):
        for each in value.values():
            yield from numbers_in(each, depth - 1)
    elif depth and isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for each in list(value)[:20]:
            yield from numbers_in(each, depth - 1)
    elif depth and dataclasses.is_dataclass(value) and not isinstance(value, type):
        for each in dataclasses.fields(value):
            yield from numbers_in(getattr(value, each.name, None), depth - 1)


def is_named(error, *arguments):
    """Whether an error is one for the user and says which argument is wrong, in the singular or the plural."""
    arguments = [*arguments, *("weight" for each in arguments if each == "w")]
    singular = [argument[:-1] if re.search("[^s]s$", argument) else argument for argument in arguments]
    words = "|".join(re.escape(each).replace("_", "[_ ]") for each in singular)
    return isinstance(error, USERS_ERRORS) and re.search(rf"\b({words})(s|es)?\b", str(error)) is not None


def outcomes(call, propagates, judged_only=False):
    """What the callable does with each corruption of each of its arguments; of those that are judged alone if asked."""
    bare = call.function.__init__ if inspect.isclass(call.function) else call.function
    parameters = inspect.signature(inspect.unwrap(bare)).parameters
    arguments = {key: value for key, value in call.arguments.items() if key in parameters}
    with quiet():
        try:
            usual = list(numbers_in(timed(call.function, _copies(arguments))))
        except Exception:  # an example of what is refused
            return
        finite = all(bool(each.isfinite().all()) for each in usual)
        for name, value in arguments.items():
            if name in ("self", "cls") or parameters[name].kind in (inspect.Parameter.VAR_KEYWORD,):
                continue
            peers = {key: each for key, each in arguments.items() if key != "self"}
            for corruption in corruptions(name, value, parameters[name], peers):
                if judged_only and not corruption.judged:
                    continue
                yield _outcome(call, name, arguments, corruption, finite, propagates)


def _documents(each):
    return inspect.getdoc(each) or ""


def _copies(arguments):
    return {key: copied(value) for key, value in arguments.items()}


def _outcome(call, name, arguments, corruption, finite, propagates):
    def outcome(verdict, said=""):
        return Outcome(verdict, call.label, name, corruption.kind, " ".join(str(said).split())[:200])

    try:
        result = timed(call.function, {**_copies(arguments), name: corruption.value})
    except _TooSlow:
        return outcome("slow")
    except Exception as error:
        pair = corruption.kind in ("one entry less", "one more dimension", "empty")  # the fault lies between two
        told = corruption.kind == "an unknown word" and isinstance(error, USERS_ERRORS) and "'no such'" in str(error)
        named = told or is_named(error, name, *(arguments if pair else ()))
        return outcome("named" if named else "obscure", f"{type(error).__name__}: {error}")
    try:
        numbers = [each for each in numbers_in(result) if each.numel()]
    except Exception as error:
        return outcome("obscure", error)
    if finite and any(bool(each.isnan().any()) for each in numbers):
        spread = propagates and corruption.kind in ("NaN", "inf") and not isinstance(corruption.value, float)
        announced = not corruption.judged and "nan" in (_documents(call.function) + _documents(type(result))).lower()
        return outcome("fine" if spread or announced else "nan")
    if corruption.kind == "empty":
        return outcome("silent" if any(each.ndim == 0 for each in numbers) else "fine")
    of_values = corruption.kind == "NaN" and not isinstance(corruption.value, float)
    if not corruption.judged or (of_values and not numbers):
        return outcome("fine")
    return outcome("silent", result)
