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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from heldout.errors import require
from heldout.measure import perplexity, token_blocks
from heldout.weights.checkpoint import open_checkpoint, save_checkpoint
from heldout.weights.quantization.awq import Rule, apply_awq, awq_search, block_linears, block_rules
from heldout.weights.quantization.blockwise import evaluating, forward
from heldout.weights.quantization.gptq import gptq
from heldout.weights.quantization.quantize import QTensor, check_layers, pack_codes, rtn
from heldout.weights.tying import load_checkpoint

QUANTIZE_METHODS = ("awq", "gptq", "rtn")
QUANTIZE_BITS = (3, 4, 8)

_COMPANIONS = (".json", ".txt", ".model", ".jinja")
_HELD_OUT = 5  # every fifth block of text measures and does not calibrate
_TOKENS_AT_ONCE = 4096


@dataclass(frozen=True)
class QuantizeReport:
    """What quantising a folder did.

    Attributes:
        out: the folder written.
        model: class of the model.
        method, bits, group_size: how it was quantised.
        layout: "pack-quantized", or "dense" where the weights are stored dequantised.
        layers: linear layers quantised.
        perplexity_before, perplexity_after: of a causal language model on held-out calibration text; None for other
            models, and without text.
        output_error: squared change of the model's outputs over their squares, on held-out data.
        bytes_before, bytes_after: sizes of the weight files.
        seconds: time taken.
        notes: what the user should know.
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
        folder: configuration, tokenizer and safetensors of a Llama, Mistral, Qwen2, Qwen3, OPT, GPT-2, GPT-NeoX,
            BERT or ViT.
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
    """
    start = time.perf_counter()
    folder, out = Path(folder), Path(out)
    _check_arguments(folder, out, method, bits)
    model, dtype = _load(folder)
    known = block_linears(model)
    check_layers(known, group_size)
    calibration, held_out, notes = _data(model, folder, calib, method, blocks, length, seed)
    text = held_out is not None and calib is not None and _is_causal(model)
    with evaluating(model), torch.inference_mode():
        outputs = [forward(model, batch) for batch in held_out]
    before = perplexity(model, held_out) if text else None
    options: dict[str, Any] = {"symmetric": symmetric, "scale_dtype": dtype}
    if method == "gptq":
        quantised = gptq(model, calibration, bits, group_size, **options)
    else:
        if method == "awq":
            rules, unscaled = _storable_rules(model)
            found = awq_search(model, calibration, bits, group_size, symmetric=symmetric, rules=rules)
            apply_awq(model, found)
            notes += found.notes + unscaled
        quantised = rtn(model, bits, group_size, layers=known, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(dtype))
    after = perplexity(model, held_out) if text else None
    error = _output_error(model, held_out, outputs)
    packed = all(isinstance(module, nn.Linear) for module in known.values())
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
    _write(model, quantised if packed else {}, folder, out, dtype, bits, group_size, symmetric)
    return QuantizeReport(
        out=str(out),
        model=type(model).__name__,
        method=method,
        bits=bits,
        group_size=group_size,
        layout="pack-quantized" if packed else "dense",
        layers=len(quantised),
        perplexity_before=before,
        perplexity_after=after,
        output_error=error,
        bytes_before=_weight_bytes(folder),
        bytes_after=_weight_bytes(out),
        seconds=time.perf_counter() - start,
        notes=tuple(dict.fromkeys(notes)),
    )


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
    transformers = require("transformers")
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    except (ValueError, OSError, KeyError) as error:
        raise ValueError(f"{folder / 'config.json'} is not understood: {str(error).splitlines()[0]}") from None
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(f"the model in {folder} is quantised already")
    name = next(iter(config.architectures or ()), None)
    kind = getattr(transformers, name, None) if name else None
    if kind is None or not issubclass(kind, transformers.PreTrainedModel):
        raise ValueError(f"{folder / 'config.json'} names the architecture {name!r}, which transformers does not have")
    with open_checkpoint(folder) as checkpoint:
        floating = [entry.dtype for entry in checkpoint.entries.values() if entry.dtype.is_floating_point]
    dtype = max(set(floating), key=floating.count)
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"the weights in {folder} are {dtype}; expected float32, float16 or bfloat16")
    model, found = kind.from_pretrained(
        folder, dtype=torch.float32, use_safetensors=True, local_files_only=True, output_loading_info=True
    )
    if missing := sorted(found["missing_keys"]):
        raise ValueError(f"{folder} lacks weights of {name}, among them {missing[0]}")
    for parameter_name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise ValueError(f"{folder} holds NaN or infinite weights in {parameter_name}")
    return model.eval(), dtype


def _data(
    model: nn.Module, folder: Path, calib: str | Path | None, method: str, blocks: int, length: int, seed: int
) -> tuple[list[Tensor], list[Tensor], list[str]]:
    """Returns batches to calibrate on, batches to measure on, and notes."""
    config: Any = model.config
    pixels = getattr(model, "main_input_name", "") == "pixel_values"
    generator = torch.Generator().manual_seed(seed)
    notes = []
    if pixels:
        shape = (getattr(config, "num_channels", 3), config.image_size, config.image_size)
        data = _images(Path(calib), shape, blocks) if calib else torch.randn(32, *shape, generator=generator)
        if not calib:
            notes.append("no --calib: noise images stand for the data; images of yours calibrate better")
        at_once = 16
    else:
        length = min(length, getattr(config, "max_position_embeddings", None) or length)
        if calib:
            data = _text_blocks(folder, Path(calib), length, blocks + -(-blocks // (_HELD_OUT - 1)))
        elif method == "rtn":
            data = torch.randint(config.vocab_size, (10, min(length, 128)), generator=generator)
            notes.append("no --calib: no perplexity; the output error is that on random tokens")
        else:
            raise ValueError(f"{method} needs calibration text: --calib texts.jsonl")
        at_once = max(1, _TOKENS_AT_ONCE // length)
    if len(data) < 2:
        raise ValueError(
            "the calibration data fills one block only; two are needed, one to calibrate and one to measure: "
            "give more, or a smaller --length"
        )
    measured = max(1, len(data) // _HELD_OUT)
    return list(data[:-measured].split(at_once)), list(data[-measured:].split(at_once)), notes


def _text_blocks(folder: Path, calib: Path, length: int, limit: int) -> Tensor:
    from transformers import AutoTokenizer

    texts = list(_texts(calib))
    if not texts:
        raise ValueError(f"{calib} holds no text")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (ValueError, OSError, TypeError) as error:
        raise ValueError(f"{folder} holds no tokenizer: {str(error).splitlines()[0]}") from None
    try:
        return token_blocks(texts, tokenizer, length, limit=limit)
    except ValueError as error:
        raise ValueError(f"{calib}: {error}; give more, or a smaller --length") from None


def _texts(calib: Path) -> Iterator[str]:
    if not calib.is_file():
        raise FileNotFoundError(f"no file {calib}")
    with calib.open(encoding="utf-8") as lines:
        try:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                item = json.loads(line)
                text = item.get("text") if isinstance(item, dict) else item
                if not isinstance(text, str):
                    raise ValueError(f"line {number} is neither a string nor an object with a text")
                if text.strip():
                    yield text
        except json.JSONDecodeError:
            raise ValueError(f"{calib} is not JSON Lines: line {number}") from None
        except ValueError as error:
            raise ValueError(f"{calib}: {error}") from None


def _images(calib: Path, shape: tuple[int, ...], limit: int) -> Tensor:
    if calib.suffix != ".safetensors":
        raise ValueError(f"{calib}: a vision model is calibrated on a safetensors file with pixel_values")
    images = load_checkpoint(calib).get("pixel_values")
    if images is None or images.shape[1:] != shape:
        raise ValueError(f"{calib} needs pixel_values of shape (n, {', '.join(map(str, shape))})")
    if not bool(torch.isfinite(images).all()):
        raise ValueError(f"{calib} holds NaN or infinite pixels")
    return images[:limit].float()


def _is_causal(model: nn.Module) -> bool:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return type(model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()


def _storable_rules(model: nn.Module) -> tuple[dict[type[nn.Module], Rule], list[str]]:
    """Returns the rules without the groups that would need a new module, and a note for them."""
    notes = []
    rules: dict[type[nn.Module], Rule] = {}
    for block, rule in block_rules(model).values():
        kept = tuple(g for g in rule.groups if hasattr(block.get_submodule(g.producer), "weight"))
        rules[type(block)] = lambda _, rule=rule, kept=kept: replace(rule, groups=kept)  # type: ignore[misc]
        notes += [
            f"{', '.join(group.consumers)} follows an activation function, whose output a saved model cannot scale: it "
            f"is clipped only"
            for group in rule.groups
            if group not in kept
        ]
    return rules, list(dict.fromkeys(notes))


def _output_error(model: nn.Module, batches: list[Tensor], outputs: list[Tensor]) -> float:
    change = total = 0.0
    with evaluating(model), torch.inference_mode():
        for batch, output in zip(batches, outputs, strict=True):
            change += float((forward(model, batch) - output).double().square().sum())
            total += float(output.double().square().sum())
    return change / max(total, 1e-30)


def _write(
    model: nn.Module,
    quantised: Mapping[str, QTensor],
    folder: Path,
    out: Path,
    dtype: torch.dtype,
    bits: int,
    group_size: int,
    symmetric: bool,
) -> None:
    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        for companion in sorted(folder.iterdir()):
            if companion.suffix in _COMPANIONS and companion.is_file() and ".safetensors." not in companion.name:
                shutil.copyfile(companion, temporary / companion.name)
        if quantised:
            config = json.loads((folder / "config.json").read_text("utf-8"))
            ignored = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n not in quantised]
            config["quantization_config"] = _quantization_config(bits, group_size, symmetric, ignored)
            (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
        save_checkpoint(_state(model, quantised, dtype), temporary / "model.safetensors")
        os.chmod(temporary, 0o755)
        os.replace(temporary, out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


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
