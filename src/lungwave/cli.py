"""The command ``lungwave``: picks the verb, turns errors into one line and an exit code.

Exit codes: 0 done, 1 the run failed, 2 what was asked for cannot be done as asked, 130 interrupted (Ctrl-C), 143
terminated (SIGTERM). This module imports nothing heavy, so that ``lungwave --help`` is instant; each verb imports what
it needs when it runs.
"""

from __future__ import annotations

import difflib
import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

# Verb -> (module and class, what it does). Two words where a verb has verbs of its own.
VERBS: dict[str, tuple[str, str]] = {
    "demo": ("cli_verbs.Demo", "three lungs, their echoes and what can be said about them: one report, no data needed"),
    "phantom": ("cli_verbs.Phantom", "draw lungs: anatomy, air, aeration map"),
    "maps": ("cli_verbs.Maps", "draw aeration maps without echoes: training data of a prior"),
    "simulate": ("cli_verbs.Simulate", "draw one lung and record its echoes: one RF file"),
    "generate": ("cli_verbs.Generate", "simulate many cases into a folder of RF files; rerun to resume"),
    "fit": ("cli_verbs.Fit", "train the ridge reconstructor on generated cases"),
    "train": ("cli_learn.Train", "train a diffusion prior on maps; rerun to resume"),
    "sample": ("cli_learn.Sample", "trained prior -> new maps: NPZ, PNGs and a grid"),
    "reconstruct": ("cli_verbs.Reconstruct", "RF file -> B-mode, aeration map, percent aeration with interval"),
    "report": ("cli_verbs.Report", "several RF files -> one report"),
    "view": ("cli_view.View", "recordings, phantoms and priors in the browser, on this machine alone"),
    "evaluate reconstruction": ("cli_evaluate.Reconstruction", "models on unseen cases: errors, calibration, pictures"),
    "evaluate generative": (
        "cli_evaluate.Generative",
        "generated maps beside real: distances, overlap, diversity",
    ),
    "evaluate memorisation": (
        "cli_evaluate.Memorisation",
        "are samples copies of the training? calibrated",
    ),
    "evaluate calibration": (
        "cli_evaluate.Calibration",
        "posterior samples of any program: coverage, ranks, TARP, scores",
    ),
    "legacy": ("legacy", "the commands of improved-diffusion with their own flags: image_train, image_sample ..."),
    "model info": ("cli_models.ModelInfo", "what a model holds: network, cost, and what its file does not say"),
    "model import": ("cli_models.ModelImport", "OpenAI's .pt or a diffusers folder -> a model that `sample` runs"),
    "model export": ("cli_models.ModelExport", "model -> diffusers folder, or .pt with OpenAI's names"),
    "model card": ("cli_models.ModelCard", "results of evaluations -> README.md of a model"),
    "doctor": ("cli_verbs.Doctor", "what this machine can do with lungwave, and what is wrong with it"),
    "completion": ("cli_completion.Completion", "completion of all this for bash, zsh or tcsh"),
    "data info": ("cli_data.DataInfo", "what an RF file holds"),
    "data validate": ("cli_data.DataValidate", "check an RF file against the format"),
    "data merge": ("cli_data.DataMerge", "ranges of cases from several machines -> one checked folder"),
    "data convert": ("cli_data.DataConvert", "other formats -> RF file or map images"),
}


MOMENT = 0.02  # [s] until a signal whose exception was lost is sent again


class Terminated(KeyboardInterrupt):
    """SIGTERM, as a batch system or ``kill`` sends it; whatever cleans up after Ctrl-C cleans up after it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        with _terminable():
            return _dispatch(arguments)
    except Terminated:
        return _fail("terminated; rerun the same command to go on", 143)
    except KeyboardInterrupt:
        return _fail("interrupted; rerun the same command to go on", 130)
    except BrokenPipeError:  # the reader of stdout left, as in `lungwave ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if os.environ.get("LUNGWAVE_TRACEBACK") == "1":
            raise
        return _explain(error)


@contextmanager
def _terminable() -> Iterator[None]:
    """Raise Terminated on SIGTERM; only the main thread may listen to signals.

    What is raised while Python calls back a weak reference or a finalizer, it prints and forgets; such an end, Ctrl-C's
    as well, is asked for once more a moment later.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise Terminated

    def forgotten(ignored: Any) -> None:
        if not isinstance(ignored.exc_value, KeyboardInterrupt):
            hook(ignored)
            return
        again = signal.SIGTERM if isinstance(ignored.exc_value, Terminated) else signal.SIGINT
        threading.Timer(MOMENT, os.kill, (os.getpid(), again)).start()

    before, hook = signal.signal(signal.SIGTERM, stop), sys.unraisablehook
    sys.unraisablehook = forgotten
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        sys.unraisablehook = hook


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(help_text())
        return 0
    if arguments[0] == "--version":
        from lungwave import __version__

        print(f"lungwave {__version__}")
        return 0
    if arguments[0] == "legacy":  # old flags, so it parses its own words
        from lungwave import legacy

        return legacy.main(arguments[1:])
    family = [name for name in VERBS if name.startswith(f"{arguments[0]} ")]
    if family and len(arguments) < 2:
        return _fail(f"{arguments[0]} needs one of: {', '.join(name.split()[1] for name in family)}", 2)
    if family and arguments[1] in ("-h", "--help"):
        print(help_text(family))
        return 0
    words = 2 if family else 1
    name = " ".join(arguments[:words])
    if name not in VERBS:
        near = difflib.get_close_matches(name, [*VERBS, *(verb.split()[0] for verb in VERBS)], n=1)
        cure = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(VERBS)}"
        return _fail(f"unknown command '{name}'; {cure}", 2)
    from lungwave.cli_options import run

    module, verb = VERBS[name][0].split(".")
    run(f"lungwave {name}", getattr(importlib.import_module(f"lungwave.{module}"), verb), _joined(arguments[words:]))
    return 0


def _joined(words: list[str]) -> list[str]:
    """``--flags "--a 1"`` as one word, or the parser would take its value for an option."""
    starts = [n for n, word in enumerate(words[:-1]) if word == "--flags" and " " in words[n + 1]]
    pairs = {n: f"--flags={words[n + 1]}" for n in starts}
    return [pairs.get(n, word) for n, word in enumerate(words) if n - 1 not in pairs]


def help_text(names: Sequence[str] = tuple(VERBS)) -> str:
    """The top-level help, or that of a family of verbs."""
    width = max(map(len, names))
    rows = "\n".join(f"  {name:<{width}} {VERBS[name][1]}" for name in names)
    return f"""\
usage: lungwave COMMAND [options]

Lung aeration maps, with their uncertainty, from the raw echoes of an ultrasound probe.

commands:
{rows}

options:
  -h, --help     this text; `lungwave COMMAND --help` lists the options of a command
  --version      the version

Start with `lungwave demo`. Research use only. Not a medical device."""


def _explain(error: Exception) -> int:
    from lungwave.types import LungwaveError, UsageError

    if isinstance(error, UsageError):
        return _fail(str(error), 2)
    if isinstance(error, LungwaveError):
        return _fail(str(error), 1)
    if isinstance(error, MemoryError):
        return _fail("out of memory; ask for fewer cases or workers at once", 1)
    if isinstance(error, OSError) and error.strerror:
        return _fail(f"{error.filename or 'file system'}: {error.strerror}", 1)
    return _fail(f"{type(error).__name__}: {error} (a defect of lungwave; LUNGWAVE_TRACEBACK=1 shows where)", 1)


def _fail(message: str, code: int) -> int:
    print(f"lungwave: error: {' '.join(message.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
