"""This machine's own address, as seen on the way to the registry."""

import socket
from urllib.parse import urlsplit


def local_ip(registry_url: str) -> str | None:
    """The address that packets to the registry leave from; a UDP connect sends nothing."""
    try:
        split = urlsplit(registry_url)
        family, kind, _, _, address = socket.getaddrinfo(split.hostname, split.port or 80, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)
            return str(probe.getsockname()[0])
    except (OSError, ValueError):  # a name that cannot be a host's is a UnicodeError
        return None
