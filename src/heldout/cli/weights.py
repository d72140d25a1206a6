"""merge, quantize: checkpoints on disk."""

from __future__ import annotations

import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from heldout.cli.options import Json
from heldout.cli.output import INTERRUPTED, fail, one_line_errors, print_json, say


def merge(
    models: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="BASE FT1 [FT2 ...]",
            help="safetensors files, transformers folders (sharded or not); fine-tuned ones may be LoRA adapters.",
        ),
    ] = None,
    method: Annotated[str, typer.Option(help="wise-ft, task-arithmetic, ties, consensus or lines.")] = "",
    alpha: Annotated[
        float | None, typer.Option(help="wise-ft: weight of FT1 (0.5). lines: factor of the first block.")
    ] = None,
    beta: Annotated[float | None, typer.Option(help="lines: what the last block gets on top of alpha.")] = None,
    scale: Annotated[float | None, typer.Option(help="Factor of the merged change (1).")] = None,
    density: Annotated[
        float | None, typer.Option(help="ties: share of each task's entries that is kept (0.2).")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The folder to create; it appears when it is complete.")] = None,
    as_json: Json = False,
) -> None:
    """Merge fine-tuned checkpoints or LoRA adapters into their base model, without loading them whole.

    Example: heldout merge base/ maths/ code/ --method ties --density 0.2 --out merged/
    """
    if not models:
        fail("name the base and at least one fine-tuned model: heldout merge BASE FT1 [FT2 ...] --method ... --out DIR")
    if out is None:
        fail("say where the merged model goes: --out DIR")
    from heldout.weights import merge_checkpoints

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what is under way is removed
    started = time.perf_counter()
    options = {"alpha": alpha, "beta": beta, "scale": scale, "density": density}
    try:
        done = merge_checkpoints(models[0], models[1:], out, method=method, **options)
    except (ValueError, OSError) as error:
        fail(str(error))
    except KeyboardInterrupt:
        say("interrupted; nothing was written")
        raise typer.Exit(INTERRUPTED) from None
    document = asdict(done) | {"out": str(out), "base": str(models[0]), "finetuned": [str(ft) for ft in models[1:]]}
    if as_json:
        print_json(document | {"seconds": time.perf_counter() - started})
    else:
        options_text = ", ".join(f"{name} {value:g}" for name, value in done.options.items())
        print(f"{done.method} ({options_text}) of {len(models) - 1} models into {out}: {done.tensors} tensors, "
              f"{done.parameters:,} parameters, {done.copied} tensors copied from the base")  # fmt: skip


def quantize(
    model: Annotated[Path, typer.Argument(help="A transformers folder with safetensors.")],
    out: Annotated[Path | None, typer.Option(help="The folder to create; it appears when it is complete.")] = None,
    method: Annotated[str, typer.Option(help="awq, gptq or rtn (round to nearest, needs no calibration).")] = "awq",
    bits: Annotated[int, typer.Option(help="3, 4 or 8.")] = 4,
    group_size: Annotated[int, typer.Option(help="Inputs that share a scale; -1 for whole rows.")] = 128,
    calib: Annotated[
        Path | None, typer.Option(help="JSON Lines of texts; for vision models safetensors with pixel_values.")
    ] = None,
    blocks: Annotated[int, typer.Option(min=1, help="Most calibration blocks.")] = 128,
    length: Annotated[int, typer.Option(min=2, help="Tokens of a calibration block.")] = 512,
    symmetric: Annotated[bool, typer.Option("--symmetric", help="Without zero points.")] = False,
    as_json: Json = False,
) -> None:
    """Quantise a language or vision model to a few bits per weight, in the layout that transformers and vLLM load.

    A fifth of the calibration data only measures what was lost.

    Example: heldout quantize model/ --bits 4 --calib texts.jsonl --out model-awq/
    """
    if out is None:
        fail("say where the quantised model goes: --out DIR")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what is under way is removed
    with one_line_errors():
        from transformers.utils import logging

        from heldout.weights import quantize_folder

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            done = quantize_folder(
                model, out, method=method, bits=bits, group_size=group_size, calib=calib, blocks=blocks, length=length,
                symmetric=symmetric,
            )  # fmt: skip
        except (ValueError, OSError) as error:
            fail(str(error))
        except KeyboardInterrupt:
            say("interrupted; nothing was written")
            raise typer.Exit(INTERRUPTED) from None
    if as_json:
        print_json(asdict(done))
        return
    for note in done.notes:
        say(note)
    if done.perplexity_before is not None:
        print(f"perplexity    {done.perplexity_before:.4g} before, {done.perplexity_after:.4g} after")
    print(f"output error  {done.output_error:.3g} of the outputs' squares")
    print(f"size          {done.bytes_before / 1e6:,.1f} MB before, {done.bytes_after / 1e6:,.1f} MB after")
    print(f"{done.layers} linear layers of {done.model}, {done.method} {done.bits} bits, {done.layout}: {out}")
