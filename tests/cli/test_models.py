"""Models of other programs: what is read, imported, checked, exported, and refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lungwave.cli import main
from lungwave.models.checkpoint import load_model, plain, save_model
from lungwave.models.gaussian import Gaussian
from lungwave.models.openai import openai_denoiser
from lungwave.models.precond import Preconditioned, Scaling
from lungwave.models.unet import UNet, UNetConfig
from lungwave.sample import generate
from lungwave.shipped import SHIPPED

DOCS = Path(__file__).resolve().parents[2] / "docs"

TINY = ("--image_size", "256", "--num_channels", "8", "--num_res_blocks", "1", "--attention_resolutions", "1",
        "--num_heads", "2", "--diffusion_steps", "24")  # fmt: skip


@pytest.fixture
def said(capfd: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Run words that must succeed; what they print as JSON."""

    def run(*words: object) -> dict[str, Any]:
        code = main([*map(str, words), "--json"])
        out, err = capfd.readouterr()
        assert code == 0, err
        return json.loads(out)

    return run


@pytest.fixture(scope="module")
def attentive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a network that learned two-valued maps around strong attention of four heads, and such maps."""
    folder = tmp_path_factory.mktemp("attentive")
    torch.manual_seed(0)
    net, process = UNet(UNetConfig(channels=16, channel_mult=(1, 2), blocks=1, attention=(1,))), Gaussian(steps=100)
    for name, value in net.named_parameters():
        if "qkv" in name or "proj_out" in name:  # as long training leaves it; else heads would not matter
            torch.nn.init.normal_(value, std=0.5 if "qkv" in name else 0.3).requires_grad_(False)

    def draw(count: int) -> torch.Tensor:
        return torch.randint(0, 2, (count, 1, 1, 2)).float().repeat_interleave(4, 3).expand(-1, 1, 8, 8).contiguous()

    learner = torch.optim.Adam([value for value in net.parameters() if value.requires_grad], 3e-3)
    for step in range(240):
        learner.param_groups[0]["lr"] = 3e-3 * (1 - step / 240)
        clean, t = 2 * draw(32) - 1, torch.randint(0, 100, (32,))
        noise = torch.randn_like(clean)
        guess = net(process.q_sample(clean, t, noise), process.model_time(t.float()))
        learner.zero_grad()
        (guess - noise).square().mean().backward()
        learner.step()
    torch.save(net.state_dict(), folder / "model000240.pt")
    np.savez(folder / "maps.npz", maps=draw(32).numpy())
    return folder


def test_the_original_checkpoint_is_sampled_as_its_denoiser(
    shared_data: Callable[[str], Path], tmp_path: Path, said: Callable[..., dict[str, Any]]
) -> None:
    path = shared_data("diffusion-reference") / "model000000.pt"
    found = said("model", "import", path, "--out", tmp_path / "m", "--flags", "--rescale_timesteps False --lr 1e-4")
    assert found["assumed"]["num_heads"] == 4 and "rescale_timesteps" not in found["assumed"]
    said("sample", tmp_path / "m", "--out", tmp_path / "s", "--count", 2, "--steps", 3, "--quiet")
    denoiser, _ = openai_denoiser(path, {"rescale_timesteps": False})
    wanted = (generate(denoiser, (3, 32, 32), 2, seed=0, steps=3) / 2 + 0.5).clamp(0, 1)
    with np.load(tmp_path / "s/samples.npz") as drawn:
        np.testing.assert_allclose(drawn["maps"], wanted.numpy(), atol=1e-5)


def test_a_legacy_training_goes_to_a_model_and_back_with_its_strides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Callable[..., dict[str, Any]]
) -> None:
    maps, run = tmp_path / "maps", tmp_path / "run"
    maps.mkdir()
    for number in range(3):
        coarse = np.random.default_rng(number).integers(0, 256, (2, 32)).astype(np.uint8)
        Image.fromarray(coarse).resize((256, 8)).save(maps / f"map_{number}.png")
    monkeypatch.setenv("OPENAI_LOGDIR", str(run))
    monkeypatch.setenv("OPENAI_LOG_FORMAT", "log")
    assert main(["legacy", "image_train", "--data_dir", str(maps), "--max_steps", "2", *TINY]) == 0
    found = said("model", "info", run / "model000002.pt")
    assert (found["size"], found["network"]["heads"], found["denoiser"]["noising"]["steps"]) == ([8, 256], 2, 24)
    said("model", "import", run / "model000002.pt", "--out", tmp_path / "m")
    said("model", "export", tmp_path / "m", "--out", tmp_path / "back", "--format", "openai")
    said("model", "import", tmp_path / "back/model000000.pt", "--out", tmp_path / "again")
    one, two = load_model(tmp_path / "m"), load_model(tmp_path / "again")
    assert one.size == two.size == (8, 256)
    for name in ("network", "denoiser", "scaling", "weights_sha256"):
        assert one.config[name] == two.config[name]
    assert plain(one.denoiser).config.strides != ()
    assert said("model", "info", tmp_path / "m")["trained"] == {"source": "model000002.pt"}


def test_right_heads_pass_and_wrong_heads_warn(
    attentive: Path, tmp_path: Path, said: Callable[..., dict[str, Any]]
) -> None:
    words = ("model", "import", attentive / "model000240.pt", "--size", 8, 8, "--check", attentive / "maps.npz")
    right, wrong = (
        said(*words, "--out", tmp_path / heads, "--flags", f"--num_heads {heads} --diffusion_steps 100")
        for heads in ("4", "1")
    )
    assert right["verdict"].startswith("passed"), right["verdict"]
    assert wrong["verdict"].startswith("WARNING"), wrong["verdict"]
    assert "num_heads=4" in wrong["verdict"]
    assert [row["sigma"] for row in right["check"]] == sorted(row["sigma"] for row in wrong["check"])


def test_a_diffusers_folder_keeps_its_network(tmp_path: Path, said: Callable[..., dict[str, Any]]) -> None:
    # One head size in all levels, as a UNet2DModel has it.
    state = UNet(UNetConfig(channels=32, channel_mult=(1, 2), blocks=1, heads=2)).state_dict()
    source = tmp_path / "model.pt"
    torch.save(state, source)
    said("model", "import", source, "--out", tmp_path / "m", "--size", 8, 16, "--flags", "--num_heads 2")
    said("model", "export", tmp_path / "m", "--out", tmp_path / "d")
    assert said("model", "info", tmp_path / "d")["kind"] == "diffusers"
    said("model", "import", tmp_path / "d", "--out", tmp_path / "again", "--predicts", "x0", "--steps", 50)
    again = load_model(tmp_path / "again")
    assert again.size == (8, 16)
    assert again.config["denoiser"]["predicts"] == "x0" and again.config["denoiser"]["noising"]["steps"] == 50
    x, time = torch.randn(1, 1, 8, 16), torch.tensor([3.0])
    with torch.no_grad():
        a, b = (plain(load_model(tmp_path / name).denoiser)(x, time) for name in ("m", "again"))
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_what_cannot_be_imported_is_one_line(attentive: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    model = attentive / "model000240.pt"
    torch.save({"state": {}, "param_groups": []}, tmp_path / "opt000240.pt")
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").write_text("x")
    np.savez(tmp_path / "wide.npz", maps=np.random.default_rng(0).random((3, 8, 16)))
    np.savez(tmp_path / "flat.npz", maps=np.ones((3, 8, 8)))
    to = ("model", "import", model, "--out", "out")
    assert "optimiser" in refused("model", "import", "opt000240.pt", "--out", "out", "--size", 8, 8)
    assert "num_channels" in refused(*to, "--size", 8, 8, "--flags", "--num_channels 32")
    assert "did you mean" in refused(*to, "--size", 8, 8, "--flags", "--num_haeds 4")
    assert "no value" in refused(*to, "--size", 8, 8, "--flags", "--num_heads --lr 3")
    assert "divisible" in refused(*to, "--size", 7, 8)
    assert "--size" in refused(*to)
    assert "8 x 16" in refused(*to, "--size", 8, 8, "--check", "wide.npz")
    assert "nothing to learn" in refused(*to, "--size", 8, 8, "--check", "flat.npz")
    assert "--steps" in refused(*to, "--size", 8, 8, "--steps", 10)
    assert "is a file" in refused("model", "import", model, "--out", "file", "--size", 8, 8)
    assert "not empty" in refused("model", "import", model, "--out", "full", "--size", 8, 8)
    assert "nowhere" in refused("model", "import", "nowhere.pt", "--out", "out")
    assert "no such folder" in refused("model", "info", "nowhere")
    ours = Preconditioned(UNet(UNetConfig(channels=8, channel_mult=(1,), blocks=1, heads=2, patch=(2, 2))))
    save_model("ours", ours, Scaling(), (8, 8), card="# A model", command="lungwave train")
    assert "continuous" in refused("model", "export", "ours", "--out", "out", "--format", "openai")
    assert "patches" in refused("model", "export", "ours", "--out", "out")
    assert not (tmp_path / "out").exists()


def test_an_early_average_is_named(attentive: Path, tmp_path: Path, said: Callable[..., dict[str, Any]]) -> None:
    early = tmp_path / "ema_0.9999_000240.pt"
    early.write_bytes((attentive / "model000240.pt").read_bytes())
    assert "random start" in said("model", "info", early, "--size", 8, 8)["notes"][0]


def test_a_card_takes_what_evaluations_found_and_no_other_models(
    tmp_path: Path, said: Callable[..., dict[str, Any]], refused: Callable[..., str]
) -> None:
    """Figures replace those that stood there, the rest of the card stays, other weights are refused."""
    model = tmp_path / "prior"
    shutil.copytree(SHIPPED / "prior-strip", model)
    card = model / "README.md"
    before = card.read_text(encoding="utf-8")
    found = json.loads((DOCS / "results" / "prior_prior-strip.json").read_text(encoding="utf-8"))
    said("model", "card", model, "--results", DOCS / "results" / "prior_prior-strip.json")
    assert card.read_text(encoding="utf-8") == before  # that is how the shipped card was made
    copies = found["results"]["memorisation"] | {"share": 0.125, "p": 0.5}
    result = tmp_path / "memorisation.json"
    result.write_text(json.dumps({**found, "results": copies, "parents": {}}), encoding="utf-8")
    said("model", "card", model, "--results", result)
    after = card.read_text(encoding="utf-8")
    head, _, findings = after.partition("\n## What evaluations found\n")
    assert before.startswith(head)
    assert "12.5% of the samples; by chance 1.0% (p = 0.5)" in findings
    assert "KID" not in findings
    assert after.count("Research use only") == 1

    other = DOCS / "results" / "prior_prior-tiny.json"
    assert "is about the weights" in refused("model", "card", str(model), "--results", str(other))
    assert "not a result that a card can take" in refused("model", "card", str(model), "--results", str(card))
    assert "holds no model.safetensors" in refused("model", "card", str(tmp_path), "--results", str(result))
    assert card.read_text(encoding="utf-8") == after
