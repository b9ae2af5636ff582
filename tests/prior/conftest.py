"""Trainings in these tests run on one thread, as in tests/training, and few images judge them at the end."""

import pytest

from training.conftest import one_thread

__all__ = ["few_judge", "one_thread"]


@pytest.fixture(autouse=True)
def few_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    """What chooses the length of the average takes longer than a small training."""
    monkeypatch.setattr("lungwave.prior.build.JUDGED", 32)
