"""The report: self-contained, escaped, deterministic, honest about what is withheld, on scales that never move."""

from __future__ import annotations

import csv
import html
import itertools
import json
import re
from dataclasses import fields, replace
from html.parser import HTMLParser
from pathlib import Path

import h5py
import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from scipy.ndimage import gaussian_filter

from edited import edited
from lungwave import figures, overview, report
from lungwave.acoustics.image import BMode
from lungwave.data import schema
from lungwave.data.posteriors import PICTURES, read_posteriors
from lungwave.phantom.aeration import Truth
from lungwave.posterior.summary import Band, Posterior, Reconstruction
from lungwave.types import MM, LungwaveError, UsageError
from random_fields import KINDS, posterior

EDGES = (0.0, 0.5 * MM, 1.0 * MM, 2.0 * MM, 4.0 * MM, 6.0 * MM)
REASON = "The array spans another aperture than the trained one; train a model for this probe."


def lung(
    name: str = "healthy", mean: float = 0.6, seed: int = 0, columns: int = 64, truth: bool = True
) -> Reconstruction:
    """A smooth random lung with everything that a reconstruction can carry."""
    rng = np.random.default_rng(seed)
    rows, pixel = 64, 0.1 * MM
    real = np.clip(mean + 1.5 * gaussian_filter(rng.standard_normal((rows, columns)), 4), 0, 1)
    estimate = np.clip(gaussian_filter(real, 4) + 0.03, 0, 1)
    x = (np.arange(columns) - (columns - 1) / 2) * pixel
    pleura = 3.6 * MM + 0.1 * MM * np.sin(x / (2 * MM))
    valid = np.arange(columns) < columns - 10
    depth = (np.arange(rows) + 0.5) * pixel

    def band(top: float, bottom: float) -> Band:
        inside = (depth >= top) & (depth < bottom)
        value = float(estimate[inside][:, valid].mean())
        known = float(real[inside][:, valid].mean()) if truth else None
        return Band(top, bottom, value, value - 0.06, value + 0.08, known)

    bands = tuple(band(a, b) for a, b in itertools.pairwise(EDGES))
    whole = band(EDGES[0], EDGES[-1])
    z = np.arange(112) * 0.1 * MM
    decibel = np.clip(-60 * rng.random((112, columns + 32)), -60, 0)
    return Reconstruction(
        name=name,
        method="ridge",
        bmode=BMode(decibel, (np.arange(columns + 32) - (columns + 31) / 2) * pixel, z),
        aeration=estimate,
        lower=np.clip(estimate - 0.1, 0, 1),
        upper=np.clip(estimate + 0.1, 0, 1),
        pixel=pixel,
        x=x,
        pleura_depth=pleura,
        valid=valid,
        information_depth=np.full(columns, 1.0 * MM),
        whole=whole,
        bands=bands,
        truth=Truth(
            sharp=real,
            smooth=gaussian_filter(real, 2),
            lung=np.ones(real.shape, bool),
            valid=valid,
            pleura_depth=pleura,
            pixel=pixel,
            x=x,
            bands=np.array([b.truth for b in bands]),
            band_edges=EDGES,
            whole=float(whole.truth or 0.0),
            profile=np.where(valid, real[:60].mean(0), np.nan),
        )
        if truth
        else None,
        manifest={"category": "interstitial"},
    )


def withheld() -> Reconstruction:
    full = lung("phantom disk")
    return Reconstruction(full.name, full.method, full.bmode, withheld=REASON)


def sampled(
    name: str = "sampled", mean: float = 0.5, seed: int = 0, columns: int = 64, truth: bool = True, members: int = 24
) -> Reconstruction:
    """The same lung, reconstructed as posterior samples."""
    r = lung(name, mean, seed, columns)
    assert r.truth is not None
    drawn = posterior(r.truth.smooth, mean, members, seed)
    known = r.truth if truth else None
    return Reconstruction.of(
        name, "amortized", r.bmode, drawn, pleura_depth=r.pleura_depth, truth=known, valid=r.valid, manifest=r.manifest
    )


CASES = [lung("healthy", 0.6, 1), lung("patient 7", 0.3, 2, truth=False), withheld(), lung("wide", 0.5, 3, columns=256)]
MANIFEST = {"config_sha256": "ab" * 32, "seed": 7, "versions": {"lungwave": "0.1"}, "command": "lungwave demo --seed 7"}


SAMPLED = [
    sampled("healthy", 0.6, 1),
    sampled("patient 7", 0.3, 2, truth=False, members=16),
    withheld(),
    sampled("wide", 0.5, 3, columns=256),
    lung("ridge beside", 0.5, 4),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "report.html"
    assert report.write_report(CASES, path, manifest=MANIFEST, timing={"reconstruct": 3.14}) == path
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def sampled_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = report.write_report(SAMPLED, tmp_path_factory.mktemp("sampled") / "report.html", manifest=MANIFEST)
    return path.read_text(encoding="utf-8")


@pytest.fixture(params=["page", "sampled_page"])
def any_page(request: pytest.FixtureRequest) -> str:
    found: str = request.getfixturevalue(request.param)
    return found


def section(page: str, number: int) -> str:
    return re.findall(r'<section class="case".*?</section>', page, re.S)[number]


def words(fragment: str) -> str:
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", fragment)))


class Attributes(HTMLParser):
    """All tags and attributes of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.values: list[tuple[str, str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.values += [(name, value or "") for name, value in attrs]


def test_page_needs_nothing_from_outside(any_page: str) -> None:
    page = any_page
    parsed = Attributes(page)
    assert not parsed.tags & {"script", "link", "iframe", "object", "embed", "base"}
    targets = [value for name, value in parsed.values if name in ("src", "href", "xlink:href", "srcset", "action")]
    assert targets
    assert all(value.startswith(("#", "data:image/png;base64,")) for value in targets)
    assert "http" not in page
    assert "@import" not in page
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))


def test_ids_are_unique_and_every_reference_is_met(any_page: str) -> None:
    page = any_page
    values = Attributes(page).values
    ids = [value for name, value in values if name == "id"]
    assert len(ids) == len(set(ids))
    wanted = {value[1:] for name, value in values if name.endswith("href") and value.startswith("#")}
    wanted |= set(re.findall(r"url\(#([^)]*)\)", page))
    assert wanted <= set(ids)


def test_says_research_only_how_to_read_and_where_it_comes_from(page: str) -> None:
    text = words(page)
    assert "Research use only. Not a medical device." in text
    assert "How to read this" in text
    assert "the echoes say nothing here: prior only" in text
    for fact in ("ab" * 32, "lungwave demo --seed 7", "3.1 s"):
        assert fact in text


def test_withheld_case_gives_its_reason_and_no_number(page: str) -> None:
    shown = section(page, 2)
    assert REASON in words(shown)
    assert shown.count("<svg") == 1
    assert "<data" not in shown
    assert not re.search(r"\d\s*%", words(shown))


def test_withheld_wins_over_leftover_numbers(tmp_path: Path) -> None:
    leaky = replace(lung(), withheld=REASON)
    shown = report.render([leaky], "t")
    assert shown.count("<svg") == 1
    assert "<data" not in shown
    _, path = report.write_tables([leaky], tmp_path)
    case = json.loads(path.read_text())["cases"][0]
    assert case["whole"] is None
    assert case["bands"] == []


@pytest.mark.parametrize(("given", "name"), [(CASES, "page"), (SAMPLED, "sampled_page")])
def test_numbers_of_page_csv_and_json_are_the_same(
    given: list[Reconstruction], name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    page = request.getfixturevalue(name)
    csv_path, json_path = report.write_tables(given, tmp_path, manifest=MANIFEST)
    cases = json.loads(json_path.read_text())["cases"]
    lines = list(csv.DictReader(csv_path.read_text(encoding="utf-8").splitlines()))
    for number, case in enumerate(cases):
        row = re.search(rf'<tr data-case="case-{number + 1}".*?</tr>', page, re.S)
        assert row is not None
        shown = re.findall(r'<data value="([^"]*)">([^<]*)</data>', row.group())
        whole = case["whole"] or {}
        expected = [whole[key] for key in ("estimate", "lower", "upper", "truth") if whole and whole[key] is not None]
        assert [float(value) for value, _ in shown] == expected
        assert [text for _, text in shown] == [f"{100 * value:.0f}" for value in expected]
        in_section = {float(v) for v in re.findall(r'<data value="([^"]*)">', section(page, number))}
        assert {band["estimate"] for band in case["bands"]} <= in_section
        mine = [line for line in lines if line["case"] == case["case"]]
        estimates = [band["estimate"] for band in [whole, *case["bands"]] if band]
        assert [float(line["estimate"]) for line in mine if line["estimate"]] == estimates


def test_scalars_follow_from_the_maps() -> None:
    r = lung()
    table = report.case_table(r)
    assert [band["echo_share"] for band in table["bands"]] == pytest.approx([1, 1, 0, 0, 0])  # information depth 1 mm
    assert table["whole"]["echo_share"] == pytest.approx(1 / 6, abs=1e-6)
    assert table["valid_columns"] == pytest.approx(54 / 64)
    assert table["information_depth_mm"] == pytest.approx(1.0)
    assert r.aeration is not None and r.valid is not None and r.truth is not None
    error = np.abs(r.aeration - r.truth.smooth)[:10, r.valid].mean()
    assert table["map_error_top_1mm"] == pytest.approx(error, abs=1e-6)
    profile = figures.column_profile(r)
    assert profile is not None
    np.testing.assert_allclose(profile[r.valid], r.aeration[:60, r.valid].mean(0))
    assert np.isnan(profile[~r.valid]).all()


@pytest.mark.parametrize(
    ("truth", "inside"), [(0.5, True), (0.4, True), (0.6, True), (0.39, False), (0.61, False), (np.nan, None)]
)
def test_inside_means_between_the_bounds(truth: float, inside: bool | None) -> None:
    r = replace(lung(), whole=Band(0.0, 6 * MM, 0.5, 0.4, 0.6, truth))
    assert report.case_table(r)["whole"]["inside"] is inside
    summary = report.summarise([report.case_table(r)])
    assert (summary["with_truth"], summary["inside"]) == (inside is not None, inside is True)


def test_unknown_truth_is_left_out_not_printed(tmp_path: Path) -> None:
    r = lung()
    assert r.truth is not None and r.whole is not None
    hole = np.full_like(r.truth.smooth, np.nan)
    blind = replace(
        r,
        truth=replace(r.truth, sharp=hole, smooth=hole, profile=hole[0], bands=np.full(5, np.nan), whole=float("nan")),
        whole=replace(r.whole, truth=float("nan")),
        bands=tuple(replace(b, truth=float("nan")) for b in r.bands),
    )
    shown = report.render([blind], "t", {"odd": float("nan")})
    assert not re.search(r"\bnan\b", words(shown), re.I)
    assert not re.search(r"value=\"(nan|None)\"", shown)
    _, path = report.write_tables([blind], tmp_path, manifest={"odd": float("inf")})
    case = json.loads(path.read_text(), parse_constant=pytest.fail)["cases"][0]
    assert case["whole"]["truth"] is None
    assert case["map_error_top_1mm"] is None


def test_least_a_reconstruction_can_carry_is_drawn() -> None:
    full = lung()
    bare = Reconstruction(full.name, full.method, full.bmode, aeration=full.aeration)
    shown = report.render([bare], "t")
    assert shown.count("<svg") == 3  # B-mode, map, profile
    assert "No number was given" in shown


def test_names_flags_and_reasons_are_escaped() -> None:
    nasty = "<script>alert('x')</script> & \"co\""
    r = replace(lung(nasty), flags=(nasty,), manifest={"category": nasty})
    shown = report.render([r, replace(withheld(), name=nasty, withheld=nasty)], nasty, {"command": nasty, nasty: nasty})
    assert "<script" not in shown
    assert words(shown).count(nasty) >= 9


def test_same_input_same_bytes_whatever_the_user_configured(page: str, tmp_path: Path) -> None:
    theirs = {"text.usetex": True, "font.size": 30, "axes.grid": True, "svg.fonttype": "path", "image.cmap": "jet"}
    with mpl.rc_context(theirs):
        again = report.write_report(CASES, tmp_path / "a.html", manifest=MANIFEST, timing={"reconstruct": 3.14})
        picture = report.write_overview(CASES[:1], tmp_path / "a.png", dpi=50).read_bytes()
        assert mpl.rcParams["font.size"] == 30  # and nothing leaks out
    assert again.read_text(encoding="utf-8") == page
    assert report.write_overview(CASES[:1], tmp_path / "b.png", dpi=50).read_bytes() == picture


def test_failure_leaves_the_old_file_and_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "report.html"
    old.write_text("old")

    def broken(*_: object) -> Figure:
        raise RuntimeError("the painter fell off the ladder")

    monkeypatch.setattr(figures, "bmode_svg", broken)
    monkeypatch.setattr(overview, "draw", broken)
    for write in (report.write_report, report.write_overview):
        with pytest.raises(RuntimeError):
            write(CASES, old)
    assert old.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_unwritable_folder_and_empty_list_are_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LungwaveError, match="cannot write"):
        report.write_report([withheld()], tmp_path / "file" / "report.html")
    for write in (report.write_report, report.write_overview, report.write_tables):
        with pytest.raises(UsageError, match="at least one"):
            write([], tmp_path / "none")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.2, 0.3), (0.5, 0.5)])
def test_aeration_scale_is_0_to_100_whatever_the_map_holds(low: float, high: float) -> None:
    r = lung()
    ramp = np.tile(np.linspace(low, high, 64), (64, 1))
    image = figures.draw_map(Figure().add_subplot(), ramp, r)
    assert (image.norm.vmin, image.norm.vmax) == (0.0, 1.0)
    assert image.to_rgba(np.array([0.25]), bytes=True).tolist() == [[58, 82, 139, 255]]  # viridis at 25 %
    shown = report.render([replace(r, aeration=ramp)], "t")
    map_svg = shown[shown.index('aria-label="Reconstructed aeration map"') :].split("</svg>")[0]
    assert [f">{tick}<" in map_svg for tick in (0, 25, 50, 75, 100)] == [True] * 5


def pixels(r: Reconstruction, mask: bool) -> np.ndarray:
    """A map painted with 4 x 4 dots for each of its pixels, no margins."""
    figure = Figure(figsize=(2.56, 2.56), dpi=100)
    ax = figure.add_axes((0, 0, 1, 1))
    assert r.aeration is not None
    figures.draw_map(ax, r.aeration, r, mask=mask)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].astype(int)


def test_mask_dims_below_the_information_depth_only_and_invalid_columns_are_grey() -> None:
    r = lung()
    plain, masked = pixels(r, mask=False), pixels(r, mask=True)
    np.testing.assert_array_equal(plain[:36], masked[:36])  # 0-0.9 mm: the echoes speak
    below = (np.abs(plain - masked).sum(-1) > 0)[46:, :210]
    assert below.mean() > 0.95
    void = [int(figures.PALETTE["void"][i : i + 2], 16) for i in (1, 3, 5)]
    assert (masked[:, 220:-3] == void).all(-1).mean() > 0.97  # columns 54-63


def _boxes(figure: Figure) -> list[tuple[str, np.ndarray]]:
    """Corners of each text that shows; a tick label shows where its tick lies in view."""
    texts: list[Text] = list(figure.texts)
    for ax in figure.axes:
        texts += [*ax.texts, ax.xaxis.label, ax.yaxis.label]
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            texts += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    texts += [text for legend in figure.legends for text in legend.get_texts()]
    return [(t.get_text(), t.get_window_extent().extents) for t in texts if t.get_text() and t.get_visible()]


@pytest.mark.parametrize("cases", [CASES, [CASES[0], CASES[1]], SAMPLED, [SAMPLED[1]]])
def test_words_of_the_overview_do_not_overlap_or_leave_the_sheet(cases: list[Reconstruction]) -> None:
    with figures.style():
        shares: list[list[float | None]] = [[0.2] * len(r.bands) for r in cases]
        figure = overview.draw(cases, shares)
        FigureCanvasAgg(figure).draw()
        boxes = _boxes(figure)
    width, height = figure.bbox.size
    assert len(boxes) > 40
    for text, (left, bottom, right, top) in boxes:
        assert left >= 0 and bottom >= 0 and right <= width and top <= height, text
    for (one, a), (two, b) in itertools.combinations(boxes, 2):
        apart = a[2] <= b[0] + 1 or b[2] <= a[0] + 1 or a[3] <= b[1] + 1 or b[3] <= a[1] + 1
        assert apart, f"'{one}' lies on '{two}'"


def test_overview_is_a_wide_picture(tmp_path: Path) -> None:
    path = report.write_overview(CASES, tmp_path / "overview.png")
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.width >= 1200


# --- posterior samples ------------------------------------------------------------------------------------------------


def test_case_with_samples_shows_all_that_they_say(sampled_page: str) -> None:
    shown = section(sampled_page, 0)
    for label in (
        "Reconstructed aeration map",
        "True aeration map",
        "Width of the interval",
        "Information in the echo",
    ):
        assert f'aria-label="{label}' in shown, label
    assert [f'aria-label="Posterior sample {k}"' in shown for k in range(1, 10)] == [True] * 8 + [False]
    text = words(shown)
    for said in (
        "Posterior mean",
        "first of 24 samples",
        "90 % interval",
        "hyperinflated",
        "consolidation",
        "not CT voxels",
    ):
        assert said in text, said
    assert re.search(r"interstitial\s+truth", text)  # the category that the case really has
    without = section(sampled_page, 1)
    assert "True aeration" not in without and "Truth, %" not in without
    assert "16 samples: an interval is their whole range and holds 88 %" in words(without)
    assert section(sampled_page, 2).count("<svg") == 1  # withheld


def test_case_without_samples_is_as_before(page: str, sampled_page: str) -> None:
    """Beside cases with samples or not, a ridge case is drawn alike and no word tells of samples."""
    alone = report.render([lung("ridge beside", 0.5, 4)], "t")
    text = words(alone[alone.index("<body>") :])
    assert not re.search(r"posterior|samples|hyperinflated", text, re.I)
    one, two = (section(p, n).replace(f"case-{n + 1}", "case") for p, n in ((alone, 0), (sampled_page, 4)))
    assert one == two
    assert "Reconstructed aeration" in words(one)


def test_tables_hold_the_posterior(sampled_page: str, tmp_path: Path) -> None:
    csv_path, json_path = report.write_tables(SAMPLED, tmp_path)
    cases = json.loads(json_path.read_text(encoding="utf-8"))["cases"]
    assert [c["posterior"] is not None for c in cases] == [True, True, False, True, False]
    first, r = cases[0]["posterior"], SAMPLED[0]
    assert r.posterior is not None and r.truth is not None and r.valid is not None
    share = r.posterior.share_below(0.5, r.valid)
    poor = first["poor_surface"]
    assert [poor[k] for k in ("estimate", "lower", "upper")] == pytest.approx(
        [share.estimate, share.lower, share.upper], abs=1e-6
    )
    assert poor["truth"] == pytest.approx((r.truth.smooth[:10, r.valid].mean(0) < 0.5).mean(), abs=1e-6)
    assert cases[0]["poor_surface"] == poor["estimate"]
    assert sum(c["truth"] for c in first["classes"]) == pytest.approx(1.0, abs=1e-5)
    assert [c["name"] for c in first["categories"] if c["true"]] == ["interstitial"]
    assert cases[1]["posterior"]["poor_surface"]["truth"] is None
    lines = list(csv.DictReader(csv_path.read_text(encoding="utf-8").splitlines()))
    assert {line["case"]: line["samples"] for line in lines} == {
        "healthy": "24", "patient 7": "16", "phantom disk": "", "wide": "24", "ridge beside": "",
    }  # fmt: skip
    further = (tmp_path / "aeration_posterior.csv").read_text(encoding="utf-8").splitlines()
    rows = [row for row in csv.DictReader(further) if row["case"] == "healthy"]
    assert len(rows) == 1 + 4 + 3 + 1
    in_section = {float(v) for v in re.findall(r'<data value="([^"]*)">', section(sampled_page, 0))}
    assert {float(row["estimate"]) for row in rows[:-1]} <= in_section
    assert sum(float(row["estimate"]) for row in rows if row["quantity"].startswith("probability")) == pytest.approx(1)
    plain = tmp_path / "plain"
    report.write_tables(CASES, plain)
    assert sorted(p.name for p in plain.iterdir()) == ["aeration.csv", "aeration.json"]


@pytest.mark.parametrize("scale", [figures.WIDTH, figures.INFORMATION, figures.AERATION])
def test_every_map_of_a_posterior_has_a_fixed_scale_that_runs_from_light_to_dark_or_back(scale: figures.Scale) -> None:
    """Lightness alone orders the values, so the maps read in grey and without colour vision."""
    assert (scale.low, scale.high) == (0.0, 1.0)
    rgb = scale.colormap()(np.linspace(0, 1, 64))[:, :3]
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    steps = np.diff(linear @ [0.2126, 0.7152, 0.0722])
    assert (steps > 0).all() or (steps < 0).all()


def test_interval_band_of_the_profile_is_the_one_of_the_posterior() -> None:
    r = SAMPLED[0]
    assert r.posterior is not None and r.valid is not None
    ax = Figure().add_subplot()
    figures.draw_profile(ax, r)
    corners = np.concatenate([path.vertices for c in ax.collections for path in c.get_paths()])
    for bound in (r.posterior.profile_lower, r.posterior.profile_upper):
        np.testing.assert_allclose([np.abs(corners[:, 1] - b).min() for b in bound[r.valid]], 0.0, atol=1e-9)
    profile = figures.column_profile(r)
    assert profile is not None
    np.testing.assert_allclose(profile[r.valid], r.posterior.profile[r.valid])


def test_posterior_comes_back_from_hdf5_and_npz(tmp_path: Path) -> None:
    given = [SAMPLED[0], withheld(), sampled("second", 0.4, 5, truth=False)]
    paths = report.write_posterior(given, tmp_path, manifest=MANIFEST)
    names = {f"{i}_{name}.png" for i in (0, 2) for name in PICTURES}
    assert {p.name for p in paths} == {"posterior.h5", "posterior.npz", *names}
    assert {p for p in tmp_path.rglob("*") if p.is_file()} == set(paths)
    file = read_posteriors(tmp_path / "posterior.h5")
    with np.load(tmp_path / "posterior.npz", allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    assert set(file) == set(arrays) == {f.name for f in schema.POSTERIOR_FIELDS}
    for field in schema.POSTERIOR_FIELDS:
        np.testing.assert_array_equal(file[field.name], arrays[field.name])
        if field.dtype != "text":
            assert file[field.name].dtype == arrays[field.name].dtype == np.dtype(field.dtype), field.name
    assert arrays["samples"].dtype == np.float16
    assert arrays["frame"].tolist() == [0, 2] and arrays["name"].tolist() == ["healthy", "second"]
    assert arrays["category_names"].tolist() == list(KINDS)
    for i, r in enumerate((given[0], given[2])):
        p = r.posterior
        assert p is not None
        np.testing.assert_allclose(arrays["samples"][i], p.samples, atol=2.5e-4)
        for name in ("mean", "std", "lower", "upper", "information", "information_depth"):
            np.testing.assert_allclose(arrays[name][i], getattr(p, name), atol=1e-6, err_msg=name)
        np.testing.assert_allclose(arrays["bands"][i], p.band_samples, atol=1e-6)
        np.testing.assert_allclose(arrays["categories"][i].mean(0), p.categories, atol=1e-6)
        np.testing.assert_array_equal(arrays["x"], p.x)
        np.testing.assert_array_equal(arrays["z"], p.z)
        np.testing.assert_array_equal(arrays["valid"][i] != 0, r.valid)
    with Image.open(tmp_path / "maps" / "2_mean.png") as image:
        assert given[2].aeration is not None
        np.testing.assert_array_equal(np.asarray(image), np.rint(np.asarray(given[2].aeration, np.float32) * 255))
    with h5py.File(tmp_path / "posterior.h5") as opened:
        samples = opened["posterior/samples"]
        assert (samples.compression, samples.compression_opts, samples.shuffle) == ("gzip", 4, True)
        assert json.loads(opened.attrs[schema.ATTR_MANIFEST])["seed"] == 7
        assert opened.attrs[schema.ATTR_FORMAT] == schema.POSTERIOR_FORMAT
    before = [p.read_bytes() for p in paths]
    assert report.write_posterior(given, tmp_path, manifest=MANIFEST) == paths
    assert [p.read_bytes() for p in paths] == before


def test_posterior_without_categories_or_pleura_is_stored(tmp_path: Path) -> None:
    r = SAMPLED[0]
    assert r.posterior is not None
    none = np.zeros((len(r.posterior.samples), 0))
    bare = replace(r.posterior, category_samples=none, category_names=(), categories=none[0])
    report.write_posterior([replace(r, posterior=bare, pleura_depth=None, valid=None)], tmp_path)
    file = read_posteriors(tmp_path / "posterior.h5")
    assert file["categories"].shape == (1, 24, 0) and file["category_names"] == []
    assert np.isnan(file["pleura_depth"]).all() and (file["valid"] == 1).all()
    assert "Kind of lung" not in report.render([replace(r, posterior=bare)], "t")
    with np.load(tmp_path / "posterior.npz", allow_pickle=False) as archive:
        assert archive["category_names"].shape == (0,)


def test_nothing_to_store_writes_nothing_and_mixed_frames_are_told(tmp_path: Path) -> None:
    assert report.write_posterior(CASES, tmp_path / "a") == ()
    assert report.write_posterior([replace(SAMPLED[0], withheld=REASON)], tmp_path / "a") == ()
    for other in (SAMPLED[1], SAMPLED[3]):  # other number of samples, other map
        with pytest.raises(UsageError, match="separate folders"):
            report.write_posterior([SAMPLED[0], other], tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_what_is_no_posterior_file_is_told(tmp_path: Path) -> None:
    report.write_posterior([SAMPLED[0]], tmp_path)
    path = tmp_path / "posterior.h5"
    with edited(path) as file:
        del file["posterior/std"]
    with pytest.raises(UsageError, match="posterior/std"):
        read_posteriors(path)
    with edited(path) as file:
        file.attrs[schema.ATTR_FORMAT] = schema.POSTERIOR_FORMAT + 1
    with pytest.raises(UsageError, match="update lungwave"):
        read_posteriors(path)
    (tmp_path / "no.h5").write_text("no")
    with pytest.raises(UsageError, match="not a readable HDF5"):
        read_posteriors(tmp_path / "no.h5")


def test_withheld_wins_over_leftover_samples(tmp_path: Path) -> None:
    leaky = replace(SAMPLED[0], withheld=REASON)
    assert report.render([leaky], "t").count("<svg") == 1
    csv_path, path = report.write_tables([leaky], tmp_path)
    assert json.loads(path.read_text())["cases"][0]["posterior"] is None
    assert csv_path.read_text().count("\n") == 2
    assert [p.name for p in tmp_path.iterdir() if "posterior" in p.name] == []


def test_every_field_of_a_posterior_is_stored_or_follows_from_what_is() -> None:
    stored = {f.name for f in schema.POSTERIOR_FIELDS}
    renamed = {"band_samples": "bands", "category_samples": "categories"}
    follows = {"pixel", "whole", "profile", "profile_lower", "profile_upper"}  # from x, bands and samples
    assert {renamed.get(f.name, f.name) for f in fields(Posterior)} - follows <= stored
