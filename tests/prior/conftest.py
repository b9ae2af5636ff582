"""Trainings in these tests run on one thread, as in tests/training."""

from training.conftest import one_thread

__all__ = ["one_thread"]
