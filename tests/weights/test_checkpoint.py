import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, load_model, save_file

from heldout.weights import (
    lines,
    lines_files,
    load_checkpoint,
    open_checkpoint,
    save_checkpoint,
    task_arithmetic_files,
)
from tests.weights.networks import finetuned, stack, transformer
from tests.weights.test_task_vector import assert_states_equal

PRE, FT = stack(seed=0), stack(seed=1)


def write(path, state):
    save_file(state, path)
    return path


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_editing_files_equals_editing_state_dicts(tmp_path, dtype):
    counter = {"steps": torch.tensor([3]), "flag": torch.tensor([True])}
    pre, ft = stack(seed=0, dtype=dtype) | counter, stack(seed=1, dtype=dtype) | counter
    sources = write(tmp_path / "pre.safetensors", pre), write(tmp_path / "ft.safetensors", ft)
    lines_files(*sources, tmp_path / "out.safetensors", alpha=0.3)
    edited = load_file(tmp_path / "out.safetensors")
    assert_states_equal(dict(sorted(edited.items())), dict(sorted(lines(pre, ft, 0.3).items())))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ft.safetensors", "out.safetensors", "pre.safetensors"]


def test_tensors_larger_than_a_piece_are_streamed(tmp_path):
    pre, ft = ({**s, "h.0.attn.weight": torch.randn(700_000, 1)} for s in (PRE, FT))
    paths = [write(tmp_path / f"{n}.safetensors", s) for n, s in enumerate((pre, ft))]
    lines_files(*paths, tmp_path / "out.safetensors", alpha=0.3)
    assert_states_equal(load_checkpoint(tmp_path / "out.safetensors"), dict(sorted(lines(pre, ft, 0.3).items())))


@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0])
def test_task_arithmetic_over_files(tmp_path, scale):
    states = [PRE, FT, stack(seed=2)]
    pre, *fts = [write(tmp_path / f"{n}.safetensors", s) for n, s in enumerate(states)]
    task_arithmetic_files(pre, fts, tmp_path / "out.safetensors", scale=scale)
    expected = {name: PRE[name] + scale * sum(ft[name] - PRE[name] for ft in states[1:]) for name in sorted(PRE)}
    assert_states_equal(load_checkpoint(tmp_path / "out.safetensors"), expected)


@pytest.mark.parametrize("kind", ["gpt2", "vit"])
def test_sharded_transformers_folders_go_in_and_come_out(tmp_path, kind):
    model = transformer(kind)
    tuned = finetuned(model)
    model.save_pretrained(tmp_path / "pre")
    tuned.save_pretrained(tmp_path / "ft", max_shard_size="20KB")
    assert (tmp_path / "ft" / "model.safetensors.index.json").exists()
    lines_files(tmp_path / "pre", tmp_path / "ft", tmp_path / "out", alpha=0.3)
    edited = type(model).from_pretrained(tmp_path / "out")
    assert_states_equal(edited.state_dict(), lines(model, tuned, 0.3))
    assert {p.name for p in (tmp_path / "out").iterdir()} == {p.name for p in (tmp_path / "ft").iterdir()}


def test_tied_weights_are_written_once_and_come_back_tied(tmp_path):
    model = finetuned(transformer("gpt2"))
    save_checkpoint(model, tmp_path / "model.safetensors")
    state = load_checkpoint(tmp_path / "model.safetensors")
    assert state["lm_head.weight"] is state["transformer.wte.weight"]
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    other = transformer("gpt2")
    load_model(other, tmp_path / "model.safetensors")
    assert_states_equal(other.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert_states_equal({n: state[n] for n in model.state_dict()}, dict(model.state_dict()), rtol=0, atol=0)


def test_saved_files_are_what_safetensors_writes(tmp_path):
    state = {"a": torch.arange(6).view(2, 3), "b": torch.ones(3, dtype=torch.bfloat16)}
    state |= {"c": torch.tensor(2.5), "d": torch.zeros(0, 4)}
    save_checkpoint({**state, "view": state["a"].T}, tmp_path / "x.safetensors", metadata={"epoch": "3"})
    assert_states_equal(dict(sorted(load_file(tmp_path / "x.safetensors").items())), {**state, "view": state["a"].T})
    with open_checkpoint(tmp_path / "x.safetensors") as checkpoint:
        assert torch.equal(checkpoint.tensor("a"), state["a"])
        assert checkpoint.entries["b"].dtype == torch.bfloat16


def test_torch_files_of_tensors_are_read(tmp_path):
    torch.save(PRE, tmp_path / "new.pt")
    torch.save({"state_dict": PRE, "epoch": 3}, tmp_path / "lightning.pt")
    torch.save(PRE, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    for name in ("new.pt", "lightning.pt", "old.bin"):
        assert_states_equal(load_checkpoint(tmp_path / name), PRE, rtol=0, atol=0)
    torch.save(FT, tmp_path / "ft.pt")
    lines_files(tmp_path / "new.pt", tmp_path / "ft.pt", tmp_path / "out.safetensors", alpha=0.3)
    assert_states_equal(load_checkpoint(tmp_path / "out.safetensors"), lines(PRE, FT, 0.3))


class Payload:
    def __reduce__(self):
        return (open, ("/nonexistent/heldout", "w"))


@pytest.mark.parametrize("name", ["a.pt", "a.bin", "a.safetensors", "zip.pt", "zip.safetensors"])
def test_a_pickle_payload_is_refused_and_never_run(tmp_path, name):
    if name.startswith("zip"):
        torch.save({"weight": Payload()}, tmp_path / name)
    else:
        (tmp_path / name).write_bytes(pickle.dumps({"weight": Payload()}, protocol=2))
    with pytest.raises(ValueError, match="refused because a pickle can run code"):
        load_checkpoint(tmp_path / name)


def test_metadata_never_overwrites_a_stored_tensor(tmp_path):
    save_file({"v": torch.zeros(2), "w": torch.ones(2)}, tmp_path / "x.safetensors", {"v": "w"})
    with pytest.raises(ValueError, match=r"x\.safetensors stores 'v', .* another name of 'w'"):
        load_checkpoint(tmp_path / "x.safetensors")


@pytest.mark.parametrize("change", ["sparse", "meta", "a number for a name", "nothing"])
def test_torch_files_of_other_than_ordinary_tensors_are_refused(tmp_path, change):
    state = {
        "sparse": {"v": torch.eye(2).to_sparse()},
        "meta": {"v": torch.empty(2, device="meta")},
        "a number for a name": {3: torch.ones(2)},
        "nothing": None,
    }[change]
    if state is None:
        (tmp_path / "x.pt").write_bytes(b"")
    else:
        torch.save(state, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"x\.pt .*" + ("'v'" if change in ("sparse", "meta") else "")):
        load_checkpoint(tmp_path / "x.pt")


def sharded(folder, weight_map, **files):
    folder.mkdir()
    for name, state in files.items():
        save_file(state, folder / f"{name}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def test_an_index_that_promises_what_its_shard_lacks_is_refused(tmp_path):
    one, two = {"v": torch.zeros(2)}, {"w": torch.ones(2)}
    good = sharded(tmp_path / "good", {"v": "a.safetensors", "w": "b.safetensors"}, a=one, b=two)
    assert load_checkpoint(good).keys() == {"v", "w"}
    lost = sharded(tmp_path / "lost", {"v": "b.safetensors", "w": "b.safetensors"}, b=two)
    with pytest.raises(ValueError, match=r"index\.json promises 'v' in b\.safetensors"):
        open_checkpoint(lost)
    moved = sharded(tmp_path / "moved", {"v": "b.safetensors", "w": "a.safetensors"}, a=one, b=two)
    with pytest.raises(ValueError, match="promises 'v' in b"):
        open_checkpoint(moved)


def test_a_stale_file_beside_an_index_is_refused(tmp_path):
    folder = sharded(tmp_path / "x", {"v": "a.safetensors"}, a={"v": torch.zeros(2)}, model={"v": torch.ones(2)})
    with pytest.raises(
        ValueError, match=r"model\.safetensors and model\.safetensors\.index\.json.*remove what is stale"
    ):
        open_checkpoint(folder)


def test_links_are_not_followed_out_of_the_folder(tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    folders = {name: tmp_path / name for name in ("pre", "ft")}
    for name, folder in folders.items():
        folder.mkdir()
        save_file(dict(PRE if name == "pre" else FT), folder / "model.safetensors")
    (folders["ft"] / "inside.txt").write_text("mine")
    (folders["ft"] / "link.txt").symlink_to("inside.txt")
    lines_files(folders["pre"], folders["ft"], tmp_path / "out", alpha=0.3)
    assert (tmp_path / "out" / "link.txt").read_text() == "mine"
    (folders["ft"] / "vocab.txt").symlink_to("../secret.txt")
    with pytest.raises(ValueError, match=r"vocab\.txt is a link that leads out of its folder"):
        lines_files(folders["pre"], folders["ft"], tmp_path / "out2", alpha=0.3)
    assert not list((tmp_path / "out2").iterdir())
    (folders["pre"] / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    (folders["pre"] / "model.safetensors").symlink_to("../elsewhere.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors is a link"):
        open_checkpoint(folders["pre"])


def test_the_links_of_a_hub_cache_lead_to_its_blobs(tmp_path):
    snapshot = tmp_path / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (tmp_path / "blobs").mkdir()
    save_file(dict(PRE), tmp_path / "blobs" / "123")
    (snapshot / "model.safetensors").symlink_to("../../blobs/123")
    assert_states_equal(load_checkpoint(snapshot), dict(sorted(PRE.items())), rtol=0, atol=0)


def test_a_failed_edit_leaves_no_file_and_the_old_one(tmp_path):
    broken = FT | {"norm.weight": torch.full((4,), float("nan"))}
    pre, ft = write(tmp_path / "pre.safetensors", PRE), write(tmp_path / "ft.safetensors", broken)
    out = write(tmp_path / "out.safetensors", PRE)
    with pytest.raises(ValueError, match=r"not finite in 'norm\.weight'"):
        lines_files(pre, ft, out, alpha=0.3)
    assert_states_equal(load_file(out), dict(sorted(PRE.items())))
    assert len(list(tmp_path.iterdir())) == 3
    with pytest.raises(ValueError, match="is read"):
        lines_files(pre, ft, ft, alpha=0.3)
    with pytest.raises(ValueError, match="only in"):
        lines_files(pre, write(tmp_path / "short.safetensors", stack(2)), out, alpha=0.3)


@pytest.mark.parametrize("shard", ["../secret.safetensors", "/etc/x.safetensors", 3])
def test_an_index_may_not_name_files_elsewhere(tmp_path, shard):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(ValueError, match="index"):
        open_checkpoint(tmp_path)


def test_missing_checkpoints_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        open_checkpoint(tmp_path / "none.safetensors")
    with pytest.raises(FileNotFoundError, match=r"holds neither model\.safetensors\.index\.json"):
        open_checkpoint(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "b.safetensors"}}))
    with pytest.raises(FileNotFoundError, match=r"lacks the shard b\.safetensors"):
        open_checkpoint(tmp_path)
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(ValueError, match="not a checkpoint"):
        open_checkpoint(tmp_path / "x.txt")
