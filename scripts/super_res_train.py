"""The old name of `lungwave legacy super_res_train`."""

import sys

from lungwave.cli import main

if __name__ == "__main__":
    sys.exit(main(["legacy", "super_res_train", *sys.argv[1:]]))
