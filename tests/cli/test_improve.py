"""What improve and audit hand on."""

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from heldout.cli import app
from heldout.report import ignore


class ReachedError(Exception):
    """The command has called what it forwards to."""


@pytest.mark.parametrize(("given", "threads"), [([], 1), (["--threads", "2"], 2)])
def test_audit_computes_on_one_thread_unless_told_otherwise(given, threads, monkeypatch):
    def examine(file, **options):
        raise ReachedError(torch.get_num_threads())

    monkeypatch.setattr("heldout.audit.audit", examine)
    before = torch.get_num_threads()
    result = CliRunner().invoke(app, ["audit", "digits", *given])
    assert isinstance(result.exception, ReachedError)
    assert result.exception.args == (threads,)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(("given", "threads"), [([], 1), (["--threads", "2"], 2)])
def test_improve_gives_each_process_one_thread_unless_told_otherwise(given, threads, monkeypatch):
    def search(file, **options):
        raise ReachedError(options["threads"])

    monkeypatch.setattr("heldout.improve.improve", search)
    result = CliRunner().invoke(app, ["improve", "digits", *given])
    assert isinstance(result.exception, ReachedError)
    assert result.exception.args == (threads,)


@pytest.mark.parametrize(("verb", "door"), [("audit", "heldout.audit.audit"), ("improve", "heldout.improve.improve")])
@pytest.mark.parametrize(("given", "asked"), [
    ([], (None, None, None)), (["--autocast", "bfloat16"], ("bfloat16", None, None)),
    (["--compile", "--num-workers", "2"], (None, True, 2)), (["--no-compile"], (None, False, None)),
])  # fmt: skip
def test_how_a_run_is_trained_is_handed_on(verb, door, given, asked, monkeypatch):
    def worker(file, **options):
        raise ReachedError(options["autocast"], options["compile"], options["num_workers"])

    monkeypatch.setattr(door, worker)
    result = CliRunner().invoke(app, [verb, "digits", *given])
    assert isinstance(result.exception, ReachedError)
    assert result.exception.args == asked


@pytest.mark.parametrize("given", [["--autocast", "int8"], ["--num-workers", "-1"]])
def test_what_is_no_such_option_ends_before_anything_is_trained(given):
    assert CliRunner().invoke(app, ["improve", "digits", *given]).exit_code == 2


DOCUMENT = {
    "findings": [], "skipped": [], "not_applicable": [], "warnings": [], "suspects": [], "summary": "Nothing.",
    "report": "r.html",
}  # fmt: skip


@pytest.mark.parametrize(("complete", "code"), [(True, 0), (False, 1)])
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_an_audit_with_parts_not_done_ends_with_exit_code_1(complete, code, form, monkeypatch):
    monkeypatch.setattr("heldout.audit.audit", lambda file, **options: {**DOCUMENT, "complete": complete})
    assert CliRunner().invoke(app, ["audit", "digits", *form]).exit_code == code


@pytest.mark.parametrize(("verb", "door"), [("audit", "heldout.audit.audit"), ("improve", "heldout.improve.improve")])
def test_events_go_to_the_tracker_in_the_output_folder(verb, door, monkeypatch, tmp_path):
    def worker(file, **options):
        raise ReachedError(options["on_event"])

    monkeypatch.setattr(door, worker)
    monkeypatch.setattr("heldout.report.event_log", lambda tracker, folder: (tracker, folder))
    asked = CliRunner().invoke(app, [verb, "digits", "--log", "wandb", "--out", str(tmp_path)])
    assert asked.exception.args == (("wandb", tmp_path / "wandb"),)
    usual = CliRunner().invoke(app, [verb, "some/my.py", "--log", "tensorboard"])
    assert usual.exception.args == (("tensorboard", Path(f"heldout-runs/{verb}-my/tensorboard")),)
    assert CliRunner().invoke(app, [verb, "digits"]).exception.args[0] is ignore


def test_an_unknown_tracker_is_bad_input():
    result = CliRunner().invoke(app, ["audit", "digits", "--log", "paper"])
    assert result.exit_code == 2
    assert "tracker must be tensorboard or wandb, got 'paper'" in result.output
