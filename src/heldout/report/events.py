"""Logs of what ``improve`` and ``audit`` do: plain events, and thin adapters to TensorBoard and Weights & Biases.

Whoever wants to follow a search or an audit hands over a function of one event. ``event_log`` makes such functions for
the two best-known trackers, where they are installed; any other one takes a few lines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from heldout.errors import ProblemError, check_at_least, check_fields, checked, require

LogKind = Literal["phase", "curve", "run", "gain", "finding", "verdict"]
TRACKERS = ("tensorboard", "wandb")


@dataclass(frozen=True)
class LogEvent:
    """One thing that happened in a search or an audit.

    Args:
        kind: "phase" (what begins, in words), "curve" (one point by step), "run" (the metrics of a finished run),
            "gain" (of a finalist on a test set), "finding" (of an audit) or "verdict", the last event.
        name: what it is about, such as ``"confirm/sam/seed 3"``; parts stand between slashes.
        step: the epoch of a point of a curve.
        values: the numbers by name.
        text: in words.

    Example:
        >>> LogEvent("curve", "training", step=2, values={"loss": 0.5}).values["loss"]
        0.5
    """

    kind: LogKind
    name: str
    step: int | None = None
    values: Mapping[str, float] = field(default_factory=dict)
    text: str = ""

    def __post_init__(self) -> None:
        check_fields(self)
        check_at_least(0, step=self.step)


OnEvent = Callable[[LogEvent], None]


@checked
def ignore(event: LogEvent) -> None:
    """Does nothing with an event.

    Example:
        >>> ignore(LogEvent("phase", "screening"))
    """


@checked
def telling(say: Callable[[str], None], on_event: OnEvent) -> Callable[[str], None]:
    """Returns ``say`` such that each line is an event of the kind "phase", too.

    Example:
        >>> telling(print, ignore)("Timing the baseline")
        Timing the baseline
    """

    def both(text: str) -> None:
        on_event(LogEvent("phase", "phase", text=text))
        say(text)

    return both


@checked
def event_log(tracker: str, folder: str | Path, *, project: str = "heldout") -> OnEvent:
    """Returns a function that writes events to TensorBoard or to Weights & Biases.

    Scalars stand under the event's name; a curve has its epochs as steps. Texts of phases, findings and the verdict go
    to TensorBoard's text page, and to the summary of a W&B run.

    Args:
        tracker: "tensorboard" or "wandb".
        folder: where TensorBoard's files go, and W&B's local ones.
        project: of W&B, which its own environment variables otherwise configure.

    Raises:
        ProblemError: an unknown tracker.
        MissingExtraError: it is not installed; the message is the line that installs it.

    Example:
        >>> event_log("paper", ".")
        Traceback (most recent call last):
        heldout.errors.ProblemError: tracker must be tensorboard or wandb, got 'paper'
    """
    if tracker == "tensorboard":
        return _tensorboard(folder)
    if tracker == "wandb":
        return _wandb(folder, project)
    raise ProblemError(f"tracker must be {' or '.join(TRACKERS)}, got {tracker!r}")


def _tensorboard(folder: str | Path) -> OnEvent:
    require("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder))
    phases = 0

    def log(event: LogEvent) -> None:
        nonlocal phases
        for key, value in event.values.items():
            writer.add_scalar(f"{event.name}/{key}", value, event.step)
        if event.text:
            phases += event.kind == "phase"
            writer.add_text(f"{event.kind}/{event.name}", event.text, phases)
        if event.kind in ("phase", "verdict"):
            writer.flush()

    return log


def _wandb(folder: str | Path, project: str) -> OnEvent:
    require("wandb")
    import wandb

    Path(folder).mkdir(parents=True, exist_ok=True)
    run = wandb.init(project=project, dir=str(folder))
    known: set[str] = set()

    def log(event: LogEvent) -> None:
        values = {f"{event.name}/{key}": value for key, value in event.values.items()}
        if event.step is None:
            run.summary.update(values)
        elif values:
            own_step = f"{event.name}/step"
            for key in values.keys() - known:
                run.define_metric(key, step_metric=own_step)
            known.update(values)
            run.log({**values, own_step: event.step})
        if event.text:
            run.summary.update({f"{event.kind}/{event.name}": event.text})
        if event.kind == "verdict":
            run.finish()

    return log
