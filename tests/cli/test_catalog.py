"""What list and show print."""

import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from heldout.cli import app
from heldout.methods import available
from heldout.problem import LANGUAGE_METHODS
from tests.cli.test_verbs import heldout, one_line


def test_list_as_json_has_the_documented_form():
    rows = json.loads(heldout("list", "--json").stdout)
    assert len(rows) == 117
    assert {"slug", "title", "rooms", "status", "claims"} <= set(rows[0])
    built = json.loads(heldout("list", "--built", "--json").stdout)
    assert {"useful", "ps-kd", "ghost-batch-norm", "lines", "adanpc"} <= {row["slug"] for row in built}


def test_show_prints_a_card_and_refuses_unknown_systems():
    assert "heldout.weights.lines" in heldout("show", "lines").stdout
    assert json.loads(heldout("show", "awq", "--json").stdout)["slug"] == "awq"
    assert "did you mean" in one_line(heldout("show", "pskd"))


def test_list_is_searched_and_filtered_by_topic():
    rows = json.loads(heldout("list", "--search", "ghost Hoffer", "--json").stdout)
    assert [row["slug"] for row in rows] == ["ghost-batch-norm"]
    rows = json.loads(heldout("list", "--topic", "graphs", "--json").stdout)
    assert {"teddy", "lebed"} <= {row["slug"] for row in rows}
    assert {row["topic"] for row in rows} == {"graphs"}
    assert "there are: " in one_line(heldout("list", "--topic", "nothing"))


def test_methods_are_listed_with_the_comparisons_that_they_have_to_beat():
    rows = {row["name"]: row for row in json.loads(heldout("list", "--methods", "--json").stdout)}
    assert rows["ps_kd"]["of"] == "ps-kd"
    assert rows["ema"]["of"] == ""
    assert rows["sam"]["space"] == {"rho": [0.01, 0.5, "log"]}
    shown = heldout("list", "--methods", "--search", "unequal classes").stdout
    assert "logit_adjustment" in shown
    assert "comparison" in shown
    assert "ps_kd" not in shown


def test_a_card_tells_what_is_searched():
    assert "rho: 0.01 to 0.5, by orders of magnitude" in heldout("show", "sam").stdout
    assert "alpha_T: 0.5, 0.6, 0.7, 0.8, 0.9" in heldout("show", "ps-kd").stdout
    assert "only when asked for" in heldout("show", "deep-ensemble").stdout


def test_piped_output_is_never_cut():
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    done = subprocess.run(
        [sys.executable, "-m", "heldout", "list"], capture_output=True, text=True, env=environment, check=True
    )
    assert "…" not in done.stdout
    assert "with any optimizer." in done.stdout


def test_show_takes_underscores():
    assert "ghost-batch-norm" in heldout("show", "ghost_batch_norm").stdout
    assert "heldout show diversification" in heldout("show", "divdis").stdout


@pytest.mark.parametrize("name", sorted({*available(), *LANGUAGE_METHODS}))
def test_show_tells_of_every_method_that_improve_may_try(name):
    """What it does, what it applies to, which stages it changes, and the paper it is from, where there is one."""
    document = CliRunner().invoke(app, ["show", name, "--json"])
    assert document.exit_code == 0, document.output
    shown = json.loads(document.stdout)
    told, from_paper = shown["told"], shown["arxiv"]
    assert len(told["idea"]) > 30
    assert not {"Args:", "Raises:", "Example:"} & set(told["idea"].split())
    assert ("causal language models" in told["applies to"]) is (name in LANGUAGE_METHODS)
    assert set(told["changes"].split(", ")) <= {"data", "model", "optimizer", "loss", "weights", "predict"}
    assert from_paper or told["source"]
    card = CliRunner().invoke(app, ["show", name]).stdout
    printed = " ".join(card.split())
    for text in told.values():
        assert text in printed
    assert f"--methods {shown.get('name', name)}" in printed


def test_show_tells_nothing_of_methods_where_there_is_none():
    document = json.loads(heldout("show", "scylla", "--json").stdout)
    assert document["told"] == {}
    assert "Applies to" not in heldout("show", "scylla").stdout


def test_what_is_for_texts_alone_is_told_so():
    for name in ("position_offsets", "s3ft"):
        assert json.loads(heldout("show", name, "--json").stdout)["told"]["applies to"].startswith("causal language")
    both = json.loads(heldout("show", "ps_kd", "--json").stdout)["told"]["applies to"]
    assert both.startswith("models and data")
    assert both.endswith("in a form of its own")
