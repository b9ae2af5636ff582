"""
Your own recording and probe
============================

RF channel data come as arrays without a word of geometry, as MATLAB files, as HDF5 of
five kinds. lungwave reads them by content, asks for what is missing instead of guessing
it, and says no where a number would mean nothing.

Research use only. Not a medical device.
"""

# %%
# The commands of this page are those of a shell. They run in a folder of their own.

import contextlib
import shlex
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import lungwave as lw
from lungwave import figures
from lungwave.acoustics.receive import add_noise
from lungwave.cli import main
from lungwave.data.convert import load_any
from lungwave.repro import stream

work = Path(tempfile.mkdtemp())


def lungwave(line):
    """Run a command of lungwave in the folder and show what it says."""
    print(f"$ lungwave {line}")
    with contextlib.chdir(work), contextlib.redirect_stderr(sys.stdout):
        main(shlex.split(line))


# %%
# An array, and nothing else
# --------------------------
# Nobody has published RF of a lung, so the simulator stands in for your scanner: two
# frames of 32 channels and three plane waves, saved as a bare array.

config = lw.preset("tiny").override({"seed": 11})
simulator = lw.Simulator(config)
frames = []
for case in (0, 1):
    lung = lw.draw(config, case)
    grid = config.grid
    medium = lw.rasterise(lung, grid.spacing, grid.depth, grid.width)
    echoes = simulator.channels(medium)[0].numpy()
    noise = stream(config.seed, "noise", case)
    frames.append(add_noise(echoes, simulator.scan, config.receive, noise)[0])
np.save(work / "rf.npy", np.stack(frames))

lungwave("data info rf.npy")

# %%
# An array without a geometry cannot be beamformed. The message lists what is needed, so
# write it into a file. The first sample of each event is counted from the moment at which
# the wave passes the middle of the array; ``pulse_delay`` is how long after its time of
# flight an echo peaks, and without it everything lies a fraction of a millimetre too deep.

geometry = """\
center_frequency = 3.0e6     # [Hz]
sampling_frequency = 12.0e6  # [Hz]
pitch = 0.25e-3              # [m]
angles = [-0.13963, 0, 0.13963]             # [rad], positive towards +x
start_times = [-0.35019e-6, 0, -0.35019e-6]  # [s]
pulse_delay = 0.3333e-6      # [s]
bandwidth = 1.2
"""
probe = work / "probe.toml"

# %%
# Millimetres instead of metres, or degrees instead of radians? You are told.

probe.write_text(geometry.replace("0.25e-3 ", "0.25 "))
lungwave("data validate rf.npy --geometry probe.toml")
probe.write_text(geometry.replace("[-0.13963, 0, 0.13963]", "[-8, 0, 8]"))
lungwave("data validate rf.npy --geometry probe.toml")

# %%
# In SI units it is valid, and becomes a file that carries its geometry with it.

probe.write_text(geometry)
lungwave("data validate rf.npy --geometry probe.toml")
lungwave("data convert rf.npy rf.h5 --geometry probe.toml")

# %%
# Reconstruct it
# --------------
# The file is like what the shipped model was trained for, so it gets a map, percent
# aeration with its interval, tables, arrays and a report to open in a browser.

lungwave("reconstruct rf.h5 --out found")
print(*sorted(path.name for path in (work / "found").iterdir()), sep="  ")

# %%
# A measurement from somebody else
# --------------------------------
# A 64-element probe on a block of aluminium with a notch, every element firing in turn,
# measured by the authors of arim (University of Bristol, MIT licence; the file lies in
# ``examples/data``). It is a MATLAB file with their own names in it, and half of the
# matrix, because sound takes the same time both ways.

block = load_any("data/contact_notch_aluminium.mat")
print(block.scan.kind, block.rf.shape, f"{block.scan.sound_speed:.0f} m/s")

# %%
# What does the lung model say of aluminium? Nothing. The B-mode is drawn, with the notch
# at 20 mm and the back wall at 40 mm where they should be (:doc:`/results/bmode_sets` has
# the figures); the aeration is withheld, with the reason, and no option overrules that.

recording = lw.Recording(block.rf[:, :, :400], block.scan)  # the block ends at 40 mm
(answer,) = lw.reconstruct(recording)
print("percent aeration:", answer.whole)
print("withheld:", answer.withheld)

with figures.style(9):
    figure, ax = plt.subplots(figsize=(3.6, 5.6), layout="constrained")
    figures.draw_bmode(ax, answer)
    ax.set_title("aluminium block, measured")
plt.show()

# %%
# Your probe is another one
# -------------------------
# The shipped model knows one small probe. For yours, simulate it, check what the
# simulation costs, and train on that; everything above stays the same:
#
# .. code-block:: console
#
#     $ lungwave generate --preset tiny --set probe.elements=64 --cases 0:6000 --dry-run
#     $ lungwave generate --preset tiny --set probe.elements=64 --cases 0:6000 --out cases
#     $ lungwave fit cases --out ridge
#     $ lungwave train cases --echoes --center ridge --out posterior
#     $ lungwave reconstruct rf.h5 --model posterior
#
# Formats and fields: :doc:`/howto/convert`. What a file holds:
# :doc:`/reference/file-format`. The training: :doc:`/howto/posterior`.
