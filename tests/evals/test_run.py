"""Evaluations by command, behind an endpoint and inside inspect-ai."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from heldout.cli import app
from heldout.evals.run import EvalOptions, evaluate, language_model, scylla, verbalizer
from heldout.lm import EndpointLM, ScriptedLM, character_tokenizer, tiny_llama
from heldout.problem import ProblemError


def follower(prompt, sample):
    """Follows the instruction; knows no word, so it is right about half of the time, whatever the words."""
    mapping = re.findall(r"utput '([\w-]+)' if the sentence is (\w+)", prompt)
    return {name: word for word, name in mapping}["positive" if "good" in prompt else "negative"]


def maximum(prompt, sample):
    if "test inputs" in prompt:
        return "\n".join(f"[{i}, {i + sample}, {i + 7}]" for i in range(20))
    numbers = [int(n) for n in re.findall(r"Input: \[(.*?)\]", prompt)[-1].split(",")]
    return f"I compare. The answer is {max(numbers)}."


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    tokenizer = character_tokenizer("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,;:'\"?!()[]-\n")
    tiny_llama(tokenizer, dim=16, layers=1, context=512).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def test_scylla_tells_gap_by_level_and_what_it_could_not_test():
    options = EvalOptions(tests=10, tasks=("maximum", "longest_common_subarray"))
    document = scylla(ScriptedLM(maximum), options, lambda text: None)
    assert document["findings"][0]["name"] == "critical complexity"
    assert document["tables"][0]["rows"][0]["accuracy_id"] == 1
    assert document["skipped"][0]["part"] == "longest_common_subarray"


def test_verbalizer_tells_groups_and_the_gap():
    document = verbalizer(ScriptedLM(follower), EvalOptions(tests=40), lambda text: None)
    values = {entry["name"]: entry["value"] for entry in document["findings"]}
    assert values["natural"] == values["neutral"] == values["unnatural"]
    assert values["instruction gap"] == 0
    assert len(document["tables"][0]["rows"]) == 10


def test_users_texts_are_balanced_and_checked(tmp_path):
    path = tmp_path / "texts.jsonl"
    rows = [{"text": f"t{i}", "label": "abc"[i % 3] if i % 5 else "a"} for i in range(60)]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    document = verbalizer(ScriptedLM(lambda p, k: "a"), EvalOptions(tests=30, data=path), lambda text: None)
    assert document["tables"][0]["rows"][0]["verbalizer"] == "a|b|c"
    assert document["findings"][0]["value"] == pytest.approx(1 / 6)  # one class of three, of two natural sets
    path.write_text('{"text": "t"}')
    with pytest.raises(ProblemError, match=r"line 1 of .* needs the fields 'text' and 'label'"):
        verbalizer(ScriptedLM([]), EvalOptions(data=path), lambda text: None)


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


def test_model_text_is_escaped_in_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "heldout.evals.run.language_model", lambda *a, **k: ScriptedLM(lambda p, s: "<script>x</script>")
    )
    document = evaluate("verbalizer", "<b>m</b>", options=EvalOptions(tests=4), out=tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert document["findings"][0]["value"] == 0
    assert "<script>x" not in page
    assert "<b>m" not in page


def test_an_endpoint_is_written_as_address_and_name():
    lm = language_model("http://localhost:1/v1#org/model:7b", budget=1.0, prices=(1.0, 2.0))
    assert isinstance(lm, EndpointLM)
    assert (lm.model, lm.base_url, lm.budget) == ("org/model:7b", "http://localhost:1/v1", 1.0)


def test_inspect_finds_and_runs_the_tasks(tmp_path):
    pytest.importorskip("inspect_ai")
    program = """
import json, re, sys
from inspect_ai import eval
from inspect_ai.model import ModelOutput, ModelUsage, get_model

def answer(messages, tools, choice, config):
    prompt = messages[-1].text
    if "test inputs" in prompt:
        text = "\\n".join(f"[{i}, {i + 3}, {i + 7}]" for i in range(20))
    elif "Input:" in prompt:
        text = f"The answer is {max(map(int, re.findall(r'Input: .(.*?)]', prompt)[-1].split(',')))}."
    else:
        text = re.search(r"utput '(\\S+)'", prompt).group(1)
    output = ModelOutput.from_content("mockllm/model", text)
    output.usage = ModelUsage(input_tokens=3, output_tokens=2, total_tokens=5)  # else it asks the network
    return output

def model():
    return get_model("mockllm/model", custom_outputs=answer, memoize=False)

found = {}
cases = {"heldout/verbalizer": {"tests": 8}, "heldout/scylla": {"tests": 5, "tasks": "maximum,sort"}}
for name, arguments in cases.items():
    (log,) = eval(name, model=model(), task_args=arguments, log_dir=sys.argv[1], display="none")
    scores = {(s.name, m): v.value for s in log.results.scores for m, v in s.metrics.items()} if log.results else {}
    found[name] = [log.status, str(log.error), {"/".join(key): value for key, value in scores.items()}]
print(json.dumps(found))
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.strip().splitlines()[-1])
    status, error, scores = found["heldout/verbalizer"]
    assert status == "success", error
    assert any("natural" in name for name in scores)
    status, error, scores = found["heldout/scylla"]
    assert status == "success", error
    (critical,) = (value for name, value in scores.items() if name.endswith("critical_complexity"))
    assert critical == 1  # the lowest of equal levels: there is no gap anywhere
    assert scores["accuracy_ood/mean"] == 0.5  # the largest number is right for one of the two tasks
