"""Speed of AWQ's scale search and of packing, side by side with plain references on the same work.

The search: 32 blocks of 64 tokens through a random tiny Llama whose norms have outlier channels, against the
algorithm written down plainly (for each of 20 exponents: scale, quantise and run the inspected module on all tokens,
then restore its weights). Limit: 1.3 times faster. The exponents that both choose are compared.

Packing: uint8 levels to packed words and back, against a copy of the levels. Pack and unpack return new memory, so the
copy is ``clone``; a copy into memory that is there already stands beside. Up to 32 MB the allocator reuses memory, and
a copy costs no page faults either. Limit: 2 times the clone. compressed-tensors' own functions stand beside, where
installed.
"""

import argparse
import itertools

import torch
from timing import best
from torch import Tensor, nn

from heldout.weights import awq_search, fake_quantize, pack_codes, unpack_codes

SEARCH_LIMIT, PACK_LIMIT = 1.3, 2.0
CLIPPED = ("v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def tiny_llama(width: int, layers: int) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512, hidden_size=width, intermediate_size=width * 8 // 3 // 32 * 32, num_hidden_layers=layers,
        num_attention_heads=4, use_cache=False, initializer_range=0.1,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.copy_(0.5 + 3 * torch.rand_like(parameter) ** 4)
    return model


@torch.no_grad()
def plain_search(model: nn.Module, batch: Tensor, bits: int, group_size: int) -> list[float]:
    """The scale search of AWQ without any shortcut; returns the best exponent of every group."""
    inputs: dict[nn.Module, tuple[tuple, dict]] = {}

    def keep(module: nn.Module, args: tuple, kwargs: dict) -> None:
        inputs[module] = (args, kwargs)

    groups = []
    for block in model.model.layers:
        attention, mlp = block.self_attn, block.mlp
        groups += [
            ([attention.q_proj, attention.k_proj, attention.v_proj], attention),
            ([attention.o_proj], attention.o_proj),
            ([mlp.gate_proj, mlp.up_proj], mlp),
            ([mlp.down_proj], mlp.down_proj),
        ]
    watched = {module for layers, inspected in groups for module in (layers[0], inspected)}
    handles = [module.register_forward_pre_hook(keep, with_kwargs=True) for module in watched]
    model(batch)
    for handle in handles:
        handle.remove()
    chosen = []
    for layers, inspected in groups:
        x = inputs[layers[0]][0][0]
        args, kwargs = inputs[inspected]

        def output(inspected=inspected, args=args, kwargs=kwargs) -> Tensor:
            result = inspected(*args, **kwargs)
            return result if isinstance(result, Tensor) else result[0]

        exact, mean = output(), x.abs().flatten(0, -2).mean(dim=0)
        original = {name: value.clone() for name, value in inspected.state_dict().items()}
        errors = []
        for step in range(20):
            scale = mean.pow(step / 20).clamp(min=1e-4)
            scale = scale / (scale.max() * scale.min()).sqrt()
            for layer in layers:
                layer.weight.mul_(scale)
                layer.weight.data = fake_quantize(layer.weight.data, bits, group_size) / scale
            errors.append((output() - exact).float().pow(2).mean().item())
            inspected.load_state_dict(original)
        chosen.append(min(range(20), key=errors.__getitem__) / 20)
    return chosen


@torch.no_grad()
def plain_clip(model: nn.Module, batch: Tensor, bits: int, group_size: int) -> None:
    """The clip search of AWQ without any shortcut: partial outputs of every group on 512 tokens."""
    seen: dict[nn.Module, Tensor] = {}
    layers = [m for n, m in model.named_modules() if n.split(".")[-1] in CLIPPED]
    hooks = [
        layer.register_forward_pre_hook(lambda m, args: seen.update({m: args[0].flatten(0, 1)})) for layer in layers
    ]
    model(batch)
    for hook in hooks:
        hook.remove()
    for layer in layers:
        x = seen[layer][:: len(seen[layer]) // 512].unflatten(1, (-1, group_size))
        for weight in layer.weight.split(64):
            groups = weight.unflatten(1, (-1, group_size))
            largest, least = groups.abs().amax(dim=-1, keepdim=True), torch.full(groups.shape[:2], torch.inf)
            exact = (x[None] * groups[:, None]).sum(dim=-1)
            for step in range(10):
                limit = largest * (1 - step / 20)
                tried = fake_quantize(groups.clamp(-limit, limit).flatten(1), bits, group_size).view_as(groups)
                least = least.minimum(((x[None] * tried[:, None]).sum(dim=-1) - exact).pow(2).mean(dim=1))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--levels", type=int, nargs="+", default=[8, 64], help="sizes of matrices, in millions of levels"
    )
    arguments = parser.parse_args()
    model = tiny_llama(arguments.width, arguments.layers)
    batch = torch.randint(0, 512, (32, 64), generator=torch.Generator().manual_seed(0))
    ours, plain = [], []
    for _ in range(arguments.rounds):  # in turns, so that both meet the same machine
        plain.append(best(lambda: plain_search(model, batch, 3, 32), 1))
        ours.append(best(lambda: awq_search(model, batch.split(8), 3, 32, clip=False), 1))
    searched = [scaling.exponent for scaling in awq_search(model, batch.split(8), 3, 32, clip=False).scalings]
    same = sum(a == b for a, b in zip(searched, plain_search(model, batch, 3, 32), strict=True))
    ratio = min(plain) / min(ours)
    print(f"scale search: {min(ours):.2f} s, plain {min(plain):.2f} s: {ratio:.2f} x faster (limit {SEARCH_LIMIT}); "
          f"{same} of {len(searched)} exponents equal")  # fmt: skip
    ok = ratio >= SEARCH_LIMIT
    whole = best(lambda: awq_search(model, batch.split(8), 3, 32), 1)
    clip = best(lambda: plain_clip(model, batch, 3, 32), 1)
    print(f"scale and clip search: {whole:.2f} s, plain {min(plain) + clip:.2f} s: "
          f"{(min(plain) + clip) / whole:.2f} x faster")  # fmt: skip
    for millions, bits in itertools.product(arguments.levels, (3, 4, 8)):
        rows = millions * 256
        q = torch.randint(0, 2**bits, (rows, 4096), dtype=torch.uint8)
        packed, there = pack_codes(q, bits), torch.empty_like(q)
        floor, bare = best(lambda q=q: q.clone(), 20), best(lambda there=there, q=q: there.copy_(q), 20)
        seconds = {"pack": best(lambda q=q, bits=bits: pack_codes(q, bits), 20),
                   "unpack": best(lambda p=packed, bits=bits: unpack_codes(p, bits, 4096), 20)}  # fmt: skip
        for name, taken in seconds.items():
            ok &= taken <= PACK_LIMIT * floor
            print(f"{name} {bits} bits, {q.numel() / 1e6:.0f} M levels: {1e3 * taken:.2f} ms, "
                  f"{taken / floor:.2f} x a copy of the levels (limit {PACK_LIMIT}), "
                  f"{taken / bare:.2f} x one into memory that is there")  # fmt: skip
        try:
            from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
        except ImportError:
            continue
        signed = (q.int() - 2 ** (bits - 1)).to(torch.int8)
        peer = (best(lambda s=signed, bits=bits: pack_to_int32(s, bits), 3),
                best(lambda p=packed, bits=bits, q=q: unpack_from_int32(p, bits, q.shape), 3))  # fmt: skip
        print(f"compressed-tensors: pack {1e3 * peer[0]:.1f} ms ({peer[0] / seconds['pack']:.1f} x ours), "
              f"unpack {1e3 * peer[1]:.1f} ms ({peer[1] / seconds['unpack']:.1f} x ours)")  # fmt: skip
    return 0 if ok else 1


if __name__ == "__main__":
    raise SystemExit(main())
