"""What several files of tests need."""

import os

import hypothesis
import pytest
import torch

from hfusion.fusing import siblings

# How long an example takes depends on what else the machine is doing.
hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.load_profile("unhurried")

# Before anything imports Triton: without a device its kernels run in its interpreter.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(items):
    """A browser takes long, and so does building the pages or compiling every kernel."""
    long = {"browser", "launch", "fox", "site", "compiled_again"}
    for item in items:
        if long & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def in_float64():
    """Seeded, and float64 wherever a test does not say otherwise."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Activations are called once for all, which does not pay on a CPU."""
    monkeypatch.setattr(siblings, "_pays", lambda device: True)


# Browsers are imported where they are asked for: most tests want none.


@pytest.fixture(scope="module")
def browser():
    """A Chromium for the tests of one file."""
    import chromium

    with chromium.launching() as launch:
        running = launch()
        yield running
        running.close()


@pytest.fixture(scope="module")
def fox(tmp_path_factory):
    """A Firefox for the tests of one file."""
    import firefox

    if not firefox.FOUND:
        pytest.skip("no Firefox is installed")
    with firefox.running(tmp_path_factory.mktemp("profile")) as running:
        yield running
