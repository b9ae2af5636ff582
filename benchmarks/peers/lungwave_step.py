"""Our side of benchmarks/train.py: lungwave's own loop, step by step. A problem as JSON in, seconds out."""

import json
import sys
import time

import torch

from lungwave.data.mapset import read_maps
from lungwave.models.precond import Preconditioned, Scaling
from lungwave.models.unet import UNet, UNetConfig, describe, fitting_strides
from lungwave.training.loop import TrainConfig, Training
from lungwave.training.objective import Denoising
from lungwave.training.source import MapSource


def peak() -> int:
    """Most memory that this process held [B]."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    problem = json.loads(sys.stdin.readline())
    torch.set_num_threads(problem["threads"])
    net = dict(problem["net"])
    size = tuple(problem["size"])
    if net.get("strides") == "fitting":
        net["strides"] = fitting_strides(size, len(net["channel_mult"]))
    config = UNetConfig(**net)
    about = describe(config, size)
    maps = read_maps(problem["images"])
    source = MapSource(maps, Scaling(0.5, 0.25))
    if config.in_channels > 1:
        source = Grey(source, config.in_channels)
    settings = TrainConfig(images=10**9, batch=problem["batch"], precision=problem["precision"])
    training = Training(Preconditioned(UNet(config)), source, Denoising(), settings)
    start = {"parameters": about["parameters"], "gmac": about["gmac"], "version": f"torch {torch.__version__}"}
    print(json.dumps({**start, "start": peak()}), flush=True)
    for line in sys.stdin:
        seconds = []
        for _ in range(int(line)):
            clock = time.perf_counter()
            training.advance()
            seconds.append(time.perf_counter() - clock)
        print(json.dumps({"seconds": seconds, "peak": peak()}), flush=True)


class Grey:
    """Grey maps as equal channels, which is what the peer's loader makes of them."""

    def __init__(self, source: MapSource, channels: int) -> None:
        self.source, self.channels = source, channels
        self.digest = source.digest

    def facts(self) -> dict:
        return self.source.facts()

    def __len__(self) -> int:
        return len(self.source)

    def images(self, rows, draws):
        grey, cond = self.source.images(rows, draws)
        return grey.expand(-1, self.channels, -1, -1), cond


main()
