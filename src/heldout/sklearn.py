"""Methods for users of scikit-learn: estimators that fit a torch model under a Method, for pipelines and searches."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data
from torch import Tensor, nn

from heldout.adapt import Stream, kept_of, note_on, predictor_from
from heldout.method import Method, Splits, evaluating, forward
from heldout.methods import parse
from heldout.nn import inputs_for, mlp
from heldout.train import fit

__all__ = ["HeldoutClassifier", "HeldoutRegressor"]

Model = nn.Module | Callable[[int, int], nn.Module] | None

ROWS_AT_ONCE = 4096  # of a prediction by a plain module


class _Estimator(BaseEstimator):  # type: ignore[misc]
    """What classifier and regressor share: the recipe, fitting, predicting and pickling."""

    def __init__(
        self,
        model: Model = None,
        method: Method | str | None = None,
        *,
        epochs: int = 50,
        batch_size: int = 32,
        optimizer: Any = None,
        schedule: Any = "cosine",
        loss: Any = None,
        augment: Any = None,
        max_grad_norm: float | None = None,
        device: Any = None,
        random_state: Any = 0,
    ) -> None:
        self.model = model
        self.method = method
        self.epochs = epochs
        self.batch_size = batch_size
        self.optimizer = optimizer
        self.schedule = schedule
        self.loss = loss
        self.augment = augment
        self.max_grad_norm = max_grad_norm
        self.device = device
        self.random_state = random_state

    def _fit(self, X: np.ndarray, targets: Tensor, outputs: int, domains: Any, unlabeled: Any) -> None:
        method = parse(self.method) if isinstance(self.method, str) else self.method
        if method is not None and not isinstance(method, Method):
            raise TypeError(f"method must be a Method, an expression or None, got {type(method).__name__}")
        inputs = torch.tensor(X)
        splits = Splits(
            train=(inputs, targets),
            domains=None if domains is None else torch.as_tensor(np.asarray(domains)),
            unlabeled=None if unlabeled is None else torch.tensor(np.asarray(unlabeled)),  # type: ignore[arg-type]
        )
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        fitted = fit(
            lambda: self._module(inputs, outputs),
            splits,
            method,
            epochs=self.epochs,
            batch_size=self.batch_size,
            optimizer=self.optimizer,
            schedule=self.schedule,
            loss=self.loss,
            augment=self.augment,
            max_grad_norm=self.max_grad_norm,
            seed=seed,
            device=self.device,
        )
        self.module_, self.predictor_, self.history_ = fitted.module, fitted.predictor, fitted.history
        self.note_ = note_on(fitted.predictor, fitted.module)
        self._kept = kept_of(fitted.predictor, fitted.run)

    def _module(self, inputs: Tensor, outputs: int) -> nn.Module:
        """An untrained module that gives ``outputs`` numbers for each row."""
        features = math.prod(inputs.shape[1:])
        if self.model is None:
            module: Any = mlp(features, outputs, (64, 64)).double()
        elif isinstance(self.model, nn.Module):
            module = copy.deepcopy(self.model)
        else:
            module = self.model(features, outputs)
        if not isinstance(module, nn.Module):
            raise TypeError(f"model must be a module, a function that builds one, or None, got {type(module).__name__}")
        try:
            with evaluating(module), torch.no_grad():
                answers = forward(module, inputs_for(module, inputs[:2]))
        except RuntimeError as error:
            raise ValueError(f"model fails on rows of {features} features: {error}") from error
        if answers[0].numel() != outputs:
            raise ValueError(f"model must give {outputs} outputs for each row, it gives {answers[0].numel()}")
        return module

    def _outputs(self, X: Any) -> np.ndarray:
        """What the predictor answers to rows, float64 ``(n, outputs)``; every call starts afresh."""
        check_is_fitted(self, "module_")
        inputs = torch.tensor(validate_data(self, X, reset=False, allow_nd=True, dtype=np.float64))
        reset = getattr(self.predictor_, "reset", None)
        if callable(reset):
            reset()
        parts = [inputs] if isinstance(self.predictor_, Stream) else inputs.split(ROWS_AT_ONCE)
        answers = []
        for part in parts:
            with torch.set_grad_enabled(not isinstance(self.predictor_, nn.Module)):
                answers.append(forward(self.predictor_, inputs_for(self.module_, part)).detach().double().cpu())
        return torch.cat(answers).reshape(len(inputs), -1).numpy()

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        if state.get("_kept") is not None:  # predictors hold what no pickle takes
            state = {name: value for name, value in state.items() if name != "predictor_"}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        kept = getattr(self, "_kept", None)
        if kept is not None:
            self.predictor_ = predictor_from(kept, self.module_)


class HeldoutClassifier(ClassifierMixin, _Estimator):  # type: ignore[misc]
    """A scikit-learn classifier: a torch model that is fitted under a Method.

    Rows are real numbers ``(n, features)`` (or ``(n, ...)`` for a model of images); scale them first, in a pipeline.
    Methods that adapt at test time see the rows of one call of ``predict_proba`` as their stream, and forget them
    afterwards: ``note_`` says what that needs.

    Args:
        model: a module (it is copied), a function ``(n_features, n_classes) -> module``, or None for an MLP of two
            hidden layers of 64, in double precision.
        method: a Method, an expression such as ``"sam(rho=0.1)+t3a"``, or None for plain training.
        epochs, batch_size, optimizer, schedule, loss, augment, max_grad_norm, device: as in ``heldout.fit``.
        random_state: seed of the start, the data order and dropout.

    Attributes:
        classes_: labels, in the order of the columns of ``predict_proba``.
        n_features_in_: features of a row.
        module_: the trained module.
        predictor_: what answers: the module, or what the predict stage put around it.
        history_: one dict for each epoch.
        note_: what it needs at test time; empty for a plain model.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> from sklearn.pipeline import make_pipeline
        >>> from sklearn.preprocessing import StandardScaler
        >>> X, y = load_iris(return_X_y=True)
        >>> pipeline = make_pipeline(StandardScaler(), HeldoutClassifier(method="sam(rho=0.05)"))
        >>> pipeline.fit(X, y).score(X, y) > 0.9
        True
    """

    def fit(self, X: Any, y: Any, domains: Any = None, unlabeled: Any = None) -> HeldoutClassifier:
        """Trains the model and returns the classifier.

        Args:
            X: ``(n, features)``.
            y: labels ``(n,)`` of any type.
            domains: integers ``(n,)``, for Methods that need the domain of each row.
            unlabeled: further rows ``(m, features)``, for Methods that need them.

        Raises:
            ValueError: fewer than two classes, a model of other outputs, or a Method that cannot act here.
        """
        X, y = validate_data(self, X, y, allow_nd=True, dtype=np.float64)
        y = column_or_1d(y, warn=True)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y must hold at least 2 classes, got 1 class: {self.classes_[0]!r}")
        self._fit(X, torch.as_tensor(labels), len(self.classes_), domains, unlabeled)
        return self

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Returns log-probabilities ``(n, classes)``, float64."""
        return torch.from_numpy(self._outputs(X)).log_softmax(1).numpy()

    def predict_proba(self, X: Any) -> np.ndarray:
        """Returns probabilities ``(n, classes)``, float64."""
        return torch.from_numpy(self._outputs(X)).softmax(1).numpy()

    def predict(self, X: Any) -> np.ndarray:
        """Returns the most probable label of each row ``(n,)``."""
        chosen = self._outputs(X).argmax(1)
        return self.classes_[chosen]


class HeldoutRegressor(RegressorMixin, _Estimator):  # type: ignore[misc]
    """A scikit-learn regressor: a torch model that is fitted under a Method; see ``HeldoutClassifier``.

    Args:
        model: a module, a function ``(n_features, n_outputs) -> module``, or None for an MLP.
        method: a Method that acts on regression, an expression, or None.
        epochs, batch_size, optimizer, schedule, loss, augment, max_grad_norm, device, random_state: as there.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> X = rng.normal(size=(80, 3))
        >>> HeldoutRegressor(epochs=60, method="sam").fit(X, X[:, 0] - X[:, 1]).predict(X[:2]).shape
        (2,)
    """

    def fit(self, X: Any, y: Any, domains: Any = None, unlabeled: Any = None) -> HeldoutRegressor:
        """Trains the model and returns the regressor.

        Args:
            X: ``(n, features)``.
            y: real numbers ``(n,)`` or ``(n, outputs)``.
            domains: integers ``(n,)``, for Methods that need the domain of each row.
            unlabeled: further rows ``(m, features)``, for Methods that need them.

        Raises:
            ValueError: a model of other outputs, or a Method that cannot act here.
        """
        X, y = validate_data(self, X, y, allow_nd=True, dtype=np.float64, multi_output=True, y_numeric=True)
        self._target_shape = y.shape[1:]
        targets = torch.tensor(y, dtype=torch.float64).reshape(len(y), -1)
        self._fit(X, targets, targets.shape[1], domains, unlabeled)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Returns values, float64 ``(n,)`` or ``(n, outputs)``, as y was."""
        outputs = self._outputs(X)
        return outputs.reshape(len(outputs), *self._target_shape)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
