"""The network interface on which ranks listen for each other. Torch-free."""

import contextlib
import ipaddress
import socket

import psutil

from tiercel.errors import ConfigError
from tiercel.wire.options import LOCALHOST, World

_DISCARD = 9  # a port that nothing is sent to


def interface_of(world: World | None) -> str | None:
    """For ranks that others start as `world`, or that this machine has for itself.

    Raises ConfigError for a name that other machines would find elsewhere: Debian gives a machine's
    own name an address of the loopback.
    """
    if world is None:
        return interface_to(LOCALHOST)
    if world.local_size < world.size and _misleads(world.address):
        raise ConfigError(
            f"--master-addr {world.address} is the loopback on this machine, where the ranks of "
            "others cannot come; give its address in the network they share"
        )
    return interface_to(world.address)


def _misleads(name: str) -> bool:
    """Whether it is a name of the loopback here. Who writes 127.0.0.1 or localhost means it."""
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(name)
        return False
    try:
        found = ipaddress.ip_address(socket.gethostbyname(name))
    except OSError:
        return False
    return found.is_loopback and name != "localhost"


def interface_to(address: str) -> str | None:
    """Its name; None where that cannot be found out.

    gloo would listen at the address of the machine's own name, which others may not reach.
    """
    ours = LOCALHOST
    if address != LOCALHOST:  # a server that is alone opens no socket for this
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
