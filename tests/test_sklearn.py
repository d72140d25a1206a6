"""The estimators are scikit-learn's own kind: its checks, clones, pickles, pipelines and searches."""

import pickle
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_iris, make_regression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

import heldout
from heldout.sklearn import HeldoutClassifier, HeldoutRegressor

QUICK = {"epochs": 8, "optimizer": partial(torch.optim.Adam, lr=0.03)}


def not_expected(estimator):
    """Checks that a Method cannot pass by what it is."""
    if "t3a" not in str(estimator.method):
        return {}
    return {"check_methods_subset_invariance": "it adapts to the rows that it is given together"}


@parametrize_with_checks(
    [HeldoutClassifier(**QUICK), HeldoutClassifier(method="sam(rho=0.01)+t3a", **QUICK), HeldoutRegressor(**QUICK)],
    expected_failed_checks=not_expected,
)
def test_scikit_learns_own_checks_pass(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def iris():
    X, y = load_iris(return_X_y=True, as_frame=True)
    return X, y.map({0: "setosa", 1: "versicolor", 2: "virginica"})


def test_a_pipeline_is_searched_over_methods(iris):
    X, y = iris
    pipeline = make_pipeline(StandardScaler(), HeldoutClassifier(**QUICK))
    methods = [None, "sam(rho=0.05)", heldout.methods.t3a(filter_k=10)]
    search = GridSearchCV(pipeline, {"heldoutclassifier__method": methods}, cv=3).fit(X, y)
    assert search.best_score_ > 0.9
    assert search.predict(X[:2]).dtype == y.to_numpy().dtype
    assert set(search.predict(X)) == {"setosa", "versicolor", "virginica"}
    assert search.best_estimator_[-1].n_features_in_ == 4
    assert cross_val_score(pipeline, X, y, cv=2).mean() > 0.85


@pytest.mark.parametrize("method", ["tent(lr=0.01)", "t3a", "adanpc(k=3)", "itta", "drm(estimate='prototype')"])
def test_what_adapts_at_test_time_answers_the_same_twice_and_after_pickling(iris, method):
    X, y = iris[0].to_numpy(), iris[1].to_numpy()
    factory = lambda features, classes: nn.Sequential(  # noqa: E731
        nn.Unflatten(1, (1, features)), nn.Conv1d(1, 6, 3, padding=1), nn.BatchNorm1d(6), nn.ReLU(), nn.MaxPool1d(2),
        nn.Conv1d(6, 8, 1), nn.BatchNorm1d(8), nn.ReLU(), nn.Flatten(), nn.Linear(16, classes))  # fmt: skip
    estimator = HeldoutClassifier(factory, method, **QUICK).fit(X, y, domains=np.arange(len(y)) % 2)
    estimator.model = None  # a lambda is no pickle's
    probabilities = estimator.predict_proba(X[::3])
    np.testing.assert_array_equal(estimator.predict_proba(X[::3]), probabilities)
    again = pickle.loads(pickle.dumps(estimator))
    np.testing.assert_array_equal(again.predict_proba(X[::3]), probabilities)
    np.testing.assert_allclose(probabilities.sum(1), 1)
    np.testing.assert_allclose(np.exp(estimator.predict_log_proba(X[::3])), probabilities)
    assert (estimator.note_ != "") == (type(estimator.predictor_) is not type(estimator.module_))


def test_a_module_is_copied_and_fitted_alike_by_clones(iris):
    X, y = iris[0].to_numpy(), iris[1].to_numpy()
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    before = [p.clone() for p in module.parameters()]
    estimator = HeldoutClassifier(module, epochs=2)
    first = clone(estimator).fit(X, y).predict_proba(X)
    np.testing.assert_array_equal(clone(estimator).fit(X, y).predict_proba(X), first)
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
    other = clone(estimator).set_params(random_state=1).fit(X, y).predict_proba(X)
    assert not np.array_equal(other, first)


def test_images_are_rows_too():
    X = np.random.default_rng(0).normal(size=(24, 1, 8, 8)).astype(np.float32)
    y = np.arange(24) % 2
    estimator = HeldoutClassifier(lambda features, classes: heldout.nn.small_cnn(1, classes), epochs=1).fit(X, y)
    assert estimator.predict_proba(X).shape == (24, 2)


def test_several_outputs_are_regressed():
    X, y = make_regression(120, 5, n_targets=2, random_state=0)
    estimator = HeldoutRegressor(epochs=120, optimizer=partial(torch.optim.Adam, lr=0.02)).fit(X, y / y.std(0))
    assert estimator.predict(X).shape == (120, 2)
    assert estimator.score(X, y / y.std(0)) > 0.9
    assert estimator.fit(X, y[:, :1]).predict(X).shape == (120, 1)


def test_bad_options_are_told(iris):
    X, y = iris
    with pytest.raises(ValueError, match="no method 'nothing'"):
        HeldoutClassifier(method="nothing").fit(X, y)
    with pytest.raises(TypeError, match="method must be a Method, an expression or None, got int"):
        HeldoutClassifier(method=3).fit(X, y)
    with pytest.raises(ValueError, match="model must give 3 outputs for each row, it gives 2"):
        HeldoutClassifier(nn.Linear(4, 2)).fit(X, y)
    with pytest.raises(ValueError, match="model fails on rows of 4 features"):
        HeldoutClassifier(nn.Linear(5, 3)).fit(X, y)
    with pytest.raises(TypeError, match="model must be a module, a function that builds one, or None, got str"):
        HeldoutClassifier(lambda features, classes: "mlp").fit(X, y)
    with pytest.raises(ValueError, match="drm cannot act here: it needs the domain of each training example"):
        HeldoutClassifier(method="drm").fit(X, y)
    with pytest.raises(ValueError, match="got 1 class"):
        HeldoutClassifier().fit(X, ["one"] * len(X))
    with pytest.raises(ValueError, match="class labels"):
        HeldoutRegressor(method="t3a").fit(X, np.arange(len(X)))


def test_importing_heldout_does_not_import_sklearn():
    code = "import sys, heldout; heldout.fit; print('heldout.sklearn' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"
