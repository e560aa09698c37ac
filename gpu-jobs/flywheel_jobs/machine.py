"""What the machine is: GPU, memory, the checkout's revision. Asked without importing torch where there is no GPU."""

from __future__ import annotations

import os
import resource
import subprocess
from pathlib import Path


def cuda_visible() -> bool:
    """Whether a CUDA device is there; asked of the driver, so that torch is not imported just to hear no."""
    if not Path("/proc/driver/nvidia/gpus").is_dir() and not Path("/dev/nvidia0").exists():
        return False
    import torch

    return bool(torch.cuda.is_available())


CGROUP = Path("/sys/fs/cgroup")
"""where a container sees its own limits"""


def cgroup_bytes(root: Path = CGROUP) -> float:
    """Memory that this container may use, by control groups of either version; infinite where there is no limit."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            return float((root / name).read_text())
        except (OSError, ValueError):  # no such file; or "max"
            continue
    return float("inf")


def memory_gb() -> float:
    """Memory that training may use: of the GPU, else half of what the machine has or its container is allowed."""
    if cuda_visible():
        import torch

        return float(torch.cuda.get_device_properties(0).total_memory / 1e9)
    return min(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), cgroup_bytes()) / 2e9


def peak_memory_mb(cuda: bool) -> float:
    """Most memory in use so far: of the GPU, else of this process."""
    if cuda:
        import torch

        return round(torch.cuda.max_memory_allocated() / 1e6, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, 1)


def git_revision() -> str | None:
    """FLYWHEEL_GIT_REVISION (set where the checkout is not, such as an image), else the checkout's HEAD; None when there is neither."""
    told = os.environ.get("FLYWHEEL_GIT_REVISION")
    if told:
        return told
    here = Path(__file__).resolve()

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(here.parent), *arguments]
        try:
            found = subprocess.run(command, check=False, capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return found.stdout.strip() if found.returncode == 0 else None

    # only when this very file is the checkout's: an installed copy below somebody else's repository has no revision
    return git("rev-parse", "HEAD") if git("ls-files", "--error-unmatch", here.name) is not None else None
