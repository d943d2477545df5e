"""The folder that a run's records go to. No torch.

    <folder>/<machine>/               records, as pages read them
    <folder>/.<machine>.unfinished/   what a run has so far
    <folder>/.<machine>.log           what the experiments' processes wrote, if one failed

It has no record that is committed, and none of another machine: else it is <machine>-2, ….
"""

import ctypes
import dataclasses
import hashlib
import itertools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from .records import RecordError, load

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


class NotSaved(RuntimeError):
    """A run's records cannot be kept: the disk is full, another run is at it, …"""


def choose(folder, machine, names):
    """(where the records of these experiments may go, [why not where they would first]).

    machine: a Machine. The first of NAME, NAME-2, NAME-3, … in which they would replace
    no committed file and in which all records are of this machine. Where git cannot say
    what is committed, no file at all is replaced.
    """
    passed: list[str] = []
    for number in itertools.count(1):
        place = folder / (machine.name if number == 1 else f"{machine.name}-{number}")
        why = _taken(place, [f"{name}.json" for name in names], machine)
        if not why:
            return place, passed
        passed.append(f"{place}: {why}")


def _taken(place, files, machine):
    """Why a folder is not for these files; "" if it is."""
    known = _committed(place)
    there = {name for name in files if (place / name).exists()}
    if known is None and there:
        return f"{min(there)} exists, and there is no git to bring it back"
    if committed := set(files) & (known or set()):
        return f"{min(committed)} is committed"
    for path in sorted(place.glob("*.json")):
        try:
            found = load(path).machine
        except RecordError:
            return f"{path.name} cannot be read"
        for field in dataclasses.fields(machine):
            was, now = getattr(found, field.name), getattr(machine, field.name)
            if was != now and field.name != "name":
                return (
                    f"{path.name} is from another machine ({field.name} {was}, not {now})"
                )
    return ""


def _committed(place):
    """The names of files in a folder that git keeps, there or not; None without git."""
    command = ("git", "ls-files", "-z", "--", place.name)
    try:
        done = subprocess.run(
            command, cwd=place.parent, capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return None if done.returncode else {Path(p).name for p in done.stdout.split("\0") if p}


def hold(place):
    """Let no other run have this folder while this process lives.

    The lock is a file of this machine's own, since network file systems may have no locks.
    It stays: whoever deleted it could delete one that another run has just locked.
    """
    if fcntl is None:
        return None
    named = hashlib.sha256(os.fsencode(place.resolve())).hexdigest()[:16]
    path = Path(tempfile.gettempdir()) / f"hfusion-{os.getuid()}-{named}.lock"
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise NotSaved(f"another run is at work in {place}") from error
    return handle


def let_go(handle):
    """Let others have a folder that was held, if it was."""
    if handle is not None:
        os.close(handle)


def mend(place):
    """Bring back what `exchange` had put away when it was killed between two steps."""
    away = place.with_name(f".{place.name}.before")
    if away.exists() and not place.exists():
        os.rename(away, place)
    elif away.exists():
        shutil.rmtree(away)


def exchange(new, old):
    """Let two folders change places, in one step where the system has one for it."""
    try:
        here, swap = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux
        call = ctypes.CDLL(None).renameat2
        if call(here, os.fsencode(new), here, os.fsencode(old), swap) == 0:
            return
    except (AttributeError, OSError, TypeError):  # another system
        pass
    away = old.with_name(f".{old.name}.before")
    try:
        os.rename(old, away)
        os.rename(new, old)
    except BaseException:
        if away.exists() and not old.exists():
            os.rename(away, old)
        raise
    os.rename(away, new)
