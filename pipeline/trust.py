"""Which Python code of runs may be executed: that which this user's own configuration has named on this machine, or `--trust` names.

A run on a server may have been made, or changed, by anybody who can write there. What it keeps of a network of one's own is Python source,
which evaluating or registering would execute. Kept is a file of the user, outside all folders of results, which may be shared:
``~/.local/state/image-classifier-pipeline/trusted``, one SHA-256 a line.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from pipeline.errors import UserError
from pipeline.files import sha256_over

_DIGEST = re.compile("[0-9a-f]{64}")
_of_this_process: set[str] = set()
_given: set[str] = set()
_named: set[str] = set()
_images: set[tuple[str, str, str]] = set()


def _file() -> Path:
    folder = os.environ.get("XDG_STATE_HOME") or Path("~/.local/state").expanduser()
    return Path(folder) / "image-classifier-pipeline" / "trusted"


def remember(digest: str, what: str) -> None:
    """Trust code from now on, since the user's own configuration names it.

    Args:
        digest: SHA-256 of the source, 64 hex digits.
        what: The file's path: it is this user's own from now on, whatever it holds.
    """
    _of_this_process.add(digest)
    whose = " ".join(what.split())
    with suppress(OSError, UnicodeDecodeError):
        if any(
            line.split(maxsplit=2)[::2] == [digest, whose]
            for line in _file().read_text(encoding="utf-8").splitlines()
        ):
            return
    line = f"{digest}  {datetime.now(UTC):%Y-%m-%d}  {whose}\n"
    # A user without a home, as in many containers, trusts it in this process only.
    with suppress(OSError):
        _file().parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _file().open("a", encoding="utf-8") as opened:
            opened.write(line)


def trust_here(digest: str) -> None:
    """Trust code in this process, as ``--trust`` asks; an empty text is no wish.

    Raises:
        UserError: It is no SHA-256.
    """
    if digest and not _DIGEST.fullmatch(digest.lower()):
        raise UserError(
            f"trust: {digest!r} given; the SHA-256 of the code is needed, 64 hex digits, as the refusal names it"
        )
    if digest:
        _given.add(digest.lower())


def is_trusted(digest: str) -> bool:
    """Whether code of that SHA-256 may be executed."""
    if digest in _of_this_process | _given:
        return True
    with suppress(OSError, UnicodeDecodeError):
        return any(
            line.split(maxsplit=1)[:1] == [digest]
            for line in _file().read_text(encoding="utf-8").splitlines()
        )
    return False


def name_network(name: str) -> None:
    """Note that a configuration of this step's user names a network's file: ``file:PATH.py:FUNCTION``."""
    _named.add(name)


def name_images(source: str, root: str, labels: str) -> None:
    """Note that a configuration of this step's user names where images are."""
    _images.add((source, root, labels))


def are_images_named(source: str, root: str, labels: str) -> bool:
    """Whether a configuration of this step's user names these places of images."""
    return (source, root, labels) in _images


def named_networks() -> frozenset[str]:
    """Return the networks of their own that configurations of this step's user name."""
    return frozenset(_named)


def is_users_own(file: Path) -> bool:
    """Whether a configuration of this user's has named that file, in this step or before."""
    own = " ".join(str(file.absolute()).split())
    if any(
        Path(name.removeprefix("file:").rpartition(":")[0]).expanduser().absolute()
        == file.absolute()
        for name in _named
    ):
        return True
    with suppress(OSError, UnicodeDecodeError):
        return any(
            line.split(maxsplit=2)[2:] == [own]
            for line in _file().read_text(encoding="utf-8").splitlines()
        )
    return False


def need_trust(
    source: Mapping[str, bytes],
    where: str,
    own: Iterable[Mapping[str, bytes]] = (),
    is_here: bool = False,
) -> None:
    """Check that code of a run may be executed: it is trusted, or is that of a network which this step's configuration names.

    Args:
        source: Contents by path relative to the network's folder.
        where: What the code is, for people.
        own: Networks that this step's configuration names, likewise; looked at only where the code is not trusted already.
        is_here: It stands on this machine, in a place that the user has not named: only ``--trust`` allows it.

    Raises:
        UserError: With the way to allow it.
    """
    digest = sha256_over(source)
    if digest in _given or (not is_here and is_trusted(digest)):
        return
    if any(dict(one) == dict(source) for one in own):
        remember(digest, "the same as a network of one's own")
        return
    raise UserError(
        f"{where} is Python code, SHA-256 {digest}, which no configuration of yours on this machine has named; "
        f"read it, and if you trust it, add --trust {digest}"
    )
