"""Run-time type checker of the tests: beartype that takes an int where a float is annotated, as typing does."""

from __future__ import annotations

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
