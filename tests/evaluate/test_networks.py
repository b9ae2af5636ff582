"""Networks from weights files: known sizes and counts, a transformer block against PyTorch's own, refused files.

Both networks were compared once with torch-fidelity 0.4.0 and transformers 5.24.0 on the same random weights, equal bit
by bit; neither is needed here.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lungwave.cli import main
from lungwave.data.maps import save_npz
from lungwave.evaluate.networks import Block, DinoV2, Inception, NetworkFeatures, network_features
from lungwave.types import UsageError


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.fixture(scope="module")
def small() -> dict[str, torch.Tensor]:
    """Weights of a DINOv2 of one block, with what a checkpoint holds beside."""
    torch.manual_seed(0)
    net = DinoV2(64, 1, 9, 4)
    for p in net.parameters():
        nn.init.normal_(p, std=0.3)
    return {**net.state_dict(), "mask_token": torch.zeros(1, 64)}


def test_inception_has_the_published_counts_and_sizes() -> None:
    net = Inception().eval()
    assert parameters(net) == 21_785_568
    sizes = {}
    for name in ("Mixed_5d", "Mixed_6e", "Mixed_7c"):
        getattr(net, name).register_forward_hook(lambda m, i, o, name=name: sizes.update({name: tuple(o.shape[1:])}))
    with torch.inference_mode():
        assert net(torch.rand(1, 1, 75, 180)).shape == (1, 2048)
        assert net(torch.rand(1, 1, 299, 299)).shape == (1, 2048)
    assert sizes == {"Mixed_5d": (288, 35, 35), "Mixed_6e": (768, 17, 17), "Mixed_7c": (2048, 8, 8)}


def test_dinov2_has_the_published_counts_and_pytorchs_block() -> None:
    assert parameters(DinoV2(384, 12, 37 * 37, 0)) == 22_056_192
    torch.manual_seed(1)
    ours = Block(128).eval()
    known = nn.TransformerEncoderLayer(
        128, 2, 512, 0.0, "gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
    ).eval()
    pairs = {
        "norm1": "norm1", "norm2": "norm2", "attn.proj": "self_attn.out_proj",
        "mlp.fc1": "linear1", "mlp.fc2": "linear2",
    }  # fmt: skip
    held = known.state_dict()
    state = {f"{a}.{end}": held[f"{b}.{end}"] for a, b in pairs.items() for end in ("weight", "bias")}
    state |= {f"attn.qkv.{end}": held[f"self_attn.in_proj_{end}"] for end in ("weight", "bias")}
    state |= {f"ls{k}.gamma": torch.ones(128) for k in (1, 2)}
    ours.load_state_dict(state)
    x = torch.rand(2, 7, 128)
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), known(x), rtol=1e-5, atol=1e-5)


def test_features_do_not_depend_on_the_batch_and_sizes_are_not_distorted(
    small: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    torch.save(small, tmp_path / "dino.pth")
    found = network_features("dinov2", tmp_path / "dino.pth")
    maps = np.random.default_rng(0).random((18, 28, 42)).astype(np.float32)
    together = found(maps)
    assert together.shape == (18, 64)
    np.testing.assert_allclose(found(maps[17:]), together[17:], rtol=1e-4, atol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 1e-3
    assert found.size((64, 64)) == (224, 224) and found.size((8, 256)) == (14, 448)
    inception = NetworkFeatures("inception", Inception(), "")
    assert inception.size((64, 64)) == (299, 299) and inception.size((8, 256)) == (75, 2400)


def test_other_files_are_refused(small: dict[str, torch.Tensor], tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
            return Path.touch, (tmp_path / "executed",)  # type: ignore[return-value]

    good = tmp_path / "dino.pth"
    torch.save(small, good)
    digest = hashlib.sha256(good.read_bytes()).hexdigest()
    assert network_features("dinov2", good, digest[:10]).sha256 == digest
    named = tmp_path / f"dino-{digest[:8]}.pth"
    named.write_bytes(good.read_bytes())
    assert network_features("dinov2", named).sha256 == digest
    wrong = tmp_path / "dino-00000000.pth"
    wrong.write_bytes(good.read_bytes())
    evil = tmp_path / "evil.pth"
    evil.write_bytes(pickle.dumps(Payload()))
    for path, name, hash_, said in (
        (wrong, "dinov2", None, "its name says 00000000"),
        (good, "dinov2", "abc", "--sha256 says abc"),
        (good, "inception", None, "holds no weights of inception"),
        (evil, "dinov2", None, "holds no weights of dinov2"),
        (tmp_path / "gone.pth", "dinov2", None, "does not exist"),
        (good, "vgg", None, "choose from inception, dinov2"),
    ):
        with pytest.raises(UsageError, match=said):
            network_features(name, path, hash_)
    assert not (tmp_path / "executed").exists()


def test_the_verb_adds_the_networks_distances(
    small: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(small, "dino.pth")
    rng = np.random.default_rng(0)
    for name, count in (("fresh", 20), ("held", 24), ("train", 30)):
        save_npz(Path(f"{name}.npz"), maps=rng.random((count, 16, 16)).astype(np.float32))
    words = ["evaluate", "generative", "fresh.npz", "--reference", "held.npz", "--train", "train.npz", "--quiet"]
    assert main([*words, "--network", "dinov2", "--weights", "dino.pth"]) == 0
    about = json.loads(Path("lungwave-generated/generative.json").read_text())
    assert about["results"]["network"]["sha256"] == hashlib.sha256(Path("dino.pth").read_bytes()).hexdigest()
    assert about["results"]["features"]["dinov2"]["frechet"]["value"] >= 0
    assert "| dinov2 |" in Path("lungwave-generated/generative.md").read_text()
    assert main([*words, "--network", "dinov2"]) == 2
    assert "go together" in capfd.readouterr().err
