import gc
import json
import math
import struct

import pytest
from safetensors import SafetensorError
from safetensors.torch import load_file

from heldout.weights import load_checkpoint, open_checkpoint


def damaged(text, data=b"0000"):
    text = text if isinstance(text, bytes) else (text if isinstance(text, str) else json.dumps(text)).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(dtype="F32", shape=(1,), offsets=(0, 4), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


ONE = json.dumps(tensor())
DAMAGED = {
    "nothing": b"",
    "short": b"short",
    "a huge header": struct.pack("<Q", 1 << 60) + b"{}",
    "no JSON": damaged("abcd"),
    "a list": damaged("[]"),
    "deep": damaged('{"a":' * 100_000),
    "deep beside a tensor": damaged({"a": tensor(x=json.loads("[" * 200 + "]" * 200))}),
    "not in UTF-8": damaged(b'{"\xff":1}'),
    "half a character": damaged(f'{{"\\ud800":{ONE}}}'),
    "a name twice": damaged(f'{{"a":{ONE},"a":{json.dumps(tensor(offsets=(4, 8)))}}}', b"00000000"),
    "a field twice": damaged(f'{{"a":{ONE[:-1]},"dtype":"F32"}}}}'),
    "metadata twice": damaged(f'{{"__metadata__":{{}},"__metadata__":{{}},"a":{ONE}}}'),
    "metadata as a list": damaged({"__metadata__": ["x"], "a": tensor()}),
    "metadata with a number": damaged({"__metadata__": {"x": 1}, "a": tensor()}),
    "NaN": damaged({"a": tensor(x=math.nan)}),
    "truncated": damaged({"a": tensor(shape=[2], offsets=[0, 8])}),
    "a wrong shape": damaged({"a": tensor(shape=[3], offsets=[0, 8])}, b"0" * 8),
    "a hole": damaged({"a": tensor(offsets=[4, 8])}, b"0" * 8),
    "an overlap": damaged({"a": tensor(), "b": tensor()}),
    "trailing bytes": damaged({"a": tensor()}, b"00001"),
    "bytes and no tensor": damaged({}, b"1"),
    "an unknown type": damaged({"a": tensor("F99")}),
    "a type that is none": damaged({"a": tensor(3)}),
    "a shape of text": damaged({"a": tensor() | {"shape": "x"}}),
    "a shape that is an object": damaged({"a": tensor() | {"shape": {}}}),
    "a negative shape": damaged({"a": tensor(shape=[-1], offsets=[0, -4])}),
    "a shape of truths": damaged({"a": tensor(shape=[True])}),
    "a fractional shape": damaged({"a": tensor(shape=[1.0])}),
    "a shape that overflows": damaged({"a": tensor(shape=[2**62 + 1, 4], offsets=[0, 16])}, b"0" * 16),
    "three offsets": damaged({"a": tensor(offsets=[0, 4, 4])}),
    "offsets of text": damaged({"a": tensor(offsets=["0", "4"])}),
    "a number for a tensor": damaged({"a": 1}),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_what_safetensors_refuses_is_refused_in_one_error_that_names_the_file(tmp_path, what):
    file = tmp_path / "x.safetensors"
    file.write_bytes(DAMAGED[what])
    with pytest.raises(SafetensorError):
        load_file(file)
    with pytest.raises(ValueError, match=r"x\.safetensors"):
        load_checkpoint(file)


@pytest.mark.parametrize("what", ["truncated", "a shape that overflows", "trailing bytes", "an unknown type"])
def test_the_error_names_the_tensor(tmp_path, what):
    (tmp_path / "x.safetensors").write_bytes(DAMAGED[what])
    with pytest.raises(ValueError, match=r"x\.safetensors .*'a'"):
        open_checkpoint(tmp_path / "x.safetensors")


def test_a_file_without_tensors_is_refused(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(damaged({}, b""))
    with pytest.raises(ValueError, match="holds no tensors"):
        open_checkpoint(tmp_path / "x.safetensors")


def test_the_collector_is_as_it_was_after_a_header(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(DAMAGED["truncated"])
    for enabled in (True, False):
        (gc.enable if enabled else gc.disable)()
        try:
            with pytest.raises(ValueError, match="damaged"):
                open_checkpoint(tmp_path / "x.safetensors")
            assert gc.isenabled() == enabled
        finally:
            gc.enable()
