"""Pictures of the viewer and of a report for the docs: headless Chromium looks at what this script starts and makes.

    python benchmarks/viewer_pictures.py [--chromium chromium] [--out docs/images]

Needs Playwright (`pip install '.[dev]'`) and a Chromium on this machine. Writes viewer_*.png, report.png and demo.png.
"""

from __future__ import annotations

import argparse
import io
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[1]
WAIT = 120_000  # [ms]
LARGEST = 400_000  # [byte] of a picture
GAP = 16  # [pixel] between screenshots side by side
# The option --chromium of every script that looks at the viewer.
FOUND = shutil.which("chromium")
CHROMIUM: Any = {"default": FOUND, "required": FOUND is None, "help": "executable of a Chromium, where none is found"}


@contextmanager
def viewing(lungwave: list[str], *files: Path) -> Iterator[str]:
    """Address of a running viewer, started by the words of a ``lungwave`` command, with its first file."""
    words = [*lungwave, "view", "--no-browser", *map(str, files)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.send_signal(signal.SIGINT)


@contextmanager
def chromium(executable: str) -> Iterator[Any]:
    """A headless browser. A container's root has no namespaces for Chromium's own sandbox; the page is ours."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        browser.close()


def settle(page: Any, title: str) -> None:
    """Until nothing moves: the result is there, its report is written, panels are drawn."""
    page.wait_for_selector(f"#result h1:has-text('{title}')")
    page.wait_for_selector("#download[aria-disabled=false]")
    page.wait_for_timeout(500)


def point(page: Any, panel: str, across: float, down: float) -> None:
    """Put the cursor at a place of a panel, as shares of its picture."""
    box = page.locator(f"figure[data-name={panel}] canvas.over").bounding_box()
    page.mouse.move(box["x"] + 30 + across * (box["width"] - 38), box["y"] + 6 + down * (box["height"] - 38))


def save(path: Path, *shots_png: bytes) -> None:
    """What pages show, side by side, in all their colours: a palette would bend the scales."""
    shots = [Image.open(io.BytesIO(shot)).convert("RGB") for shot in shots_png]
    picture = Image.new("RGB", (sum(shot.width for shot in shots) + GAP * (len(shots) - 1), shots[0].height), "#ffffff")
    left = 0
    for shot in shots:
        picture.paste(shot, (left, 0))
        left += shot.width + GAP
    picture.save(path, optimize=True)
    size = path.stat().st_size
    if size > LARGEST:
        raise SystemExit(f"{path}: {size} bytes, more than {LARGEST}")
    print(f"{path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}: {size // 1000} kB")


def take(browser: Any, url: str, out: Path) -> None:
    """All pictures."""
    page = open_page(browser, url, 1360, 960, "light")
    page.click("[data-case=interstitial]")
    settle(page, "Interstitial")
    point(page, "mean", 0.42, 0.25)
    save(out / "viewer_light.png", page.screenshot())
    page.locator("section.samples").scroll_into_view_if_needed()
    page.evaluate("document.querySelector('section.samples').scrollIntoView()")
    page.fill("#sample", "12")
    save(out / "viewer_samples.png", page.screenshot())

    page = open_page(browser, url, 1360, 920, "dark")
    page.click("#tab-phantom")
    page.click("#categories >> text=Consolidation")
    page.fill("#severity", "70")
    page.click("#phantom .main")
    settle(page, "Consolidation")
    point(page, "bmode", 0.55, 0.55)
    save(out / "viewer_phantom.png", page.screenshot())

    page = open_page(browser, url, 1200, 1000, "light")
    page.click("#tab-prior")
    page.click("#prior .main")
    page.wait_for_selector(".lung >> nth=17")
    page.click(".lung >> nth=17")
    page.click(".lung >> nth=11")
    page.click("#morph")
    page.wait_for_selector("#morph-air")
    page.click("[aria-label='Pause the walk']")
    page.fill("#morph-step", "15")
    save(out / "viewer_prior.png", page.screenshot())

    page = open_page(browser, url, 375, 812, "dark")
    page.click("#queue li:has-text('Interstitial') .open")
    settle(page, "Interstitial")
    shots = []
    for place in ("#result h1", "figure[data-name=bmode]", "figure[data-name=width]"):
        page.evaluate("(place) => document.querySelector(place).scrollIntoView()", place)
        page.wait_for_timeout(300)
        shots.append(page.screenshot())
    save(out / "viewer_phone.png", *shots)


def open_page(browser: Any, url: str, width: int, height: int, scheme: str) -> Any:
    """A page of its own size and colours."""
    size = {"width": width, "height": height}
    page = browser.new_context(viewport=size, color_scheme=scheme).new_page()
    page.set_default_timeout(WAIT)
    page.goto(url)
    page.wait_for_selector(".case")
    return page


def take_demo(browser: Any, out: Path) -> None:
    """The report and the overview that ``lungwave demo`` makes."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "demo"
        subprocess.run([sys.executable, "-m", "lungwave", "demo", "--quiet", "--out", folder], check=True)
        page = browser.new_context(viewport={"width": 1200, "height": 2440}, color_scheme="light").new_page()
        page.goto((folder / "report.html").as_uri())
        save(out / "report.png", page.screenshot())
        shutil.copy(folder / "overview.png", out / "demo.png")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chromium", **CHROMIUM)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    options = parser.parse_args()
    with viewing([sys.executable, "-m", "lungwave"]) as url, chromium(options.chromium) as browser:
        take(browser, url, options.out)
        take_demo(browser, options.out)


if __name__ == "__main__":
    main()
