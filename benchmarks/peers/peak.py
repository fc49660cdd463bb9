"""How long a call takes, and how much memory beyond what was held before (Linux); for both sides of a comparison."""

from __future__ import annotations

import gc
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

OWN = Path("/proc/self")


def watched(call: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """What the call returns; its "seconds", its "extra_mib": the most that was resident while it ran, less what was
    before it, and "peak_mib", all that was resident at that moment.

    The kernel's own high-water mark is set back first, so that nothing that came and went before counts.
    """
    gc.collect()
    (OWN / "clear_refs").write_text("5")
    before = _status("VmRSS")
    start = time.perf_counter()
    result = call()
    seconds = time.perf_counter() - start
    peak = _status("VmHWM")
    return result, {"seconds": seconds, "extra_mib": (peak - before) / 1024, "peak_mib": peak / 1024}


def _status(name: str) -> int:
    """A line of /proc/self/status, in KiB."""
    found = re.search(rf"^{name}:\s+(\d+) kB", (OWN / "status").read_text(), re.MULTILINE)
    assert found
    return int(found[1])
