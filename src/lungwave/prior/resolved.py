"""A posterior of resolved lungs: its ingredients, and guesses that a further training is told of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from lungwave.acoustics.receive import add_noise, echo_rms
from lungwave.data.arrays import numpy_arrays
from lungwave.data.maps import save_npz
from lungwave.models.precond import Scaling
from lungwave.models.wiener import mode_variance
from lungwave.phantom.anatomy import draw
from lungwave.phantom.resolved import shown_config
from lungwave.posterior.discrepancy import Discrepancy
from lungwave.posterior.lung import LungForward
from lungwave.posterior.outline import Outline
from lungwave.posterior.pairs import fit_pleura, fit_scales
from lungwave.posterior.resolved import ResolvedModel, load_resolved
from lungwave.posterior.resolved_pairs import Guess, Guesses, ResolvedConditioner, ResolvedPairs, ResolvedSource
from lungwave.posterior.walls import Wall
from lungwave.prior.conditional import Ingredients, Posterior, networks, sides
from lungwave.progress import Progress
from lungwave.repro import stream
from lungwave.types import UsageError

DISCREPANCIES = 500  # cases behind what the forward model leaves out, at most
KINDS = 2  # guesses at each case
ROUNDS = (0, 1, 2)  # how often a guess was drawn anew, where the model can; one of these for each
TOGETHER = 32  # guesses that are drawn at once


def ingredients(pairs: ResolvedPairs, plan: Posterior) -> Ingredients:
    """Split by base anatomy; fit detector, scales and discrepancy on the training side, or take those of the model that
    the training goes on from, with its guesses."""
    seed, (inside, outside) = plan.prior.train.seed, sides(pairs, plan.prior)
    before = None if plan.refine is None else _before(plan, pairs)
    kept, held = pairs.take(inside), pairs.take(outside)
    if before is None:
        detector = fit_pleura(kept, plan.disturbance.snr_db, seed)
        outline = Outline.fit(kept, detector.search, plan.disturbance.snr_db, seed)
        conditioner = ResolvedConditioner(kept.config, kept.scan, detector, center=outline)
        scales = fit_scales(kept, conditioner, plan.disturbance.snr_db, seed)
        maps = torch.from_numpy(kept.maps(kept.sample)).double()
        scaling = Scaling(float(maps.mean()), float(maps.std()))
        spectrum = mode_variance(scaling.to_network(maps))
        discrepancy, guesses = fit_discrepancy(kept, scaling), None
    else:
        detector, scales, scaling, discrepancy = before.detector, before.scales, before.scaling, before.discrepancy
        outline, spectrum = before.outline, before.inner.spectrum
        conditioner = ResolvedConditioner(kept.config, kept.scan, detector, center=outline)
        guesses = _kept_guesses(before, pairs, plan)
    source, other = (
        ResolvedSource(
            part,
            scaling,
            scales,
            detector,
            plan.disturbance,
            outline,
            seed,
            None if guesses is None else guesses.take(rows),
        )
        for part, rows in ((kept, inside), (held, outside))
    )
    network, model, started = networks(plan, conditioner, len(conditioner.image_names) + conditioner.more, spectrum)
    if before is not None:
        try:
            model.load_state_dict(before.denoiser.state_dict())
        except RuntimeError:
            raise UsageError(
                f"{plan.refine} is another network; give the --channels, --mult, --patch ... of its training"
            ) from None
    prior_std = kept.cases.smooth[:, : shown_config(kept.drawn).map.rows].std(0)
    exported = ResolvedModel(model, scaling, scales, detector, outline, discrepancy, prior_std, kept.drawn, {})
    return Ingredients(model, network, source, other, exported, started)


def _before(plan: Posterior, pairs: ResolvedPairs) -> ResolvedModel:
    """The model to go on from. UsageError for one of another acquisition or another network."""
    assert plan.refine is not None
    model = load_resolved(plan.refine)
    if not model.scan.equals(pairs.scan) or model.config.map != pairs.config.map:
        raise UsageError(f"{plan.refine} was trained on another acquisition or map than these cases")
    return model


def fit_discrepancy(pairs: ResolvedPairs, scaling: Scaling) -> Discrepancy:
    """What the forward model leaves out of some cases, over the RMS of their echoes."""
    rows = np.unique(np.linspace(0, len(pairs) - 1, min(DISCREPANCIES, len(pairs))).round().astype(int))
    found, loud = [], []
    for row in rows:
        forward = forward_of(pairs, int(row), scaling)
        said = forward(scaling.to_network(torch.from_numpy(pairs.maps(row[None]))))[0].numpy()
        found.append(pairs.rf[row][:, : forward.samples] - said)
        loud.append(echo_rms(pairs.rf[row], pairs.scan, pairs.config.receive.echo_start))
    return Discrepancy.fit(np.stack(found), np.array(loud))


def forward_of(pairs: ResolvedPairs, row: int, scaling: Scaling) -> LungForward:
    """The forward model under the wall of one case."""
    wall = Wall.of(draw(pairs.drawn, int(pairs.cases.index[row])), pairs.drawn)
    return LungForward(pairs.config, wall.medium, wall.surface, scaling)


def _kept_guesses(model: ResolvedModel, pairs: ResolvedPairs, plan: Posterior) -> Guesses:
    """Guesses at all cases, from the file that an interrupted training left."""
    seed = plan.prior.train.seed
    if plan.guesses is not None and plan.guesses.exists():
        held = numpy_arrays(plan.guesses)
        if len(held["frames"]) == len(pairs):
            return Guesses(held["frames"], held["maps"], held["echoes"])
    found = guess_all(model, pairs, plan.disturbance.snr_db, seed)
    if plan.guesses is not None:
        save_npz(plan.guesses, frames=found.frames, maps=found.maps, echoes=found.echoes)
    return found


def guess_all(model: ResolvedModel, pairs: ResolvedPairs, snr_db: tuple[float, float], seed: int) -> Guesses:
    """``KINDS`` noisy recordings of every case, and the model's guess at each; how often it was drawn anew varies."""
    frames, maps, echoes = [], [], []
    with Progress(len(pairs), "guess") as progress:
        for part in np.array_split(np.arange(len(pairs)), -(-len(pairs) // TOGETHER)):
            models = [forward_of(pairs, int(row), model.scaling) for row in part]
            both = [_guess_some(model, pairs, part, models, kind, snr_db, seed) for kind in range(KINDS)]
            frames.append(np.stack([one[0] for one in both], 1))
            maps.append(np.stack([one[1] for one in both], 1))
            echoes.append(np.stack([one[2] for one in both], 1))
            progress.advance(len(part))
    return Guesses(np.concatenate(frames), np.concatenate(maps), np.concatenate(echoes))


def _guess_some(
    model: ResolvedModel, pairs: ResolvedPairs, rows: np.ndarray, models: Sequence[LungForward], kind: int,
    snr_db: tuple[float, float], seed: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """Frames, guesses (fractions) and their echoes of some cases."""
    rf = np.empty((len(rows), *pairs.rf.shape[1:]), np.float32)
    for k, row in enumerate(rows):
        generator = stream(seed, f"guess/{kind}", int(pairs.cases.index[row]))
        rf[k] = add_noise(
            pairs.rf[row], pairs.scan, pairs.config.receive, generator, float(generator.uniform(*snr_db))
        )[0]
    top = pairs.top[rows]
    key = int(stream(seed, f"guesses/{kind}", int(rows[0])).integers(2**31))
    rounds = ROUNDS[int(stream(seed, "rounds", int(rows[0]) + kind).integers(len(ROUNDS)))] if model.refines else 0
    guess: Guess | None = None
    for number in range(rounds + 1):
        found = model.draw_each(rf, top, guess, seed=key + number)
        heard = torch.cat([one(x[None]) for one, x in zip(models, found.double(), strict=True)])
        guess = Guess(found, heard.float().numpy())
    assert guess is not None
    fraction = model.scaling.to_data(guess.maps).clamp(0, 1).numpy().astype(np.float16)
    return rf, fraction, guess.echoes
