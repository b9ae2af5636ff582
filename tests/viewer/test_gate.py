"""The door where it differs from the everyday one: tickets, other hosts; and what may be ordered."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from lungwave.phantom.pathology import CATEGORIES
from lungwave.sample import SAMPLERS
from lungwave.types import UsageError
from lungwave.viewer import orders
from lungwave.viewer.gate import Gate, Keys
from viewer_process import viewing


async def nobody(scope: object, receive: object, send: object) -> None:
    """No application."""


@pytest.mark.parametrize(
    ("host", "here", "exposed"),
    [
        ("127.0.0.1:80", True, True),
        ("127.0.0.1", True, True),
        ("lab.example", True, True),
        ("LAB.example:80", True, True),
        ("192.168.1.4", False, True),
        ("[fe80::1]", False, True),
        ("evil.example", False, False),
        ("lab.example:81", False, False),
    ],
)
def test_exposed_viewers_answer_to_numbers_but_not_to_foreign_names(host: str, here: bool, exposed: bool) -> None:
    """A rebinding attack needs a name of its own; a number is nobody's name."""
    assert Gate(nobody, Keys(), 80, "lab.example", exposed=False)._ours(host) == here
    assert Gate(nobody, Keys(), 80, "lab.example", exposed=True)._ours(host) == exposed


def test_ticket_works_once() -> None:
    keys = Keys()
    ticket = keys.ticket()
    guesses = (ticket, ticket, "", "\u00e9")
    assert [keys.admits(guess) for guess in guesses] == [True, False, False, False]
    assert keys.admits(keys.token)
    assert keys.admits(keys.token)
    assert Keys().token != keys.token
    assert len(keys.token) == 43  # 256 bits


def test_browser_is_started_with_a_ticket_and_not_with_the_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its command line is there for everybody to see."""
    opened, folder = tmp_path / "opened", tmp_path / "temporary"
    folder.mkdir()
    script = tmp_path / "browser"
    script.write_text(f"#!/bin/sh\necho \"$1\" > '{opened}'\n")
    script.chmod(0o755)
    monkeypatch.setenv("BROWSER", str(script))
    monkeypatch.setenv("DISPLAY", ":0")
    code = "from lungwave.viewer.serve import serve\nserve(say=lambda url: print(url, flush=True))"
    with viewing(folder, code=code) as viewer:
        end = time.monotonic() + 20
        while not (opened.exists() and opened.read_text().strip()):
            assert time.monotonic() < end
            time.sleep(0.05)
        address = opened.read_text().strip()
        assert viewer.token not in address
        path = address.removeprefix(f"http://127.0.0.1:{viewer.port}")
        assert viewer.ask("GET", path, token=False)[0] == 200
        assert viewer.ask("GET", path, token=False)[0] == 403


def test_what_is_offered_is_there() -> None:
    assert set(orders.SAMPLERS) <= set(SAMPLERS)
    assert orders.CATEGORIES == CATEGORIES
    for kind in orders.ORDERS.values():
        assert orders.checked(kind, {}, ()) == kind()
        assert orders.checked(kind, vars(kind()), ()) == kind()  # every default is allowed
    with pytest.raises(UsageError, match="choose one of , mine"):
        orders.checked(orders.FileOrder, {"model": "theirs"}, ("mine",))
