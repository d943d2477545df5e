"""The command line: python -m hfusion plan package.module:factory

Prints which layers of a model can be fused, which cannot, and why. Exit status 2:
the arguments do not fit; 1: the model cannot be planned. Both say so in one line.
"""

import argparse
import importlib
import sys

from torch import nn

import hfusion


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"{self.prog}: {message}\n")


def _from_two(text):
    if not text.isdecimal() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"was {text}; a whole number from 2 fits")
    return int(text)


def _parser():
    parser = _Parser(prog="python -m hfusion", description="Horizontal fusion of layers.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="plan")
    plan = commands.add_parser(
        "plan", help="print what can be fused in a model, and why not"
    )
    plan.add_argument(
        "model", metavar="package.module:factory", help="what makes the model"
    )
    plan.add_argument("--eval", action="store_true", help="plan it in eval mode")
    plan.add_argument(
        "--fold", action="store_true", help="fold batch norms first (eval mode)"
    )
    plan.add_argument("--min-siblings", type=_from_two, default=2, metavar="N")
    return parser


def load(name):
    """The model that a name like "torchvision.models:resnet50" stands for.

    What stands behind the colon is an nn.Module, or is called without arguments to
    make one. Raises ValueError.
    """
    module_name, colon, attribute = name.partition(":")
    if not colon or not module_name or not attribute:
        raise ValueError(f"model was {name!r}; package.module:factory fits")
    try:
        found = importlib.import_module(module_name)
        for step in attribute.split("."):
            found = getattr(found, step)
        model = found if isinstance(found, nn.Module) else found()
    except Exception as error:  # whatever somebody else's code raises
        raise ValueError(
            f"{name} cannot be made: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"{name} makes a {type(model).__name__}; an nn.Module fits")
    return model


def main(arguments=None):
    """Returns the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    sys.path.insert(0, "")  # as for python -m: what lies in the current folder is found
    try:
        model = load(options.model)
    except ValueError as error:
        return _fail(2, error)
    try:
        if options.eval or options.fold:
            model.eval()
        if options.fold:
            model = hfusion.fold_batchnorm(model)
        print(hfusion.plan(model, min_siblings=options.min_siblings))
    except hfusion.FusionError as error:
        return _fail(1, error)
    return 0


def _fail(status, error):
    print("python -m hfusion: " + " ".join(str(error).split()), file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
