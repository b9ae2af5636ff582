"""What the viewer allows one request, one file and one job to take."""

from __future__ import annotations

from dataclasses import dataclass

MB = 10**6  # [byte]
GIB = 2**30  # [byte]


@dataclass(frozen=True)
class Limits:
    """Bytes and seconds, all of them enforced: by counting, by the kernel, or by a kill."""

    upload: int = 512 * MB  # [byte] of one file, counted while it streams in
    request: int = 16 * 1024  # [byte] of a JSON body
    memory: int = 4 * GIB  # [byte] of address space that a job may add to what the program itself takes
    written: int = 2 * GIB  # [byte] of one file that a job may write
    reading: float = 60.0  # [s] to read one file
    job: float = 1800.0  # [s] for a whole job
    waiting: int = 12  # jobs in the queue
    listed: int = 40  # finished jobs that are remembered
    kept: int = 200 * MB  # [byte] of finished results in memory; the oldest go first
    frames: int = 8  # of one file that are reconstructed, the first ones
