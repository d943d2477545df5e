"""What the benchmarks here say of the machine, and how they store what they found."""

import datetime
import json
import os
from pathlib import Path

import torch

from hfusion import timing


def about():
    """{"device": …, "torch": …}"""
    return {"device": timing.device_name(), "torch": torch.__version__}


def store(path, **found):
    """Write it whole or not at all, an entry a line. found: one list, by its name."""
    ((name, entries),) = found.items()
    head = json.dumps(about() | {"date": datetime.date.today().isoformat()})[:-1]
    lines = ",\n".join(map(json.dumps, entries))
    whole = Path(path).with_suffix(".tmp")
    whole.write_text(f'{head}, "{name}": [\n{lines}\n]}}\n', encoding="utf-8")
    os.replace(whole, path)
