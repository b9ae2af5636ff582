"""The old name of `lungwave legacy image_train`."""

import sys

from lungwave.cli import main

if __name__ == "__main__":
    sys.exit(main(["legacy", "image_train", *sys.argv[1:]]))
