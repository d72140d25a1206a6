"""Attention among tokens that a router has put together: by cluster, or by whether their domain is sure.

A token may look at those of its own cluster, and at those whose flag equals its own. Source: arXiv:2503.22698 and its
released script (GEM: a token router, then "sparse cross-attention routing", SCAR). As there, the attention is a masked
dense one: it costs ``O(N^2)`` whatever the share of pairs is.

Deviations: the clusters are fitted on training tokens and stay (in the script they are fitted anew at each call, test
batches included, so that a prediction depends on its neighbours in the batch); padding is masked; there is a residual
connection. ``TokenRouter(refit=True)``, ``ScarAttention(residual=False)`` and ``GEMClassifier(mask_padding=False)`` are
the script's way.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heldout.errors import check_at_least, check_dimensions, check_finite, check_fraction, check_labels, checked
from heldout.method import evaluating


class TokenRoutes(NamedTuple):
    """Where tokens belong.

    Attributes:
        clusters: int64 ``(batch, tokens)``.
        flags: bool ``(batch, tokens)``: whether a domain is more probable than the router's threshold.
        logits: of the domains, ``(batch, tokens, domains)``.

    Example:
        >>> TokenRoutes(torch.tensor([[0, 1]]), torch.tensor([[True, False]]), torch.zeros(1, 2, 3)).flags.sum().item()
        1
    """

    clusters: Tensor
    flags: Tensor
    logits: Tensor


class TokenRouter(nn.Module):
    """Gives each token the nearest of some clusters, and a flag that is set where one domain is probable enough.

    The flags are hard, so no gradient reaches the domains' weights through attention; train them by cross-entropy of
    ``TokenRoutes.logits`` where the domains of the texts are known. As drawn they mean nothing in particular.

    Args:
        dim: width of a token.
        domains: how many.
        clusters: how many; there must be as many different tokens to fit them on.
        threshold: probability above which a flag is set, in [0, 1]. None: what half of the tokens of ``fit`` exceed.
            Where nearly all flags are equal, as they are at the published threshold (on wide tokens nine in ten are
            set), nearly all tokens may look at each other.
        refit: cluster each batch by itself, without ``fit``, into as many clusters as it has different tokens at most:
            the released script's way, in which a token's cluster depends on the batch.
        seed: of the clustering.

    Raises:
        ValueError: numbers out of range.

    Source: arXiv:2503.22698, the released script (256 clusters, threshold 0.65).

    Example:
        >>> router = TokenRouter(8, domains=3, clusters=4).fit(torch.randn(50, 8))
        >>> routes = router(torch.randn(2, 5, 8))
        >>> routes.clusters.shape, routes.logits.shape
        (torch.Size([2, 5]), torch.Size([2, 5, 3]))
    """

    centres: Tensor
    level: Tensor

    @checked
    def __init__(
        self,
        dim: int,
        domains: int,
        clusters: int = 256,
        threshold: float | None = 0.65,
        *,
        refit: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_at_least(1, dim=dim, domains=domains, clusters=clusters)
        check_fraction(threshold=0.5 if threshold is None else threshold)
        if refit and threshold is None:
            raise ValueError("threshold must be a number where refit leaves no tokens to find it on")
        self.clusters, self.threshold, self.refit, self.seed = clusters, threshold, refit, seed
        self.domains = nn.Linear(dim, domains, bias=False)
        nn.init.normal_(self.domains.weight)
        self.register_buffer("centres", torch.full((clusters, dim), torch.nan))
        self.register_buffer("level", torch.tensor(torch.nan if threshold is None else threshold))

    @checked
    def fit(self, tokens: Tensor) -> TokenRouter:
        """Fits the clusters by mini-batch k-means (of scikit-learn), and the threshold where it is None.

        Args:
            tokens: ``(n, dim)``, without padding.

        Raises:
            ValueError: tokens of another width, not finite, or fewer different ones than clusters.
        """
        check_dimensions(2, tokens=tokens)
        self._check_width(tokens)
        check_finite(tokens=tokens)
        self.centres.copy_(self._cluster(tokens))
        if self.threshold is None:
            with torch.no_grad():
                self.level.copy_(self.domains(tokens.to(self.domains.weight)).softmax(1).amax(1).median())
        return self

    def _cluster(self, tokens: Tensor) -> Tensor:
        from sklearn.cluster import MiniBatchKMeans

        values = tokens.detach().float().cpu()
        different = len(values.unique(dim=0))
        clusters = min(self.clusters, different) if self.refit else self.clusters
        if different < clusters:
            raise ValueError(f"tokens must hold {self.clusters} different ones, one a cluster, got {different}")
        found = MiniBatchKMeans(clusters, random_state=self.seed, n_init=1, batch_size=1024).fit(values.numpy())
        return torch.from_numpy(found.cluster_centers_).to(self.centres)

    def forward(self, tokens: Tensor) -> TokenRoutes:
        """Returns where the tokens ``(batch, tokens, dim)`` belong; ``refit`` clusters padding with them, as published.

        Distances are in single precision, whatever the tokens are in.

        Raises:
            RuntimeError: before ``fit``.
            ValueError: tokens of other axes or another width, or not finite.
        """
        check_dimensions(3, tokens=tokens)
        self._check_width(tokens)
        check_finite(tokens=tokens)
        centres = self.centres
        if self.refit:
            centres = self._cluster(tokens.flatten(0, 1))
        elif bool(centres.isnan().any()):
            raise RuntimeError("the clusters of TokenRouter are not fitted: call fit(tokens) first")
        # By matrix products, distances between points far from 0 would be those of rounding.
        seen, middles = tokens.detach().float(), centres.float().expand(len(tokens), -1, -1)
        near = torch.cdist(seen, middles, compute_mode="donot_use_mm_for_euclid_dist").argmin(2)
        logits = self.domains(tokens.to(self.domains.weight.dtype))
        return TokenRoutes(near, logits.detach().float().softmax(2).amax(2) > self.level, logits)

    def _check_width(self, tokens: Tensor) -> None:
        if tokens.shape[-1] != self.centres.shape[1]:
            raise ValueError(f"tokens must be {self.centres.shape[1]} wide, got {tokens.shape[-1]}")


@checked
def routed_mask(clusters: Tensor, flags: Tensor, mask: Tensor | None = None) -> Tensor:
    """Returns which tokens may look at which: those of one cluster, and those whose flags are equal.

    Args:
        clusters: integers ``(batch, tokens)``.
        flags: bool ``(batch, tokens)``.
        mask: ``(batch, tokens)``, false or 0 for padding, which nobody looks at but itself.

    Returns:
        bool ``(batch, tokens, tokens)``; a token always looks at itself.

    Raises:
        ValueError: shapes that differ, or a mask of other values than 0 and 1 (as those that are added to scores).

    Source: arXiv:2503.22698, the released script; there padding is not masked.

    Example:
        >>> routed_mask(torch.tensor([[0, 1, 1]]), torch.tensor([[True, True, False]])).int()[0].tolist()
        [[1, 1, 0], [1, 1, 1], [0, 1, 1]]
    """
    check_dimensions(2, clusters=clusters, flags=flags)
    for name, other in (("flags", flags), ("mask", mask)):
        if other is not None and other.shape != clusters.shape:
            raise ValueError(
                f"{name} must have the shape of clusters {tuple(clusters.shape)}, got {tuple(other.shape)}"
            )
    check_labels(clusters=clusters)
    allowed = (clusters[:, :, None] == clusters[:, None]) | (flags[:, :, None] == flags[:, None])
    if mask is not None:
        check_fraction(mask=mask)
        allowed &= mask.bool()[:, None]
    return allowed | torch.eye(clusters.shape[1], dtype=torch.bool, device=clusters.device)


@checked
def attended_share(allowed: Tensor, mask: Tensor | None = None) -> float:
    """Returns the share of the pairs of tokens, padding left out, in which one may look at the other.

    Args:
        allowed: bool ``(batch, tokens, tokens)``, of ``routed_mask``.
        mask: ``(batch, tokens)``, false or 0 for padding.

    Raises:
        ValueError: no token that is no padding, or shapes that do not fit.

    Example:
        >>> attended_share(torch.eye(4, dtype=torch.bool)[None])
        0.25
    """
    check_dimensions(3, allowed=allowed)
    real = torch.ones(allowed.shape[:2], dtype=torch.bool, device=allowed.device) if mask is None else mask.bool()
    if real.shape != allowed.shape[:2]:
        raise ValueError(f"mask must be {tuple(allowed.shape[:2])}, got {tuple(real.shape)}")
    pairs = real[:, :, None] & real[:, None]
    if not bool(pairs.any()):
        raise ValueError("mask must leave a token that is no padding")
    return float((allowed & pairs).sum() / pairs.sum())


class ScarAttention(nn.Module):
    """Multi-head self-attention among tokens that share a cluster or a flag.

    Args:
        dim: width of a token, a multiple of ``heads``.
        heads: how many.
        residual: add the tokens to the result; without, as in the released script.

    Raises:
        ValueError: numbers below 1, or a width that the heads do not divide.

    Source: arXiv:2503.22698, the released script (12 heads of 64).

    Example:
        >>> tokens, same = torch.randn(2, 5, 8), torch.zeros(2, 5, dtype=torch.int64)
        >>> ScarAttention(8, heads=2)(tokens, same, same.bool()).shape
        torch.Size([2, 5, 8])
    """

    @checked
    def __init__(self, dim: int, heads: int, *, residual: bool = True) -> None:
        super().__init__()
        check_at_least(1, dim=dim, heads=heads)
        if dim % heads:
            raise ValueError(f"dim must be a multiple of heads, got {dim} and {heads}")
        self.heads, self.residual = heads, residual
        self.query_key_value, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(
        self, tokens: Tensor, clusters: Tensor | None = None, flags: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Returns tokens ``(batch, tokens, dim)``; without clusters and flags every token may look at every other.

        Args:
            tokens: of texts.
            clusters, flags: of ``TokenRouter``; both or neither.
            mask: ``(batch, tokens)``, false or 0 for padding.
        """
        if (clusters is None) != (flags is None):
            raise ValueError("clusters and flags must be given both, or neither")
        if clusters is None or flags is None:
            clusters = torch.zeros(tokens.shape[:2], dtype=torch.int64, device=tokens.device)
            flags = clusters.bool()
        if clusters.shape != tokens.shape[:2]:
            raise ValueError(f"clusters must be {tuple(tokens.shape[:2])}, got {tuple(clusters.shape)}")
        allowed = routed_mask(clusters, flags, mask)[:, None]
        query, key, value = self.query_key_value(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
        mixed = self.out(mixed.transpose(1, 2).flatten(2))
        return tokens + mixed if self.residual else mixed


class GEMClassifier(nn.Module):
    """An encoder of texts, one block of routed attention, and a classifier that reads the first token.

    Args:
        encoder: called with ``input_ids`` and ``attention_mask``, each by its name where it takes that, else with the
            ids alone; returns ``(batch, tokens, dim)`` or an output with ``last_hidden_state``.
        classes: how many.
        router: a ``TokenRouter`` of the encoder's width; None for attention among all tokens.
        attention: of the encoder's width.
        mask_padding: keep tokens from looking at padding; the released script does not.
        pad_token_id: what is padding where no ``attention_mask`` is given; None: nothing is.

    Raises:
        ValueError: less than 2 classes.

    Source: arXiv:2503.22698, the released script.

    Example:
        >>> encoder = nn.Embedding(20, 8)
        >>> model = GEMClassifier(encoder, 3, TokenRouter(8, 2, clusters=4), ScarAttention(8, heads=2))
        >>> texts = torch.randint(20, (6, 10))
        >>> _ = model.fit_router([texts])
        >>> model(texts).shape
        torch.Size([6, 3])
    """

    @checked
    def __init__(
        self,
        encoder: nn.Module,
        classes: int,
        router: TokenRouter | None,
        attention: ScarAttention,
        *,
        mask_padding: bool = True,
        pad_token_id: int | None = None,
    ) -> None:
        super().__init__()
        check_at_least(2, classes=classes)
        self.encoder, self.router, self.attention, self.mask_padding = encoder, router, attention, mask_padding
        self.pad_token_id = pad_token_id
        self.head = nn.Linear(attention.out.out_features, classes)

    def mask_of(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor | None:
        """Returns the mask of padding ``(batch, tokens)``, 0 for padding; None where there is none."""
        if attention_mask is not None or self.pad_token_id is None:
            return attention_mask
        return (input_ids != self.pad_token_id).long()

    def tokens(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Returns the encoder's ``(batch, tokens, dim)``."""
        parameters = inspect.signature(self.encoder.forward).parameters
        any_name = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())
        named = {"input_ids": input_ids, "attention_mask": attention_mask}
        taken = {name: value for name, value in named.items() if any_name or name in parameters}
        found: Any = self.encoder(**taken) if "input_ids" in taken else self.encoder(input_ids, **taken)
        return found if isinstance(found, Tensor) else found.last_hidden_state

    def fit_router(self, texts: Iterable[Tensor | Mapping[str, Tensor]]) -> GEMClassifier:
        """Fits the router's clusters on the tokens of training texts, and returns the model.

        Args:
            texts: batches, each a tensor ``input_ids`` or a mapping with ``attention_mask``.

        Raises:
            ValueError: there is no router, no batch, or too few different tokens.
        """
        if self.router is None:
            raise ValueError("fit_router needs a model with a router")
        found = []
        with evaluating(self), torch.no_grad():
            for batch in texts:
                given = {"input_ids": batch} if isinstance(batch, Tensor) else dict(batch)
                mask = self.mask_of(**given)
                tokens = self.tokens(given["input_ids"], mask)
                found.append(tokens.flatten(0, 1) if mask is None else tokens[mask.bool()])
        if not found:
            raise ValueError("texts must hold a batch")
        self.router.fit(torch.cat(found))
        return self

    def routes(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> TokenRoutes | None:
        """Returns where the tokens belong; None where the model has no router."""
        mask = self.mask_of(input_ids, attention_mask)
        return None if self.router is None else self.router(self.tokens(input_ids, mask))

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Returns logits ``(batch, classes)`` of texts ``(batch, tokens)``; the mask is 0 for padding."""
        real = self.mask_of(input_ids, attention_mask)
        tokens, mask = self.tokens(input_ids, real), real if self.mask_padding else None
        if self.router is None:
            return self.head(self.attention(tokens, mask=mask)[:, 0])
        routes = self.router(tokens)
        return self.head(self.attention(tokens, routes.clusters, routes.flags, mask)[:, 0])
