"""sharpDARTS: does Max-W find better networks than plain weighting, and do its schedule and its block stand alone?

Claim. In a grid of widths and operations (HyperCuboid), plain differentiable search loses to a design made by hand;
with Max-W weighting the path that is found beats it. Cosine power annealing is no worse than cosine, and the
SharpSepConv block no worse than the separable convolution of DARTS. Source: arXiv:1903.09900 (Hundt et al., 2019).

World. ``digits``: 8 x 8 pixels, 1,200 digits to search on, in two halves, and 597 by other writers to test on.
``fashion``: 1,200 and 1,000 images of Fashion-MNIST at 14 x 14. Shifted: turned by up to 15 degrees, and noisy. Search:
bilevel steps, first order, on a grid of three strides, widths of 4, 8 and 16 and two operations (54 modules); the path
that it reads is trained from scratch on all 1,200, and the last epoch is reported. ``schedule`` and ``block``: 2,000
images of Fashion-MNIST at 28 x 28 and 1,000 to test on.

``graphs``: NAS-Bench-Graph, 26,206 graph networks, each trained on eight graphs. A look-up gives no gradient, so Max-W
cannot be asked there; what can is what a search relies on: does what is chosen by the validation accuracy on one graph
carry over to the seven others, and is it as good to choose the best operation of each place on its own (as a genotype
is read) as to take the best of the same 100 networks that were looked up?

Arms. ``scalar`` and ``max_w``, the paper's own variant; ``random``: five paths, medians; ``hand``: separable
convolutions, 4 to 16 by doubling. The architecture's learning rate, the better of 0.03 and
0.3 for both weightings by validation accuracy on a development seed, and the peak of all schedules, 0.1, are not yet
searched further. ``sep`` is as wide as gives it the parameters of ``sharp``.
``supernet_accuracy``: of the grid as a whole on the half that its architecture parameters learn; ``rank_correlation``:
between the accuracy of the random paths and the one made by hand with the weights of the grid, and trained alone.

Deviations: tiny grid and data, no cutout, no AutoAugment, 8 epochs of search for 120. The cell space of DARTS is not
searched here.
"""

from __future__ import annotations

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
from heldout.nn import (
    MultiChannelNetwork,
    SharpSepConv,
    architecture_entropy,
    build_from_path,
    small_cnn,
)
from heldout.optim import CosinePowerAnnealingLR, cosine_power
from heldout.sources import FASHION, NAS, missing
from heldout.study import Study, at_least, at_most, better, higher_is_better, log_curve, lower_is_better
from heldout.tasks import GRAPH_DATASETS, SHIFTS, digits, fashion_mnist, nas_bench_graph, stratified_split
from heldout.train import DifferentiableSearch

ARCH_LR = {"scalar": 0.3, "max_w": 0.3}
STRIDES = {"digits": (1, 2, 2), "fashion": (2, 1, 2)}
WIDTHS = {"smoke": (2, 4), "laptop": (4, 8, 16)}
SIZES = {"smoke": (96, 40), "laptop": (1200, 1000)}
SEARCH_EPOCHS = {"smoke": 1, "laptop": 8}
EPOCHS = {"smoke": 1, "laptop": 15}
PATHS = {"smoke": 2, "laptop": 5}
BATCH, SEARCH_BATCH, SEARCH_LR, RETRAIN_LR = 48, 100, 0.1, 0.1

SCHEDULE_SIZES = {"smoke": (96, 40), "laptop": (2000, 1000)}
SCHEDULE_EPOCHS = {"smoke": 1, "laptop": 10}
PEAKS = {"cosine": 0.1, "exponential": 0.1, "power-2": 0.1, "power-10": 0.1}
EXPONENTIAL_END = 1e-2  # of the peak
BLOCK_LR, BLOCK_WIDTHS = 0.1, {"sharp": (16, 32, 64), "sep": (22, 44, 92)}

GRAPHS = {"smoke": GRAPH_DATASETS[3:5], "laptop": GRAPH_DATASETS}
LOOKUPS, REPEATS = 100, 20

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


@functools.lru_cache(maxsize=4)
def world(cell: str, seed: int, profile: str) -> World:
    size, test_size = SIZES[profile]
    if cell == "digits":
        images, labels = digits()
        known, others = torch.arange(1200), torch.arange(1200, len(labels))  # in the order of writing
        (test,) = stratified_split(labels[others], (min(test_size, len(others)),), seed=seed)
        test = others[test]
    else:
        images, labels = fashion_mnist(part="train" if profile == "laptop" else "test")
        known, test = stratified_split(labels, (size, test_size), seed=seed)
        images = F.avg_pool2d(images, 2)
    halves = [known[part] for part in stratified_split(labels[known], (size // 2, size // 2), seed=seed)]
    turned = SHIFTS["rotation"](images[test], 15 / 90, seed=seed)
    shifted = SHIFTS["gaussian_noise"](turned, 0.3, seed=seed)
    first, second, clean = ((images[part], labels[part]) for part in (*halves, test))
    return World(first, second, clean, (shifted, labels[test]))


def loader(examples: Examples, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    dataset = torch.utils.data.TensorDataset(*examples)
    return torch.utils.data.DataLoader(dataset, SEARCH_BATCH, shuffle=True, generator=generator)


@functools.lru_cache(maxsize=8)
def searched(cell: str, weighting: Any, seed: int, profile: str) -> MultiChannelNetwork:
    parts, epochs = world(cell, seed, profile), SEARCH_EPOCHS[profile]
    with heldout.train.seeded(seed):
        network = MultiChannelNetwork(
            10, channels=WIDTHS[profile], strides=STRIDES[cell], in_channels=1, weighting=weighting
        )
        sgd = functools.partial(torch.optim.SGD, lr=SEARCH_LR, momentum=0.9, weight_decay=3e-4)
        search = DifferentiableSearch(
            network, loader(parts.weights, seed), loader(parts.choice, seed + 1), arch_lr=ARCH_LR[weighting],
            optimizer=sgd,
        )  # fmt: skip
        schedule = CosinePowerAnnealingLR(search.optimizer, epochs, min_lr=1e-4)
        for epoch in range(epochs):
            log_curve("entropy", epoch + 1, search.epoch()["entropy"])
            schedule.step()
    return network.eval()


@functools.lru_cache(maxsize=32)
def retrained(cell: str, path: str, seed: int, profile: str) -> tuple[float, float]:
    """Accuracy on the test set and on its shifted copy; the path is named as ``path_named`` takes it."""
    parts = world(cell, seed, profile)
    build = functools.partial(
        build_from_path, path_named(cell, path, seed, profile), 10, in_channels=1, final_channels=WIDTHS[profile][-1]
    )
    fitted = trained(build, parts.train, cosine_power(2.0), RETRAIN_LR, EPOCHS[profile], seed)
    return fitted.evaluate(parts.test)["accuracy"], fitted.evaluate(parts.shifted)["accuracy"]


def trained(build: Callable[[], nn.Module], data: Examples, method: Any, rate: float, epochs: int, seed: int) -> Any:
    sgd = functools.partial(torch.optim.SGD, lr=rate, momentum=0.9, weight_decay=3e-4)
    return heldout.fit(
        build, data, method, optimizer=sgd, schedule="constant", epochs=epochs, batch_size=BATCH, seed=seed
    )


def path_named(cell: str, name: str, seed: int, profile: str) -> Any:
    """ "scalar" or "max_w": what that search reads; "hand"; "random0", "random1" ..."""
    if name in ARCH_LR:
        return searched(cell, name, seed, profile).cuboid.best_path()
    cuboid = MultiChannelNetwork(10, channels=WIDTHS[profile], strides=STRIDES[cell], in_channels=1).cuboid
    if name == "hand":
        widths = WIDTHS[profile]
        return cuboid.path_of([widths[0], *widths, widths[-1]][:4], primitive="sep_conv")
    return cuboid.random_path(torch.Generator().manual_seed(1000 * seed + int(name.removeprefix("random"))))


def search_arm(cell: str, name: str, seed: int, profile: str) -> dict[str, float]:
    if name == "random":
        names = [f"random{number}" for number in range(PATHS[profile])]
        alone = [retrained(cell, each, seed, profile) for each in names]
        found = dict(zip(("test_accuracy", "shifted_accuracy"), map(statistics.median, zip(*alone)), strict=True))
        return found | {"rank_correlation": rank_correlation(cell, [*names, "hand"], seed, profile)}
    clean, shifted = retrained(cell, name, seed, profile)
    found = {"test_accuracy": clean, "shifted_accuracy": shifted}
    if name in ARCH_LR:
        network = searched(cell, name, seed, profile)
        coefficients = network.cuboid.coefficients().detach().flatten(1)
        found["gradient_ratio"] = (coefficients.amax(1) / coefficients.amin(1)).mean().item()
        found["entropy"] = architecture_entropy(network)
        found["supernet_accuracy"] = accuracy(network(world(cell, seed, profile).choice[0]), cell, seed, profile)
    return found


@torch.no_grad()
def rank_correlation(cell: str, names: list[str], seed: int, profile: str) -> float:
    """Between the accuracy of paths with the grid's weights, by statistics of the batch, and of those trained alone."""
    network, (images, _) = searched(cell, "max_w", seed, profile), world(cell, seed, profile).choice
    network.train()
    shared = [accuracy(network(images, path_named(cell, name, seed, profile)), cell, seed, profile) for name in names]
    network.eval()
    alone = [retrained(cell, name, seed, profile)[0] for name in names]
    return float(spearmanr(shared, alone)[0]) if len(set(shared)) > 1 and len(set(alone)) > 1 else 0.0


def accuracy(logits: Tensor, cell: str, seed: int, profile: str) -> float:
    return (logits.argmax(1) == world(cell, seed, profile).choice[1]).double().mean().item()


@functools.lru_cache(maxsize=2)
def large_images(seed: int, profile: str) -> tuple[Examples, Examples]:
    images, labels = fashion_mnist(part="train" if profile == "laptop" else "test")
    train, test = stratified_split(labels, SCHEDULE_SIZES[profile], seed=seed)
    return (images[train], labels[train]), (images[test], labels[test])


def schedule_arm(name: str, seed: int, profile: str) -> dict[str, float]:
    train, test = large_images(seed, profile)
    build, epochs = functools.partial(small_cnn, 1, 10, (16, 32, 32)), SCHEDULE_EPOCHS[profile]
    if name == "exponential":
        sgd = functools.partial(torch.optim.SGD, lr=PEAKS[name], momentum=0.9, weight_decay=3e-4)
        fitted = heldout.fit(
            build, train, optimizer=sgd, schedule=exponential, epochs=epochs, batch_size=BATCH, seed=seed
        )
    else:
        power = {"cosine": 1.0, "power-2": 2.0, "power-10": 10.0}[name]
        fitted = trained(build, train, cosine_power(power), PEAKS[name], epochs, seed)
    return {"test_accuracy": fitted.evaluate(test)["accuracy"], "train_loss": fitted.evaluate(train)["loss"]}


def exponential(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, EXPONENTIAL_END ** (1 / steps))


def block_network(kind: str) -> nn.Sequential:
    """A stem and two blocks of stride 2; a SepConv is the block whose middle is as wide as its input."""
    widths = BLOCK_WIDTHS[kind]
    layers: list[nn.Module] = [nn.Conv2d(1, widths[0], 3, padding=1, bias=False), nn.BatchNorm2d(widths[0])]
    for source, target in itertools.pairwise(widths):
        layers.append(SharpSepConv(source, target, stride=2, mid_channels=target if kind == "sharp" else source))
    return nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10))


def block_arm(kind: str, seed: int, profile: str) -> dict[str, float]:
    train, test = large_images(seed, profile)
    build = functools.partial(block_network, kind)
    fitted = trained(build, train, cosine_power(2.0), BLOCK_LR, SCHEDULE_EPOCHS[profile], seed)
    counts = [sum(p.numel() for p in block_network(each).parameters()) for each in ("sharp", "sep")]
    found = {"test_accuracy": fitted.evaluate(test)["accuracy"], "train_loss": fitted.evaluate(train)["loss"]}
    return found | {"parameter_difference": abs(counts[0] / counts[1] - 1)}


def graphs_arm(name: str, seed: int, profile: str) -> dict[str, float]:
    """Means over the graphs that are searched on, and over repeated draws of the networks that are looked up."""
    tables = {graph: nas_bench_graph(graph) for graph in GRAPHS[profile]}
    ranks = {graph: table.test.argsort().argsort() / (len(table.test) - 1) for graph, table in tables.items()}
    first = next(iter(tables.values()))
    places = [F.one_hot(first.operations[:, place], 9) for place in range(4)]
    link = F.one_hot((first.links * torch.tensor([0, 100, 10, 1])).sum(1).unique(return_inverse=True)[1])
    features = torch.cat([*places, link], 1).double()
    generator, own, others = torch.Generator().manual_seed(seed), [], []
    for graph, table in tables.items():
        for _ in range(REPEATS):
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
    if part in ("digits", "fashion"):
        return search_arm(part, name, seed, profile)
    return {"schedule": schedule_arm, "block": block_arm, "graphs": graphs_arm}[part](name, seed, profile)


PARTS = {
    "digits": ("scalar", "max_w", "random", "hand"),
    "fashion": ("scalar", "max_w", "random", "hand"),
    "schedule": tuple(PEAKS),
    "block": ("sharp", "sep"),
    "graphs": ("random", "each-place"),
}
ARMS = {f"{part}-{name}": {"part": part, "name": name} for part, names in PARTS.items() for name in names}
NEEDS = {"fashion": [FASHION], "schedule": [FASHION], "block": [FASHION], "graphs": [NAS]}
ACCURACIES = ("test_accuracy", "shifted_accuracy")


def claims_of(cell: str) -> list[Any]:
    """The specification's claim 1, and what the paper says of designs made by hand."""
    ours = f"{cell}-max_w"
    return [
        *(better(ours, than=f"{cell}-scalar", on=metric, margin=0.005) for metric in ACCURACIES),
        *(better(ours, than=f"{cell}-random", on=metric, margin=0.005) for metric in ACCURACIES),
        better(ours, than=f"{cell}-hand", on="test_accuracy"),
        better(f"{cell}-hand", than=f"{cell}-scalar", on="test_accuracy"),
        better(ours, than=f"{cell}-scalar", on="entropy"),
    ]


study = Study(
    slug="sharpdarts",
    title="sharpDARTS: Faster and More Accurate Differentiable Architecture Search",
    arms=ARMS,
    run=run,
    metrics={
        **dict.fromkeys(ACCURACIES, higher_is_better),
        "train_loss": lower_is_better,
        "entropy": higher_is_better,
        "gradient_ratio": lower_is_better,
        "supernet_accuracy": higher_is_better,
        "rank_correlation": higher_is_better,
        "parameter_difference": lower_is_better,
        "own_rank": higher_is_better,
        "other_rank": higher_is_better,
    },
    optional={
        *ACCURACIES, "train_loss", "entropy", "gradient_ratio", "supernet_accuracy", "rank_correlation",
        "parameter_difference", "own_rank", "other_rank",
    },
    needs={
        name: functools.partial(missing, NEEDS[arm["part"]]) for name, arm in ARMS.items() if arm["part"] in NEEDS
    },
    shared_setup=True,
    claims=[
        *claims_of("digits"),
        *claims_of("fashion"),
        *(better(f"schedule-power-{p}", than="schedule-cosine", on="test_accuracy", margin=-0.002) for p in (2, 10)),
        *(better(f"schedule-power-{p}", than="schedule-cosine", on="train_loss") for p in (2, 10)),
        *(
            better(f"schedule-power-{p}", than="schedule-exponential", on="test_accuracy", margin=-0.002)
            for p in (2, 10)
        ),
        better("block-sharp", than="block-sep", on="test_accuracy", margin=-0.003),
        at_least("graphs-random", on="other_rank", value=0.6),
        better("graphs-each-place", than="graphs-random", on="other_rank"),
    ],
    checks=[
        *(better(f"{cell}-max_w", than=f"{cell}-scalar", on="gradient_ratio") for cell in ("digits", "fashion")),
        at_most("block-sharp", on="parameter_difference", value=0.01),
    ],
    seeds={"smoke": 1, "laptop": 6},
)  # fmt: skip
