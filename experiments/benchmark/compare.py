r"""Compare methods as `vimunet compare` does, with the numbers of the ViM-UNet paper beside them.

The published numbers are of other training and test images; they get a panel of their own in the
figure and are never ranked among what was measured.

    python experiments/benchmark/compare.py NAME=FOLDER ... --labels DIR --images DIR \
        --published "LIVECell boundaries"
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from published import published_scores

from vimunet.cli import compare

PUBLISHED = ("LIVECell boundaries", "LIVECell distances", "CREMI boundaries")


def main() -> int:
    flags = argparse.ArgumentParser(description="Compare methods.")
    compare.add_arguments(flags)
    flags.add_argument("--published", choices=PUBLISHED, help="numbers of the paper to show beside")
    options = flags.parse_args()
    published = published_scores(*options.published.split()) if options.published else None
    return compare.run(options, published)


if __name__ == "__main__":
    sys.exit(main())
