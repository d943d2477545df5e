"""What several files of tests need."""

import os

import pytest
import torch

# Before anything imports Triton: without a device its kernels run in its interpreter.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture
def in_float64():
    """Seeded, and float64 wherever a test does not say otherwise."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
