import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from heldout.weights import dequantize, load_checkpoint, pack_codes, quantize_folder, save_checkpoint, unpack_codes
from heldout.weights.quantization.blockwise import forward
from heldout.weights.quantization.quantize import QTensor
from tests.weights.families import FAMILIES, family, inputs

PACKED = [kind for kind in FAMILIES if kind != "gpt2"]


def tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<end>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


def folder(path, kind, dtype=torch.float32, **options):
    model = family(kind).to(dtype)
    model.save_pretrained(path, **options)
    if model.main_input_name != "pixel_values":
        tokenizer().save_pretrained(path)
    return path


@pytest.fixture
def texts(tmp_path):
    generator = torch.Generator().manual_seed(0)
    lines = [" ".join(f"w{n}" for n in torch.randint(2, 64, (40,), generator=generator).tolist()) for _ in range(20)]
    file = tmp_path / "texts.jsonl"
    file.write_text("\n".join(json.dumps({"text": line} if n % 2 else line) for n, line in enumerate(lines)) + "\n\n")
    return file


def own_dequantised(source, out):
    """The model of a folder with the weights that the packed file stands for, dequantised here."""
    import transformers

    config = json.loads((out / "config.json").read_text())
    scheme = config["quantization_config"]["config_groups"]["group_0"]["weights"]
    kind = getattr(transformers, config["architectures"][0])
    model, state = kind.from_pretrained(source), load_file(out / "model.safetensors")
    weights = {name: value for name, value in state.items() if ".weight_" not in name}
    for name in [name.removesuffix("_packed") for name in state if name.endswith("_packed")]:
        rows, columns = state[f"{name}_shape"].tolist()
        q = unpack_codes(state[f"{name}_packed"], scheme["num_bits"], columns)
        zero = state.get(f"{name}_zero_point")
        if zero is not None:
            zero = unpack_codes(zero.T.contiguous(), scheme["num_bits"], rows).T
        size = scheme["group_size"] or -1
        weights[name] = dequantize(QTensor(q, state[f"{name}_scale"], zero, scheme["num_bits"], size))
    model.load_state_dict(weights, strict=False)
    return model.eval()


@pytest.mark.parametrize("kind", PACKED)
def test_the_saved_folder_loads_in_transformers_with_the_logits_of_the_dequantised_model(tmp_path, texts, kind):
    import transformers

    source = folder(tmp_path / "model", kind)
    vision = kind == "vit"
    report = quantize_folder(
        source, tmp_path / "out", bits=4, group_size=16, calib=None if vision else texts, length=16, blocks=8
    )
    assert report.layout == "pack-quantized"
    assert report.bytes_after < report.bytes_before
    loaded = getattr(transformers, report.model).from_pretrained(tmp_path / "out").eval()
    model = own_dequantised(source, tmp_path / "out")
    with torch.no_grad():
        for batch in inputs(model):
            torch.testing.assert_close(forward(loaded, batch), forward(model, batch), atol=1e-5, rtol=1e-5)
    causal = kind not in ("t5", "t5-gated", "bert", "roberta", "vit")
    assert (report.perplexity_before is not None) == causal
    assert 0 < report.output_error < 1


@pytest.mark.parametrize(
    ("method", "bits", "group_size", "symmetric", "dtype"),
    [
        ("awq", 3, 32, False, torch.bfloat16),
        ("awq", 4, 16, True, torch.float32),
        ("gptq", 3, 16, True, torch.float16),
        ("gptq", 4, -1, False, torch.bfloat16),
        ("rtn", 8, 8, True, torch.bfloat16),
        ("rtn", 3, -1, False, torch.float32),
    ],
)
def test_every_method_and_width_loads_in_transformers(tmp_path, texts, method, bits, group_size, symmetric, dtype):
    from transformers import AutoModelForCausalLM

    source = folder(tmp_path / "model", "llama", dtype)
    quantize_folder(
        source, tmp_path / "out", method=method, bits=bits, group_size=group_size, calib=texts, length=16, blocks=8,
        symmetric=symmetric,
    )  # fmt: skip
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert loaded.dtype == dtype
    model = own_dequantised(source, tmp_path / "out")
    with torch.no_grad():
        for batch in inputs(model):
            torch.testing.assert_close(loaded(batch).logits, model(batch).logits)


def test_the_report_is_of_the_model_that_is_loaded_from_the_folder(tmp_path, texts):
    from transformers import AutoModelForCausalLM

    from heldout.measure import perplexity
    from heldout.weights.quantization.calibration import text_blocks

    source = folder(tmp_path / "model", "llama")
    report = quantize_folder(source, tmp_path / "out", bits=3, group_size=16, calib=texts, length=16, blocks=8)
    held_out = [text_blocks(source, texts, 16, 10)[-2:]]
    loaded, start = (AutoModelForCausalLM.from_pretrained(tmp_path / n).eval() for n in ("out", "model"))
    assert report.perplexity_after == pytest.approx(perplexity(loaded, held_out))
    assert report.perplexity_before == pytest.approx(perplexity(start, held_out))
    with torch.no_grad():
        found, exact = loaded(held_out[0]).logits, start(held_out[0]).logits
    assert report.output_error == pytest.approx(float((found - exact).square().sum() / exact.square().sum()), rel=1e-4)
    assert "3 bits" in report.notes[-1]


def test_what_does_not_survive_saving_is_in_the_report(tmp_path, texts, monkeypatch):
    from heldout.weights.quantization import quantized_folder

    source = folder(tmp_path / "model", "llama")
    options = {"bits": 8, "group_size": 16, "calib": texts, "length": 16, "method": "rtn"}
    whole = quantize_folder(source, tmp_path / "out", **options)
    pack = quantized_folder.pack_codes
    monkeypatch.setattr(quantized_folder, "pack_codes", lambda q, bits: pack(q ^ 64 if q.shape[1] > 8 else q, bits))
    assert quantize_folder(source, tmp_path / "other", **options).output_error > 10 * whole.output_error


@pytest.mark.parametrize("key", ["lost", "unknown"])
def test_a_key_that_the_model_would_not_load_is_an_error(tmp_path, texts, monkeypatch, key):
    from heldout.weights.quantization import quantized_folder

    def change(state, path):
        state = dict(state)
        if key == "lost":
            del state["model.norm.weight"]
        else:
            state["model.norm.wait"] = torch.ones(3)
        save_checkpoint(state, path)

    source = folder(tmp_path / "model", "llama")
    monkeypatch.setattr(quantized_folder, "save_checkpoint", change)
    with pytest.raises(ValueError, match=r"would not load whole: .* model\.norm\.w(eight|ait)"):
        quantize_folder(source, tmp_path / "out", group_size=16, calib=texts, length=16)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["gptq", "rtn"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_every_family_is_quantised_by_every_method_and_loads_again(tmp_path, texts, kind, method):
    source = folder(tmp_path / "model", kind)
    calib = None if kind == "vit" else texts
    errors = [
        quantize_folder(
            source, tmp_path / f"out{bits}", method=method, bits=bits, group_size=16, calib=calib, length=16, blocks=8
        ).output_error
        for bits in (8, 3)
    ]
    assert errors[0] < 2e-3
    assert errors[0] < errors[1] / 20


def test_fused_experts_keep_their_precision_and_the_user_is_told(tmp_path, texts):
    from transformers import AutoModelForCausalLM

    source = folder(tmp_path / "model", "mixtral")
    report = quantize_folder(source, tmp_path / "out", bits=4, group_size=16, calib=texts, length=16)
    assert any("% of the weights are fused experts" in note for note in report.notes)
    before, after = (AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("model", "out"))
    experts = [name for name in before if ".experts." in name]
    assert experts
    assert all(torch.equal(before[name], after[name]) for name in experts)


def test_fewer_blocks_than_asked_for_are_told(tmp_path, texts):
    source = folder(tmp_path / "model", "llama")
    options = {"bits": 4, "group_size": 16, "calib": texts, "length": 16}
    assert "fills" in " ".join(quantize_folder(source, tmp_path / "a", **options, blocks=2000).notes)
    assert "fills" not in " ".join(quantize_folder(source, tmp_path / "b", **options, blocks=8).notes)


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path, texts):
    source = folder(tmp_path / "model", "llama")
    options = {"bits": 4, "group_size": 16, "calib": texts, "length": 16, "method": "rtn"}
    plain = quantize_folder(source, tmp_path / "a", **options)
    texts.write_bytes(b"\xef\xbb\xbf" + texts.read_bytes())
    marked = quantize_folder(source, tmp_path / "b", **options)
    assert marked.perplexity_after == plain.perplexity_after


def test_awq_changes_the_outputs_less_than_rounding_does(tmp_path, texts):
    source = folder(tmp_path / "model", "qwen2")
    options = {"bits": 3, "group_size": 16, "calib": texts, "length": 16}
    errors = [
        quantize_folder(source, tmp_path / method, method=method, **options).output_error for method in ("awq", "rtn")
    ]
    assert errors[0] < 0.8 * errors[1]


def test_gpt2_is_stored_dense_and_says_so(tmp_path, texts):
    from transformers import AutoModelForCausalLM

    source = folder(tmp_path / "model", "gpt2")
    report = quantize_folder(source, tmp_path / "out", bits=4, group_size=32, calib=texts, length=16)
    assert report.layout == "dense"
    assert any("Conv1D" in note and "full size" in note for note in report.notes)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    weight = loaded.transformer.h[0].mlp.c_fc.weight.T
    assert max(len(row.unique()) for row in weight) <= 16


def test_rounding_needs_no_calibration(tmp_path):
    for kind in ("llama", "bert", "vit"):
        source = folder(tmp_path / kind, kind)
        report = quantize_folder(source, tmp_path / f"{kind}-out", method="rtn", group_size=32)
        assert report.perplexity_before is None
        assert report.output_error > 0


def test_vision_models_are_calibrated_on_pixel_values(tmp_path):
    source = folder(tmp_path / "vit", "vit")
    save_file({"pixel_values": torch.randn(12, 3, 8, 8)}, tmp_path / "images.safetensors")
    report = quantize_folder(source, tmp_path / "out", group_size=32, calib=tmp_path / "images.safetensors")
    assert not any("noise" in note for note in report.notes)
    save_file({"pixel_values": torch.randn(12, 3, 9, 9)}, tmp_path / "images.safetensors")
    with pytest.raises(ValueError, match="pixel_values of shape"):
        quantize_folder(source, tmp_path / "out2", group_size=32, calib=tmp_path / "images.safetensors")


def broken(tmp_path, texts, what):
    source = tmp_path / "model"
    if what != "missing folder":
        folder(source, "llama")
    match what:
        case "NaN in the weights":
            state = load_checkpoint(source / "model.safetensors")
            state["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.nan
            save_file(state, source / "model.safetensors", {"format": "pt"})
        case "empty calibration":
            texts.write_text("\n")
        case "short calibration":
            texts.write_text('"w2 w3"\n')
        case "one block":
            texts.write_text(json.dumps("w" * 20))
        case "no JSON":
            texts.write_text("w1 w2\n")
        case "a number":
            texts.write_text('"w3"\n17\n')
        case "pickle":
            torch.save(load_checkpoint(source / "model.safetensors"), source / "model.safetensors")
        case "only a pickle":
            torch.save(load_checkpoint(source / "model.safetensors"), source / "pytorch_model.bin")
            (source / "model.safetensors").unlink()
        case "no configuration":
            (source / "config.json").unlink()
        case "output not empty":
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "mine.txt").write_text("keep")
        case "quantised already":
            config = json.loads((source / "config.json").read_text())
            config["quantization_config"] = {"quant_method": "awq", "bits": 4}
            (source / "config.json").write_text(json.dumps(config))
        case "code of its own":
            config = json.loads((source / "config.json").read_text())
            config |= {"model_type": "mine", "architectures": ["Mine"], "auto_map": {"AutoConfig": "mine.Config"}}
            (source / "config.json").write_text(json.dumps(config))
            (source / "mine.py").write_text("raise SystemExit('code of a folder was run')")
        case "packed weights":
            state = load_checkpoint(source / "model.safetensors")
            state["model.layers.1.mlp.up_proj.qweight"] = torch.ones(2, 2, dtype=torch.int32)
            save_file(state, source / "model.safetensors", {"format": "pt"})
        case "stale":
            index = {"weight_map": {"lm_head.weight": "other.safetensors"}}
            (source / "model.safetensors.index.json").write_text(json.dumps(index))
            (source / "model.safetensors").rename(source / "other.safetensors")
            save_file({"lm_head.weight": torch.ones(2)}, source / "model.safetensors")
        case "missing weights":
            state = load_checkpoint(source / "model.safetensors")
            del state["model.layers.1.mlp.up_proj.weight"]
            save_file(state, source / "model.safetensors", {"format": "pt"})
    return source


BROKEN = {
    "missing folder": "no folder",
    "NaN in the weights": "NaN or infinite weights in model.layers.1.mlp.up_proj",
    "empty calibration": "holds no text",
    "short calibration": "less than one block of 16",
    "one block": "one block only",
    "no JSON": "not JSON Lines: line 1",
    "a number": "line 2 is neither",
    "pickle": "pickle",
    "only a pickle": "pytorch_model.bin, a pickle",
    "no configuration": "no config.json",
    "output not empty": "not an empty folder",
    "quantised already": "quantised already",
    "code of its own": r"config\.json names code of its own \(auto_map\), which is never run",
    "packed weights": "is quantised .*up_proj.qweight",
    "stale": "remove what is stale",
    "missing weights": "lacks weights of LlamaForCausalLM",
}


@pytest.mark.parametrize("what", BROKEN)
def test_bad_input_is_refused_with_a_reason_and_nothing_is_written(tmp_path, texts, what):
    source = broken(tmp_path, texts, what)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises((ValueError, FileNotFoundError), match=BROKEN[what]):
        quantize_folder(source, tmp_path / "out", group_size=16, calib=texts, length=16)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "magic"}, "method must be one of awq, gptq, rtn"),
        ({"bits": 5}, "bits must be one of 3, 4, 8"),
        ({"group_size": 128}, "group_size 128 does not divide the 32 inputs of .*; 32 and -1"),
        ({"calib": None}, "awq needs calibration text"),
        ({"calib": "nowhere.jsonl"}, "no file nowhere.jsonl"),
    ],
)
def test_bad_arguments_are_refused(tmp_path, texts, options, message):
    source = folder(tmp_path / "model", "llama")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        quantize_folder(source, tmp_path / "out", **{"group_size": 16, "calib": texts, "length": 16, **options})


def test_a_failure_while_writing_leaves_nothing(tmp_path, texts, monkeypatch):
    source = folder(tmp_path / "model", "llama")
    before = sorted(tmp_path.rglob("*"))

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("heldout.weights.quantization.quantized_folder.save_checkpoint", fail)
    with pytest.raises(OSError, match="disk full"):
        quantize_folder(source, tmp_path / "out", group_size=16, calib=texts, length=16)
    assert sorted(tmp_path.rglob("*")) == before


def test_zero_points_are_packed_along_the_rows_as_compressed_tensors_does():
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    zero = torch.randint(0, 8, (10, 3), dtype=torch.uint8)
    ours = pack_codes(zero.T.contiguous(), 3).T.contiguous()
    assert torch.equal(ours, pack_to_int32((zero.int() - 4).to(torch.int8), 3, packed_dim=0))
