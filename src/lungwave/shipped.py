"""Models by name: a folder, the training that made it, or one of those that come with the package."""

from __future__ import annotations

from pathlib import Path

from lungwave.types import UsageError

SHIPPED = Path(__file__).resolve().parent / "assets" / "models"
MODEL = "model"  # folder of the finished model in that of its training
# How names of shipped models begin that draw maps, that read echoes, and that do so node by node.
PRIOR, ECHOES, RESOLVED = ("prior-",), ("posterior-", "ridge-"), ("resolved-",)


def model_folder(name: Path, kinds: tuple[str, ...]) -> Path:
    """Folder of the model ``name``; ``kinds`` are beginnings of the names of shipped ones that are meant.

    Raises UsageError for a name that is neither, with the shipped ones.
    """
    if (name / MODEL).is_dir():
        return name / MODEL
    if name.exists():
        return name
    known = sorted(path.name for path in SHIPPED.iterdir() if path.name.startswith(kinds)) if SHIPPED.is_dir() else []
    if str(name) in known:
        return SHIPPED / name
    raise UsageError(
        f"{name}: no such folder; give the folder of a model, or a shipped one: {', '.join(known) or 'none here'}"
    )
