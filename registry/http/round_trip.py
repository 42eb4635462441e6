"""How far the other end of a connection is, as the kernel measures it by the way."""

import socket
import struct
from typing import Any

_INFO_BYTES = 152
_RTT, _LEAST_RTT = struct.Struct("68xI"), struct.Struct("148xI")  # of Linux' struct tcp_info: microseconds


def kernel_rtt_ms(connection: Any) -> float | None:
    """The round trip in milliseconds; None where the platform does not tell, or has not measured. The least of the
    last minutes where it is known: the mean counts how long the other end keeps back what it acknowledges."""
    option = getattr(socket, "TCP_INFO", None)
    if option is None or connection is None or connection.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, option, _INFO_BYTES)
    except OSError:
        return None
    least_us = _LEAST_RTT.unpack_from(info)[0] if len(info) >= _LEAST_RTT.size else 0
    mean_us = _RTT.unpack_from(info)[0] if len(info) >= _RTT.size else 0
    told_us = least_us if 0 < least_us < 2**32 - 1 else mean_us
    return told_us / 1000 if told_us else None
