"""Laws of map sets: nothing resized, nothing parted that belongs together, every oddity refused by name."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lungwave.acoustics.probe import Recording
from lungwave.data import hdf5, images
from lungwave.data.mapset import MapSet, openai_view, read_maps
from lungwave.data.schema import CaseTable
from lungwave.types import UsageError

RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 256, (5, 12), dtype=np.uint8)


def save(path: Path, pixels: np.ndarray, mode: str | None = None, **options: object) -> Path:
    """An image file of the given pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def set_of(count: int = 10, groups: list[int] | None = None) -> MapSet:
    maps = np.random.default_rng(1).random((count, 1, 4, 6)).astype(np.float32)
    return MapSet.of(maps, groups=None if groups is None else np.array(groups))


# --- the values ---------------------------------------------------------------------------------------------------


def test_a_pixel_keeps_its_value_its_place_and_its_size(tmp_path: Path) -> None:
    other = 255 - GRAY
    save(tmp_path / "a.png", GRAY)
    save(tmp_path / "b.png", other)
    found = read_maps(tmp_path)
    assert (found.size, found.channels, found.maps.dtype) == ((5, 12), 1, np.uint8)
    assert np.array_equal(found.maps[:, 0], [GRAY, other])
    assert np.array_equal(found.fraction([1])[0, 0], other.astype(np.float32) / np.float32(255))
    assert found.notes == ()
    assert found.names == ("a", "b")


def test_the_same_map_in_every_format_is_the_same_fraction(tmp_path: Path) -> None:
    exact = GRAY / np.float32(255)
    save(tmp_path / "png" / "x.png", GRAY)
    save(tmp_path / "deep" / "x.png", GRAY.astype(np.uint16) * 257)
    save(tmp_path / "gif" / "x.GIF", GRAY)
    save(tmp_path / "palette" / "x.png", GRAY, "P")
    save(tmp_path / "rgb" / "x.png", np.repeat(GRAY[..., None], 3, 2))
    save(tmp_path / "rgba" / "x.png", np.dstack([GRAY, GRAY, GRAY, np.full_like(GRAY, 200)]))
    np.savez(tmp_path / "bytes.npz", maps=GRAY[None])
    np.savez(tmp_path / "fractions.npz", maps=exact[None].astype(np.float64))
    np.savez(tmp_path / "samples.npz", arr_0=np.repeat(GRAY[None, ..., None], 3, 3))  # what OpenAI's sampler writes
    np.save(tmp_path / "bare.npy", exact)
    for source in tmp_path.iterdir():
        found = read_maps(source)
        assert found.maps.shape == (1, 1, 5, 12), source
        assert np.abs(found.fraction()[0, 0] - exact).max() < 1e-6, source


def test_jpeg_is_read_within_its_own_loss(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 64).astype(np.uint8)[None].repeat(16, 0)
    save(tmp_path / "x.JPG", ramp, quality=95)
    assert np.abs(read_maps(tmp_path).fraction()[0, 0] - ramp / 255).max() < 0.02


def test_black_and_white_images_are_zero_and_one(tmp_path: Path) -> None:
    save(tmp_path / "x.png", GRAY > 127)
    assert np.array_equal(read_maps(tmp_path).fraction()[0, 0], (GRAY > 127).astype(np.float32))


def test_what_was_changed_is_said(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save(tmp_path / "rgb" / f"{name}.png", np.dstack([GRAY, GRAY, GRAY, np.full_like(GRAY, 9)]))
        GRAY[0, 0] ^= 1
    said = " ".join(read_maps(tmp_path / "rgb").notes)
    assert "2 images hold gray in three equal channels" in said
    assert "2 images have an alpha channel of one value" in said
    save(tmp_path / "mixed" / "a.png", GRAY)
    save(tmp_path / "mixed" / "b.png", GRAY.astype(np.uint16) * 256)
    mixed = read_maps(tmp_path / "mixed")
    assert "1 images have 8 bit, 1 have 16" in " ".join(mixed.notes)
    assert np.abs(mixed.fraction([0])[0, 0] - GRAY / 255).max() < 1e-6


def test_true_colours_stay_three_channels_also_beside_a_gray_one(tmp_path: Path) -> None:
    colour = RNG.integers(0, 256, (5, 12, 3), dtype=np.uint8)
    save(tmp_path / "a.png", colour)
    save(tmp_path / "b.png", np.repeat(GRAY[..., None], 3, 2))
    found = read_maps(tmp_path)
    assert np.array_equal(found.maps[0], colour.transpose(2, 0, 1))
    assert np.array_equal(found.maps[1], [GRAY, GRAY, GRAY])


def test_fractions_that_overshoot_by_rounding_are_cut_and_others_are_not() -> None:
    maps = np.full((1, 1, 2, 2), 1 + 5e-5, np.float32)
    maps[0, 0, 0, 0] = 0.3
    assert MapSet.of(maps).fraction().max() == 1
    assert MapSet.of(maps).fraction()[0, 0, 0, 0] == np.float32(0.3)


# --- order, names and classes -------------------------------------------------------------------------------------


def test_images_come_in_openais_order(tmp_path: Path) -> None:
    """Names sorted as text, a folder where its name falls, other files left out (improved-diffusion's listing)."""
    wanted = ["10_b.png", "9_a.png", "Z.jpeg", "m/1_x.png", "m/n/0.GIF", "m.png", "n_1.JpG"]
    for name in wanted:
        save(tmp_path / name, GRAY)
    for name in ("a.txt", "png", "b.tiff", "m/c.npz"):
        (tmp_path / name).write_text("x", encoding="utf-8")
    (tmp_path / "a_folder.png").mkdir()
    listed = [path.relative_to(tmp_path).as_posix() for path in images.list_images(tmp_path)]
    assert listed == wanted
    assert read_maps(tmp_path).names == tuple(name.rsplit(".", 1)[0] for name in wanted)


def test_classes_are_sorted_names_up_to_the_first_underscore(tmp_path: Path) -> None:
    for name in ("healthy_2_a.png", "sub/fibrosis_1.png", "healthy_1.png"):
        save(tmp_path / name, GRAY)
    found = read_maps(tmp_path, labels=True)
    assert found.classes == ("fibrosis", "healthy")
    assert found.labels.tolist() == [1, 1, 0]
    plain = read_maps(tmp_path)
    assert (plain.classes, plain.labels.tolist()) == ((), [-1, -1, -1])
    save(tmp_path / "17.png", GRAY)
    with pytest.raises(UsageError, match=r"17\.png: has no '_'.*CLASS_NUMBER"):
        read_maps(tmp_path, labels=True)


def test_a_file_of_maps_keeps_its_names_classes_and_groups(tmp_path: Path) -> None:
    maps, path = set_of(4).maps[:, 0], tmp_path / "maps.npz"
    classes = np.array(["ill", "healthy", "unused"])
    np.savez(path, maps=maps, names=np.array(list("abcd")), labels=[1, 0, 0, 1], classes=classes, groups=[5, 5, 7, 9])
    found = read_maps(path)
    assert (found.names, found.classes) == (tuple("abcd"), ("ill", "healthy", "unused")), "the order that was stated"
    assert (found.labels.tolist(), found.groups.tolist()) == ([1, 0, 0, 1], [5, 5, 7, 9])
    np.savez(path, maps=maps, labels=np.array(["b", "a", "b", "b"]))
    assert read_maps(path).classes == ("a", "b")
    np.savez(path, maps=maps, names=np.array(["x_1", "y_1", "x_2", "y_2"]))
    assert read_maps(path, labels=True).labels.tolist() == [0, 1, 0, 1]
    assert read_maps(path).labels.tolist() == [-1] * 4


def test_generated_cases_give_their_maps_categories_and_bases(
    tmp_path: Path, make_recording: Callable[..., Recording], make_cases: Callable[..., CaseTable]
) -> None:
    cases = replace(make_cases(), base_id=np.array([3, 3]), index=np.array([6, 9]))
    for k, table in enumerate((cases, replace(cases, smooth=cases.smooth / 2, base_id=np.array([4, 5])))):
        hdf5.write_recording(tmp_path / f"cases_00000{k}-00000{k}.h5", make_recording(), cases=table)
    found = read_maps(tmp_path)
    assert np.array_equal(found.fraction()[:, 0], np.concatenate([cases.smooth, cases.smooth / 2]))
    assert found.groups.tolist() == [3, 3, 4, 5]
    assert found.names[:2] == ("healthy_000006", "interstitial_000009")
    assert found.labels.tolist() == [0, 1, 0, 1]
    assert np.array_equal(read_maps(tmp_path, field="sharp").fraction()[:2, 0], cases.sharp)
    assert len(read_maps(tmp_path / "cases_000001-000001.h5")) == 2, "one shard by itself"


# --- subsets ------------------------------------------------------------------------------------------------------


def test_a_split_parts_no_group_and_loses_no_map() -> None:
    whole = set_of(60, [i // 3 for i in range(60)])
    train, held = whole.split(0.25, seed=3)
    assert not set(train.groups) & set(held.groups)
    assert sorted(train.names + held.names) == sorted(whole.names)
    assert len(np.unique(held.groups)) == 5
    again = whole.split(0.25, seed=3)[1]
    assert held.names == again.names
    assert held.names != whole.split(0.25, seed=4)[1].names


def test_exact_copies_are_one_group() -> None:
    maps = set_of(6).maps.copy()
    maps[4] = maps[1]
    found = MapSet.of(maps)
    assert found.groups.tolist() == [0, 1, 2, 3, 1, 5]
    assert found.notes == ("1 maps are exact copies of others; they stay on one side of a split",)


def test_nothing_or_too_much_held_out() -> None:
    whole = set_of(10)
    train, held = whole.split(0.0, seed=0)
    assert (len(train), len(held), held.size) == (10, 0, whole.size)
    for share, said in ((0.01, "no map held out"), (0.99, "no map training"), (1.0, "below 1"), (-0.1, "at least 0")):
        with pytest.raises(UsageError, match=said):
            whole.split(share, seed=0)


def test_a_subset_is_the_maps_asked_for_in_their_order(tmp_path: Path) -> None:
    for name in ("a_1.png", "b_1.png", "a_2.png"):
        save(tmp_path / name, np.roll(GRAY, len(name) + ord(name[2])))
    whole = read_maps(tmp_path, labels=True)
    part = whole.subset([2, 0])
    assert (part.names, part.labels.tolist(), part.classes) == (("b_1", "a_1"), [1, 0], ("a", "b"))
    assert np.array_equal(part.maps, whole.maps[[2, 0]])
    mask = np.array([False, True, True])
    assert np.array_equal(whole.fraction(mask), whole.fraction(slice(1, None)))


def test_statistics_are_those_of_all_values_whatever_the_storage() -> None:
    pixels = RNG.integers(0, 256, (700, 1, 5, 7), dtype=np.uint8)
    exact = pixels / 255
    for maps in (pixels, exact, exact.astype(np.float32)):
        mean, std = MapSet.of(maps).statistics()
        assert mean == pytest.approx(exact.mean(), rel=1e-6)
        assert std == pytest.approx(exact.std(), rel=1e-6)
    with pytest.raises(UsageError, match=r"every value of the 3 maps is 0\.25"):
        MapSet.of(np.full((3, 1, 4, 4), 0.25)).statistics()


def test_the_digest_changes_with_everything_that_training_sees_and_with_nothing_else(tmp_path: Path) -> None:
    for name in ("a_1.png", "b_2.png", "a_3.png"):
        save(tmp_path / "x" / name, np.roll(GRAY, ord(name[2])))
    found = read_maps(tmp_path / "x", labels=True)
    (tmp_path / "x").rename(tmp_path / "y")
    assert read_maps(tmp_path / "y", labels=True).digest == found.digest, "a folder may move"
    touched = found.maps.copy()
    touched[1, 0, 2, 2] ^= 1
    others = (
        replace(found, maps=touched),
        replace(found, labels=found.labels[::-1].copy()),
        replace(found, groups=found.groups + 1),
        replace(found, classes=("a", "c")),
        found.subset([1, 0, 2]),
        found.subset([0, 1]),
        replace(found, maps=found.maps.reshape(3, 1, 12, 5)),
        replace(found, maps=found.fraction()),
    )
    digests = {found.digest, *(one.digest for one in others)}
    assert len(digests) == 1 + len(others)


# --- refusals -----------------------------------------------------------------------------------------------------


def png16(path: Path, colours: int) -> None:
    """A PNG of 16 bit colours, which Pillow cannot write."""
    width, height = 12, 5
    head = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 3: 2}[colours], 0, 0, 0)
    rows = b"".join(b"\0" + bytes(RNG.integers(0, 256, 2 * colours * width, dtype=np.uint8)) for _ in range(height))
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    parts = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def bad(folder: Path, kind: str) -> None:
    """Add to a folder with one gray map what must not pass."""
    if kind == "sizes":
        save(folder / "b.png", GRAY[:4])
        save(folder / "c.png", GRAY[:4])
    elif kind == "channels":
        save(folder / "b.png", RNG.integers(0, 256, (5, 12, 3), dtype=np.uint8))
    elif kind == "alpha":
        save(folder / "b.png", np.dstack([GRAY, GRAY, GRAY, GRAY]))
    elif kind == "palette alpha":
        save(folder / "b.png", GRAY, "P", transparency=int(GRAY[2, 2]))
    elif kind == "corrupt":
        (folder / "b.png").write_bytes((folder / "a.png").read_bytes()[:60])
    elif kind == "no image":
        (folder / "b.png").write_text("a, b, c", encoding="utf-8")
    elif kind == "empty":
        (folder / "b.png").write_bytes(b"")
    elif kind == "frames":
        save(folder / "b.gif", GRAY, save_all=True, append_images=[Image.fromarray(255 - GRAY)])
    elif kind == "deep colours":
        png16(folder / "b.png", 3)
    elif kind == "print colours":
        save(folder / "b.jpg", np.repeat(GRAY[..., None], 3, 2), "CMYK")
    elif kind == "loop":
        (folder / "again").symlink_to(folder, target_is_directory=True)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("sizes", r"2 sizes: 4 x 12 \(2 files, first b\.png\), 5 x 12 \(1 files, first a\.png\); put each size"),
        ("channels", r"2 numbers of channels: 1 channel \(1 files, first a\.png\), 3 channels .* save all as gray"),
        ("alpha", r"b\.png: is partly transparent .*; save it without an alpha channel"),
        ("palette alpha", r"b\.png: is partly transparent"),
        ("corrupt", r"b\.png: not a readable image .* copy it again"),
        ("no image", r"b\.png: not a readable image"),
        ("empty", r"b\.png: is empty"),
        ("frames", r"b\.gif: holds 2 frames; save the one"),
        ("deep colours", r"b\.png: has 16 bit colours.*16 bit gray"),
        ("print colours", r"b\.jpg: is a CMYK image; save it as gray or RGB"),
        ("loop", r"again: links back .* remove the link"),
    ],
)
def test_a_folder_with_one_odd_image_is_refused_by_its_name(tmp_path: Path, kind: str, said: str) -> None:
    save(tmp_path / "a.png", GRAY)
    bad(tmp_path, kind)
    with pytest.raises(UsageError, match=said):
        read_maps(tmp_path)


def test_sixteen_bit_gray_is_read_in_full(tmp_path: Path) -> None:
    png16(tmp_path / "a.png", 1)
    found = read_maps(tmp_path)
    assert found.maps.dtype == np.float32
    assert len(np.unique(np.rint(found.fraction() * 65535) % 256)) > 20, "the low byte counts"


@pytest.mark.parametrize("name", ["nothing", "empty", "maps.txt", "bad.npz"])
def test_what_holds_no_maps_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "maps.txt").write_text("x", encoding="utf-8")
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 and nothing")
    with pytest.raises(UsageError, match=rf"{name}: (does not exist|holds no image|is no set of maps|not a readable)"):
        read_maps(tmp_path / name)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"images": np.zeros((2, 4, 4))}, "no array 'maps' among images"),
        ({"maps": np.zeros((2, 4, 4)) + 57.3}, "map 0 holds 57.3, outside 0-1.*--scale percent"),
        ({"maps": np.zeros((2, 4, 4)) - 0.1}, "map 0 holds -0.1, outside 0-1"),
        ({"maps": np.full((2, 4, 4), np.inf)}, "outside 0-1"),
        (
            {"maps": np.where(np.arange(32).reshape(2, 4, 4) == 20, np.nan, 0.5)},
            "1 of 2 maps hold NaN .first: number 1",
        ),
        ({"maps": np.full((2, 4, 4), np.nan)}, "--quantifiable-only"),
        ({"maps": np.zeros((2, 4, 4), np.int32)}, "type int32"),
        ({"maps": np.zeros(4)}, r"shape \(4,\)"),
        ({"maps": np.zeros((0, 4, 4))}, r"shape \(0, 4, 4\)"),
        ({"maps": np.zeros((2, 8, 8, 3))}, "channels last"),
        ({"maps": np.array(["a", "b"])}, "no array 'maps'"),
        ({"maps": np.zeros((2, 4, 4)), "labels": np.arange(3)}, "2 whole numbers or texts"),
        ({"maps": np.zeros((2, 4, 4)), "labels": np.array([0, 5]), "classes": np.array(["a"])}, "classes are 1"),
        (
            {"maps": np.zeros((2, 4, 4)), "labels": np.array(["a", "b"]), "classes": np.array(["a"])},
            "label 'b' is none",
        ),
        ({"maps": np.zeros((2, 4, 4)), "groups": np.zeros(2)}, "'groups'.* 2 whole numbers"),
        ({"maps": np.zeros((2, 4, 4)), "names": np.array(["a"])}, "2 maps have 1 names"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, arrays: dict[str, np.ndarray], said: str) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(UsageError, match=said):
        read_maps(tmp_path / "x.npz")


def test_maps_with_hidden_columns_are_left_out_when_asked(tmp_path: Path) -> None:
    maps = set_of(5, [0, 1, 2, 3, 4]).maps[:, 0].copy()
    maps[1, :, 2] = maps[4, 0, 0] = np.nan
    np.savez(tmp_path / "x.npz", maps=maps, names=np.array(list("abcde")), groups=np.arange(5) * 2)
    found = read_maps(tmp_path / "x.npz", quantifiable_only=True)
    assert (found.names, found.groups.tolist()) == (("a", "c", "d"), [0, 4, 6])
    assert found.notes == ("2 of 5 maps have columns without truth and are left out",)
    np.savez(tmp_path / "y.npz", maps=np.full((2, 4, 4), np.nan))
    with pytest.raises(UsageError, match="every one of 2"):
        read_maps(tmp_path / "y.npz", quantifiable_only=True)


def test_classes_cannot_be_made_up(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", maps=set_of(2).maps[:, 0], names=np.array(["a", "b_1"]))
    with pytest.raises(UsageError, match="states no labels"):
        read_maps(tmp_path / "x.npz", labels=True)


# --- OpenAI's view ------------------------------------------------------------------------------------------------


def test_openai_shows_8_of_the_256_columns_of_a_lung_map() -> None:
    """The distortion that the report's network was trained with, and why its samples look like nothing."""
    strip = np.random.default_rng(5).integers(0, 256, (8, 256), dtype=np.uint8)
    view = openai_view(Image.fromarray(strip), 256)
    assert view.shape == (3, 256, 256)
    assert np.array_equal(view[0], view[1])
    assert np.array_equal(view[0], view[2])
    outside = strip.copy()
    outside[:, : 128 - 4 - 2] = outside[:, 128 + 4 + 2 :] = 0  # bicubic looks 2 pixels beyond
    assert np.array_equal(openai_view(Image.fromarray(outside), 256), view), "nothing else of the map is seen"
    centres = view[0, 16::32, 16::32].astype(float)
    assert np.corrcoef(centres.ravel(), strip[:, 124:132].ravel())[0, 1] > 0.99, "each pixel is enlarged 32 times"


def test_openai_halves_by_box_then_cuts_the_centre() -> None:
    image = np.random.default_rng(5).integers(0, 256, (32, 80), dtype=np.uint8)
    means = image.reshape(8, 4, 20, 4).astype(float).mean((1, 3))
    view = openai_view(Image.fromarray(image), 8)
    assert np.abs(view[0] - means[:, 6:14]).max() <= 2.0, "two halvings of bytes, each rounded twice"
    step = openai_view(Image.fromarray(np.repeat(np.uint8([[100, 100, 200, 200]]), 4, 0)), 64)
    assert step.max() > 203, "bicubic overshoots at an edge, bilinear and nearest do not"
    assert step.min() < 97
    square = np.random.default_rng(5).integers(0, 256, (16, 16), dtype=np.uint8)
    assert np.array_equal(openai_view(Image.fromarray(square), 16)[0], square), "a square of the right size is kept"


def test_openais_view_is_taken_only_when_asked_and_said(tmp_path: Path) -> None:
    save(tmp_path / "a.png", GRAY)
    save(tmp_path / "b.png", GRAY[:4])
    found = read_maps(tmp_path, openai_size=8)
    assert found.maps.shape == (2, 3, 8, 8)
    assert found.notes == ("images are scaled and cut to 8 x 8 RGB, as improved-diffusion does",)
    np.savez(tmp_path / "x.npz", maps=GRAY[None])
    with pytest.raises(UsageError, match="made of a folder of images only"):
        read_maps(tmp_path / "x.npz", openai_size=8)
    with pytest.raises(UsageError, match="image size 0"):
        read_maps(tmp_path, openai_size=0)
