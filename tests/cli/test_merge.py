"""`heldout merge` as a user meets it."""

import json
import math
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from heldout.weights import TaskVector, merge_checkpoints, ties
from tests.cli.test_app import heldout, one_line
from tests.weights.networks import finetuned, stack, transformer


@pytest.fixture
def files(tmp_path):
    for seed, name in enumerate(("base", "one", "two")):
        save_file(stack(seed=seed), tmp_path / f"{name}.safetensors")
    save_file(stack(seed=3) | {"norm.weight": torch.full((4,), math.nan)}, tmp_path / "nan.safetensors")
    save_file(stack(2, seed=3), tmp_path / "short.safetensors")
    torch.save(stack(seed=1), tmp_path / "pickled.pt")
    return tmp_path


def test_the_command_does_what_the_function_does_and_says_it_in_json(files):
    done = heldout(
        "merge", "base.safetensors", "one.safetensors", "two.safetensors", "--method", "ties", "--density", "0.3",
        "--scale", "0.5", "--out", "merged", "--json", cwd=files,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document.pop("seconds") > 0
    assert document == {
        "out": "merged",
        "method": "ties",
        "options": {"scale": 0.5, "density": 0.3},
        "tensors": 11,
        "parameters": 132,
        "copied": 0,
        "base": "base.safetensors",
        "finetuned": ["one.safetensors", "two.safetensors"],
    }
    base = stack(seed=0)
    expected = ties([TaskVector(base, stack(seed=seed)) for seed in (1, 2)], 0.3).apply_to(base, 0.5)
    merged = load_file(files / "merged" / "model.safetensors")
    assert all(torch.equal(merged[name], expected[name]) for name in base)


def test_a_folder_and_its_adapter_come_out_for_transformers(tmp_path):
    import peft

    model = transformer("gpt2")
    model.save_pretrained(tmp_path / "base", max_shard_size="20KB")
    finetuned(model).save_pretrained(tmp_path / "ft")
    config = peft.LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True)
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    done = heldout(
        "merge", "base", "ft", "adapter", "--method", "task-arithmetic", "--out", "new/merged", cwd=tmp_path
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("task-arithmetic (scale 1) of 2 models into new/merged: ")
    merged = type(model).from_pretrained(tmp_path / "new" / "merged")
    torch.testing.assert_close(merged.lm_head.weight, finetuned(transformer("gpt2")).lm_head.weight)


OUT = ("--out", "merged")
TIES = ("--method", "ties", *OUT)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "name the base and at least one fine-tuned model"),
        (("base", *TIES), "no fine-tuned model"),
        (("base", "one", "--method", "ties"), "--out DIR"),
        (("base", "one", *OUT), "method must be one of wise-ft, task-arithmetic, ties, consensus, lines"),
        (("base", "one", "--alpha", "0.5", *TIES), "ties takes scale and density, not alpha"),
        (("base", "one", "--method", "wise-ft", "--alpha", "2", *OUT), "alpha must lie in [0, 1], got 2.0"),
        (("base", "short", *TIES), "only in base.safetensors: h.2.attn.weight, h.2.mlp.bias, h.2.mlp.weight"),
        (("base", "one", "nan", *TIES), "nan.safetensors holds NaN in 'norm.weight'"),
        (("base", "pickled.pt", *TIES), "pickled checkpoints are not read"),
        (("base", "nowhere", *TIES), "no checkpoint at nowhere.safetensors"),
        (("base", "one", "--method", "ties", "--out", "one.safetensors"), "exists already"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(files, arguments, message, capsys, monkeypatch):
    import typer

    from heldout.cli import app

    before = sorted(files.iterdir())
    names = {"base", "one", "short", "nan", "nowhere"}
    monkeypatch.chdir(files)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises((SystemExit, typer.Exit)) as stopped:
        app(["merge", *(f"{word}.safetensors" if word in names else word for word in arguments)])
    assert stopped.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.strip().splitlines()) == 1
    assert message in said.err
    assert sorted(files.iterdir()) == before


def test_bad_input_from_the_shell_is_one_line(files):
    assert "holds NaN" in one_line(heldout("merge", "base.safetensors", "nan.safetensors", *TIES, cwd=files))


SLOW = """
import sys, time
from heldout.weights import checkpoint
plain, done = checkpoint._bytes, []
def slow(part):
    done.append(part)
    if len(done) == 8:
        print("writing", flush=True)
        time.sleep(60)
    return plain(part)
checkpoint._bytes = slow
from heldout.cli import main
main()
"""


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_merge_that_is_stopped_leaves_nothing(files, sent, code):
    before = sorted(files.iterdir())
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, "merge", "base.safetensors", "one.safetensors", *TIES],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=files,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert process.stdout.readline() == "writing\n"
    process.send_signal(sent)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in said
    assert sorted(files.iterdir()) == before


def test_merging_the_output_of_a_merge_works(files):
    merge_checkpoints(files / "base.safetensors", [files / "one.safetensors"], files / "a", method="wise-ft")
    merge_checkpoints(files / "base.safetensors", [files / "a"], files / "b.safetensors", method="lines")
    assert load_file(files / "b.safetensors").keys() == stack().keys()
