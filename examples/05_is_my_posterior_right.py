"""
Is my posterior right?
======================

An interval that holds the truth less often than it says is worse than none. Whether it
does can be tested with a few hundred cases of known truth, for samples of *any* program.
Three programs are judged here: one that is right, one that is too sure of itself, and one
that ignores the data. All three draw plausible pictures; two are caught.

Research use only. Not a medical device.
"""

# %%
# Three posteriors of one problem
# -------------------------------
# Five numbers with a normal prior are seen through unit noise. The posterior is known: mean
# half of what is seen, variance one half. A file for the test holds ``samples`` [case,
# sample, ...] and ``truth`` [case, ...] of independent cases.

# sphinx_gallery_thumbnail_number = 3
import contextlib
import json
import shlex
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from lungwave.cli import main

work = Path(tempfile.mkdtemp())


def lungwave(line):
    """Run a command of lungwave in the folder and show what it says."""
    print(f"$ lungwave {line}")
    with contextlib.chdir(work), contextlib.redirect_stderr(sys.stdout):
        main(shlex.split(line))


cases, members, numbers = 300, 39, 5
random = np.random.default_rng(1)
truth = random.standard_normal((cases, numbers))
seen = truth + random.standard_normal(truth.shape)
noise = random.standard_normal((cases, members, numbers))

right = seen[:, None] / 2 + np.sqrt(0.5) * noise
sure = seen[:, None] / 2 + 0.6 * np.sqrt(0.5) * noise
deaf = noise  # the prior: never looked at the data

for name, samples in (("right", right), ("sure", sure), ("deaf", deaf)):
    known = {"truth": truth, "summary": seen / 2}
    np.savez(work / f"{name}.npz", samples=samples, **known)

# %%
# One case tells nothing
# ----------------------
# Bars are 90 % intervals of the first number in twelve cases. Can you tell who is right?

figure, axes = plt.subplots(1, 3, figsize=(8.4, 2.4), sharey=True, layout="constrained")
for ax, (name, samples) in zip(
    axes, {"A": right, "B": sure, "C": deaf}.items(), strict=True
):
    low, high = np.quantile(samples[:12, :, 0], (0.05, 0.95), axis=1)
    ax.vlines(range(12), low, high, color="#0a6aa6", lw=5, alpha=0.35)
    ax.plot(range(12), samples[:12, :, 0].mean(1), "o", color="#0a6aa6", ms=4)
    ax.plot(range(12), truth[:12, 0], "D", color="#cf5a12", ms=4)
    ax.set(title=f"program {name}", xlabel="case", xticks=[])
plt.show()

# %%
# Three hundred do
# ----------------
# **Coverage**: how many truths lie inside intervals of each level. **Ranks**: where the
# truth falls among the samples; every place should be as likely. **TARP**: how credible
# the regions are that just hold the truth. Grey is where 95 of 100 calibrated posteriors
# stay, everywhere at once, so leaving it anywhere is a finding.


def judged(name):
    """Judge, show the picture, and say the verdict."""
    lungwave(f"evaluate calibration {name}.npz --out {name} --quiet")
    picture = plt.imread(work / name / "calibration.png")
    wide = 8.4
    figure = plt.figure(figsize=(wide, wide * picture.shape[0] / picture.shape[1]))
    figure.add_axes((0, 0, 1, 1)).imshow(picture)
    plt.axis("off")
    plt.show()
    found = json.loads((work / name / "calibration.json").read_text())["results"]
    coverage = {c["level"]: c["inside"]["value"] for c in found["coverage"]["entries"]}
    print(
        "intervals of 50, 80, 90 % hold",
        [f"{100 * coverage[k]:.0f} %" for k in (0.5, 0.8, 0.9)],
    )
    return found


# %%
# **A** is right.

found = judged("right")

# %%
# **B** draws 0.6 of the spread that it should. Its pictures are sharper, its mean is
# perfect, its error is the least possible. Its intervals are wrong, and every test says so.

found = judged("sure")

# %%
# **C** never looked at the data, and passes coverage and ranks: the prior is calibrated.
# This is why ``summary`` is in the file, an estimate from the recording alone. TARP draws
# its references around it and asks whether regions know as much as the data do.

found = judged("deaf")

# %%
# What lungwave's own posterior says
# ----------------------------------
# The same figures, for lungs, are in :doc:`/results/reconstruction`, and they are not all
# good: 90 % intervals of the shipped posterior hold the truth in 93 to 94 %, and the ranks of
# the first 2 mm leave their bands: a little too wide. That table is made by
#
# .. code-block:: console
#
#     $ lungwave generate --preset tiny --seed 2 --cases 0:300 --out test
#     $ lungwave evaluate reconstruction test --model posterior-tiny --model ridge-tiny
#
# For your own program, write an NPZ as above and judge it; nothing else is needed. What
# each test can and cannot see: :doc:`/howto/evaluate`, :doc:`/explanation/posterior-right`.
# And what no test shows: that lungs are like the simulated ones.
