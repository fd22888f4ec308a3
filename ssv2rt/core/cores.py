"""Number of CPU cores that this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path


def cores() -> int:
    """Number of CPU cores by the affinity of this process and by the CPU limit of its container (cgroup v2)."""
    allowed = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(allowed, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no limit, or the limit cannot be read
        return allowed
