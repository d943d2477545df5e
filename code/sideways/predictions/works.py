"""The programs of each experiment's cases, one for each variant."""

from torch import nn

from hfusion import models

from .. import estimates
from ..arithmetic import Work
from ..experiments import launch_overhead, variants
from . import programs

Case = dict  # {parameter: value}, as in a record


def ladder(parameters: Case) -> dict[str, Work]:
    """A case of `module_ladder` as programs: {variant: work}."""
    model = models.randomise(models.Inception.from_table(parameters["module"])).eval()
    c_in, size, *_ = models.TABLE[parameters["module"]]
    return programs.of(variants.eager(model), parameters, (c_in, size, size), splits=1)


def siblings(parameters: Case) -> dict[str, Work]:
    """A case of `stage` as programs: {way: work}."""
    given = estimates.siblings(**parameters)
    sizes = dict(enumerate(given.sizes)) | {"stacked": sum(given.sizes)}
    convs = {name: nn.Conv2d(given.c_in, width, 1) for name, width in sizes.items()}
    single = programs.of(convs, parameters, (given.c_in, given.height, given.width))
    stacked = programs.more(single.pop("stacked"), others=1)  # the split
    numbers = 2 * sum(given.copies) * given.batch * given.height * given.width
    moved, copies = numbers * programs.item_bytes(given.dtype), len(given.copies)
    more = {"kernels": copies, "others": copies, "small": copies, "moved": moved}
    copied, separate = programs.more(stacked, **more), programs.total(single.values())
    return {"separate": separate, "stacked": stacked, "copied": copied}


def chains(parameters: Case) -> dict[str, int]:
    """A case of `launch_overhead`: {n: n}."""
    return {str(n): n for n in launch_overhead.CHAINS}


def whole(parameters: Case) -> dict[str, Work]:
    """A case of `network`: {variant: work}, and what is outside of the modules."""
    model = models.randomise(models.GoogLeNet()).eval()
    model.head = nn.Identity().eval()  # type: ignore[assignment]
    works = programs.of(variants.eager(model), parameters, (3, 224, 224), len(models.TABLE))
    works = {  # with the head, a mean and a small product
        name: programs.more(program, kernels=2, others=2, small=2)
        for name, program in works.items()
    }
    modules = [
        programs.of(
            {"": variants.eager(module)[variants.FOLDED]}, parameters, (c_in, size, size)
        )[""]
        for row, module in model.inception.items()
        for c_in, size, *_ in [models.TABLE[row]]
    ]
    return works | {"outside": programs.without(works[variants.FOLDED], modules)}
