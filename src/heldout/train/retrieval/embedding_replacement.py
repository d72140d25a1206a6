"""EmbeddingReplacement: a transformers model in two parts, before its decoder and from it on.

Source: arXiv:2505.23045 (Li et al., IJCAI 2025), which trains multimodal language models so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from heldout.errors import check_dimensions, check_finite, check_has, check_nonempty, checked


class EmbeddingReplacement(nn.Module):
    """Wraps a causal model of transformers, with pictures (LLaVA, Qwen2-VL) or without, for retrieval training.

    ``encode`` returns the embeddings that enter the decoder, those of pictures in their places; ``answer`` runs the
    model with others there. Everything else of the call stays the model's own: positions, masks, the loss. In each
    ``answer`` a model for pictures encodes them again, of which nothing is used.

    Args:
        model: has ``get_decoder()`` and takes keyword arguments.

    Raises:
        ValueError: a model without a decoder.

    Source: arXiv:2505.23045, step 3: the features that enter the fusion.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        ...     num_attention_heads=2)
        >>> parts = EmbeddingReplacement(LlamaForCausalLM(config))
        >>> ids = torch.tensor([[3, 4, 5]])
        >>> batch = {"input_ids": ids, "labels": ids}
        >>> features = parts.encode(batch)
        >>> features.shape, parts.answer(features, batch).logits.shape
        (torch.Size([1, 3, 8]), torch.Size([1, 3, 20]))
    """

    @checked
    def __init__(self, model: nn.Module) -> None:
        check_has("get_decoder", model=model)
        super().__init__()
        self.model = model

    @checked
    def encode(self, batch: Mapping[str, Any]) -> Tensor:
        """Returns the embeddings that enter the decoder ``(batch, length, dim)``, with gradients.

        Args:
            batch: keyword arguments of the model.

        Raises:
            ValueError: a batch for which the decoder is not called with embeddings or ids.
        """
        check_nonempty(batch=batch)

        def stop(decoder: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
            raise _Reached(_embeddings(decoder, arguments, options))

        with _Hook(self._decoder(), stop):
            try:
                self.model(**batch)
            except _Reached as reached:
                return reached.embeddings
        raise ValueError("model must call its decoder on the batch")

    @checked
    def answer(self, features: Tensor, batch: Mapping[str, Any]) -> Any:
        """Returns the model's output for a batch, with other embeddings at the entrance of the decoder.

        Args:
            features: ``(batch, length, dim)``.
            batch: keyword arguments of the model.

        Raises:
            ValueError: features of another shape than the embeddings have, or that are not finite.
        """
        check_dimensions(3, features=features)
        check_finite(features=features)
        check_nonempty(batch=batch)

        def put(
            decoder: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            with torch.no_grad():
                shape = _embeddings(decoder, arguments, options).shape
            if features.shape != shape:
                raise ValueError(f"features must be {tuple(shape)}, got {tuple(features.shape)}")
            return (), {**options, "input_ids": None, "inputs_embeds": features}

        with _Hook(self._decoder(), put):
            return self.model(**batch)

    @checked
    def objective(self, outputs: Any, batch: Mapping[str, Any]) -> Tensor:
        """Returns the loss that the model computes from the labels of the batch.

        Raises:
            ValueError: a batch without labels.
        """
        loss = getattr(outputs, "loss", None)
        if loss is None:
            raise ValueError(f"batch must have labels for the model's loss, got {', '.join(batch)}")
        return loss

    def _decoder(self) -> nn.Module:
        decoder = self.model.get_decoder()  # type: ignore[operator]
        if not isinstance(decoder, nn.Module):
            raise ValueError(f"model must have a decoder, got {type(decoder).__name__}")
        return decoder


class _Reached(Exception):  # noqa: N818 - no error: how a call is left
    def __init__(self, embeddings: Tensor) -> None:
        super().__init__()
        self.embeddings = embeddings


class _Hook:
    """A hook before a module is called, for as long as the block lasts."""

    def __init__(self, module: nn.Module, before: Any) -> None:
        self.module, self.before = module, before

    def __enter__(self) -> None:
        self.handle = self.module.register_forward_pre_hook(self.before, with_kwargs=True)

    def __exit__(self, *_: Any) -> None:
        self.handle.remove()


def _embeddings(decoder: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> Tensor:
    if options.get("inputs_embeds") is not None:
        return options["inputs_embeds"]
    ids = options.get("input_ids", arguments[0] if arguments else None)
    if ids is None:
        raise ValueError("model must call its decoder with input_ids or inputs_embeds")
    return decoder.get_input_embeddings()(ids)  # type: ignore[operator]
