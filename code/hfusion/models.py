"""The Inception module, GoogLeNet, and a small network for digits. torch only.

Nothing here is written with fusion in mind: what the book does to these
networks could be done to any others.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Self, TypeVar

import numpy as np
import torch
from torch import nn

from .errors import FusionError

Model = TypeVar("Model", bound=nn.Module)

# Arrays by name, no pickle: loading runs no code.
DIGITS_WEIGHTS = Path(__file__).with_name("digits.npz")

# Szegedy et al. 2014, table 1: input channels and size, then the columns
# #1×1, #3×3 reduce, #3×3, #5×5 reduce, #5×5, pool proj.
TABLE = {
    "3a": (192, 28, 64, 96, 128, 16, 32, 32),
    "3b": (256, 28, 128, 128, 192, 32, 96, 64),
    "4a": (480, 14, 192, 96, 208, 16, 48, 64),
    "4b": (512, 14, 160, 112, 224, 24, 64, 64),
    "4c": (512, 14, 128, 128, 256, 24, 64, 64),
    "4d": (512, 14, 112, 144, 288, 32, 64, 64),
    "4e": (528, 14, 256, 160, 320, 32, 128, 128),
    "5a": (832, 7, 256, 160, 320, 32, 128, 128),
    "5b": (832, 7, 384, 192, 384, 48, 128, 128),
}


class ConvUnit(nn.Module):
    """Convolution, batch norm, ReLU: three operators, of which folding removes one.

    x [N, c_in, H, W] -> [N, c_out, H, W], or half of H and W with a stride of 2.

    Parameters
    ----------
    c_in, c_out : int
        Channels of the input and of the output.
    kernel_size : int
        An odd side of the window, which is padded to keep the size.
    batch_norm : bool
        Without it the convolution has a bias and there is no norm, as in the paper of
        2014, which is older than batch norm.
    stride : int
        In pixels, along both axes.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel_size: int = 1,
        batch_norm: bool = True,
        stride: int = 1,
    ) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.conv = nn.Conv2d(
            c_in, c_out, kernel_size, stride, padding, bias=not batch_norm
        )
        self.bn = nn.BatchNorm2d(c_out, eps=0.001) if batch_norm else nn.Identity()
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.bn(self.conv(x)))


class Inception(nn.Module):
    """An Inception module with dimension reduction (Szegedy et al. 2014, figure 2b).

        x ─┬─► b1 ───────────────────────►┐
           ├─► b3_reduce ──► b3 ─────────►│ concatenate
           ├─► b5_reduce ──► b5 ─────────►│ channels
           └─► pool ───────► pool_proj ──►┘

    x [N, c_in, H, W] -> [N, b1 + b3 + b5 + pool_proj, H, W].
    b1, b3_reduce and b5_reduce are the siblings: 1×1, on the same x.

    Parameters
    ----------
    widths : seven ints
        c_in, and the output channels of b1, b3_reduce, b3, b5_reduce, b5 and pool_proj.
    batch_norm : bool
        As for `ConvUnit`.

    Examples
    --------
    >>> Inception.from_table("3a")(torch.zeros(1, 192, 28, 28)).shape
    torch.Size([1, 256, 28, 28])
    """

    def __init__(self, widths: Sequence[int], batch_norm: bool = True) -> None:
        super().__init__()
        listed = tuple(widths) if isinstance(widths, list | tuple) else (widths,)
        if len(listed) != 7 or any(type(w) is not int or w < 1 for w in listed):
            raise FusionError(
                "widths: expected seven ints of at least 1 (c_in, b1, b3_reduce, b3, "
                f"b5_reduce, b5, pool_proj), got {listed}"
            )
        c_in, w1, r3, w3, r5, w5, wp = listed
        self.b1 = ConvUnit(c_in, w1, 1, batch_norm)
        self.b3_reduce = ConvUnit(c_in, r3, 1, batch_norm)
        self.b3 = ConvUnit(r3, w3, 3, batch_norm)
        self.b5_reduce = ConvUnit(c_in, r5, 1, batch_norm)
        self.b5 = ConvUnit(r5, w5, 5, batch_norm)
        self.pool = nn.MaxPool2d(3, stride=1, padding=1)
        self.pool_proj = ConvUnit(c_in, wp, 1, batch_norm)

    @classmethod
    def from_table(cls, row: str, batch_norm: bool = True) -> Self:
        """The module of the paper's table: row "3a", "3b", "4a" … "5b"."""
        if not isinstance(row, str) or row not in TABLE:
            raise FusionError(f"row: expected one of {', '.join(TABLE)}, got {row!r}")
        c_in, _, *widths = TABLE[row]
        return cls((c_in, *widths), batch_norm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y1 = self.b1(x)
        y3 = self.b3(self.b3_reduce(x))
        y5 = self.b5(self.b5_reduce(x))
        yp = self.pool_proj(self.pool(x))
        return torch.cat([y1, y3, y5, yp], dim=1)


class GoogLeNet(nn.Module):
    """The whole network of Szegedy et al. 2014, table 1: 57 convolutions.

    x [N, 3, 224, 224] -> [N, classes]. With batch norms instead of the paper's
    local response normalisation, without its auxiliary classifiers (they are used
    in training only), and with its 5×5 branches, where torchvision has 3×3.

    Parameters
    ----------
    classes : int
        How many scores each image gets.
    batch_norm : bool
        As for `ConvUnit`.

    Examples
    --------
    >>> sum(isinstance(m, nn.Conv2d) for m in GoogLeNet().modules())
    57
    """

    def __init__(self, classes: int = 1000, batch_norm: bool = True) -> None:
        super().__init__()
        self.conv1 = ConvUnit(3, 64, 7, batch_norm, stride=2)
        self.conv2_reduce = ConvUnit(64, 64, 1, batch_norm)
        self.conv2 = ConvUnit(64, 192, 3, batch_norm)
        self.inception = nn.ModuleDict(
            {row: Inception.from_table(row, batch_norm) for row in TABLE}
        )
        # The paper's sizes, 112 to 56 to 28 to 14 to 7, round up.
        self.pool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.4), nn.Linear(1024, classes)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(self.conv1(x))
        x = self.pool(self.conv2(self.conv2_reduce(x)))
        for row, module in self.inception.items():
            x = module(x)
            if row in ("3b", "4e"):
                x = self.pool(x)
        return self.head(x)


class Digits(nn.Module):
    """Two small Inception modules for handwritten digits of 8 by 8 pixels.

    x [N, 1, 8, 8], grey from 0 to 1 -> [N, 10], one score per digit.
    `Digits.trained()` has the weights that `tools/train_digits.py` made.

    Examples
    --------
    >>> Digits.trained()(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvUnit(1, 16, 3)
        self.first = Inception((16, 16, 16, 24, 8, 12, 12))
        self.pool = nn.MaxPool2d(2)
        self.second = Inception((64, 24, 24, 40, 8, 16, 16))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(self.stem(x))
        return self.head(self.second(self.pool(x)))

    @classmethod
    def trained(cls) -> Self:
        """The network with its trained weights, in eval mode."""
        model = cls()
        with np.load(DIGITS_WEIGHTS, allow_pickle=False) as arrays:
            model.load_state_dict({name: torch.from_numpy(arrays[name]) for name in arrays})
        return model.eval()


def randomise(model: Model, seed: int = 0) -> Model:
    """Give every parameter and every batch-norm statistic a random value, in place.

    A fresh batch norm (mean 0, variance 1, γ 1, β 0) is nearly the identity, and
    fresh biases are small: checks on fresh layers pass by luck. Weights are drawn
    so that activations keep their size (He et al. 2015).

    Parameters
    ----------
    model : torch.nn.Module
        Changed in place, and returned.
    seed : int
        The same seed gives the same values.

    Examples
    --------
    >>> randomise(nn.BatchNorm2d(1)).running_mean.item() == 0
    False
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(tensor: torch.Tensor | None, low: float, high: float) -> None:
        if tensor is not None:  # a layer may have no bias, a norm no parameters
            drawn = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
            tensor.copy_(low + (high - low) * drawn)

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                draw(module.running_mean, -1, 1)
                draw(module.running_var, 0.25, 4)
                draw(module.weight, 0.5, 2)
                draw(module.bias, -1, 1)
            elif isinstance(weight := getattr(module, "weight", None), torch.Tensor):
                limit = math.sqrt(6 / weight[0].numel())
                draw(weight, -limit, limit)
                draw(getattr(module, "bias", None), -1, 1)
    return model
