"""Peer of benchmarks/beside.py: torch-fidelity's distances of given features, by the functions behind its metrics.

A problem as JSON in the first line of the input, answered by facts; each further line, a JSON object with ``arrays``,
``metric``, ``subsets`` and ``subset_size``, is answered by value and seconds.
"""

import json
import sys
import time

import numpy as np
import torch
from stand_in import without

SHIMS = without("torchvision")

import torch_fidelity  # noqa: E402
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric  # noqa: E402
from torch_fidelity.metric_kid import kid_features_to_metric  # noqa: E402


def main() -> None:
    problem = json.loads(sys.stdin.readline())
    torch.set_num_threads(problem["threads"])
    facts = {"version": f"torch-fidelity {torch_fidelity.__version__}", "numpy": np.__version__, "shims": SHIMS}
    print(json.dumps(facts), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        with np.load(asked["arrays"]) as held:
            a, b = (torch.from_numpy(held[name]) for name in "ab")
        clock = time.perf_counter()
        if asked["metric"] == "frechet":
            statistics = [fid_features_to_statistics(x) for x in (a, b)]
            found = {"value": next(iter(fid_statistics_to_metric(*statistics, verbose=False).values()))}
        else:
            sizes = {"kid_subsets": asked["subsets"], "kid_subset_size": asked["subset_size"], "verbose": False}
            mean, spread = kid_features_to_metric(a, b, **sizes).values()
            found = {"value": mean, "error": spread / asked["subsets"] ** 0.5}
        print(json.dumps({**found, "seconds": time.perf_counter() - clock}), flush=True)


main()
