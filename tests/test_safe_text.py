"""Texts of strangers on the terminal, in notes and in tables; passwords of addresses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
import yaml
from PIL import Image

from pipeline.__main__ import _tell_of_bug
from pipeline.errors import PipelineError, UserError
from pipeline.safe_text import escape_markdown, hide_passwords, make_visible
from pipeline.search.study_storage import Database
from pipeline.tracking import artifacts, names, study_runs
from pipeline.tracking.address import check_address
from pipeline.tracking.tracked_run import TrackedRun
from pipeline.tracking.workspace import Workspace, open_workspace
from tests.conftest import PROJECT, Cli, write_digits

HOSTILE = "a\x1b[2J\x1b]0;owned\x07\r\n\u202egnp.exe\u2028\u200f\udce9"


def test_what_a_terminal_would_act_on_is_written_out() -> None:
    assert make_visible(HOSTILE) == r"a\x1b[2J\x1b]0;owned\x07\r\n\u202egnp.exe\u2028\u200f\udce9"
    assert make_visible("naïve – 日本語 · नमस्ते\u200d 👩‍🔬") == "naïve – 日本語 · नमस्ते\u200d 👩‍🔬"


def test_markdown_is_shown_as_it_is() -> None:
    assert (
        escape_markdown("![x](http://a/b.png) <b> `c` *d* |\n# e")
        == r"!\[x\](http://a/b.png) \<b\> \`c\` \*d\* \|\\n# e"
    )


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://me:secret@host:5432/db", "postgresql://me:***@host:5432/db"),
        ("postgresql+psycopg://me:p@ss:w@host/db", "postgresql+psycopg://me:***@host/db"),
        ("https://:token@host/x?y=1", "https://:***@host/x?y=1"),
        (
            "postgresql://host/db?user=me&password=secret&x=1",
            "postgresql://host/db?user=me&password=***&x=1",
        ),
        ("'mysql://a:b@c' and 'http://d:e@f'", "'mysql://a:***@c' and 'http://d:***@f'"),
        ("http://host:5000/x@y", "http://host:5000/x@y"),
        ("postgresql://me:s3/cr#et?x@host/db: away", "postgresql://me:***@host/db: away"),
        ("http://t0ken@host/x", "http://***@host/x"),
        ("mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BPWD%3Ds", "mssql+pyodbc:///?odbc_connect=***"),
        ("postgresql:///db?options=-c%20password%3Ds&x=1", "postgresql:///db?options=***&x=1"),
        ("host=a PWD=secret;x=1 password=b", "host=a PWD=***;x=1 password=***"),
        ("sqlite:////a/b:c@d/e.db", "sqlite:////a/b:c@d/e.db"),
        ("mail me@host: it is 5:30", "mail me@host: it is 5:30"),
    ],
)
def test_passwords_of_addresses_are_hidden(text: str, shown: str) -> None:
    assert hide_passwords(text) == shown
    assert (
        str(PipelineError(text)) == shown and str(UserError(text, [text])) == f"{shown}\n  {shown}"
    )


ADDRESSES = [
    "postgresql://me:s3cr3t with@127.0.0.1:9/x",
    "postgresql://me:p@s3cr3t@127.0.0.1:9/x",
    "postgresql://me:a@b:s3cr3t@127.0.0.1:9",
    "postgresql://me:a@s3cr3t:b@127.0.0.1:9/x",
    "me:s3cr3t@127.0.0.1/x",
    "host=127.0.0.1 password=s3cr3t",
    "http://me:s3/cr3t@127.0.0.1:9",
    "postgresql:/me:s3cr3t@127.0.0.1:9/x",
]


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_whose_password_cannot_be_told_is_refused_without_it(
    folder: Path, address: str
) -> None:
    mlflow.set_tracking_uri(address)
    with pytest.raises(UserError, match=r"^study\.storage: .*%40 stands for @") as storage:
        Database(address, folder)
    with pytest.raises(UserError, match=r"^MLFLOW_TRACKING_URI: .*%2F for /") as tracking:
        open_workspace("quick")
    assert not any(part in f"{storage.value}{tracking.value}" for part in ("s3", "cr3t"))


@pytest.mark.parametrize(
    "address",
    [
        "",
        "sqlite:////home/me@work/a:b@c.db",
        "https://me:t0ken@host:5000/x",
        "postgresql+psycopg://me:p%40s%2Fs@h:5/x?a=b",
        "/a/b",
        "databricks",
        "file:/a/me@b/c",
    ],
)
def test_other_addresses_are_clear(address: str) -> None:
    check_address("study.storage", address)


def test_names_of_classes_and_files_do_not_reach_the_terminal_as_they_are(
    cli: Cli, folder: Path
) -> None:
    root = write_digits(folder / "digits", 24, classes=(0, 1))
    bad = "bad\x1b]0;owned\x07\u202e"
    (root / "digit 0").rename(root / bad)
    (root / bad / "x\x1b[2J.png").write_bytes(b"no picture")
    for number in range(24):
        Image.new("L", (16, 80), 10 * number).save(root / bad / f"long{number}.png")
    done = cli(
        "prepare",
        "--data.source",
        f"folder:{root}",
        "--data.bad",
        "warn",
        "--data.image_size",
        "16",
        "--data.duplicates",
        "ignore",
    )
    assert done.code == 0, done.err
    assert r"x\x1b[2J.png" in done.out and r"bad\x1b]0;owned\x07\u202e" in done.out
    refused = cli(
        "prepare",
        "--data.source",
        f"folder:{root}",
        "--data.image_size",
        "16",
        "--data.duplicates",
        "ignore",
    )
    assert refused.code == 2 and r"x\x1b[2J.png" in refused.err
    assert not set("\x1b\x07\u202e") & set(done.out + done.err + refused.out + refused.err)


SECRET = "s3cr3t!word"


def everything(folder: Path) -> bytes:
    """Return all that a store holds."""
    return b"".join(
        file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and file.name != "study.yaml"
    )


def test_a_password_of_the_studys_database_is_kept_nowhere(
    cli: Cli, quick: Path, workspace: Workspace
) -> None:
    storage = f"postgresql+psycopg://me:{SECRET}@127.0.0.1:9/none"
    raw = {**yaml.safe_load(quick.read_text()), "configs": [{}], "study": {"storage": storage}}
    file = quick.with_name("study.yaml")
    file.write_text(yaml.safe_dump(raw))
    refused = cli("tune", "--config", file)
    assert refused.code in (1, 2) and SECRET not in refused.out + refused.err
    # A local database whose address has a password, which SQLite does not look at.
    raw["study"]["storage"] = f"sqlite:///{quick.parent / 'other.db'}?password={SECRET}"
    raw["base"]["training"]["epochs"] = 1
    file.write_text(yaml.safe_dump(raw))
    done = cli("tune", "--config", file)
    assert SECRET not in done.out + done.err
    assert SECRET.encode() not in everything(quick.parent)
    if done.code == 0:
        (study,) = study_runs.find_studies(workspace)
        kept = artifacts.download_artifact(
            workspace, study.parent, "study.yaml", quick.parent / "down"
        ).read_text()
        assert "password=***" in kept


def test_tags_params_and_tracebacks_of_a_run_have_no_password(workspace: Workspace) -> None:
    address = f"postgresql://me:{SECRET}@host/db"
    with pytest.raises(RuntimeError), TrackedRun(workspace, "train", "r") as run:
        run.tag({"where": address})
        run.params({"from": address})
        raise RuntimeError(f"{address} does not answer")
    ended = workspace.client.get_run(run.id)
    assert ended.data.tags["where"] == ended.data.params["from"] == "postgresql://me:***@host/db"
    assert ended.data.tags[names.REASON] == "postgresql://me:***@host/db does not answer"
    assert SECRET.encode() not in everything(workspace.home)


def test_the_traceback_of_a_bug_has_no_password(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        raise RuntimeError(f"http://me:{SECRET}@host")
    except RuntimeError as error:
        _tell_of_bug(type(error), error, error.__traceback__)
    told = capsys.readouterr().err
    assert (
        told.startswith("Traceback")
        and "RuntimeError: http://me:***@host" in told
        and SECRET not in told
    )


@pytest.mark.slow
def test_nothing_in_the_current_folder_is_executed_by_processes_of_ours(tmp_path: Path) -> None:
    """Processes that decode images and those that augment them.

    They are started where modules of those names lie.
    """
    marker = tmp_path / "executed"
    for name in ("pipeline/__init__", "random", "numpy/__init__", "torch", "PIL/__init__"):
        file = tmp_path / f"{name}.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(
            f"open({str(marker)!r}, 'a').write({name!r})\nraise ImportError('not this one')\n"
        )
    for label in ("cat", "dog"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(120):
            Image.effect_noise((200, 200), 50 + number).save(
                tmp_path / "photos" / label / f"{number}.png"
            )
    code = (
        f"import sys, os; sys.path.insert(0, {str(PROJECT)!r}); "
        f"import pipeline.__main__ as main; os.chdir({str(tmp_path)!r})\n"
        "import pipeline.data.examine as examine; examine._ALONE_SECONDS = 0.0\n"
        "if __name__ == '__main__': sys.exit(main.main(['prepare', '--data.source', "
        "'folder:photos', '--data.image_size', '16']))"
    )
    script = tmp_path / "elsewhere" / "run.py"
    script.parent.mkdir()
    script.write_text(code)
    environment = {
        key: value
        for key, value in os.environ.items()
        if key not in ("PYTHONPATH", "PYTHONSAFEPATH")
    }
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd="/",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert not marker.exists()
