"""Core: What can be read from the hidden states of a language model by a linear classifier.

Source: Alain, Bengio (arXiv:1610.01644).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from heldout.errors import (
    check_at_least,
    check_dimensions,
    check_labels,
    check_nonempty,
    check_one_of,
    check_positive,
    check_same_length,
    check_values,
    checked,
)
from heldout.measure.mechanisms.residual import residual_stream
from heldout.method import device_of


@checked
def hidden_states(
    model: nn.Module,
    inputs: Sequence[str] | Sequence[Sequence[int]] | Tensor,
    layer: int = -5,
    *,
    tokenizer: Any = None,
    pool: Literal["last", "mean"] = "last",
    batch_size: int = 32,
    blocks: str | None = None,
) -> Tensor:
    """Returns the residual state of each text at a layer: at its last token, or the mean over its tokens.

    ``heldout.lm.text_features`` gives those behind the final norm, and keeps them on disk.

    Args:
        model: a decoder of transformers; left as it was.
        inputs: texts, or token ids: lists of any lengths, or int64 ``(n, length)``.
        layer: before block 0, 1, ...; the number of blocks stands for behind the last one, and negative numbers count
            from there, so that -5 is the fifth to last; of 4 blocks that is the embedding, of fewer there is none: pass
            ``round(0.85 * blocks)``, say.
        tokenizer: of the model, for texts.
        pool: which tokens count.
        batch_size: rows at a time; rows are padded on the right, which no earlier token sees.
        blocks: name of the list of blocks; default: found.

    Returns:
        ``(n, width)``, of the model's type and on its device.

    Raises:
        ValueError: no inputs or an empty one, a layer that the model has not, or texts without a tokenizer.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=7, n_embd=8, n_layer=3, n_head=2))
        >>> hidden_states(model, [[1, 2, 3], [4, 5]], layer=-1).shape
        torch.Size([2, 8])
    """
    check_nonempty(inputs=inputs)
    check_at_least(1, batch_size=batch_size)
    check_one_of(("last", "mean"), pool=pool)
    rows = _token_rows(inputs, tokenizer)
    order = sorted(range(len(rows)), key=lambda number: len(rows[number]))
    found: dict[int, Tensor] = {}
    for start in range(0, len(order), batch_size):
        members = order[start : start + batch_size]
        lengths = torch.tensor([len(rows[number]) for number in members], device=device_of(model))
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(rows[number]) for number in members], batch_first=True)
        mask = torch.arange(ids.shape[1], device=lengths.device) < lengths[:, None]
        states = residual_stream(model, ids.to(lengths.device), mask.long(), blocks=blocks).states
        if not -len(states) <= layer < len(states):
            raise ValueError(f"layer must be from {-len(states)} to {len(states) - 1} for this model, got {layer}")
        if pool == "last":
            vectors = states[layer][torch.arange(len(members), device=lengths.device), lengths - 1]
        else:
            vectors = (states[layer] * mask[..., None]).sum(1) / lengths[:, None]
        found.update(zip(members, vectors, strict=True))
    return torch.stack([found[number] for number in range(len(rows))])


@checked
def linear_probe(features: Tensor, labels: Tensor, test_features: Tensor, test_labels: Tensor, C: float = 1.0) -> float:
    """Returns the test accuracy of a logistic regression (scikit-learn's) on standardised features.

    Args:
        features, test_features: ``(n, width)`` and ``(m, width)``; mean and scale are those of the former.
        labels, test_labels: classes, int64 ``(n,)`` and ``(m,)``.
        C: inverse strength of the L2 penalty, above 0.

    Raises:
        ValueError: values that are not finite, one class, no rows, or widths that differ.

    Example:
        >>> x = torch.tensor([[-1.0, 0.0], [-2.0, 1.0], [1.0, 0.0], [2.0, 1.0]])
        >>> linear_probe(x, torch.tensor([0, 0, 1, 1]), x * 2, torch.tensor([0, 0, 1, 1]))
        1.0
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    check_positive(C=C)
    check_dimensions(2, features=features, test_features=test_features)
    check_values(features=features, test_features=test_features)
    check_labels(labels=labels, test_labels=test_labels)
    check_same_length(features=features, labels=labels)
    check_same_length(test_features=test_features, test_labels=test_labels)
    if features.shape[1] != test_features.shape[1]:
        raise ValueError(f"test_features must have {features.shape[1]} columns, got {test_features.shape[1]}")
    if len(labels.unique()) < 2:
        raise ValueError("labels must hold at least 2 classes")
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=1000))
    probe.fit(_array(features), _array(labels))
    return float(probe.score(_array(test_features), _array(test_labels)))


def _array(values: Tensor) -> Any:
    return (values.double() if values.is_floating_point() else values).detach().cpu().numpy()


def _token_rows(inputs: Any, tokenizer: Any) -> list[list[int]]:
    if isinstance(inputs, Tensor):
        check_dimensions(2, inputs=inputs)
        check_labels(inputs=inputs)
        return inputs.tolist()
    if any(isinstance(each, str) for each in inputs):
        if tokenizer is None:
            raise ValueError("tokenizer must be given for texts")
        rows = tokenizer(list(inputs))["input_ids"]
    else:
        rows = [list(each) for each in inputs]
    for row in rows:
        check_nonempty(inputs=row)
        check_labels(inputs=row)
    return rows
