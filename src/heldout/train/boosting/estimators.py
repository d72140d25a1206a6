"""Gradient-boosted networks as scikit-learn estimators, for pipelines and searches.

Source: arXiv:1909.12098 (Emami and Martinez-Munoz, IEEE Access 2023).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.preprocessing import LabelEncoder
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data
from torch import Tensor, nn

from heldout.errors import check_at_least, checked
from heldout.train.boosting.losses import BinomialLoss, BoostingLoss, SoftmaxLoss, SquaredLoss
from heldout.train.boosting.network import Step, boosted_network

Array = NDArray[Any]


class _Boosted(BaseEstimator):  # type: ignore[misc]
    """What classifier and regressor share: the options, fitting and the outputs."""

    def __init__(
        self,
        total_units: int = 100,
        units_per_step: int = 1,
        *,
        learning_rate: float = 1.0,
        subsample: float = 0.5,
        activation: str = "sigmoid",
        max_iter: int = 200,
        l2: float = 1e-4,
        step: Step = "guarded",
        random_state: Any = 0,
    ) -> None:
        self.total_units = total_units
        self.units_per_step = units_per_step
        self.learning_rate = learning_rate
        self.subsample = subsample
        self.activation = activation
        self.max_iter = max_iter
        self.l2 = l2
        self.step = step
        self.random_state = random_state

    def _fit(self, X: Array, targets: Array, loss: BoostingLoss, scale: float = 1.0) -> None:
        options = self.get_params()
        seed = int(check_random_state(options.pop("random_state")).randint(2**31 - 1))
        features = torch.tensor(X)
        self.module_, self.train_losses_ = boosted_network(features, targets, loss, seed=seed, **options)
        self.n_iter_ = self.module_.groups
        with torch.no_grad():
            self.module_.output.weight *= scale  # type: ignore[misc]
            self.module_.biases *= scale  # type: ignore[misc]

    def _rows(self, X: Any) -> Tensor:
        check_is_fitted(self, "module_")
        return torch.tensor(validate_data(self, X, reset=False, dtype=np.float64))

    def _outputs(self, X: Any, groups: int | None) -> Array:
        rows = self._rows(X)
        with torch.no_grad():
            return np.asarray(self.module_(rows, groups=groups).numpy())

    def _staged(self, X: Any) -> Iterator[Array]:
        rows = self._rows(X)
        check_at_least(1, X=len(rows))
        with torch.no_grad():
            yield from self.module_.staged(rows).numpy()

    @checked
    def to_module(self, units: int | None = None) -> nn.Sequential:
        """Returns the network as ``Sequential(Linear, activation, Linear)``, in float32, of its first units or all.

        A classifier's outputs are logits ``(batch, classes)``; of two classes one, ``(batch, 1)``, of the second.

        Raises:
            ValueError: ``units`` that are no multiple of ``units_per_step`` up to ``total_units``.
            NotFittedError: before ``fit``.
        """
        check_is_fitted(self, "module_")
        step = self.module_.units_per_group  # the parameters may have been set since
        if units is not None and units % step:
            raise ValueError(f"units must be a multiple of units_per_step, {step}, got {units}")
        return self.module_.truncated(None if units is None else units // step).float()


class GradientBoostedNetworkClassifier(ClassifierMixin, _Boosted):  # type: ignore[misc]
    """A scikit-learn classifier: one hidden layer, grown by gradient boosting; its last units can be switched off.

    Two classes have one output and the binomial loss, more have the cross-entropy. Standardise the columns first, in
    a pipeline.

    Args:
        total_units: hidden units in all.
        units_per_step: hidden units of each group.
        learning_rate: multiplies each step.
        subsample: share of the rows that each group is fitted to.
        activation: "sigmoid", "tanh" or "relu".
        max_iter: iterations of L-BFGS for each group.
        l2: weight decay of a group's weights.
        step: "guarded", "newton" or "fixed", see ``boosted_network``.
        random_state: seed, or a ``numpy.random.RandomState``.

    Attributes:
        module_: an ``AnytimeMLP`` in float64.
        train_losses_: the training loss after 0, 1, 2 ... groups.
        n_iter_: how many groups there are.
        classes_: the labels, in order.

    Raises:
        ValueError: when fitting: options out of range, one class, NaN.

    Source: arXiv:1909.12098.

    Example:
        >>> from sklearn.datasets import load_wine
        >>> from sklearn.pipeline import make_pipeline
        >>> from sklearn.preprocessing import StandardScaler
        >>> X, y = load_wine(return_X_y=True)
        >>> model = make_pipeline(StandardScaler(), GradientBoostedNetworkClassifier(20)).fit(X[::2], y[::2])
        >>> model.score(X[1::2], y[1::2]) > 0.9
        True
    """

    def fit(self, X: Any, y: Any) -> GradientBoostedNetworkClassifier:
        """Fits the network to rows ``(n, features)`` and their labels ``(n,)``; returns the classifier."""
        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        encoder = LabelEncoder().fit(column_or_1d(y, warn=True))
        self.classes_ = encoder.classes_
        codes = encoder.transform(y)
        if len(self.classes_) < 2:
            raise ValueError(f"y must hold at least 2 classes, it holds one class, {self.classes_[0]!r}")
        if len(self.classes_) == 2:  # sigmoid of twice the outputs is the probability
            self._fit(X, 2.0 * codes[:, None] - 1, BinomialLoss(), scale=2.0)
        else:
            self._fit(X, codes, SoftmaxLoss(len(self.classes_)))
        return self

    def predict_proba(self, X: Any, groups: int | None = None) -> Array:
        """Returns probabilities ``(n, classes)``, by the first ``groups`` groups of units or by all."""
        return self._probabilities(self._outputs(X, groups))

    def predict(self, X: Any, groups: int | None = None) -> Array:
        """Returns the most probable labels ``(n,)``, by the first ``groups`` groups of units or by all."""
        probabilities = self.predict_proba(X, groups)
        return np.asarray(self.classes_[probabilities.argmax(1)])

    def staged_predict_proba(self, X: Any) -> Iterator[Array]:
        """Yields the probabilities by the first 0, 1, 2 ... groups of units."""
        for outputs in self._staged(X):
            yield self._probabilities(outputs)

    def staged_predict(self, X: Any) -> Iterator[Array]:
        """Yields the labels by the first 0, 1, 2 ... groups of units."""
        for probabilities in self.staged_predict_proba(X):
            yield self.classes_[probabilities.argmax(1)]

    def _probabilities(self, outputs: Array) -> Array:
        logits = torch.as_tensor(outputs)
        if logits.shape[1] == 1:
            logits = torch.cat([torch.zeros_like(logits), logits], 1)
        return np.asarray(logits.softmax(1).numpy())


class GradientBoostedNetworkRegressor(RegressorMixin, _Boosted):  # type: ignore[misc]
    """A scikit-learn regressor: one hidden layer, grown by gradient boosting; its last units can be switched off.

    Standardise the columns first, in a pipeline; targets are taken as they are. The options are those of
    ``GradientBoostedNetworkClassifier``.

    Attributes:
        module_: an ``AnytimeMLP`` in float64.
        train_losses_: half the mean squared error on the training rows after 0, 1, 2 ... groups.

    Raises:
        ValueError: when fitting: options out of range, NaN.

    Source: arXiv:1909.12098.

    Example:
        >>> X = np.linspace(-2, 2, 60)[:, None]
        >>> model = GradientBoostedNetworkRegressor(20).fit(X, np.sin(2 * X[:, 0]))
        >>> model.score(X, np.sin(2 * X[:, 0])) > 0.95
        True
    """

    def fit(self, X: Any, y: Any) -> GradientBoostedNetworkRegressor:
        """Fits the network to rows ``(n, features)`` and targets ``(n,)`` or ``(n, outputs)``; returns itself."""
        X, y = validate_data(self, X, y, multi_output=True, y_numeric=True, dtype=np.float64)
        self._flat = y.ndim == 1
        self._fit(X, np.asarray(y, float).reshape(len(y), -1), SquaredLoss())
        return self

    def predict(self, X: Any, groups: int | None = None) -> Array:
        """Returns predictions of the shape of ``y``, by the first ``groups`` groups of units or by all."""
        return self._shaped(self._outputs(X, groups))

    def staged_predict(self, X: Any) -> Iterator[Array]:
        """Yields the predictions by the first 0, 1, 2 ... groups of units."""
        for outputs in self._staged(X):
            yield self._shaped(outputs)

    def _shaped(self, outputs: Array) -> Array:
        return outputs[:, 0] if self._flat else outputs

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
