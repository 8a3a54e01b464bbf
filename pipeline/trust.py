"""Which Python code of runs may be executed.

It is the code that this user's own configuration has named on this machine, or that `--trust`
names. A run on a server may have been made, or changed, by anybody who can write there. If it keeps
a network of one's own, it keeps Python source, which evaluating or registering would execute.

The trusted code is recorded in a file of the user, one SHA-256 a line:
``~/.local/state/image-classifier-pipeline/trusted``. It stands outside all folders of results,
which may be shared.
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


def _trusted_file() -> Path:
    folder = os.environ.get("XDG_STATE_HOME") or Path("~/.local/state").expanduser()
    return Path(folder) / "image-classifier-pipeline" / "trusted"


def _read_lines() -> list[str]:
    """Return the lines of the file of trusted code; none if it cannot be read."""
    with suppress(OSError, UnicodeDecodeError):
        return _trusted_file().read_text(encoding="utf-8").splitlines()
    return []


def remember(digest: str, what: str) -> None:
    """Trust code from now on, since the user's own configuration names it.

    Args:
        digest: SHA-256 of the source, 64 hex digits.
        what: Path of the file. The file is this user's own from now on, whatever it holds.
    """
    _of_this_process.add(digest)
    whose = " ".join(what.split())
    if any(line.split(maxsplit=2)[::2] == [digest, whose] for line in _read_lines()):
        return
    line = f"{digest}  {datetime.now(UTC):%Y-%m-%d}  {whose}\n"
    # A user without a home, as in many containers, trusts it in this process only.
    with suppress(OSError):
        _trusted_file().parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _trusted_file().open("a", encoding="utf-8") as opened:
            opened.write(line)


def trust_here(digest: str) -> None:
    """Trust code in this process, as ``--trust`` asks.

    Args:
        digest: SHA-256 of the code. Nothing is trusted if it is empty.

    Raises:
        UserError: The text is no SHA-256.
    """
    if digest and not _DIGEST.fullmatch(digest.lower()):
        raise UserError(
            f"trust: {digest!r} given; the SHA-256 of the code is needed, 64 hex digits, "
            "as the refusal names it"
        )
    if digest:
        _given.add(digest.lower())


def is_trusted(digest: str) -> bool:
    """Whether code of that SHA-256 may be executed."""
    if digest in _of_this_process | _given:
        return True
    return any(line.split(maxsplit=1)[:1] == [digest] for line in _read_lines())


def name_network(name: str) -> None:
    """Note that a configuration of this step's user names the file of a network.

    Args:
        name: Name of the network: ``file:PATH.py:FUNCTION``.
    """
    _named.add(name)


def name_images(source: str, root: str, labels: str) -> None:
    """Note that a configuration of this step's user names where images are."""
    _images.add((source, root, labels))


def are_images_named(source: str, root: str, labels: str) -> bool:
    """Whether a configuration of this step's user names these places of images."""
    return (source, root, labels) in _images


def named_networks() -> frozenset[str]:
    """Return the names of networks in files that configurations of this step's user name."""
    return frozenset(_named)


def is_users_own(file: Path) -> bool:
    """Whether a configuration of this user has named that file, in this step or before."""
    for name in _named:
        path, _, _ = name.removeprefix("file:").rpartition(":")
        if Path(path).expanduser().absolute() == file.absolute():
            return True
    own = " ".join(str(file.absolute()).split())
    return any(line.split(maxsplit=2)[2:] == [own] for line in _read_lines())


def need_trust(
    source: Mapping[str, bytes],
    where: str,
    own: Iterable[Mapping[str, bytes]] = (),
    is_here: bool = False,
) -> None:
    """Check that code of a run may be executed.

    It may be if it is trusted, or if it is the code of a network that this step's configuration
    names.

    Args:
        source: Contents of the files by path relative to the network's folder.
        where: What the code is, for people.
        own: Networks that this step's configuration names, each as `source`. They are looked at
            only if the code is not trusted already.
        is_here: Whether the code stands on this machine, in a place that the user has not named.
            Only ``--trust`` allows it then.

    Raises:
        UserError: The code may not be executed. The message tells how to allow it.
    """
    digest = sha256_over(source)
    if digest in _given or (not is_here and is_trusted(digest)):
        return
    if any(dict(one) == dict(source) for one in own):
        remember(digest, "the same as a network of one's own")
        return
    raise UserError(
        f"{where} is Python code, SHA-256 {digest}, "
        "which no configuration of yours on this machine has named; "
        f"read it, and if you trust it, add --trust {digest}"
    )
