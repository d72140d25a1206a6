from __future__ import annotations

import json
import re

import pytest

from heldout.evals import VerbalizerOptions
from heldout.evals.verbalizer import run_verbalizer
from heldout.lm import ScriptedLM
from heldout.problem import ProblemError


def follower(prompt, sample):
    """Follows the instruction; knows no word, so it is right about half of the time, whatever the words."""
    mapping = re.findall(r"utput '([\w-]+)' if the sentence is (\w+)", prompt)
    return {name: word for word, name in mapping}["positive" if "good" in prompt else "negative"]


def test_verbalizer_tells_groups_and_the_gap():
    document = run_verbalizer(ScriptedLM(follower), VerbalizerOptions(tests=40), lambda text: None)
    values = {entry["name"]: entry["value"] for entry in document["findings"]}
    assert values["natural"] == values["neutral"] == values["unnatural"]
    assert values["instruction gap"] == 0
    assert len(document["tables"][0]["rows"]) == 10


def test_users_texts_are_balanced_and_checked(tmp_path):
    path = tmp_path / "texts.jsonl"
    rows = [{"text": f"t{i}", "label": "abc"[i % 3] if i % 5 else "a"} for i in range(60)]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    document = run_verbalizer(ScriptedLM(lambda p, k: "a"), VerbalizerOptions(tests=30, data=path), lambda text: None)
    assert document["tables"][0]["rows"][0]["verbalizer"] == "a|b|c"
    assert document["findings"][0]["value"] == pytest.approx(1 / 6)  # one class of three, of two natural sets
    path.write_text('{"text": "t"}')
    for row in ('{"text": "t"}', '{"text": 5, "label": "a"}', '{"text": "t", "label": 0.5}', '["t", "a"]'):
        path.write_text(row)
        with pytest.raises(ProblemError, match=r"line 1 of .* needs the fields 'text', a string, and 'label'"):
            run_verbalizer(ScriptedLM([]), VerbalizerOptions(data=path), lambda text: None)


def test_lines_of_json_end_with_line_feeds_alone(tmp_path):
    path = tmp_path / "texts.jsonl"
    rows = [json.dumps({"text": f"a\u2028b\x85c {i}", "label": "ab"[i % 2]}, ensure_ascii=False) for i in range(10)]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(rows).encode() + b"\n\n  \n")
    document = run_verbalizer(ScriptedLM(lambda p, k: "a"), VerbalizerOptions(tests=10, data=path), lambda text: None)
    assert document["tables"][0]["rows"]
    for row in ({"text": "x", "label": None}, {"text": None, "label": "a"}):
        path.write_text("\n".join([*rows, "", json.dumps(row)]))
        with pytest.raises(ProblemError, match=r"line 12 of .*texts.jsonl needs the fields"):
            run_verbalizer(ScriptedLM([]), VerbalizerOptions(data=path), lambda text: None)
