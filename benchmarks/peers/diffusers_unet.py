"""Both sides of the network in benchmarks/beside.py: one folder of weights, read by diffusers or by lungwave.

A problem as JSON in the first line of the input, answered by facts; each further line, a JSON object with ``work``
(forward, train) and ``precision``, is answered by its seconds. What is timed is the same code for both.
"""

import json
import sys
import time
from importlib import metadata

import numpy as np
import torch


def network(problem):
    """The network as a function of (x, time), its module, and what it is."""
    if problem["side"] == "diffusers":
        from diffusers import UNet2DModel

        net = UNet2DModel.from_pretrained(problem["weights"])
        return lambda x, t: net(x, t).sample, net, f"diffusers {metadata.version('diffusers')}"
    from lungwave.models.diffusers_bridge import import_diffusers

    net, _ = import_diffusers(problem["weights"])
    return net, net, "lungwave"


def main() -> None:
    problem = json.loads(sys.stdin.readline())
    torch.set_num_threads(problem["threads"])
    call, net, version = network(problem)
    layout = torch.channels_last if problem["channels_last"] else torch.contiguous_format
    net.to(memory_format=layout)
    generator = torch.Generator().manual_seed(0)
    shape = (problem["batch"], 1, *problem["size"])
    x, target = (torch.randn(shape, generator=generator).to(memory_format=layout) for _ in range(2))
    when = torch.arange(problem["batch"]) * 10.0
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-6)
    with torch.no_grad():
        np.save(problem["answer"], call(x, when).numpy())
    facts = {"parameters": sum(p.numel() for p in net.parameters()), "version": version, "torch": torch.__version__}
    print(json.dumps(facts), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        training = asked["work"] == "train"
        net.train(training)
        half = torch.autocast("cpu", torch.bfloat16, enabled=asked["precision"] == "bfloat16")
        clock = time.perf_counter()
        with torch.set_grad_enabled(training), half:
            found = call(x, when)
            loss = (found - target).square().mean()
        if training:
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        print(json.dumps({"seconds": time.perf_counter() - clock}), flush=True)


main()
