"""Core: fit_pairs: trains a network on pairs of token sequences, by ``fit``, so that every Method has its place."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import Sampler, SubsetRandomSampler, TensorDataset

from heldout.data import PAD, EndlessSampler, PairTensors, TokenVocabulary, as_pairs, as_tokens, sample_ids
from heldout.errors import check_at_least, check_fields, check_has, check_nonempty, check_positive, checked
from heldout.method import Method, Run, device_of
from heldout.train.supervised import Fitted, fit


@dataclass
class FittedPairs:
    """A trained network from sequence to sequence, with the vocabulary that it reads and writes.

    Attributes:
        model: with ``forward(source, target_in)`` and ``generate(source, max_length)``, in eval mode.
        vocabulary: of sources and targets.
        fitted: what ``fit`` returned; its ``history`` has the loss of each round.

    Example:
        >>> from heldout.nn import Seq2SeqLSTM
        >>> pairs = [("jump", "JUMP"), ("walk", "WALK")]
        >>> trained = fit_pairs(lambda n: Seq2SeqLSTM(n, dim=16), pairs, steps=60, batch_size=8, learning_rate=0.02)
        >>> trained.predict(["walk"])
        [('WALK',)]
    """

    model: nn.Module
    vocabulary: TokenVocabulary
    fitted: Fitted

    def __post_init__(self) -> None:
        check_fields(self)

    @checked
    def predict(self, sources: Sequence, *, max_length: int = 64, batch_size: int = 512) -> list[tuple[str, ...]]:
        """Returns the written tokens for each source, in order; see ``write_sequences``."""
        return write_sequences(self.model, self.vocabulary, sources, max_length=max_length, batch_size=batch_size)


@checked
def fit_pairs(
    model: Callable[[int], nn.Module],
    pairs: Sequence,
    method: Method | None = None,
    *,
    vocabulary: TokenVocabulary | None = None,
    steps: int = 900,
    rounds: int = 10,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    warmup: int = 100,
    weight_decay: float = 0.01,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> FittedPairs:
    """Trains a network from sequence to sequence for a number of steps, whatever the number of pairs is.

    The loss is the cross-entropy of each token after the true ones, mean over tokens. AdamW, gradients clipped at norm
    1, a linear warm-up, and a cosine to zero after it. The last step counts: nothing is selected.

    Args:
        model: from the size of the vocabulary to a module with ``forward(source, target_in) -> logits`` of shape
            ``(batch, target length, vocabulary)`` and ``generate``, such as ``Seq2SeqTransformer``.
        pairs: ``(source, target)`` of texts or token sequences.
        method: what to change; None is the plain recipe. What its data stage draws is gone through again and again
            until the steps are taken, so it takes as many whatever it leaves out or repeats.
        vocabulary: which has all tokens, of data to be tested on as well; default: that of the pairs.
        steps: optimizer steps, a multiple of ``rounds``.
        rounds: what ``fit`` calls epochs, and a Method counts by.
        batch_size: pairs in a step.
        learning_rate: at the end of the warm-up.
        warmup: steps.
        weight_decay: of AdamW.
        seed: of initialisation, data order and dropout.
        device: where to train; default: where the model is.

    Raises:
        ValueError: no pairs, an empty source, unknown tokens, or numbers out of range.

    Example:
        >>> from heldout.nn import Seq2SeqTransformer
        >>> pairs = [("jump twice", "JUMP JUMP"), ("walk", "WALK")]
        >>> trained = fit_pairs(lambda size: Seq2SeqTransformer(size, dim=16, heads=2), pairs, steps=20, batch_size=4)
        >>> len(trained.fitted.history), trained.model.training
        (10, False)
    """
    check_at_least(1, steps=steps, rounds=rounds)
    check_at_least(2, batch_size=batch_size)
    check_at_least(0, seed=seed, warmup=warmup, weight_decay=weight_decay)
    check_positive(learning_rate=learning_rate)
    if steps % rounds:
        raise ValueError(f"steps must be a multiple of rounds, got {steps} and {rounds}")
    known = as_pairs(pairs, "pairs")
    vocabulary = TokenVocabulary.of(known) if vocabulary is None else vocabulary
    draws = steps // rounds * batch_size

    def counted(run: Run, train_set: Any) -> Any:
        run.state["steps_per_epoch"] = steps // rounds  # for Methods that follow a schedule
        return train_set

    def endless(run: Run, train_set: Any) -> Sampler:
        if isinstance(train_set, Sampler):
            return EndlessSampler(train_set, draws)
        positions = sample_ids(train_set, run.splits.train)
        return EndlessSampler(SubsetRandomSampler(positions.tolist(), generator=run.generator), draws)

    def schedule(optimizer: Optimizer, total: int) -> LRScheduler:
        rise = max(1, warmup)
        return LambdaLR(optimizer, lambda step: min((step + 1) / rise, _cosine(step - rise, total - rise)))

    def decayed(parameters: Any) -> AdamW:
        return AdamW(parameters, lr=learning_rate, weight_decay=weight_decay)

    size = len(vocabulary)
    begin, end = Method("plain", data=counted), Method("plain", data=endless)
    fitted = fit(
        lambda: _TokenLogits(model(size)),
        pair_dataset(known, vocabulary),
        begin + end if method is None else (begin + method + end).renamed(method.name),
        epochs=rounds,
        batch_size=batch_size,
        optimizer=lambda module: decayed([p for p in module.parameters() if p.requires_grad]),
        schedule=schedule,
        loss=_token_loss,
        max_grad_norm=1.0,
        seed=seed,
        device=device,
    )
    for entry in fitted.history:
        entry.pop("train_error", None)  # it counts tokens, filling included
    return FittedPairs(fitted.module.model, vocabulary, fitted)  # type: ignore[arg-type]


@checked
def pair_dataset(pairs: Sequence, vocabulary: TokenVocabulary) -> TensorDataset:
    """Returns pairs as examples ``((source, target_in), target)`` of ids, for ``fit`` and for loaders of one's own.

    Raises:
        ValueError: no pairs, an empty source, or unknown tokens.

    Example:
        >>> pairs = [("jump", "JUMP")]
        >>> [part.tolist() for part in pair_dataset(pairs, TokenVocabulary.of(pairs))[0]]
        [[3], [1, 4], [4, 2]]
    """
    tensors: PairTensors = vocabulary.encode_pairs(pairs)
    return TensorDataset(*tensors)


@checked
def write_sequences(
    model: nn.Module,
    vocabulary: TokenVocabulary,
    sources: Sequence,
    *,
    max_length: int = 64,
    batch_size: int = 512,
) -> list[tuple[str, ...]]:
    """Returns what a model writes greedily for each source, in order; sources of like length are written together.

    Args:
        model: with ``generate(source, max_length) -> ids``.
        vocabulary: which has all tokens of the sources.
        sources: texts or token sequences.
        max_length: tokens at most, the end included; longer targets are cut off.
        batch_size: sources at once.

    Raises:
        ValueError: no sources, an empty one, or unknown tokens.

    Example:
        >>> from heldout.nn import Seq2SeqLSTM
        >>> vocabulary = TokenVocabulary(["jump", "JUMP"])
        >>> len(write_sequences(Seq2SeqLSTM(len(vocabulary), dim=8), vocabulary, ["jump", "jump jump"], max_length=3))
        2
    """
    check_has("generate", model=model)
    check_nonempty(sources=sources)
    check_at_least(1, max_length=max_length, batch_size=batch_size)
    tokens = [as_tokens(source, "sources") for source in sources]
    order = sorted(range(len(tokens)), key=lambda position: len(tokens[position]))
    written: list[tuple[str, ...]] = [()] * len(tokens)
    for start in range(0, len(order), batch_size):
        chunk = order[start : start + batch_size]
        source = vocabulary.encode([tokens[position] for position in chunk]).to(device_of(model))
        found = vocabulary.decode(model.generate(source, max_length))  # type: ignore[operator]
        for position, row in zip(chunk, found, strict=True):
            written[position] = row
    return written


class _TokenLogits(nn.Module):
    """Logits with the classes as the second axis, as ``fit`` and torch's cross-entropy have them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        check_has("generate", model=model)
        self.model = model

    def forward(self, source: Tensor, target_in: Tensor) -> Tensor:
        return self.model(source, target_in).transpose(1, 2)


def _token_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, ignore_index=PAD)


def _cosine(step: int, steps: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(1.0, max(0, step) / max(1, steps))))
