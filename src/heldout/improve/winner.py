"""What is kept of a winner: the whole predictor, and the lines of Python that train it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from heldout.errors import check_nonempty, checked
from heldout.methods import parse
from heldout.problem import Problem, example_path
from heldout.saved import digest_of
from heldout.train import Fitted, save

FOLDER = "winner"


def write_winner(document: dict[str, Any], problem: Problem, folder: Path) -> None:
    """Trains the winner once more under seed 0, and writes it whole to ``folder/winner``, with ``winner.py``.

    Puts ``kept`` (that folder), ``weights``, ``load`` (the line that loads it), ``code``, ``export`` and, where it
    needs something at test time, a ``note`` into the document.
    """
    method = parse(document["winner"], problem.own_methods)
    rate = document["rates"].get(document["winner"], 1.0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the confirmation runs, so that the weights are those of such a run
    try:
        fitted = problem.fit(method, seed=0, rate=rate)
        scores = _scores(problem, fitted)
    finally:
        torch.set_num_threads(threads)
    kept, name = folder / FOLDER, problem.path.stem
    given = name if problem.path == example_path(name) else str(problem.path)
    document["kept"], document["weights"] = str(kept), str(kept / "module.safetensors")
    document["load"] = f"heldout.load({str(kept)!r}, {given!r})"
    document["code"] = winner_code(document, problem)
    row: Mapping[str, Any] = next((row for row in document["finalists"] if row["method"] == document["winner"]), {})
    about = {
        "method": document["winner"],
        "rate": rate,
        "file": given,
        "file_digest": digest_of(problem.path),
        "data_digest": problem.fingerprint(),
        "kind": problem.kind.name,
        "one_logit": problem.kind.one_logit,
        "metric": document["metric"],
        "scores": scores,
        "reported": {key: row[key] for key in ("validation", "tests") if key in row},
        "environment": document["environment"],
    }
    loads = f"# Without training, the one that was written beside: fitted = {document['load']}\n"
    recipe = save(fitted, kept, about, {"winner.py": document["code"] + loads}, export=True)
    document["export"] = recipe["export"]
    note = recipe["note"]
    document["note"] = f"{document['winner']}: {note[0].lower()}{note[1:]}" if note else ""


def _scores(problem: Problem, fitted: Fitted) -> dict[str, dict[str, float]]:
    """The metric of this very predictor on every validation and test set; its state is as after training."""
    scores = {
        "validation": {name: problem.score(fitted, data) for name, data in problem.validation_sets().items()},
        "test": {name: problem.score(fitted, data) for name, data in problem.splits.test.items()},
    }
    reset = getattr(fitted.predictor, "reset", None)
    if callable(reset):
        reset()
    return scores


@checked
def winner_code(document: Mapping[str, Any], problem: Problem) -> str:
    """Returns the few lines of Python that train the winner.

    Args:
        document: as ``improve`` returns it; "winner" is an expression of Methods.
        problem: that was worked on.

    Example:
        >>> import torch
        >>> from heldout.method import Splits
        >>> splits = Splits((torch.randn(8, 2), torch.arange(8) % 2))
        >>> problem = Problem(Path("mine.py"), lambda: torch.nn.Linear(2, 2), splits, {})
        >>> print(winner_code({"winner": "sam(rho=0.1)", "plan": {"epochs": 10}}, problem))
        import heldout
        import mine  # mine.py
        from heldout.methods import sam
        <BLANKLINE>
        method = sam(rho=0.1)
        fitted = heldout.fit(mine.model, mine.data(), method, epochs=10, seed=0)
        # fitted.predict(inputs), fitted.evaluate(data_set), fitted.module
    """
    check_nonempty(document=document)
    method = document["winner"]
    name = problem.path.stem
    example = problem.path == example_path(name)
    recipe = "".join(f", {key}={name}.{key}" for key in problem.recipe if key not in ("epochs", "optimizer"))
    epochs = f"epochs={document['plan']['epochs']}"
    rate = document.get("rates", {}).get(method, 1.0)
    own = [own for own in problem.own_methods if own in method.split("+")]
    names = sorted({part.split("(")[0] for part in method.split("+")} - set(own))
    parts = [f'{name}.methods["{part}"]' if part in own else _called(part) for part in method.split("+")]
    if "optimizer" in problem.recipe or rate != 1:
        own_optimizer = f"{name}.optimizer" if "optimizer" in problem.recipe else "None"
        scaled = f"heldout.train.scaled_optimizer({own_optimizer}, {rate:g})"
        recipe += f", optimizer={scaled if rate != 1 else own_optimizer}"
    made = f"method = {' + '.join(parts)}"
    if not problem.as_given:  # targets, loss or outputs are put into fit's form
        scaled = f", rate={rate:g}" if rate != 1 else ""
        asked = "".join(f", {name}={value!r}" for name, value in problem.asked.items())
        file = name if example else problem.path.name
        lines = [
            *([f"from heldout.methods import {', '.join(names)}"] if names else []),
            "from heldout.problem import load_problem",
            "",
            f"problem = load_problem({file!r}{asked})  # a {problem.kind.name} problem",
            made.replace(f"{name}.methods", "problem.own_methods"),
            f"fitted = problem.fit(method, seed=0, {epochs}{scaled})",
            "# problem.score(fitted, problem.splits.val), fitted.predict(inputs), fitted.module",
        ]
        return "\n".join(lines) + "\n"
    lines = [
        "import heldout",
        f"from heldout.examples import {name}" if example else f"import {name}  # {problem.path.name}",
        *([f"from heldout.methods import {', '.join(names)}"] if names else []),
        "",
        made,
        f"fitted = heldout.fit({name}.model, {name}.data(), method, {epochs}{recipe}, seed=0)",
        "# fitted.predict(inputs), fitted.evaluate(data_set), fitted.module",
    ]
    return "\n".join(lines) + "\n"


def _called(part: str) -> str:
    return part if part.endswith(")") else f"{part}()"
