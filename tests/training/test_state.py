"""The state file is whole at any moment: crashes between any two operations, full disks, damaged files."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lungwave.training import state
from lungwave.training.state import PREVIOUS, STATE, load_state, read, save_snapshot, save_state
from lungwave.types import LungwaveError, UsageError
from training.tiny import same, tiny


def tensors(value: float) -> dict[str, torch.Tensor]:
    return {"a": torch.full((3, 2), value), "step": torch.tensor(value), "none": torch.zeros(0)}


def test_round_trip(tmp_path: Path) -> None:
    stored = {**tensors(1.5), "layout": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)}
    save_state(tmp_path, stored, {"images": 7, "facts": {"lr": 1e-3}})
    found, about = load_state(tmp_path)
    assert same(dict(sorted(found.items())), dict(sorted(stored.items())))
    assert about == {"images": 7, "facts": {"lr": 1e-3}, "format": state.FORMAT}
    assert load_state(tmp_path / "nowhere") is None


class Died(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "no hard links"])
@pytest.mark.parametrize("how", [Died(), OSError(errno.ENOSPC, "No space left on device")], ids=["killed", "full"])
def test_wherever_saving_stops_a_whole_state_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: BaseException, links: bool
) -> None:
    """Every call that touches the disk fails in turn, before and after it had its effect."""
    wrapped = ((os, "replace"), (os, "link"), (os, "fsync"), (state, "save_file"), (Path, "unlink"))
    originals = {(owner, name): getattr(owner, name) for owner, name in wrapped}
    for moment in range(40):
        folder = tmp_path / str(moment)
        for value in (1.0, 2.0):
            save_state(folder, tensors(value), {"images": int(value)})
        calls = [0]

        def failing(owner: Any, name: str, calls: list[int] = calls, moment: int = moment) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                if name == "link" and not links:
                    raise OSError(errno.EPERM, "no links here")
                number = calls[0]
                calls[0] += 2
                if number == moment:
                    raise how
                done = originals[owner, name](*args, **kwargs)
                if number + 1 == moment:
                    raise how
                return done

            return call

        with monkeypatch.context() as patch:
            for owner, name in wrapped:
                patch.setattr(owner, name, failing(owner, name))
            try:
                save_state(folder, tensors(3.0), {"images": 3})
            except (Died, LungwaveError) as error:
                if isinstance(error, LungwaveError):
                    assert str(folder / STATE) in str(error)
                    assert "No space left" in str(error)
        found, about = load_state(folder)
        assert about["images"] in (2, 3)
        assert same(found, {name: tensors(float(about["images"]))[name] for name in found})
        save_state(folder, tensors(4.0), {"images": 4})  # and saving goes on
        assert load_state(folder)[1]["images"] == 4
        if moment >= calls[0]:
            break
    assert moment == calls[0], "every moment was tried"
    assert moment >= 8


def test_a_damaged_state_falls_back_on_the_previous_one(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        save_state(tmp_path, tensors(value), {"images": int(value)})
    whole = (tmp_path / STATE).read_bytes()
    flipped = bytearray(whole)
    flipped[-3] ^= 1
    for damaged in (whole[:-5], bytes(flipped), b"", whole[:20]):
        (tmp_path / STATE).write_bytes(damaged)
        assert load_state(tmp_path)[1]["images"] == 1
    (tmp_path / PREVIOUS).write_bytes(whole[:-5])
    with pytest.raises(LungwaveError, match=r"state\.safetensors: is damaged.*remove .* to start anew"):
        load_state(tmp_path)


def test_a_file_of_something_else_is_no_state(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / STATE)
    with pytest.raises(UsageError, match="is no training state of this version"):
        load_state(tmp_path)


def test_snapshots_are_small_and_exact_to_half_precision(tmp_path: Path) -> None:
    values = {"power-0.050/a": torch.tensor([1.0, -0.1, 3e-6]), "power-0.050/huge": torch.tensor([1e6])}
    path = save_snapshot(tmp_path, 1200, values, {"step": 3})
    found, about = read(path)
    assert (about["images"], about["step"]) == (1200, 3)
    assert found["power-0.050/a"].dtype == torch.float16
    torch.testing.assert_close(found["power-0.050/a"].float(), values["power-0.050/a"], rtol=1e-3, atol=1e-7)
    assert torch.equal(found["power-0.050/huge"], values["power-0.050/huge"])
    assert state.snapshots(tmp_path, 1199) == []
    with pytest.raises(UsageError, match="no snapshot of averaged weights up to 1199 images"):
        state.posthoc(tmp_path, 1199, 3, (0.1,))


def test_a_full_disk_stops_the_training_and_costs_one_interval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tiny(tmp_path, images=16).run()

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(state, "save_file", full)
        with pytest.raises(LungwaveError, match=r"cannot write \(No space left on device\); free space"):
            tiny(tmp_path).run()
    assert load_state(tmp_path)[1]["images"] == 16
    assert not list(tmp_path.rglob("*.part"))
    run, whole = tiny(tmp_path), tiny(None)
    assert run.run()
    assert whole.run()
    assert same(dict(run.model.state_dict()), dict(whole.model.state_dict()))


def test_a_training_that_starts_anew_forgets_foreign_snapshots(tmp_path: Path) -> None:
    save_snapshot(tmp_path, 17, {"power-0.050/a": torch.zeros(1)}, {"step": 1})
    assert tiny(tmp_path, images=32).run()
    assert [path.name for path in state.snapshots(tmp_path)] == ["000000000032.safetensors"]
