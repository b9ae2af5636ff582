"""Peer of benchmarks/train.py: OpenAI's improved-diffusion, its own TrainLoop.run_loop on its own image loader.

Started with the checkout as first argument and a problem as JSON in the first line of the input; each further line
"N" asks for N training steps and is answered by their seconds. The loop runs unmodified: the clock sits in the data
iterator that it is given, so a step is everything between two requests for a batch.
"""

import json
import os
import sys
import tempfile
import time
import types

import torch


def alone() -> list[str]:
    """What the environment lacks and is put in its place."""
    try:
        from mpi4py import MPI  # noqa: F401
    except (ImportError, RuntimeError) as error:
        world = types.SimpleNamespace(
            rank=0, size=1, Get_rank=lambda: 0, Get_size=lambda: 1, bcast=lambda value, root=0: value
        )
        module = types.ModuleType("mpi4py")
        module.MPI = types.SimpleNamespace(COMM_WORLD=world)
        sys.modules["mpi4py"] = module
        return [f"mpi4py replaced by one process ({type(error).__name__})"]
    return []


def peak() -> int:
    """Most memory that this process held [B]."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def answer(**values: object) -> None:
    print(json.dumps(values), flush=True)


class Clocked:
    """Batches for the loop; answers when the steps asked for are done, ends the process when no more are asked for."""

    def __init__(self, batches):
        self.batches, self.left, self.last, self.seconds = batches, 0, 0.0, []

    def __iter__(self):
        return self

    def __next__(self):
        now = time.perf_counter()
        if self.last:
            self.seconds.append(now - self.last)
        if not self.left:
            if self.last:
                answer(seconds=self.seconds, peak=peak())
            line = sys.stdin.readline().strip()
            if not line:
                os._exit(0)
            self.left, self.seconds = int(line), []
        self.left -= 1
        self.last = time.perf_counter()
        return next(self.batches)


def main() -> None:
    sys.path.insert(0, sys.argv[1])
    problem = json.loads(sys.stdin.readline())
    torch.set_num_threads(problem["threads"])
    shims = alone()
    from improved_diffusion import dist_util, logger
    from improved_diffusion.image_datasets import load_data
    from improved_diffusion.script_util import create_model_and_diffusion, model_and_diffusion_defaults
    from improved_diffusion.train_util import TrainLoop

    dist_util.setup_dist()
    logger.configure(dir=tempfile.mkdtemp(dir=problem["folder"]), format_strs=["log"])
    model, diffusion = create_model_and_diffusion(**{**model_and_diffusion_defaults(), **problem["flags"]})
    data = load_data(data_dir=problem["images"], batch_size=problem["batch"], image_size=problem["flags"]["image_size"])
    parameters = sum(p.numel() for p in model.parameters())
    answer(parameters=parameters, version=f"torch {torch.__version__}", shims=shims, start=peak())
    TrainLoop(
        model=model,
        diffusion=diffusion,
        data=Clocked(data),
        batch_size=problem["batch"],
        microbatch=-1,
        lr=1e-4,
        ema_rate="0.9999",
        log_interval=10,
        save_interval=10000,
        resume_checkpoint="",
    ).run_loop()


main()
