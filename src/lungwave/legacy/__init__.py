"""The original report's commands, with their flags, files and logs, on the house's parts.

``lungwave legacy image_train ...`` is what ``python image_train.py ...`` was in OpenAI's improved-diffusion.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from lungwave.legacy import flags as known
from lungwave.types import RESEARCH_USE, LungwaveError, UsageError


def main(words: Sequence[str]) -> int:
    """Run the command that the words name; 0 when it is done. Errors are raised."""
    if not words or words[0] in ("-h", "--help"):
        print(help_text())
        return 0
    command, *rest = words
    if command not in known.COMMANDS:
        near = difflib.get_close_matches(command, known.COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known.COMMANDS)}"
        raise UsageError(f"unknown legacy command '{command}'; {hint}")
    if {"-h", "--help"} & set(rest):
        known.parser(command).print_help()
        return 0
    flags = known.parse(command, rest)
    with out_of_memory(flags), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected pickle protocol")  # such a file is refused in words of our own
        run(command, flags)
    return 0


def run(command: str, flags: known.Flags) -> None:
    """One command; each imports what it needs."""
    if command.endswith("_train"):
        from lungwave.legacy.train import train

        train(flags)
    elif command.endswith("_sample"):
        from lungwave.legacy.sample import sample

        sample(flags)
    elif command == "image_nll":
        from lungwave.legacy.nll import nll

        nll(flags)
    else:
        from lungwave.data.maps import convert_maps

        found = convert_maps(flags.src, flags.dst, scale=flags.scale, pool=True)
        rows, columns = found["shape"]
        left = found["columns_left_out"]
        print(
            f"{found['maps']} maps, {rows} x {columns}, 100 % air = {found['scale']}"
            + (f", {left} columns left out" if left else "")
            + f" -> {found['destination']}"
        )


@contextmanager
def out_of_memory(flags: known.Flags) -> Iterator[None]:
    """Say what to do where memory ends; torch says it with a RuntimeError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        words = ("out of memory", "allocate memory")
        if isinstance(error, RuntimeError) and not any(word in str(error) for word in words):
            raise
        small = max(1, getattr(flags, "batch_size", 1) // 4)
        cure = f"--microbatch {small} or --use_checkpoint True" if "microbatch" in flags else f"--batch_size {small}"
        raise LungwaveError(f"out of memory; try {cure}, which changes no result") from error


def help_text() -> str:
    """The commands."""
    rows = "\n".join(f"  {name:<28} {what}" for name, (what, _, _) in known.COMMANDS.items())
    return f"""\
usage: lungwave legacy COMMAND [--FLAG VALUE ...]

The commands of OpenAI's improved-diffusion and of the report that lungwave starts from, unchanged.

commands:
{rows}

`lungwave legacy COMMAND --help` lists its flags and their defaults. {RESEARCH_USE}"""
