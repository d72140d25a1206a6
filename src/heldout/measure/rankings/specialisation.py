"""What being specialised in one domain costs a model in the others: four numbers of a table of scores.

Source: arXiv:2503.22698, which names DSI, GG and CDTR and does not define them. The definitions here are ours
(deviation), as is "retention", which the continual-learning literature uses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from heldout.errors import check_finite, check_nonempty, check_nonnegative, checked

Scores = Mapping[str, Mapping[str, float]]


class Specialisation(NamedTuple):
    """What a model's scores say of its specialising. P is the score in its home, G the mean over the other domains.

    Attributes:
        home: the domain that the model was made for.
        dsi: domain specialisation index, ``(P - G) / (P + G)``, from -1 to 1; 0 where it is as good everywhere. It has
            no unit, and does not change where all scores are multiplied by one number.
        gap: generalization gap, ``P - G``, in the unit of the scores.
        transfer: cross-domain transfer ratio: the mean over the other domains of the model's score divided by that of
            the model whose home it is; 1 where it is as good as they are, NaN where no other home has a model.
        retention: mean over the other domains of the score divided by the general model's; NaN without one.

    Example:
        >>> found = Specialisation("law", dsi=0.2, gap=0.3, transfer=0.7, retention=0.8)
        >>> round(found.forgetting, 6)
        0.2
    """

    home: str
    dsi: float
    gap: float
    transfer: float
    retention: float

    @property
    def forgetting(self) -> float:
        """``1 - retention``: below 0 where the other domains gained."""
        return 1 - self.retention


@checked
def specialisation(scores: Scores, home: Mapping[str, str], *, general: str | None = None) -> dict[str, Specialisation]:
    """Returns, for each model that has a home, what its scores by domain say of its specialising.

    Args:
        scores: model -> domain -> score, 0 or more, higher is better (accuracy, F1; for perplexity its inverse). A
            data frame comes in as ``frame.to_dict("index")``.
        home: model -> the domain that it was made for. Models that are left out are compared with only.
        general: the model that the others were made from, in ``scores``; needed for retention.

    Raises:
        ValueError: no model, an unknown model or domain, fewer than two domains, scores that are negative or not
            finite, models that were not scored in the same domains, two models of one home, or a reference that scores
            0 where it is divided by.

    Source: arXiv:2503.22698, section 3 for the names; see the file for what is ours.

    Example:
        >>> scores = {"base": {"law": 0.5, "news": 0.5}, "lawyer": {"law": 0.9, "news": 0.3}}
        >>> found = specialisation(scores, {"lawyer": "law"}, general="base")["lawyer"]
        >>> round(found.dsi, 3), round(found.gap, 3), found.retention
        (0.5, 0.6, 0.6)
    """
    check_nonempty(scores=scores, home=home)
    domains = list(next(iter(scores.values())))
    if len(domains) < 2:
        raise ValueError(f"scores must be of two domains or more, got {', '.join(domains) or 'none'}")
    for model, row in scores.items():
        if set(row) != set(domains):
            raise ValueError(f"scores[{model!r}] must be of the domains {', '.join(domains)}, got {', '.join(row)}")
        check_finite(**{f"scores[{model!r}]": list(row.values())})
        check_nonnegative(**{f"scores[{model!r}]": list(row.values())})
    for model, domain in home.items():
        if model not in scores:
            raise ValueError(f"home names {model!r}, which has no scores")
        if domain not in domains:
            raise ValueError(f"home[{model!r}] must be one of {', '.join(domains)}, got {domain!r}")
    if general is not None and general not in scores:
        raise ValueError(f"general names {general!r}, which has no scores")
    makers = {domain: model for model, domain in home.items()}
    if len(makers) < len(home):
        raise ValueError("home must give each domain to one model at most")
    found = {}
    for model, own in home.items():
        row = scores[model]
        others = [domain for domain in domains if domain != own]
        mean = sum(row[domain] for domain in others) / len(others)
        total = row[own] + mean
        references = {domain: makers[domain] for domain in others if domain in makers}
        kept = {} if general is None else dict.fromkeys(others, general)
        found[model] = Specialisation(
            own,
            (row[own] - mean) / total if total else 0.0,
            row[own] - mean,
            _mean_ratio(scores, row, references),
            _mean_ratio(scores, row, kept),
        )
    return found


def _mean_ratio(scores: Scores, row: Mapping[str, float], references: Mapping[str, str]) -> float:
    for domain, model in references.items():
        if not scores[model][domain]:
            raise ValueError(f"scores[{model!r}][{domain!r}] must be above 0, since others are divided by it")
    ratios = [row[domain] / scores[model][domain] for domain, model in references.items()]
    return sum(ratios) / len(ratios) if ratios else math.nan
