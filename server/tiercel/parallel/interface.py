"""The network interface that leads to an address. Torch-free."""

import socket

import psutil

_DISCARD = 9  # a port that nothing is sent to


def interface_to(address: str) -> str | None:
    """Its name; None where that cannot be found out.

    gloo would listen at the address of the machine's own name, which others may not reach.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, _DISCARD))  # sends nothing
        except OSError:
            return None
        ours = probe.getsockname()[0]
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address == ours for each in addresses):
            return name
    return None
