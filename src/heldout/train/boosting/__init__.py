"""Networks that grow: gradient boosting, its losses, and estimators for scikit-learn."""
