"""The command line.

    python -m hfusion plan package.module:factory    what can be fused, what not, and why
    python -m hfusion plan file.py:factory           the same, from a file
    python -m hfusion plan … --input 1,3,224,224     found by running it, not by reading
    python -m hfusion record                         run the book's experiments here
    python -m hfusion record --from FILE             add what a lab of a page has saved,
                                                     or a run elsewhere with --pack FILE

Exit status 2: the arguments do not fit; 1: it could not be done, or something was wrong
or failed in an experiment; 3: all went well, but there was not time for everything; 130:
interrupted; 141: whoever read the output closed it; 143: terminated. Each but 141 says
why in one line.
"""

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn, TextIO

import torch
from torch import nn

import hfusion

from . import named

PROGRAM = "python -m hfusion"
COMMANDS = ("plan", "record")


class _Parser(argparse.ArgumentParser):
    more: Callable[[], str] = str  # makes what stands below the help

    def format_help(self) -> str:
        return super().format_help() + self.more()

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; {self.prog} --help lists what fits\n")


def _from_two(text: str) -> int:
    if not text.isdecimal() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"expected an int of at least 2, got {text!r}")
    return int(text)


def _example(text: str) -> torch.Tensor:
    try:
        return named.example(text)
    except (ValueError, TypeError, RuntimeError) as error:  # torch's: it is too large
        raise argparse.ArgumentTypeError(str(error).partition("\n")[0]) from error


def _parser(command: str) -> _Parser:
    parser = _Parser(prog=PROGRAM, description="Horizontal fusion of layers.")
    version = f"hfusion {hfusion.__version__}"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(dest="command", required=True, metavar="plan|record")
    about = "print what can be fused in a model, and why not"
    _plan_options(commands.add_parser("plan", allow_abbrev=False, help=about))
    about = "run the experiments on this machine"
    recording = commands.add_parser("record", allow_abbrev=False, help=about)
    if command == "record":  # what is imported for it, nothing else needs
        from sideways.command import add_options

        add_options(recording)
    return parser


def _plan_options(plan: argparse.ArgumentParser) -> None:
    plan.add_argument(
        "model",
        metavar="package.module:factory",
        help="a function or class that makes the model without arguments, or the model "
        "itself; file.py:factory fits as well",
    )
    plan.add_argument(
        "--input",
        type=_example,
        action="append",
        metavar="SIZES[:DTYPE]",
        help="run the model, on a random tensor of this shape, such as 1,3,224,224 or "
        "2,7:int64; once for each positional argument",
    )
    plan.add_argument("--eval", action="store_true", help="plan it in eval mode")
    plan.add_argument(
        "--fold", action="store_true", help="fold batch norms first (eval mode)"
    )
    plan.add_argument(
        "--embed", action="store_true", help="let smaller windows join larger ones"
    )
    plan.add_argument(
        "--min-siblings",
        type=_from_two,
        default=2,
        metavar="N",
        help="leave smaller groups as they are (default 2)",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    try:
        try:
            return _run(sys.argv[1:] if arguments is None else arguments)
        finally:
            if sys.stdout:  # None where it was closed before
                sys.stdout.flush()
    except BrokenPipeError:  # as `| head` does; Python would say so once more at its end
        _silence(sys.stdout, sys.stderr)
        return 141  # of SIGPIPE, as a shell has it
    except OSError as error:
        _silence(sys.stdout)
        return _fail(1, f"the output cannot be written: {error.strerror}")
    except KeyboardInterrupt:
        return _fail(130, "interrupted")


def _silence(*streams: TextIO) -> None:
    """What is still to be written to them goes nowhere."""
    for stream in filter(None, streams):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _run(arguments: Sequence[str]) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a locale without the sign ×
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:2], "--help"]
    first = arguments[0] if arguments else ""
    parser = _parser(first)
    if not arguments:
        parser.print_help(sys.stderr)
        return 2
    if first not in COMMANDS and not first.startswith("-"):
        near = named.near(first, COMMANDS)
        parser.error(f"expected a command, plan or record, got {first!r}{near}")
    options = parser.parse_args(arguments)
    return {"plan": _plan, "record": _record}[options.command](options)


def _record(options: argparse.Namespace) -> int:
    from sideways.command import record

    return record(options, _fail)


def _plan(options: argparse.Namespace) -> int:
    sys.path.insert(0, "")  # as for python -m: what lies in the current folder is found
    try:
        model = named.load(options.model)
    except ValueError as error:
        return _fail(2, error)
    except SystemExit as left:
        return _fail(1, f"{options.model} ends the program: sys.exit({left.code!r})")
    try:
        print(_as_options(_planned(model, options)))
    except hfusion.FusionError as error:
        return _fail(1, _as_options(error))
    except SystemExit as left:
        return _fail(1, f"forward ends the program: sys.exit({left.code!r})")
    except RecursionError as error:
        return _fail(1, f"{options.model}: {error}; does a module of it hold itself?")
    return 0


def _planned(model: nn.Module, options: argparse.Namespace) -> hfusion.FusionPlan:
    if options.eval or options.fold:
        model.eval()
    if options.fold:
        model = hfusion.fold_batchnorm(model)
    inputs = tuple(options.input) if options.input else None
    least = options.min_siblings
    return hfusion.plan(model, inputs, min_siblings=least, embed=options.embed)


def _as_options(said: object) -> str:
    """What the library says, with the names that its arguments have here."""
    return str(said).replace("example_inputs", "--input")


def _fail(status: int, error: object) -> int:
    print(f"{PROGRAM}: " + " ".join(str(error).split()), file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
