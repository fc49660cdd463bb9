"""Which network addresses belong to the public internet, and not to this machine, its network or its cloud."""

from __future__ import annotations

import ipaddress
import socket

# IANA's special-purpose registry, with multicast and the relays that hide another address
_PRIVATE4 = [
    ipaddress.IPv4Network(block)
    for block in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.31.196.0/24",
        "192.52.193.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "192.175.48.0/24",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/3",
    )
]
# Of IPv6 what is global unicast: IPv4-mapped, NAT64, unique local, link-local and multicast lie outside
_GLOBAL6 = ipaddress.IPv6Network("2000::/3")
_PRIVATE6 = [
    ipaddress.IPv6Network(block)
    for block in ("2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3ffe::/16", "3fff::/20")
]


def public(text: str) -> bool:
    """Whether an address is one of the public internet. False for what is no address, or has a zone (`%eth0`)."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv4Address):
        return address.is_global and not any(address in block for block in _PRIVATE4)
    if address.scope_id is not None or address not in _GLOBAL6:
        return False
    return address.is_global and not any(address in block for block in _PRIVATE6)


def own(text: str) -> bool:
    """Whether an address is this machine's: then one can bind to it."""
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((text, 0))
    except OSError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether a server bound to `host` is reached from its own machine only."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
