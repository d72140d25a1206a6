"""Core: A sequence of returns, observations and actions, read by any decoder of transformers, which chooses actions.

Source: arXiv:2106.01345 (decision transformer); arXiv:2402.02338 (NetLLM) for the backbone, the encoders, the scalar
actions and the head, as in its official code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from heldout.data import TrajectoryBatch
from heldout.errors import check_at_least, check_fraction, check_has, check_labels, check_nonempty, checked, require
from heldout.nn.control.backbone import check_context, decoder_body, decoder_states
from heldout.nn.control.observation_tokens import ObservationTokens


class ReturnConditionedPolicy(nn.Module):
    """Returns what a decoder says of each action of a window, from what was seen and done before it.

    Each step of a window is the tokens ``[return-to-go, those of the observation, action]``; to all of them the
    embedding of the step's number in its episode is added, and a LayerNorm follows. The head reads the hidden state of
    the observation's last token, so that an answer is one forward pass and always valid.

    Args:
        lm: a decoder of transformers; which of its weights are trained is left as it is, see ``lora_backbone``.
        encoder: of observations by name, to tokens ``(..., tokens, width)`` of the decoder's width, such as
            ``ModalityEncoder`` or ``ObservationTokens``; has ``tokens`` and ``width``.
        actions: number of discrete actions; or numbers in an action that is real.
        real: actions are real numbers ``(..., actions)``, and so is the answer.
        window: steps that are looked at.
        max_timestep: steps of an episode that have an embedding of their own; later ones share the last.
        use_returns: False: without the tokens of returns, which is behaviour cloning.
        head: from hidden states ``(..., width)`` to the answer; default: one linear layer.

    Raises:
        ValueError: a window that needs more tokens than the decoder has positions, an encoder of another width, sizes
            below 1.

    Source: arXiv:2402.02338, section 4; official code (``plm_special``). Deviation: the context, not the width of the
        embeddings, limits the sequence.

    Example:
        >>> from transformers import GPT2Config, GPT2Model
        >>> from heldout.data import Trajectories
        >>> from heldout.nn import FeatureSpec, ModalityEncoder
        >>> lm = GPT2Model(GPT2Config(vocab_size=8, n_embd=8, n_layer=1, n_head=2, n_positions=64))
        >>> encoder = ModalityEncoder({"observation": FeatureSpec("vector", 3)}, width=8)
        >>> policy = ReturnConditionedPolicy(lm, encoder, actions=4, window=5)
        >>> logged = Trajectories(torch.randn(5, 3), torch.arange(5) % 4, torch.ones(5), torch.arange(5) == 4)
        >>> policy(logged.batch(logged.windows(5), logged.returns())).shape
        torch.Size([1, 5, 4])
    """

    @checked
    def __init__(
        self,
        lm: nn.Module,
        encoder: nn.Module,
        actions: int,
        *,
        real: bool = False,
        window: int = 20,
        max_timestep: int = 100,
        use_returns: bool = True,
        head: nn.Module | None = None,
    ) -> None:
        super().__init__()
        check_at_least(1, actions=actions, window=window, max_timestep=max_timestep)
        check_has("tokens", "width", encoder=encoder)
        self.lm = decoder_body(lm)
        width = int(self.lm.config.hidden_size)
        if encoder.width != width:
            raise ValueError(f"encoder must have the width of the decoder, {width}, got {encoder.width}")
        self.encoder: Any = encoder
        self.actions, self.real = actions, real
        self.window, self.max_timestep, self.use_returns = window, max_timestep, use_returns
        check_context(self.lm, window=window * self.tokens_per_step)
        self.embed_return = nn.Linear(1, width) if use_returns else None
        self.embed_action = nn.Linear(actions if real else 1, width)
        self.embed_timestep = nn.Embedding(max_timestep, width)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, actions) if head is None else head

    @property
    def tokens_per_step(self) -> int:
        """Tokens of a step: of the observation, one of its action, and one of its return where there are returns."""
        return self.encoder.tokens + 1 + self.use_returns

    @checked
    def seen_tokens(self, observations: dict[str, Tensor], returns: Tensor, timesteps: Tensor) -> Tensor:
        """Returns the tokens of steps up to their observations, ``(..., tokens, width)``.

        Args:
            observations: by name ``(..., size)``.
            returns, timesteps: ``(...)``.
        """
        tokens = self.encoder(observations)
        if self.embed_return is not None:
            before = self.embed_return(returns.to(tokens.dtype)[..., None])
            tokens = torch.cat([before[..., None, :], tokens], -2)
        return self.norm(tokens + self._times(timesteps)[..., None, :])

    @checked
    def action_token(self, actions: Tensor, timesteps: Tensor) -> Tensor:
        """Returns the token of what was done in a step, ``(..., width)``.

        Args:
            actions: ``(...)`` integers, or ``(..., actions)`` real numbers.
            timesteps: ``(...)``.
        """
        if self.real:
            value = actions.to(self.embed_action.weight.dtype)
        else:
            check_labels(self.actions, actions=actions)
            value = ((actions + 1).to(self.embed_action.weight.dtype) / self.actions)[..., None]
        return self.norm(self.embed_action(value) + self._times(timesteps))

    @checked
    def forward(self, batch: TrajectoryBatch) -> Tensor:
        """Returns logits ``(windows, steps, actions)``, or real actions; those of step t know no action from t on.

        Raises:
            ValueError: more steps than ``window``, actions or observations that do not fit.
        """
        steps = batch.timesteps.shape[1]
        if steps > self.window:
            raise ValueError(f"batch must have at most the {self.window} steps of a window, got {steps}")
        seen = self.seen_tokens(batch.observations, batch.returns, batch.timesteps)
        done = self.action_token(batch.actions, batch.timesteps)
        tokens = torch.cat([seen, done[..., None, :]], -2)  # (windows, steps, tokens, width)
        hidden = decoder_states(self.lm, tokens.flatten(1, 2)).unflatten(1, (steps, -1))
        return self.head(hidden[:, :, -2])

    def _times(self, timesteps: Tensor) -> Tensor:
        return self.embed_timestep(timesteps.clamp(max=self.max_timestep - 1))


@checked
def gpt2_return_policy(
    encoder: nn.Module,
    features: int,
    actions: int,
    *,
    width: int = 64,
    layers: int = 2,
    heads: int = 4,
    window: int = 10,
    max_timestep: int = 100,
    use_returns: bool = True,
    dropout: float = 0.0,
) -> ReturnConditionedPolicy:
    """Returns a small decision transformer: a ``ReturnConditionedPolicy`` on a GPT-2 of random weights, with ReLU.

    Args:
        encoder: from an observation ``(..., *form)`` to features ``(..., features)``, such as ``GridEncoder``.
        features: of the encoder.
        actions: number of discrete actions.
        width, layers, heads: of the decoder.
        window, max_timestep, use_returns: of ``ReturnConditionedPolicy``.
        dropout: in all places of the decoder.

    Raises:
        MissingExtraError: transformers is not installed.
        ValueError: sizes below 1, a width that is no multiple of the heads, dropout outside of [0, 1].

    Source: arXiv:2106.01345, section 4 and its code (GPT-2 without its token embeddings, ReLU).

    Example:
        >>> from heldout.nn import GridEncoder
        >>> policy = gpt2_return_policy(GridEncoder(8, 9), 128, actions=4, window=5)
        >>> policy.window, policy.use_returns, sum(p.numel() for p in policy.lm.h.parameters())
        (5, True, 99968)
    """
    check_at_least(1, width=width, layers=layers, heads=heads, window=window)
    check_fraction(dropout=dropout)
    if width % heads:
        raise ValueError(f"width must be a multiple of the {heads} heads, got {width}")
    lib = require("transformers")
    config = lib.GPT2Config(
        vocab_size=1, n_embd=width, n_layer=layers, n_head=heads, n_positions=window * (2 + use_returns),
        activation_function="relu", resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout, bos_token_id=None,
        eos_token_id=None,
    )  # fmt: skip
    return ReturnConditionedPolicy(
        lib.GPT2Model(config), ObservationTokens(encoder, features, width), actions, window=window,
        max_timestep=max_timestep, use_returns=use_returns,
    )  # fmt: skip


class FactoredHead(nn.Module):
    """Logits of choices that are made together, each by a linear head of its own, ``(..., product of sizes)``.

    The answer is flat, in the order of ``itertools.product``: its softmax is the product of the heads' softmaxes.

    Args:
        width: of the hidden states.
        sizes: options of each choice.

    Raises:
        ValueError: no choices, sizes below 1.

    Source: arXiv:2402.02338, section 4.2 (for jobs: one head for the stage, one for the number of executors).

    Example:
        >>> FactoredHead(8, (3, 2))(torch.zeros(5, 8)).shape
        torch.Size([5, 6])
    """

    @checked
    def __init__(self, width: int, sizes: Sequence[int]) -> None:
        super().__init__()
        check_nonempty(sizes=sizes)
        check_at_least(1, width=width, sizes=sizes)
        self.heads = nn.ModuleList(nn.Linear(width, size) for size in sizes)

    @checked
    def forward(self, hidden: Tensor) -> Tensor:
        """Returns the logits of hidden states ``(..., width)``."""
        found = hidden.new_zeros(*hidden.shape[:-1], 1)
        for head in self.heads:
            found = (found[..., None] + head(hidden)[..., None, :]).flatten(-2)
        return found


class HistoryPolicy(nn.Module):
    """Returns the logits of each action of a window from an MLP or LSTM over the steps before it, read as one vector.

    The usual policies that a sequence model is compared with: the same history, the same answer. What a step is read
    as: its observations in the order of their names, the action before it (one-hot; none at a window's first step), and
    its return.

    Args:
        size: numbers in an observation, all features together.
        actions: number of discrete actions.
        kind: ``mlp`` over the last ``memory`` steps side by side (zeros before the window begins), or ``lstm`` over the
            window.
        hidden: units, of two layers of the MLP, or of one of the LSTM.
        memory: steps that the MLP sees.
        window: steps that are looked at.
        use_returns: whether the return-to-go is read.

    Raises:
        ValueError: sizes below 1.

    Example:
        >>> from heldout.data import Trajectories
        >>> logged = Trajectories(torch.randn(5, 3), torch.arange(5) % 4, torch.ones(5), torch.arange(5) == 4)
        >>> policy = HistoryPolicy(3, 4, "lstm", hidden=8, window=5)
        >>> policy(logged.batch(logged.windows(5), logged.returns())).shape
        torch.Size([1, 5, 4])
    """

    @checked
    def __init__(
        self,
        size: int,
        actions: int,
        kind: str = "mlp",
        *,
        hidden: int = 128,
        memory: int = 1,
        window: int = 20,
        use_returns: bool = False,
    ) -> None:
        super().__init__()
        check_at_least(1, size=size, actions=actions, hidden=hidden, memory=memory, window=window)
        if kind not in ("mlp", "lstm"):
            raise ValueError(f"kind must be 'mlp' or 'lstm', got {kind!r}")
        self.actions, self.window, self.use_returns, self.real = actions, window, use_returns, False
        self.kind, self.memory = kind, memory
        inputs = size + actions + use_returns
        self.body: Any
        if kind == "lstm":
            self.body = nn.LSTM(inputs, hidden, batch_first=True)
        else:
            self.body = nn.Sequential(
                nn.Linear(memory * inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()
            )
        self.head = nn.Linear(hidden, actions)

    @checked
    def forward(self, batch: TrajectoryBatch) -> Tensor:
        """Returns logits ``(windows, steps, actions)``."""
        check_labels(self.actions, actions=batch.actions)
        before = nn.functional.one_hot(batch.actions, self.actions).to(self.head.weight.dtype)
        parts = [value.flatten(2).to(before.dtype) for _, value in sorted(batch.observations.items())]
        parts.append(nn.functional.pad(before[:, :-1], (0, 0, 1, 0)))
        if self.use_returns:
            parts.append(batch.returns.to(before.dtype)[..., None])
        inputs = torch.cat(parts, -1)
        if self.kind == "lstm":
            return self.head(self.body(inputs)[0])
        steps = inputs.shape[1]
        padded = nn.functional.pad(inputs, (0, 0, self.memory - 1, 0))
        side = torch.cat([padded[:, k : k + steps] for k in range(self.memory)], -1)
        return self.head(self.body(side))
