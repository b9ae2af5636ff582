"""
Train your own prior
====================

A prior is a diffusion model that knows what lung maps look like. Here one is trained
on 150 maps for about half a minute, interrupted on purpose, and taken up again. That is
far too little for a good one, and the page says what it can and cannot do; the shipped
prior, made by the same command from 12000 maps in an hour, stands beside it.

Research use only. Not a medical device.
"""

# %%
# The commands of this page are those of a shell. They run in a folder of their own.

# sphinx_gallery_thumbnail_number = 4
import contextlib
import json
import shlex
import subprocess
import sys
import tempfile
import time
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


# %%
# Maps to learn from
# ------------------
# No echoes are needed. Any folder of gray pictures or an NPZ of one size would do as
# well; see :doc:`/howto/train`.

lungwave("maps --preset tiny --seed 1 --cases 0:150 --out maps.npz --workers 1 --quiet")
with np.load(work / "maps.npz") as held:
    maps, labels = held["maps"], held["labels"]
print(maps.shape, "fractions of air from", maps.min(), "to", maps.max())


def show(pictures, title):
    """A row of maps on the scale that every figure of lungwave has: 0 to 100 % air."""
    figure, axes = plt.subplots(1, len(pictures), figsize=(8.4, 1.5))
    for ax, picture in zip(axes, pictures, strict=True):
        ax.imshow(picture, vmin=0, vmax=1)
        ax.set_axis_off()
    figure.suptitle(title, fontsize=10)
    plt.show()


show(maps[:7], "seven of the 150 lungs")

# %%
# What will it cost?
# ------------------
# ``--dry-run`` times a few steps and writes nothing. Where attention lands is said here,
# because a level that does not exist has none: in the report that lungwave comes from,
# that went unnoticed.

network = "--patch 4 4 --channels 32 --mult 1 2 2 --blocks 1 --heads 2 --attention 1 2"
how = "--p-mean 0 --p-std 1.8 --lr 0.002 --warmup 160 --decay-images 600 --batch 16"
watch = "--check-images 480 --check-maps 24 --log-images 64 --samples 0 --sigma-rel 0.1 --quiet"
training = f"train maps.npz --out prior {network} {how} {watch} --images 960"
lungwave(f"{training} --dry-run")

# %%
# Start, and be interrupted
# -------------------------
# A process of its own is stopped as a batch system stops it (Ctrl-C does the same), some
# seconds after its first step. It finishes the step, saves, and says what to do.

process = subprocess.Popen(
    [sys.executable, "-m", "lungwave", *shlex.split(training)],
    cwd=work,
    stderr=subprocess.PIPE,
    text=True,
)
while not (work / "prior" / "log.jsonl").exists() and process.poll() is None:
    time.sleep(0.5)
process.terminate()
_, said = process.communicate()
print(said.strip().splitlines()[-1], f"(exit code {process.returncode})")

# %%
# Go on
# -----
# The same command goes on where it stopped. The weights at the end are, bit for bit,
# those of a training that nobody disturbed.

lungwave(training)
lines = [json.loads(line) for line in (work / "prior" / "log.jsonl").open()]
steps = [line for line in lines if "loss" in line and "images" in line]
print("images seen, line by line:", [line["images"] for line in steps][:8], "...")

# %%
# What was learned, by noise level
# --------------------------------
# One number of a loss says little. High noise decides the overall picture, low noise
# the texture, and each is learned at its own pace. Where the line of maps that were
# held out leaves the line of training maps, the network has begun to remember.

picture = plt.imread(work / "prior" / "sigma.png")
plt.figure(figsize=(7, 7 * picture.shape[0] / picture.shape[1])).add_axes((0, 0, 1, 1))
plt.imshow(picture)
plt.axis("off")
plt.show()

# %%
# Draw from it
# ------------
# Eighteen noise levels, 35 calls of the network a sample.

lungwave("sample prior --count 7 --seed 3 --out mine --quiet")
lungwave("sample prior-tiny --count 7 --seed 3 --out shipped --quiet")
with np.load(work / "mine" / "samples.npz") as mine:
    show(mine["maps"][:, 0], "half a minute of training")
with np.load(work / "shipped" / "samples.npz") as shipped:
    show(shipped["maps"][:, 0], "the shipped prior: an hour")

# %%
# Half a minute looks like that much because the network starts from the exact linear
# denoiser of the maps' spectrum: mean, spread and correlation lengths are right before
# anything is learned, and training adds what is not Gaussian about lungs
# (:doc:`/explanation/diffusion`). The crispness of edges and the share of each disease
# take the hour.
#
# Is it good, or a copier? That is a question with a number:
#
# .. code-block:: console
#
#     $ lungwave maps --preset tiny --seed 2 --cases 0:1000 --out unseen.npz
#     $ lungwave sample prior --count 1000 --out new
#     $ lungwave evaluate generative new --reference unseen.npz --train maps.npz
#     $ lungwave evaluate memorisation new --train maps.npz --held-out unseen.npz
#
# :doc:`/howto/evaluate` explains the tables, and :doc:`/results/prior_prior-tiny` is the
# one of the shipped prior. How to train for real: :doc:`/howto/train`.
