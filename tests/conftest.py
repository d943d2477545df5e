"""What several files of tests need."""

import pytest
import torch


@pytest.fixture
def in_float64():
    """Seeded, and float64 wherever a test does not say otherwise."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
