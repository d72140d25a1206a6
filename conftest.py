"""Examples in docstrings draw from the same random numbers in every run."""

import pytest


@pytest.fixture(autouse=True)
def seeded_examples(request):
    if isinstance(request.node, pytest.DoctestItem):
        import torch

        torch.manual_seed(0)
