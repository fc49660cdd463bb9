"""How many requests one client address may make: a bucket of tokens for each, in a table that cannot grow."""

from __future__ import annotations

import ipaddress
import math
from collections import OrderedDict

BURST = 2.0  # seconds' worth of requests that may come at once
MOST = 10_000  # addresses remembered (about 2 MB)


class Rate:
    """`rate` requests a second and address. `workers` processes share it out evenly, as their connections fall."""

    def __init__(self, rate: float, workers: int = 1, most: int = MOST):
        self.rate = rate / workers
        self.size = max(1.0, self.rate * BURST)
        self.most = most
        self.buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # address -> (tokens, seconds)

    def wait(self, address: str, now: float, cost: float = 1.0) -> int:
        """0 where a request of this cost may go on (and is counted); else the whole seconds until it may."""
        tokens, since = self.buckets.pop(address, (self.size, now))
        tokens = min(self.size, tokens + max(0.0, now - since) * self.rate)
        waits = tokens < min(cost, self.size) - 1e-9
        self.buckets[address] = (tokens if waits else max(0.0, tokens - cost), now)
        if len(self.buckets) > self.most:
            self.buckets.popitem(last=False)  # whoever asked longest ago
        return max(1, math.ceil((cost - tokens) / self.rate)) if waits else 0


def whose(client: tuple[str, int] | None) -> str:
    """What a client is counted under: its IPv4 address, or the /64 of its IPv6 address, which one person has whole."""
    if client is None:
        return "-"
    host = client[0]
    if ":" not in host:
        return host
    try:
        address = ipaddress.IPv6Address(host)
    except ValueError:
        return host
    if address.ipv4_mapped:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((address, 64), strict=False))
