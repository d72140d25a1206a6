"""What annotations ask for: the kinds, by values that are of them and values that are not."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from heldout.annotations import kinds_of


class Speaker(Protocol):
    def speak(self) -> str: ...
    def listen(self) -> str: ...


class Called(Protocol):
    def __call__(self) -> str: ...


class Dog:
    """Speaks, and does not listen: a part of a protocol will do."""

    def __init__(self) -> None:
        self.speak = "woof".upper


NAN = float("nan")
CASES = [
    (float, [0.5, 3, np.float32(2.0), torch.tensor(1.0), float("inf")], [NAN, "1", None, torch.zeros(2), np.nan]),
    (int, [3, np.int64(2), torch.tensor(4), -1], [1.5, "1", None, torch.tensor(1.0)]),
    (bool, [True, np.bool_(False)], ["yes", None, 1]),
    (str, ["", "a"], [None, 3]),
    (int | None, [None, 3], ["a", 1.5]),
    (str | float, ["a", 1.0], [None, NAN]),
    (Tensor, [torch.zeros(1)], [None, [1.0], np.zeros(2), "a"]),
    (nn.Module, [nn.Linear(1, 1)], [None, "a", nn.functional.relu]),
    (Callable[[Any], Tensor], [len, nn.ReLU()], [None, "a"]),
    (Sequence[float], [[], (1.0, 2), [NAN], torch.zeros(3), np.zeros(2)],
     [None, 1.0, "ab", [1.0, "a"], torch.tensor(1.0)]),
    (tuple[int, ...], [(1, 2)], [(1, "a"), 3]),
    (tuple[int, str], [(1, "a"), [1, "a"]], [None, (1,), (1, "a", 2), ("a", 1), "ab"]),
    (tuple[float, float], [(1, NAN)], [(1, None)]),
    (Mapping[str, Tensor], [{"a": torch.zeros(1)}, {}], [{"a": 1}, [], None]),
    (Iterable[Any], [[], iter([]), {}], [None, 3, "abc"]),
    (Iterable[int], [[1], (2,), iter("a")], [["a"], (1.5,)]),
    (Speaker, [Dog()], [None, "a", Dog]),
    (Speaker | None, [Dog(), None], ["a"]),
    (Called, [len, Dog], [None, Dog()]),
    (TypeVar("T", int, str), [1, "a"], [None, 1.5]),
    (TypeVar("T", bound=Tensor), [torch.zeros(1)], [None]),
    (Literal["mean", "sum"], ["mean"], ["max", None, 1, []]),
    (torch.utils.data.Dataset, [[1, 2], torch.utils.data.TensorDataset(torch.zeros(2))], [None, 3, "a"]),
    (torch.Generator | None, [None, torch.Generator()], [0, "a"]),
    (dict[str, Any], [{"a": None}], [None, []]),
]  # fmt: skip


@pytest.mark.parametrize(("annotation", "good", "bad"), CASES, ids=[str(annotation) for annotation, _, _ in CASES])
def test_a_kind_holds_of_its_values_and_of_no_others(annotation, good, bad):
    kind = kinds_of({"value": annotation}, {})["value"]
    assert [kind.fault(value) for value in good] == [None] * len(good)
    assert all(kind.fault(value) for value in bad)


def test_nan_and_unknown_literals_are_faults_of_value():
    kinds = kinds_of(
        {"modes": list[Literal["a", "b"]], "rho": float, "mode": Literal["a", "b"], "share": float | None}, {}
    )
    assert kinds["rho"].is_of_value(NAN)
    assert kinds["modes"].is_of_value(["a", "c"])
    assert not kinds["modes"].is_of_value(["a", None])
    assert not kinds["rho"].is_of_value("1")
    assert kinds["share"].is_of_value(NAN)
    assert kinds["mode"].is_of_value("c")
    pair = kinds_of({"pair": tuple[int, str]}, {})["pair"]
    assert pair.is_of_value((1,))
    assert not pair.is_of_value(("a", 1))
    assert not kinds["mode"].is_of_value(None)


def test_annotations_that_say_nothing_are_passed_over():
    assert kinds_of({"a": Any, "b": object, "c": TypeVar("T"), "d": "OnlyForCheckers", "return": int}, {}) == {}


def test_annotations_as_text_are_looked_up_where_the_function_was_written():
    assert kinds_of({"x": "Mine"}, {"Mine": int})["x"].words == "an integer"
    assert (
        kinds_of({"x": "Sequence[float] | None"}, {"Sequence": Sequence})["x"].words == "a sequence of numbers or None"
    )
