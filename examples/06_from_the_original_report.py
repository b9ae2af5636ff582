"""
From the original report to lungwave
====================================

lungwave began with a student report that trained OpenAI's improved-diffusion on lung maps
of 8 x 256 pixels. Its command lines run here as they were printed, step by step and far
too briefly to learn anything, so that you can see each file appear; then the same is done
with today's commands.

Research use only. Not a medical device.
"""

# %%
# The commands of this page are those of a shell. They run in a folder of their own.

# sphinx_gallery_thumbnail_number = 1
import contextlib
import os
import shlex
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from lungwave.cli import main
from lungwave.data.images import openai_view

work = Path(tempfile.mkdtemp())
os.environ["OPENAI_LOGDIR"] = "runs/report"
os.environ["OPENAI_LOG_FORMAT"] = "stdout,csv"


def lungwave(line):
    """Run a command of lungwave in the folder and show what it says."""
    print(f"$ lungwave {line}")
    with contextlib.chdir(work), contextlib.redirect_stderr(sys.stdout):
        main(shlex.split(line))


# %%
# Tensors become pictures
# -----------------------
# The report's lungs came as tensors of at least 32 x 1024 pixels. The simulator draws some
# of that kind; the report's script takes the first 32 rows, means over 4 x 4 pixels, and
# writes 8 x 256 grayscale pictures.

strip = "--set wall.pleura_depth=[0.015,0.0155] --set grid.depth=0.02 --set map.rows=8"
lungwave(
    f"maps --preset paper {strip} --set map.bands=[0,0.0008] --seed 1 --cases 0:12 "
    "--view raw --out tensors --workers 1 --quiet"
)
lungwave("legacy process_data_to_1chanelPNG --src tensors --dst datasets/lung_8_256")

pictures = sorted((work / "datasets" / "lung_8_256").glob("*.png"))
strips = np.stack([plt.imread(path) for path in pictures])
print(strips.shape, "grey levels as fractions of air")

# %%
# What the report's network was shown
# -----------------------------------
# improved-diffusion enlarges a picture until its *short* side has 256 pixels, and cuts out
# the middle. Of 256 columns 8 are left, enlarged 32 times. The red frame is what the
# network saw of the whole map.

figure = plt.figure(figsize=(8.4, 2.9), layout="constrained")
above, below = figure.subplots(2, 1, height_ratios=(1, 4.2))
above.imshow(strips[0], vmin=0, vmax=1, aspect="auto")
above.plot([124, 132, 132, 124, 124], [-0.4, -0.4, 7.4, 7.4, -0.4], "r", lw=2)
above.set_title("the map, 8 x 256", fontsize=9)
seen = openai_view(Image.open(pictures[0]), 256)
below.imshow(seen[0], vmin=0, vmax=255)
below.set_title("what the network saw, 256 x 256", fontsize=9)
for ax in (above, below):
    ax.set_axis_off()
plt.show()

# %%
# Train, with the report's own flags
# ----------------------------------
# The flags are the report's, to the letter, except that its batch was 128 and it never
# stopped. Maps stay whole here, and the first lines of the log say what else is not what
# it seems: ``attention_resolutions 1`` names a level that does not exist.

model_flags = (
    "--image_size 256 --num_channels 64 --num_res_blocks 1 --attention_resolutions 1"
)
diffusion_flags = (
    "--diffusion_steps 7000 --noise_schedule linear "
    "--rescale_learned_sigmas False --rescale_timesteps False"
)
train_flags = "--lr 2e-5 --batch_size 4"
training = (
    f"legacy image_train --data_dir datasets/lung_8_256 {model_flags} "
    f"{diffusion_flags} {train_flags} --max_steps"
)
lungwave(f"{training} 2")

# %%
# The same command goes on where it stopped, to the bit, which the original's did not.

lungwave(f"{training} 3")
print(*sorted(path.name for path in (work / "runs" / "report").iterdir()), sep="  ")

# %%
# Sample
# ------
# The report's command draws a map in 7000 calls of the network. ``--timestep_respacing``,
# which improved-diffusion has too, makes that ten; after three steps of training there is
# nothing but noise to see either way.

lungwave(
    f"legacy image_sample --model_path runs/report/model000003.pt {model_flags} "
    f"{diffusion_flags} --num_samples 2 --batch_size 2 --timestep_respacing 10"
)

# %%
# Where this leads
# ----------------
# Today's commands train on the same pictures, or on any maps, and draw in 35 calls:
#
# ============================================  ==========================================
# the report                                    lungwave
# ============================================  ==========================================
# ``process_data_to_1chanelPNG.py``             ``lungwave data convert tensors pictures``
# ``image_train.py --data_dir DIR ...``         ``lungwave train DIR --out prior``
# ``image_sample.py --model_path ...``          ``lungwave sample prior``
# ``OPENAI_LOGDIR``                             ``--out``
# least L2 to a training map, by eye            ``lungwave evaluate memorisation``
# FID, "exponentially larger than expected"     ``lungwave evaluate generative``
# the goal, not reached: RF guides the samples  ``lungwave reconstruct rf.h5``
# ============================================  ==========================================
#
# A prior of such strips is shipped, after 75 minutes of training on one core.

lungwave("sample prior-strip --count 4 --seed 1 --out strips --quiet")
with np.load(work / "strips" / "samples.npz") as drawn:
    new = drawn["maps"][:, 0]

figure, axes = plt.subplots(8, 1, figsize=(8.4, 3.6), layout="constrained")
for ax, values in zip(axes, [*strips[[0, 1, 2, 3]], *new], strict=True):
    ax.imshow(values, vmin=0, vmax=1, aspect="auto")
    ax.set_axis_off()
axes[0].set_title("four strips of the simulator", fontsize=9)
axes[4].set_title("four strips drawn by the shipped prior", fontsize=9)
plt.show()

# %%
# Old checkpoints are not lost: ``lungwave model import model600000.pt --size 8 256`` makes
# them a model that every sampler runs (:doc:`/howto/models`). Every flag, every file and
# every difference of the legacy commands: :doc:`/howto/legacy`. Why the original went
# wrong: :doc:`/explanation/diffusion`.
