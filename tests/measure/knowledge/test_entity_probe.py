import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from heldout.measure import probe_entities

G = torch.Generator().manual_seed(0)
Y = (torch.rand(300, generator=G) < 0.25).long() + (torch.rand(300, generator=G) < 0.2).long()
X = torch.nn.functional.one_hot(Y, 3) + 0.7 * torch.randn(300, 3, generator=G)
PARTS = torch.randperm(300, generator=G).split([150, 70, 80])


def test_it_is_scikit_learns_regression_with_the_strength_chosen_on_the_second_part():
    found = probe_entities(X, Y, PARTS)
    x, y, (train, val, test) = X.double().numpy(), Y.numpy(), (part.numpy() for part in PARTS)
    scores = {
        C: LogisticRegression(C=C, max_iter=2000).fit(x[train], y[train]).score(x[val], y[val])
        for C in (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)
    }
    assert scores[found.C] == max(scores.values())
    assert min(C for C, score in scores.items() if score == max(scores.values())) == found.C
    both = torch.cat(PARTS[:2]).numpy()
    said = LogisticRegression(C=found.C, max_iter=2000).fit(x[both], y[both]).predict(x[test])
    assert found.accuracy == accuracy_score(y[test], said)
    assert found.balanced_accuracy == pytest.approx(balanced_accuracy_score(y[test], said))
    assert found.balanced_accuracy != found.accuracy
    assert found.majority == float((Y[PARTS[2]] == 0).double().mean())


def test_classes_that_are_not_tested_on_do_not_count_and_the_majority_is_that_of_what_is_known():
    test = PARTS[2][Y[PARTS[2]] != 0]
    found = probe_entities(X, Y, [PARTS[0], PARTS[1], test])
    both = torch.cat(PARTS[:2]).numpy()
    said = LogisticRegression(C=found.C, max_iter=2000).fit(X.double().numpy()[both], Y.numpy()[both])
    right = torch.tensor(said.predict(X.double().numpy()[test.numpy()])) == Y[test]
    expected = sum(float(right[Y[test] == label].double().mean()) for label in (1, 2)) / 2
    assert found.balanced_accuracy == pytest.approx(expected)
    assert found.majority == 0


def test_bad_input_is_refused():
    for call, said in (
        (lambda: probe_entities(X * float("nan"), Y, PARTS), "vectors"),
        (lambda: probe_entities(X, Y[:-1], PARTS), "labels"),
        (lambda: probe_entities(X, Y * 0, PARTS), "labels"),
        (lambda: probe_entities(X, Y - 1, PARTS), "labels"),
        (lambda: probe_entities(X, Y, PARTS[:2]), "splits"),
        (lambda: probe_entities(X, Y, [PARTS[0], PARTS[0], PARTS[1]]), "splits"),
        (lambda: probe_entities(X, Y, [PARTS[0], PARTS[1], PARTS[2] + 300]), "splits"),
        (lambda: probe_entities(X, Y, [PARTS[0], PARTS[1], PARTS[2][:0]]), "splits"),
        (lambda: probe_entities(X, Y, PARTS, strengths=[0.0]), "strengths"),
        (lambda: probe_entities(X, Y, PARTS, strengths=[]), "strengths"),
    ):
        with pytest.raises(ValueError, match=said):
            call()
