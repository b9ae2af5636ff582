"""The old name of `lungwave legacy process_data_to_1chanelPNG`."""

import sys

from lungwave.cli import main

if __name__ == "__main__":
    sys.exit(main(["legacy", "process_data_to_1chanelPNG", *sys.argv[1:]]))
