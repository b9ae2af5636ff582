"""Lung maps keep their scale: the report's 8 x 256 view, PNG and NPZ, and nothing that is not a map."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lungwave.data.convert import convert, info, validate
from lungwave.data.maps import convert_maps, load_maps, save_png, seed_view, to_bytes
from lungwave.types import UsageError


def report_map(seed: int = 0, rows: int = 48, columns: int = 1025) -> np.ndarray:
    """A map of the report's size, fraction 0-1."""
    return np.random.default_rng(seed).random((rows, columns)).astype(np.float32)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.mode == "L"
        return np.asarray(image)


def test_the_seed_view_is_the_stride_4_average_of_the_first_32_rows() -> None:
    """The report's operation, written as the pooling it was: torch's own average pooling agrees."""
    values = report_map()
    pooled = torch.nn.functional.avg_pool2d(torch.from_numpy(values[:32])[None, None].double(), 4, stride=4)[0, 0]
    np.testing.assert_allclose(seed_view(values), pooled.numpy(), atol=1e-12)
    assert seed_view(values).shape == (8, 256)


@settings(derandomize=True, deadline=None)
@given(st.floats(0, 1))
def test_a_uniform_lung_keeps_its_aeration(aeration: float) -> None:
    byte = to_bytes(seed_view(np.full((32, 1024), aeration)))
    assert np.ptp(byte) == 0
    assert abs(float(byte[0, 0]) / 255 - aeration) <= 0.5 / 255 + 1e-12


@pytest.mark.parametrize(("factor", "scale"), [(1.0, "fraction"), (100.0, "percent"), (255.0, "byte")])
def test_every_scale_gives_the_same_picture(factor: float, scale: str, tmp_path: Path) -> None:
    source = tmp_path / "maps"
    source.mkdir()
    for n in (3, 12):
        torch.save(torch.from_numpy(report_map(n) * factor), source / f"map_{n}.pt")
    done = convert_maps(source, tmp_path / "png")
    assert (done["scale"], done["maps"], done["shape"], done["columns_left_out"]) == (scale, 2, [8, 256], 1)
    assert sorted(p.name for p in (tmp_path / "png").iterdir()) == ["12.png", "3.png"]
    for n in (3, 12):
        expected = np.rint(seed_view(report_map(n)) * 255)
        assert np.abs(pixels(tmp_path / "png" / f"{n}.png") - expected).max() <= (0 if factor == 1.0 else 1)


def test_the_scale_is_one_for_all_maps(tmp_path: Path) -> None:
    """A dark map among percent maps is dark, not stretched: 0.9 % stays 0.9 %."""
    for n, value in ((0, 0.9), (1, 80.0)):
        torch.save(torch.full((32, 1024), value), tmp_path / f"{n}.pt")
    convert_maps(tmp_path, tmp_path / "png")
    assert (pixels(tmp_path / "png" / "0.png") == round(0.009 * 255)).all()
    assert (pixels(tmp_path / "png" / "1.png") == round(0.8 * 255)).all()


def test_a_stated_scale_is_obeyed(tmp_path: Path) -> None:
    torch.save(torch.full((32, 1024), 0.5), tmp_path / "a.pt")
    convert_maps(tmp_path / "a.pt", tmp_path / "png", scale="percent")
    assert (pixels(tmp_path / "png" / "0.png") == round(0.005 * 255)).all()


def test_files_without_numbers_are_counted(tmp_path: Path) -> None:
    for name in ("b", "a"):
        torch.save(torch.from_numpy(report_map()), tmp_path / f"{name}.pt")
    convert_maps(tmp_path, tmp_path / "png")
    assert sorted(p.name for p in (tmp_path / "png").iterdir()) == ["0.png", "1.png"]


def test_a_stack_of_maps_in_one_tensor(tmp_path: Path) -> None:
    stack = torch.from_numpy(np.stack([report_map(0), report_map(1)]))
    torch.save({"maps": stack}, tmp_path / "all.pt")
    assert convert_maps(tmp_path / "all.pt", tmp_path / "png")["maps"] == 2
    np.testing.assert_array_equal(pixels(tmp_path / "png" / "1.png"), to_bytes(seed_view(report_map(1))))


def test_png_to_npz_and_back_is_the_same_picture(tmp_path: Path) -> None:
    (tmp_path / "png").mkdir()
    for n in (2, 7, 30):
        save_png(tmp_path / "png" / f"{n}.png", np.random.default_rng(n).random((9, 13)))
    done = convert(tmp_path / "png", tmp_path / "maps.npz")
    assert done["kind"] == "maps"
    with np.load(tmp_path / "maps.npz") as archive:
        assert archive["maps"].dtype == np.float32 and archive["maps"].shape == (3, 9, 13)
        assert archive["names"].tolist() == ["2", "7", "30"]
        np.testing.assert_allclose(archive["maps"][2] * 255, pixels(tmp_path / "png" / "30.png"), atol=1e-4)
    convert(tmp_path / "maps.npz", tmp_path / "again")
    for i, n in enumerate((2, 7, 30)):
        np.testing.assert_array_equal(pixels(tmp_path / "again" / f"{i}.png"), pixels(tmp_path / "png" / f"{n}.png"))


def test_npz_of_maps_is_deterministic(tmp_path: Path) -> None:
    save_png(tmp_path / "1.png", report_map()[:8, :8])
    for name in ("a.npz", "b.npz"):
        convert_maps(tmp_path / "1.png", tmp_path / name)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_samples_of_openai_code_are_bytes(tmp_path: Path) -> None:
    """``arr_0`` uint8 (n, z, x, 3): gray triples are maps, colours are not."""
    gray = np.repeat(np.random.default_rng(0).integers(0, 200, (2, 8, 16, 1), np.uint8), 3, axis=3)
    np.savez(tmp_path / "samples.npz", arr_0=gray)
    assert convert_maps(tmp_path / "samples.npz", tmp_path / "png")["scale"] == "byte"
    np.testing.assert_array_equal(pixels(tmp_path / "png" / "1.png"), gray[1, ..., 0])
    gray[0, 0, 0, 1] += 1
    np.savez(tmp_path / "colour.npz", arr_0=gray)
    with pytest.raises(UsageError, match="colours"):
        convert_maps(tmp_path / "colour.npz", tmp_path / "out")


class Payload:
    """Unpickling this would create a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("old", [False, True])
def test_a_pickle_payload_is_never_run(old: bool, tmp_path: Path) -> None:
    content = {"map": torch.ones(32, 1024), "more": Payload(tmp_path / "owned")}
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=not old)
    with pytest.raises(UsageError, match="never unpickled"):
        convert_maps(tmp_path / "a.pt", tmp_path / "png")
    assert not (tmp_path / "owned").exists() and not (tmp_path / "png").exists()
    torch.load(tmp_path / "a.pt", weights_only=False)
    assert (tmp_path / "owned").exists(), "the payload is harmless, so the test proves nothing"


def test_a_bare_pickle_is_never_run(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(pickle.dumps(Payload(tmp_path / "owned")))
    with pytest.raises(UsageError):
        convert_maps(tmp_path / "a.pt", tmp_path / "png")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("tensor", "word"),
    [
        (torch.ones(31, 1024), "31 x 1024"),
        (torch.ones(32, 1023), "32 x 1023"),
        (torch.full((32, 1024), torch.nan), "NaN"),
        (torch.full((32, 1024), torch.inf), "infinite"),
        (torch.full((32, 1024), 300.0), "outside 0-255"),
        (torch.full((32, 1024), -0.2), "-0.2"),
        (torch.ones(1024), "shape"),
        (torch.ones(1, 1, 32, 1024), "shape"),
        (torch.ones(0, 1024), "shape"),
        (torch.ones(32, 1024, dtype=torch.complex64), "real numbers"),
        ([torch.ones(32, 1024)], "list"),
        (torch.ones(1).expand(10**6, 10**6), "GiB"),
    ],
)
def test_what_is_no_map_says_why(tensor: Any, word: str, tmp_path: Path) -> None:
    torch.save(tensor, tmp_path / "a.pt")
    with pytest.raises(UsageError, match=word) as caught:
        convert_maps(tmp_path / "a.pt", tmp_path / "png")
    assert "a.pt" in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "png").exists()


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.9])
@pytest.mark.parametrize("form", ["pt", "png", "npz"])
def test_truncated_maps(form: str, keep: float, tmp_path: Path) -> None:
    path = tmp_path / f"1.{form}"
    if form == "pt":
        torch.save(torch.from_numpy(report_map()), path)
    elif form == "png":
        save_png(path, report_map()[:8, :64])
    else:
        np.savez(path, maps=report_map()[:8])
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(UsageError) as caught:
        convert_maps(path, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert validate(path)[0].level == "error"


def test_images_and_tensors_do_not_mix(tmp_path: Path) -> None:
    save_png(tmp_path / "1.png", report_map())
    torch.save(torch.from_numpy(report_map()), tmp_path / "2.pt")
    with pytest.raises(UsageError, match="different scales"):
        convert_maps(tmp_path, tmp_path / "out")


def test_maps_of_several_sizes_do_not_share_an_npz(tmp_path: Path) -> None:
    save_png(tmp_path / "1.png", report_map()[:8])
    save_png(tmp_path / "2.png", report_map()[:9])
    with pytest.raises(UsageError, match="different sizes"):
        convert_maps(tmp_path, tmp_path / "a.npz")


def test_empty_and_missing_folders(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no"):
        convert_maps(tmp_path, tmp_path / "out")
    with pytest.raises(UsageError, match="does not exist"):
        convert_maps(tmp_path / "none", tmp_path / "out")


def test_a_16_bit_picture_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 4000, np.uint16)).save(tmp_path / "1.png")
    with pytest.raises(UsageError, match="8 bit grayscale"):
        load_maps(tmp_path / "1.png")


def test_info_of_maps(tmp_path: Path) -> None:
    save_png(tmp_path / "1.png", np.linspace(0, 1, 64).reshape(8, 8))
    found = info(tmp_path / "1.png")
    assert found["maps"] == 1 and found["range"] == [0.0, 255.0]
    assert validate(tmp_path / "1.png") == []
