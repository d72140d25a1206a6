"""The protocols inside inspect-ai."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest


def test_inspect_finds_and_runs_the_tasks(tmp_path):
    pytest.importorskip("inspect_ai")
    program = """
import json, re, sys
from inspect_ai import eval
from inspect_ai.model import ModelOutput, ModelUsage, get_model

def answer(messages, tools, choice, config):
    prompt = messages[-1].text
    if "test inputs" in prompt and "one fails" in sys.argv[2:] and "sort" in prompt.lower():
        text = "none"
    elif "test inputs" in prompt:
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
if "one fails" in sys.argv[2:]:
    (log,) = eval("heldout/scylla", model=model(), task_args={"tests": 5, "tasks": ["maximum", "sort"]},
                  log_dir=sys.argv[1], display="none")
    scores = {f"{s.name}/{m}": v.value for s in log.results.scores for m, v in s.metrics.items()}
    print(json.dumps([log.status, str(log.error), scores]))
    sys.exit()
cases = {"heldout/verbalizer": {"tests": 8}, "heldout/scylla": {"tests": 5, "tasks": "maximum,sort"}}
for name, arguments in cases.items():
    (log,) = eval(name, model=model(), task_args=arguments, log_dir=sys.argv[1], display="none")
    scores = {(s.name, m): v.value for s in log.results.scores for m, v in s.metrics.items()} if log.results else {}
    found[name] = [log.status, str(log.error), {"/".join(key): value for key, value in scores.items()}]
print(json.dumps(found))
"""
    command = [sys.executable, "-c", program, str(tmp_path), "one fails"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    status, error, scores = json.loads(done.stdout.strip().splitlines()[-1])
    assert status == "success", error
    assert scores["accuracy_ood/mean"] == 1  # of the largest number; sorting has no inputs, and is not tested
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
