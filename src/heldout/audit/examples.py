"""Single examples on the page: as a picture, a row of features, or a text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from heldout.audit.work import Audit
from heldout.data import gather, split_target
from heldout.problem import Texts
from heldout.report import data_uri, number

SHOWN = 12  # worst examples of a set
FEATURES = 5  # of a row, the most unusual ones
TEXT = 280  # characters


class Viewer:
    """Shows examples of data sets that are alike; what is unusual in a row is told against the training set.

    Args:
        train: the training set.
        reference: how many of its examples tell what is usual.

    Example:
        >>> rows = torch.utils.data.TensorDataset(torch.tensor([[0.0, 1], [2, 1], [1, 1]]), torch.tensor([0, 1, 0]))
        >>> Viewer(rows).show(rows, 1)
        {'kind': 'row', 'shown': 'feature 0 = 2 (+1.2 sd)'}
    """

    def __init__(self, train: Any, reference: int = 1000) -> None:
        inputs, _ = gather(train, torch.arange(min(len(train), reference)))
        self._mean = self._deviation = None
        if isinstance(inputs, Tensor) and inputs.is_floating_point() and inputs.ndim == 2:
            self._mean, self._deviation = inputs.double().mean(0), inputs.double().std(0, correction=0)

    def show(self, dataset: Any, index: int) -> dict[str, str]:
        """Returns ``{"kind": "picture" | "row" | "text", "shown"}`` of one example; "shown" is a picture's address."""
        if isinstance(dataset, Texts) and not dataset.packed:
            return {"kind": "text", "shown": _clipped(_written(dataset.rows[index]))}
        example = dataset[index]
        if text := _text(example):
            return {"kind": "text", "shown": text}
        inputs = split_target(example)[0]
        if isinstance(inputs, Tensor) and inputs.is_floating_point():
            if inputs.ndim == 2 or (inputs.ndim == 3 and inputs.shape[0] in (1, 3)):
                return {"kind": "picture", "shown": data_uri(inputs)}
            if inputs.ndim == 1 and self._mean is not None:
                return {"kind": "row", "shown": self._unusual(inputs.double())}
        return {"kind": "text", "shown": _clipped(_numbers(inputs))}

    def _unusual(self, row: Tensor) -> str:
        mean, deviation = self._mean, self._deviation
        assert mean is not None
        assert deviation is not None
        away = torch.where(deviation > 0, (row - mean) / deviation, 0.0)
        chosen = [i for i in away.abs().argsort(descending=True, stable=True)[:FEATURES].tolist() if away[i] != 0]
        return "; ".join(
            f"feature {i} = {number(float(row[i]), 3)} ({number(float(away[i]), 2, signed=True)} sd)" for i in chosen
        )


def _text(example: Any) -> str:
    """The texts of an example, where it holds any."""
    parts = example.values() if isinstance(example, Mapping) else example if isinstance(example, tuple | list) else ()
    found = [part for part in parts if isinstance(part, str)]
    found += [text for part in parts if isinstance(part, Mapping) for text in part.values() if isinstance(text, str)]
    return _clipped(" | ".join(found))


def _numbers(inputs: Any) -> str:
    if isinstance(inputs, Mapping):
        return "; ".join(f"{name}: {_numbers(value)}" for name, value in inputs.items())
    if isinstance(inputs, tuple | list):
        return "; ".join(map(_numbers, inputs))
    values = torch.as_tensor(inputs).flatten()[:64].tolist()
    return " ".join(number(value, 3) if isinstance(value, float) else str(value) for value in values)


def _clipped(text: str) -> str:
    return text if len(text) <= TEXT else text[: TEXT - 1] + "…"


def worst_examples(work: Audit) -> None:
    """Writes the examples with the highest loss of the given test set and of the worst shift."""
    viewer = Viewer(work.problem.splits.train)
    found: dict[str, list[dict[str, Any]]] = {}
    for name in work.looked_at():
        outputs, targets = work.of(name)
        losses = work.losses(name)
        rows = []
        for index in losses.argsort(descending=True, stable=True)[:SHOWN].tolist():
            if work.problem.task == "classification" and int(outputs[index].argmax()) == int(targets[index]):
                continue  # right, if hardly
            said = _said(outputs[index], targets[index])
            if work.problem.kind.name == "language":
                said = _tokens_said(outputs[index], targets[index])
            row = {"index": index, "loss": float(losses[index]), **said}
            rows.append({**row, **viewer.show(work.problem.splits.test[name], index)})
        found[name] = rows
    work.document["worst"] = found


def shown_suspects(work: Audit) -> list[dict[str, Any]]:
    """Returns the training examples whose labels are suspicious, the first ones of them as the page shows them."""
    document, train = work.document, work.problem.splits.train
    viewer = Viewer(train)
    rows = zip(document["suspects"], document["suspect_labels"], document["suspect_margins"], strict=True)
    return [
        {"index": index, "label": label, "margin": margin, **viewer.show(train, index)}
        for index, label, margin in list(rows)[: 2 * SHOWN]
    ]


def _tokens_said(output: Tensor, target: Tensor) -> dict[str, Any]:
    """How many tokens count, and how many of them are the likeliest ones."""
    right, count = int(output[1]), int(target[0])
    return {"target": f"{count} tokens", "predicted": f"{right} of them likeliest", "confidence": None}


def _written(row: Any) -> str:
    """A row of text as it is read, parts of it divided."""
    if isinstance(row, Mapping) and row.get("messages") is not None:
        return " | ".join(f"{message['role']}: {message['content']}" for message in row["messages"])
    parts = row.values() if isinstance(row, Mapping) else [row] if isinstance(row, str) else row
    return " | ".join(part for part in parts if isinstance(part, str))


def _said(output: Tensor, target: Tensor) -> dict[str, Any]:
    """Target, prediction and (for classes) its probability."""
    if not target.is_floating_point():
        probs = output.double().softmax(0)
        return {"target": int(target), "predicted": int(probs.argmax()), "confidence": float(probs.max())}
    pair = [value.flatten()[:4].tolist() for value in (target, output)]
    told = [values[0] if len(values) == 1 else values for values in pair]
    return {"target": told[0], "predicted": told[1], "confidence": None}
