"""What several files of tests need."""

import os

import hypothesis
import pytest
import torch

# How long an example takes depends on what else the machine is doing.
hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.load_profile("unhurried")

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
