r"""Compare methods as `vimunet compare` does, with the numbers of the ViM-UNet paper beside them.

The published numbers are of other training and test images; they get a panel of their own in the
figure and are never ranked among what was measured.

    python experiments/benchmark/compare.py NAME=FOLDER ... --labels DIR --images DIR \
        --published "LIVECell boundaries"
"""

import argparse
import sys

from published import published_scores

from vimunet.cli import compare


def main() -> int:
    flags = argparse.ArgumentParser(description="Compare methods.")
    compare.add_arguments(flags)
    flags.add_argument(
        "--published",
        metavar="'DATA MAPS'",
        help="numbers of the paper to show beside, 'LIVECell boundaries' for example",
    )
    options = flags.parse_args()
    published, program = None, ["python", "experiments/benchmark/compare.py"]
    if options.published is not None:
        data, _, maps = options.published.partition(" ")
        published = published_scores(data, maps)
        program += ["--published", options.published]
    return compare.run(options, published, program)


if __name__ == "__main__":
    sys.exit(main())
