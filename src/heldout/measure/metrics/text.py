"""Core: How much a text agrees with reference texts: exact match, token F1 and ROUGE-L.

Source: the SQuAD evaluation (arXiv:1606.05250) for normalisation, exact match and F1; Lin, "ROUGE: a package for
automatic evaluation of summaries" (2004) for ROUGE-L.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

from heldout.errors import checked

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


@checked
def normalise_answer(text: str) -> str:
    """Returns the text in lower case, without punctuation, articles and repeated spaces, as SQuAD compares answers.

    Example:
        >>> normalise_answer(" The  Eiffel Tower. ")
        'eiffel tower'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


@checked
def exact_match(prediction: str, references: str | Sequence[str]) -> float:
    """Returns 1.0 if the normalised prediction equals one of the normalised references, else 0.0.

    Raises:
        ValueError: without references.

    Example:
        >>> exact_match("the Eiffel Tower!", ["Eiffel tower", "La tour Eiffel"])
        1.0
    """
    answer = normalise_answer(prediction)
    return float(any(answer == normalise_answer(reference) for reference in _listed(references)))


@checked
def token_f1(prediction: str, references: str | Sequence[str]) -> float:
    """Returns the F1 of the words that the normalised prediction and a reference share; the best over references.

    Words count as often as they occur. Where one side has no words, the score is whether both have none.

    Raises:
        ValueError: without references.

    Example:
        >>> round(token_f1("in Paris, France", ["Paris"]), 3)
        0.5
    """
    words = Counter(normalise_answer(prediction).split())
    return max(_f1(words, Counter(normalise_answer(reference).split())) for reference in _listed(references))


@checked
def rouge_l(prediction: str, references: str | Sequence[str], *, stem: bool = True) -> float:
    """Returns ROUGE-L: the F1 of the longest common subsequence of words, in [0, 1]; the best over references.

    It is the rouge-score package's (extra ``lm``), so that numbers compare with published ones. Words are runs of ASCII
    letters and digits in lower case, so a text in another script scores 0.

    Args:
        prediction: text.
        references: one text or several.
        stem: whether words longer than three letters are stemmed first (Porter).

    Raises:
        ValueError: without references.

    Example:
        >>> round(rouge_l("the cat sat on mats", ["the cat is on the mat"]), 3)
        0.727
    """
    scorer = _rouge_scorer(stem)
    return max(float(scorer.score(reference, prediction)["rougeL"].fmeasure) for reference in _listed(references))


def _listed(references: str | Sequence[str]) -> list[str]:
    listed = [references] if isinstance(references, str) else list(references)
    if not listed:
        raise ValueError("a prediction needs at least one reference to be compared with, got none")
    return listed


def _f1(predicted: Counter[str], expected: Counter[str]) -> float:
    if not predicted or not expected:
        return float(not predicted and not expected)
    return 2 * (predicted & expected).total() / (predicted.total() + expected.total())


@cache
def _rouge_scorer(stem: bool) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=stem)
