"""What eval hands on."""

import pytest
import torch
from typer.testing import CliRunner

from heldout.cli import app


class ReachedError(Exception):
    """The command has called what it forwards to."""


@pytest.mark.parametrize(("given", "threads"), [([], 1), (["--threads", "2"], 2)])
def test_eval_computes_on_one_thread_unless_told_otherwise(given, threads, monkeypatch):
    def evaluate(name, model, **options):
        raise ReachedError(torch.get_num_threads())

    monkeypatch.setattr("heldout.evals.evaluate", evaluate)
    before = torch.get_num_threads()
    result = CliRunner().invoke(app, ["eval", "scylla", "--model", "anything", *given])
    assert isinstance(result.exception, ReachedError)
    assert result.exception.args == (threads,)
    assert torch.get_num_threads() == before
