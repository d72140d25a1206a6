"""Core: A decoder of transformers that continues a series of vectors: one token a sample, one step a forward pass.

Source: arXiv:2402.02338 (NetLLM), viewport prediction; the layers of its official code.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from heldout.errors import check_at_least, check_dimensions, check_nonempty, check_values, checked, require
from heldout.method import evaluating
from heldout.nn.control.backbone import check_context, decoder_body, decoder_states, keeps_keys


class LMForecaster(nn.Module):
    """Returns the next sample after each sample of a series, ``(batch, steps, dim)``.

    A sample goes through ``hidden`` filters over all its numbers, LeakyReLU and a linear map to the decoder's width;
    LayerNorm, decoder, a linear head, and tanh. It is trained on all steps at once (``model(series[:, :-1])`` against
    ``series[:, 1:]``) and forecasts step by step, from its own answers.

    Args:
        lm: a decoder of transformers; which of its weights are trained is left as it is, see ``lora_backbone``.
        dim: numbers in a sample.
        hidden: filters.
        squash: tanh after the head, for samples in [-1, 1].
        residual: the head says the change from the sample before, at first none; without ``squash``. Deviation from
            the source.
        prefix: numbers of a feature vector that stands before the series (of an image, from a frozen network); 0: none.

    Raises:
        ValueError: sizes below 1, both ``squash`` and ``residual``.

    Source: arXiv:2402.02338, section 4; official code (``viewport_prediction``).

    Example:
        >>> from transformers import GPT2Config, GPT2Model
        >>> lm = GPT2Model(GPT2Config(vocab_size=8, n_embd=8, n_layer=1, n_head=2, n_positions=64))
        >>> model = LMForecaster(lm, dim=3)
        >>> model(torch.zeros(2, 5, 3)).shape, model.forecast(torch.zeros(2, 5, 3), 4).shape
        (torch.Size([2, 5, 3]), torch.Size([2, 4, 3]))
    """

    @checked
    def __init__(
        self,
        lm: nn.Module,
        dim: int,
        *,
        hidden: int = 256,
        squash: bool = True,
        residual: bool = False,
        prefix: int = 0,
    ) -> None:
        super().__init__()
        check_at_least(1, dim=dim, hidden=hidden)
        check_at_least(0, prefix=prefix)
        if squash and residual:
            raise ValueError("squash must be False where residual is True: a change is no value in [-1, 1]")
        self.lm = decoder_body(lm)
        width = int(self.lm.config.hidden_size)
        self.dim, self.squash, self.residual = dim, squash, residual
        self.embed = nn.Sequential(nn.Linear(dim, hidden), nn.LeakyReLU(), nn.Linear(hidden, width))
        self.embed_prefix = nn.Linear(prefix, width) if prefix else None
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, dim)
        _start_at_rest(self.head, residual)

    @checked
    def forward(self, series: Tensor, prefix: Tensor | None = None) -> Tensor:
        """Returns what follows each sample.

        Args:
            series: ``(batch, steps, dim)``.
            prefix: ``(batch, prefix)``, where the model has one.

        Raises:
            ValueError: a series of another form, longer than the decoder's positions; a prefix that is missing, not
                asked for or of another form.
        """
        return self._answers(series, prefix, None)

    @checked
    @torch.no_grad()
    def forecast(self, past: Tensor, horizon: int, *, prefix: Tensor | None = None, cache: bool = True) -> Tensor:
        """Returns the next samples, each from those before it, ``(batch, horizon, dim)``, in evaluation mode.

        Args:
            past: ``(batch, steps, dim)``.
            horizon: steps ahead.
            prefix: as for ``forward``.
            cache: False: the series is read anew for each step, which gives the same samples; so it is for decoders
                that keep no keys and values.

        Raises:
            ValueError: as for ``forward``; a horizon below 1.
        """
        check_at_least(1, horizon=horizon)
        check_dimensions(3, past=past)
        check_nonempty(past=past)
        check_values(past=past)
        cache = cache and keeps_keys(self.lm)
        with evaluating(self):
            kept = require("transformers").DynamicCache(config=self.lm.config) if cache else None
            series = past
            read = past
            for _ in range(horizon):
                following = self._answers(read, prefix, kept)[:, -1:]
                series = torch.cat([series, following], 1)
                read, prefix = (following, None if cache else prefix) if cache else (series, prefix)
            return series[:, past.shape[1] :]

    def _answers(self, series: Tensor, prefix: Tensor | None, cache: Any) -> Tensor:
        check_dimensions(3, series=series)
        check_nonempty(series=series)
        if series.shape[-1] != self.dim:
            raise ValueError(f"series must have {self.dim} numbers in a sample, got shape {tuple(series.shape)}")
        before = 0 if cache is None else cache.get_seq_length()
        if not before and (prefix is not None) != (self.embed_prefix is not None):
            raise ValueError(f"prefix must be {'given' if prefix is None else 'None'} for this model")
        if prefix is not None and self.embed_prefix is not None:
            form = (len(series), self.embed_prefix.in_features)
            if tuple(prefix.shape) != form:
                raise ValueError(f"prefix must be {form}, got shape {tuple(prefix.shape)}")
        check_context(self.lm, series=before + (prefix is not None) + series.shape[1])
        tokens = self.embed(series.to(self.head.weight.dtype))
        if prefix is not None and self.embed_prefix is not None:
            tokens = torch.cat([self.embed_prefix(prefix.to(tokens.dtype))[:, None], tokens], 1)
        said = self.head(decoder_states(self.lm, self.norm(tokens), cache)[:, -series.shape[1] :])
        if self.squash:
            return said.tanh()
        return said + series if self.residual else said


class LSTMForecaster(nn.Module):
    """Returns the next sample after each sample of a series from an LSTM, ``(batch, steps, dim)``.

    What a ``LMForecaster`` is compared with: called, trained and asked for forecasts in the same way.

    Args:
        dim: numbers in a sample.
        hidden: units.
        residual: the head says the change from the sample before, at first none.

    Raises:
        ValueError: sizes below 1.

    Example:
        >>> LSTMForecaster(3, hidden=8).forecast(torch.zeros(2, 5, 3), 4).shape
        torch.Size([2, 4, 3])
    """

    @checked
    def __init__(self, dim: int, *, hidden: int = 128, residual: bool = False) -> None:
        super().__init__()
        check_at_least(1, dim=dim, hidden=hidden)
        self.dim, self.residual = dim, residual
        self.body, self.head = nn.LSTM(dim, hidden, batch_first=True), nn.Linear(hidden, dim)
        _start_at_rest(self.head, residual)

    @checked
    def forward(self, series: Tensor) -> Tensor:
        """Returns what follows each sample of ``(batch, steps, dim)``."""
        return self._answers(series, None)[0]

    @checked
    @torch.no_grad()
    def forecast(self, past: Tensor, horizon: int) -> Tensor:
        """Returns the next samples of ``(batch, steps, dim)``, each from those before it, ``(batch, horizon, dim)``."""
        check_at_least(1, horizon=horizon)
        check_dimensions(3, past=past)
        check_nonempty(past=past)
        check_values(past=past)
        found, read, state = [], past, None
        for _ in range(horizon):
            said, state = self._answers(read, state)
            read = said[:, -1:]
            found.append(read)
        return torch.cat(found, 1)

    def _answers(self, series: Tensor, state: Any) -> tuple[Tensor, Any]:
        check_dimensions(3, series=series)
        check_nonempty(series=series)
        if series.shape[-1] != self.dim:
            raise ValueError(f"series must have {self.dim} numbers in a sample, got shape {tuple(series.shape)}")
        hidden, state = self.body(series.to(self.head.weight.dtype), state)
        said = self.head(hidden)
        return (said + series if self.residual else said), state


def _start_at_rest(head: nn.Linear, residual: bool) -> None:
    """A head of changes begins with none, so that an untrained model says the last sample."""
    if residual:
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
