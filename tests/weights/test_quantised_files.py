import json

import pytest
import torch
from safetensors.torch import save_file

from heldout.weights import lines_files, merge_checkpoints, open_checkpoint
from heldout.weights.quantised_files import quantised_part


@pytest.mark.parametrize(
    "kind", ["packed", "by configuration", "int8", "fp8", "hqq", "quanto", "blocks", "experts", "other names"]
)
def test_quantised_checkpoints_are_not_mixed(tmp_path, kind):
    w = {f"h.{i}.{part}.weight": torch.randn(4, 4) for i in range(2) for part in ("a", "b")}
    state = {
        "packed": w | {"h.0.a.qweight": torch.ones(4, 4, dtype=torch.int32)},
        "by configuration": w,
        "int8": {name: value.to(torch.int8) for name, value in w.items()},
        "fp8": w | {"h.0.a.weight_scale_inv": torch.ones(1)},
        "hqq": w | {"h.0.W_q": torch.ones(4, 4, dtype=torch.uint8), "h.0.meta.scale": torch.ones(4)},
        "quanto": w | {"h.0.a.weight._data": torch.ones(4, 4, dtype=torch.int8)},
        "blocks": w | {"h.0.down_proj_blocks": torch.ones(2, 4, 4, 8, dtype=torch.uint8)},
        "experts": w | {"h.0.experts.weight": torch.ones(2, 4, 4, dtype=torch.int8)},
        "other names": w | {"h.0.w": torch.ones(4, 4, dtype=torch.int8), "h.0.w_scale": torch.ones(4)},
    }[kind]
    for name in ("base", "a"):
        (tmp_path / name).mkdir()
        save_file(state, tmp_path / name / "model.safetensors")
        config = {"quantization_config": {"quant_method": "gptq"}} if kind == "by configuration" else {}
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    for method in ("ties", "lines"):
        with pytest.raises(ValueError, match=r"base is quantised \(.*dequantise it"):
            merge_checkpoints(tmp_path / "base", [tmp_path / "a"], tmp_path / "out", method=method)
    with pytest.raises(ValueError, match="is quantised"):
        lines_files(tmp_path / "base", tmp_path / "a", tmp_path / "out", alpha=0.5)
    assert not (tmp_path / "out").exists()


def test_ordinary_checkpoints_are_none(tmp_path):
    state = {"h.0.scale": torch.ones(3), "position_ids": torch.arange(4), "h.0.weight": torch.ones(2, 2)}
    state |= {"h.0.attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.uint8), "ids": torch.zeros(1, 4, dtype=torch.int64)}
    save_file(state, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path / "model.safetensors") as checkpoint:
        assert quantised_part(checkpoint) is None
