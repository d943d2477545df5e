"""What a run of a model shows, and who is said to need a contiguous part."""

import pytest
import torch
from torch import nn

import hfusion
from hfusion import FusionError
from hfusion.finding import running
from hfusion.fusing import _members


class Three(nn.Module):
    """Three siblings, each read by `read`."""

    def __init__(self, read):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(8, 8) for _ in range(3))
        self.read = read

    def forward(self, x):
        return [self.read(layer(x)) for layer in (self.a, self.b, self.c)]


def heads(y):
    return y.view(2, 3, 4, 2).transpose(1, 2)


# What a reader does with a part, and whether it would have a view of a layer's own output.
READERS = {
    "copies either way": (lambda y: heads(y).contiguous(), False),
    "copies either way, a view of fewer axes": (lambda y: y[0].t().reshape(-1), False),
    "another dtype either way": (lambda y: heads(y).to(torch.float64), False),
    "views what a part can be viewed as": (heads, False),
    "pairs of numbers": (lambda y: torch.view_as_complex(heads(y)), False),
    "views the whole": (lambda y: y.reshape(-1), True),
    "views it or fails": (lambda y: y.view(-1), True),
    "views a view": (lambda y: y.view(2, 3, 4, 2).flatten(0, 1).reshape(-1), True),
    "asks": (lambda y: y if y.is_contiguous() else None, True),
}


class OneChannel(nn.Module):
    """A convolution of a part of one channel; in channels_last its axes are reordered."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 1, 1), nn.Conv2d(3, 4, 1)
        self.c = nn.Conv2d(1, 2, 3, stride=2, padding=1)

    def forward(self, x):
        return self.c(self.a(x).relu()).view(3, -1), self.b(x)


def test_a_part_of_one_channel_lies_as_in_the_product():
    """So the run sees that `view` fails, and the group is refused."""
    model = OneChannel()
    x = torch.randn(3, 3, 2, 3).contiguous(memory_format=torch.channels_last)
    (group,) = hfusion.plan(model, x).groups
    assert not group.fused
    assert "`forward`" in group.reason
    with torch.no_grad():
        for mine, theirs in zip(hfusion.fuse(model, x)(x), model(x), strict=True):
            torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("reader", READERS)
def test_who_needs_a_contiguous_part(reader):
    """Nobody does who would copy in any case; and who gets one gets the same numbers."""
    read, needs = READERS[reader]
    model, x = Three(read), torch.randn(2, 3, 8)
    run = running.Run(model, x)
    assert run.layout_readers(run.families()).keys() == (
        {"a", "b", "c"} if needs else set()
    )
    plan = hfusion.plan(model, x)
    assert plan.groups[0].fused is not needs  # three copies for two launches
    fused = plan.apply()
    with torch.no_grad():
        for mine, theirs in zip(fused(x), model(x), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    assert bool(_members.member_of(fused.a)) is not needs


@pytest.mark.parametrize(
    ("view", "needs"),
    [
        (lambda y: y.view(-1), True),
        (lambda y: y.view(1, -1), True),  # of more rows it would be one row
        (lambda y: y.view(*y.shape[:-1], 4, 2), False),
    ],
)
def test_one_row_is_in_one_piece_by_chance(view, needs):
    model = Three(view)
    run = running.Run(model, torch.randn(1, 1, 8))
    assert run.layout_readers(run.families()).keys() == (
        {"a", "b", "c"} if needs else set()
    )
    fused = hfusion.fuse(model, torch.randn(1, 1, 8))
    with torch.no_grad():
        for x in (torch.randn(1, 1, 8), torch.randn(2, 3, 8)):
            for mine, theirs in zip(fused(x), model(x), strict=True):
                torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_a_model_that_cannot_be_run_is_named():
    with pytest.raises(FusionError, match="cannot be run with example_inputs"):
        hfusion.plan(Three(heads), torch.randn(2, 4, 8))


class Written(Three):
    def forward(self, x):
        a, b, c = self.a(x), self.b(x), self.c(x)
        a.reshape(self.rows, -1).add_(1)
        return a, b, c


@pytest.mark.parametrize("rows", [3, 1])
def test_a_view_that_is_written_to_may_be_a_copy_for_another_batch(rows):
    """A part of so many rows is reshaped where it lies, one of twice as many is not.

    One row is in one piece, three are not.
    """
    model, x = Written(None), torch.randn(rows, 8)
    model.rows = rows
    (group,) = hfusion.plan(model, x).groups
    assert (group.fused, group.dense) == (True, (0,))
    fused = hfusion.fuse(model, x)
    for given in (x, torch.randn(2 * rows, 8)):
        with torch.no_grad():
            for mine, theirs in zip(fused(given), model(given), strict=True):
                torch.testing.assert_close(mine, theirs)


class Counting(Three):
    """It counts its calls in a parameter, by an argument that only has a name."""

    def __init__(self):
        super().__init__(heads)
        self.count = nn.Parameter(torch.zeros(1), requires_grad=False)

    def forward(self, x):
        torch.add(self.count, 1, out=self.count)
        return super().forward(x)


def test_a_run_leaves_the_models_own_parameters_as_they_were():
    model = Counting()
    assert hfusion.plan(model, torch.randn(2, 3, 8)).groups
    assert model.count.item() == 0
