"""RF in; aeration map and percent aeration with intervals out, or the reason why not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Float

from lungwave.acoustics.beamform import PixelGrid
from lungwave.acoustics.bmode import PIXELS_AT_MOST, bmode, display_grid
from lungwave.acoustics.image import BMode
from lungwave.acoustics.probe import Recording, Scan
from lungwave.acoustics.receive import record_samples
from lungwave.phantom.aeration import Truth, map_columns
from lungwave.posterior.adapt import adapt
from lungwave.posterior.amortized import KIND as POSTERIOR
from lungwave.posterior.amortized import PosteriorModel, load_posterior
from lungwave.posterior.folder import kind_of
from lungwave.posterior.information import information_depth
from lungwave.posterior.linear import LEVELS
from lungwave.posterior.ridge import Estimate, RidgeModel, load_model
from lungwave.posterior.summary import Band, Reconstruction, summarise
from lungwave.posterior.walking import Strips, one_by_one, walks
from lungwave.shipped import ECHOES, model_folder
from lungwave.types import MM, UsageError

DEFAULT = "posterior-tiny"  # the shipped model that reconstructs unless another is named
LEVEL = 0.9
METHOD = "posterior"
SAMPLES = 32  # of a posterior: 90 % intervals need 19
AnyModel: TypeAlias = RidgeModel | PosteriorModel
UNSURE = (
    1.0  # [wavelength] doubt of a column's pleura: noise alone has more in 97 % of the columns, lungs at 10 dB in 2
)
MOST_UNSURE = 0.5  # share of the columns
PIXELS_PER_WAVELENGTH = 6  # of the B-mode, smooth to the eye


def bundled_model() -> AnyModel:
    """The model that reconstructs unless another is named, trained on the tiny preset."""
    return load_any_model(Path(DEFAULT))


def out_of_range(scan: Scan, samples: int, trained: Scan, trained_samples: int) -> str | None:
    """Why a scan is not what the model was trained for, with both values; None where it is."""

    def differs(value: float, expected: float, tolerance: float) -> bool:
        return not abs(value - expected) <= tolerance * abs(expected)

    pitch, expected_pitch = scan.pitch, trained.pitch
    channels, expected_channels = scan.delays.shape[1], trained.delays.shape[1]
    duration, expected_duration = samples / scan.sampling_frequency, trained_samples / trained.sampling_frequency
    if scan.kind != trained.kind:
        return f"transmits are of kind '{scan.kind}', the model was trained on '{trained.kind}'"
    if channels != expected_channels or differs(pitch, expected_pitch, 0.02):
        return (
            f"the probe has {channels} elements at {pitch * 1e3:.3g} mm, the model was trained on "
            f"{expected_channels} at {expected_pitch * 1e3:.3g} mm"
        )
    if scan.kind == "focused" and differs(scan.focus_distance[0], trained.focus_distance[0], 0.05):
        focus, expected_focus = (float(s.focus_distance[0]) / MM for s in (scan, trained))
        return f"the focus lies at {focus:.3g} mm, the model was trained with {expected_focus:.3g} mm"
    if differs(scan.center_frequency, trained.center_frequency, 0.05):
        return (
            f"the centre frequency is {scan.center_frequency / 1e6:.3g} MHz, "
            f"trained {trained.center_frequency / 1e6:.3g} MHz"
        )
    if differs(scan.sampling_frequency, trained.sampling_frequency, 0.01) or scan.demodulation_frequency:
        return (
            f"the sampling frequency is {scan.sampling_frequency / 1e6:.4g} MHz of "
            f"{'I/Q' if scan.demodulation_frequency else 'RF'}, "
            f"trained {trained.sampling_frequency / 1e6:.4g} MHz of RF"
        )
    if scan.transmits != trained.transmits or np.abs(scan.angles - trained.angles).max(initial=0) > np.deg2rad(0.5):
        return f"angles are {_degrees(scan)} degrees, the model was trained on {_degrees(trained)}"
    if duration < 0.98 * expected_duration:
        return f"the record lasts {duration * 1e6:.3g} us, the model needs {expected_duration * 1e6:.3g} us"
    return None


def _degrees(scan: Scan) -> str:
    return scan.degrees if scan.transmits <= 8 else f"{scan.degrees}, ... ({scan.transmits})"


def reconstruct(
    recording: Recording,
    model: AnyModel | None = None,
    *,
    names: Iterable[str] | None = None,
    truths: Iterable[Truth | None] | None = None,
    categories: Iterable[str] | None = None,
    samples: int = SAMPLES,
    seed: int = 0,
    **how: Any,
) -> list[Reconstruction]:
    """One result per frame of ``recording``; a posterior model draws ``samples`` of each.

    ``how`` goes to ``PosteriorModel.draw``: sampler, steps, callback; other models have no use for it.
    The aeration is withheld, with the reason, where geometry or echoes lie outside what the model was trained on;
    the B-mode is drawn all the same. Raises UsageError where the recording itself is unusable.
    """
    recording.validate()
    model = model or bundled_model()
    frames = len(recording.rf)
    labels = list(names) if names is not None else [f"frame {i}" for i in range(frames)]
    known: list[Truth | None] = list(truths) if truths is not None else [None] * frames
    kinds = list(categories) if categories is not None else [""] * frames
    if isinstance(model, PosteriorModel):
        return _sampled(recording, model, labels, known, kinds, samples, seed, how)
    wide = next((len(truth.x) for truth in known if truth is not None), None)
    answer = answer_of(recording, model, wide)
    results = []
    pixels = _picture_grid(recording)
    for i in range(frames):
        picture = bmode(recording, pixels, frame=i)
        about = {"category": kinds[i]} if kinds[i] else {}
        why = answer if isinstance(answer, str) else _unlike(float(answer.estimate.novelty[i]))
        if why is not None or isinstance(answer, str):
            results.append(Reconstruction(labels[i], "ridge", picture, withheld=why, truth=known[i], manifest=about))
        else:
            results.append(_result(labels[i], model, answer, i, picture, known[i], about))
    return results


@dataclass(frozen=True)
class Answer:
    """What a ridge says of the frames of a recording."""

    estimate: Estimate
    x: Float[np.ndarray, " x"]  # [m] columns of the map
    usual: Bool[np.ndarray, "frame x"]  # columns under events like those of the training


def answer_of(recording: Recording, model: RidgeModel, columns: int | None = None) -> Answer | str:
    """The answer, or why there is none; a walking aperture is read event by event where the model knows one event.

    ``columns`` are those of the map of a walking aperture, without them it is as wide as the events reach.
    """
    trained, config, frames = model.scan, model.config, len(recording.rf)
    length = record_samples(config)
    heard, strips = recording, None
    try:
        if walks(recording.scan) and trained.transmits == 1:
            heard = one_by_one(recording, length)
            strips = Strips.under(recording.scan, config.map, columns)
        reason = out_of_range(heard.scan, heard.rf.shape[2], trained, length)
    except UsageError as error:
        reason = str(error)
    if reason is not None:
        return f"Outside the trained range: {reason}. Fit a model for this acquisition with 'lungwave fit'."
    found = model.predict(model.reader(heard.scan)(np.asarray(heard.rf, np.float32)))
    if strips is None:
        return Answer(found, map_columns(config.map), np.ones((frames, config.map.columns), bool))
    joined, usual = strips.join(found, frames)
    return Answer(joined, strips.x, usual)


def _picture_grid(recording: Recording) -> PixelGrid:
    """Of the B-mode: fine enough for the eye, or the default where that would be too many pixels."""
    scan, samples = recording.scan, recording.rf.shape[2]
    fine = display_grid(scan, samples, scan.sound_speed / scan.center_frequency / PIXELS_PER_WAVELENGTH)
    return fine if fine.shape[0] * fine.shape[1] <= PIXELS_AT_MOST else display_grid(scan, samples)


def load_any_model(folder: Path) -> AnyModel:
    """Read a ridge or a posterior model, of a folder or by its name. UsageError for what is neither."""
    inside = model_folder(folder, ECHOES)
    return load_posterior(inside) if kind_of(inside) == POSTERIOR else load_model(inside)


def _sampled(
    recording: Recording, model: PosteriorModel, labels: list[str], known: list[Truth | None], kinds: list[str],
    samples: int, seed: int, how: dict[str, Any],
) -> list[Reconstruction]:  # fmt: skip
    """Results of a posterior model."""
    config, scan = model.config, model.scan
    fitted = adapt(recording, scan, record_samples(config))
    pixels = _picture_grid(recording)
    pictures = [bmode(recording, pixels, frame=i) for i in range(len(labels))]
    about = [{"category": kind} if kind else {} for kind in kinds]
    if fitted.reason is not None:
        why = f"Outside the trained range: {fitted.reason}. Train a model for this acquisition with 'lungwave train'."
        given = zip(labels, pictures, known, about, strict=True)
        return [Reconstruction(n, METHOD, p, withheld=why, truth=t, manifest=facts) for n, p, t, facts in given]
    # the same noise for every frame: it gets the same samples in any file, and frames differ by their echoes alone
    drawn = model.draw(fitted.rf, samples, seed=seed, names=[0] * len(labels), **how)
    results = []
    for i, (label, picture, truth, facts) in enumerate(zip(labels, pictures, known, about, strict=True)):
        found = drawn.doubt[i] < UNSURE * scan.sound_speed / scan.center_frequency
        unusable = _unusable(float(drawn.novelty[i]), found)
        if unusable is not None:
            results.append(Reconstruction(label, METHOD, picture, withheld=unusable, truth=truth, manifest=facts))
            continue
        posterior = summarise(
            drawn.maps[i], drawn.bands[i], drawn.categories[i], model.prior_std, config.map, LEVEL,
            category_names=model.categories.names,
        )  # fmt: skip
        lost = f"No pleural line was found in {int((~found).sum())} of {len(found)} columns; they are hatched."
        flags = fitted.flags if found.all() else (*fitted.flags, lost)
        known_columns = found if truth is None else found & np.asarray(truth.valid, bool)
        results.append(
            Reconstruction.of(
                label,
                METHOD,
                picture,
                posterior,
                pleura_depth=drawn.pleura_depth[i],
                valid=known_columns,
                truth=truth,
                flags=flags,
                manifest={**facts, "calls": drawn.calls, "samples": samples, "novelty": float(drawn.novelty[i])},
            )
        )
    return results


def _unusable(novelty: float, found: Bool[np.ndarray, " x"]) -> str | None:
    """Why the aeration of a frame is withheld; None where it is not."""
    lost = int((~found).sum())
    if lost > MOST_UNSURE * len(found):
        return (
            f"No pleural line was found in {lost} of {len(found)} columns, more than half. Check contact, depth, time "
            "zero, and that this is lung."
        )
    return _unlike(novelty)


def _unlike(novelty: float) -> str | None:
    """What is said of echoes that are unlike any of the training."""
    if not novelty > 1:
        return None
    return (
        f"Outside the trained range: the echoes lie {novelty:.2g} times as far from the training cases as the furthest "
        "of them. Check gain, contact and that this is lung."
    )


def _result(
    name: str, model: RidgeModel, answer: Answer, i: int, picture: BMode, truth: Truth | None, about: dict[str, Any]
) -> Reconstruction:
    config, level, estimate, usual = model.config, LEVELS.index(LEVEL), answer.estimate, answer.usual[i]
    edges = config.map.bands
    value, half = estimate.bands[i], estimate.bands_half[level, i]
    known = [None] * (len(edges) - 1) if truth is None else [float(b) for b in truth.bands]

    def band(k: int, top: float, bottom: float, true: float | None) -> Band:
        low, high = float(max(value[k] - half[k], 0)), float(min(value[k] + half[k], 1))
        return Band(top, bottom, float(value[k]), low, high, true)

    bands = tuple(band(k, edges[k], edges[k + 1], known[k]) for k in range(len(edges) - 1))
    whole = band(len(edges) - 1, edges[0], edges[-1], None if truth is None else truth.whole)
    aeration, spread = estimate.aeration[i], estimate.aeration_half[level, i]
    depth = estimate.pleura_depth[i]
    low, high = model.detector.search
    at_edge = np.mean((depth < low + 0.1 * MM) | (depth > high - 0.1 * MM))
    flags = [] if at_edge < 0.2 else ["The pleural line touches the edge of the search range in many columns."]
    if not usual.all():
        flags.append(
            f"Echoes of {int((~usual).sum())} of {len(usual)} columns are unlike the training; they are hatched."
        )
    return Reconstruction(
        name=name,
        method="ridge",
        bmode=picture,
        flags=tuple(flags),
        level=LEVEL,
        aeration=aeration,
        lower=np.clip(aeration - spread, 0, 1),
        upper=np.clip(aeration + spread, 0, 1),
        pixel=config.map.pixel,
        x=answer.x if truth is None else truth.x,
        pleura_depth=depth,
        valid=usual if truth is None else usual & np.asarray(truth.valid, bool),
        information_depth=information_depth(aeration, config.map.pixel, config.probe.center_frequency),
        whole=whole,
        bands=bands,
        truth=truth,
        manifest=about,
    )
