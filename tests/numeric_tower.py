"""Run-time type checker of the tests: beartype, with an int where a float is annotated accepted as Python's typing does."""

from __future__ import annotations

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
