"""Processes that train together: the only file that knows torch.distributed.

``torchrun --nproc-per-node N -m lungwave train ...`` starts N ranks; the rank variables of Open MPI and MPICH are read
as well, so ``mpiexec -n N`` on one machine works without mpi4py. One process alone needs none of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.distributed as distributed
from jaxtyping import Int
from torch import Tensor

from lungwave.types import LungwaveError, UsageError

# Variables of (rank, ranks, rank on this machine) by launcher.
LAUNCHERS = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
)


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together."""

    rank: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def first(self) -> bool:
        """Whether this rank writes the files."""
        return self.rank == 0

    def share(self, items: Int[np.ndarray, " n"]) -> Int[np.ndarray, " mine"]:
        """This rank's items of a list that all ranks know; shares differ by one at most."""
        return np.array_split(items, self.count)[self.rank]

    def sum(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by its sum over the ranks, in one message."""
        if self.count == 1:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        distributed.all_reduce(flat)
        for tensor, total in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(total.view_as(tensor))

    def gather(self, values: Tensor, total: int) -> Tensor:
        """Values of the ranks' shares of ``total`` items (first axis), in the order of the items."""
        if self.count == 1:
            return values
        lengths = [len(part) for part in np.array_split(np.arange(total), self.count)]
        padded = values.new_zeros(max(lengths), *values.shape[1:])
        padded[: len(values)] = values
        parts = [torch.empty_like(padded) for _ in lengths]
        distributed.all_gather(parts, padded)
        return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        if self.count == 1:
            return flag
        votes = torch.tensor([float(flag)], device=self.device)
        distributed.all_reduce(votes)
        return bool(votes.item())

    def copy_first(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors with those of the first rank."""
        if self.count > 1:
            for tensor in tensors:
                distributed.broadcast(tensor, 0)

    def wait(self) -> None:
        """Return when all ranks are here."""
        if self.count > 1:
            distributed.barrier()


@contextmanager
def joined(device: str = "auto") -> Iterator[Ranks]:
    """Join the ranks that a launcher started, if one did; ``device`` is cpu, cuda or auto (cuda where there is one)."""
    found = next((names for names in LAUNCHERS if names[0] in os.environ and names[1] in os.environ), None)
    rank, count = (int(os.environ[name]) for name in found[:2]) if found else (0, 1)
    local = int(os.environ.get(found[2], rank)) if found else 0
    place = _device(device, local)
    if count == 1:
        yield Ranks(rank, count, place)
        return
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29500")
    engine = "nccl" if place.type == "cuda" else "gloo"
    distributed.init_process_group(engine, rank=rank, world_size=count)
    try:
        yield Ranks(rank, count, place)
    except RuntimeError as error:
        if not _left_alone(error):
            raise
        raise LungwaveError("another rank has ended; start all of them with the same command to go on") from None
    finally:
        distributed.destroy_process_group()


def _left_alone(error: RuntimeError) -> bool:
    """Whether a message to the other ranks failed; gloo says so in words alone."""
    return isinstance(error, distributed.DistError) or "gloo" in str(error) or "closed by peer" in str(error)


def _device(name: str, local: int) -> torch.device:
    if name not in ("auto", "cpu", "cuda"):
        raise UsageError(f"device {name} is unknown; give auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("device cuda was asked for, but torch finds none; use --device cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if local >= torch.cuda.device_count():
        raise UsageError(f"rank {local} of this machine has no GPU of {torch.cuda.device_count()}; start fewer ranks")
    torch.cuda.set_device(local)
    return torch.device("cuda", local)
