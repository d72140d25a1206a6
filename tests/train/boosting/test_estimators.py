import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes, load_wine
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from heldout.train import GradientBoostedNetworkClassifier, GradientBoostedNetworkRegressor


@parametrize_with_checks([GradientBoostedNetworkClassifier(4), GradientBoostedNetworkRegressor(4)])
def test_they_are_scikit_learns_estimators(estimator, check):
    check(estimator)


def wine(classes=3):
    X, y = load_wine(return_X_y=True)
    X, y = X[y < classes], y[y < classes]
    return StandardScaler().fit_transform(X), np.array(["b", "a", "c"])[y]


@pytest.mark.parametrize("classes", [2, 3])
def test_the_merged_network_gives_the_probabilities_at_every_stage(classes):
    X, y = wine(classes)
    model = GradientBoostedNetworkClassifier(6, 2, random_state=1).fit(X, y)
    rows = torch.as_tensor(X, dtype=torch.float64)
    stages = list(model.staged_predict_proba(X))
    assert len(stages) == 4
    for k in (1, 2, 3):
        logits = model.to_module(2 * k).double()(rows).detach()
        if classes == 2:
            assert logits.shape == (len(X), 1)
            second = torch.sigmoid(logits)[:, 0].numpy()
            assert np.allclose(stages[k], np.stack([1 - second, second], 1), atol=1e-5)
        else:
            assert np.allclose(stages[k], logits.softmax(1).numpy(), atol=1e-5)
        assert np.allclose(stages[k], model.predict_proba(X, groups=k))
    assert np.allclose(stages[0], stages[0][0])  # a constant
    assert (list(model.staged_predict(X))[3] == model.predict(X)).all()
    assert (model.predict(X) == y).mean() > 0.95


def test_two_classes_have_twice_the_boosted_outputs_as_their_logit():
    X, y = wine(2)
    model = GradientBoostedNetworkClassifier(5, learning_rate=0.5).fit(X, y)
    logits = model.module_(torch.as_tensor(X))[:, 0].detach().numpy()
    signs = np.where(y == model.classes_[1], 1.0, -1.0)
    assert np.isclose(model.train_losses_[-1], np.log1p(np.exp(-signs * logits)).mean())


def test_the_best_constant_is_the_first_stage():
    X, y = wine(2)
    first = next(iter(GradientBoostedNetworkClassifier(2).fit(X, y).staged_predict_proba(X)))
    assert np.isclose(first[0, 0], (y == "a").mean())
    X, y = load_diabetes(return_X_y=True)
    assert np.isclose(next(iter(GradientBoostedNetworkRegressor(2).fit(X, y).staged_predict(X)))[0], y.mean())


def test_regressions_of_one_and_several_targets_keep_their_shape():
    X, y = load_diabetes(return_X_y=True)
    X = StandardScaler().fit_transform(X)
    one = GradientBoostedNetworkRegressor(10).fit(X, y)
    assert one.predict(X).shape == y.shape
    assert one.score(X, y) > 0.5
    two = GradientBoostedNetworkRegressor(10).fit(X, np.stack([y, -y], 1))
    assert two.predict(X).shape == (len(y), 2)
    assert GradientBoostedNetworkRegressor(2).fit(X, y[:, None]).predict(X).shape == (len(y), 1)
    assert np.isclose(one.train_losses_[-1], ((one.predict(X) - y) ** 2).mean() / 2)


def test_units_are_cut_by_whole_groups():
    X, y = wine()
    model = GradientBoostedNetworkClassifier(6, 3).fit(X, y)
    with pytest.raises(ValueError, match="units must be a multiple of units_per_step, 3"):
        model.to_module(4)
    with pytest.raises(ValueError, match="groups"):
        model.predict(X, groups=3)


def test_the_network_is_that_of_the_fit_whatever_parameters_are_set_later():
    X, y = wine()
    model = GradientBoostedNetworkClassifier(6, 3).fit(X, y)
    assert model.n_iter_ == 2
    model.set_params(total_units=20, units_per_step=4)
    assert model.to_module()[0].out_features == 6
    assert model.to_module(3)[0].out_features == 3
    with pytest.raises(ValueError, match="units_per_step, 3, got 4"):
        model.to_module(4)


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="one class"):
        GradientBoostedNetworkClassifier(2).fit(np.zeros((4, 2)), np.zeros(4, int))
