"""Time of an ITTA training step over a plain one, and of a test-time step over a plain forward pass.

Peers: the order of the released code, which runs both views twice and keeps the graphs of both gradients, written out
below in plain form; its own repository needs torchvision and its images. The contenders take turns, so that all of them
meet the same state of the machine; on one thread, CPU time is measured. Limit: 3 times the plain step.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

import heldout
from heldout.adapt import ITTA, ITTAState, itta
from heldout.nn import small_cnn

LIMIT = 3.0


def conv_net(widths: tuple[int, ...]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return small_cnn(3, 10, widths)


def fit_step(model: nn.Module, data: tuple, method: heldout.Method | None, steps: int) -> Callable[[], float]:
    """Seconds of one step of ``heldout.fit``, the mean over an epoch."""
    batch = len(data[0]) // steps

    def measure() -> float:
        return heldout.fit(model, data, method, epochs=1, batch_size=batch, seed=0).history[0]["seconds"] / steps

    return measure


def both_views_step(model: nn.Module, data: tuple, steps: int) -> Callable[[], float]:
    """A plain step on both views: what mixing styles costs without the learned consistency."""
    return fit_step(model, data, itta(depth=0), steps)


def released_step(model: nn.Module, data: tuple, steps: int) -> Callable[[], float]:
    state = ITTAState.of(model.train(), data[0][:2])
    main = torch.optim.AdamW(model.parameters(), lr=1e-3)
    weighting = torch.optim.Adam(state.consistency.parameters(), lr=1e-4)
    generator = torch.Generator().manual_seed(0)
    backbone = state.model.backbone_parameters()

    def losses(inputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        z, logits, other_z, other_logits = state.views(inputs, state.draw(len(inputs), generator))
        return F.cross_entropy(logits, targets) + F.cross_entropy(other_logits, targets), state.consistency(other_z - z)

    def step(inputs: torch.Tensor, targets: torch.Tensor) -> None:
        main.zero_grad()
        sum(losses(inputs, targets)).backward()  # type: ignore[union-attr]
        main.step()
        goal, pull = losses(inputs, targets)
        of_pull = torch.autograd.grad(pull, backbone, create_graph=True, retain_graph=True)
        of_goal = torch.autograd.grad(goal, backbone, create_graph=True, retain_graph=True)
        first, second = (torch.cat([g.flatten() for g in grads]) for grads in (of_pull, of_goal))
        first, second = (((g - g.mean().detach()) / g.std().detach()) for g in (first, second))
        weighting.zero_grad()
        (0.1 * (first - second).square().mean()).backward(inputs=list(state.consistency.parameters()))
        weighting.step()

    def measure() -> float:
        start = time.perf_counter()
        for inputs, targets in zip(data[0].chunk(steps), data[1].chunk(steps), strict=True):
            step(inputs, targets)
        return (time.perf_counter() - start) / steps

    return measure


def repeated(call: Callable[[], object], times: int) -> Callable[[], float]:
    def measure() -> float:
        start = time.perf_counter()
        for _ in range(times):
            call()
        return (time.perf_counter() - start) / times

    return measure


def compare(title: str, contenders: dict[str, Callable[[], float]], rounds: int, limits: dict[str, float]) -> bool:
    """Prints the contenders beside the first of them; whether those with a limit are within it."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for round_ in range(rounds + 1):
        names = list(contenders)
        for name in names[round_ % len(names) :] + names[: round_ % len(names)]:
            taken = contenders[name]()
            if round_:
                times[name].append(taken)
    print(title)
    ok = True
    plain = next(iter(times.values()))
    for name, seconds in times.items():
        ratio = statistics.median(a / b for a, b in zip(seconds, plain, strict=True))
        limit = f"  (limit {limits[name]})" if name in limits else ""
        ok &= ratio <= limits.get(name, float("inf"))
        print(f"  {name:36} {1000 * statistics.median(seconds):7.2f} ms  {ratio:.2f} x plain{limit}")
    return ok


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--size", type=int, default=28)
    parser.add_argument("--widths", type=int, nargs="+", default=(16, 32, 64, 64))
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.threads == 1:
        time.perf_counter = time.process_time  # what heldout.fit measures its epochs with
    widths = tuple(options.widths)
    count = options.steps * options.batch
    data = (torch.rand(count, 3, options.size, options.size), torch.randint(0, 10, (count,)))
    model = conv_net(widths)
    parameters = sum(p.numel() for p in model.parameters())
    shape = f"{parameters:,} parameters, {options.size} x {options.size}, batch {options.batch}"
    ok = compare(
        f"training step: {shape}, {options.threads} thread(s)",
        {
            "plain": fit_step(model, data, None, options.steps),
            "plain on both views": both_views_step(model, data, options.steps),
            "itta": fit_step(model, data, itta(), options.steps),
            "itta, align_every=1": fit_step(model, data, itta(align_every=1), options.steps),
            "released order, plain form": released_step(conv_net(widths), data, options.steps),
        },
        options.rounds,
        {"itta": LIMIT},
    )
    batch = data[0][: options.batch]
    model = model.eval()
    state = ITTAState.of(model, batch[:2])
    full, channel = ITTA(state), ITTA(state, size="channel")
    forward = torch.no_grad()(lambda: model(batch))
    compare(
        f"test-time step: batch {options.batch}",
        {
            "plain": repeated(forward, options.steps),
            "itta": repeated(lambda: full(batch), options.steps),
            "itta, per channel": repeated(lambda: channel(batch), options.steps),
        },
        options.rounds,
        {},
    )
    return 0 if ok else 1


if __name__ == "__main__":
    raise SystemExit(main())
