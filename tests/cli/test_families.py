"""`heldout merge` and `heldout quantize` on a model of every family, without rules, by the command line."""

import json

import pytest
import torch
from typer.testing import CliRunner

from heldout.cli import app
from heldout.weights import load_checkpoint
from tests.weights.families import FAMILIES, family
from tests.weights.networks import finetuned

METHODS = ("task-arithmetic", "ties", "lines")


@pytest.mark.parametrize("kind", FAMILIES)
def test_two_models_of_a_family_merge_and_the_merged_one_is_quantised(tmp_path, kind):
    for name, model in (("base", family(kind)), ("a", finetuned(family(kind), 1)), ("b", finetuned(family(kind), 2))):
        model.save_pretrained(tmp_path / name)
    base, a, b = (load_checkpoint(tmp_path / name) for name in ("base", "a", "b"))
    sums = {name: base[name] + 0.5 * (a[name] + b[name] - 2 * base[name]) for name in base}
    models = [tmp_path / name for name in ("base", "a", "b")]
    for method in METHODS:
        done = run("merge", *models, "--method", method, "--out", tmp_path / method)
        assert done.exit_code == 0, done.output
        merged = load_checkpoint(tmp_path / method)
        assert merged.keys() == base.keys()
        assert all(value.isfinite().all() for value in merged.values())
    done = run("merge", *models, "--method", "task-arithmetic", "--scale", "0.5", "--out", tmp_path / "half")
    assert done.exit_code == 0, done.output
    for name, value in load_checkpoint(tmp_path / "half").items():
        torch.testing.assert_close(value, sums[name], rtol=1e-5, atol=1e-6)
    packed = run(
        "quantize", tmp_path / "half", "--method", "rtn", "--group-size", 16, "--out", tmp_path / "small", "--json"
    )
    assert packed.exit_code == 0, packed.output
    document = json.loads(packed.stdout)
    if kind != "gpt2":  # whose Conv1D weights the packed layout does not know
        assert document["bytes_after"] < document["bytes_before"]


def run(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)])
