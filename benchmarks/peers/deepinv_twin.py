"""Peer of benchmarks/beside.py: deepinv's samplers on the linear twin, with the exact denoiser of its Gaussian prior.

A problem as JSON in the first line of the input names an archive with the operator, the prior's covariance, the
recordings and the noise; each further line, a JSON object with ``sampler``, ``how``, ``calls``, ``draws`` and ``out``,
is answered by its seconds and calls, its samples in ``out``. deepinv's samplers are made for images between 0 and 1, so
lines of unit variance enter as ``u = 1/2 + x / 8``: four standard deviations on either side.
"""

import json
import sys
import time

import numpy as np
import torch
from stand_in import without

SHIMS = without("torchvision")

import deepinv  # noqa: E402

WIDTH = 8.0  # standard deviations of the prior between 0 and 1


class Exact(torch.nn.Module):
    """The mean of the clean line given a noisy one, for a Gaussian prior."""

    def __init__(self, covariance: torch.Tensor) -> None:
        super().__init__()
        values, vectors = torch.linalg.eigh(covariance / WIDTH**2)
        self.register_buffer("values", values.clamp(min=0).float())
        self.register_buffer("vectors", vectors.float())
        self.calls = 0

    def forward(self, x, sigma, *_args, **_kwargs):
        self.calls += 1
        noise = torch.as_tensor(sigma, dtype=torch.float32).reshape(-1, 1, 1, 1) ** 2
        keep = self.values / (self.values + noise)
        return 0.5 + (((x - 0.5).to(torch.float32) @ self.vectors) * keep) @ self.vectors.T


def operator(a: torch.Tensor, noise: float):
    """``a`` by its singular values, which every sampler here takes: proximal steps and DDRM are then exact."""
    looks, pixels = a.shape
    u, values, vh = torch.linalg.svd(a.float(), full_matrices=True)
    mask = torch.zeros(1, 1, 1, pixels)
    mask[..., :looks] = values
    return deepinv.physics.DecomposablePhysics(
        U=lambda z: z[..., :looks].to(u) @ u.T,
        U_adjoint=lambda y: torch.nn.functional.pad(y.to(u) @ u, (0, pixels - looks)),
        V=lambda z: z.to(vh) @ vh,
        V_adjoint=lambda x: x.to(vh) @ vh.T,
        mask=mask,
        noise_model=deepinv.physics.GaussianNoise(sigma=noise),
    )


def sampler(asked, denoiser, noise: float):
    """As many denoiser calls as asked for; what ``how`` does not say is as deepinv has it."""
    calls, how = asked["calls"], asked["how"]
    if asked["sampler"] == "DPS":
        return deepinv.sampling.DPS(denoiser, num_steps=calls + 1, **how)
    if asked["sampler"] == "DiffPIR":
        fidelity = deepinv.optim.data_fidelity.L2()
        return deepinv.sampling.DiffPIR(denoiser, fidelity, sigma=noise, max_iter=calls, **how)
    return deepinv.sampling.DDRM(denoiser, sigmas=np.linspace(1, 0, calls), **how)


def main() -> None:
    problem = json.loads(sys.stdin.readline())
    torch.set_num_threads(problem["threads"])
    with np.load(problem["twin"]) as held:
        a, covariance, y = (torch.from_numpy(held[name]) for name in ("a", "covariance", "y"))
        noise = float(held["noise"]) / WIDTH
    physics, denoiser = operator(a, noise), Exact(covariance)
    seen = (y / WIDTH + 0.5 * a.sum(1)).float()
    print(
        json.dumps({"version": f"deepinv {deepinv.__version__}", "torch": torch.__version__, "shims": SHIMS}),
        flush=True,
    )
    for line in sys.stdin:
        asked = json.loads(line)
        torch.manual_seed(1)
        denoiser.calls = 0
        clock = time.perf_counter()
        many = seen.repeat_interleave(asked["draws"], 0)[:, None, None]
        drawn = sampler(asked, denoiser, noise)(many, physics).detach()
        taken = time.perf_counter() - clock
        np.save(asked["out"], WIDTH * (drawn.double().numpy()[:, 0, 0] - 0.5))
        print(json.dumps({"seconds": taken, "calls": denoiser.calls}), flush=True)


main()
