"""Time how long Python takes to import vimunet, beyond torch, and `vimunet info` to answer.

python -m benchmarks.start
"""

import re
import subprocess
import sys
from collections import Counter
from functools import partial

from benchmarks import measure

_SEGMENT = """
import numpy, vimunet
model = vimunet.TrainedModel(vimunet.build_model("vim_n"), vimunet.Boundaries())
vimunet.segment(numpy.eye(256), model)
"""
COMMANDS = {
    "python": ["-c", "pass"],
    "import torch": ["-c", "import torch"],
    "import vimunet": ["-c", "import vimunet"],
    "import torch, and predict of vimunet": ["-c", "import torch; from vimunet import predict"],
    "import torch, and all of vimunet": ["-c", "import torch; from vimunet import *"],
    "vimunet info": ["-m", "vimunet", "info"],
    "segment an image of 256 x 256 pixels with a new vim_n": ["-c", _SEGMENT],
}
_TIME = re.compile(r"import time:\s*(\d+) \|\s*\d+ \|\s*([\w.]+)")


def main() -> None:
    flags = measure.parser(__doc__, repeats=5)
    options = flags.parse_args()
    calls = {name: partial(_run, arguments) for name, arguments in COMMANDS.items()}
    timings = measure.compare(calls, 1 if options.quick else options.repeats)
    measure.write_rows(
        options.output / "start.csv",
        [
            {"command": name, "seconds": timing.minimum, "median_seconds": timing.median}
            for name, timing in timings.items()
        ],
    )
    spent = heaviest_imports(_run(["-X", "importtime", *COMMANDS["vimunet info"]]))
    for package, seconds in spent.items():
        print(f"  {package:<20}{seconds:>9.3f} s")
    measure.write_rows(
        options.output / "imports.csv",
        [{"package": package, "seconds": seconds} for package, seconds in spent.items()],
    )


def _run(arguments: list[str]) -> str:
    """Run Python and return what it wrote to stderr."""
    done = subprocess.run(
        [sys.executable, *arguments], check=True, capture_output=True, text=True, cwd=measure.ROOT
    )
    return done.stderr


def heaviest_imports(report: str, count: int = 8) -> dict[str, float]:
    """Sum the seconds of `python -X importtime` by package and return the largest."""
    spent: Counter[str] = Counter()
    for microseconds, module in _TIME.findall(report):
        spent[module.split(".")[0]] += int(microseconds)
    return {package: total / 1e6 for package, total in spent.most_common(count)}


if __name__ == "__main__":
    main()
