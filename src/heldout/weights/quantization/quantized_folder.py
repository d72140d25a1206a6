"""A transformers folder in, a quantised transformers folder out: what ``heldout quantize`` does.

The weights are stored in the layout "pack-quantized" of compressed-tensors, which transformers and vLLM load: levels
packed densely into int32 words, a scale in the model's own data type and a packed zero point per group. GPT-2 keeps its
weights in ``Conv1D`` modules, which that layout does not know: it is stored with dequantised weights, in full size.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from heldout.errors import check_fields, checked
from heldout.measure import perplexity
from heldout.weights.checkpoint import companions, open_checkpoint, save_checkpoint
from heldout.weights.quantised_files import check_not_quantised
from heldout.weights.quantization.awq import apply_awq, awq_search
from heldout.weights.quantization.block_rules import block_linears
from heldout.weights.quantization.blockwise import evaluating, forward
from heldout.weights.quantization.calibration import Batch, calibration_data
from heldout.weights.quantization.gptq import gptq
from heldout.weights.quantization.quantize import QTensor, check_layers, pack_codes, rtn
from heldout.weights.tying import model_class, read_config

QUANTIZE_METHODS = ("awq", "gptq", "rtn")
QUANTIZE_BITS = (3, 4, 8)

_FUSED = 0.01  # share of the weights in fused experts from which the user is told


@dataclass(frozen=True)
class QuantizeReport:
    """What quantising a folder did.

    Attributes:
        out: the folder written.
        model: class of the model.
        method, bits, group_size: how it was quantised.
        layout: "pack-quantized", or "dense" where the weights are stored dequantised.
        layers: linear layers quantised.
        perplexity_before, perplexity_after: of a causal language model on held-out calibration text, after: of the
            model loaded from ``out``; None for other models, and without text.
        output_error: squared change of the outputs over their squares, on held-out data, by the model loaded from
            ``out``.
        bytes_before, bytes_after: sizes of the weight files.
        seconds: time taken.
        notes: what the user should know.

    Example:
        >>> report = QuantizeReport(
        ...     out="small", model="LlamaForCausalLM", method="awq", bits=4, group_size=128, layout="pack-quantized",
        ...     layers=224, perplexity_before=8.0, perplexity_after=8.2, output_error=0.01,
        ...     bytes_before=16_000, bytes_after=5_000, seconds=60.0, notes=(),
        ... )
        >>> f"{report.bytes_before / report.bytes_after:.1f} times smaller"
        '3.2 times smaller'
    """

    out: str
    model: str
    method: str
    bits: int
    group_size: int
    layout: str
    layers: int
    perplexity_before: float | None
    perplexity_after: float | None
    output_error: float
    bytes_before: int
    bytes_after: int
    seconds: float
    notes: tuple[str, ...]

    def __post_init__(self) -> None:
        check_fields(self)


@checked
def quantize_folder(
    folder: str | Path,
    out: str | Path,
    *,
    method: str = "awq",
    bits: int = 4,
    group_size: int = 128,
    calib: str | Path | None = None,
    blocks: int = 128,
    length: int = 512,
    symmetric: bool = False,
    seed: int = 0,
) -> QuantizeReport:
    """Quantises the model in a transformers folder and writes it to another, whole or not at all.

    The model is loaded in float32. Embeddings, heads, norms and biases keep their data type.

    Args:
        folder: configuration, tokenizer and safetensors of a transformer of the transformers library: its blocks, and
            what may be scaled in them, are found by looking and trying (Llama, Mistral, Mixtral, Qwen, Gemma, Phi 3,
            OPT, GPT-2, GPT-NeoX, BLOOM, T5, BERT, RoBERTa, ViT are tested). Code of the folder is never run.
        out: the folder to write, which must not exist or be empty.
        method: "awq", "gptq" or "rtn" (round to nearest, which needs no calibration).
        bits: 3, 4 or 8.
        group_size: inputs that share a scale, -1 for whole rows.
        calib: for text models a JSON Lines file, each line a string or an object with a "text". For vision models a
            safetensors file with normalised ``pixel_values`` ``(n, channels, height, width)``; left out, noise is
            used. A fifth of the data only measures.
        blocks: calibration blocks (or images) used at most.
        length: tokens of a block; at most what the model takes.
        symmetric: no zero points.
        seed: of noise and random tokens.

    Raises:
        FileNotFoundError: if a folder or file is missing.
        ValueError: what is wrong with the arguments, the folder, the weights or the calibration data.

    Source: arXiv:2306.00978, arXiv:2210.17323.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=64, **sizes))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save_pretrained(f"{folder}/model")
        ...     report = quantize_folder(f"{folder}/model", f"{folder}/small", method="rtn", bits=8, group_size=32)
        >>> report.layers, report.output_error < 1e-3
        (14, True)
    """
    start = time.perf_counter()
    folder, out = Path(folder), Path(out)
    _check_arguments(folder, out, method, bits)
    model, dtype = _load(folder)
    known = block_linears(model)
    check_layers(known, group_size)
    calibration, held_out, notes = calibration_data(model, folder, calib, method, blocks, length, seed)
    text = calib is not None and _is_causal(model)
    with evaluating(model), torch.inference_mode():
        outputs = [forward(model, batch) for batch in held_out]
    before = perplexity(model, held_out) if text else None
    options: dict[str, Any] = {"symmetric": symmetric, "scale_dtype": dtype}
    if method == "gptq":
        quantised = gptq(model, calibration, bits, group_size, **options)
    else:
        if method == "awq":
            found = awq_search(model, calibration, bits, group_size, symmetric=symmetric, activations=False)
            apply_awq(model, found)
            notes += found.notes
        quantised = rtn(model, bits, group_size, layers=known, **options)
    packed = all(isinstance(module, nn.Linear) for module in known.values())
    notes += _layout_notes(model, packed, bits, symmetric)
    with _new_folder(out) as temporary:
        scheme = _quantization_config(bits, group_size, symmetric, _ignored(model, quantised)) if packed else None
        _write(_state(model, quantised if packed else {}, dtype), folder, temporary, scheme)
        kind, layers = type(model), len(quantised)
        del model, known, quantised
        after, error = _reloaded(kind, temporary, held_out, outputs, text=text)
    return QuantizeReport(
        out=str(out),
        model=kind.__name__,
        method=method,
        bits=bits,
        group_size=group_size,
        layout="pack-quantized" if packed else "dense",
        layers=layers,
        perplexity_before=before,
        perplexity_after=after,
        output_error=error,
        bytes_before=_weight_bytes(folder),
        bytes_after=_weight_bytes(out),
        seconds=time.perf_counter() - start,
        notes=tuple(dict.fromkeys(notes)),
    )


def _layout_notes(model: nn.Module, packed: bool, bits: int, symmetric: bool) -> list[str]:
    notes = []
    if not packed:
        notes.append(
            "the Conv1D weights of this model do not exist in the packed layout: they are stored dequantised, in full "
            "size, loadable everywhere"
        )
    elif not symmetric:
        notes.append(
            "transformers dequantises these weights while it loads them, because it keeps no packed zero points in "
            "memory; --symmetric weights stay packed until the first forward pass"
        )
    if packed and bits == 3:
        notes.append(
            "3 bits are packed densely, as compressed-tensors 0.20 reads them: transformers loads them with it, older "
            "releases and most kernels do not"
        )
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters() if parameter.dim() == 3}
    share = sum(sizes.values()) / sum(parameter.numel() for parameter in model.parameters())
    if share > _FUSED:
        notes.append(
            f"{share:.0%} of the weights are fused experts, which are no linear layers ({next(iter(sizes))}, ...): "
            "they keep their precision, under the names that transformers 5 gives them"
        )
    return notes


def _check_arguments(folder: Path, out: Path, method: str, bits: int) -> None:
    if method not in QUANTIZE_METHODS:
        raise ValueError(f"method must be one of {', '.join(QUANTIZE_METHODS)}, got {method!r}")
    if bits not in QUANTIZE_BITS:
        raise ValueError(f"bits must be one of {', '.join(map(str, QUANTIZE_BITS))}, got {bits}")
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}")
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no config.json, so it is not a transformers folder")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"the output {out} exists and is not an empty folder")
    pickles = [file.name for file in sorted(folder.iterdir()) if file.suffix in (".bin", ".pt", ".pth", ".pkl")]
    if pickles and not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"{folder} holds no safetensors, only {pickles[0]}, a pickle; it is refused because a pickle can run code"
        )


def _load(folder: Path) -> tuple[nn.Module, torch.dtype]:
    """Returns the model in float32, and the data type that its weights are stored in."""
    kind, config = model_class(folder)
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(f"the model in {folder} is quantised already")
    with open_checkpoint(folder) as checkpoint:
        check_not_quantised(checkpoint)
        floating = [entry.dtype for entry in checkpoint.entries.values() if entry.dtype.is_floating_point]
    dtype = max(set(floating), key=floating.count)
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"the weights in {folder} are {dtype}; expected float32, float16 or bfloat16")
    model, found = _from_pretrained(kind, folder, torch.float32)
    if missing := sorted(found["missing_keys"]):
        raise ValueError(f"{folder} lacks weights of {kind.__name__}, among them {missing[0]}")
    for parameter_name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise ValueError(f"{folder} holds NaN or infinite weights in {parameter_name}")
    return model.eval(), dtype


def _is_causal(model: nn.Module) -> bool:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return type(model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()


def _from_pretrained(kind: Any, folder: Path, dtype: Any) -> tuple[Any, dict[str, Any]]:
    return kind.from_pretrained(
        folder, dtype=dtype, use_safetensors=True, local_files_only=True, trust_remote_code=False,
        output_loading_info=True,
    )  # fmt: skip


def _reloaded(
    kind: type[nn.Module], folder: Path, batches: Sequence[Batch], outputs: list[Tensor], *, text: bool
) -> tuple[float | None, float]:
    """Returns the perplexity and the output error of the model that the user will load, computed in float32.

    Raises:
        ValueError: if transformers misses a weight in the folder, or does not know one that is there.
    """
    model, found = _from_pretrained(kind, folder, "auto")
    lost = {"lacks": sorted(found["missing_keys"]), "holds, unknown to the model,": sorted(found["unexpected_keys"])}
    for what, names in lost.items():
        if names:
            raise ValueError(f"the quantised model would not load whole: its folder {what} {names[0]}")
    model.eval()
    with evaluating(model), torch.no_grad():
        forward(model, batches[0])  # what is still packed is unpacked by this, in its own data type
    nn.Module.float(model)  # transformers refuses it for a model that it has dequantised
    change = total = 0.0
    with evaluating(model), torch.inference_mode():
        for batch, output in zip(batches, outputs, strict=True):
            change += float((forward(model, batch) - output).double().square().sum())
            total += float(output.double().square().sum())
    return perplexity(model, batches) if text else None, change / max(total, 1e-30)


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """Yields a hidden folder beside ``out`` that becomes it at the end, or is removed."""
    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        yield temporary
        os.chmod(temporary, 0o755)
        os.replace(temporary, out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _write(state: Mapping[str, Tensor], folder: Path, temporary: Path, scheme: dict[str, Any] | None) -> None:
    for companion in companions(folder):
        shutil.copyfile(companion, temporary / companion.name)
    if scheme is not None:
        config = read_config(folder) | {"quantization_config": scheme}
        (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    save_checkpoint(state, temporary / "model.safetensors")


def _ignored(model: nn.Module, quantised: Mapping[str, QTensor]) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name not in quantised]


def _state(model: nn.Module, quantised: Mapping[str, QTensor], dtype: torch.dtype) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    converted: dict[int, Tensor] = {}
    for name, value in model.state_dict().items():
        layer = name.removesuffix(".weight")
        if layer not in quantised or layer == name:
            key = value.data_ptr()  # tied weights stay tied
            if key not in converted or converted[key].shape != value.shape:
                converted[key] = value.to(dtype) if value.is_floating_point() else value
            state[name] = converted[key]
            continue
        tensor = quantised[layer]
        state[f"{layer}.weight_packed"] = pack_codes(tensor.q, tensor.bits)
        state[f"{layer}.weight_scale"] = tensor.scale
        state[f"{layer}.weight_shape"] = torch.tensor(tensor.q.shape)
        if tensor.zero is not None:
            state[f"{layer}.weight_zero_point"] = pack_codes(tensor.zero.T.contiguous(), tensor.bits).T.contiguous()
    return state


def _quantization_config(bits: int, group_size: int, symmetric: bool, ignored: list[str]) -> dict[str, Any]:
    grouped = group_size != -1
    weights = {
        "num_bits": bits,
        "type": "int",
        "symmetric": symmetric,
        "strategy": "group" if grouped else "channel",
        "group_size": group_size if grouped else None,
        "dynamic": False,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": weights,
                "input_activations": None,
                "output_activations": None,
            }
        },
        "ignore": ignored,
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
        # transformers 5.23 holds no packed zero points in memory, so it is told to dequantise while it loads
        "dequantize": not symmetric,
    }


def _weight_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
