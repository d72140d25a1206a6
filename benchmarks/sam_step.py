"""Time of one SAM step over one plain step of the same optimizer, on a conv net with one million parameters.

Peers: pytorch_optimizer's SAM, and the two-step implementation in common use, written out below. The contenders take
turns, so that all of them meet the same state of the machine; on one thread, CPU time is measured, which other
processes disturb least. Limits: 2.05 times the plain step, no slower than the peers
(but for 2 %, which two measurements of one and the same step differ by).
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from heldout.nn import small_cnn
from heldout.optim import SAM

LIMIT = 2.05


def conv_net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return small_cnn(3, 10, (32, 64, 192, 256, 192))


def common_two_step(model: nn.Module, base: torch.optim.Optimizer, rho: float, closure: Callable) -> None:
    """SAM as most repositories have it: a loop over parameters, and the old weights kept in a dict."""
    closure()
    old = {}
    with torch.no_grad():
        norm = torch.norm(torch.stack([p.grad.norm(p=2) for p in model.parameters() if p.grad is not None]), p=2)
        for p in model.parameters():
            if p.grad is not None:
                old[p] = p.data.clone()
                p.add_(p.grad * (rho / (norm + 1e-12)))
    closure()
    with torch.no_grad():
        for p, data in old.items():
            p.data = data
    base.step()


def contenders(inputs: torch.Tensor, targets: torch.Tensor) -> dict[str, Callable[[], object]]:
    def closure_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[], torch.Tensor]:
        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(inputs), targets)
            loss.backward()
            return loss

        return closure

    def sgd(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    plain_model, our_model, common_model = conv_net(), conv_net(), conv_net()
    plain, ours, common = sgd(plain_model), SAM(sgd(our_model)), sgd(common_model)
    plain_closure, our_closure = closure_of(plain_model, plain), closure_of(our_model, ours)
    common_closure = closure_of(common_model, common)
    steps = {
        "plain SGD": lambda: plain.step(plain_closure),
        "heldout SAM": lambda: ours.step(our_closure),
        "common two-step": lambda: common_two_step(common_model, common, 0.05, common_closure),
    }
    try:
        import pytorch_optimizer
    except ImportError:
        print("pytorch_optimizer is not installed: left out")
        return steps
    peer_model = conv_net()
    peer = pytorch_optimizer.SAM(peer_model.parameters(), torch.optim.SGD, rho=0.05, lr=0.01, momentum=0.9)
    peer_closure = closure_of(peer_model, peer)
    steps["pytorch_optimizer"] = lambda: (peer_closure(), peer.step(peer_closure))
    return steps


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.threads == 1 else time.perf_counter
    inputs, targets = torch.randn(options.batch, 3, 32, 32), torch.randint(0, 10, (options.batch,))
    steps = contenders(inputs, targets)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(options.rounds + 3):
        names = list(steps)
        for name in names[round_ % len(names) :] + names[: round_ % len(names)]:
            start = clock()
            steps[name]()
            if round_ >= 3:
                times[name].append(clock() - start)
    parameters = sum(p.numel() for p in conv_net().parameters())
    print(f"{parameters:,} parameters, batch {options.batch}, {options.rounds} rounds, {options.threads} thread(s)")
    plain = times["plain SGD"]
    ratios = {}
    for name, seconds in times.items():
        ratio = ratios[name] = statistics.median(a / b for a, b in zip(seconds, plain, strict=True))
        print(f"{name:18} {1000 * statistics.median(seconds):7.1f} ms  {ratio:.3f} x plain  (limit {LIMIT})")
    ours = ratios["heldout SAM"]
    peers = [ratio for name, ratio in ratios.items() if name not in ("plain SGD", "heldout SAM")]
    return int(ours > LIMIT or ours > 1.02 * min(peers))


if __name__ == "__main__":
    raise SystemExit(main())
