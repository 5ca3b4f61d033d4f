"""Run the command line as `python -m vimunet.cli`."""

import sys

from vimunet.cli import main

if __name__ == "__main__":
    sys.exit(main())
