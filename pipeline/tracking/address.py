"""Addresses of databases and servers, in which a password must be told from the rest before any message quotes them."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from sqlalchemy import exc, make_url

from pipeline.errors import UserError

_HOW = "is no address; in a password %40 stands for @, %2F for /, %3A for :, %23 for #, %3F for ?, %20 for a blank"
_BARE = re.compile(r"(?!file:)[^/@]*:[^@]*@|.*\b(password|pwd)=", re.IGNORECASE)
"""What somebody gives who leaves the scheme out, or writes what other programs take."""


def check_address(setting: str, address: str) -> None:
    """Refuse an address of which nobody can tell where its password ends.

    Args:
        setting: Where it was given.
        address: Of a database or a server; a path is passed.

    Raises:
        UserError: It is such a one; the message quotes its scheme only.
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
            # What stands before the first slash, up to which a password goes, is taken for a port.
            _ = urlsplit(address).port
            return True
        url = make_url(address)
    except (ValueError, exc.ArgumentError):
        return False
    return "@" not in (url.host or "") and not re.search(r"\s", str(url.password or ""))
