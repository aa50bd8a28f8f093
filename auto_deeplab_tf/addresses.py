"""Addresses of services that a command connects to."""

from __future__ import annotations

import socket

from auto_deeplab_tf.errors import FieldError

_SECONDS = 10.0


def check_listens(setting: str, address: str, service: str) -> None:
    """Refuses an address where nothing listens; clients would try it again for minutes.

    Args:
        setting: Name of the setting that names it.
        address: HOST:PORT, also with SCHEME:// before it; an IPv6 host in brackets.
        service: What should listen there, for the message.

    Raises:
        FieldError: If nothing does.
    """
    host, _, port = address.rpartition("://")[2].rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _SECONDS).close()
    except (OSError, ValueError) as error:
        raise FieldError(f"{setting}={address}: no {service} listens there ({error})") from None
