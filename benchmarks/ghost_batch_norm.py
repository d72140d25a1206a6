"""Time of ghost batch norm, forward and backward, over torch's batch norm of the whole batch.

Peers: TabNet's ghost batch norm (a chunk loop inside the layer, written out below) and the same loop outside the layer,
printed for comparison: it holds one chunk at a time. Gradients are handed on, as inside a network, not stored. The
contenders take turns; times are the best of the rounds. Limits: not slower than TabNet's on any shape, and at most 1.2
times batch norm on images. (A perceptron's small batch is one call of a hundred microseconds, to which 32 ghosts only
add.)
"""

import argparse
import time

import torch
from torch import Tensor, nn

from heldout.nn import GhostBatchNorm1d, GhostBatchNorm2d

LIMIT = 1.2
CASES = {  # input shape, ghost size
    "MLP 1024 x 128, ghosts of 32": ((1024, 128), 32),
    "MLP 4096 x 512, ghosts of 128": ((4096, 512), 128),
    "CNN 256 x 32 x 14 x 14, ghosts of 32": ((256, 32, 14, 14), 32),
    "CNN 512 x 64 x 16 x 16, ghosts of 32": ((512, 64, 16, 16), 32),
    "CNN 250 x 64 x 7 x 7, ghosts of 32": ((250, 64, 7, 7), 32),
}


class TabNetGBN(nn.Module):
    """The layer of the TabNet code: chunks, one batch norm after the other, concatenation."""

    def __init__(self, plain: type[nn.Module], channels: int, size: int) -> None:
        super().__init__()
        self.norm, self.size = plain(channels), size

    def forward(self, inputs: Tensor) -> Tensor:
        chunks = inputs.chunk(-(-len(inputs) // self.size), dim=0)
        return torch.cat([self.norm(chunk) for chunk in chunks], dim=0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    ok = True
    for title, (shape, size) in CASES.items():
        ghost, plain = (GhostBatchNorm1d, nn.BatchNorm1d) if len(shape) == 2 else (GhostBatchNorm2d, nn.BatchNorm2d)
        inputs = torch.randn(shape, generator=torch.Generator().manual_seed(0), requires_grad=True)
        grad = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        batch_norm = plain(shape[1])

        pairs = [(x.detach().requires_grad_(), y) for x, y in zip(inputs.split(size), grad.split(size), strict=True)]

        def accumulated(norm: nn.Module = batch_norm, pairs: list[tuple[Tensor, Tensor]] = pairs) -> None:
            for chunk, part in pairs:
                torch.autograd.grad(norm(chunk), [chunk, *norm.parameters()], part)

        def whole(norm: nn.Module, inputs: Tensor = inputs, grad: Tensor = grad):
            return lambda: torch.autograd.grad(norm(inputs), [inputs, *norm.parameters()], grad)

        contenders = {
            "BatchNorm": whole(batch_norm),
            "GhostBatchNorm": whole(ghost(shape[1], size)),
            "TabNet GBN": whole(TabNetGBN(plain, shape[1], size)),
            "accumulation": accumulated,
        }
        best = dict.fromkeys(contenders, float("inf"))
        for _ in range(arguments.rounds * max(1, int(4e6 / inputs.numel()))):
            for name, step in contenders.items():
                start = time.perf_counter()
                step()
                best[name] = min(best[name], time.perf_counter() - start)
        ratios = {name: value / best["BatchNorm"] for name, value in best.items()}
        within = ratios["GhostBatchNorm"] <= ratios["TabNet GBN"] and (
            len(shape) == 2 or ratios["GhostBatchNorm"] <= LIMIT
        )
        ok &= within
        print(f"{title:40} BatchNorm {best['BatchNorm'] * 1e3:7.2f} ms", end="")
        print(
            "".join(f", {name} x {ratios[name]:.2f}" for name in list(contenders)[1:]),
            "" if within else "  beyond the limit",
        )
    print(f"limits: GhostBatchNorm not slower than TabNet GBN, x {LIMIT} on images")
    return 0 if ok else 1


if __name__ == "__main__":
    raise SystemExit(main())
