"""Generated maps judged against real ones, from files to tables and pictures in a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from lungwave.data.mapset import MapSet, read_maps
from lungwave.evaluate.cases import to_json
from lungwave.evaluate.copying import RATIO, Suspicion, suspected
from lungwave.evaluate.generative import Featured, compare, extracted, table_lines
from lungwave.evaluate.manifold import diversity, overlap, vendi
from lungwave.evaluate.memorisation import SHIFT, Memorisation, Nearest, memorisation
from lungwave.evaluate.networks import NetworkFeatures
from lungwave.figures import PALETTE, style
from lungwave.figures_evaluation import COLOURS, LOOSE
from lungwave.page import save_table
from lungwave.prior.pictures import save_figure, save_grid
from lungwave.repro import manifest, stream, write_json
from lungwave.types import RESEARCH_USE, UsageError

VENDI = 1000  # most maps of a Vendi score
SHOWN = 64  # maps in a grid
GALLERY = 8  # pairs of nearest maps that are shown
ANY = "all"  # category of maps that state none


@dataclass(frozen=True)
class Sets:
    """Samples, the maps that they are like, and real maps that no training saw; one channel, one size."""

    samples: MapSet
    train: MapSet
    held_out: MapSet
    notes: tuple[str, ...] = ()


def read_sets(samples: Path, held_out: Path, train: Path | None) -> Sets:
    """The sets from files; without ``train``, half of the groups of ``held_out`` stand in for it.

    Raises UsageError for files that hold no maps, more than one channel, or other sizes and value ranges.
    """
    ours, real = _one_channel(samples), _one_channel(held_out)
    if train is None:
        seen, real = real.split(0.5, 0)
        notes: tuple[str, ...] = (f"{held_out} was cut in two: {len(seen)} maps stand in for those of the training",)
    else:
        seen, notes = _one_channel(train), ()
    for name, maps in ((held_out, real), (train or held_out, seen)):
        if maps.size != ours.size:
            raise UsageError(
                f"{samples} holds maps of {ours.size[0]} x {ours.size[1]}, {name} of {maps.size[0]} x {maps.size[1]}; "
                "compare maps of one size"
            )
    return Sets(ours, seen, real, (*notes, *ours.notes, *real.notes))


def _one_channel(path: Path) -> MapSet:
    maps = read_maps(path, labels=_named(path))
    if maps.channels != 1:
        raise UsageError(f"{path}: maps have {maps.channels} channels; give maps of aeration alone")
    return maps


def _named(path: Path) -> bool:
    """Whether a folder's images are named CATEGORY_NUMBER; other files state their categories themselves."""
    names = [image.stem for image in path.glob("*.png")] if path.is_dir() else []
    return bool(names) and all(name.partition("_")[0].isalpha() and "_" in name for name in names)


def _shuffled(maps: MapSet, seed: int) -> Float[np.ndarray, "n z x"]:
    """Files list maps by category or case; a fixed shuffle makes every first n a random subset."""
    return maps.fraction()[stream(seed, "shuffle").permutation(len(maps)), 0]


def judge_generated(
    sets: Sets, out: Path, command: str, seed: int = 0, network: NetworkFeatures | None = None
) -> dict[str, Any]:
    """Distances with their floors, overlap, diversity, statistics of lungs: generative.md, .json and samples.png.

    ``network`` adds its features, raw, to those that need no weights.
    """
    ours, seen, real = (_shuffled(part, k) for k, part in enumerate((sets.samples, sets.train, sets.held_out)))
    features = extracted(ours, seen, real)
    if network is not None:
        features[network.name] = Featured(*(network(maps) for maps in (ours, seen, real)))
    found = compare(ours, seen, real, features, seed)
    found["overlap"], found["diversity"] = {}, {}
    size = min(len(ours), len(real), VENDI)
    for name, part in features.items():
        sides = {"samples": part.samples, "train": part.train[: max(len(real), 6)]}
        found["overlap"][name] = {key: asdict(overlap(side, part.held_out)) for key, side in sides.items()}
        found["diversity"][f"Vendi, {name}"] = {
            "samples": vendi(part.samples[:size]), "held out": vendi(part.held_out[:size]),
        }  # fmt: skip
    found["diversity"]["MS-SSIM of pairs"] = {"samples": diversity(ours, seed), "held out": diversity(real, seed)}
    notes = sets.notes
    if network is not None:
        found["network"] = {
            "name": network.name,
            "sha256": network.sha256,
            "size": list(network.size(sets.samples.size)),
        }
        z, x = found["network"]["size"]
        notes = (*notes, f"{network.name}: weights {network.sha256[:16]}, maps scaled to {z} x {x}")
    text = _generative_text(found, command, notes, size)
    save_grid(np.clip(ours[:SHOWN], 0, 1), out / "samples.png", f"{min(len(ours), SHOWN)} samples")
    save_grid(np.clip(real[:SHOWN], 0, 1), out / "held_out.png", f"{min(len(real), SHOWN)} real maps")
    _write(out, "generative", text, {"results": found}, sets, command, seed)
    kid = found["features"]["wavelet"]["kid"]
    return {
        "maps": found["maps"],
        "kid_wavelet": kid["value"],
        "kid_floor": kid["floor"],
        "recall_wavelet": found["overlap"]["wavelet"]["samples"]["recall"],
        "table": str(out / "generative.md"),
        "page": str(out / "generative.html"),
    }


def _generative_text(found: Mapping[str, Any], command: str, notes: tuple[str, ...], size: int) -> str:
    maps = found["maps"]
    lines = [
        "# Generated maps beside real ones",
        "",
        f"Made by `{command}`; {maps['samples']} samples, {maps['held_out']} real maps, {maps['train']} of the "
        f"training, {maps['size'][0]} x {maps['size'][1]} pixels. Every distance stands beside its floor: the same "
        f"distance of training maps to the real maps. {RESEARCH_USE}",
        "",
        *(f"- {note}." for note in notes),
        "",
        "![Samples](samples.png)",
        "",
        "![Real maps](held_out.png)",
        "",
        *table_lines(dict(found)),
        "",
        "## Overlap with the real maps",
        "",
        "Precision: samples near a real map. Recall: real maps near a sample. Density: samples around real maps over "
        "those expected. Coverage: real maps with a sample among their neighbours. In brackets, training maps instead.",
        "",
        "| features | precision | recall | density | coverage |",
        "|---|---|---|---|---|",
    ]
    for name, parts in found["overlap"].items():
        cells = [f"{parts['samples'][k]:.2f} ({parts['train'][k]:.2f})" for k in parts["samples"]]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [
        "",
        "## Diversity",
        "",
        f"Vendi: effective number of different maps among {size}. MS-SSIM of random pairs: the nearer to 1, the more "
        "alike.",
        "",
        "| | samples | real |",
        "|---|---|---|",
    ]
    for name, parts in found["diversity"].items():
        lines.append(f"| {name} | {parts['samples']:.3g} | {parts['held out']:.3g} |")
    return "\n".join(lines) + "\n"


def judge_memorisation(sets: Sets, out: Path, command: str, shifts: int = SHIFT, seed: int = 0) -> dict[str, Any]:
    """Nearest training map of each sample against held-out maps: memorisation.md, .json, pictures.

    The report's figure, by category where samples or training maps name theirs, with the distances that real maps
    never trained on have.
    """
    ours, seen, real = (part.fraction()[:, 0] for part in (sets.samples, sets.train, sets.held_out))
    found = memorisation(ours, seen, real, shifts, seed)
    spaces = {"pixels, moved": found.said}
    for name, part in extracted(ours, seen, real, ("wavelet", "spectrum")).items():
        spaces[name] = suspected(*part, seed)
    labels = _categories(sets.samples, sets.train, found.samples)
    known = _categories(sets.held_out, sets.train, found.held_out)
    by_category = {}
    for name in sorted(set(labels)):
        mine, real_ones = labels == name, known == name
        by_category[name] = {
            "samples": int(mine.sum()),
            "least": float(found.samples.distance[mine].min()),
            "median": float(np.median(found.samples.distance[mine])),
            "held_out": int(real_ones.sum()),
            "median_held_out": float(np.median(found.held_out.distance[real_ones])) if real_ones.any() else None,
            "suspects": float(found.suspects[mine].mean()),
        }
    _distance_figure(found, labels, known, out / "distances.png")
    _gallery(found, ours, seen, out / "nearest.png")
    text = _memorisation_text(found, spaces, by_category, sets, command, shifts)
    results = {"results": found.summary(), "spaces": spaces, "categories": by_category}
    _write(out, "memorisation", text, to_json(results), sets, command, seed)
    files = {"table": str(out / "memorisation.md"), "page": str(out / "memorisation.html")}
    return {**found.summary(), "categories": by_category, **files}


def _categories(maps: MapSet, train: MapSet, nearest: Nearest) -> np.ndarray:
    """Category of each map: its own, else that of its nearest training map, else ``ANY``."""
    for named, rows in ((maps, np.arange(len(maps))), (train, nearest.index)):
        if named.classes and (named.labels[rows] >= 0).all():
            return np.array(named.classes)[named.labels[rows]]
    return np.full(len(maps), ANY)


def _distance_figure(found: Memorisation, labels: np.ndarray, known: np.ndarray, path: Path) -> None:
    """Distribution of the least distance of each category, over that of held-out maps of the category, or of all."""
    names = sorted(set(labels))
    top = max(float(found.samples.distance.max()), float(found.held_out.distance.max()))
    bins = np.linspace(0, top * 1.02 + 1e-9, 41)
    with style(9.0):
        figure = Figure(figsize=(7.2, 1.1 + 1.5 * len(names)), layout="constrained")
        panels = np.atleast_1d(figure.subplots(len(names), 1, sharex=True))
        for k, (ax, name) in enumerate(zip(panels, names, strict=True)):
            real = found.held_out.distance[known == name] if (known == name).any() else found.held_out.distance
            weight = np.full(len(real), 1 / len(real))
            ax.hist(real, bins, weights=weight, color=LOOSE, alpha=0.5, label=f"real, held out, {len(real)} maps")
            mine = found.samples.distance[labels == name]
            ax.hist(
                mine, bins, weights=np.full(len(mine), 1 / len(mine)), histtype="step", lw=1.4,
                color=COLOURS[k % len(COLOURS)], label=f"{name}, {len(mine)} samples",
            )  # fmt: skip
            ax.axvline(found.said.threshold, color=PALETTE["truth"], lw=0.9, ls="--")
            ax.set_ylabel("share")
            ax.legend(frameon=False, loc="upper right")
        panels[-1].set_xlabel("root mean square distance to the nearest training map (fraction of air)\n"
                              "dashed: 1st percentile of held-out maps")  # fmt: skip
        save_figure(figure, path)


def _gallery(found: Memorisation, ours: np.ndarray, seen: np.ndarray, path: Path) -> None:
    """The samples that are nearest to a training map, each beside that map."""
    order = np.argsort(found.samples.distance)[:GALLERY]
    pairs = []
    for k in order:
        other = seen[found.samples.index[k]]
        pairs += [ours[k], other[:, ::-1] if found.samples.flip[k] else other]
    save_grid(np.clip(np.stack(pairs), 0, 1), path, "samples nearest to the training, each before its nearest map")


def _memorisation_text(
    found: Memorisation,
    spaces: Mapping[str, Suspicion],
    by_category: Mapping[str, Any],
    sets: Sets,
    command: str,
    shifts: int,
) -> str:
    number, said = found.summary(), found.said
    tests = [p for s in spaces.values() for p in (s.p, s.copying_p) if np.isfinite(p)]
    verdict = "copies are among them" if len(tests) * min(tests) < 0.01 else "no sign of copies"
    lines = [
        "# Are samples copies of the training?",
        "",
        f"Made by `{command}`; {len(sets.samples)} samples, {len(sets.train)} training and {len(sets.held_out)} "
        f"held-out maps, over flips and lateral shifts of up to {shifts} pixels. {RESEARCH_USE}",
        "",
        *(f"- {note}." for note in sets.notes),
        "",
        "![Distances](distances.png)",
        "",
        "![Nearest pairs](nearest.png)",
        "",
        f"**{verdict}**: {said.share:.1%} of the samples are nearer to a training map than the 1st percentile of "
        f"held-out maps, where {said.expected:.1%} of fresh real maps would be (p = {said.p:.2g}). Median distance "
        f"{number['median_distance']:.4f}, of held-out maps {number['median_distance_held_out']:.4f}.",
        "",
        "The same in several spaces. Ratio: samples whose nearest training map is nearer than "
        f"{RATIO:.2f} of the second nearest. Copying: statistic of the data-copying test (Meehan et al. 2020), "
        "standard normal for fresh maps, negative where samples keep nearer to the training than real maps do. The "
        "verdict is at 1 %, Bonferroni over the tests.",
        "",
        "| space | below the threshold | expected | p | ratio | ratio, held-out | copying | p |",
        "|---|---|---|---|---|---|---|---|",
        *(
            f"| {name} | {s.share:.1%} | {s.expected:.1%} | {s.p:.2g} | {s.ratio:.1%} | {s.held_out_ratio:.1%} | "
            f"{s.copying:+.1f} | {s.copying_p:.2g} |"
            for name, s in spaces.items()
        ),
        "",
        "| category | samples | least distance | median | median of held-out maps | below the threshold |",
        "|---|---|---|---|---|---|",
    ]
    for name, part in by_category.items():
        real = "-" if part["median_held_out"] is None else f"{part['median_held_out']:.4f}"
        lines.append(
            f"| {name} | {part['samples']} | {part['least']:.4f} | {part['median']:.4f} | {real} | "
            f"{part['suspects']:.1%} |"
        )
    return "\n".join(lines) + "\n"


def _write(
    out: Path, name: str, text: str, found: dict[str, Any], sets: Sets, command: str, seed: int
) -> None:  # fmt: skip
    save_table(out / f"{name}.md", text)
    digests = {key: getattr(sets, key).digest for key in ("samples", "train", "held_out")}
    about = manifest(json.dumps({"command": command}), seed, command=command, maps=digests)
    write_json(out / f"{name}.json", {**found, **about})
