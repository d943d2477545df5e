"""The command line.

    python -m hfusion plan package.module:factory    what can be fused, what not, and why
    python -m hfusion record                         run the book's experiments here
    python -m hfusion record --from FILE             add what a lab of a page has saved

Exit status 2: the arguments do not fit; 1: it could not be done, or something was wrong
or failed in an experiment; 3: all went well, but there was not time for everything; 130:
interrupted; 141: whoever read the output closed it; 143: terminated. Each but 141 says
why in one line.
"""

import argparse
import importlib
import os
import signal
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

from torch import nn

import hfusion
from hfusion import experiments, recording, records, runs


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"{self.prog}: {message}\n")


def _from_two(text):
    if not text.isdecimal() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"was {text}; a whole number from 2 fits")
    return int(text)


def _above_zero(text):
    try:
        number = float(text)
    except ValueError:
        number = 0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"was {text}; a number above 0 fits")
    return number


def _parser():
    parser = _Parser(prog="python -m hfusion", description="Horizontal fusion of layers.")
    version = f"hfusion {hfusion.__version__}"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(dest="command", required=True, metavar="plan|record")
    plan = commands.add_parser(
        "plan", allow_abbrev=False, help="print what can be fused in a model, and why not"
    )
    plan.add_argument(
        "model", metavar="package.module:factory", help="what makes the model"
    )
    plan.add_argument("--eval", action="store_true", help="plan it in eval mode")
    plan.add_argument(
        "--fold", action="store_true", help="fold batch norms first (eval mode)"
    )
    plan.add_argument(
        "--embed", action="store_true", help="let smaller windows join larger ones"
    )
    plan.add_argument("--min-siblings", type=_from_two, default=2, metavar="N")
    measured = commands.add_parser(
        "record", allow_abbrev=False, help="run the experiments on this machine"
    )
    measured.add_argument(
        "experiments",
        nargs="*",
        metavar="experiment",
        help=f"all, or some of: {', '.join(experiments.SHARES)}",
    )
    measured.add_argument("--folder", default="records", help="where records are kept")
    measured.add_argument("--device", choices=("cuda", "cpu"))
    measured.add_argument(
        "--from", dest="page", metavar="FILE", help="add what a lab of a page has saved"
    )
    measured.add_argument("--minutes", type=_above_zero, default=8, help="for all of them")
    return parser


def load(name):
    """The model that a name like "torchvision.models:resnet50" stands for.

    What stands behind the colon is an nn.Module, or is called without arguments to
    make one. Raises ValueError.
    """
    module_name, colon, attribute = name.partition(":")
    if not colon or not module_name or not attribute:
        raise ValueError(f"model was {name!r}; package.module:factory fits{_as_file(name)}")
    try:
        found = importlib.import_module(module_name)
        for step in attribute.split("."):
            found = getattr(found, step)
        model = found if isinstance(found, nn.Module) else found()
    except Exception as error:  # whatever somebody else's code raises
        hint = _as_file(name)
        if "operator torchvision::" in str(error):
            hint = "; this torchvision was built for another torch"
        raise ValueError(
            f"{name} cannot be made: {type(error).__name__}: {error}{hint}"
        ) from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"{name} makes a {type(model).__name__}; an nn.Module fits")
    return model


def _as_file(name):
    """What to write instead, where a model's name begins with that of a file."""
    path, _, attribute = name.partition(":")
    if not path.endswith(".py"):
        return ""
    module = ".".join(part for part in Path(path).with_suffix("").parts if part != "..")
    return f"; for a file: {module}:{attribute or 'factory'}, from the folder it is in"


def main(arguments=None):
    """Returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        status = {"plan": _plan, "record": _record}[options.command](options)
        sys.stdout.flush()
    except BrokenPipeError:  # as `| head` does; Python would say so once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # of SIGPIPE, as a shell has it
    return status


def _plan(options):
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
        print(hfusion.plan(model, options.min_siblings, embed=options.embed))
    except hfusion.FusionError as error:
        return _fail(1, error)
    return 0


def _record(options):
    """Run experiments; their records are put in place together, when all are complete."""
    if options.page:
        return _adopted(options)
    known = experiments.SHARES
    names = list(dict.fromkeys(options.experiments)) or list(known)
    if strange := [name for name in names if name not in known]:
        return _fail(2, f"experiment was {strange[0]!r}; one of {', '.join(known)} fits")
    try:
        from tqdm import tqdm
    except ImportError:
        return _fail(1, "the progress bar needs tqdm; make record or pip install tqdm")
    device = options.device or experiments.here()
    if device == "cuda" and experiments.here() != "cuda":
        return _fail(2, "--device was cuda, and torch finds none; cpu fits")
    try:  # before anything is measured that could not be kept
        Path(options.folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return _fail(2, f"--folder was {options.folder!r}: {error.strerror}; a folder fits")
    run = runs.Run(options.folder, recording.machine(device), names)
    try:
        with _stopped_by_a_signal():
            run.begin()
            _measure(run, names, device, 60 * options.minutes, tqdm)
            run.finish()
    except runs.NotSaved as error:
        return _fail(1, error if run.handle is None else f"{error}; {run.left()}")
    except KeyboardInterrupt as stop:
        if isinstance(stop, _Terminated):
            return _fail(143, f"terminated; {run.left()}")
        return _fail(130, f"interrupted; {run.left()}")
    print(run.report())
    return run.status()


def _adopted(options):
    """Add a file that a lab of a page has saved to the records."""
    try:
        path = records.adopt(options.page, options.folder)
    except (OSError, records.RecordError) as error:
        return _fail(1, error)
    print(f"{path}: {records.load(path).label}")
    return 0


class _Terminated(KeyboardInterrupt):
    """Raised when the process is told to end."""


@contextmanager
def _stopped_by_a_signal():
    """To be told to end is like Ctrl-C, inside."""

    def end(*_):
        raise _Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _measure(run, names, device, limit_s, tqdm):
    """Run the experiments; what one leaves of its time goes to those that follow."""
    began = time.monotonic()
    for place, name in enumerate(names):
        left_s = max(0, limit_s - (time.monotonic() - began))
        shares = [experiments.SHARES[later] for later in names[place:]]
        try:
            limit_s_here = left_s * shares[0] / sum(shares)
            run.keep(_measured(name, device, limit_s_here, tqdm, run.so_far))
        except runs.NotSaved:
            raise
        except Exception as error:  # of one experiment, and the others go on
            run.lose(name, f"{records.FAILED}{type(error).__name__}: {error}")


def _measured(name, device, limit_s, tqdm, keep):
    """The Record of an experiment; the progress bar is closed whatever happens."""
    with ExitStack() as bars:

        def progress(cases):
            return bars.enter_context(tqdm(cases, desc=name, unit="case"))

        return experiments.run(name, device, limit_s, progress, keep)


def _fail(status, error):
    print("python -m hfusion: " + " ".join(str(error).split()), file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
