"""Core: Eight small pretrained models that choose among the options of real questions, each in its own way."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any

from heldout.errors import check_at_least, check_nonempty, checked
from heldout.lm.models.local import TransformersLM
from heldout.lm.models.pretrained import smollm
from heldout.lm.models.text_features import minilm, text_features, word_vectors
from heldout.lm.strategies.option_scores import option_scores, option_similarities
from heldout.tasks import ChoiceQuestion

_YES_NO = ("no", "yes")
_LONGEST = 60  # words of a passage
_WIDTHS, _DEPTHS = (16, 64, 256), (2, 4, 6)

Chooser = Callable[[Sequence[ChoiceQuestion]], list[list[float]]]


@checked
def cosine_chooser(vectors: Callable[[list[str]], Any]) -> Chooser:
    """Returns a function that scores options by their cosine with the question; for questions of no and yes ``(0, s)``.

    There s is the cosine of question and passage: the more they are alike, the more it says yes.

    Args:
        vectors: of texts, ``(n, dim)`` at length 1.

    Example:
        >>> import torch
        >>> choose = cosine_chooser(lambda texts: torch.tensor([[float("a" in t), float("b" in t)] for t in texts]))
        >>> choose([ChoiceQuestion("a", ("b", "a"), 1), ChoiceQuestion("a", ("no", "yes"), 1, passage="a")])
        [[0.0, 1.0], [0.0, 1.0]]
    """

    def choose(questions: Sequence[ChoiceQuestion]) -> list[list[float]]:
        check_nonempty(questions=questions)
        says_yes = [question.options == _YES_NO for question in questions]
        asked = [q.question if yes else _whole(q) for q, yes in zip(questions, says_yes, strict=True)]
        offered = [(_passage(q),) if yes else q.options for q, yes in zip(questions, says_yes, strict=True)]
        found = option_similarities(vectors, asked, offered)
        return [[0.0, *row] if yes else row for row, yes in zip(found, says_yes, strict=True)]

    return choose


@checked
def likelihood_chooser(lm: Any) -> Chooser:
    """Returns a function that scores options by their log likelihood after passage and question, kept on disk.

    By letter of the option, so that long ones are not worse, but for no and yes.

    Args:
        lm: with ``identity`` and ``score``, such as ``TransformersLM``.

    Example:
        >>> choose = likelihood_chooser(TransformersLM(*smollm()))  # doctest: +SKIP
        >>> choose([ChoiceQuestion("What is ice?", ("cold", "hot"), 0)])  # doctest: +SKIP
        [[-0.6, -1.9]]
    """

    def choose(questions: Sequence[ChoiceQuestion]) -> list[list[float]]:
        check_nonempty(questions=questions)
        options = [[f" {option}" for option in question.options] for question in questions]
        found = option_scores(lm, [f"Question: {_whole(question)} Answer:" for question in questions], options)
        return [
            row if q.options == _YES_NO else [score / len(text) for score, text in zip(row, texts, strict=True)]
            for row, texts, q in zip(found, options, questions, strict=True)
        ]

    return choose


@checked
def small_models(layers: Sequence[int] = (20, 30)) -> dict[str, Chooser]:
    """Returns name -> what scores the options of questions: ``(questions) -> scores of each question's options``.

    WordLlama's vectors cut to 16, 64 and 256 numbers, MiniLM with 2, 4 and all 6 layers (by cosine, see
    ``cosine_chooser``), and SmolLM2 with its first layers (by likelihood, see ``likelihood_chooser``). Passages are cut
    to 60 words.

    Args:
        layers: of SmolLM2, a model for each number, 1 to 30.

    Raises:
        SourceError: a package is not installed; the message names the command to run.
        ValueError: numbers out of range.

    Example:
        >>> list(small_models())  # doctest: +SKIP
        ['word-16', 'word-64', 'word-256', 'minilm-2', 'minilm-4', 'minilm-6', 'smollm-20', 'smollm-30']
    """
    check_at_least(1, layers=layers)
    found = {f"word-{width}": cosine_chooser(functools.partial(word_vectors, dim=width)) for width in _WIDTHS}
    whole, tokenizer = minilm()
    for depth in _DEPTHS:
        encoder = copy.deepcopy(whole)
        encoder.encoder.layer = encoder.encoder.layer[:depth]
        encoder.config.num_hidden_layers = depth
        vectors = functools.partial(text_features, encoder, tokenizer, max_length=128)
        found[f"minilm-{depth}"] = cosine_chooser(vectors)
    return found | {f"smollm-{count}": likelihood_chooser(TransformersLM(*smollm(layers=count))) for count in layers}


def _passage(question: ChoiceQuestion) -> str:
    return " ".join(question.passage.split()[:_LONGEST])


def _whole(question: ChoiceQuestion) -> str:
    return f"{_passage(question)} {question.question}".strip()
