"""PEGO's orthogonality loss from the factors against the products written out, and a training step against peft's LoRA.

Three tables, on one thread. First, forward and backward of the loss of one layer of width d as d doubles: every product
materialised (B A, then W (B A)^T and each (B_i A_i)(B_j A_j)^T, d^3 multiply-adds each), the L1 norm from the factors
(d^2 r), and the squared Frobenius norm from them, whole and without the term of the frozen ``W A^T``: what is left must
not grow with d^2. Second, what autograd keeps of each for the backward pass. Third, a training step of a transformers
ViT: peft's LoRA of rank N r, PEGO with the products written out, and PEGO from the factors.

Limits: from the factors no slower than the products, in the loss (from 512 on, where products are what costs) and in
the step (at full size); what the loss without ``W A^T`` keeps grows at most 2.5 times as d doubles.

    python benchmarks/pego.py [--quick]
"""

from __future__ import annotations

import argparse
import functools
import itertools
import statistics
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heldout.losses import orthogonal_group_loss
from heldout.nn import LoRAGroup, inject_lora_group, query_and_value

RANK, SIZE = 4, 4


def products_written_out(groups: Sequence[LoRAGroup]) -> Tensor:
    """The loss as the authors' code has it."""
    total = torch.zeros(())
    for group in groups:
        for rows, a, b in group.factors():
            w = group.frozen_weight[rows]
            deltas = [b[i] @ a[i] for i in range(group.size)]
            for i, delta in enumerate(deltas):
                total = total + (w @ delta.T).abs().sum()
                for other in deltas[i + 1 :]:
                    total = total + (delta @ other.T).abs().sum()
    return total


def squares(groups: Sequence[LoRAGroup]) -> Tensor:
    return orthogonal_group_loss(groups, norm="fro")


def squares_without_weight(groups: Sequence[LoRAGroup]) -> Tensor:
    return orthogonal_group_loss(groups, preserve=0.0, norm="fro")


def random_group(dim: int) -> LoRAGroup:
    generator = torch.Generator().manual_seed(0)
    group = LoRAGroup(nn.Linear(dim, dim, bias=False), RANK, SIZE, generator=generator)
    nn.init.normal_(group.lora_B[0], std=0.01, generator=generator)
    return group


def seconds_each(functions: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """The median CPU time of each, measured in turns."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for round_ in range(repeats + 1):
        for name, function in functions.items():
            start = time.process_time()
            function()
            if round_:
                times[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in times.items()}


class LiveBytes:
    """Most bytes kept for the backward pass, by the saved-tensor hooks of autograd."""

    def __init__(self) -> None:
        self.seen: dict[int, int] = {}
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.pack, lambda value: value)

    def pack(self, value: Tensor) -> Tensor:
        self.seen[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    @property
    def bytes(self) -> int:
        return sum(self.seen.values())


LOSSES: dict[str, Callable[[Sequence[LoRAGroup]], Tensor]] = {
    "products": products_written_out,
    "factors, l1": lambda groups: orthogonal_group_loss(groups),
    "factors, fro": squares,
    "fro, no W A^T": squares_without_weight,
}


def forward_and_backward(loss: Callable[[Sequence[LoRAGroup]], Tensor], groups: Sequence[LoRAGroup]) -> None:
    loss(groups).backward()


def loss_tables(widths: Sequence[int], repeats: int) -> bool:
    print(f"forward and backward of one layer's loss, N = {SIZE}, r = {RANK}, ms")
    print(f"{'d':>6}" + "".join(f"{name:>15}" for name in LOSSES) + f"{'products / l1':>15}")
    kept, within = [], True
    for width in widths:
        groups = [random_group(width)]
        if width == widths[0]:
            torch.testing.assert_close(products_written_out(groups), orthogonal_group_loss(groups), rtol=1e-4, atol=0.1)
        times = seconds_each(
            {name: functools.partial(forward_and_backward, f, groups) for name, f in LOSSES.items()}, repeats
        )
        ratio = times["products"] / times["factors, l1"]
        print(f"{width:>6}" + "".join(f"{1000 * t:>15.2f}" for t in times.values()) + f"{ratio:>14.1f}x")
        within &= ratio >= 1 or width < 512
        row = {}
        for name, function in LOSSES.items():
            live = LiveBytes()
            with live.hooks:
                loss = function(groups)
            row[name] = live.bytes
            loss.backward()
        kept.append((width, row))
    print("\nkept for the backward pass, MB (the frozen weight itself included)")
    print(f"{'d':>6}" + "".join(f"{name:>15}" for name in LOSSES))
    for width, row in kept:
        print(f"{width:>6}" + "".join(f"{value / 1e6:>15.2f}" for value in row.values()))
    held = [row["fro, no W A^T"] for _, row in kept]
    return within and all(later <= 2.5 * earlier for earlier, later in itertools.pairwise(held))


def step_table(dim: int, layers: int, batch: int, repeats: int) -> bool:
    from peft import LoraConfig, get_peft_model
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=dim, num_hidden_layers=layers, num_attention_heads=dim // 64, intermediate_size=4 * dim,
        image_size=64, patch_size=8,
    )  # fmt: skip
    images, labels = torch.randn(batch, 3, 64, 64), torch.randint(0, 2, (batch,))

    def step_of(model: nn.Module, penalty: Callable[[], Tensor] | None) -> Callable[[], object]:
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-4)

        def step() -> None:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images).logits, labels)
            if penalty is not None:
                loss = loss + 1e-3 * penalty()
            loss.backward()
            optimizer.step()

        return step

    def injected() -> tuple[nn.Module, list[LoRAGroup]]:
        model = ViTForImageClassification(config)
        groups = inject_lora_group(model, query_and_value, RANK, SIZE)
        model.classifier.requires_grad_(True)
        return model, groups

    def peft_model() -> nn.Module:
        rank = RANK * SIZE
        options = LoraConfig(
            r=rank, lora_alpha=rank, target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"]
        )
        return get_peft_model(ViTForImageClassification(config), options)

    plain = peft_model()
    (no_penalty, _), (naive, naive_groups), (ours, our_groups) = injected(), injected(), injected()
    models = {
        f"peft LoRA, rank {RANK * SIZE}": (plain, None),
        "LoRA group, no penalty": (no_penalty, None),
        "PEGO, products": (naive, lambda: products_written_out(naive_groups)),
        "PEGO, factors": (ours, lambda: orthogonal_group_loss(our_groups)),
    }
    steps = {name: step_of(model, penalty) for name, (model, penalty) in models.items()}
    times = seconds_each(steps, repeats)
    print(f"\ntraining step of a ViT of width {dim}, {layers} layers, batch {batch} of 65 tokens")
    print(f"{'':24}{'trainable':>12}{'ms':>10}{'x peft':>8}{'saved MB':>10}")
    first = next(iter(times.values()))
    for name, (model, penalty) in models.items():
        trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        live = LiveBytes()
        with live.hooks:
            loss = F.cross_entropy(model(images).logits, labels)
            loss = loss + (penalty() if penalty is not None else 0)
        print(
            f"{name:24}{trainable:>12,}{1000 * times[name]:>10.1f}{times[name] / first:>8.2f}{live.bytes / 1e6:>10.1f}"
        )
    return times["PEGO, factors"] <= times["PEGO, products"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    within = loss_tables((128, 256) if options.quick else (128, 256, 512, 1024), 3 if options.quick else 5)
    faster = step_table(*((128, 2, 4, 3) if options.quick else (384, 4, 8, 4)))
    return 0 if within and (faster or options.quick) else 1


if __name__ == "__main__":
    raise SystemExit(main())
