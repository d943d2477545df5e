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
import importlib
import importlib.util
import os
import shutil
import signal
import sys
import textwrap
import zipfile
from contextlib import contextmanager
from pathlib import Path

import hfusion
from hfusion import apart, experiments, named, recording, records, runs
from hfusion.progress import Bar

PROGRAM = "python -m hfusion"
COMMANDS = ("plan", "record")
MINUTES = 8  # for all experiments


class _Parser(argparse.ArgumentParser):
    more = str  # makes what stands below the help

    def format_help(self):
        return super().format_help() + self.more()

    def error(self, message):
        self.exit(2, f"{self.prog}: {message}; {self.prog} --help lists what fits\n")


def _listed():
    """The experiments, one a line: their time and their question."""
    width = max(72, shutil.get_terminal_size().columns - 2)
    lines = [f"\nexperiments, with their share of {MINUTES} minutes:"]
    for name, share in experiments.SHARES.items():
        question = importlib.import_module(f"hfusion.experiments.{name}").QUESTION
        first = f"  {name:16} {60 * MINUTES * share:3.0f} s  "
        lines += textwrap.wrap(first + question, width, subsequent_indent=" " * len(first))
    return "\n".join([*lines, ""])


def _from_two(text):
    if not text.isdecimal() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"expected an int of at least 2, got {text!r}")
    return int(text)


def _example(text):
    try:
        return named.example(text)
    except (ValueError, TypeError, RuntimeError) as error:  # torch's: it is too large
        raise argparse.ArgumentTypeError(str(error).partition("\n")[0]) from error


def _above_zero(text):
    try:
        number = float(text)
    except ValueError:
        number = 0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return number


def _parser():
    parser = _Parser(prog=PROGRAM, description="Horizontal fusion of layers.")
    version = f"hfusion {hfusion.__version__}"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(dest="command", required=True, metavar="plan|record")
    for name, (adds, about) in {
        "plan": (_plan_options, "print what can be fused in a model, and why not"),
        "record": (_record_options, "run the experiments on this machine"),
    }.items():
        adds(commands.add_parser(name, allow_abbrev=False, help=about))
    return parser


def _plan_options(plan):
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


def _record_options(measured):
    measured.more = _listed  # what is imported for it, nothing else needs
    measured.add_argument(
        "experiments", nargs="*", metavar="experiment", help="some of those below, or all"
    )
    measured.add_argument(
        "--folder", default="records", help="where records are kept (default records)"
    )
    measured.add_argument(
        "--device",
        choices=(*experiments.ACCELERATORS, "cpu"),
        help="default: a GPU if there is one",
    )
    measured.add_argument(
        "--from",
        dest="page",
        metavar="FILE",
        help="add what a lab of a page has saved, or a run with --pack",
    )
    measured.add_argument(
        "--pack",
        metavar="FILE.zip",
        help="put all records into one file as well, after each case: for a machine of "
        "which only a file can be taken home",
    )
    measured.add_argument(
        "--minutes",
        type=_above_zero,
        default=MINUTES,
        metavar="N",
        help=f"for all of them together (default {MINUTES})",
    )


def main(arguments=None):
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


def _silence(*streams):
    """What is still to be written to them goes nowhere."""
    for stream in filter(None, streams):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _run(arguments):
    if sys.stdout:
        sys.stdout.reconfigure(errors="replace")  # a locale without the sign ×
    parser = _parser()
    if not arguments:
        parser.print_help(sys.stderr)
        return 2
    first, *others = arguments
    if first == "help":
        arguments = [*others[:1], "--help"]
    elif first not in COMMANDS and not first.startswith("-"):
        near = named.near(first, COMMANDS)
        parser.error(f"expected a command, plan or record, got {first!r}{near}")
    options = parser.parse_args(arguments)
    return {"plan": _plan, "record": _record}[options.command](options)


def _plan(options):
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


def _planned(model, options):
    if options.eval or options.fold:
        model.eval()
    if options.fold:
        model = hfusion.fold_batchnorm(model)
    inputs = tuple(options.input) if options.input else None
    least = options.min_siblings
    return hfusion.plan(model, inputs, min_siblings=least, embed=options.embed)


def _as_options(said):
    """What the library says, with the names that its arguments have here."""
    return str(said).replace("example_inputs", "--input")


def _record(options):
    """Run experiments; their records are put in place together, when all are complete."""
    if options.page:
        return _adopted(options)
    known = experiments.SHARES
    names = list(dict.fromkeys(options.experiments)) or list(known)
    if strange := [name for name in names if name not in known]:
        listed, got = ", ".join(known), strange[0]
        return _fail(
            2, f"experiment: expected one of {listed}, got {got!r}{named.near(got, known)}"
        )
    if not importlib.util.find_spec("tqdm"):
        return _fail(1, "the progress bar needs tqdm: pip install tqdm")
    there = experiments.here()
    device = options.device or there
    if device not in ("cpu", there):
        fits = "cpu" if there == "cpu" else f"{there} or cpu"
        return _fail(2, f"--device: expected {fits}, which torch finds, got {device}")
    places = {"--folder": options.folder}
    if options.pack:
        places["--pack"] = str(Path(options.pack).parent)
    for option, place in places.items():
        try:  # before anything is measured that could not be kept
            Path(place).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            return _fail(2, f"{option}: expected a folder, got {place!r}: {error.strerror}")
    run = runs.Run(options.folder, recording.machine(device), names, options.pack)
    try:
        with _stopped_by_a_signal():
            run.begin()
            _measure(run, names, device, 60 * options.minutes)
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
    if options.experiments:
        got = ", ".join(options.experiments)
        return _fail(2, f"--from: expected no experiments beside it, got {got}")
    try:
        if zipfile.is_zipfile(options.page):
            run = runs.unpack(options.page, options.folder)
            run.finish()
            print(run.report())
            return run.status()
        path = records.adopt(options.page, options.folder)
    except (OSError, records.RecordError, runs.NotSaved) as error:
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


def _measure(run, names, device, limit_s):
    """Run the experiments, each in a process of its own, and at last their slow arms; what
    one leaves of its time goes to those that follow."""
    slow = [n for n in names if n in experiments.AGAIN and experiments.again(n, device)]
    shares = {(name, False): experiments.SHARES[name] for name in names}
    shares |= {(name, True): experiments.AGAIN[name] for name in slow}
    for (name, again), limit_s_here in recording.shared(shares, limit_s):
        known = run.known(name) if again else None
        if again and known is None:
            continue
        try:
            with Bar(name, limit_s_here) as bar:
                given = limit_s_here, bar.cases, run.so_far, bar.say
                run.keep(apart.run(name, device, *given, known, again, run.log))
        except runs.NotSaved:
            raise
        except Exception as error:  # of one experiment, and the others go on
            run.lose(name, f"{records.FAILED}{type(error).__name__}: {error}")


def _fail(status, error):
    print(f"{PROGRAM}: " + " ".join(str(error).split()), file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
