"""
First reconstruction
====================

Draw a lung, send sound into it, and reconstruct it from the echoes. Then look at what matters more than the picture: how
sure the reconstruction is, how deep the echoes knew anything, and whether the truth lies where it says.

Half a minute on two cores. Research use only. Not a medical device.
"""

# %%
# A lung
# ------
# Everything about a case follows from a configuration and a number, so this is the same lung on every machine. The preset
# ``tiny`` is a small array (32 elements, 3 MHz, three plane waves) over a chest wall of a few millimetres.

# sphinx_gallery_thumbnail_number = 3
import matplotlib.pyplot as plt
import numpy as np

import lungwave as lw
from lungwave import figures
from lungwave.acoustics.receive import add_noise
from lungwave.repro import stream
from lungwave.types import MM

config = lw.preset("tiny").override({"seed": 42})
lung = lw.draw(config, index=1)
medium = lw.rasterise(lung, config.grid.spacing, config.grid.depth, config.grid.width)
truth = lw.truth(lung, config.map, lw.truth_spacing(config))
print(
    f"{lung.category}: {100 * truth.whole:.0f} % air over the first 6 mm below the pleura"
)

# %%
# Skin, fat, muscle and pleura lie above the lung; alveoli are black. Air lets no sound in, so whatever an echo tells has
# gone through the tissue between them. The dashed box is what is to be reconstructed, smoothed over half a millimetre:
# row 0 of the map touches the pleura, wherever that is.

x, z = medium.x / MM, medium.z / MM
plt.rcParams["font.size"] = 9
figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.9), layout="constrained")
speed = np.where(medium.air > 0.5, np.nan, medium.sound_speed)
colours = plt.get_cmap("cividis").with_extremes(bad="black")
tissue = left.pcolormesh(x, z, speed, cmap=colours, vmin=1400, vmax=1640)
pleura = truth.pleura_depth / MM
across, bottom = truth.x / MM, pleura + config.map.rows * config.map.pixel / MM
box = np.r_[across, across[::-1], across[0]], np.r_[pleura, bottom[::-1], pleura[0]]
left.plot(*box, "w--", lw=1)
left.set(title="the chest", xlabel="lateral position, mm", ylabel="depth, mm")
left.set(aspect="equal", ylim=(z[-1], 0))
figure.colorbar(tissue, ax=left, label="sound speed, m/s", shrink=0.9)
aeration = right.imshow(truth.smooth, vmin=0, vmax=1, extent=(-3.2, 3.2, 6.4, 0))
right.set(title="its aeration map", xlabel="lateral position, mm")
right.set(ylabel="below the pleura, mm")
figure.colorbar(aeration, ax=right, label="air fraction", shrink=0.9)
plt.show()

# %%
# Its echoes
# ----------
# The wave equation is solved for each transmit. A receiver adds noise, here 30 dB below the echoes.

simulator = lw.Simulator(config)
silent = simulator.channels(medium)[0].numpy()  # (tx, time, el)
rf, sigma = add_noise(
    silent, simulator.scan, config.receive, stream(config.seed, "noise", 1), snr_db=30.0
)
print("RF channel data (tx, time, el):", rf.shape)

fig, axes = plt.subplots(1, 3, figsize=(8.4, 3.6), layout="constrained", sharey=True)
loud = np.percentile(np.abs(rf[:, 70:]), 97)
last = 1e6 * rf.shape[1] / simulator.scan.sampling_frequency  # [us]
look = {"cmap": "RdBu", "vmin": -loud, "vmax": loud, "aspect": "auto"}
for ax, event, angle in zip(axes, rf, np.rad2deg(simulator.scan.angles), strict=True):
    ax.imshow(event, extent=(0.5, 32.5, last, 0), **look)
    ax.set(title=f"plane wave at {angle:+.0f}°", xlabel="element")
axes[0].set_ylabel("time, µs")
plt.show()

# %%
# The dark band is the pleura, slanted where the wave is; all that comes after it is sound that went back and forth
# between alveoli. It looks like noise and is not: it is what the reconstruction reads.
#
# Reconstruct
# -----------
# From here on nothing knows the truth: a recording goes in, as it would come from a file. The shipped model draws 32
# maps that could have made these echoes.

recording = lw.Recording(
    rf[None], simulator.scan
)  # frames x tx x time x el; or lungwave.data.convert.load_any("file")
(result,) = lw.reconstruct(recording, truths=[truth], samples=32, seed=0)
whole = result.whole
print(
    f"{100 * whole.estimate:.0f} % air, 90 % interval {100 * whole.lower:.0f}-{100 * whole.upper:.0f} %"
)
print("withheld:", result.withheld, " remarks:", result.flags)

# %%
# The mean of the samples is the estimate. **Below the dashed line the echoes know little**, and what is drawn is what such
# lungs usually look like; it is hatched so that nobody takes it for a measurement. The truth is shown without hatching.

with figures.style(8.5):
    fig, axes = plt.subplots(1, 3, figsize=(8.4, 3.3))
    figures.draw_bmode(axes[0], result)
    axes[0].set_title("B-mode, detected pleura")
    figures.draw_map(axes[1], result.aeration, result)
    axes[1].set_title("posterior mean")
    figures.draw_map(axes[2], figures.truth_map(truth), result, mask=False)
    axes[2].set_title("truth")
    fig.tight_layout()
plt.show()

# %%
# How sure is it?
# ---------------
# Left, how wide the 90 % interval of each pixel is. Right, how much the echoes told of it: 1 minus the variance that is
# left over the variance that lungs have anyway. Both were learned from simulated lungs of this kind.

with figures.style(8.5):
    fig, axes = plt.subplots(1, 2, figsize=(6.4, 3.6))
    for ax, values, scale, title in (
        (axes[0], result.upper - result.lower, figures.WIDTH, "uncertainty"),
        (axes[1], result.posterior.information, figures.INFORMATION, "information"),
    ):
        image = figures.draw_map(ax, values, result, scale, mask=False)
        ax.set_title(title)
        fig.colorbar(image, ax=ax, label=scale.label, orientation="horizontal", pad=0.2)
    fig.tight_layout()
plt.show()

# %%
# Samples are the honest answer: every one fits the echoes about as well. Where they agree, believe them.

with figures.style(8.5):
    fig, axes = plt.subplots(1, 6, figsize=(8.4, 1.6))
    for number, ax in enumerate(axes):
        figures.draw_sample(ax, result, number)
    fig.tight_layout()
plt.show()

# %%
# Was it right?
# -------------
# By depth, with the truth as a diamond. One lung proves nothing: nine of ten diamonds should lie inside their bars over
# many lungs, and :doc:`05_is_my_posterior_right` shows how that is tested.

with figures.style(8.5):
    fig, ax = plt.subplots(figsize=(5.5, 2.6))
    figures.draw_bands(ax, list(result.bands), [None] * len(result.bands))
    fig.tight_layout()
plt.show()

for band in result.bands:
    inside = band.lower <= band.truth <= band.upper
    print(
        f"{band.top / MM:.1f}-{band.bottom / MM:.1f} mm: {100 * band.estimate:3.0f} % "
        f"({100 * band.lower:.0f}-{100 * band.upper:.0f}), truth {100 * band.truth:.0f}{'' if inside else '  outside'}"
    )

# %%
# The same from a shell, with a report to open in a browser::
#
#     lungwave simulate --seed 42 --case 1 --out rf.h5
#     lungwave reconstruct rf.h5 --out first
#
# Next: :doc:`03_your_own_recording` reads a file of your own.
