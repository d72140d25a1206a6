"""Objects of another process, used by value: what tests see of the program that they test.

Two processes hold one end each. Plain values (numbers, text, containers of them) cross as copies in a format of its
own, which cannot name code; everything else stays where it is and crosses as a number. So a program cannot answer with
an object that claims to be equal to anything: such an object is compared by its plain content, or not at all.

It is loaded by a bare interpreter, so it uses the standard library only.
"""

from __future__ import annotations

import operator
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

_LONGEST = 1 << 24  # bytes of one message
# What a program may take from the standard library and hand to its tests by name: modules that compute, nothing else.
_SHARED = {
    "math", "cmath", "itertools", "functools", "operator", "_operator", "collections", "string", "re", "random",
    "datetime", "decimal", "fractions", "statistics", "heapq", "_heapq", "bisect", "_bisect", "builtins", "_functools",
}  # fmt: skip
_BUILTINS = {
    "abs", "all", "any", "ascii", "bin", "bool", "bytearray", "bytes", "callable", "chr", "complex", "dict", "divmod",
    "enumerate", "filter", "float", "frozenset", "hash", "hex", "int", "iter", "len", "list", "map", "max", "min",
    "next", "object", "oct", "ord", "pow", "print", "range", "repr", "reversed", "round", "set", "slice", "sorted",
    "str", "sum", "tuple", "type", "zip",
}  # fmt: skip
# Values of the standard library that are what they are made of.
_MADE_OF: dict[tuple[str, str], Callable[[Any], tuple[Any, ...]]] = {
    ("fractions", "Fraction"): lambda x: (x.numerator, x.denominator),
    ("decimal", "Decimal"): lambda x: (str(x),),
    ("collections", "deque"): lambda x: (list(x), x.maxlen),
    ("builtins", "range"): lambda x: (x.start, x.stop, x.step),
    ("builtins", "slice"): lambda x: (x.start, x.stop, x.step),
    ("datetime", "date"): lambda x: (x.year, x.month, x.day),
    ("datetime", "time"): lambda x: (x.hour, x.minute, x.second, x.microsecond),
    ("datetime", "datetime"): lambda x: (x.year, x.month, x.day, x.hour, x.minute, x.second, x.microsecond),
    ("datetime", "timedelta"): lambda x: (x.days, x.seconds, x.microseconds),
}
_CONTAINERS: dict[bytes, Any] = {b"l": list, b"t": tuple, b"S": set, b"Z": frozenset}
_PLAIN = (bool, int, float, complex, str, bytes)
_MUTABLE = (list, dict, set, bytearray)
_ONE: dict[str, Any] = {  # operations on one object: what they say cannot depend on what the tests expect
    "str": str, "repr": repr, "bool": bool, "len": len, "iter": iter, "next": next, "hash": hash, "abs": abs,
    "neg": operator.neg, "pos": operator.pos, "invert": operator.invert, "int": int, "float": float, "complex": complex,
    "index": operator.index, "round": round, "reversed": reversed, "getitem": operator.getitem,
    "setitem": operator.setitem, "delitem": operator.delitem,
}  # fmt: skip
_TWO: dict[str, Any] = {
    name: getattr(operator, name if name not in ("and", "or") else name + "_")
    for name in (
        "eq", "ne", "lt", "le", "gt", "ge", "add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and",
        "or", "xor", "lshift", "rshift",
    )
}  # fmt: skip


class ProgramExit(SystemExit):
    """The program asked to end the process of its tests."""


class Peer:
    """One end of the line between a program and its tests.

    Args:
        reads: file descriptor of what the other end says.
        writes: file descriptor of what it is told.
        trusts: the other end may use everything of an object that it was given; else it may call functions, and use
            public attributes of instances of classes that ``__main__`` defines.
    """

    def __init__(self, reads: int, writes: int, *, trusts: bool) -> None:
        self.reads, self.writes, self.trusts = reads, writes, trusts
        self.given: dict[int, Any] = {}
        self.classes: dict[int, type[BaseException]] = {}

    def ask(self, *request: Any) -> Any:
        """Returns what the other end answers; raises what it raised. Meanwhile it answers what the other end asks."""
        self._send(b"?", self._encode(tuple(request)))
        while True:
            kind, body = self._receive()
            if kind == b"?":
                self._serve(body)
                continue
            value = self._decode(memoryview(body), [0])
            if kind == b"!":
                raise value
            return value

    def serve(self) -> None:
        """Answers until the other end is closed."""
        while True:
            try:
                kind, body = self._receive()
            except EOFError:
                return
            if kind == b"?":
                self._serve(body)

    def call(self, target: Proxy, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Returns what the other end's function returns; lists, dicts and sets that it changed are changed here."""
        result, changed = self.ask("call", target, arguments, options)
        for key, now in changed.items():
            before = options[key] if isinstance(key, str) else arguments[key]
            before.clear()
            (before.extend if isinstance(before, list | bytearray) else before.update)(now)
        return result

    def _serve(self, body: bytes) -> None:
        try:
            name, target, *rest = self._decode(memoryview(body), [0])
            answer = b"=", self._encode(self._do(name, target, rest))
        except BaseException as error:
            try:
                answer = b"!", self._encode(error)
            except BaseException:
                answer = b"!", self._encode(RuntimeError("an error that cannot be told"))
        self._send(*answer)

    def _do(self, name: str, target: Any, rest: list[Any]) -> Any:
        if not self.trusts:
            self._check(name, target, rest)
        if name == "call":
            arguments, options = rest
            places = {**dict(enumerate(arguments)), **options}
            before = {key: self._encode(value) for key, value in places.items() if type(value) in _MUTABLE}
            result = target(*arguments, **options)
            return result, {key: places[key] for key, was in before.items() if self._encode(places[key]) != was}
        if name in _TWO:
            return _TWO[name](target, *rest)
        if name in _ONE:
            return _ONE[name](target, *rest)
        if name == "plain":
            return _content(target)
        if name == "isinstance":
            return isinstance(rest[0], target)
        if name == "issubclass":
            return issubclass(rest[0], target)
        if name == "await":
            import asyncio

            return asyncio.run(target)
        access: dict[str, Any] = {"get": getattr, "set": setattr, "del": delattr}
        return access[name](target, *rest)

    def _check(self, name: str, target: Any, rest: list[Any]) -> None:
        """Refuses a program what would reach into the process of its tests."""
        own = type(target).__module__ == "__main__"
        if name == "call" and type(rest[0]) is tuple and type(rest[1]) is dict and callable(target):
            return
        if name in ("get", "set", "del") and own and type(rest[0]) is str and not rest[0].startswith("_"):
            return
        if own and (name in _ONE or name in _TWO or name == "plain"):
            return
        if name in _ONE and hasattr(type(target), "__next__"):
            return
        raise PermissionError(f"a program may not use this of its tests: {name}")

    def _send(self, kind: bytes, body: bytes) -> None:
        if len(body) > _LONGEST:
            too_long = ValueError(f"a value of more than {_LONGEST} bytes")
            if kind == b"?":
                raise too_long
            kind, body = b"!", self._encode(too_long)
        left = memoryview(kind + len(body).to_bytes(4, "big") + body)
        while left:
            left = left[os.write(self.writes, left) :]

    def _receive(self) -> tuple[bytes, bytes]:
        head = self._read(5)
        size = int.from_bytes(head[1:], "big")
        if size > _LONGEST:
            raise EOFError("a message that is too long")
        return head[:1], self._read(size)

    def _read(self, size: int) -> bytes:
        parts = []
        while size:
            part = os.read(self.reads, min(size, 1 << 16))
            if not part:
                raise EOFError("the program ended")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _encode(self, value: Any) -> bytes:
        out: list[bytes] = []
        self._write(value, out)
        return b"".join(out)

    def _write(self, value: Any, out: list[bytes]) -> None:
        kind = type(value)
        if value is None or kind is bool:
            out.append(b"N" if value is None else b"T" if value else b"F")
        elif kind is int:
            _text(b"i", hex(value).encode(), out)
        elif kind is float:
            _text(b"f", value.hex().encode(), out)
        elif kind is complex:
            _text(b"c", f"{value.real.hex()} {value.imag.hex()}".encode(), out)
        elif kind is str:
            _text(b"s", value.encode("utf-8", "surrogatepass"), out)
        elif kind is bytes or kind is bytearray:
            _text(b"b" if kind is bytes else b"B", bytes(value), out)
        elif kind in (list, tuple, set, frozenset):
            tag = next(tag for tag, container in _CONTAINERS.items() if container is kind)
            out.append(tag + len(value).to_bytes(4, "big"))
            for item in value:
                self._write(item, out)
        elif kind is dict:
            out.append(b"d" + len(value).to_bytes(4, "big"))
            for key, item in value.items():
                self._write(key, out)
                self._write(item, out)
        elif (kind.__module__, kind.__qualname__) in _MADE_OF and getattr(value, "tzinfo", None) is None:
            out.append(b"v")
            self._write((kind.__module__, kind.__qualname__, _MADE_OF[kind.__module__, kind.__qualname__](value)), out)
        elif kind is Proxy:
            out.append(b"o")
            self._write(value._number, out)
        elif isinstance(value, BaseException):
            self._write_error(value, out)
        elif isinstance(value, type) and issubclass(value, BaseException):
            self._write_error_class(value, out)
        elif isinstance(value, type(sys)) and value.__name__ in _SHARED:
            out.append(b"m")
            self._write((value.__name__, ""), out)
        elif (found := _shared(value)) is not None:
            out.append(b"m")
            self._write(found, out)
        elif isinstance(value, _PLAIN) and not hasattr(kind, "__members__"):
            self._write(_content(value), out)
        else:
            self.given[id(value)] = value
            base = next((base.__name__ for base in (*_MUTABLE, tuple, frozenset) if isinstance(value, base)), "")
            out.append(b"h")
            self._write((id(value), "coroutine" if kind.__name__ == "coroutine" else base), out)

    def _write_error(self, error: BaseException, out: list[bytes]) -> None:
        self.given[id(error)] = error
        out.append(b"x")
        self._write_error_class(type(error), out)
        plain = [item for item in error.args if item is None or type(item) in _PLAIN]
        arguments = tuple(plain) if len(plain) == len(error.args) else (str(error),)
        self._write((id(error), arguments, str(error)), out)

    def _write_error_class(self, kind: type, out: list[bytes]) -> None:
        builtin = kind.__module__ == "builtins"
        self.given[id(kind)] = kind
        bases = [] if builtin else [base for base in kind.__bases__ if issubclass(base, BaseException)]
        out.append(b"e")
        self._write((0 if builtin else id(kind), kind.__name__, len(bases)), out)
        for base in bases:
            self._write_error_class(base, out)

    def _decode(self, data: memoryview, at: list[int]) -> Any:
        tag = bytes(data[at[0] : at[0] + 1])
        at[0] += 1
        if tag in (b"N", b"T", b"F"):
            return {b"N": None, b"T": True, b"F": False}[tag]
        if tag in (b"i", b"f", b"c", b"s", b"b", b"B"):
            return _parsed(tag, self._bytes(data, at))
        if tag in _CONTAINERS:
            return _CONTAINERS[tag]([self._decode(data, at) for _ in range(self._count(data, at))])
        if tag == b"d":
            return {self._decode(data, at): self._decode(data, at) for _ in range(self._count(data, at))}
        if tag == b"o":
            return self.given[self._decode(data, at)]
        if tag == b"h":
            number, base = self._decode(data, at)
            if base == "coroutine":
                return self._awaited(Proxy(self, number, ""))
            return Proxy(self, number, str(base))
        if tag == b"e":
            return self._error_class(data, at)
        if tag == b"x":
            return self._error(data, at)
        if tag == b"m":
            return _named(*self._decode(data, at))
        if tag == b"v":
            module, name, parts = self._decode(data, at)
            if (module, name) not in _MADE_OF:
                raise ValueError("an unknown kind of value")
            return getattr(__import__(module), name)(*parts)
        raise ValueError("an unknown kind of value")

    async def _awaited(self, coroutine: Proxy) -> Any:
        return self.ask("await", coroutine)

    def _error_class(self, data: memoryview, at: list[int]) -> type[BaseException]:
        if bytes(data[at[0] : at[0] + 1]) == b"e":
            at[0] += 1
        number, name, count = self._decode(data, at)
        bases = tuple(self._error_class(data, at) for _ in range(count))
        if not number:
            import builtins

            found = getattr(builtins, str(name), None)
            if not (isinstance(found, type) and issubclass(found, BaseException)):
                found = RuntimeError
            if not issubclass(found, Exception):  # it would end, or interrupt, the tests
                found = ProgramExit if issubclass(found, SystemExit) else RuntimeError
            return found
        if number not in self.classes:

            def attribute(error: Any, wanted: str) -> Any:
                if wanted.startswith("_"):
                    raise AttributeError(wanted)
                return self.ask("get", Proxy(self, error._number, ""), wanted)

            own = {"__module__": "program", "__getattr__": attribute, "__str__": lambda error: error._said}
            try:
                self.classes[number] = type(str(name), bases or (RuntimeError,), own)
            except TypeError:
                self.classes[number] = type(str(name), bases[:1] or (RuntimeError,), own)
        return self.classes[number]

    def _error(self, data: memoryview, at: list[int]) -> BaseException:
        kind = self._error_class(data, at)
        number, arguments, said = self._decode(data, at)
        try:
            error = kind(*arguments)
        except TypeError:
            error = RuntimeError(f"{kind.__name__}: {said}")
        if kind.__module__ == "program":
            error.__dict__.update(_number=number, _said=str(said))
        return error

    def _bytes(self, data: memoryview, at: list[int]) -> bytes:
        size = self._count(data, at)
        at[0] += size
        return bytes(data[at[0] - size : at[0]])

    def _count(self, data: memoryview, at: list[int]) -> int:
        at[0] += 4
        found = int.from_bytes(data[at[0] - 4 : at[0]], "big")
        if found > len(data):
            raise ValueError("a count beyond the message")
        return found


class Proxy:
    """An object of the other process.

    Of an object that is a list, a dict, a set or a tuple with more to it, comparisons and arithmetic use that plain
    content. Other objects equal what the program says only among themselves: never a plain value.
    """

    __slots__ = ("_base", "_number", "_peer")

    def __init__(self, peer: Peer, number: int, base: str) -> None:
        for name, value in (("_peer", peer), ("_number", number), ("_base", base)):
            object.__setattr__(self, name, value)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        kinds: dict[str, type] = {kind.__name__: kind for kind in (*_MUTABLE, tuple, frozenset)}
        return kinds.get(self._base, Proxy)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._peer.call(self, arguments, options)

    def __getattr__(self, name: str) -> Any:
        return self._peer.ask("get", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._peer.ask("set", self, name, value)

    def __delattr__(self, name: str) -> None:
        self._peer.ask("del", self, name)

    def __contains__(self, value: Any) -> bool:
        return any(item is value or item == value for item in self)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._peer.ask("plain", self)) if self._base else self._peer.ask("iter", self)

    def __next__(self) -> Any:
        return self._peer.ask("next", self)

    def __enter__(self) -> Any:
        return self._peer.ask("get", self, "__enter__")()

    def __exit__(self, *error: Any) -> bool:
        return bool(self._peer.ask("get", self, "__exit__")(None, None, None)) and error[0] is None

    def __instancecheck__(self, value: Any) -> bool:
        return isinstance_of(value, Proxy) and self._peer.ask("isinstance", self, value) is True

    def __subclasscheck__(self, value: Any) -> bool:
        return isinstance_of(value, Proxy) and self._peer.ask("issubclass", self, value) is True


def isinstance_of(value: Any, kind: type) -> bool:
    """Returns whether the class of ``value`` is ``kind``, whatever the value says of itself."""
    return type(value) is kind


def _one(name: str, kind: type | None) -> Callable[..., Any]:
    def operation(self: Proxy, *rest: Any) -> Any:
        value = self._peer.ask(name, self, *rest)
        if kind is not None and type(value) is not kind:
            raise TypeError(f"{name} gave {type(value).__name__}")
        return value

    return operation


def _two(name: str, swapped: bool = False) -> Callable[[Proxy, Any], Any]:
    def operation(self: Proxy, other: Any) -> Any:
        if type(other) is Proxy and not (self._base or other._base):
            value = self._peer.ask(name, self, other)
            return value is True if name in ("eq", "ne") else value
        mine = self._peer.ask("plain", self)
        if type(mine) is Proxy:  # it has no plain content
            return {"eq": False, "ne": True}.get(name, NotImplemented)
        theirs = self._peer.ask("plain", other) if type(other) is Proxy else other
        return _TWO[name](theirs, mine) if swapped else _TWO[name](mine, theirs)

    return operation


for _name in _ONE:
    _kind = {"str": str, "repr": str, "bool": bool, "len": int, "hash": int, "int": int, "float": float}.get(_name)
    if _name not in ("iter", "next"):
        setattr(Proxy, f"__{_name}__", _one(_name, _kind))
for _name in _TWO:
    setattr(Proxy, f"__{_name}__", _two(_name))
    if _name not in ("eq", "ne", "lt", "le", "gt", "ge"):
        setattr(Proxy, f"__r{_name}__", _two(_name, swapped=True))


def _content(value: Any) -> Any:
    """Returns the plain content of a value whose class is, or derives from, a built-in one; else the value."""
    if isinstance(value, bool):
        return bool(value)
    containers: tuple[Any, ...] = (dict, list, tuple, set, frozenset, bytearray)
    for base in containers:
        if isinstance(value, base):
            if base is dict:
                return dict(dict.items(value))
            return base(base.__iter__(value))
    readers: dict[type, Any] = {int: int.__int__, float: float.__float__, str: str.__str__, bytes: bytes.__bytes__}
    for plain, read in readers.items():
        if isinstance(value, plain):
            return read(value)
    return value


def _shared(value: Any) -> tuple[str, str] | None:
    """Where the standard library has a function or class that needs no home here."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if type(module) is not str or type(name) is not str or module not in _SHARED or "." in name or name[:1] == "_":
        return None
    if module == "builtins" and name not in _BUILTINS:
        return None
    return (module, name) if getattr(sys.modules.get(module), name, None) is value else None


def _named(module: str, name: str) -> Any:
    if module not in _SHARED or name[:1] == "_" or (module == "builtins" and name not in _BUILTINS):
        raise ValueError("an unknown name")
    found = __import__(module)
    return getattr(found, name) if name else found


def _text(tag: bytes, body: bytes, out: list[bytes]) -> None:
    out += (tag, len(body).to_bytes(4, "big"), body)


def _parsed(tag: bytes, body: bytes) -> Any:
    if tag == b"i":
        return int(body, 16)
    if tag == b"f":
        return float.fromhex(body.decode())
    if tag == b"c":
        real, imaginary = body.decode().split()
        return complex(float.fromhex(real), float.fromhex(imaginary))
    if tag == b"s":
        return body.decode("utf-8", "surrogatepass")
    return body if tag == b"b" else bytearray(body)
