"""Core: Descriptions of entities -> vectors: a pretrained encoder, a bag of words, a CNN, and a table without text.

All take ``(ids, mask)``, the tokens of each description, ``(n, length)``, and which of them are no padding, and give
``(n, dim)``. Padding changes nothing. Source: arXiv:2010.03496 (Daza, Cochez, Groth, WWW 2021), section 4.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heldout.errors import (
    check_at_least,
    check_dimensions,
    check_fraction,
    check_labels,
    check_nonempty,
    check_one_of,
    check_same_length,
    checked,
)

Pooling = Literal["cls", "mean"]


class TextEntityEncoder(nn.Module):
    """The vector of an entity is a linear map, without bias, of what a text encoder makes of its description.

    Args:
        model: an encoder of transformers (its output has ``last_hidden_state``: BERT, DistilBERT, RoBERTa, MPNet), or
            any callable from ``(ids, mask)`` to hidden states ``(n, length, width)``; a module is trained, too.
        dim: length of the vectors.
        pooling: "cls", the state of the first token as published, or "mean" over the tokens, which suits encoders of
            sentences.
        width: of the hidden states; default: what the configuration of the model says.

    Raises:
        ValueError: dim or width below 1, another pooling, or a model that tells no width where none is given.

    Source: arXiv:2010.03496, eq. 4; official code, ``BertEmbeddingsLP`` ("cls").

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
        >>> encoder = TextEntityEncoder(model, dim=8)
        >>> encoder(torch.tensor([[2, 5, 3, 0], [2, 7, 9, 3]]), torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])).shape
        torch.Size([2, 8])
    """

    @checked
    def __init__(
        self, model: Callable[..., Any], dim: int = 128, *, pooling: Pooling = "cls", width: int | None = None
    ) -> None:
        super().__init__()
        check_one_of(("cls", "mean"), pooling=pooling)
        config = getattr(model, "config", None)
        width = getattr(config, "hidden_size", None) if width is None else width
        if width is None:
            raise ValueError("width must be given: the model has no configuration that tells it")
        check_at_least(1, dim=dim, width=width)
        self.model, self.pooling, self.dim = model, pooling, dim
        self.linear = nn.Linear(width, dim, bias=False)

    @checked
    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Returns the vectors ``(n, dim)``.

        Args:
            ids: tokens, int64 ``(n, length)``, or hidden states ``(n, length, width)`` where the model takes
                ``inputs_embeds``, as the upper half of ``split_encoder`` does.
            mask: ``(n, length)``, 1 where there is a token.

        Raises:
            ValueError: shapes that do not fit, or a description without a token.
        """
        ids, mask = _trimmed(ids, mask)
        return cast(Tensor, self.linear(self._pooled(self._hidden(ids, mask), mask)))

    def _hidden(self, ids: Tensor, mask: Tensor) -> Tensor:
        if not hasattr(self.model, "config"):
            found = self.model(ids, mask)
        elif ids.is_floating_point():
            found = self.model(inputs_embeds=ids, attention_mask=mask.long())
        else:
            found = self.model(input_ids=ids, attention_mask=mask.long())
        return cast(Tensor, getattr(found, "last_hidden_state", found))

    def _pooled(self, hidden: Tensor, mask: Tensor) -> Tensor:
        if self.pooling == "cls":
            first = mask.long().argmax(1)
            return hidden[torch.arange(len(hidden), device=hidden.device), first]
        weights = mask.to(hidden.dtype)[..., None]
        return (hidden * weights).sum(1) / weights.sum(1)


class BagOfWordsEncoder(nn.Module):
    """The vector of an entity is the mean of the vectors of its words, which are trained; stop words are left out.

    A text of nothing but stop words is the mean of all its words.

    Args:
        words: pretrained vectors of the tokens, ``(tokens, width)``; they are copied.
        dim: length of the vectors after a linear map without bias; None: no map, as published.
        stop: tokens that are left out: stop words and the tokenizer's own.

    Raises:
        ValueError: no words, dim below 1, or stop words that are no tokens.

    Source: official code of arXiv:2010.03496, ``BOW``.

    Example:
        >>> encoder = BagOfWordsEncoder(torch.eye(4), stop=[0])
        >>> encoder(torch.tensor([[0, 1, 2, 3]]), torch.tensor([[1, 1, 1, 0]]))
        tensor([[0.0000, 0.5000, 0.5000, 0.0000]], grad_fn=<DivBackward0>)
    """

    kept: Tensor

    @checked
    def __init__(self, words: Tensor, dim: int | None = None, *, stop: Sequence[int] = ()) -> None:
        super().__init__()
        _check_words(words)
        check_at_least(1, dim=dim)
        check_labels(len(words), stop=stop)
        self.words = nn.Embedding.from_pretrained(words.detach().clone(), freeze=False)
        self.linear = nn.Identity() if dim is None else nn.Linear(words.shape[1], dim, bias=False, dtype=words.dtype)
        self.dim = words.shape[1] if dim is None else dim
        kept = torch.ones(len(words), dtype=torch.bool)
        kept[list(stop)] = False
        self.register_buffer("kept", kept, persistent=False)

    @checked
    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Returns the vectors ``(n, dim)`` of token ids and their mask, ``(n, length)``.

        Raises:
            ValueError: shapes that do not fit, ids that are no tokens, or a description without a token.
        """
        ids, mask = _trimmed(ids, mask)
        check_labels(self.words.num_embeddings, ids=ids)
        counted = mask.bool() & self.kept[ids]
        counted = torch.where(counted.any(1, keepdim=True), counted, mask.bool())
        weights = counted[..., None].to(self.words.weight.dtype)
        return cast(Tensor, self.linear((self.words(ids) * weights).sum(1) / weights.sum(1)))


class DKRLEncoder(nn.Module):
    """The vector of an entity is read off its words, which are trained, by two convolutions over pairs of neighbours.

    A convolution, the maximum of each four, tanh, a second convolution, the mean, and tanh.

    Args:
        words: pretrained vectors of the tokens, ``(tokens, width)``; they are copied.
        dim: length of the vectors.

    Raises:
        ValueError: no words, or dim below 1.

    Source: Xie et al. 2016 (DKRL), as in the official code of arXiv:2010.03496. deviation: maxima and mean pass over
        places without a word, so that padding changes nothing.

    Example:
        >>> encoder = DKRLEncoder(torch.randn(9, 6), dim=4)
        >>> encoder(torch.tensor([[3, 5, 0], [1, 2, 8]]), torch.tensor([[1, 1, 0], [1, 1, 1]])).shape
        torch.Size([2, 4])
    """

    @checked
    def __init__(self, words: Tensor, dim: int = 128) -> None:
        super().__init__()
        _check_words(words)
        check_at_least(1, dim=dim)
        self.words = nn.Embedding.from_pretrained(words.detach().clone(), freeze=False)
        self.first = nn.Conv1d(words.shape[1], dim, kernel_size=2, dtype=words.dtype)
        self.second = nn.Conv1d(dim, dim, kernel_size=2, dtype=words.dtype)
        self.dim = dim

    @checked
    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Returns the vectors ``(n, dim)`` of token ids and their mask, ``(n, length)``; padding is on the right.

        Raises:
            ValueError: shapes that do not fit, ids that are no tokens, or a description without a token.
        """
        ids, mask = _trimmed(ids, mask)
        check_labels(self.words.num_embeddings, ids=ids)
        there = mask.bool()[:, None]
        x = (self.words(ids) * mask[..., None]).transpose(1, 2)
        x = self.first(F.pad(x, (0, 1))).masked_fill(~there, -torch.inf)
        x = F.max_pool1d(x, 4, ceil_mode=True)
        there = F.max_pool1d(there.to(x.dtype), 4, ceil_mode=True) > 0
        x = torch.tanh(x).masked_fill(~there, 0.0)
        x = self.second(F.pad(x, (0, 1))) * there
        return torch.tanh(x.sum(2) / there.sum(2))


class EntityTable(nn.Module):
    """A vector for each entity, whatever its description: it is right about none that it was not trained on.

    Args:
        entities: how many there are.
        dim: length of the vectors.

    Raises:
        ValueError: entities or dim below 1.

    Source: official code of arXiv:2010.03496, ``TransductiveLinkPrediction``.

    Example:
        >>> EntityTable(5, dim=4)(torch.tensor([[3], [0]]), torch.ones(2, 1)).shape
        torch.Size([2, 4])
    """

    @checked
    def __init__(self, entities: int, dim: int = 128) -> None:
        super().__init__()
        check_at_least(1, entities=entities, dim=dim)
        self.vectors, self.dim = nn.Embedding(entities, dim), dim
        nn.init.xavier_uniform_(self.vectors.weight)

    @checked
    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns the vectors ``(n, dim)`` of entities, int64 ``(n, 1)``; all have a mask.

        Raises:
            ValueError: entities that the table does not have, or not one in a row.
        """
        check_labels(self.vectors.num_embeddings, ids=ids)
        check_same_length(ids=ids, mask=mask)
        check_fraction(mask=mask)
        if ids.ndim != 2 or ids.shape[1] != 1:
            raise ValueError(f"ids must be the number of one entity in each row, (n, 1), got {tuple(ids.shape)}")
        return cast(Tensor, self.vectors(ids[:, 0]))


@checked
def split_encoder(model: nn.Module, upper: int) -> tuple[nn.Module, nn.Module]:
    """Returns an encoder of transformers as two models: what makes hidden states, and the last layers that take them.

    ``upper(inputs_embeds=lower(input_ids=ids, attention_mask=mask).last_hidden_state, attention_mask=mask)`` is what
    the model gives. Where only the last layers are trained, what the lower ones make is computed once. The layers are
    those of the model, no copies; pass ``copy.deepcopy(model)`` to keep it as it is.

    Args:
        model: whose layers are ``encoder.layer`` (BERT, RoBERTa, MPNet, ELECTRA,
            DeBERTa) or ``transformer.layer`` (DistilBERT).
        upper: layers of the second, from 1 to all of them but none.

    Raises:
        ValueError: a model of another form, or upper out of range.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> config = BertConfig(vocab_size=30, hidden_size=16, num_hidden_layers=3, num_attention_heads=2)
        >>> model = BertModel(config).eval()
        >>> lower, upper = split_encoder(model, 1)
        >>> ids, mask = torch.tensor([[2, 5, 3, 0]]), torch.tensor([[1, 1, 1, 0]])
        >>> hidden = lower(input_ids=ids, attention_mask=mask).last_hidden_state
        >>> whole = model(input_ids=ids, attention_mask=mask).last_hidden_state
        >>> torch.allclose(upper(inputs_embeds=hidden, attention_mask=mask).last_hidden_state, whole, atol=1e-6)
        True
    """
    name = next((each for each in ("encoder", "transformer") if hasattr(getattr(model, each, None), "layer")), None)
    if name is None or not hasattr(model, "embeddings"):
        raise ValueError("model must have its layers in encoder.layer or transformer.layer, and embeddings before them")
    layers = getattr(model, name).layer
    if not 1 <= upper <= len(layers):
        raise ValueError(f"upper must be from 1 to {len(layers)}, got {upper}")
    below = _with_layers(model, name, layers[: len(layers) - upper], model.embeddings)
    above = _with_layers(model, name, layers[len(layers) - upper :], _HiddenStates())
    if hasattr(model, "embeddings_project"):  # ELECTRA, between embeddings and layers of another width
        above._modules["embeddings_project"] = nn.Identity()
    if (
        upper < len(layers) and getattr(getattr(model, name), "conv", None) is not None
    ):  # DeBERTa, after its first layer
        above._modules[name]._modules["conv"] = None
    return below, above


class _HiddenStates(nn.Module):
    """In the place of an embedding: hidden states pass, by name or (DistilBERT) behind the ids, which are none."""

    def forward(self, *given: Any, inputs_embeds: Tensor | None = None, **_: Any) -> Tensor:
        return next(each for each in (inputs_embeds, *given) if isinstance(each, Tensor) and each.is_floating_point())


def _with_layers(model: Any, name: str, layers: Any, embeddings: Any) -> Any:
    """A model that shares everything with another one but its layers and what comes before them."""
    other, stack = copy.copy(model), copy.copy(getattr(model, name))
    stack._modules = dict(stack._modules) | {"layer": layers}
    other._modules = dict(model._modules) | {name: stack, "embeddings": embeddings}
    return other


def _check_words(words: Tensor) -> None:
    check_dimensions(2, words=words)
    check_nonempty(words=words)
    if not words.is_floating_point():
        raise TypeError(f"words must be vectors of real numbers, got {words.dtype}")


def _trimmed(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Ids and mask up to the end of the longest description; refuses descriptions without a token."""
    check_dimensions(2, 3, ids=ids)
    check_dimensions(2, mask=mask)
    if ids.shape[:2] != mask.shape:
        raise ValueError(f"mask must be {tuple(ids.shape[:2])} as ids are, got {tuple(mask.shape)}")
    check_fraction(mask=mask)
    there = mask > 0
    if not bool(there.any(1).all()):
        raise ValueError("mask must have a token in each row: there is an empty description")
    length = int(there.any(0).nonzero().max()) + 1 if len(mask) else mask.shape[1]
    return ids[:, :length], mask[:, :length]
