"""What the annotations of a function ask of its arguments, as questions that can be put to a value.

Only for ``heldout.errors.checked``. torch and numpy are not imported for this: who has a tensor has imported torch.
"""

from __future__ import annotations

import math
import operator
import reprlib
import sys
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple


class Kind(NamedTuple):
    """What an annotation asks of a value.

    Attributes:
        words: what the value must be: "a number".
        several: what holds several of them, in words: "numbers".
        fault: returns what is wrong with a value in words ("got None"), or None where nothing is.
        is_of_value: whether a fault is one of value (ValueError), not of kind (TypeError).
    """

    words: str
    several: str
    fault: Callable[[Any], str | None]
    is_of_value: Callable[[Any], bool] = lambda value: False


def kinds_of(annotations: Mapping[str, Any], names: Mapping[str, Any]) -> dict[str, Kind]:
    """Returns the kind that each annotation asks for; annotations as text are looked up among ``names``.

    Example:
        >>> kinds_of({"rho": "float"}, {})["rho"].fault("0.05")
        "got '0.05'"
    """
    found = {}
    for name, annotation in annotations.items():
        if isinstance(annotation, str):
            try:
                annotation = eval(annotation, dict(names))
            except Exception:  # a name that only type checkers import
                continue
        if name != "return" and (kind := _kind(annotation)) is not None:
            found[name] = kind
    return found


def short(value: Any) -> str:
    """Returns a value in a few words on one line, for messages."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"a {type(value).__name__} of shape {tuple(value.shape)} and {value.dtype}"
    return " ".join(reprlib.repr(value).split())


def _kind(annotation: Any) -> Kind | None:
    """The kind that an annotation asks for, or None where it says nothing that can be looked at."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if isinstance(annotation, typing.TypeVar):
        members = annotation.__constraints__ or ((annotation.__bound__,) if annotation.__bound__ else ())
        return _union(members) if members else None
    if origin is typing.Annotated:
        return _kind(arguments[0])
    if isinstance(annotation, getattr(typing, "TypeAliasType", ())):
        return _kind(annotation.__value__)  # type: ignore[union-attr]
    if origin is typing.Literal:
        return _literal(arguments)
    if origin in (typing.Union, types.UnionType):
        return _union(arguments)
    if annotation is float:
        return Kind("a number", "numbers", _number_fault, lambda value: isinstance(value, float))
    if annotation is int:
        return _kind_by("an integer", "integers", _is_integer)
    kind = origin if isinstance(origin, type) else annotation
    if not isinstance(kind, type) or kind in (object, Any):
        return None
    if getattr(kind, "_is_protocol", False):
        return _protocol(kind)
    if typing.is_typeddict(kind):
        return _kind_by("a mapping", "mappings", lambda value: isinstance(value, Mapping))
    if kind is Callable:
        return _kind_by("callable", "callables", callable)
    if issubclass(kind, Mapping):
        return _mapping(arguments)
    if kind in (list, Sequence, Collection):
        return _sequence(arguments)
    if kind is tuple and arguments and Ellipsis not in arguments:
        return _row(arguments)
    if kind is tuple:
        return _sequence(arguments[:1])
    if issubclass(kind, Iterable) and kind.__module__ == "collections.abc":
        return _iterable(arguments)
    return _instance(kind)


def _kind_by(words: str, several: str, holds: Callable[[Any], bool]) -> Kind:
    return Kind(words, several, lambda value: None if holds(value) else f"got {short(value)}")


_DUCKS = {
    "Dataset": ("a data set", "data sets", ("__getitem__", "__iter__")),
    "DataLoader": ("a loader of batches", "loaders of batches", ("__iter__",)),
    "Sampler": ("a sampler", "samplers", ("__iter__",)),
    "Optimizer": ("an optimizer", "optimizers", ("step",)),
}


def _instance(kind: type) -> Kind | None:
    """Instances of a class; of classes that are often duck-typed, whatever has their elements."""
    name = kind.__name__
    if kind.__module__.startswith("torch.") and name in _DUCKS:
        words, several, methods = _DUCKS[name]
        return _kind_by(
            words, several, lambda value: any(hasattr(value, each) for each in methods) and not isinstance(value, str)
        )
    if name == "ndarray":  # most functions take what numpy makes an array of
        return _kind_by("an array", "arrays", lambda value: hasattr(value, "__len__") and not isinstance(value, str))
    if name == "Tensor":
        return _kind_by("a tensor", "tensors", lambda value: isinstance(value, kind))
    if name == "Module" and kind.__module__.startswith("torch."):
        return _kind_by("a module (torch.nn.Module)", "modules", lambda value: isinstance(value, kind))
    told = {"str": "text", "bool": "True or False", "NoneType": "None"}.get(name)
    if kind is bool:
        numpy = sys.modules.get("numpy")
        kind = (bool, numpy.bool_) if numpy else bool  # type: ignore[assignment]
    return _kind_by(
        told or f"{_article(name)} {name}", told or f"{name} objects", lambda value: isinstance(value, kind)
    )


def _protocol(kind: type) -> Kind | None:
    """What has one of a protocol's public members at least: a model may lack the method that is not called."""
    own = [vars(base) for base in kind.__mro__ if getattr(base, "_is_protocol", False)]
    members = {name for each in own for name in (*each, *each.get("__annotations__", {}))}
    public = sorted(name for name in members if not name.startswith("_"))
    if public:
        words = f"{_article(kind.__name__)} {kind.__name__} (an object with {', '.join(public)})"
        return _kind_by(words, f"{kind.__name__} objects", lambda value: any(hasattr(value, each) for each in public))
    return _kind_by("callable", "callables", callable) if "__call__" in members else None


def _article(name: str) -> str:
    return "an" if name[0] in "AEIOUaeiou" or name == "LM" else "a"


def _is_integer(value: Any) -> bool:
    if isinstance(value, int):
        return True
    try:
        operator.index(value)
    except Exception:
        return False
    return True


def _number_fault(value: Any) -> str | None:
    if isinstance(value, float | int):
        return "got nan" if value != value else None
    if isinstance(value, str) or not hasattr(type(value), "__float__"):
        return f"got {short(value)}"
    try:
        return "got nan" if math.isnan(value) else None
    except Exception:  # a tensor or an array of several numbers; what holds no number at all
        return f"got {short(value)}"


def _iterable(arguments: tuple[Any, ...]) -> Kind:
    """Something to go through once; what is in it is looked at where that takes nothing away."""
    listed = _sequence(arguments)

    def fault(value: Any) -> str | None:
        if isinstance(value, list | tuple):
            return listed.fault(value)
        return None if hasattr(value, "__iter__") and not isinstance(value, str) else f"got {short(value)}"

    of_what = listed.words.removeprefix("a sequence")
    return Kind("iterable" if not of_what else f"an iterable{of_what}", "iterables", fault, listed.is_of_value)


def _row(arguments: tuple[Any, ...]) -> Kind:
    """As many entries as there are arguments, each of its own kind; NaN among them is for a validator."""
    inner = [_kind(each) for each in arguments]
    words = f"a sequence of {len(arguments)} entries" if len(arguments) != 2 else "a pair"

    def fault(value: Any) -> str | None:
        if isinstance(value, str | bytes | Mapping) or not hasattr(value, "__len__") or getattr(value, "ndim", 1) == 0:
            return f"got {short(value)}"
        if len(value) != len(arguments):
            return f"got {len(value)} entries"
        for position, (kind, entry) in enumerate(zip(inner, value, strict=True)):
            nan = isinstance(entry, float) and entry != entry
            if kind is not None and not nan and (found := kind.fault(entry)) is not None:
                return f"{found} at {position}"
        return None

    def is_of_value(value: Any) -> bool:
        return isinstance(value, list | tuple) and len(value) != len(arguments)

    return Kind(words, f"{words[2:]}s" if len(arguments) == 2 else "sequences", fault, is_of_value)


def _literal(choices: tuple[Any, ...]) -> Kind:
    words = "one of " + ", ".join(map(repr, choices)) if len(choices) > 1 else repr(choices[0])
    allowed = set(choices)

    def fault(value: Any) -> str | None:
        return None if isinstance(value, str | int | None) and value in allowed else f"got {short(value)}"

    return Kind(words, words, fault, lambda value: isinstance(value, str))


def _union(members: tuple[Any, ...]) -> Kind | None:
    optional = type(None) in members
    kinds = [_kind(each) for each in members if each is not type(None)]
    if any(kind is None for kind in kinds):
        return None
    known = [kind for kind in kinds if kind is not None]
    words = " or ".join([*dict.fromkeys(kind.words for kind in known), *(["None"] if optional else [])])
    several = " or ".join(dict.fromkeys(kind.several for kind in known))

    def fault(value: Any) -> str | None:
        if value is None and optional:
            return None
        faults = []
        for kind in known:
            if (found := kind.fault(value)) is None:
                return None
            faults.append(found)
        return faults[0] if len(faults) == 1 else f"got {short(value)}"

    return Kind(words, several, fault, lambda value: any(kind.is_of_value(value) for kind in known))


def _mapping(arguments: tuple[Any, ...]) -> Kind:
    inner = _kind(arguments[1]) if len(arguments) == 2 else None

    def fault(value: Any) -> str | None:
        if not isinstance(value, Mapping):
            return f"got {short(value)}"
        for key, entry in value.items() if inner else ():
            assert inner is not None
            if (found := inner.fault(entry)) is not None:
                return f"{found} at {key!r}"
        return None

    return Kind("a mapping" + (f" to {inner.several}" if inner else ""), "mappings", fault)


def _sequence(arguments: tuple[Any, ...]) -> Kind:
    inner = _kind(arguments[0]) if len(arguments) == 1 else None

    def fault(value: Any) -> str | None:
        if isinstance(value, str | bytes | Mapping) or not hasattr(value, "__len__") or getattr(value, "ndim", 1) == 0:
            return f"got {short(value)}"
        for position, entry in enumerate(value) if inner and isinstance(value, list | tuple) else ():
            assert inner is not None
            nan = isinstance(entry, float) and entry != entry  # among values, that is for a validator
            if not nan and (found := inner.fault(entry)) is not None:
                return f"{found} at {position}"
        return None

    def is_of_value(value: Any) -> bool:
        wrong = [entry for entry in value if inner.fault(entry)] if inner and isinstance(value, list | tuple) else []
        return bool(wrong) and inner is not None and inner.is_of_value(wrong[0])

    return Kind("a sequence" + (f" of {inner.several}" if inner else ""), "sequences", fault, is_of_value)
