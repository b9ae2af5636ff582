"""The page in a real browser: what it paints, reads out, cancels and refuses; headless Chromium through Playwright."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lungwave.types import RESEARCH_USE
from lungwave.viewer import payload
from viewer_process import LONG, UPLOAD, Viewer, until

WAIT = 90_000  # [ms]
FOUR = ("bmode", "mean", "width", "information")


def complains(said: Any) -> bool:
    """Whether a line of the console is a complaint; that pixels are read often is these tests' own doing."""
    return said.type in ("error", "warning") and not said.text.startswith("Canvas2D: Multiple readback")


class Watched:
    """A page with all that it asked for and all that it complained about."""

    def __init__(self, page: Any, viewer: Viewer) -> None:
        self.page, self.viewer = page, viewer
        self.asked: list[str] = []
        self.complaints: list[str] = []
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("console", lambda said: self.complaints.append(said.text) if complains(said) else None)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.set_default_timeout(WAIT)
        page.goto(viewer.url)
        page.wait_for_selector(".case")

    def upload(self, path: Path) -> dict[str, Any]:
        """Drop a file and wait for its result; the job."""
        self.page.set_input_files("#file", path)
        self.wait("!document.getElementById('waiting').hidden")
        self.page.wait_for_selector("#result .panel")
        return self.viewer.json("/api/jobs")["jobs"][-1]

    def wait(self, expression: str) -> None:
        """Until it is true; asked from here, because the page's policy lets nothing be evaluated inside."""
        until(lambda: self.page.evaluate(expression), WAIT / 1000)

    def settle(self) -> None:
        """Until the panels are drawn."""
        self.wait("document.querySelector('figure[data-name=bmode] canvas').width > 100")
        self.page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def place(self, panel: str, facts: dict[str, Any], row: int, column: int) -> tuple[float, float]:
        """Where a pixel of a panel is on the screen, in the margins of panels.js."""
        box = self.page.locator(f"figure[data-name={panel}] canvas.over").bounding_box()
        room = box["width"] - 30 - 8
        aspect = facts["nz"] * facts["dz"] / (facts["nx"] * facts["dx"])
        width = min(room, 460 / aspect)
        left = box["x"] + 30 + (room - width) / 2
        return left + (column + 0.5) / facts["nx"] * width, box["y"] + 6 + (row + 0.5) / facts["nz"] * width * aspect

    def colour(self, panel: str, x: float, y: float) -> tuple[int, ...]:
        """What is painted at a place on the screen."""
        found = self.page.evaluate(
            """([panel, x, y]) => {
                const canvas = document.querySelector(`figure[data-name=${panel}] canvas`);
                const box = canvas.getBoundingClientRect();
                const at = [(x - box.left) * canvas.width / box.width, (y - box.top) * canvas.height / box.height];
                return [...canvas.getContext("2d").getImageData(Math.floor(at[0]), Math.floor(at[1]), 1, 1).data];
            }""",
            [panel, x, y],
        )
        return tuple(found[:3])

    def read(self, name: str) -> float:
        """A number of the read-out."""
        return float(self.page.get_attribute(f"#readout [data-name={name}]", "data-value"))

    def finish(self) -> None:
        """The laws of every page: all that it asked for is local, and nothing went wrong."""
        base = f"http://127.0.0.1:{self.viewer.port}/"
        assert self.asked
        assert [url for url in self.asked if not url.startswith((base, "data:image/svg+xml,"))] == []
        assert self.complaints == []


@pytest.fixture
def watched(browser: Any, viewer: Viewer) -> Iterator[Watched]:
    """A page of 1280 x 900 whose laws are checked at the end."""
    yield from opened(browser, viewer, width=1280, height=900)


@pytest.fixture
def phone(browser: Any, viewer: Viewer) -> Iterator[Watched]:
    """A page of 375 x 812 with touch, dark."""
    yield from opened(browser, viewer, width=375, height=812, has_touch=True, color_scheme="dark")


def opened(browser: Any, viewer: Viewer, width: int, height: int, **context: Any) -> Iterator[Watched]:
    """A page that is closed afterwards."""
    held = browser.new_context(viewport={"width": width, "height": height}, **context)
    page = Watched(held.new_page(), viewer)
    yield page
    page.finish()
    held.close()


def test_from_upload_to_pictures_numbers_and_report(watched: Watched, viewer: Viewer, rf: Path, tmp_path: Path) -> None:
    page = watched.page
    job = watched.upload(rf)
    watched.settle()
    facts, arrays = viewer.result(job["id"])
    one = facts["frames"][0]
    where, size = one["map"], (one["map"]["nz"], one["map"]["nx"])
    # four panels are painted, each pixel in the colour that the report gives its value
    scales = payload.scales()["scales"]
    for panel, scale in (("mean", "aeration"), ("width", "width"), ("information", "information")):
        values = arrays[f"0/{panel}"]
        for row, column in ((3, 8), (9, 31), (5, 52)):
            x, y = watched.place(panel, where, row, column)
            table = scales[scale]["table"]
            expected = table[min(255, int(values[row, column] * 256))]
            shown = watched.colour(panel, x, y)
            assert np.abs(np.array(shown) - list(bytes.fromhex(expected[1:]))).max() <= 1, (panel, row, column)
    echo = {watched.colour("bmode", *watched.place("bmode", one["bmode"], row, 40)) for row in range(5, 120, 7)}
    assert len(echo) > 8
    # the cursor reads the value of the array, here and in the pictures linked to it
    for row, column in ((12, 20), (40, 50)):
        page.mouse.move(*watched.place("mean", where, row, column))
        for name in ("mean", "lower", "upper", "information", "truth"):
            assert watched.read(name) == pytest.approx(float(arrays[f"0/{name}"][row, column]), abs=1e-7)
        assert watched.read("x") == pytest.approx(where["x0"] + column * where["dx"], abs=0.06)
        assert watched.read("below") == pytest.approx(where["z0"] + row * where["dz"], abs=0.06)
        text = page.inner_text("#readout [data-name=mean]")
        assert text == f"mean {100 * arrays['0/mean'][row, column]:.1f} %"
        marked = page.eval_on_selector_all(
            "#result .pictures canvas.over",
            """all => all.map((canvas) => canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height)
                .data.some((value) => value > 0))""",
        )
        names = page.eval_on_selector_all("#result .pictures figure.panel", "all => all.map((one) => one.dataset.name)")
        assert {name for name, mark in zip(names, marked, strict=True) if mark} == {*FOUR, "truth", "error"}
    # the interval is that of the JSON, and of the report
    whole = one["table"]["whole"]
    assert page.inner_text("#interval") == f"{100 * whole['lower']:.0f}\N{EN DASH}{100 * whole['upper']:.0f} %"
    assert float(page.get_attribute("#interval", "data-lower")) == whole["lower"]
    assert float(page.get_attribute("#estimate", "data-value")) == whole["estimate"]
    assert arrays["0/mean"].shape == size
    page.wait_for_selector("#download[aria-disabled=false]")
    with page.expect_download() as download:
        page.click("#download")
    download.value.save_as(tmp_path / "report.html")
    report = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert f'<data value="{whole["lower"]}">' in report
    assert RESEARCH_USE in page.inner_text("header")
    assert viewer.on_disk() == []


def test_samples_play_and_every_sample_is_shown(watched: Watched, viewer: Viewer, rf: Path) -> None:
    page = watched.page
    job = watched.upload(rf)
    samples = viewer.result(job["id"])[1]["0/samples"]
    assert page.locator(".strip .thumb").count() == len(samples) == 32
    page.click("#play")
    watched.wait("document.getElementById('which').innerText.startsWith('Sample 3 ')")
    page.click("#play")
    shown = page.inner_text("#which")
    page.keyboard.press("]")
    number = int(re.findall(r"\d+", shown)[0])
    watched.wait(f"document.getElementById('which').innerText.startsWith('Sample {number + 1} ')")
    page.fill("#sample", "7")
    air = viewer.result(job["id"])[1]["0/sample_aeration"][6]
    assert page.inner_text("#which") == f"Sample 7 of 32, {100 * air:.0f} % air"
    where = viewer.result(job["id"])[0]["frames"][0]["map"]
    page.locator("figure[data-name=sample]").scroll_into_view_if_needed()
    page.mouse.move(*watched.place("sample", where, 20, 33))
    assert watched.read("sample") == pytest.approx(float(samples[6, 20, 33]), abs=1e-7)


def test_cancel_and_bad_file(watched: Watched, viewer: Viewer, tmp_path: Path, rf: Path) -> None:
    page = watched.page
    page.click("#options summary")
    page.fill("#how [name=samples]", "64")
    page.fill("#how [name=steps]", "64")
    page.click("[data-case=healthy]")
    watched.wait("/about \\d+ s left/.test(document.getElementById('phase')?.innerText)")
    assert 0 < int(page.get_attribute("[role=progressbar]", "aria-valuenow")) < 100
    page.click("#cancel")
    page.wait_for_selector("text=Nothing of it was kept.")
    assert viewer.json("/api/jobs")["jobs"][-1]["state"] == "cancelled"
    broken = tmp_path / "broken.h5"
    broken.write_bytes(rf.read_bytes()[:5000])
    page.set_input_files("#file", broken)
    page.wait_for_selector("#job-message:has-text('broken')")
    assert re.match(r"broken\.h5: .*; is it truncated\? copy it again", page.inner_text("#job-message"))
    (tmp_path / "large.h5").write_bytes(bytes(UPLOAD * 10**6 + 1))
    page.set_input_files("#file", tmp_path / "large.h5")
    page.wait_for_selector("#file-error:has-text('20 MB')")
    assert page.inner_text("#file-error").startswith("large.h5 has 20 MB, more than 20 MB; start 'lungwave view")
    (tmp_path / "lung.txt").write_text("no echoes")
    page.set_input_files("#file", tmp_path / "lung.txt")
    page.wait_for_selector("#file-error:not([hidden])")
    assert page.inner_text("#file-error") == "lung.txt: give a file that ends in .h5, .hdf5, .uff, .npz."


def test_withheld_is_shown_as_withheld(watched: Watched, foreign_rf: Path) -> None:
    page = watched.page
    watched.upload(foreign_rf)
    assert "Outside the trained range: the probe has 16 elements" in page.inner_text("#withheld")
    assert page.locator("#estimate").count() == 0
    names = page.eval_on_selector_all("#result figure.panel", "all => all.map((one) => one.dataset.name)")
    assert names == ["bmode", "rf"]


def test_phantom_by_keyboard_alone(watched: Watched, viewer: Viewer) -> None:
    page = watched.page
    page.keyboard.press("2")
    assert page.evaluate("document.activeElement.id") == "tab-phantom"
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("document.activeElement.id") == "tab-reconstruct"
    page.keyboard.press("2")
    focus_by_tab(page, "[name=category]")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.querySelector('[name=category]:checked').value") == "consolidation"
    focus_by_tab(page, "#phantom .main")
    page.keyboard.press("Enter")
    page.wait_for_selector("#estimate")
    watched.settle()
    job = viewer.json("/api/jobs")["jobs"][-1]
    facts, arrays = viewer.result(job["id"])
    where = facts["frames"][0]["map"]
    focus_by_tab(page, "figure[data-name=mean] canvas.over")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Home")
    row, column = (where["nz"] - 1) // 2, (where["nx"] - 1) // 2
    for key, down, across in (
        ("ArrowRight", 0, 1),
        ("ArrowDown", 1, 0),
        ("Shift+ArrowUp", -10, 0),
        ("ArrowLeft", 0, -1),
    ):
        page.keyboard.press(key)
        row, column = row + down, column + across
        assert watched.read("mean") == pytest.approx(float(arrays["0/mean"][row, column]), abs=1e-7), key
    watched.wait("document.getElementById('live').innerText.includes('mm below the pleura')")
    page.keyboard.press("?")
    assert page.evaluate("document.getElementById('guide').open")
    page.keyboard.press("Escape")
    assert not page.evaluate("document.getElementById('guide').open")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.keyboard.press("t")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != dark


def focus_by_tab(page: Any, selector: str) -> None:
    """Press Tab until an element has the focus."""
    for _ in range(80):
        page.keyboard.press("Tab")
        if page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
            return
    raise AssertionError(f"Tab does not reach {selector}")


def test_prior_draws_and_walks(watched: Watched, viewer: Viewer) -> None:
    page = watched.page
    page.click("#tab-prior")
    page.fill("#prior [name=count]", "3")
    page.click("#prior .main")
    page.wait_for_selector(".lung >> nth=2")
    page.click(".lung >> nth=0")
    page.click(".lung >> nth=1")
    assert page.inner_text("#morph") == "Walk from 2 to 1"
    page.click("#morph")
    page.wait_for_selector("#morph-air")
    jobs = viewer.json("/api/jobs")["jobs"]
    assert [job["kind"] for job in jobs] == ["prior", "morph"]
    facts, _ = viewer.result(jobs[1]["id"])
    page.click("[aria-label='Pause the walk']")
    page.fill("#morph-step", "24")
    assert page.inner_text("#morph-air") == f"{100 * facts['aeration'][24]:.0f}%"


def test_two_tabs_see_the_same_jobs(watched: Watched, viewer: Viewer) -> None:
    page = watched.page
    other = page.context.new_page()
    other.goto(f"http://127.0.0.1:{viewer.port}/")  # the cookie is enough
    other.wait_for_selector(".case")
    page.click("#options summary")
    page.fill("#how [name=samples]", "64")
    page.fill("#how [name=steps]", "64")
    page.click("[data-case=healthy]")
    other.wait_for_selector("#queue li[data-state=running]")
    other.click("#queue .drop-job")
    page.wait_for_selector("text=Nothing of it was kept.")
    other.close()


def test_closed_browser_leaves_the_queue_in_order(browser: Any, viewer: Viewer, rf: Path) -> None:
    """A page that is closed in the middle of its job: nobody waits for it, and nothing of it stays on disk."""
    held = browser.new_context()
    page = Watched(held.new_page(), viewer)
    page.page.set_input_files("#file", rf)
    job = until(lambda: next(iter(viewer.json("/api/jobs")["jobs"]), None))
    held.close()
    assert viewer.wait(job["id"], "done")["result"]
    assert viewer.on_disk() == []
    viewer.drop(job["id"])
    after = viewer.order("phantom", **LONG)
    viewer.drop(after)
    until(lambda: viewer.on_disk() == [])
    viewer.drop(after)


def test_phone_has_no_overflow_and_works_by_touch(phone: Watched, rf: Path) -> None:
    page = phone.page
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "dark"
    phone.upload(rf)
    phone.settle()
    for tab in ("reconstruct", "phantom", "prior"):
        page.tap(f"#tab-{tab}")
        assert page.evaluate("document.documentElement.scrollWidth") == 375
    page.tap("#tab-reconstruct")
    assert page.evaluate("document.documentElement.scrollWidth") == 375
    beyond = page.evaluate(
        """() => [...document.querySelectorAll("#result *, .rail *, .top *")].filter((one) => {
            const box = one.getBoundingClientRect();
            return box.width && (box.right > 376 || box.left < -1);
        }).map((one) => one.outerHTML.slice(0, 80))"""
    )
    assert beyond == []
    mean = page.locator("figure[data-name=mean] canvas.over")
    mean.scroll_into_view_if_needed()
    mean.tap()
    assert 0 <= phone.read("mean") <= 1
    small = page.evaluate(
        """() => [...document.querySelectorAll("button, select, a.button")].filter((one) => {
            const box = one.getBoundingClientRect();
            return box.width && !one.matches(".thumb") && (box.height < 30 || box.width < 30);
        }).map((one) => one.outerHTML.slice(0, 80))"""
    )
    assert small == [], "too small for a finger"


def test_ended_viewer_and_missing_token_are_said(browser: Any, viewer: Viewer) -> None:
    held = browser.new_context()
    page = held.new_page()
    answer = page.goto(f"http://127.0.0.1:{viewer.port}/")
    assert answer.status == 403
    assert "The token is missing or wrong" in page.inner_text("body")
    page.goto(viewer.url)
    page.wait_for_selector(".case")
    assert page.url == f"http://127.0.0.1:{viewer.port}/"  # the token does not stay in the address
    page.route("**/api/jobs", lambda route: route.abort())
    page.wait_for_selector("#banner:not([hidden])")
    assert "lungwave has ended" in page.inner_text("#banner")
    held.close()


def test_every_control_has_a_name(watched: Watched) -> None:
    page = watched.page
    page.click("[data-case=healthy]")
    page.wait_for_selector("#estimate")
    nameless = page.eval_on_selector_all(
        "button, input, select, canvas.over, a",
        """all => all.filter((one) => !(one.innerText?.trim() || one.getAttribute("aria-label") || one.labels?.length))
            .map((one) => one.outerHTML)""",
    )
    assert nameless == []


def test_report_prints(browser: Any, viewer: Viewer, rf: Path, tmp_path: Path) -> None:
    """On A4 nothing is clipped or split, colours that mean something are kept, dark becomes light, no page is lost."""
    job = viewer.wait(viewer.upload("lung.h5", rf.read_bytes(), samples=20)[1]["id"], "done")
    (tmp_path / "report.html").write_bytes(viewer.ask("GET", f"/api/jobs/{job['id']}/report")[2])
    viewer.drop(job["id"])
    wide, tall = round(182 / 25.4 * 96), round(271 / 25.4 * 96)  # A4 less the margins of its @page, in CSS pixels
    held = browser.new_context(viewport={"width": wide, "height": tall}, color_scheme="dark")
    page = held.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto((tmp_path / "report.html").as_uri())
    page.emulate_media(media="print")
    beyond = page.eval_on_selector_all(
        "body *",
        f"all => all.filter((one) => one.getBoundingClientRect().right > {wide + 1}).map((one) => one.outerHTML)",
    )
    assert beyond == []
    figures = page.eval_on_selector_all(
        "figure",
        """all => all.map((one) => [one.offsetHeight, getComputedStyle(one).breakInside,
            one.scrollWidth > one.clientWidth])""",
    )
    assert len(figures) >= 12
    assert all(height < tall and inside == "avoid" and not cut for height, inside, cut in figures)
    assert page.evaluate("getComputedStyle(document.querySelector('section.case')).breakBefore") == "page"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    for mark in (".track", ".legend", ".key"):
        assert page.evaluate(f"getComputedStyle(document.querySelector('{mark}')).printColorAdjust") == "exact"
    printed = page.pdf(prefer_css_page_size=True)
    assert re.findall(rb"/Count (\d+)", printed)[0] == b"3"  # how to read it, the numbers and pictures, the samples
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    held.close()
