"""The file of all predictions: python -m sideways.predictions FILE. It replaces none."""

import argparse
import dataclasses
import datetime
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from hfusion import models
from hfusion.kernels import compiled, two_launches

from .. import arithmetic
from ..experiments import launch_overhead, network, stage, variants
from .ranges import EXPERIMENTS, predicted
from .works import Case

DEVICE = "NVIDIA H200"  # what the SXM part calls itself
FORMAT = 1


def cases() -> dict[str, list[Case]]:
    """{experiment: the parameters of each case that is predicted}.

    Of `module_ladder` not float16 in NCHW and float32 in NHWC; of `stage` not bfloat16,
    which would be the same as float16; of `network` not torchvision's.
    """
    ladders = [
        {"module": module, "batch": batch, "dtype": dtype, "layout": layout}
        for dtype, layout in variants.USUAL.items()
        for module, batch in (*((row, 1) for row in models.TABLE), ("3a", 32))
    ]
    return {
        "module_ladder": ladders,
        "stage": [c for c in stage.cases("cuda") if c["dtype"] != "bfloat16"],
        "launch_overhead": launch_overhead.cases("cuda"),
        "network": [c for c in network.cases("cuda") if c["network"] == "GoogLeNet"],
    }


def made(commit: str, listed: dict[str, list[Case]] | None = None) -> dict:
    """All predictions, as the file has them.

    commit: of the kernels that they are about. listed: in place of `cases`.
    """
    about, _ = compiled.read()
    code = [
        [launch, tile, row.issued, row.multiplying, row.buffers, row.resident]
        for (launch, dtype, tile), row in arithmetic.CODE.items()
        if dtype == "float16" and tile in two_launches.TILES
    ]
    found = {
        experiment: [
            {"parameters": case, "works": works} | predicted(experiment, case, works)
            for case in each
            for works in [EXPERIMENTS[experiment][0](case)]
        ]
        for experiment, each in (listed or cases()).items()
    }
    given = {name: dataclasses.asdict(one) for name, one in arithmetic.INPUTS.items()}
    return {
        "format": FORMAT,
        "device": DEVICE,
        "date": datetime.date.today().isoformat(),
        "commit": commit,
        "compiled": about,
        "code": code,
        "inputs": given,
        "left_out": arithmetic.LEFT_OUT,
        "experiments": found,
    }


def text(content: dict) -> str:
    """The file: JSON with one line for an input and for a case."""
    short: dict[str, Any] = {"ensure_ascii": False, "separators": (",", ":")}

    def lines(part, indent):
        if isinstance(part, list):
            rows = [json.dumps(row, **short) for row in part]
        else:
            rows = [f"{json.dumps(k)}: {json.dumps(v, **short)}" for k, v in part.items()]
        return (",\n" + indent).join(["", *rows])[2:]

    head = {k: v for k, v in content.items() if k not in ("inputs", "experiments")}
    parts = ",\n".join(
        f' "{name}": [\n{lines(rows, "  ")}\n ]'
        for name, rows in content["experiments"].items()
    )
    return (
        f"{{\n{lines(head, '')},\n"
        f'"inputs": {{\n{lines(content["inputs"], " ")}\n}},\n'
        f'"experiments": {{\n{parts}\n}}\n}}\n'
    )


def last_change(path: str) -> str:
    """The commit that changed a file last."""
    command = ["git", "log", "-1", "--format=%H", "--", path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def main(arguments: list[str] | None = None) -> int:
    """Write the file; 2 if it is there already."""
    parser = argparse.ArgumentParser(prog="python -m sideways.predictions")
    parser.add_argument("file", type=Path)
    path = parser.parse_args(arguments).file
    if path.exists():
        print(f"{path} is there already: predictions are made once")
        return 2
    content = text(made(last_change(str(Path(two_launches.__file__).parent))))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
