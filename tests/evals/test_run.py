"""Evaluations by command, behind an endpoint and inside inspect-ai."""

from __future__ import annotations

import json
import re
from io import StringIO

import pytest
from rich.console import Console
from scipy.stats import binomtest
from typer.testing import CliRunner

from heldout.cli import app
from heldout.errors import ProblemError
from heldout.evals import ScyllaOptions, VerbalizerOptions, evaluate, language_model, print_eval
from heldout.evals.report import to_html
from heldout.lm import EndpointLM, ScriptedLM, character_tokenizer, tiny_llama


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    tokenizer = character_tokenizer("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,;:'\"?!()[]-\n")
    tiny_llama(tokenizer, dim=16, layers=1, context=512).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def test_the_command_writes_table_json_and_page(folder, tmp_path):
    out = tmp_path / "out"
    command = ["eval", "verbalizer", "--model", str(folder), "--tests", "4", "--max-tokens", "4", "--out", str(out)]
    result = CliRunner().invoke(app, [*command, "--cache", str(tmp_path / "a.db"), "--json"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert json.loads((out / "report.json").read_text()) == document
    page = (out / "report.html").read_text()
    assert "instruction gap" in page
    assert "<svg" in page
    assert "://" not in re.sub(r"http://www\.w3\.org/[\w/.]+", "", page)
    shown = CliRunner().invoke(app, [*command, "--mode", "score"])
    assert shown.exit_code == 0
    assert "instruction gap" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing", "--model", "x"], "unknown evaluation 'nothing'; there are: scylla, verbalizer"),
        (["scylla", "--model", "/nowhere"], "/nowhere is no folder with a transformers model"),
        (["scylla", "--model", "http://x/v1"], "write the model's name after the address"),
        (["verbalizer", "--model", "FOLDER", "--mode", "sing"], "mode must be"),
        (["scylla", "--model", "FOLDER", "--tasks", "chess"], "unknown task 'chess'"),
    ],
)
def test_bad_input_is_told_in_one_line(arguments, message, folder):
    result = CliRunner().invoke(app, ["eval", *[str(folder) if a == "FOLDER" else a for a in arguments]])
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


@pytest.mark.parametrize("config", ['{"model_type": "zzz", "auto_map": {"AutoConfig": "c.C"}}', "{", "{}"])
def test_a_folder_whose_model_cannot_be_loaded_is_told_in_one_line(tmp_path, config):
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "c.py").write_text("raise SystemExit('its code ran')")
    result = CliRunner().invoke(app, ["eval", "scylla", "--model", str(tmp_path)])
    assert result.exit_code == 2
    assert "holds no model that can be loaded" in " ".join(result.output.split())
    assert "Traceback" not in result.output
    assert "its code ran" not in result.output


def test_the_command_line_takes_the_fields_of_the_protocols_record(folder):
    from dataclasses import fields

    for name, record in (("scylla", ScyllaOptions), ("verbalizer", VerbalizerOptions)):
        shown = CliRunner().invoke(app, ["eval", name, "--help"], env={"COLUMNS": "200"}).output
        for field in fields(record):
            assert f"--{field.name.replace('_', '-')}" in shown
            assert field.metadata["help"] in shown


def test_model_text_is_escaped_in_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "heldout.evals.run.language_model", lambda *a, **k: ScriptedLM(lambda p, s: "<script>x</script>")
    )
    document = evaluate("verbalizer", "<b>m</b>", options=VerbalizerOptions(tests=4), out=tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert document["findings"][0]["value"] == 0
    assert "<script>x" not in page
    assert "<b>m" not in page


def test_an_endpoint_is_written_as_address_and_name():
    lm = language_model("http://localhost:1/v1#org/model:7b", budget=1.0, prices=(1.0, 2.0))
    assert isinstance(lm, EndpointLM)
    assert (lm.model, lm.base_url, lm.budget) == ("org/model:7b", "http://localhost:1/v1", 1.0)


def test_further_fields_of_a_request_are_options_of_eval(tmp_path):
    from tests.lm.models.test_endpoint import answer, served

    seen = []

    async def note(number, path, body, request):
        seen.append(body)
        return answer("yes")

    with served(note) as url:
        asked = ["eval", "verbalizer", "--model", f"{url}#m", "--tests", "4", "--out", str(tmp_path), "--budget", "1"]
        asked += ["--prices", "0", "1"]
        extra = ["--extra", '{"max_tokens": null, "max_completion_tokens": 9}']
        result = CliRunner().invoke(app, [*asked, *extra])
        assert result.exit_code == 0, result.output
        assert all("max_tokens" not in body and body["max_completion_tokens"] == 9 for body in seen)
        sent = len(seen)
        result = CliRunner().invoke(app, [*asked, "--extra", '{"max_completion_tokens": 10000000}'])
        assert result.exit_code == 2
        assert "may cost" in result.output
        assert len(seen) == sent > 0
    result = CliRunner().invoke(app, [*asked, "--extra", "[1]"])
    assert result.exit_code == 2
    assert "JSON object" in result.output


def test_a_password_in_the_address_is_told_to_nobody():
    with pytest.raises(ProblemError, match="without user and password") as caught:
        language_model("https://me:hunter2@host/v1#m")
    assert "hunter2" not in str(caught.value)


def off_format(prompts, sampling):
    return "I would rather not say."


@pytest.mark.parametrize("name", ["verbalizer", "scylla"])
def test_answers_off_the_format_are_warned_of_and_no_zero_is_certain(name, tmp_path, monkeypatch):
    monkeypatch.setattr("heldout.evals.run.language_model", lambda *a, **k: ScriptedLM(off_format))
    if name == "scylla":  # the inputs are proposed by the model, the answers are off the format
        monkeypatch.setattr(
            "heldout.evals.run.language_model", lambda *a, **k: ScriptedLM(proposes_but_does_not_answer)
        )
        options = ScyllaOptions(tests=4, tasks=("maximum",))
    else:
        options = VerbalizerOptions(tests=20)
    document = evaluate(name, "scripted", options=options, out=tmp_path)
    assert document["warnings"]
    assert all(text.startswith("100 % of the answers to ") for text in document["warnings"])
    page = (tmp_path / "report.html").read_text()
    assert page.count('class="note"') == len(document["warnings"])
    console = Console(record=True, width=80, file=StringIO())
    print_eval(document, console)
    shown = console.export_text()
    assert "100 % of the answers" in shown
    assert "0 [0, 0]" not in shown
    assert "0 [0, 0]" not in page
    ends = [(entry["low"], entry["high"]) for entry in document["findings"] if entry["low"] is not None]
    assert ends
    assert all(low < high for low, high in ends)
    if name == "verbalizer":
        natural = document["findings"][0]
        peer = binomtest(0, 20).proportion_ci(method="wilson")
        assert (natural["value"], natural["low"], natural["high"]) == pytest.approx((0, peer.low, peer.high))


def proposes_but_does_not_answer(prompt, sampling):
    """A model that writes the lists that Scylla asks it for, and no answer that can be read."""
    return "\n".join(f"[{i}, {i + 3}, 7, {2 * i}]" for i in range(1, 40))


def test_answers_that_can_be_read_are_not_warned_of(tmp_path, monkeypatch):
    monkeypatch.setattr("heldout.evals.run.language_model", lambda *a, **k: ScriptedLM(lambda p, s: "negative no 0 1"))
    document = evaluate("verbalizer", "scripted", options=VerbalizerOptions(tests=4), out=tmp_path)
    told = {text.partition(" are off")[0].rpartition(" to ")[2] for text in document["warnings"]}
    assert "negative/positive words" not in told


def test_what_rounding_leaves_of_a_zero_is_a_zero_in_every_table(tmp_path):
    document = {"findings": [{"name": "gap", "value": 0.0, "low": 2.78e-17, "high": 0.1, "reading": "so"}],
                "tables": [{"title": "T", "rows": [{"task": "sort", "low": 2.78e-17}]}], "skipped": [],
                "title": "t", "model": "m", "usage": {}, "charts": [], "seconds": 1.0, "report": "r",
                "environment": {"python": "3", "platform": "x", "cpus": 1, "versions": {}}}  # fmt: skip
    console = Console(record=True, width=80, file=StringIO())
    print_eval(document, console)
    for text in (console.export_text(), to_html(document)):
        assert "e-17" not in text
        assert "0 [0, 0.1]" in text
