"""How jobs and viewers end: cancelled, killed, interrupted, out of time; nothing runs on, nothing is left on disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lungwave.posterior.reconstruct import bundled_model
from lungwave.runs import read_frames, reconstruct_frames
from lungwave.viewer import private
from viewer_process import LONG, QUICK, Viewer, children, gone, until, viewing

# ------------------------------------------------------------------------------------------------------------- one job


def test_numbers_are_those_of_the_command_line(viewer: Viewer, rf: Path) -> None:
    """The same file, model, samples and seed as `lungwave reconstruct` gives the same result, to float32."""
    status, answer = viewer.upload(rf.name, rf.read_bytes(), samples=8, seed=3)
    assert status == 201
    job = viewer.wait(answer["id"], "done")
    facts, arrays = viewer.result(job["id"])
    (expected,) = reconstruct_frames(*read_frames(rf), bundled_model(), samples=8, seed=3)
    whole, table = expected.whole, facts["frames"][0]["table"]
    assert whole is not None
    assert whole.truth is not None
    assert [table["whole"][name] for name in ("estimate", "lower", "upper", "truth")] == pytest.approx(
        [whole.estimate, whole.lower, whole.upper, whole.truth], abs=1e-6
    )
    for name, value in (("mean", expected.aeration), ("lower", expected.lower), ("upper", expected.upper)):
        assert arrays[f"0/{name}"] == pytest.approx(value, abs=1e-6)
    assert expected.posterior is not None
    assert arrays["0/samples"] == pytest.approx(expected.posterior.samples, abs=1e-6)
    assert arrays["0/information"] == pytest.approx(expected.posterior.information, abs=1e-6)
    assert table["case"] == f"{rf.name}, frame 0 of 1"
    status, headers, report = viewer.ask("GET", f"/api/jobs/{job['id']}/report")
    assert status == 200
    assert headers["content-disposition"] == 'attachment; filename="lungwave-report.html"'
    assert f"{100 * whole.estimate:.0f}".encode() in report
    assert b"<script" not in report
    assert b"lungwave-view-" not in report
    assert viewer.on_disk() == []


def test_upload_is_erased_while_its_job_still_runs(viewer: Viewer, rf: Path) -> None:
    _, answer = viewer.upload("lung.h5", rf.read_bytes(), samples=64, steps=64)
    until(lambda: viewer.job(answer["id"])["phase"] == "drawing samples")
    assert not [name for name in viewer.on_disk() if name.startswith("upload")]
    viewer.drop(answer["id"])
    until(lambda: viewer.on_disk() == [])


def test_cancel_in_mid_job_ends_its_process_and_the_next_job_runs(viewer: Viewer) -> None:
    worker = viewer.worker()
    identity = viewer.order("phantom", **LONG)
    next_one = viewer.order("prior", count=1, steps=4)
    job = until(lambda: found if (found := viewer.job(identity))["share"] > 0.36 else None)
    assert job["phase"] == "drawing samples"
    assert 1 < job["left"] < 600
    assert viewer.job(next_one)["ahead"] == 1
    process = viewer.at_work(identity)
    viewer.drop(identity)
    assert viewer.job(identity)["state"] == "cancelled"
    until(lambda: gone(process), 5)
    assert viewer.ask("GET", f"/api/jobs/{identity}/result")[0] == 404
    assert viewer.wait(next_one, "done")["state"] == "done"
    assert viewer.worker() == worker
    until(lambda: viewer.on_disk() == [], 5)


def test_cancelled_while_waiting_never_runs(viewer: Viewer) -> None:
    first = viewer.order("phantom", **LONG)
    second = viewer.order("phantom", **QUICK)
    viewer.drop(second)
    assert viewer.job(second)["state"] == "cancelled"
    assert viewer.job(second)["seconds"] == 0
    viewer.drop(first)
    viewer.drop(second)  # forgets it
    assert second not in [job["id"] for job in viewer.json("/api/jobs")["jobs"]]
    assert viewer.ask("DELETE", f"/api/jobs/{second}")[0] == 404


@pytest.mark.parametrize("whose", ["job", "worker"])
def test_process_that_dies_is_said_and_replaced(viewer: Viewer, whose: str) -> None:
    """As where the system runs out of memory."""
    identity = viewer.order("phantom", **LONG)
    process, worker = viewer.at_work(identity), viewer.worker()
    os.kill(process if whose == "job" else worker, signal.SIGKILL)
    job = viewer.wait(identity, "failed")
    assert "memory was short" in job["message"]
    until(lambda: gone(process), 5)
    again = viewer.order("prior", count=1, steps=4)
    assert viewer.wait(again, "done")["result"]


def test_withheld_is_a_result_with_a_reason(viewer: Viewer, foreign_rf: Path) -> None:
    _, answer = viewer.upload("other.h5", foreign_rf.read_bytes(), **QUICK)
    viewer.wait(answer["id"], "done")
    facts, arrays = viewer.result(answer["id"])
    table = facts["frames"][0]["table"]
    assert table["withheld"].startswith("Outside the trained range: ")
    assert table["whole"] is None
    assert set(arrays) == {"0/bmode", "0/rf"}


def test_same_chest_with_more_disease_holds_less_air(viewer: Viewer) -> None:
    truths = []
    for severity in (0.0, 1.0):
        identity = viewer.order("phantom", category="interstitial", severity=severity, seed=11, model="ridge-tiny")
        viewer.wait(identity, "done")
        facts, arrays = viewer.result(identity)
        truths.append(facts["frames"][0]["table"]["whole"]["truth"])
        assert arrays["air"].shape == arrays["sound_speed"].shape
    assert truths[1] < truths[0] - 0.1


def test_walk_begins_and_ends_at_the_two_lungs(viewer: Viewer) -> None:
    drawn = viewer.order("prior", count=3, seed=5)
    walked = viewer.order("morph", start=0, end=2, frames=5, seed=5)
    viewer.wait(walked, "done")
    lungs, way = (viewer.result(identity)[1]["maps"] for identity in (drawn, walked))
    assert way[0] == pytest.approx(lungs[0], abs=1e-4)
    assert way[-1] == pytest.approx(lungs[2], abs=1e-4)
    assert abs(way[2] - lungs[0]).mean() > 0.01


# ---------------------------------------------------------------------------------------------------------- the viewer


def test_killed_viewer_leaves_no_process_and_no_file(tmp_path: Path, rf: Path) -> None:
    """kill -9 in mid-job: worker and keeper end by themselves, and the folder goes."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    with viewing(folder) as viewer:
        _, answer = viewer.upload("lung.h5", rf.read_bytes(), samples=64, steps=64)
        until(lambda: viewer.job(answer["id"])["phase"] == "drawing samples", 120)
        processes = [*children(viewer.process.pid), viewer.at_work(answer["id"])]
        assert len(processes) == 3  # keeper, worker, job
        viewer.process.send_signal(signal.SIGKILL)
        viewer.process.wait()
        until(lambda: all(map(gone, processes)), 10)
        until(lambda: list(viewer.temporary.glob("lungwave-view-*")) == [], 10)


@pytest.mark.parametrize(
    ("number", "code", "complaint"),
    [(signal.SIGINT, 0, ""), (signal.SIGTERM, 143, "lungwave: error: terminated; rerun the same command to go on\n")],
)
def test_stop(tmp_path: Path, rf: Path, number: int, code: int, complaint: str) -> None:
    """In the middle of a job that the command line asked for; Ctrl-C is no failure; the file itself is left alone."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    with viewing(folder, rf) as viewer:
        processes = until(lambda: found if len(found := children(viewer.process.pid)) == 2 else None)
        assert [job["title"] for job in viewer.json("/api/jobs")["jobs"]] == [rf.name]
        viewer.process.send_signal(number)
        assert viewer.process.wait(20) == code
        until(lambda: all(map(gone, processes)), 10)
        assert list(folder.iterdir()) == []
        assert rf.exists()
    out, err = viewer.said
    assert err == complaint
    assert rf.name not in out


LIMITED = """
from lungwave.viewer.limits import Limits
from lungwave.viewer.serve import serve
serve(browser=False, limits=Limits(reading=0.001, waiting=2), say=lambda url: print(url, flush=True))
"""


def test_slow_file_and_full_queue(tmp_path: Path, rf: Path) -> None:
    """A file that takes longer to read than allowed is given up; a queue that is full says so."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    with viewing(folder, code=LIMITED) as viewer:
        queued = [viewer.upload("slow.h5", rf.read_bytes())[1]["id"] for _ in range(2)]
        status, answer = viewer.upload("one more.h5", rf.read_bytes())
        assert status == 400
        assert answer["error"] == "2 jobs are waiting already; wait for one, or cancel one"
        jobs = [viewer.wait(identity, "failed", "done") for identity in queued]
        assert jobs[0]["message"] == "stopped after 0.001 s: the file took too long to read; is it damaged?"
        assert viewer.on_disk() == []


def test_sweep_takes_what_the_dead_left_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / private.LOCK).touch()
    for name in ("dead", "open", "starting"):
        (tmp_path / f"{private.PREFIX}{name}").mkdir(mode=0o700)
    (tmp_path / f"{private.PREFIX}dead" / private.LOCK).touch()
    (tmp_path / f"{private.PREFIX}open" / private.LOCK).touch()
    (tmp_path / f"{private.PREFIX}open").chmod(0o755)  # not one of ours
    (tmp_path / f"{private.PREFIX}link").symlink_to(elsewhere)
    with private.private_folder() as alive:
        assert alive.stat().st_mode & 0o777 == 0o700
        private.sweep()
        assert {path.name.removeprefix(private.PREFIX) for path in tmp_path.iterdir()} == {
            "open", "starting", "link", "elsewhere", alive.name.removeprefix(private.PREFIX),
        }  # fmt: skip
    assert not alive.exists()
    assert (elsewhere / private.LOCK).exists()


def test_orphaned_worker_is_not_started(tmp_path: Path) -> None:
    """A worker whose viewer has ended before it could ask to be ended with it."""
    words = [sys.executable, "-P", "-m", "lungwave.viewer.worker", "1", "{}", str(tmp_path)]
    assert subprocess.run(words, timeout=60, check=False).returncode == 1


def test_worker_without_forks(tmp_path: Path) -> None:
    """As on systems other than Linux: jobs run in the worker itself, which ends when it is told to stop."""
    model = Path(private.__file__).parents[1] / "assets" / "models" / "ridge-tiny"
    words = [sys.executable, "-P", "-m", "lungwave.viewer.worker", str(os.getpid()), "{}", str(model), "plain"]
    order = {"job": "1", "kind": "prior", "settings": {"count": 1, "steps": 4}, "folder": str(tmp_path)}
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        print(json.dumps(order), file=worker.stdin, flush=True)
        said = []
        while not said or said[-1]["state"] != "ended":
            said.append(json.loads(worker.stdout.readline()))
        print(json.dumps({"stop": True}), file=worker.stdin, flush=True)
        assert worker.wait(20) == 0
    assert [line["state"] for line in said if line["state"] != "running"] == ["ready", "shown", "done", "ended"]
    assert {path.name for path in tmp_path.iterdir()} == {"result.json", "arrays.bin"}
