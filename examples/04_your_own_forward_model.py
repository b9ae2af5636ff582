"""
Your own forward model
======================

The guided samplers know nothing about lungs or waves. They take any function from maps to
recordings that torch can differentiate, the noise, and a prior. Here that function looks
at every fourth column through a blur. The prior is first one whose posterior can be
written down, so that you see which sampler to believe; then a prior of lungs.

Research use only. Not a medical device.
"""

# %%
# The operator, and a check before hours of sampling
# ---------------------------------------------------
# Recordings may have any shape. ``check_forward`` compares derivative, adjoint and slope,
# and batches with single cases; a wrong adjoint is an error here, not a strange picture.

# sphinx_gallery_thumbnail_number = 1
import matplotlib.pyplot as plt
import torch
from torch.nn.functional import avg_pool2d

from lungwave.models.wiener import Wiener
from lungwave.posterior.likelihood import Differentiable, GaussianNoise, check_forward
from lungwave.posterior.samplers import Problem, daps_rto, dps
from lungwave.sample import Seeds


def looks(maps):
    """Means over 2 x 3 pixels, of every fourth column."""
    return avg_pool2d(maps, (2, 3), stride=(2, 1))[..., ::4]


forward = Differentiable(looks)
noise = GaussianNoise(0.4)  # measured or simulated, never tuned
shape = (1, 16, 16)
generator = torch.Generator().manual_seed(0)
check_forward(forward, torch.randn(2, *shape, generator=generator, dtype=torch.float64))

# %%
# A prior that is known
# ---------------------
# Smooth Gaussian fields: the variance of every cosine mode says it all. A ``Wiener``
# denoiser whose network says nothing is the exact denoiser of such fields.


class Silent(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x, time, cond):
        return torch.zeros_like(x)


mode = torch.arange(16.0)
smooth = torch.exp(-((mode / 4) ** 2))
spectrum = 12 * smooth[:, None] * smooth
prior = Wiener(Silent(), spectrum[None])


def fields(count):
    """Draws of the prior."""
    white = torch.randn(count, *shape, generator=generator, dtype=torch.float64)
    return prior.on_modes(white, spectrum.double().sqrt())


truth = fields(1)
seen = forward(truth)
y = seen + noise.std * torch.randn(seen.shape, generator=generator, dtype=torch.float64)
print(f"{truth.numel()} pixels, {y.numel()} numbers in the recording")

# %%
# Its posterior, on paper
# -----------------------
# Gaussian prior, linear operator, Gaussian noise: mean and covariance in closed form.

units = torch.eye(256, dtype=torch.float64).view(-1, *shape)
matrix = forward(units).flatten(1).T
covariance = prior.on_modes(units, spectrum.double()).flatten(1)
inverse = torch.linalg.inv(
    matrix @ covariance @ matrix.T + noise.std**2 * torch.eye(y.numel())
)
gain = covariance @ matrix.T @ inverse
exact_mean = (gain @ y.flatten()).view(16, 16)
exact_std = (covariance - gain @ matrix @ covariance).diagonal().sqrt().view(16, 16)

# %%
# Two samplers beside it
# ----------------------
# ``daps_rto`` is lungwave's default; ``dps`` is the literature's most used baseline, in
# its authors' form. Sixty-four samples each; repeat the recording once a sample.

problem = Problem(y.repeat(64, 1, 1, 1), forward, prior, noise, shape)
found = {
    "daps_rto": daps_rto(problem, Seeds(0, range(64)), levels=20),
    "dps": dps(problem, Seeds(0, range(64)), levels=400),
}
for name, one in found.items():
    maps = one.maps[:, 0]
    off = ((maps.mean(0) - exact_mean) / exact_std).abs().mean()
    ratio = (maps.var(0) / exact_std**2).mean()
    inside = (truth - maps.mean(0)).abs() < 1.64 * maps.std(0)
    print(
        f"{name:9} mean off by {off:.2f} standard deviations, variance {ratio:.2f} of the "
        f"posterior's, truth inside 90 % intervals in {100 * inside.double().mean():.0f} % "
        f"of pixels, chi2 {one.chi2.mean():.2f}, {one.calls['vjp'] // 64} gradients"
    )

# %%
# ``dps`` has fitted the noise: its residual is far smaller than noise is, its maps are
# livelier than the data warrant, and its intervals miss the truth too often. The exact
# spread rises between the columns that were looked at, where only the prior speaks.

figure, axes = plt.subplots(2, 4, figsize=(8.4, 4.3), layout="constrained")
columns = {"closed form": (exact_mean, exact_std)}
columns |= {k: (v.maps[:, 0].mean(0), v.maps[:, 0].std(0)) for k, v in found.items()}
axes[0, 0].imshow(truth[0, 0], vmin=-2.5, vmax=2.5, cmap="RdBu_r")
axes[0, 0].set_title("truth")
axes[1, 0].imshow(y[0, 0], vmin=-2.5, vmax=2.5, cmap="RdBu_r", aspect=1)
axes[1, 0].set_title("what is recorded")
for (name, (mean, std)), (top, bottom) in zip(columns.items(), axes.T[1:], strict=True):
    level = top.imshow(mean, vmin=-2.5, vmax=2.5, cmap="RdBu_r")
    spread = bottom.imshow(std, vmin=0, vmax=1, cmap="bone_r")
    top.set_title(name)
for ax in axes.flat:
    ax.set(xticks=[], yticks=[])
axes[0, 1].set_ylabel("mean")
axes[1, 1].set_ylabel("standard deviation")
figure.colorbar(level, ax=axes[0], shrink=0.8)
figure.colorbar(spread, ax=axes[1], shrink=0.8)
plt.show()

# %%
# ``chi2`` needs no truth and is printed with every result: the mean square of the residual
# in standard deviations of the noise, 1 where model, noise and samples belong together.
#
# The same with lungs
# -------------------
# Only the prior is another one now: the shipped diffusion model of 64 x 64 aeration maps.
# No closed form exists, which is why the sampler was chosen above and not here.

from pathlib import Path

from lungwave.models.checkpoint import load_model
from lungwave.sample import generate
from lungwave.shipped import PRIOR, model_folder

lungs = load_model(model_folder(Path("prior-tiny"), PRIOR))
size = (1, *lungs.size)
lung = generate(lungs.denoiser, size, 1, seed=5).double()
noise = GaussianNoise(0.1)
seen = forward(lung)
y = seen + noise.std * torch.randn(seen.shape, generator=generator, dtype=torch.float64)
problem = Problem(y.repeat(16, 1, 1, 1), forward, lungs.denoiser, noise, size)
result = daps_rto(problem, Seeds(0, range(16)), levels=20)
maps = lungs.scaling.to_data(result.maps)[:, 0].clamp(0, 1)
print(f"chi2 {result.chi2.mean():.2f}, {int(result.kept.sum())} of 16 samples finite")

figure, axes = plt.subplots(1, 4, figsize=(8.4, 2.5), layout="constrained")
pictures = (lungs.scaling.to_data(lung)[0, 0], maps.mean(0), maps[0])
for ax, picture, name in zip(
    axes, pictures, ("truth", "mean", "one sample"), strict=False
):
    air = ax.imshow(picture, vmin=0, vmax=1)
    ax.set_title(name)
spread = axes[3].imshow(maps.std(0), vmin=0, vmax=0.2, cmap="bone_r")
axes[3].set_title("standard deviation")
for ax in axes:
    ax.set(xticks=[], yticks=[])
figure.colorbar(air, ax=axes[2], label="air fraction")
figure.colorbar(spread, ax=axes[3])
plt.show()

# %%
# The wave equation in lungs is such a forward model, too:
# ``lungwave.posterior.lung.LungForward``. :doc:`/howto/forward-model` lists what a model of your own must offer, and
# :doc:`/explanation/samplers` which sampler to take. Next, prove it:
# :doc:`05_is_my_posterior_right`.
