import math
import pickle
import signal
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from heldout.weights import (
    TaskVector,
    interpolate,
    lines,
    lines_merge,
    load_checkpoint,
    merge_checkpoints,
    save_checkpoint,
    ties,
)
from heldout.weights.merging.merge_checkpoints import Selection
from tests.weights.merging.files import assert_same_bits, lora, merge_vectors, write
from tests.weights.networks import finetuned, stack, transformer


def big(seed, dtype=torch.float32):
    """A stack with a tensor of several pieces, of a length that no piece divides, and an integer buffer."""
    generator = torch.Generator().manual_seed(seed)
    large = torch.randn(397, 331, generator=generator).to(dtype)
    return stack(seed=seed, dtype=dtype) | {"large.weight": large, "step": torch.tensor([seed])}


FULL = [
    ("task-arithmetic", {"scale": 0.3}),
    ("task-arithmetic", {}),
    ("ties", {"scale": 0.7, "density": 0.3}),
    ("ties", {"density": 1.0}),
    ("ties", {"density": 1e-9}),
    ("consensus", {"scale": 0.4}),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("method", "options"), FULL)
def test_files_merge_to_the_bits_of_the_state_dicts(tmp_path, method, options, dtype):
    states = [big(seed, dtype) for seed in range(6)]
    base, *fts = write(tmp_path, **{f"m{n}": state for n, state in enumerate(states)})
    report = merge_checkpoints(base, fts, tmp_path / "out", method=method, **options)
    vectors = [TaskVector(states[0], state) for state in states[1:]]
    assert_same_bits(
        load_file(tmp_path / "out" / "model.safetensors"), merge_vectors(states[0], vectors, method, **options)
    )
    assert (report.tensors, report.copied) == (len(states[0]), 1)
    assert report.parameters == sum(value.numel() for value in states[0].values())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_wise_ft_and_lines_merge_to_the_bits_of_the_state_dicts(tmp_path, dtype):
    states = [big(seed, dtype) | {"step": torch.tensor([0])} for seed in range(4)]
    base, *fts = write(tmp_path, **{f"m{n}": state for n, state in enumerate(states)})

    def merged(models, **options):
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}.safetensors"
        merge_checkpoints(base, models, out, **options)
        return load_file(out)

    for alpha in (0.0, 0.3, 0.5, 1.0):
        expected = interpolate(states[0], states[1], alpha)
        assert_same_bits(merged(fts[:1], method="wise-ft", alpha=alpha), expected)
    assert_same_bits(merged(fts[:1], method="wise-ft"), interpolate(states[0], states[1], 0.5))
    assert_same_bits(merged(fts[:1], method="lines"), lines(states[0], states[1], 0.3))
    assert_same_bits(merged(fts[:1], method="lines", alpha=0.1, beta=0.5), lines(states[0], states[1], 0.1, 0.5))
    assert_same_bits(merged(fts, method="lines", beta=0.4), lines_merge(states[0], states[1:], beta=0.4))
    assert_same_bits(
        merged(fts, method="lines", alpha=0.2, beta=0.4), lines_merge(states[0], states[1:], alpha=0.2, beta=0.4)
    )


def test_integer_buffers_are_those_of_the_base(tmp_path):
    base, ft = write(tmp_path, base=big(0), ft=big(1))
    for method in ("wise-ft", "task-arithmetic", "ties", "lines"):
        merge_checkpoints(base, [ft], tmp_path / method, method=method)
        assert load_checkpoint(tmp_path / method)["step"].tolist() == [0]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 300), st.sampled_from([torch.float32, torch.float64]), st.booleans())
def test_selection_is_the_sorted_magnitude(seed, n, dtype, repeated):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(n, generator=generator, dtype=dtype) * 10 ** torch.randn(n, generator=generator, dtype=dtype)
    values = values.round() if repeated else values
    rank = int(torch.randint(1, n + 1, (), generator=generator))
    selection = Selection(rank, dtype)
    while not selection.done:
        for part in values.split(7):
            selection.add(part)
        selection.narrow()
    assert selection.value() == values.abs().sort(descending=True).values[rank - 1]


def test_selection_refuses_a_rank_beyond_the_stream():
    selection = Selection(3, torch.float32)
    selection.add(torch.ones(2))
    with pytest.raises(ValueError, match="fewer than the rank 3"):
        selection.narrow()


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("method", ["ties", "task-arithmetic", "consensus"])
def test_sharded_transformers_folders_load_again(tmp_path, kind, method):
    model = transformer(kind)
    if kind == "llama":
        model.config.tie_word_embeddings = True
        model.tie_weights()
    tuned = [finetuned(model, seed) for seed in (1, 2)]
    model.save_pretrained(tmp_path / "base", max_shard_size="12KB")
    (tmp_path / "base" / "tokenizer.json").write_text("{}")
    for n, other in enumerate(tuned):
        other.save_pretrained(tmp_path / f"ft{n}", max_shard_size="11KB" if n else "1GB")
    out = tmp_path / "out"
    merge_checkpoints(tmp_path / "base", [tmp_path / "ft0", tmp_path / "ft1"], out, method=method, scale=0.5)
    assert {path.name for path in out.iterdir()} == {path.name for path in (tmp_path / "base").iterdir()}
    assert len(list(out.glob("*.safetensors"))) > 2
    merged = type(model).from_pretrained(out).state_dict()
    vectors = [TaskVector(model, other) for other in tuned]
    expected = merge_vectors(dict(model.state_dict()), vectors, method, 0.5)
    assert_same_bits(merged, expected)
    tied = {
        "gpt2": ("transformer.wte.weight", "lm_head.weight"),
        "llama": ("model.embed_tokens.weight", "lm_head.weight"),
    }
    one, two = (merged[name] for name in tied[kind])
    assert one.data_ptr() == two.data_ptr()


def test_weights_tied_in_the_file_stay_tied_and_may_be_stored_under_either_name(tmp_path):
    def state(seed):
        own = stack(seed=seed)
        return own | {"lm_head.weight": own["embed.weight"]}

    save_checkpoint(state(0), tmp_path / "base.safetensors")
    turned = state(1)
    save_checkpoint({"lm_head.weight": turned.pop("lm_head.weight"), **turned}, tmp_path / "ft.safetensors")
    with_head = {name: value for name, value in state(2).items() if name != "lm_head.weight"}
    save_checkpoint(with_head, tmp_path / "config-tied.safetensors")
    fts = [tmp_path / "ft.safetensors", tmp_path / "config-tied.safetensors"]
    merge_checkpoints(tmp_path / "base.safetensors", fts, tmp_path / "out", method="ties", density=0.5)
    merged = load_checkpoint(tmp_path / "out")
    assert merged["lm_head.weight"] is merged["embed.weight"]
    vectors = [TaskVector(state(0), state(seed)) for seed in (1, 2)]
    assert_same_bits(merged, ties(vectors, 0.5).apply_to(state(0)))
    untied = state(1)
    untied["lm_head.weight"] = untied["lm_head.weight"] + 1
    save_checkpoint(untied, tmp_path / "untied.safetensors")
    with pytest.raises(ValueError, match=r"lm_head\.weight and embed\.weight are one tied weight in .*base.* but two"):
        merge_checkpoints(
            tmp_path / "base.safetensors", [tmp_path / "untied.safetensors"], tmp_path / "x", method="ties"
        )


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("method", ["ties", "task-arithmetic", "consensus", "lines"])
def test_float8_is_merged_in_float32_and_stored_as_it_was(tmp_path, method, dtype):
    states = [{name: value.to(dtype) for name, value in stack(seed=seed).items()} for seed in range(3)]
    base, a, b = write(tmp_path, base=states[0], a=states[1], b=states[2])
    merge_checkpoints(base, [a, b], tmp_path / "out", method=method)
    wide = [{name: value.float() for name, value in state.items()} for state in states]
    base32, a32, b32 = write(tmp_path, base32=wide[0], a32=wide[1], b32=wide[2])
    merge_checkpoints(base32, [a32, b32], tmp_path / "out32", method=method)
    merged, expected = load_checkpoint(tmp_path / "out"), load_checkpoint(tmp_path / "out32")
    for name, value in merged.items():
        assert value.dtype == dtype
        assert torch.equal(value.float(), expected[name].to(dtype).float())


NAN = stack(seed=2) | {"h.1.mlp.weight": torch.full((4, 4), math.nan)}
INF = stack(seed=2) | {"norm.weight": torch.tensor([0, 1, math.inf, 0])}


@pytest.mark.parametrize("method", ["ties", "task-arithmetic", "consensus", "lines"])
@pytest.mark.parametrize(("bad", "message"), [(NAN, r"NaN in 'h\.1\.mlp\.weight'"), (INF, r"infinite.*'norm\.weight'")])
def test_a_weight_that_is_not_finite_is_named_with_its_file_and_nothing_is_left(tmp_path, method, bad, message):
    good, more, broken = write(tmp_path, good=stack(seed=0), more=stack(seed=1), broken=bad)
    before = sorted(tmp_path.iterdir())
    for base, fts in ((good, [more, broken]), (broken, [good, more])):
        with pytest.raises(ValueError, match=r"broken\.safetensors holds " + message):
            merge_checkpoints(base, fts, tmp_path / "out", method=method)
        assert sorted(tmp_path.iterdir()) == before


def test_nan_in_a_tensor_that_no_adapter_changes_is_named(tmp_path):
    model = transformer("llama")
    model.model.norm.weight.data[3] = math.nan
    model.save_pretrained(tmp_path / "base")
    lora(transformer("llama"), tmp_path / "adapter", target_modules=["q_proj"])
    with pytest.raises(ValueError, match=r"holds NaN in 'model\.norm\.weight'"):
        merge_checkpoints(tmp_path / "base", [tmp_path / "adapter"], tmp_path / "out", method="ties")


def test_an_infinite_mask_that_nobody_changed_is_kept(tmp_path):
    mask = {"mask": torch.tensor([0.0, -math.inf, 1.0])}
    base, one, two = write(tmp_path, base=stack(seed=0) | mask, one=stack(seed=1) | mask, two=stack(seed=2) | mask)
    for method in ("ties", "task-arithmetic", "consensus"):
        merge_checkpoints(base, [one, two], tmp_path / method, method=method)
        assert torch.equal(load_checkpoint(tmp_path / method)["mask"], mask["mask"])
    merge_checkpoints(base, [one], tmp_path / "wise-ft", method="wise-ft")
    assert torch.equal(load_checkpoint(tmp_path / "wise-ft")["mask"], mask["mask"])


def test_a_result_that_the_data_type_cannot_hold_is_refused(tmp_path):
    states = [{"w": torch.full((2,), value).half()} for value in (0.0, 60000.0)]
    base, ft = write(tmp_path, base=states[0], ft=states[1])
    with pytest.raises(ValueError, match=r"merged 'w' is too large for torch\.float16"):
        merge_checkpoints(base, [ft, ft], tmp_path / "out", method="task-arithmetic")


@pytest.mark.parametrize(
    ("options", "count", "message"),
    [
        ({"method": "soup"}, 1, "method must be one of wise-ft, task-arithmetic, ties, consensus, lines, got 'soup'"),
        ({"method": "ties", "alpha": 0.5}, 1, "ties takes scale and density, not alpha"),
        ({"method": "wise-ft", "scale": 0.5}, 1, "wise-ft takes alpha, not scale"),
        ({"method": "lines", "density": 0.5}, 1, "lines takes alpha and beta, not density"),
        ({"method": "ties"}, 0, "no fine-tuned model"),
        ({"method": "wise-ft"}, 2, "exactly 1 fine-tuned model, got 2"),
        ({"method": "consensus"}, 1, "at least 2 fine-tuned models, got 1"),
        ({"method": "wise-ft", "alpha": 1.5}, 1, r"alpha must lie in \[0, 1\], got 1.5"),
        ({"method": "lines", "alpha": -0.1}, 1, r"alpha must lie in \[0, 1\], got -0.1"),
        ({"method": "ties", "density": 0.0}, 1, "density must be above 0"),
        ({"method": "ties", "scale": math.nan}, 1, "scale must be a number"),
    ],
)
def test_wrong_options_are_named(tmp_path, options, count, message):
    base, ft = write(tmp_path, base=stack(seed=0), ft=stack(seed=1))
    with pytest.raises(ValueError, match=message):
        merge_checkpoints(base, [ft] * count, tmp_path / "out", **options)
    assert len(list(tmp_path.iterdir())) == 2


def test_models_that_do_not_match_are_named(tmp_path):
    base, short = write(tmp_path, base=stack(seed=0), short=stack(2, seed=1))
    with pytest.raises(ValueError, match=r"only in .*base.safetensors: h\.2\.attn\.weight, h\.2\.mlp\.bias"):
        merge_checkpoints(base, [short], tmp_path / "out", method="ties")
    with pytest.raises(ValueError, match=r"only in .*base.safetensors: h\.2"):
        merge_checkpoints(short, [base], tmp_path / "out", method="ties")
    wide, counts = write(
        tmp_path,
        wide=stack(seed=0) | {"norm.weight": torch.ones(5)},
        counts=stack(seed=0) | {"norm.weight": torch.ones(4, dtype=torch.int64)},
    )
    with pytest.raises(ValueError, match=r"different shapes: norm\.weight \(4,\) and \(5,\)"):
        merge_checkpoints(base, [wide], tmp_path / "out", method="ties")
    with pytest.raises(ValueError, match=r"norm\.weight is torch\.float32 in .* but torch\.int64"):
        merge_checkpoints(base, [counts], tmp_path / "out", method="ties")
    (flat,) = write(tmp_path, flat={"w": torch.ones(2, 2)})
    with pytest.raises(ValueError, match="at least 2 repeated blocks"):
        merge_checkpoints(flat, [flat], tmp_path / "out", method="lines")


def test_pickles_are_refused_and_never_opened(tmp_path):
    base, ft = write(tmp_path, base=stack(seed=0), ft=stack(seed=1))
    torch.save(stack(seed=1), tmp_path / "ft.pt")
    (tmp_path / "renamed.safetensors").write_bytes(pickle.dumps({"w": 1}, protocol=2))
    (tmp_path / "folder").mkdir()
    torch.save(stack(seed=1), tmp_path / "folder" / "pytorch_model.bin")
    for path in ("ft.pt", "renamed.safetensors", "folder"):
        with pytest.raises(ValueError, match="pickle"):
            merge_checkpoints(base, [tmp_path / path], tmp_path / "out", method="ties")
        with pytest.raises(ValueError, match="pickle"):
            merge_checkpoints(tmp_path / path, [ft], tmp_path / "out", method="ties")


def test_an_output_that_exists_is_never_touched(tmp_path):
    base, ft = write(tmp_path, base=stack(seed=0), ft=stack(seed=1))
    (tmp_path / "out").mkdir()
    for out in (tmp_path / "out", ft, base):
        before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.iterdir())
        with pytest.raises(FileExistsError, match="exists already"):
            merge_checkpoints(base, [ft], out, method="ties")
        assert sorted((path, path.stat().st_mtime_ns) for path in tmp_path.iterdir()) == before
    transformer("llama").save_pretrained(tmp_path / "llama")
    with pytest.raises(ValueError, match="the output must be one"):
        merge_checkpoints(tmp_path / "llama", [tmp_path / "llama"], tmp_path / "x.safetensors", method="ties")


SLOW = """
import sys, time
from heldout.weights import merge_checkpoints
from heldout.weights import checkpoint
plain, done = checkpoint._bytes, []
def slow(part):
    done.append(part)
    if len(done) == 8:
        print("writing", flush=True)
        time.sleep(60)
    return plain(part)
checkpoint._bytes = slow
merge_checkpoints(sys.argv[1], [sys.argv[2]], sys.argv[3], method="task-arithmetic")
"""


def test_a_merge_that_was_killed_leaves_no_output_and_the_next_one_clears_up(tmp_path):
    base, ft = write(tmp_path, base=stack(seed=0), ft=stack(seed=1))
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, str(base), str(ft), str(out)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "writing\n"
    merge_checkpoints(base, [ft], tmp_path / "other", method="ties")
    assert len(list(tmp_path.glob(".out*"))) == 1
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    merge_checkpoints(base, [ft], out, method="ties")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.safetensors", "ft.safetensors", "other", "out"]


def test_a_merge_under_way_is_left_alone_by_another_to_the_same_place(tmp_path):
    base, ft = write(tmp_path, base=stack(seed=0), ft=stack(seed=1))
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, str(base), str(ft), str(tmp_path / "out")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "writing\n"
    merge_checkpoints(base, [ft], tmp_path / "out", method="ties")
    assert len(list(tmp_path.glob(".out*"))) == 1
    process.kill()
    process.wait()


MEMORY = """
import json, sys
from pathlib import Path
from heldout.weights import merge_checkpoints
def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
before = peak()
merge_checkpoints(sys.argv[2], sys.argv[3:5], sys.argv[5], method=sys.argv[1])
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("method", ["ties", "task-arithmetic"])
def test_memory_does_not_grow_with_the_checkpoint(tmp_path, method):
    """64 MB in each of three files; whatever the size, a few buffers and the histograms of the thresholds."""
    for seed, name in enumerate(("base", "one", "two")):
        generator = torch.Generator().manual_seed(seed)
        state = {
            f"h.{i}.{part}.weight": torch.randn(1000, 2000, generator=generator) for i in range(4) for part in "ab"
        }
        save_file(state, tmp_path / f"{name}.safetensors")
    files = [str(tmp_path / f"{name}.safetensors") for name in ("base", "one", "two")]
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, method, *files, str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stdout) < 32
