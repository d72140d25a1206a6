"""What may tell beforehand whether a skill will be forgotten: confidence in it, and the spread of its hidden states.

Source: arXiv:2409.02228 (Zhang, Choshen, Andreas).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from heldout.errors import (
    check_dimensions,
    check_labels,
    check_nonempty,
    check_same_length,
    check_values,
    checked,
)
from heldout.language_model import ChoiceExample
from heldout.measure.mechanisms.linear_probe import hidden_states, linear_probe
from heldout.nn import decoder_parts


@checked
def choice_confidence(scores: Tensor, answers: Tensor) -> Tensor:
    """Returns the probability ``(n,)`` of each right option among its options.

    Args:
        scores: log likelihoods ``(n, options)``, of ``heldout.lm.score_choices``.
        answers: which option is right, int64 ``(n,)``.

    Raises:
        ValueError: scores that are not finite, other shapes, or answers that are none of the options.

    Example:
        >>> choice_confidence(torch.tensor([[0.0, 0.0], [-4.0, 0.0]]).log_softmax(1), torch.tensor([0, 1]))
        tensor([0.5000, 0.9820])
    """
    _check_scores(scores, answers)
    return scores.softmax(1).gather(1, answers[:, None])[:, 0]


@checked
def skill_layer(model: nn.Module) -> int:
    """Returns where skills are read: the fifth-to-last layer, ``round(0.85 * blocks)`` of fewer than 6 blocks.

    Args:
        model: a decoder of transformers, also wrapped by peft.

    Source: arXiv:2409.02228, section 5; deviation: small models, which the paper has not.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> skill_layer(GPT2LMHeadModel(GPT2Config(vocab_size=7, n_embd=8, n_layer=3, n_head=2)))
        3
    """
    count = len(decoder_parts(model).blocks)
    return -5 if count >= 6 else round(0.85 * count)


@checked
def skill_predictors(
    model: nn.Module, tokenizer: Any, examples: Sequence[ChoiceExample], scores: Tensor, *, layer: int | None = None
) -> dict[str, float]:
    """Returns ``confidence`` and ``hidden_variance`` of a skill, which are weakly higher where it is hard to forget.

    The confidence is the mean log likelihood of the right option, less that of the wrong ones (their mean, where there
    are several); the variance is the trace of the covariance, over examples, of the state at the prompt's last token.
    Deviation: it takes the scores, since this room does not run language models.

    Args:
        model: a decoder of transformers; left as it was.
        tokenizer: of the model.
        examples: at least two.
        scores: ``heldout.lm.score_choices`` of the examples, ``(n, options)``.
        layer: as for ``hidden_states``; default: ``skill_layer(model)``.

    Raises:
        ValueError: fewer than two examples, scores of others, or a layer that the model has not.

    Source: arXiv:2409.02228, section 5.

    Example:
        >>> from heldout.lm import score_choices, tiny_llama, word_tokenizer
        >>> tokenizer = word_tokenizer(["is ice fire cold ? yes no"])
        >>> model = tiny_llama(tokenizer, dim=16, layers=1)
        >>> asked = [ChoiceExample(f"is {what} cold ?", [" no", " yes"], 0) for what in ("ice", "fire")]
        >>> sorted(skill_predictors(model, tokenizer, asked, score_choices(model, tokenizer, asked)))
        ['confidence', 'hidden_variance']
    """
    if len(examples) < 2:
        raise ValueError(f"examples must be at least 2, got {len(examples)}")
    answers = torch.tensor([example.answer for example in examples], dtype=torch.long)
    _check_scores(scores, answers.to(scores.device))
    right = scores.gather(1, answers[:, None].to(scores.device))[:, 0]
    wrong = (scores.sum(1) - right) / (scores.shape[1] - 1)
    place = skill_layer(model) if layer is None else layer
    states = hidden_states(model, [example.prompt for example in examples], place, tokenizer=tokenizer)
    return {
        "confidence": (right - wrong).double().mean().item(),
        "hidden_variance": states.double().var(0).sum().item(),
    }


@checked
def choice_probe(
    model: nn.Module,
    tokenizer: Any,
    train: Sequence[ChoiceExample],
    test: Sequence[ChoiceExample],
    *,
    layer: int | None = None,
    C: float = 1.0,
) -> float:
    """Returns how well a linear probe tells right options from wrong ones by the state at their last token.

    Whether a model that no longer answers rightly still has what is needed to. See ``linear_probe``.

    Args:
        model: a decoder of transformers; left as it was.
        tokenizer: of the model.
        train, test: examples; every option of each is one state.
        layer: as for ``hidden_states``; default: ``skill_layer(model)``.
        C: inverse strength of the L2 penalty.

    Returns:
        accuracy; always saying "wrong" has ``1 - 1 / options``.

    Raises:
        ValueError: no examples, or a layer that the model has not.

    Source: arXiv:2409.02228, section 5; deviation: the penalty alone, no early stopping.

    Example:
        >>> from heldout.lm import tiny_llama, word_tokenizer
        >>> tokenizer = word_tokenizer(["ice fire is cold hot"])
        >>> model = tiny_llama(tokenizer, dim=16, layers=1)
        >>> asked = [ChoiceExample("ice is", [" cold", " hot"], 0)]
        >>> choice_probe(model, tokenizer, asked, asked)
        1.0
    """
    check_nonempty(train=train, test=test)
    place = skill_layer(model) if layer is None else layer

    def read(examples: Sequence[ChoiceExample]) -> tuple[Tensor, Tensor]:
        texts = [example.prompt + option for example in examples for option in example.options]
        right = [int(k == example.answer) for example in examples for k in range(len(example.options))]
        return hidden_states(model, texts, place, tokenizer=tokenizer), torch.tensor(right)

    return linear_probe(*read(train), *read(test), C)


def _check_scores(scores: Tensor, answers: Tensor) -> None:
    check_dimensions(2, scores=scores)
    check_nonempty(scores=scores)
    check_values(scores=scores)
    check_same_length(scores=scores, answers=answers)
    if scores.shape[1] < 2:
        raise ValueError(f"scores must be of at least 2 options, got {scores.shape[1]}")
    check_labels(scores.shape[1], answers=answers)
