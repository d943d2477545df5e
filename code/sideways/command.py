"""The command `record`: run the book's experiments here, or add what was run elsewhere."""

import argparse
import importlib
import importlib.util
import shutil
import signal
import textwrap
import zipfile
from contextlib import contextmanager
from pathlib import Path

from hfusion.named import near

from . import apart, experiments, recorder, records, runs
from .progress import Bar
from .recorder import machines

MINUTES = 8  # for all experiments


def add_options(measured):
    """What `record` takes, added to its parser."""
    measured.more = _listed
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


def record(options, fail):
    """Run experiments; their records are put in place together, when all are complete.

    fail: prints the reason of an exit status, and returns the status, as this does.
    """
    if options.page:
        return _adopted(options, fail)
    names = list(dict.fromkeys(options.experiments)) or list(experiments.SHARES)
    there = experiments.here()
    device = options.device or there
    if unfit := _unfit(names, device, there, options):
        return fail(*unfit)
    run = runs.Run(options.folder, machines.machine(device), names, options.pack)
    try:
        with _stopped_by_a_signal():
            run.begin()
            _measure(run, names, device, 60 * options.minutes)
            run.finish()
    except runs.NotSaved as error:
        return fail(1, error if run.handle is None else f"{error}; {run.left()}")
    except KeyboardInterrupt as stop:
        if isinstance(stop, _Terminated):
            return fail(143, f"terminated; {run.left()}")
        return fail(130, f"interrupted; {run.left()}")
    print(run.report())
    return run.status()


def _unfit(names, device, there, options):
    """(exit status, why) where this cannot be measured or kept; else None."""
    known = experiments.SHARES
    if strange := [name for name in names if name not in known]:
        listed, got = ", ".join(known), strange[0]
        return 2, f"experiment: expected one of {listed}, got {got!r}{near(got, known)}"
    if not importlib.util.find_spec("tqdm"):
        return 1, "the progress bar needs tqdm: pip install tqdm"
    if device not in ("cpu", there):
        fits = "cpu" if there == "cpu" else f"{there} or cpu"
        return 2, f"--device: expected {fits}, which torch finds, got {device}"
    places = {"--folder": options.folder}
    if options.pack:
        places["--pack"] = str(Path(options.pack).parent)
    for option, place in places.items():
        try:
            Path(place).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            return 2, f"{option}: expected a folder, got {place!r}: {error.strerror}"
    return None


def _adopted(options, fail):
    """Add a file that a lab of a page has saved to the records."""
    if options.experiments:
        got = ", ".join(options.experiments)
        return fail(2, f"--from: expected no experiments beside it, got {got}")
    try:
        if zipfile.is_zipfile(options.page):
            run = runs.unpack(options.page, options.folder)
            run.finish()
            print(run.report())
            return run.status()
        path = records.adopt(options.page, options.folder)
    except (OSError, records.RecordError, runs.NotSaved) as error:
        return fail(1, error)
    print(f"{path}: {records.load(path).label}")
    return 0


def _listed():
    """The experiments, one a line: their time and their question."""
    width = max(72, shutil.get_terminal_size().columns - 2)
    lines = [f"\nexperiments, with their share of {MINUTES} minutes:"]
    for name, share in experiments.SHARES.items():
        question = importlib.import_module(f"sideways.experiments.{name}").QUESTION
        first = f"  {name:16} {60 * MINUTES * share:3.0f} s  "
        lines += textwrap.wrap(first + question, width, subsequent_indent=" " * len(first))
    return "\n".join([*lines, ""])


def _above_zero(text):
    try:
        number = float(text)
    except ValueError:
        number = 0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return number


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
    """Run the experiments, each in its own process, then their slow variants. Time that
    one leaves goes to those that follow."""
    slow = [n for n in names if n in experiments.AGAIN and experiments.again(n, device)]
    shares = {(name, False): experiments.SHARES[name] for name in names}
    shares |= {(name, True): experiments.AGAIN[name] for name in slow}
    for (name, again), limit_s_here in recorder.shared(shares, limit_s):
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
