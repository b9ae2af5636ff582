"""How a worker process is tied down: it ends with its viewer, and the kernel holds it to its limits."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with(parent: int) -> None:
    """Have the kernel kill this process when the viewer ends, even where it is deep inside a C library (Linux)."""
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before we asked
        os._exit(1)


def harden(memory: int, written: int) -> None:
    """Limit address space to what is used now plus ``memory`` [byte], files to ``written`` [byte]; leave no core dump.

    Called when everything is imported, because libraries alone map a gigabyte or many.
    """
    os.umask(0o077)
    try:
        import resource
    except ImportError:  # Windows has none of these
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # it would hold what was uploaded
    _lower(resource.RLIMIT_FSIZE, written)
    used = address_space()
    if used:
        _lower(resource.RLIMIT_AS, used + memory)


def _lower(which: int, value: int) -> None:
    import resource

    _, most = resource.getrlimit(which)
    value = value if most == resource.RLIM_INFINITY else min(value, most)
    resource.setrlimit(which, (value, value))


def allow_processor(seconds: float) -> None:
    """Let this process use so many more seconds of processor time; then the kernel ends it (SIGXCPU)."""
    try:
        import resource
    except ImportError:
        return
    usage = resource.getrusage(resource.RUSAGE_SELF)
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    wanted = int(usage.ru_utime + usage.ru_stime + seconds * (os.cpu_count() or 1)) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (wanted if most == resource.RLIM_INFINITY else min(wanted, most), most))


def address_space() -> int:
    """Bytes of address space that this process has; 0 where the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0
