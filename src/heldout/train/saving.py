"""A trained model on disk with everything that a Method put around it: safetensors and JSON, never pickles.

Rooms that only saving needs are loaded when something is saved, so that ``fit`` alone stays light.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from heldout.data import gather
from heldout.errors import checked
from heldout.method import forward
from heldout.nn import inputs_for, structure_of
from heldout.train.supervised import Fitted

FORMAT = 1
MODULE, PREDICTOR, RECIPE, EXPORTED = "module.safetensors", "predictor.safetensors", "recipe.json", "module.pt2"


@checked
def save(
    fitted: Fitted,
    folder: str | Path,
    about: Mapping[str, Any] | None = None,
    texts: Mapping[str, str] | None = None,
    *,
    export: bool = False,
) -> dict[str, Any]:
    """Writes a trained model whole to a folder, which it replaces, and returns what ``recipe.json`` says.

    ``module.safetensors`` holds the weights; ``predictor.safetensors`` what the predict stage needs (a memory,
    supports, learned losses), in the state that it is in; ``recipe.json`` everything else. ``heldout.load`` reads it.
    Also a method of what ``heldout.fit`` returns, ``fitted.save(folder)``.

    Args:
        fitted: what ``heldout.fit`` or an engine's ``fitted()`` returned.
        folder: a folder of an earlier ``save``, an empty one, or a new one.
        about: further entries of ``recipe.json``: ``{"method": "sam(rho=0.1)"}``, say.
        texts: further files by name.
        export: write ``module.pt2`` by ``torch.export``, too; ``recipe.json`` says why not, where that is not possible.

    Raises:
        ValueError: the folder holds something else, or ``about`` something that is not JSON.

    Example:
        >>> import heldout
        >>> data = (torch.randn(32, 2), torch.arange(32) % 2)
        >>> fitted = heldout.fit(lambda: nn.Linear(2, 2), data, heldout.methods.t3a(), epochs=1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     recipe = save(fitted, f"{folder}/mine", {"method": "t3a"})
        ...     again = heldout.load(f"{folder}/mine", lambda: nn.Linear(2, 2))
        >>> torch.equal(again.predict(data[0]), fitted.predict(data[0]))
        True
    """
    from heldout.study import write_atomically
    from heldout.weights import save_checkpoint

    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / RECIPE).is_file())):
        raise ValueError(f"folder must be a new one or that of an earlier save, and {folder} holds something else")
    recipe, tensors = _recipe(fitted)
    recipe |= dict(about or {})
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        save_checkpoint(fitted.module, new / MODULE)
        if tensors:
            save_checkpoint(tensors, new / PREDICTOR)
        if export:
            reason = why_not_exported(fitted, new / EXPORTED)
            recipe["export"] = {"file": None if reason else EXPORTED, "reason": reason}
        for name, text in (texts or {}).items():
            write_atomically(new / name, text)
        try:
            write_atomically(new / RECIPE, json.dumps(recipe, indent=1))
        except TypeError as error:
            raise ValueError(f"about must hold what JSON does: {error}") from None
        new.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        new.rename(folder)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    return recipe


class Saved(NamedTuple):
    """What a folder of ``save`` holds.

    Attributes:
        recipe: what ``recipe.json`` says.
        weights: of the module, by name.
        tensors: of the predictor, by name; none where it needs none.

    Example:
        >>> saved = Saved({"format": FORMAT, "task": "classification"}, {"weight": torch.zeros(2, 3)}, tensors={})
        >>> saved.weights["weight"].shape
        torch.Size([2, 3])
    """

    recipe: dict[str, Any]
    weights: dict[str, Tensor]
    tensors: dict[str, Tensor]


@checked
def read_saved(folder: str | Path) -> Saved:
    """Returns what ``save`` wrote, from JSON and safetensors; no code is run. ``heldout.load`` makes a model of it.

    Raises:
        ValueError: the folder holds no such model, or a file of it is damaged.

    Example:
        >>> import heldout
        >>> fitted = heldout.fit(nn.Linear(2, 2), (torch.randn(8, 2), torch.arange(8) % 2), epochs=1, seed=3)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = save(fitted, f"{folder}/mine")
        ...     saved = read_saved(f"{folder}/mine")
        >>> saved.recipe["seed"], torch.equal(saved.weights["weight"], fitted.module.weight)
        (3, True)
    """
    from heldout.weights import load_checkpoint

    folder = Path(folder)
    file = folder / RECIPE
    if not file.is_file():
        raise ValueError(f"folder must be one that heldout.save or improve wrote, and {folder} has no {RECIPE}")
    try:
        recipe = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is no JSON: {error}") from None
    told = recipe.get("format") if isinstance(recipe, dict) else None
    if told != FORMAT:
        raise ValueError(f"{file} must be of format {FORMAT}, got {told!r}")
    try:
        weights = load_checkpoint(folder / MODULE)
        tensors = load_checkpoint(folder / PREDICTOR) if (folder / PREDICTOR).is_file() else {}
    except OSError as error:
        raise ValueError(f"{folder} is not whole: {error}") from error
    return Saved(recipe, dict(weights), dict(tensors))


def _recipe(fitted: Fitted) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What is told of a trained model in JSON, and the tensors of its predictor."""
    import heldout
    from heldout.adapt import answers_of, flattened, kept_of, note_on

    run, predictor = fitted.run, fitted.predictor
    kept, tensors, state = kept_of(predictor, run), {}, None
    if kept is not None:
        tensors = kept.tensors
    else:
        answers = answers_of(predictor, run)  # by which one that is made again is known
        tensors = {} if answers is None else {"answers": answers}
        if callable(getattr(predictor, "state_dict", None)):
            state = flattened(predictor.state_dict(), "state", tensors)  # type: ignore[attr-defined]
    return {
        "format": FORMAT,
        "versions": {"heldout": heldout.__version__, "torch": torch.__version__},
        "task": run.task,
        "num_classes": run.num_classes,
        "loss": getattr(run.objective, "__name__", type(run.objective).__name__),
        "seed": run.seed,
        "epochs": run.epochs,
        "batch_size": run.batch_size,
        "structure": structure_of(fitted.module),
        "predictor": None if kept is None else kept.settings,
        "predictor_state": state,
        "note": note_on(predictor, fitted.module),
    }, tensors


class _Plain(nn.Module):
    """A model as a function of its inputs alone, with one tensor for an answer."""

    def __init__(self, module: nn.Module, names: list[str] | None) -> None:
        super().__init__()
        self.module, self.names = module, names

    def forward(self, *inputs: Any) -> Tensor:
        return forward(self.module, inputs if self.names is None else dict(zip(self.names, inputs, strict=True)))


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keeps what a failing export prints and logs (graphs of hundreds of lines) off the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


@checked
def why_not_exported(fitted: Fitted, file: str | Path) -> str:
    """Writes the model by ``torch.export`` with batches of any size, and returns "", or why that was not possible.

    The program takes the model's inputs in order (those of dicts in the order of an example) and returns the outputs.
    It must answer a few training examples, and one of them, like the model; else no file is left.

    Args:
        fitted: a trained model whose predictor is the module itself.
        file: whose name ends in ``.pt2``.
    """
    if fitted.predictor is not fitted.module:
        return "it has a test-time stage, which an exported module would lack"
    train: Any = fitted.run.splits.train
    inputs, _ = gather(train, torch.arange(min(3, len(train))))
    inputs = inputs_for(fitted.module, inputs)
    names = list(inputs) if isinstance(inputs, Mapping) else None
    given = tuple(inputs.values()) if isinstance(inputs, Mapping) else inputs
    given = given if isinstance(given, tuple) else (given,)
    plain = _Plain(fitted.module, names).eval()
    try:
        if not all(isinstance(part, Tensor) for part in given):
            raise TypeError("its inputs are not tensors")
        batch = torch.export.Dim("batch", min=1)
        with torch.no_grad(), _silent():
            program = torch.export.export(plain, given, dynamic_shapes=(tuple({0: batch} for _ in given),))
        torch.export.save(program, file)
        answers = torch.export.load(file).module()
        for some in (given, tuple(part[:1] for part in given)):
            with torch.no_grad():
                if not torch.allclose(answers(*some), plain(*some), rtol=1e-4, atol=1e-5, equal_nan=True):
                    raise ValueError("the exported program answers otherwise")
    except Exception as error:  # whatever the tracer trips over in a user's model
        Path(file).unlink(missing_ok=True)
        said = next(iter(str(error).strip().splitlines()), "")
        return f"torch.export cannot take it: {type(error).__name__}: {said}"[:300]
    return ""


Fitted.save = save  # type: ignore[attr-defined]
