"""sharpDARTS: does Max-W find better networks than plain weighting, and do its schedule and its block stand alone?

Claim. In a grid of widths and operations (HyperCuboid), plain differentiable search loses to a design made by hand;
with Max-W weighting the path that is found beats it. Cosine power annealing is no worse than cosine, and the
SharpSepConv block no worse than the separable convolution of DARTS. Source: arXiv:1903.09900 (Hundt et al., 2019).

World. ``search``: 1,200 digits of 8 x 8 pixels in two halves, one for the weights and one for the architecture, and the
597 that were written after them to test on; shifted: those turned by up to 15 degrees, and noisy. Bilevel steps, first
order, on a grid of three strides, widths of 8 and 16 and two operations (24 modules, 128 paths); the path that it reads
is trained from scratch on all 1,200, and the last epoch is reported. ``schedule`` and ``block``: 1,000 images of
Fashion-MNIST at 14 x 14, 1,000 to choose the peak rate on (one of five, for every arm and seed), 4,000 to test on.

``graphs``, exploratory, the paper has no such claim: NAS-Bench-Graph, 26,206 graph networks, each trained on eight
graphs. A look-up gives no gradient, so Max-W cannot be asked there; what can is what a search relies on: does what is
chosen by the validation accuracy on one graph carry over to the seven others, and better so if the best operation of
each place is chosen on its own (as a genotype is read) than if the best of the same 100 looked-up networks is taken?

Arms. ``scalar`` and ``max_w``, the paper's own variant; ``random``: five paths, medians; ``random-search``: that of the
five which, trained on the first half, is best on the second; ``hand``: separable convolutions, 8 to 16 by doubling.
``sep`` is as wide as gives it the parameters of ``sharp``. ``supernet_accuracy``: of the grid as a whole on the half
that its architecture parameters learn; ``rank_correlation``: between the accuracy of the random paths and the one made
by hand with the weights of the grid, and trained alone.

Settings. On development seed 1000, of 0.03, 0.1 and 0.3 each, judged by the second half after training on the first:
the architecture's rate, for both weightings alike by the path that is read (0.1 for both, where scalar ties with 0.03,
Max-W with 0.3); the rate of retraining, one for all paths, by the one made by hand and two random ones. The weights'
rate in the search is 0.1 for both weightings, not searched. An exponential rate falls to a hundredth of its peak.

Deviations: tiny grid and data, 8 x 8 pixels, no cutout, no AutoAugment, 10 epochs of search for 120; rates fall at
every step, not once an epoch. The cell space of DARTS is not searched here, nor Fashion-MNIST: no time. The grid of
peak rates was extended at both ends, for all arms alike, where a choice lay at its edge on development seed 1000, with
test accuracies printed beside; the rate of retraining was chosen at 12 epochs.
"""

from __future__ import annotations

import copy
import functools
import itertools
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor, nn

import heldout
from heldout.nn import MultiChannelNetwork, PathStep, SharpSepConv, build_from_path, small_cnn
from heldout.optim import CosinePowerAnnealingLR, cosine_power
from heldout.sources import FASHION, NAS, missing
from heldout.study import Study, at_least, at_most, better, higher_is_better, log_curve, lower_is_better
from heldout.tasks import (
    GRAPH_DATASETS,
    SHIFTS,
    GraphBenchmark,
    digits,
    fashion_mnist,
    nas_bench_graph,
    stratified_split,
)
from heldout.train import DifferentiableSearch

ARCH_LR = {"scalar": 0.1, "max_w": 0.1}
STRIDES = (1, 2, 2)
WIDTHS = {"smoke": (2, 4), "laptop": (8, 16)}
SIZES = {"smoke": (96, 60), "laptop": (1200, 597)}
SEARCH_EPOCHS = {"smoke": 1, "laptop": 10}
EPOCHS = {"smoke": 1, "laptop": 10}
PATHS = {"smoke": 2, "laptop": 5}
BATCH, SEARCH_LR, RETRAIN_LR = 100, 0.1, 0.1

FASHION_SIZES = {"smoke": (96, 60, 60), "laptop": (1000, 1000, 4000)}
FASHION_EPOCHS, FASHION_BATCH = {"smoke": 1, "laptop": 10}, 48
RATES = {"smoke": (0.1,), "laptop": (0.03, 0.1, 0.3, 1.0, 3.0)}
SCHEDULES = {"cosine": 1.0, "exponential": None, "power-2": 2.0, "power-10": 10.0}
EXPONENTIAL_END = 1e-2  # of the peak
BLOCK_WIDTHS = {"sharp": (16, 32, 64), "sep": (22, 44, 92)}

GRAPHS = {"smoke": GRAPH_DATASETS[3:5], "laptop": GRAPH_DATASETS}
LOOKUPS, REPEATS = 100, {"smoke": 2, "laptop": 20}

Examples = tuple[Tensor, Tensor]


class World(NamedTuple):
    """Two halves to search on, what is tested on, and its shifted copy."""

    weights: Examples
    choice: Examples
    test: Examples
    shifted: Examples

    @property
    def train(self) -> Examples:
        return torch.cat([self.weights[0], self.choice[0]]), torch.cat([self.weights[1], self.choice[1]])


@functools.lru_cache(maxsize=2)
def world(seed: int, profile: str) -> World:
    size, test_size = SIZES[profile]
    images, labels = digits()
    known, others = torch.arange(1200), torch.arange(1200, len(labels))  # in the order of writing
    test = others[stratified_split(labels[others], (min(test_size, len(others)),), seed=seed)[0]]
    halves = [known[part] for part in stratified_split(labels[known], (size // 2, size // 2), seed=seed)]
    turned = SHIFTS["rotation"](images[test], 15 / 90, seed=seed)
    shifted = SHIFTS["gaussian_noise"](turned, 0.3, seed=seed)
    first, second, clean = ((images[part], labels[part]) for part in (*halves, test))
    return World(first, second, clean, (shifted, labels[test]))


def loader(examples: Examples, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(*examples), BATCH, shuffle=True, generator=generator
    )


def grid(profile: str, weighting: Any = "max_w") -> MultiChannelNetwork:
    return MultiChannelNetwork(10, channels=WIDTHS[profile], strides=STRIDES, in_channels=1, weighting=weighting)


def sgd_of(rate: float) -> Any:
    return functools.partial(torch.optim.SGD, lr=rate, momentum=0.9, weight_decay=3e-4)


@functools.lru_cache(maxsize=4)
def searched(weighting: str, seed: int, profile: str) -> tuple[MultiChannelNetwork, list[float]]:
    """The grid after the search, and the entropy of its weights after each epoch."""
    parts, epochs = world(seed, profile), SEARCH_EPOCHS[profile]
    with heldout.train.seeded(seed):
        network = grid(profile, weighting)
        search = DifferentiableSearch(
            network, loader(parts.weights, seed), loader(parts.choice, seed + 1), arch_lr=ARCH_LR[weighting],
            optimizer=sgd_of(SEARCH_LR),
        )  # fmt: skip
        schedule, entropies = CosinePowerAnnealingLR(search.optimizer, epochs, min_lr=1e-4), []
        for _ in range(epochs):
            entropies.append(search.epoch()["entropy"])
            schedule.step()
    return network.eval(), entropies


def path_named(name: str, seed: int, profile: str) -> tuple[PathStep, ...]:
    """ "scalar" or "max_w": what that search reads; "hand"; "random0", "random1" ..."""
    if name in ARCH_LR:
        return searched(name, seed, profile)[0].cuboid.best_path()
    if name == "hand":
        low, high = WIDTHS[profile]
        return grid(profile).cuboid.path_of([low, low, high, high], primitive="sep_conv")
    generator = torch.Generator().manual_seed(1000 * seed + int(name.removeprefix("random")))
    return grid(profile).cuboid.random_path(generator)


def trained_path(name: str, data: Examples, seed: int, profile: str) -> Any:
    build = functools.partial(
        build_from_path, path_named(name, seed, profile), 10, in_channels=1, final_channels=WIDTHS[profile][-1]
    )
    return trained(build, data, cosine_power(2.0), RETRAIN_LR, EPOCHS[profile], BATCH, seed)


@functools.lru_cache(maxsize=32)
def retrained(name: str, seed: int, profile: str) -> tuple[float, float]:
    """Accuracy on the test set and on its shifted copy."""
    parts = world(seed, profile)
    fitted = trained_path(name, parts.train, seed, profile)
    return fitted.evaluate(parts.test)["accuracy"], fitted.evaluate(parts.shifted)["accuracy"]


def trained(
    build: Callable[[], nn.Module], data: Examples, method: Any, rate: float, epochs: int, batch: int, seed: int,
    schedule: Any = "constant",
) -> Any:  # fmt: skip
    return heldout.fit(
        build, data, method, optimizer=sgd_of(rate), schedule=schedule, epochs=epochs, batch_size=batch, seed=seed
    )


def search_arm(name: str, seed: int, profile: str) -> dict[str, float]:
    paths = [f"random{number}" for number in range(PATHS[profile])]
    if name == "random":
        alone = [retrained(each, seed, profile) for each in paths]
        found = dict(zip(ACCURACIES, map(statistics.median, zip(*alone, strict=True)), strict=True))
        return found | {"rank_correlation": rank_correlation([*paths, "hand"], seed, profile)}
    parts = world(seed, profile)
    if name == "random-search":
        tried = {each: trained_path(each, parts.weights, seed, profile).evaluate(parts.choice) for each in paths}
        name = max(paths, key=lambda each: tried[each]["accuracy"])
    found = dict(zip(ACCURACIES, retrained(name, seed, profile), strict=True))
    if name in ARCH_LR:
        network, entropies = searched(name, seed, profile)
        for epoch, entropy in enumerate(entropies, 1):
            log_curve("entropy", epoch, entropy)
        coefficients = network.cuboid.coefficients().detach().flatten(1)
        found["gradient_ratio"] = (coefficients.amax(1) / coefficients.amin(1)).mean().item()
        found["entropy"] = entropies[-1]
        found["supernet_accuracy"] = agreement(network(parts.choice[0]), parts.choice[1])
    return found


@torch.no_grad()
def rank_correlation(names: list[str], seed: int, profile: str) -> float:
    """Between the accuracy of paths with the grid's weights, by statistics of the batch, and of those trained alone."""
    network, (images, labels) = copy.deepcopy(searched("max_w", seed, profile)[0]).train(), world(seed, profile).choice
    shared = [agreement(network(images, path_named(name, seed, profile)), labels) for name in names]
    alone = [retrained(name, seed, profile)[0] for name in names]
    return float(spearmanr(shared, alone)[0]) if len(set(shared)) > 1 and len(set(alone)) > 1 else 0.0


def agreement(logits: Tensor, labels: Tensor) -> float:
    return (logits.argmax(1) == labels).double().mean().item()


@functools.lru_cache(maxsize=2)
def fashion(seed: int, profile: str) -> tuple[Examples, ...]:
    """To train on, to choose the rate on, to test on."""
    images, labels = fashion_mnist(part="train" if profile == "laptop" else "test")
    parts = stratified_split(labels, FASHION_SIZES[profile], seed=seed)
    return tuple((F.avg_pool2d(images[part], 2), labels[part]) for part in parts)


def fashion_arm(build: Callable[[], nn.Module], power: float | None, seed: int, profile: str) -> dict[str, float]:
    """The network whose peak rate is best on the validation images."""
    train, validation, test = fashion(seed, profile)
    method, schedule = (None, exponential) if power is None else (cosine_power(power), "constant")
    best: tuple[float, float, Any] = (-1.0, 0.0, None)
    for rate in RATES[profile]:
        fitted = trained(build, train, method, rate, FASHION_EPOCHS[profile], FASHION_BATCH, seed, schedule)
        found = fitted.evaluate(validation)["accuracy"]
        best = max(best, (found, rate, fitted), key=lambda each: each[0])
    _, rate, fitted = best
    return {
        "test_accuracy": fitted.evaluate(test)["accuracy"],
        "train_loss": fitted.evaluate(train)["loss"],
        "peak_rate": rate,
    }


def exponential(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, EXPONENTIAL_END ** (1 / steps))


def block_network(kind: str) -> nn.Sequential:
    """A stem and two blocks of stride 2; a SepConv is the block whose middle is as wide as its input."""
    widths = BLOCK_WIDTHS[kind]
    layers: list[nn.Module] = [nn.Conv2d(1, widths[0], 3, padding=1, bias=False), nn.BatchNorm2d(widths[0])]
    for source, target in itertools.pairwise(widths):
        layers.append(SharpSepConv(source, target, stride=2, mid_channels=target if kind == "sharp" else source))
    return nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10))


@functools.lru_cache(maxsize=2)
def tables_of(profile: str) -> dict[str, GraphBenchmark]:
    return {graph: nas_bench_graph(graph) for graph in GRAPHS[profile]}


def graphs_arm(name: str, seed: int, profile: str) -> dict[str, float]:
    """Means over the graphs that are searched on, and over repeated draws of the networks that are looked up."""
    tables = tables_of(profile)
    ranks = {graph: table.test.argsort().argsort() / (len(table.test) - 1) for graph, table in tables.items()}
    first = next(iter(tables.values()))
    places = [F.one_hot(first.operations[:, place], 9) for place in range(4)]
    link = F.one_hot((first.links * torch.tensor([0, 100, 10, 1])).sum(1).unique(return_inverse=True)[1])
    features = torch.cat([*places, link], 1).double()
    generator, own, others = torch.Generator().manual_seed(seed), [], []
    for graph, table in tables.items():
        for _ in range(REPEATS[profile]):
            looked_up = torch.randperm(len(features), generator=generator)[:LOOKUPS]
            if name == "random":
                found = looked_up[table.validation[looked_up].argmax()]
            else:
                found = (features @ effects(features[looked_up], table.validation[looked_up])).argmax()
            own.append(ranks[graph][found].item())
            others.append(statistics.mean(rank[found].item() for other, rank in ranks.items() if other != graph))
    return {"own_rank": statistics.mean(own), "other_rank": statistics.mean(others)}


def effects(features: Tensor, values: Tensor) -> Tensor:
    """What each operation at each place, and each link, adds to the accuracy: ridge regression."""
    centred = features - features.mean(0)
    gram = centred.T @ centred + torch.eye(features.shape[1], dtype=features.dtype)
    return torch.linalg.solve(gram, centred.T @ (values - values.mean()))


def run(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    part, name = arm["part"], arm["name"]
    if part == "search":
        return search_arm(name, seed, profile)
    if part == "graphs":
        return graphs_arm(name, seed, profile)
    if part == "schedule":
        return fashion_arm(functools.partial(small_cnn, 1, 10, (16, 32, 32)), SCHEDULES[name], seed, profile)
    counts = [sum(p.numel() for p in block_network(each).parameters()) for each in BLOCK_WIDTHS]
    found = fashion_arm(functools.partial(block_network, name), SCHEDULES["power-2"], seed, profile)
    return found | {"parameter_difference": abs(counts[0] / counts[1] - 1)}


PARTS = {
    "search": ("scalar", "max_w", "random", "random-search", "hand"),
    "schedule": tuple(SCHEDULES),
    "block": tuple(BLOCK_WIDTHS),
    "graphs": ("random", "each-place"),
}
ARMS = {f"{part}-{name}": {"part": part, "name": name} for part, names in PARTS.items() for name in names}
NEEDS = {"schedule": [FASHION], "block": [FASHION], "graphs": [NAS]}
ACCURACIES = ("test_accuracy", "shifted_accuracy")

study = Study(
    slug="sharpdarts",
    title="sharpDARTS: Faster and More Accurate Differentiable Architecture Search",
    arms=ARMS,
    run=run,
    metrics={
        **dict.fromkeys(ACCURACIES, higher_is_better),
        "train_loss": lower_is_better,
        "peak_rate": lower_is_better,
        "entropy": higher_is_better,
        "gradient_ratio": lower_is_better,
        "supernet_accuracy": higher_is_better,
        "rank_correlation": higher_is_better,
        "parameter_difference": lower_is_better,
        "own_rank": higher_is_better,
        "other_rank": higher_is_better,
    },
    optional={
        *ACCURACIES, "train_loss", "peak_rate", "entropy", "gradient_ratio", "supernet_accuracy", "rank_correlation",
        "parameter_difference", "own_rank", "other_rank",
    },
    needs={
        name: functools.partial(missing, NEEDS[arm["part"]]) for name, arm in ARMS.items() if arm["part"] in NEEDS
    },
    shared_setup=True,
    claims=[
        *(
            better("search-max_w", than=f"search-{other}", on=metric, margin=0.005)
            for other in ("scalar", "random")
            for metric in ACCURACIES
        ),
        better("search-max_w", than="search-random-search", on="test_accuracy"),
        better("search-max_w", than="search-hand", on="test_accuracy"),
        better("search-hand", than="search-scalar", on="test_accuracy"),
        better("search-max_w", than="search-scalar", on="entropy"),
        *(better(f"schedule-power-{p}", than="schedule-cosine", on="test_accuracy", margin=-0.002) for p in (2, 10)),
        *(better(f"schedule-power-{p}", than="schedule-cosine", on="train_loss") for p in (2, 10)),
        *(
            better(f"schedule-power-{p}", than="schedule-exponential", on="test_accuracy", margin=-0.002)
            for p in (2, 10)
        ),
        better("block-sharp", than="block-sep", on="test_accuracy", margin=-0.003),
        better("graphs-each-place", than="graphs-random", on="other_rank"),
    ],
    checks=[
        better("search-max_w", than="search-scalar", on="gradient_ratio"),
        at_most("block-sharp", on="parameter_difference", value=0.01),
        at_least("graphs-random", on="other_rank", value=0.5),
    ],
    seeds={"smoke": 1, "laptop": 5},
)  # fmt: skip
