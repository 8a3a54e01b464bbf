"""A store, a run, a registered model and a data set are strangers.

What they say chooses no path and runs no code.
"""

from __future__ import annotations

import json
import os
import pickle
import platform
import sys
import tempfile
import zipfile
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import mlflow
import numpy as np
import pytest
import yaml
from mlflow.entities import Param

from pipeline import models
from pipeline.config import Model
from pipeline.errors import UserError
from pipeline.jobs.summary import summarise
from pipeline.jobs.train import TENSORBOARD
from pipeline.tracking import names
from pipeline.tracking.workspace import Workspace
from pipeline.training.exported_model import Classifier, save_exported
from tests.conftest import Cli, Finished, forget_trust, interrupt, write_digits

pytestmark = pytest.mark.slow


def trainings(workspace: Workspace) -> list[Any]:
    ids = [one.experiment_id for one in workspace.client.search_experiments()]
    found = workspace.client.search_runs(ids, order_by=["attributes.start_time ASC"])
    return [run for run in found if run.data.tags.get(names.STEP) == "train"]


@pytest.fixture
def precious(folder: Path) -> Path:
    """A folder beside the store that nobody must touch."""
    path = folder / "precious"
    path.mkdir()
    (path / "file").write_text("kept")
    return path


@pytest.fixture
def interrupted(cli: Cli, quick: Path, workspace: Workspace) -> str:
    """The id of an interrupted training."""
    interrupt(
        cli,
        "train",
        "--config",
        str(quick),
        "--training.epochs",
        "40",
        "--training.checkpoint_seconds",
        "0",
    )
    (run,) = trainings(workspace)
    return str(run.info.run_id)


UIDS = [
    "../../precious",
    "..",
    ".",
    "",
    "checkpoints",
    "0" * 31,
    "0" * 33,
    "G" * 32,
    f"{'0' * 32}/../../../precious",
]


def files_below(folder: Path) -> list[Path]:
    """Return what lies there, but for databases and what they keep beside themselves."""
    return sorted(path for path in folder.rglob("*") if ".db" not in path.name)


def test_a_uid_of_a_run_chooses_no_folder(
    cli: Cli, precious: Path, interrupted: str, workspace: Workspace
) -> None:
    before = files_below(precious.parent)
    for uid in (str(precious), *UIDS):
        workspace.client.set_tag(interrupted, names.UID, uid)
        refused = cli("train", "--run_id", interrupted)
        assert (refused.code, refused.err.count("\n")) == (2, 1), (uid, refused.err)
        assert names.UID in refused.err
        assert files_below(precious.parent) == before, uid
        assert workspace.client.get_run(interrupted).info.status == "KILLED"


def test_an_experiment_of_a_run_chooses_no_folder(
    cli: Cli, precious: Path, interrupted: str, workspace: Workspace
) -> None:
    uid = workspace.client.get_run(interrupted).data.tags[names.UID]
    for experiment in ("..", ".", "../precious", "", "a/../../precious", "/tmp"):
        workspace.client.set_tag(interrupted, names.EXPERIMENT, experiment)
        refused = cli("train", "--run_id", interrupted)
        assert (refused.code, refused.err.count("\n")) == (2, 1), (experiment, refused.err)
        assert "experiment" in refused.err
        assert (precious / "file").is_file() and (workspace.checkpoints / uid).is_dir()


def test_a_study_trains_on_beside_a_run_whose_uid_was_changed(
    cli: Cli, precious: Path, quick: Path, workspace: Workspace
) -> None:
    file = quick.with_name("study.yaml")
    file.write_text(
        yaml.safe_dump(
            {**yaml.safe_load(quick.read_text()), "configs": [{}, {"optimizer": {"lr": 1e-3}}]}
        )
    )
    interrupt(cli, "tune", "--config", str(file), "--training.epochs", "4")
    (stopped,) = trainings(workspace)
    workspace.client.set_tag(stopped.info.run_id, names.UID, str(precious))
    done = cli("tune", "--config", str(file), "--training.epochs", "4")
    assert done.code == 0, done.err
    assert (precious / "file").read_text() == "kept"
    states = {run.info.run_id: run.data.tags[names.STATE] for run in trainings(workspace)}
    assert states.pop(stopped.info.run_id) == names.INTERRUPTED
    assert list(states.values()) == [names.COMPLETE] * 2


def test_a_link_in_the_place_of_a_folder_of_checkpoints_is_not_removed_through(
    cli: Cli, precious: Path, interrupted: str, workspace: Workspace
) -> None:
    kept = workspace.checkpoints / workspace.client.get_run(interrupted).data.tags[names.UID]
    for file in kept.iterdir():
        if file.name != TENSORBOARD:
            file.rename(precious / file.name)
    (kept / TENSORBOARD).rename(precious / TENSORBOARD)
    kept.rmdir()
    kept.symlink_to(precious)
    before = {file: file.stat().st_mtime_ns for file in precious.rglob("*") if file.is_file()}
    refused = cli("train", "--run_id", interrupted)
    assert refused.code == 2 and "is a link" in refused.err
    assert {
        file: file.stat().st_mtime_ns for file in precious.rglob("*") if file.is_file()
    } == before


def test_a_run_that_does_not_say_what_it_was_trained_on_is_not_taken_up(
    cli: Cli, interrupted: str, workspace: Workspace, precious: Path
) -> None:
    workspace.client.delete_tag(interrupted, names.DATA_DIGEST)
    refused = cli("train", "--run_id", interrupted)
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "does not say which images it was trained on" in refused.err


@pytest.fixture
def smoke_run(in_smoke: Workspace) -> tuple[Workspace, str]:
    """A finished run of the study that all tests of a process share, and its store."""
    return in_smoke, str(summarise(in_smoke).rows[0]["run_id"])


BUILD = """
from torch import nn

def build(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, num_classes))
"""


@pytest.fixture
def named(quick: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a network of one's own; its user has trusted nothing yet."""
    file = quick.with_name("net.py")
    file.write_text(BUILD)
    forget_trust(monkeypatch, quick.with_name("state"))
    return file


def another_user(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    forget_trust(monkeypatch, folder / "state of another user")


def changed(workspace: Workspace, run_id: str, precious: Path) -> str:
    """Put other code among the artifacts of a run; return its hash."""
    code = f"import shutil\nshutil.rmtree({str(precious)!r})\n{BUILD}"
    workspace.client.log_text(run_id, code, f"{names.SOURCE}/net.py")
    return sha256(code.encode()).hexdigest()


def with_other_place(workspace: Workspace, run_id: str, place: str, other: str) -> str:
    """Write another path into the configuration of a run; return the configuration as it was."""
    recorded = mlflow.artifacts.load_text(f"runs:/{run_id}/{names.CONFIG}")
    raw = json.dumps(yaml.safe_load(recorded))
    assert place in raw
    workspace.client.log_text(run_id, raw.replace(place, other), names.CONFIG)
    return recorded


def test_code_of_a_run_is_executed_only_if_this_user_has_named_it(
    cli: Cli,
    named: Path,
    quick: Path,
    workspace: Workspace,
    precious: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study, own = quick.with_name("study.yaml"), {"model": {"name": f"file:{named}:build"}}
    study.write_text(
        yaml.safe_dump(
            {
                **yaml.safe_load(quick.read_text()),
                "configs": [own, {**own, "optimizer": {"lr": 1e-9}}],
            }
        )
    )
    assert cli("tune", "--config", study).code == 0
    # The better one has its network exported already, which runs no code.
    run_id, unexported = (run.info.run_id for run in trainings(workspace))
    digest = sha256(BUILD.encode()).hexdigest()
    forget_trust(monkeypatch)
    done = cli("evaluate", "--run_id", run_id)
    assert done.code == 0, done.err
    # Somebody else, who has the store only, or the user on another machine.
    another_user(monkeypatch, quick.parent)
    steps = [
        ["evaluate", "--run_id", run_id],
        ["register", "--run_id", unexported],
        ["evaluate", "--experiment", "quick"],
    ]
    for step in steps:
        refused = cli(*step)
        assert (refused.code, refused.err.count("\n")) == (2, 1), refused.err
        assert (unexported if step[0] == "register" else run_id) in refused.err
        assert "artifact source" in refused.err and digest in refused.err
    assert cli("evaluate", "--run_id", run_id, "--trust", digest).code == 0
    # What the step's own experiment file names is the user's own code.
    forget_trust(monkeypatch)
    assert cli("evaluate", "--config", study).code == 0
    other = changed(workspace, run_id, precious)
    changed(workspace, unexported, precious)
    for step in [
        *steps,
        ["evaluate", "--config", study],
        ["evaluate", "--run_id", run_id, "--trust", digest],
    ]:
        refused = cli(*step)
        assert refused.code == 2 and other in refused.err, refused.err
    assert (precious / "file").read_text() == "kept"


def test_summary_executes_no_code_of_a_run(
    cli: Cli,
    named: Path,
    quick: Path,
    workspace: Workspace,
    precious: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert cli("train", "--config", quick, "--model.name", f"file:{named}:build").code == 0
    (run,) = trainings(workspace)
    other = changed(workspace, run.info.run_id, precious)
    refused = cli("summary", "--config", quick, "--evaluate", "all")
    assert refused.code == 2 and other in refused.err
    assert (precious / "file").read_text() == "kept"


def test_a_run_goes_on_only_with_code_that_this_user_has_named(
    cli: Cli,
    named: Path,
    quick: Path,
    workspace: Workspace,
    precious: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    interrupt(
        cli,
        "train",
        "--config",
        str(quick),
        "--model.name",
        f"file:{named}:build",
        "--training.epochs",
        "6",
    )
    (run,) = trainings(workspace)
    run_id = run.info.run_id
    another_user(monkeypatch, quick.parent)
    # The run's configuration, too, may be changed by whoever can write to the store: it names a
    # file of this machine.
    trap = quick.with_name("trap.py")
    trap.write_text(f"import shutil\nshutil.rmtree({str(precious)!r})\n{BUILD}")
    recorded = with_other_place(workspace, run_id, str(named), str(trap))
    refused = cli("train", "--run_id", run_id)
    assert (refused.code, refused.err.count("\n")) == (2, 1) and "--trust" in refused.err, (
        refused.err
    )
    assert (precious / "file").read_text() == "kept"
    workspace.client.log_text(run_id, recorded, names.CONFIG)
    refused = cli("train", "--run_id", run_id)
    assert refused.code == 2
    trap.unlink()
    # The hash is of all that may be imported from there.
    again = cli("train", "--run_id", run_id, "--trust", refused.err.split()[-1])
    assert again.code == 2 and again.err != refused.err
    done = cli("train", "--run_id", run_id, "--trust", again.err.split()[-1])
    assert done.code == 0, done.err


def test_a_copy_of_ones_own_network_beside_other_neighbours_is_not_executed(
    cli: Cli,
    named: Path,
    quick: Path,
    workspace: Workspace,
    precious: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    named.write_text(f"from blocks import width\n{BUILD}")
    named.with_name("blocks.py").write_text("width = 8\n")
    interrupt(
        cli,
        "train",
        "--config",
        str(quick),
        "--model.name",
        f"file:{named}:build",
        "--training.epochs",
        "6",
    )
    (run,) = trainings(workspace)
    evil = quick.with_name("evil")
    evil.mkdir()
    (evil / "net.py").write_bytes(named.read_bytes())
    (evil / "blocks.py").write_text(f"import shutil\nshutil.rmtree({str(precious)!r})\nwidth = 8\n")
    recorded = with_other_place(workspace, run.info.run_id, str(named), str(evil / "net.py"))
    forget_trust(monkeypatch)
    for _ in range(2):
        refused = cli("train", "--run_id", run.info.run_id)
        assert refused.code == 2 and "--trust" in refused.err, refused.err
    assert (precious / "file").read_text() == "kept"
    workspace.client.log_text(run.info.run_id, recorded, names.CONFIG)
    done = cli("train", "--run_id", run.info.run_id)
    assert done.code == 0, done.err


def test_another_file_beside_ones_own_network_is_no_network_of_ones_own(
    cli: Cli,
    named: Path,
    quick: Path,
    workspace: Workspace,
    precious: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study = quick.with_name("study.yaml")
    study.write_text(
        yaml.safe_dump(
            {
                **yaml.safe_load(quick.read_text()),
                "configs": [{"model": {"name": f"file:{named}:build"}}],
            }
        )
    )
    assert cli("tune", "--config", study).code == 0
    (run,) = trainings(workspace)
    other = named.with_name("cleanup.py")
    other.write_text(f"import shutil\nshutil.rmtree({str(precious)!r})\n{BUILD}")
    with_other_place(workspace, run.info.run_id, str(named), str(other))
    workspace.client.log_text(run.info.run_id, other.read_text(), f"{names.SOURCE}/cleanup.py")
    forget_trust(monkeypatch)
    refused = cli("evaluate", "--config", study, "--run_id", run.info.run_id)
    assert refused.code == 2 and "--trust" in refused.err, refused.err
    assert (precious / "file").read_text() == "kept"


def test_a_run_with_the_uid_of_another_does_not_take_its_checkpoints(
    cli: Cli, interrupted: str, quick: Path, workspace: Workspace
) -> None:
    uid = workspace.client.get_run(interrupted).data.tags[names.UID]
    interrupt(
        cli,
        "train",
        "--config",
        str(quick),
        "--training.epochs",
        "30",
        "--training.checkpoint_seconds",
        "0",
    )
    other = next(run.info.run_id for run in trainings(workspace) if run.info.run_id != interrupted)
    workspace.client.set_tag(other, names.UID, uid)
    refused = cli("train", "--run_id", other)
    assert refused.code == 2 and interrupted in refused.err, refused.err
    assert (workspace.checkpoints / uid).is_dir()


def test_a_study_goes_on_with_no_run_that_it_has_not_begun(
    cli: Cli, quick: Path, workspace: Workspace
) -> None:
    file = quick.with_name("study.yaml")
    file.write_text(
        yaml.safe_dump(
            {**yaml.safe_load(quick.read_text()), "configs": [{}, {"optimizer": {"lr": 1e-3}}]}
        )
    )
    interrupt(cli, "tune", "--config", str(file), "--training.epochs", "4")
    (own,) = trainings(workspace)
    stranger = workspace.client.create_run(
        workspace.experiment_id, tags={**own.data.tags, names.UID: "f" * 32}
    ).info.run_id
    workspace.client.log_batch(
        stranger, params=[Param(name, value) for name, value in own.data.params.items()]
    )
    workspace.client.set_terminated(stranger, "KILLED")
    done = cli("tune", "--config", str(file), "--training.epochs", "4")
    assert done.code == 0, done.err
    assert workspace.client.get_run(stranger).info.status == "KILLED"
    assert workspace.client.get_run(own.info.run_id).info.status == "FINISHED"


def test_a_version_that_says_it_is_of_our_run_is_not_made_champion(
    cli: Cli, quick: Path, workspace: Workspace, folder: Path
) -> None:
    assert cli("train", "--config", quick).code == 0
    (run,) = trainings(workspace)
    (folder / "evil").mkdir()
    workspace.client.create_registered_model("quick")
    workspace.client.create_model_version("quick", str(folder / "evil"), run.info.run_id)
    done = cli("register", "--run_id", run.info.run_id, "--name", "quick")
    assert done.code == 0, done.err
    assert "models:/m-" in workspace.client.get_model_version_by_alias("quick", "champion").source


def test_a_run_names_no_folder_that_is_read(
    cli: Cli, quick: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("train", "--config", quick).code == 0
    (run,) = trainings(workspace)
    private = write_digits(quick.with_name("private"), 20)
    with_other_place(workspace, run.info.run_id, str(quick.parent / "digits"), str(private))
    forget_trust(monkeypatch)
    refused = cli("evaluate", "--run_id", run.info.run_id)
    assert (refused.code, refused.err.count("\n")) == (
        2,
        1,
    ) and "which nobody has prepared here" in refused.err
    assert not list(workspace.prepared.glob("private*"))


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for temporary files."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "temporary"


def sparse(file: Path) -> None:
    """Make a file of 40 GB that takes no room."""
    with file.open("wb") as opened:
        opened.truncate(40_000_000_000)


@pytest.mark.skipif(sys.platform != "linux", reason="files of 40 GB that take no room")
def test_a_version_chooses_no_folder_that_is_copied(
    cli: Cli, workspace: Workspace, folder: Path, temporary: Path
) -> None:
    images, private = write_digits(folder / "digits", 1), folder / "private"
    (private / "artifacts").mkdir(parents=True)
    (private / "thesis.txt").write_text("mine")
    sparse(private / "film.mov")
    workspace.client.create_registered_model("evil")
    workspace.client.create_model_version("evil", str(private))
    refused = cli("predict", "--model_uri", "models:/evil/1", "--images", images)
    assert (refused.code, refused.err.count("\n")) == (2, 1) and "cannot be loaded" in refused.err
    for name in ("MLmodel", "artifacts/classes.json", "artifacts/preprocessing.json"):
        (private / name).write_text("{}")
    sparse(private / "artifacts" / "network.pt2")
    refused = cli("predict", "--model_uri", "models:/evil/1", "--images", images)
    assert (refused.code, refused.err.count("\n")) == (
        2,
        1,
    ) and "network.pt2 has 40000000000 bytes" in refused.err
    workspace.client.create_model_version("evil", "http://127.0.0.1:1/x")
    refused = cli("predict", "--model_uri", "models:/evil/2", "--images", images)
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert list(temporary.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="files of 40 GB that take no room")
def test_an_artifact_larger_than_any_of_ours_is_not_copied(
    cli: Cli, smoke_run: tuple[Workspace, str], temporary: Path
) -> None:
    workspace, run_id = smoke_run
    place = (
        Path(unquote(urlparse(workspace.client.get_run(run_id).info.artifact_uri).path))
        / names.CHECKPOINT
    )
    kept = place.read_bytes()
    try:
        sparse(place)
        refused = cli("evaluate", "--run_id", run_id)
        assert (refused.code, refused.err.count("\n")) == (
            2,
            1,
        ) and "has 40000000000 bytes, and may have" in refused.err
    finally:
        place.write_bytes(kept)


@pytest.mark.parametrize(
    "beat", ["a b c d", "host 1 2 nan", "host 1 2 1e300", f"{platform.node()} -5 1 1", "host"]
)
def test_a_heartbeat_that_says_nothing_hinders_nobody(
    cli: Cli, workspace: Workspace, beat: str
) -> None:
    tags = {names.STEP: "train", names.EXPERIMENT: "quick", names.HEARTBEAT: beat}
    workspace.client.create_run(workspace.experiment_id, tags=tags)
    done = cli("reconcile")
    assert done.code == 0, done.err


@pytest.mark.parametrize("name", [names.CONFIG, names.CLASSES, names.PREPROCESSING])
@pytest.mark.parametrize("content", ["{", "[1", "null", '"x"', "a: [b", "{}"])
def test_what_a_run_has_recorded_may_be_anything(
    cli: Cli, smoke_run: tuple[Workspace, str], name: str, content: str
) -> None:
    workspace, run_id = smoke_run
    before = mlflow.artifacts.load_text(f"runs:/{run_id}/{name}")
    workspace.client.log_text(run_id, content, name)
    refused = cli("evaluate", "--run_id", run_id)
    workspace.client.log_text(run_id, before, name)
    assert (refused.code, refused.err.startswith("error: ")) == (2, True), refused.err


class Payload:
    """Makes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("executed",)


MODEL = """
import os
import mlflow
from mlflow.pyfunc.model import PythonModel

os.mkdir("executed")

class Stranger(PythonModel):
    def predict(self, context, model_input, params=None):
        return model_input

mlflow.models.set_model(Stranger())
"""


def test_a_registered_model_of_a_stranger_runs_no_code(
    cli: Cli, quick: Path, workspace: Workspace, folder: Path
) -> None:
    assert cli("train", "--config", quick).code == 0
    (run,) = trainings(workspace)
    exported = Path(
        mlflow.artifacts.download_artifacts(
            f"runs:/{run.info.run_id}/model", dst_path=str(folder / "exported")
        )
    )
    files = {
        name: str(exported / "artifacts" / name)
        for name in ("network.pt2", "classes.json", "preprocessing.json")
    }
    images = str(folder / "digits" / "digit 1")
    (folder / "code.py").write_text(MODEL)

    def predicted(name: str) -> Finished:
        return cli(
            "predict",
            "--model_uri",
            f"models:/{name}/1",
            "--images",
            images,
            "--out",
            f"{name}.csv",
        )

    def log(name: str) -> None:
        mlflow.pyfunc.log_model(
            name=name,
            python_model=str(folder / "code.py"),
            artifacts=files,
            registered_model_name=name,
            pip_requirements=["mlflow"],
        )
        # MLflow itself runs the code of what it logs.
        with suppress(FileNotFoundError):
            (folder / "executed").rmdir()

    log("good")
    done = predicted("good")
    assert done.code == 0, done.err
    assert len((folder / "good.csv").read_text().splitlines()) == 31
    with zipfile.ZipFile(files["network.pt2"]) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    assert [name for name, content in parts.items() if content and name.endswith(".pt")] == []
    with zipfile.ZipFile(files["network.pt2"], "w") as archive:
        for name, content in parts.items():
            archive.writestr(
                name,
                pickle.dumps(Payload()) if name.endswith("sample_inputs/model.pt") else content,
            )
    log("pickled")
    refused = predicted("pickled")
    assert (refused.code, refused.err.count("\n")) == (2, 1), refused.err
    assert "asks for more than tensors" in refused.err
    Path(files["network.pt2"]).write_bytes((exported / "artifacts" / "classes.json").read_bytes())
    log("torn")
    assert predicted("torn").code == 2
    assert not (folder / "executed").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("classes.json", "{}", "a list of names is needed"),
        ("classes.json", '["one", 2, "three"]', "a list of names is needed"),
        ("classes.json", '["one"]', "and 1 classes"),
        ("classes.json", "[", "no JSON"),
        ("preprocessing.json", "[]", "preprocessing"),
        ("preprocessing.json", '{"image_size": 16}', "preprocessing"),
        ("preprocessing.json", "SIZE", "image_size"),
        ("preprocessing.json", "STD", "above 0"),
        ("preprocessing.json", "MORE", "preprocessing"),
    ],
)
def test_what_a_strangers_model_says_of_itself_is_checked(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    good = {
        "image_size": 16,
        "stored_size": 16,
        "interpolation": "bilinear",
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
    }
    wrong = {"SIZE": {"image_size": 10**9}, "STD": {"std": [0, 1, 1]}, "MORE": {"code": "x"}}
    save_exported(models.build(Model(name="small_cnn"), 3, 16).module, 16, tmp_path / "network.pt2")
    (tmp_path / "classes.json").write_text(json.dumps(["a", "b", "c"]))
    (tmp_path / "preprocessing.json").write_text(json.dumps(good))
    picture = [np.zeros((3, 16, 16), np.uint8)]
    assert Classifier(tmp_path).classify(picture).shape == (1, 3)
    (tmp_path / name).write_text(
        json.dumps({**good, **wrong[content]}) if content in wrong else content
    )
    with pytest.raises(UserError, match=message):
        Classifier(tmp_path).classify(picture)


def test_a_model_of_another_size_than_it_says_is_one_line(tmp_path: Path) -> None:
    save_exported(models.build(Model(name="vit_b_32"), 3, 32).module, 32, tmp_path / "network.pt2")
    (tmp_path / "classes.json").write_text(json.dumps(["a", "b", "c"]))
    raw = {
        "image_size": 16,
        "stored_size": 16,
        "interpolation": "bilinear",
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
    }
    (tmp_path / "preprocessing.json").write_text(json.dumps(raw))
    with pytest.raises(UserError, match="cannot take images of 16 pixels"):
        Classifier(tmp_path).classify([np.zeros((3, 16, 16), np.uint8)])


def test_a_run_without_a_data_digest_chooses_no_folder(
    cli: Cli, quick: Path, workspace: Workspace, precious: Path
) -> None:
    assert cli("train", "--config", quick).code == 0
    (run,) = trainings(workspace)
    workspace.client.delete_tag(run.info.run_id, names.DATA_DIGEST)
    refused = cli("evaluate", "--run_id", run.info.run_id)
    assert (refused.code, refused.err.count("\n")) == (2, 1) and "--data.source" in refused.err
    done = cli(
        "evaluate",
        "--run_id",
        run.info.run_id,
        "--data.source",
        f"folder:{quick.parent / 'digits'}",
    )
    assert done.code == 0, done.err
