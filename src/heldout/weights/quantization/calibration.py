"""The text or images that a folder's model is calibrated and measured on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from heldout.measure import token_blocks
from heldout.weights.tying import load_checkpoint

Batch = Tensor | Mapping[str, Tensor]

_HELD_OUT = 5  # every fifth block of text measures and does not calibrate
_TOKENS_AT_ONCE = 4096


def calibration_data(
    model: nn.Module, folder: Path, calib: str | Path | None, method: str, blocks: int, length: int, seed: int
) -> tuple[list[Batch], list[Batch], list[str]]:
    """Returns batches to calibrate on, batches to measure on, and notes for the user.

    Token ids ``(batch, length)`` or pixels; for an encoder-decoder dicts of its arguments, where the first half of each
    block of text is read and the second written. Arguments as in ``quantize_folder``.

    Raises:
        FileNotFoundError: if ``calib`` is missing.
        ValueError: if it does not fit the model, or is too short.
    """
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
        length = min(length, _positions(model) or length)
        if calib:
            data = text_blocks(folder, Path(calib), length, blocks + -(-blocks // (_HELD_OUT - 1)))
        elif method == "rtn":
            data = torch.randint(config.vocab_size, (10, min(length, 128)), generator=generator)
            notes.append("no --calib: no perplexity; the output error is that on random tokens")
        else:
            raise ValueError(f"{method} needs calibration text: --calib texts.jsonl")
        if calib and len(data) < blocks:
            notes.append(
                f"{calib} fills {len(data)} blocks of {length} tokens, of the {blocks} asked for: the fewer they "
                "are, the less the scales and the measured loss can be relied on"
            )
        at_once = max(1, _TOKENS_AT_ONCE // length)
    if len(data) < 2:
        raise ValueError(
            "the calibration data fills one block only; two are needed, one to calibrate and one to measure: "
            "give more, or a smaller --length"
        )
    measured = max(1, len(data) // _HELD_OUT)
    parts = [list(part.split(at_once)) for part in (data[:-measured], data[-measured:])]
    if getattr(config, "is_encoder_decoder", False):
        return *([_read_and_written(batch) for batch in part] for part in parts), notes  # type: ignore[return-value]
    return parts[0], parts[1], notes


def _positions(model: nn.Module) -> int | None:
    """How many tokens a model takes, None for any number: RoBERTa and its kin count from behind their padding id."""
    known = getattr(model.config, "max_position_embeddings", None)
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return int(module.num_embeddings) - int(module.padding_idx) - 1
    return known


def _read_and_written(tokens: Tensor) -> dict[str, Tensor]:
    half = tokens.shape[1] // 2
    return {"input_ids": tokens[:, :half], "decoder_input_ids": tokens[:, half:]}


def text_blocks(folder: Path, calib: Path, length: int, limit: int) -> Tensor:
    """Returns at most ``limit`` blocks of tokens ``(n, length)`` of a JSON Lines file, by the folder's tokenizer."""
    from transformers import AutoTokenizer

    texts = list(_texts(calib))
    if not texts:
        raise ValueError(f"{calib} holds no text")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, OSError, TypeError) as error:
        raise ValueError(f"{folder} holds no tokenizer: {str(error).splitlines()[0]}") from None
    try:
        return token_blocks(texts, tokenizer, length, limit=limit)
    except ValueError as error:
        raise ValueError(f"{calib}: {error}; give more, or a smaller --length") from None


def _texts(calib: Path) -> Iterator[str]:
    if not calib.is_file():
        raise FileNotFoundError(f"no file {calib}")
    with calib.open(encoding="utf-8-sig") as lines:
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
