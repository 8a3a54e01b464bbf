"""Texts of strangers (names of files, classes, runs) as they may be printed: without what a terminal or a page would act on."""

from __future__ import annotations

import re

# C0 and C1 controls, separators of lines and paragraphs, marks that turn the direction of what follows, and bytes that are no UTF-8.
_ACTS = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
_MARKDOWN = re.compile(r"[\\`*\[\]<>|~]")


def make_visible(text: str) -> str:
    r"""Return a text in one line, what a terminal would act on written out, as ``\x1b`` for the beginning of an escape sequence."""
    return _ACTS.sub(
        lambda found: found[0].encode("unicode_escape", "surrogatepass").decode(), text
    )


def escape_markdown(text: str) -> str:
    """Return a text that Markdown shows as it is, in one line: no link, no picture, no HTML, no cell of its own."""
    return _MARKDOWN.sub(r"\\\g<0>", make_visible(text))


def hide_passwords(text: str) -> str:
    """Return a text in which every password of an address is ``***``: in ``scheme://USER:PASSWORD@HOST`` and in ``?password=…``."""
    hidden = (
        _TOKEN.sub(r"\1***\2", _IN_ADDRESS.sub(r"\1\3***\2\4", text)) if "://" in text else text
    )
    return _IN_QUERY.sub(r"\1***", hidden)


# Up to the last @: a password may hold one that is not escaped. Of a page on the web only before the path, of a database anywhere.
_IN_ADDRESS = re.compile(
    r"(https?://[^/?#\s@:]*:)[^/?#\s]{0,500}(@)|((?<![a-zA-Z0-9+.-])(?!https?:)[a-zA-Z][a-zA-Z0-9+.-]{0,40}://[^/?#\s@:]*:)\S{0,500}(@)",
    re.IGNORECASE,
)
# Instead of user and password.
_TOKEN = re.compile(r"(https?://)[^/?#\s@:]+(@)", re.IGNORECASE)
_IN_QUERY = re.compile(
    r"((?:[?&](?:token|secret|key|odbc_connect|options)|\b(?:ssl)?pass(?:word|wd)|\bpwd)=)[^&#\s;]*",
    re.IGNORECASE,
)
