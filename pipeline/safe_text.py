"""Texts of strangers (names of files, classes, runs) in a form that may be printed.

They lose what a terminal or a page would act on.
"""

from __future__ import annotations

import re

# C0 and C1 controls, separators of lines and paragraphs, marks that turn the direction of what
# follows, and bytes that are no UTF-8.
_ACTS = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029"
    "\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
_MARKDOWN = re.compile(r"[\\`*\[\]<>|~]")
# A password ends at the last @: it may hold one that is not escaped. In an address of the web the
# last @ before the path counts, in the address of a database the last one anywhere.
_IN_ADDRESS = re.compile(
    r"(https?://[^/?#\s@:]*:)[^/?#\s]{0,500}(@)"
    r"|((?<![a-zA-Z0-9+.-])(?!https?:)[a-zA-Z][a-zA-Z0-9+.-]{0,40}://[^/?#\s@:]*:)\S{0,500}(@)",
    re.IGNORECASE,
)
# A token may stand in place of user and password.
_TOKEN = re.compile(r"(https?://)[^/?#\s@:]+(@)", re.IGNORECASE)
_IN_QUERY = re.compile(
    r"((?:[?&](?:token|secret|key|odbc_connect|options)"
    r"|\b(?:ssl)?pass(?:word|wd)|\bpwd)=)[^&#\s;]*",
    re.IGNORECASE,
)


def make_visible(text: str) -> str:
    r"""Return a text in one line, in which what a terminal would act on is written out.

    The beginning of an escape sequence, for example, becomes ``\x1b``.
    """
    return _ACTS.sub(
        lambda found: found[0].encode("unicode_escape", "surrogatepass").decode(), text
    )


def escape_markdown(text: str) -> str:
    """Return a text that Markdown shows as it is, in one line.

    It becomes no link, no picture, no HTML and no cell of its own.
    """
    return _MARKDOWN.sub(r"\\\g<0>", make_visible(text))


def hide_passwords(text: str) -> str:
    """Return a text in which every password of an address is ``***``.

    Passwords stand in ``scheme://USER:PASSWORD@HOST`` and in ``?password=…``.
    """
    if "://" in text:
        text = _TOKEN.sub(r"\1***\2", _IN_ADDRESS.sub(r"\1\3***\2\4", text))
    return _IN_QUERY.sub(r"\1***", text)
