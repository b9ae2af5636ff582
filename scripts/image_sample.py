"""The old name of `lungwave legacy image_sample`."""

import sys

from lungwave.cli import main

if __name__ == "__main__":
    sys.exit(main(["legacy", "image_sample", *sys.argv[1:]]))
