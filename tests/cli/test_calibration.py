"""``evaluate calibration``: samples of a known posterior pass, overconfident ones do not; damaged input is one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lungwave.evaluate.stein import stein_discrepancy
from lungwave.repro import stream
from lungwave.types import UsageError

CASES, MEMBERS = 300, 39


def conjugate(entries: int, narrow: float = 1.0) -> dict[str, np.ndarray]:
    """A standard normal field seen through unit noise: posterior N(y / 2, 1 / 2), drawn exactly, or too narrow."""
    generator = stream(5, "conjugate", entries)
    truth = generator.standard_normal((CASES, entries))
    seen = truth + generator.standard_normal(truth.shape)
    spread = narrow * np.sqrt(0.5)
    samples = seen[:, None] / 2 + spread * generator.standard_normal((CASES, MEMBERS, entries))
    residual = seen - truth
    return {
        "samples": samples, "truth": truth, "summary": seen / 2, "residual": residual, "noise": np.array(1.0),
        "score": (seen[:, None] / 2 - samples) / 0.5,
    }  # fmt: skip


@pytest.mark.parametrize("entries", [7, 20])
def test_an_exact_posterior_passes_every_test(answers: Callable[..., dict], tmp_path: Path, entries: int) -> None:
    np.savez("exact.npz", **conjugate(entries))
    assert answers("evaluate calibration exact.npz --dry-run")["cases"] == CASES
    found = answers("evaluate calibration exact.npz")
    assert all(found["ranks_inside"].values()) and found["tarp_inside"]
    assert len(found["ranks_inside"]) == (8 if entries == 7 else 1)
    for inside in found["inside_90"].values():
        assert inside == pytest.approx(0.9, abs=0.05)
    out = tmp_path / "lungwave-calibration"
    assert {p.name for p in out.iterdir()} == {f"calibration.{ending}" for ending in ("md", "html", "json", "png")}
    scores = json.loads((out / "calibration.json").read_text())["results"]["scores"]
    assert scores["reduced chi2 of the data"]["low"] < 1 < scores["reduced chi2 of the data"]["high"]
    assert scores["kernel Stein discrepancy"]["low"] < 0 < scores["kernel Stein discrepancy"]["high"]
    assert ("not independent" in (out / "calibration.md").read_text()) == (entries == 20)


def test_an_overconfident_posterior_is_caught(answers: Callable[..., dict], tmp_path: Path) -> None:
    np.savez("narrow.npz", **conjugate(3, 0.6))
    found = answers("evaluate calibration narrow.npz --out judged")
    assert not any(found["ranks_inside"].values()) and not found["tarp_inside"]
    assert max(found["inside_90"].values()) < 0.8
    assert "**outside**" in (tmp_path / "judged/calibration.md").read_text()
    scores = json.loads((tmp_path / "judged/calibration.json").read_text())["results"]["scores"]
    assert scores["spread over error"]["high"] < 0.8 and scores["kernel Stein discrepancy"]["low"] > 0


def test_the_stein_discrepancy_is_the_sum_over_pairs() -> None:
    """Against derivatives of the kernel by finite differences."""
    generator = stream(4, "stein")
    x, s = generator.standard_normal((6, 3)), generator.standard_normal((6, 3))
    square = np.square(x[:, None] - x).sum(2)
    length, step = np.median(square[~np.eye(6, dtype=bool)]), 1e-4

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float((length + np.square(a - b).sum()) ** -0.5)

    def pair(i: int, j: int) -> float:
        a, b, total = x[i], x[j], s[i] @ s[j] * kernel(x[i], x[j])
        for e in step * np.eye(3):
            k = int(np.argmax(e))
            total += s[i, k] * (kernel(a, b + e) - kernel(a, b - e)) / (2 * step)
            total += s[j, k] * (kernel(a + e, b) - kernel(a - e, b)) / (2 * step)
            mixed = kernel(a + e, b + e) - kernel(a + e, b - e) - kernel(a - e, b + e) + kernel(a - e, b - e)
            total += mixed / (4 * step**2)
        return total

    every = np.array([[pair(i, j) for j in range(6)] for i in range(6)])
    known = (every.sum() - np.trace(every)) / 30 / (np.trace(every) / 6)
    assert stein_discrepancy(x[None], s[None]).value == pytest.approx(known, rel=1e-5)
    with pytest.raises(UsageError, match="scores"):
        stein_discrepancy(x[None], s[None, :3])


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"samples": np.zeros((3, 4, 2))}, "give 'samples'"),
        (
            {"samples": np.zeros((3, 4, 2)), "truth": np.zeros((3, 2)), "more": np.zeros(1)},
            "holds samples, truth, more",
        ),
        ({"samples": np.zeros((3, 4, 2)), "truth": np.zeros((3, 5))}, "samples have shape (3, 4, 2)"),
        ({"samples": np.full((3, 4, 2), np.nan), "truth": np.ones((3, 2))}, "not finite"),
        ({"samples": np.zeros((3, 1, 2)), "truth": np.ones((3, 2))}, "2 samples or more"),
        ({"samples": np.array([["a"]]), "truth": np.zeros(1)}, "numbers were expected"),
        ({"samples": np.zeros((3, 4)), "truth": np.ones(3), "residual": np.ones((3, 2))}, "go together"),
    ],
)
def test_bad_input_is_one_line(answers: Callable[..., dict], tmp_path: Path, arrays: dict, said: str) -> None:
    np.savez("bad.npz", **arrays)
    assert said in answers("evaluate calibration bad.npz", code=2)["error"]
    assert not (tmp_path / "lungwave-calibration").exists()
    assert "does not exist" in answers("evaluate calibration gone.npz", code=2)["error"]
    Path("damaged.npz").write_bytes(b"PK\x03\x04 no")
    assert "not a readable NumPy file" in answers("evaluate calibration damaged.npz", code=2)["error"]
