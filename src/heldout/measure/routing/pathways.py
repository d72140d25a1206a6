"""The pathway of a sample through a mixture of experts: how far two differ, and how smooth one is across layers.

Both are read off training samples alone, and are meant to follow how well a network generalises while its training loss
no longer moves. Source: arXiv:2506.21551 (Li, Fan, Zhou). How a sample's weights are pooled and cut, and what stands
for a layer in the consistency, is reconstructed from the paper: no code of it is public.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import combinations
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from heldout.errors import (
    check_at_least,
    check_dimensions,
    check_labels,
    check_length,
    check_nonempty,
    check_nonnegative,
    check_one_of,
    check_same_length,
    check_values,
    checked,
)
from heldout.measure.routing.edit_distance import edit_distances_within

Pathway = Sequence[Sequence[int]]  # for each layer, the experts that are kept, the heaviest first
Unit = Literal["expert", "char"]
_ROUNDING = 1e-6  # of a sum of float32 weights


@checked
def pathways(weights: Tensor, threshold: float = 0.7, top_k: int | None = None) -> list[list[list[int]]]:
    """Returns, for each sample and layer, the experts that carry most of the weight, the heaviest first.

    Of a layer the fewest experts are kept whose weights sum to ``threshold`` of all; of equal weights, that with the
    lower id comes first.

    Args:
        weights: routing weights ``(samples, layers, experts)``, at least 0; rows need not sum to 1. See
            ``sample_routing``.
        threshold: share of a layer's weight, in (0, 1]; 1 keeps all experts. Not used with ``top_k``.
        top_k: keep that many instead, from 1 to the number of experts.

    Raises:
        ValueError: weights below 0, not finite, or all 0 in some layer; options out of range.

    Source: arXiv:2506.21551, section 4; deviation: 0.7 is from memory of the paper.

    Example:
        >>> pathways(torch.tensor([[[0.1, 0.6, 0.3], [0.5, 0.0, 0.5]]]))
        [[[1, 2], [0, 2]]]
    """
    kept, order = _kept(weights, threshold, top_k)
    counts, ids = kept.tolist(), order.tolist()
    return [
        [path[:count] for path, count in zip(sample, lengths, strict=True)]
        for sample, lengths in zip(ids, counts, strict=True)
    ]


@checked
def pathway_distance(
    paths: Sequence[Pathway],
    unit: Unit = "expert",
    normalize: bool = True,
    pairs: int | None = 2000,
    seed: int = 0,
) -> float:
    """Returns the mean edit distance between the pathways of two samples: 0 where all take the same, lower is shared.

    Experts of different layers never count as the same. The distance falls, too, where the load collapses onto few
    experts: read it beside ``load_variation`` and ``routing_entropy``, and beside that of ``permute_experts``.

    Args:
        paths: one for each of at least 2 samples, all through equally many layers, from ``pathways``.
        unit: what is inserted, deleted or replaced: an "expert" of a layer, or a "char" of the ids as text, such as
            ``"3,12;0"`` with a semicolon between layers (the paper's, in which 1 and 12 are alike).
        normalize: divide the distance of a pair by the length of its longer pathway, so that it lies in [0, 1].
        pairs: of samples, drawn without replacement; None, or more than there are, takes all of them.
        seed: of the draw.

    Raises:
        ValueError: fewer than 2 samples, different numbers of layers, layers without an expert, or ``pairs`` below 1.

    Source: arXiv:2506.21551, equation of D_path.

    Example:
        >>> pathway_distance([[[0, 1], [2]], [[0, 3], [2]], [[0, 1], [2]]])
        0.2222222222222222
    """
    _check_paths(paths)
    check_one_of(("expert", "char"), unit=unit)
    chosen = _chosen(len(paths), pairs, seed)
    return _mean_distance([_as_text(path) if unit == "char" else _as_ids(path) for path in paths], chosen, normalize)


@checked
def pathway_distance_by_layer(
    paths: Sequence[Pathway], normalize: bool = True, pairs: int | None = 2000, seed: int = 0
) -> list[float]:
    """Returns the same distance for each layer alone, the first one first: which layers are shared, and how deep.

    Args:
        paths: as for ``pathway_distance``; experts are what is edited.
        normalize: divide by the longer of the two lists of a layer.
        pairs: of samples, the same for all layers.
        seed: of the draw.

    Raises:
        ValueError: as ``pathway_distance``.

    Example:
        >>> pathway_distance_by_layer([[[0], [1, 2]], [[0], [3, 4]]])
        [0.0, 1.0]
    """
    _check_paths(paths)
    chosen = _chosen(len(paths), pairs, seed)
    layers = [[list(path[layer]) for path in paths] for layer in range(len(paths[0]))]
    return [_mean_distance(layer, chosen, normalize) for layer in layers]


@checked
def permute_experts(paths: Sequence[Pathway], experts: int, seed: int = 0) -> list[list[list[int]]]:
    """Returns pathways of the same lengths whose experts are renamed at random, in each sample and layer anew.

    The null of ``pathway_distance``: what samples share beyond it, they do not share by the lengths of their pathways.

    Args:
        paths: as for ``pathway_distance``.
        experts: how many a layer has; ids are below it.
        seed: of the names.

    Raises:
        ValueError: ids that are not below ``experts``, and as ``pathway_distance``.

    Example:
        >>> null = permute_experts([[[0, 1], [2]], [[0, 1], [2]]], experts=8)
        >>> [[len(layer) for layer in path] for path in null], null[0] == null[1]
        ([[2, 1], [2, 1]], False)
    """
    check_at_least(1, experts=experts)
    _check_paths(paths)
    check_labels(experts, paths=[expert for path in paths for layer in path for expert in layer])
    draw = random.Random(seed)

    def renamed(layer: Sequence[int]) -> list[int]:
        names = draw.sample(range(experts), experts)
        return [names[expert] for expert in layer]

    return [[renamed(layer) for layer in path] for path in paths]


@checked
def pathway_consistency(
    weights: Tensor, gate_rows: Sequence[Tensor], threshold: float = 0.7, top_k: int | None = None
) -> Tensor:
    """Returns how smoothly each sample's pathway runs on from layer to layer, in [-1, 1], shape ``(samples,)``.

    A layer is the sum of its kept experts' rows of the router, weighted by how much they are used; the consistency is
    the mean cosine of adjacent layers. Expert ids mean nothing from one layer to the next, rows of routers do: all of
    them read the same residual stream.

    Args:
        weights: ``(samples, layers, experts)``, as for ``pathways``; at least 2 layers.
        gate_rows: for each layer the router's weight ``(experts, width)``, see ``gate_rows``.
        threshold: which experts are kept, as for ``pathways``.
        top_k: or how many.

    Returns:
        On the device of ``weights``, float64.

    Raises:
        ValueError: one layer, routers of different widths or numbers of experts, layers that sum to a zero vector, or
            options that ``pathways`` refuses.

    Source: arXiv:2506.21551; deviation: early versions give 1 minus this, a complexity.

    Example:
        >>> rows = torch.eye(3)
        >>> pathway_consistency(torch.tensor([[[1.0, 0, 0], [1, 0, 0]], [[1, 0, 0], [0, 1, 0]]]), [rows, rows]).tolist()
        [1.0, 0.0]
    """
    kept, order = _kept(weights, threshold, top_k)
    samples, layers, experts = weights.shape
    if layers < 2:
        raise ValueError(f"weights must have at least 2 layers for a consistency, got {layers}")
    check_length(layers, gate_rows=gate_rows)
    for rows in gate_rows:
        check_dimensions(2, gate_rows=rows)
        check_values(gate_rows=rows)
        if rows.shape != (experts, gate_rows[0].shape[1]):
            raise ValueError(
                f"gate_rows must all be ({experts}, {gate_rows[0].shape[1]}): the cosine of layers with other rows is "
                f"undefined, got {tuple(rows.shape)}"
            )
    inside = torch.arange(experts, device=weights.device) < kept.unsqueeze(-1)
    used = torch.zeros(samples, layers, experts, dtype=torch.float64, device=weights.device)
    used.scatter_(2, order, inside.double())
    used *= weights.detach().double()
    stacked = torch.stack([rows.detach().to(weights.device, torch.float64) for rows in gate_rows])
    vectors = torch.einsum("nle,led->nld", used, stacked)
    if not bool((vectors.norm(dim=-1) > 0).all()):
        raise ValueError("gate_rows of the kept experts sum to a zero vector, whose cosine is undefined")
    vectors = F.normalize(vectors, dim=-1, eps=0.0)
    return (vectors[:, 1:] * vectors[:, :-1]).sum(-1).mean(1).clamp(-1, 1)


def _kept(weights: Tensor, threshold: float, top_k: int | None) -> tuple[Tensor, Tensor]:
    """How many experts are kept ``(samples, layers)``, and all experts by weight ``(samples, layers, experts)``."""
    check_dimensions(3, weights=weights)
    check_nonempty(weights=weights)
    check_nonnegative(weights=weights)
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must lie in (0, 1], got {threshold}")
    values = weights.detach().double()
    total = values.sum(-1, keepdim=True)
    if not bool((total > 0).all()):
        raise ValueError("weights must not all be 0 in a layer")
    heaviest = values.sort(dim=-1, descending=True, stable=True)
    experts = weights.shape[-1]
    if top_k is not None:
        check_at_least(1, top_k=top_k)
        if top_k > experts:
            raise ValueError(f"top_k must be at most the {experts} experts of weights, got {top_k}")
        kept = torch.full(weights.shape[:2], top_k, device=weights.device)
    elif threshold == 1:
        kept = torch.full(weights.shape[:2], experts, device=weights.device)
    else:
        before = (heaviest.values / total).cumsum(-1) < threshold - _ROUNDING
        kept = (before.sum(-1) + 1).clamp(max=experts)
    return kept, heaviest.indices


def _check_paths(paths: Sequence[Pathway]) -> None:
    if len(paths) < 2:
        raise ValueError(f"paths must be those of at least 2 samples, got {len(paths)}")
    for path in paths:
        check_nonempty(paths=path)
        check_same_length(**{"paths[0]": paths[0], "another of paths": path})
        for layer in path:
            check_nonempty(**{"paths, at each layer,": layer})
    check_labels(paths=[expert for path in paths for layer in path for expert in layer])


def _chosen(samples: int, pairs: int | None, seed: int) -> list[tuple[int, int]]:
    """Pairs of samples; all of them where no fewer are asked for."""
    if pairs is not None:
        check_at_least(1, pairs=pairs)
    total = samples * (samples - 1) // 2
    if pairs is None or pairs >= total:
        return list(combinations(range(samples), 2))
    draw, drawn = random.Random(seed), dict[tuple[int, int], None]()
    if total <= 4 * pairs:
        return draw.sample(list(combinations(range(samples), 2)), pairs)
    while len(drawn) < pairs:
        first, second = draw.sample(range(samples), 2)
        drawn[min(first, second), max(first, second)] = None
    return list(drawn)


def _as_ids(path: Pathway) -> list[int]:
    """Experts that have one name each in the whole network: ``expert * layers + layer``."""
    return [expert * len(path) + layer for layer, experts in enumerate(path) for expert in experts]


def _as_text(path: Pathway) -> list[int]:
    return list(";".join(",".join(map(str, experts)) for experts in path).encode())


def _mean_distance(sequences: list[list[int]], chosen: list[tuple[int, int]], normalize: bool) -> float:
    pairs = np.array(chosen)
    found = edit_distances_within(sequences, pairs).astype(float)
    if normalize:
        found /= np.array([len(each) for each in sequences])[pairs].max(1)
    return float(found.mean())
