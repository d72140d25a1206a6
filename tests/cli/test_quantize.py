"""`heldout quantize` as a user meets it."""

import json

import pytest
from typer.testing import CliRunner

from heldout.cli import app
from tests.cli.test_app import heldout, one_line
from tests.weights.quantization.test_quantized_folder import folder, texts  # noqa: F401


def run(*arguments):
    return CliRunner().invoke(app, ["quantize", *map(str, arguments)])


def test_it_prints_perplexity_and_size_before_and_after(tmp_path, texts):  # noqa: F811
    source = folder(tmp_path / "model", "llama")
    out = tmp_path / "out"
    done = run(source, "--calib", texts, "--group-size", 32, "--bits", 3, "--length", 16, "--out", out)
    assert done.exit_code == 0, done.output
    assert "perplexity" in done.stdout
    assert "size" in done.stdout
    assert "3 bits are packed densely" in done.stderr
    assert (out / "model.safetensors").is_file()
    assert json.loads((out / "config.json").read_text())["quantization_config"]["quant_method"] == "compressed-tensors"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out", "texts.jsonl"]


@pytest.mark.parametrize(("method", "kind"), [("gptq", "opt"), ("rtn", "bert")])
def test_as_json_it_prints_one_document(tmp_path, texts, method, kind):  # noqa: F811
    source = folder(tmp_path / "model", kind)
    done = run(
        source, "--method", method, "--calib", texts, "--group-size", 16, "--length", 16, "--out", tmp_path / "out",
        "--json",
    )  # fmt: skip
    document = json.loads(done.stdout)
    assert document["method"] == method
    assert document["bytes_after"] < document["bytes_before"]
    assert (document["perplexity_after"] is None) == (kind == "bert")


def test_bad_input_is_one_line_and_exit_code_two(tmp_path):
    assert "no folder" in one_line(heldout("quantize", tmp_path / "none", "--out", tmp_path / "out"))
    source = folder(tmp_path / "model", "llama")
    for arguments, message in [
        ((), "--out DIR"),
        (("--out", tmp_path / "out"), "group_size 128 does not divide the 32 inputs"),
        (("--out", tmp_path / "out", "--group-size", 16), "needs calibration text"),
        (("--out", source), "not an empty folder"),
        (("--out", tmp_path / "out", "--bits", 5), "bits must be one of 3, 4, 8"),
        (("--out", tmp_path / "out", "--group-size", 16, "--calib", tmp_path / "none"), "no file"),
    ]:
        done = run(source, *arguments)
        assert done.exit_code == 2
        lines = done.stderr.strip().splitlines()
        assert len(lines) == 1
        assert message in lines[0], lines[0]
        assert not (tmp_path / "out").exists()
