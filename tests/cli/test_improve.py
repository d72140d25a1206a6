"""What improve and audit hand on."""

import pytest
import torch
from typer.testing import CliRunner

from heldout.cli import app


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
