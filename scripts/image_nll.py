"""The old name of `lungwave legacy image_nll`."""

import sys

from lungwave.cli import main

if __name__ == "__main__":
    sys.exit(main(["legacy", "image_nll", *sys.argv[1:]]))
