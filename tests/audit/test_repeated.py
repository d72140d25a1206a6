"""Repeated training rows, planted and found, and the lead of a model that knows them by heart."""

import pytest
import torch
from torch import nn
from torch.utils.data import Subset, TensorDataset

from heldout import Splits
from heldout.audit.repeated import repeated_rows, row_keys
from heldout.audit.work import Audit, NotApplicableError
from heldout.lm import word_tokenizer
from heldout.problem import Problem, Texts
from heldout.problem.texts import Language


def rows(count, seed):
    x = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))
    return x, x.sum(1, keepdim=True)


class Heart(nn.Module):
    """Right on the rows that it was given, a little wrong on every other one."""

    def __init__(self, known):
        super().__init__()
        self.known, self.weight = known, nn.Parameter(torch.zeros(1))

    def forward(self, x):
        knows = (x[:, None] == self.known).all(2).any(1)
        return x.sum(1, keepdim=True) + torch.where(knows, 0.5, 1.0)[:, None] + self.weight


def audited(tmp_path, train, known):
    splits = Splits(train=train, val=rows(10, 8), test={"iid": rows(20, 9)})
    problem = Problem(tmp_path / "mine.py", lambda: Heart(known), splits, {}, asked_kind="regression")
    work = Audit(problem, Heart(known), 0, float("inf"), {"asked": "mine.py", "findings": []})
    repeated_rows(work)
    return work.document, {entry["name"]: entry for entry in work.document["findings"]}


def test_planted_copies_are_found_and_the_models_lead_on_them_is_told(tmp_path):
    x, y = rows(40, 0)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    source = torch.cat([torch.arange(40), torch.arange(10).repeat(2)])[order]
    document, findings = audited(tmp_path, (x[source], y[source]), x[:10])
    told = document["repeated_rows"]
    assert (told["rows"], told["repeated"], told["copies"]) == (60, 10, 20)
    assert sorted(map(sorted, told["groups"])) == sorted(
        (source == original).nonzero()[:, 0].tolist() for original in range(10)
    )
    assert findings["repeated training rows"]["value"] == pytest.approx(20 / 60)
    assert findings["repeated training rows"]["severity"] == "serious"
    lead = findings["lead on repeated rows"]
    assert lead["value"] == pytest.approx(0.75)  # squared errors of 0.25 against 1
    assert lead["low"] == pytest.approx(0.75, abs=1e-3)
    assert lead["severity"] == "serious"


def test_a_training_set_without_copies_is_fine_and_has_no_lead(tmp_path):
    x, y = rows(40, 0)
    document, findings = audited(tmp_path, (x, y), x[:10])
    assert document["repeated_rows"] == {"rows": 40, "repeated": 0, "copies": 0, "groups": [], "lead": None}
    assert [(name, entry["severity"]) for name, entry in findings.items()] == [("repeated training rows", "fine")]


def test_of_a_few_copies_no_mean_is_told(tmp_path):
    x, y = rows(40, 0)
    document, findings = audited(tmp_path, (torch.cat([x, x[:4]]), torch.cat([y, y[:4]])), x[:4])
    assert document["repeated_rows"]["copies"] == 4
    assert list(findings) == ["repeated training rows"]


def test_keys_tell_rows_apart_in_views_tuples_and_dicts():
    x = torch.tensor([[1.0, 2.0], [1.0, 2.0], [2.0, 1.0]])
    data = TensorDataset(x, x.flip(0), torch.arange(3))
    first, second, third = row_keys(TensorDataset(x, torch.arange(3)))
    assert first == second != third
    assert len(set(row_keys(data))) == 3  # two inputs, of which the second differs
    assert row_keys(Subset(TensorDataset(x, torch.arange(3)), [2, 0])) == [third, first]
    dicts = [{"input_ids": row.long(), "labels": 0} for row in x]
    assert len(set(row_keys(dicts))) == 2


def test_inputs_that_are_no_tensors_are_not_compared():
    with pytest.raises(NotApplicableError, match="tensors or texts"):
        row_keys([("a", 0), ("b", 1)])


def test_texts_are_told_apart_by_their_tokens_whatever_parts_of_them_are_taken():
    texts = Texts(["a b c", "a b", "a b c", "c"], Language(word_tokenizer(["a b c"])))
    keys = row_keys(texts)
    assert keys[0] == keys[2]
    assert len(set(keys)) == 3
    assert row_keys(Subset(Subset(texts, [3, 1, 0]), [2, 0])) == [keys[0], keys[3]]
