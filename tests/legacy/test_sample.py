"""Sampling and bits per dimension out of checkpoints, the original's and ours."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lungwave.legacy.sample import grid, to_bytes

Legacy = Callable[..., list[str]]
Refused = Callable[..., str]
FINE = ("--large_size", "64", "--small_size", "16", "--num_channels", "8", "--num_res_blocks", "1", "--num_heads", "2")
FINE = (*FINE, "--diffusion_steps", "24", "--attention_resolutions", "16", "--learn_sigma", "True")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, maps: Path, tiny: tuple[str, ...]) -> Path:
    """Folder of three barely trained networks: plain, with classes, super-resolution."""
    from lungwave.cli import main

    folder = tmp_path_factory.mktemp("trained")
    words = ("--data_dir", str(maps), "--max_steps", "2", "--lr", "0.01", "--batch_size", "2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_LOG_FORMAT", "log")
        for name, command in {
            "plain": ("image_train", *tiny, "--learn_sigma", "True"),
            "classes": ("image_train", *tiny, "--class_cond", "True", "--openai_classes", "True"),
            "fine": ("super_res_train", *FINE),
        }.items():
            patch.setenv("OPENAI_LOGDIR", str(folder / name))
            assert main(["legacy", *command, *words]) == 0
    return folder


def drawn(name: str, folder: str = "run") -> tuple[np.ndarray, np.ndarray | None]:
    """Images and labels of a sample file."""
    with np.load(Path(folder) / name, allow_pickle=False) as archive:
        return archive["arr_0"], archive["arr_1"] if "arr_1" in archive.files else None


def test_files_are_the_originals_and_pictures_say_the_same(legacy: Legacy, trained: Path) -> None:
    model = trained / "plain/model000002.pt"
    legacy("image_sample", "--model_path", model, "--num_samples", 3, "--timestep_respacing", 4)
    images, labels = drawn("samples_3x8x256x1.npz")
    assert (images.shape, images.dtype, labels) == ((3, 8, 256, 1), np.uint8, None)
    for number, image in enumerate(images):
        with Image.open(f"run/samples_3x8x256x1/{number:06d}.png") as picture:
            np.testing.assert_array_equal(np.asarray(picture), image[..., 0])
    assert {path.name for path in Path("run").iterdir()} == {
        "log.txt", "samples_3x8x256x1", "samples_3x8x256x1.npz", "samples_3x8x256x1_grid.png",
    }  # fmt: skip


@pytest.mark.parametrize("ddim", ["False", "True"])
def test_an_image_depends_on_its_number_and_the_seed_only(legacy: Legacy, trained: Path, ddim: str) -> None:
    words = ("image_sample", "--model_path", trained / "plain/model000002.pt", "--timestep_respacing", "ddim4")
    words = (*words, "--use_ddim", ddim)
    legacy(*words, "--num_samples", 3, log="one")
    legacy(*words, "--num_samples", 2, "--batch_size", 1, log="two")
    legacy(*words, "--num_samples", 2, "--seed", 1, log="other")
    one, two, other = (drawn(f"samples_{n}x8x256x1.npz", f)[0] for n, f in ((3, "one"), (2, "two"), (2, "other")))
    assert np.abs(one[:2].astype(int) - two).max() <= 1  # sums in another order, before the cut to bytes
    assert np.abs(two.astype(int) - other).max() > 30


def test_labels_are_of_classes_that_exist(legacy: Legacy, trained: Path) -> None:
    words = ("image_sample", "--model_path", trained / "classes/model000002.pt", "--timestep_respacing", 2)
    legacy(*words, "--num_samples", 8, log="ours")
    labels = drawn("samples_8x8x256x1.npz", "ours")[1]
    assert labels is not None
    assert set(labels) <= {0, 1, 2}
    names = {path.name.split("_")[0] for path in Path("ours/samples_8x8x256x1").iterdir()}
    assert names == {("edema", "fibrosis", "healthy")[label] for label in labels}
    legacy(*words, "--num_samples", 8, "--openai_classes", "True", log="theirs")
    labels = drawn("samples_8x8x256x1.npz", "theirs")[1]
    assert labels is not None
    assert labels.max() > 2
    assert labels.dtype == np.int64


def test_super_resolution_keeps_shape_and_labels_of_its_base(legacy: Legacy, trained: Path, maps: Path) -> None:
    base = np.random.default_rng(0).integers(0, 256, (2, 2, 64, 1)).astype(np.uint8)
    np.savez("base.npz", base)
    words = ("super_res_sample", "--model_path", trained / "fine/model000002.pt", "--timestep_respacing", 2)
    legacy(*words, "--base_samples", "base.npz", "--num_samples", 3)
    images, labels = drawn("samples_3x8x256x1.npz")
    assert labels is None
    assert (images[0] != images[2]).any()  # the same base image, another draw
    said = legacy(*words, "--base_samples", maps, "--num_samples", 1, log="coarse")
    assert any("trained to make 8 x 256" in line for line in said)
    assert drawn("samples_1x32x1024x1.npz", "coarse")[0].shape == (1, 32, 1024, 1)


def test_a_checkpoint_of_the_original_runs(
    legacy: Legacy, refused: Refused, shared_data: Callable[[str], Path]
) -> None:
    """Its flags as its scripts took them: square, three channels, nothing beside the file."""
    folder = shared_data("diffusion-reference")
    flags = ("--image_size", 32, "--num_channels", 32, "--num_res_blocks", 1, "--attention_resolutions", 16)
    words = ("image_sample", "--model_path", folder / "model000000.pt", "--num_samples", 1, "--use_ddim", "True")
    said = legacy(*words, *flags, "--timestep_respacing", "ddim2")
    assert any("no lungwave.json beside it" in line and "num_heads 4" in line for line in said)
    assert drawn("samples_1x32x32x3.npz")[0].shape == (1, 32, 32, 3)
    legacy(*words, "--timestep_respacing", "ddim2", "--size", "8,64", log="wide")  # what the file says is not asked
    assert drawn("samples_1x8x64x3.npz", "wide")[0].shape == (1, 8, 64, 3)
    assert "24 x 30 needs width divisible by 8" in refused(*words, "--size", "24,30")
    assert "give height,width" in refused(*words, "--size", "24")


def test_what_cannot_be_sampled_is_refused(refused: Refused, trained: Path, tmp_path: Path) -> None:
    model = trained / "plain/model000002.pt"
    sample = ("image_sample", "--num_samples", 1, "--model_path")
    assert "--model_path is missing" in refused("image_sample")
    assert "give model000002.pt" in refused(*sample, trained / "plain/opt000002.pt")
    said = refused(*sample, model, "--num_channels", 96, "--diffusion_steps", 4000, "--learn_sigma", "False")
    for part in ("num_channels=96 but the file has 8", "diffusion_steps=4000", "learn_sigma=False"):
        assert part in said
    assert "class_cond=False but the file has 1000 classes" in refused(
        *sample, trained / "classes/model000002.pt", "--class_cond", "False"
    )
    assert "use it with super_res_sample" in refused(*sample, trained / "fine/model000002.pt")
    fine = ("super_res_sample", "--model_path")
    assert "--base_samples is missing" in refused(*fine, model)
    np.savez(tmp_path / "base.npz", np.zeros((1, 2, 64, 3), np.uint8) + np.arange(3, dtype=np.uint8))
    assert "use it with image_sample" in refused(*fine, model, "--base_samples", "base.npz")
    said = refused(*fine, trained / "fine/model000002.pt", "--base_samples", "base.npz")
    assert "has 3 channels, the model 1" in said
    torch.save({"weights": [1, 2]}, tmp_path / "model000001.pt")
    assert "model000001.pt" in refused(*sample, tmp_path / "model000001.pt")
    assert "nearest" in refused(*sample, model, "--timestep_respacing", "ddim7")


def test_an_early_average_is_announced(legacy: Legacy, trained: Path) -> None:
    words = ("--num_samples", 1, "--timestep_respacing", 2)
    said = legacy("image_sample", "--model_path", trained / "plain/ema_0.9999_000002.pt", *words)
    assert any("100.0 % of this average is still the random start" in line for line in said)


def test_bits_per_dimension_are_the_sum_of_their_terms(legacy: Legacy, trained: Path, maps: Path) -> None:
    words = ("image_nll", "--model_path", trained / "plain/model000002.pt", "--data_dir", maps)
    said = legacy(*words, "--num_samples", 5, "--batch_size", 2)
    terms = {name: drawn(f"{name}_terms.npz")[0] for name in ("vb", "mse", "xstart_mse")}
    assert all(term.shape == (24,) for term in terms.values())
    found = re.search(r"evaluation complete: (\S+) bits per dimension of 5 images", said[-1])
    assert found
    prior = 1e-2  # T = 24 linear steps leave next to no signal; the bound adds what little there is
    assert float(found[1]) == pytest.approx(float(terms["vb"].sum()), abs=prior)
    other = legacy(*words, "--num_samples", 5, "--batch_size", 5, log="other")[-1]
    assert float(re.findall(r"complete: (\S+)", other)[0]) == pytest.approx(float(found[1]), rel=1e-4)
    said = legacy(*words, "--num_samples", 100, "--batch_size", 6, log="all")
    assert any("there are 6 images, each is evaluated once" in line for line in said)


def test_images_of_another_kind_are_not_evaluated(
    legacy: Legacy, refused: Refused, trained: Path, maps: Path, tmp_path: Path
) -> None:
    nll = ("image_nll", "--data_dir", maps, "--model_path")
    Image.fromarray(np.eye(32, dtype=np.uint8)).save(_made(tmp_path / "squares") / "a_1.png")
    assert "1 channel of 32 x 32, the model 1 channel of 8 x 256" in refused(
        *nll, trained / "plain/model000002.pt", "--data_dir", "squares"
    )
    labelled = trained / "classes/model000002.pt"
    assert "add --class_cond True" in refused(*nll, labelled)
    shutil.copytree(maps, tmp_path / "more")
    shutil.copy(maps / "edema_1.png", tmp_path / "more/asthma_9.png")
    assert "class asthma is unknown" in refused(*nll, labelled, "--data_dir", "more", "--class_cond", "True")
    words = (*nll, labelled, "--class_cond", "True", "--batch_size", 6, "--timestep_respacing", 4)
    assert "of 6 images" in legacy(*words)[-1]


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_bytes_are_cut_off_not_rounded() -> None:
    x = torch.tensor([-2.0, -1.0, -1 + 1.99 / 127.5, 0.0, 1.0, 3.0]).reshape(1, 1, 1, 6)
    assert to_bytes(x).ravel().tolist() == [0, 0, 1, 127, 255, 255]


def test_the_grid_holds_every_image() -> None:
    images = np.random.default_rng(0).integers(0, 200, (5, 8, 64, 1)).astype(np.uint8)
    sheet = grid(images)
    windows = np.lib.stride_tricks.sliding_window_view(sheet[..., 0], (8, 64))
    for image in images:
        assert (windows == image[..., 0]).all((2, 3)).any()


def test_the_reports_conversion(legacy: Legacy, refused: Refused, tmp_path: Path) -> None:
    """First 32 rows, 4 x 4 means, one PNG for each tensor, by its number; no words needed where the tensors lie."""
    assert "holds no .pt" in refused("process_data_to_1chanelPNG")
    value = torch.rand(40, 1025, generator=torch.Generator().manual_seed(0))
    torch.save(value, tmp_path / "lung_17.pt")
    said = legacy("process_data_to_1chanelPNG")
    assert said == ["1 maps, 8 x 256, 100 % air = fraction, 1 columns left out -> datasets/lung_8_256"]
    with Image.open("datasets/lung_8_256/17.png") as picture:
        mean = torch.nn.functional.avg_pool2d(value[None, :32, :1024], 4)[0]
        np.testing.assert_allclose(np.asarray(picture) / 255, mean, atol=0.51 / 255)
    torch.save(value[:20], tmp_path / "lung_18.pt")
    assert "32 rows x 1024 columns are the least" in refused("process_data_to_1chanelPNG")
