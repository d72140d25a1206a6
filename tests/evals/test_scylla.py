from __future__ import annotations

import re

from heldout.evals import ScyllaOptions
from heldout.evals.scylla import run_scylla
from heldout.lm import ScriptedLM


def maximum(prompt, sample):
    if "test inputs" in prompt:
        return "\n".join(f"[{i}, {i + sample}, {i + 7}]" for i in range(20))
    numbers = [int(n) for n in re.findall(r"Input: \[(.*?)\]", prompt)[-1].split(",")]
    return f"I compare. The answer is {max(numbers)}."


def test_scylla_tells_gap_by_level_and_what_it_could_not_test():
    options = ScyllaOptions(tests=10, tasks=("maximum", "longest_common_subarray"))
    document = run_scylla(ScriptedLM(maximum), options, lambda text: None)
    assert document["findings"][0]["name"] == "critical complexity"
    assert document["tables"][0]["rows"][0]["accuracy_id"] == 1
    assert document["skipped"][0]["part"] == "longest_common_subarray"
