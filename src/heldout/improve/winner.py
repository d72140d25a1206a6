"""The winner, ready to use: its weights and the lines of Python that train it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from heldout.problem import (
    Problem,
    example_path,
)


def winner_code(document: Mapping[str, Any], problem: Problem) -> str:
    """Returns the few lines of Python that train the winner."""
    method = document["winner"]
    name = problem.path.stem
    example = problem.path == example_path(name)
    recipe = "".join(f", {key}={name}.{key}" for key in problem.recipe if key != "epochs")
    epochs = f"epochs={document['plan']['epochs']}"
    own = [own for own in problem.own_methods if own in method.split("+")]
    names = sorted({part.split("(")[0] for part in method.split("+")} - set(own))
    parts = [f'{name}.methods["{part}"]' if part in own else _called(part) for part in method.split("+")]
    lines = [
        "import heldout",
        f"from heldout.examples import {name}" if example else f"import {name}  # {problem.path.name}",
        *([f"from heldout.methods import {', '.join(names)}"] if names else []),
        "",
        f"method = {' + '.join(parts)}",
        f"fitted = heldout.fit({name}.model, {name}.data(), method, {epochs}{recipe}, seed=0)",
        "# fitted.predict(inputs), fitted.evaluate(data_set), fitted.module",
    ]
    return "\n".join(lines) + "\n"


def _called(part: str) -> str:
    return part if part.endswith(")") else f"{part}()"
