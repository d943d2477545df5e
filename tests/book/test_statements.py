"""Sentences of the pages that no cell computes, held to what they speak of."""

import copy
import re
from pathlib import Path

import nbformat
import pytest
import torch
from torch import nn

import hfusion

ROOT = Path(__file__).resolve().parents[2]


def words(page):
    cells = nbformat.read(ROOT / page, as_version=4).cells
    prose = (cell.source for cell in cells if cell.cell_type == "markdown")
    return " ".join(" ".join(prose).split())


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(6, 2, bias=False), nn.Linear(6, 3, bias=False)

    def forward(self, x):
        return self.left(x), self.right(x)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this PyTorch has no Muon")
@pytest.mark.parametrize("given", [None, torch.ones(4, 6)], ids=["read", "run"])
def test_muon_does_not_notice_that_weights_lie_side_by_side(given):
    """It makes its steps orthogonal, as matrices: of one stacked weight they are others."""
    torch.manual_seed(0)
    start, x = Pair(), torch.randn(4, 6)
    states = []
    for net in (copy.deepcopy(start), hfusion.fuse(start, given)):
        optimiser = torch.optim.Muon(net.parameters(), lr=0.1)
        sum(y.square().mean() for y in net(x)).backward()
        optimiser.step()
        states.append(net.state_dict())
    for name, weight in states[0].items():
        assert torch.equal(states[1][name], weight)


def test_published_gains_are_quotients_of_published_numbers():
    """The field's, from the times and shares that the page of constants quotes."""
    text = (ROOT / "back/constants.md").read_text(encoding="utf-8")
    checked = 0
    for gains, what in re.findall(r"^\| (.*?) \| (.*?) \| \{cite:t\}", text, re.M):
        quotients = [a / b for a, b in pairs(what)]
        quotients += [1 + plus / 100 for plus in floats(r"\+([\d.]+)%", what)]
        quotients += [1 / share for share in floats(r"(0\.\d\d)(?= (?:to|of))", what)]
        if quotients and "µs" not in gains:
            said = floats(r"\d+\.\d+", gains)
            assert said == [round(quotient, 2) for quotient in quotients], gains
            checked += 1
    assert checked == 8


def pairs(text):
    """[(before, after)] of "6.51 ms by 5.39 ms, 0.86 by 0.74 and by 0.73"."""
    found = re.findall(r"(?:([\d.]+)(?: ms)? )?(?:and )?by ([\d.]+)", text)
    before = None
    for first, after in found:
        before = float(first) if first else before
        yield before, float(after)


def floats(pattern, text):
    return [float(number) for number in re.findall(pattern, text)]
