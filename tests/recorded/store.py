"""A small store that release 0.1.0 has made, kept as an archive: it must stay usable.

It was recorded with the code of that release, in a folder of its own with the files that the
archive holds, by

    main --config finished.yaml
        a finished study of two, its champion registered
    train --config interrupted.yaml
        SIGTERM after epoch 2 of 4
    tune --config half.yaml
        one complete, one failed (lr 1e30), SIGTERM after epoch 2 of the third
    tune --config lists.yaml
        a choice of lists: both trainings complete, then a traceback
    train --config lists.yaml --experiment own
        a complete run of a network of one's own
    train --config lists.yaml --experiment own --model.weights file:weights.safetensors
          --training.epochs 4
        SIGTERM after epoch 2 of 4

each training with one thread. Then pictures, pages and the older of two resume checkpoints were
removed, and the folder packed by ``python -m tests.recorded.store FOLDER``. Absolute paths are a
placeholder in the archive, and databases are SQL.
"""

from __future__ import annotations

import io
import sqlite3
import sys
import tarfile
from contextlib import closing
from pathlib import Path

from mlflow.tracking._tracking_service.utils import _artifact_repos_cache

ARCHIVE = Path(__file__).with_name("release_0_1_0.tar.xz")
_PLACEHOLDER = "@FOLDER@"
_DATABASES = ("mlflow.db", "optuna.db")
_TEXTS = {".yaml", ".json", ".txt", ".csv", ".md", ".html", ""}


def unpack(folder: Path) -> None:
    """Make the recorded store anew in an empty folder, as if it had been made there."""
    # By their ids MLflow knows where runs keep artifacts, as long as a process lives: there may be
    # another store with these.
    _artifact_repos_cache.clear()
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    for file in list(folder.rglob("*")):
        if not file.is_file() or file.suffix not in {*_TEXTS, ".sql"}:
            continue
        file.write_text(file.read_text().replace(_PLACEHOLDER, str(folder)))
    for name in _DATABASES:
        dump = folder / f"{name}.sql"
        with closing(sqlite3.connect(folder / name)) as database:
            database.executescript(dump.read_text())
        dump.unlink()


def pack(folder: Path, host: str) -> None:
    """Write the archive from a folder in which a release has worked.

    `host` is the machine's name, which is left out.
    """
    with tarfile.open(ARCHIVE, "w:xz", preset=9) as archive:
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            name, content = file.relative_to(folder).as_posix(), file.read_bytes()
            if name in _DATABASES:
                with closing(sqlite3.connect(file)) as database:
                    name, content = f"{name}.sql", "\n".join(database.iterdump()).encode()
                content = content.replace(f"'{host} ".encode(), b"'elsewhere ")
            if name.endswith(".sql") or file.suffix in _TEXTS:
                content = content.replace(str(folder).encode(), _PLACEHOLDER.encode())
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


if __name__ == "__main__":
    pack(Path(sys.argv[1]).resolve(), sys.argv[2])
