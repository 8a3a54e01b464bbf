"""Which Python code of runs may be executed: that which this user's own configuration has named on this machine, or `--trust` names.

A run on a server may have been made, or changed, by anybody who can write there. What it keeps of a network of one's own is Python source,
which evaluating or registering would execute. Kept is a file of the user, outside all folders of results, which may be shared:
``~/.local/state/image-classifier-pipeline/trusted``, one SHA-256 a line.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from pipeline.errors import UserError
from pipeline.files import sha256_over

_DIGEST = re.compile("[0-9a-f]{64}")
_of_this_process: set[str] = set()
_named: set[Path] = set()


def _file() -> Path:
    folder = os.environ.get("XDG_STATE_HOME") or Path("~/.local/state").expanduser()
    return Path(folder) / "image-classifier-pipeline" / "trusted"


def remember(digest: str, what: str) -> None:
    """Trust code from now on, since the user's own configuration names it.

    Args:
        digest: SHA-256 of the source, 64 hex digits.
        what: For a person who looks at the file.
    """
    if is_trusted(digest):
        return
    _of_this_process.add(digest)
    line = f"{digest}  {datetime.now(UTC):%Y-%m-%d}  {' '.join(what.split())}\n"
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
        raise UserError(f"trust: {digest!r} given; the SHA-256 of the code is needed, 64 hex digits, as the refusal names it")
    if digest:
        _of_this_process.add(digest.lower())


def is_trusted(digest: str) -> bool:
    """Whether code of that SHA-256 may be executed."""
    if digest in _of_this_process:
        return True
    with suppress(OSError, UnicodeDecodeError):
        return any(line.split(maxsplit=1)[:1] == [digest] for line in _file().read_text(encoding="utf-8").splitlines())
    return False


def name_file(file: Path) -> None:
    """Note that a configuration of this step's user names a network's file."""
    _named.add(file.absolute())


def need(source: Mapping[str, bytes], run_id: str, artifact: str) -> None:
    """Check that code of a run may be executed: it is trusted, or is that of a network which this step's configuration names.

    Args:
        source: Contents by path relative to the network's folder.
        run_id: Keeps it.
        artifact: Where.

    Raises:
        UserError: With the way to allow it.
    """
    digest = sha256_over(source)
    if is_trusted(digest):
        return
    for file in _named:
        if file.name in source and all(_content(file.parent / name) == content for name, content in source.items()):
            remember(digest, str(file))
            return
    raise UserError(
        f"run {run_id} keeps Python code in its artifact {artifact}, SHA-256 {digest}, which no configuration of yours on this machine has "
        f"named; read it, and if you trust it, add --trust {digest}"
    )


def _content(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except OSError:
        return None
