"""Networks of torchvision and timm, which this project did not write: make zoo.

The counts are those of convolutions before and after, as the networks' papers give them.
Without the two packages these tests are skipped.
"""

import warnings

import pytest
import torch

import hfusion
from hfusion import models

# (package, network, pixels of its input, convolutions before and after)
NETWORKS = (
    ("torchvision", "googlenet", 224, 57, 39),
    ("torchvision", "inception_v3", 299, 94, 75),
    ("timm", "inception_v4", 299, 149, 119),
    ("timm", "inception_resnet_v2", 299, 244, 190),
    ("torchvision", "resnet50", 224, 53, 52),
    ("timm", "resnet50", 224, 53, 52),
    ("torchvision", "densenet121", 224, 120, 120),
    ("torchvision", "squeezenet1_1", 224, 26, 26),
    ("torchvision", "mobilenet_v3_small", 224, 52, 52),
    ("torchvision", "shufflenet_v2_x1_0", 224, 56, 56),
)


@pytest.fixture(scope="module")
def zoo():
    """{package: a function that makes its network}."""
    register = torch.library.register_fake

    def lenient(name, *args, **kwargs):
        # torchvision built for a GPU has no compiled operators beside a torch that was
        # built for a CPU. Its networks do not need them, only its import does.
        if str(name).startswith("torchvision::"):
            return lambda function: function
        return register(name, *args, **kwargs)

    torch.library.register_fake = lenient
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import timm
            import torchvision
    except ImportError:
        pytest.skip("torchvision and timm are not installed; `make zoo` installs them")
    finally:
        torch.library.register_fake = register

    def from_torchvision(name):
        own = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        return torchvision.models.get_model(name, weights=None, **own)

    return {"torchvision": from_torchvision, "timm": timm.create_model}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("package", "name", "pixels", "before", "after"), NETWORKS)
def test_a_network_of_others(zoo, package, name, pixels, before, after):
    """The counts, the outputs, the keys, and the way back.

    In float64, so that a bound far below any mistake can be far above the rounding:
    2**-53 a step, through hundreds of layers that may each amplify it a little.
    """
    model = models.randomise(zoo[package](name)).eval().double()
    plan = hfusion.plan(model)
    assert plan.calls["Conv2d"] == (before, after)
    assert all(group.fused for group in plan.groups)
    fused = plan.apply()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, pixels, pixels, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(
            fused(x), expected, rtol=0, atol=1e-9 * expected.abs().max().item()
        )
    state = model.state_dict()
    assert list(fused.state_dict()) == list(state)
    back = hfusion.unfuse(fused).state_dict()
    assert all(torch.equal(back[key], tensor) for key, tensor in state.items())
