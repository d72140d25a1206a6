import math

import pytest
import torch
from sklearn.metrics import roc_auc_score

from heldout.measure import subgroup_auc


def naive(scores, labels):
    pairs = [(s > t) + 0.5 * (s == t) for s, a in zip(scores, labels) for t, b in zip(scores, labels) if a > b]
    return sum(pairs) / len(pairs)


def test_each_group_is_ranked_by_itself():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 2, (200,), generator=generator)
    groups = torch.randint(0, 3, (200,), generator=generator) * 4
    scores = (labels + torch.randn(200, generator=generator) * (1 + groups / 4)).round(decimals=1)  # with ties
    found = subgroup_auc(scores, labels, groups)
    assert found.overall == pytest.approx(naive(scores.tolist(), labels.tolist()))
    assert found.overall == pytest.approx(roc_auc_score(labels, scores))
    assert list(found.by_group) == [0, 4, 8]
    for group, area in found.by_group.items():
        assert area == pytest.approx(naive(scores[groups == group].tolist(), labels[groups == group].tolist()))
    assert found.gap == pytest.approx(max(found.by_group.values()) - min(found.by_group.values()))
    assert found.gap > 0.05


def test_a_group_of_one_class_has_none():
    found = subgroup_auc(torch.tensor([0.1, 0.2, 0.9]), torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]))
    assert math.isnan(found.by_group[0])
    assert found.by_group[1] == 1.0
    assert math.isnan(found.gap)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": torch.tensor([math.nan, 0.0])}, "scores must be finite"),
        ({"labels": torch.tensor([0, 2])}, "labels must be integers from 0 to 1"),
        ({"groups": torch.tensor([0])}, "equally long"),
        ({"scores": torch.zeros(2, 2)}, "scores must have 1 dimensions"),
        ({"groups": torch.tensor([0.5, 1.0])}, "groups must be integers"),
    ],
)
def test_bad_input_is_refused(change, message):
    given = {"scores": torch.zeros(2), "labels": torch.tensor([0, 1]), "groups": torch.tensor([0, 0])}
    with pytest.raises(ValueError, match=message):
        subgroup_auc(**(given | change))
