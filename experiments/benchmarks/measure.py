"""Time, peak memory, and the machine that both were measured on."""

import concurrent.futures
import ctypes
import gc
import importlib.metadata
import multiprocessing
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

MEBIBYTE = 2**20
_PAUSE = 0.02
_PACKAGES = ("jax", "jaxlib", "numpy", "faiss-cpu", "scikit-learn")


T = TypeVar("T")


class Timing(NamedTuple):
    """Seconds per call: the median over the runs, the fastest and the slowest."""

    median: float
    low: float
    high: float

    def spread(self) -> dict[str, float]:
        """For the details of a row."""
        return {"fastest": self.low, "slowest": self.high}


def median_seconds(
    functions: Mapping[str, Callable[[], Any]], runs: int, *, calls: int = 1
) -> dict[str, Timing]:
    """Time functions in turn: A B C, A B C, ... so that a slow minute hits all alike.

    Args:
      functions: What to call, by name. Each is called once before, to warm up.
      runs: Rounds; the median is over these.
      calls: Calls per function and round, for calls of few milliseconds.
    """
    for function in functions.values():
        jax.block_until_ready(function())
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(runs):
        for name, function in functions.items():
            time.sleep(_PAUSE)  # until the threads of the one before sleep as well
            start = time.perf_counter()
            for _ in range(calls):
                jax.block_until_ready(function())
            seconds[name].append((time.perf_counter() - start) / calls)
    return {
        name: Timing(statistics.median(values), min(values), max(values))
        for name, values in seconds.items()
    }


def once(function: Callable[..., T], *arguments: Any) -> tuple[float, T]:
    """Seconds of one call, not warmed up, and its result."""
    start = time.perf_counter()
    result = jax.block_until_ready(function(*arguments))
    return time.perf_counter() - start, result


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a module's function in a new Python, where nothing is compiled yet."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def peak_extra_bytes(function: Callable[..., T], *arguments: Any) -> tuple[int, T]:
    """Peak of resident memory during a call above that before it, and the result.

    Linux only. The result counts, what is there before does not. What the allocator
    keeps of freed memory is handed back first: else the call would use it, uncounted.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _status_bytes("VmRSS")
    result = jax.block_until_ready(function(*arguments))
    return _status_bytes("VmHWM") - before, result


def _status_bytes(name: str) -> int:
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    (value,) = (line.split()[1] for line in lines if line.startswith(f"{name}:"))
    return 1024 * int(value)


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """`p` of `values ~ sizes ** p`, by least squares of the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def machine() -> dict[str, str]:
    """What the results depend on, by name."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "memory": f"{memory / 2**30:.0f} GiB",
        "device": jax.devices()[0].device_kind,
        "Python": platform.python_version(),
        **{package: _version(package) for package in _PACKAGES},
    }


def _processor() -> str:
    information = pathlib.Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
