"""What grows as it learns? Networks by gradient boosting, their losses, and estimators for scikit-learn."""
