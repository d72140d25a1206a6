"""Core: How much a text agrees with reference texts: exact match, token F1 and ROUGE-L.

Source: the SQuAD evaluation (arXiv:1606.05250) for normalisation, exact match and F1; Lin, "ROUGE: a package for
automatic evaluation of summaries" (2004) for ROUGE-L.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

from heldout.errors import checked

_GROUPING = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_SIGNS = re.compile("(?<![\\w)])[-\u2212\ufe63\uff0d][$\u20ac\u00a3](?=\\.?\\d)|[\u2212\ufe63\uff0d]")  # -$3 is -3
# Punctuation that says something: inside a number or before one, and what makes C++ and C# of C.
_PUNCTUATION = re.compile(
    r"(?<=\d)[!-/:-@\[-`{-~](?=\d)|(?<=\de)[-+](?=\d)|(?<![\w)\]])[-+.](?=\.?\d)|(?<=\b[a-z])(?:\+\+|#)(?!\w)"
    r"|(?<=\w)[-+](?!\S)|(?<=\d)%|[<>](?=\d)|(?<=\b\w)/(?=\w\b)|([!-/:-@\[-`{-~])"
)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b(?=\s+(?:\w\w|\d))")


@checked
def normalise_answer(text: str) -> str:
    """Returns the text in lower case, without punctuation, articles and repeated spaces, as SQuAD compares answers.

    deviation: SQuAD's rules are for words, and make the answers "-3" and "3", "1.5" and "15", "A" and "" the same. Here
    signs, decimals and other punctuation within numbers stay (commas between thousands do not), an article is one only
    before a word, and an answer of nothing but punctuation stays as it is.

    Example:
        >>> normalise_answer(" The  Eiffel Tower. "), normalise_answer("A"), normalise_answer("-1,200.5")
        ('eiffel tower', 'a', '-1200.5')
    """
    lower = _ARTICLES.sub(" ", _SIGNS.sub("-", text.lower()))
    kept = _PUNCTUATION.sub(lambda match: "" if match[1] else match[0], _GROUPING.sub("", lower))
    return " ".join((kept if kept.strip() else lower).split())


@checked
def exact_match(prediction: str, references: str | Sequence[str]) -> float:
    """Returns 1.0 if the normalised prediction equals one of the normalised references, else 0.0.

    Args:
        prediction: what was written.
        references: right answers, or one.

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

    Args:
        prediction: what was written.
        references: right answers, or one.

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
