"""Addresses of databases and servers.

The password in an address must be recognised before any message quotes the address.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from sqlalchemy import exc, make_url

from pipeline.errors import UserError

_HOW = (
    "is no address; in a password %40 stands for @, %2F for /, %3A for :, %23 for #, %3F for ?, "
    "%20 for a blank"
)
_BARE = re.compile(r"(?!file:)[^/@]*:[^@]*@|.*\b(password|pwd)=", re.IGNORECASE)
"""Addresses without a scheme that hold a password, also in the forms that other programs take."""


def check_address(setting: str, address: str) -> None:
    """Refuse an address if it is unclear where its password ends.

    Args:
        setting: Name of the setting that holds the address.
        address: Address of a database or a server. A path is accepted.

    Raises:
        UserError: The address is unclear. The message quotes its scheme only.
    """
    scheme, separator, rest = address.partition("://")
    if not separator:
        if _BARE.match(address):
            raise UserError(f"{setting}: what is given {_HOW}")
    elif not rest.startswith("/") and not _is_clear(scheme, address):
        raise UserError(f"{setting}: {scheme}://*** {_HOW}")


def _is_clear(scheme: str, address: str) -> bool:
    try:
        if scheme in ("http", "https"):
            # A password that holds a slash is cut there, and what stands before the slash is taken
            # for a port.
            _ = urlsplit(address).port
            return True
        url = make_url(address)
    except (ValueError, exc.ArgumentError):
        return False
    return "@" not in (url.host or "") and not re.search(r"\s", str(url.password or ""))
