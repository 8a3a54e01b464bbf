from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from pipeline.__main__ import STEPS
from pipeline.config import field_names
from pipeline.experiment import load_experiment
from pipeline.jobs import network_timing
from pipeline.tracking.workspace import Workspace, open_workspace
from tests.conftest import PROJECT, Cli, write_digits

HEAVY = {
    "torch",
    "torchvision",
    "mlflow",
    "optuna",
    "pandas",
    "matplotlib",
    "sklearn",
    "PIL",
    "numpy",
}


def test_the_overview_names_every_step(cli: Cli) -> None:
    done = cli("--help")
    assert done.code == 0
    assert all(re.search(rf"^  {step} ", done.out, re.MULTILINE) for step in STEPS)


@pytest.fixture(scope="module")
def helps() -> dict[str, str]:
    """The help of each step, and below it the large libraries that were imported by then.

    They are written by one fresh process.
    """
    code = f"""
import sys
from pipeline.__main__ import STEPS, main
for step in STEPS:
    print(end="\\0")
    main([step, "--help"])
    print("HEAVY", sorted({HEAVY} & set(sys.modules)))
"""
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True
    ).stdout
    return dict(zip(STEPS, out.split("\0")[1:], strict=True))


@pytest.mark.parametrize("step", STEPS)
def test_help_lists_the_fields_of_a_step_and_imports_nothing_heavy(
    helps: dict[str, str], step: str
) -> None:
    out = helps[step]
    assert "HEAVY []" in out
    if step in ("main", "tune", "train"):
        assert (
            out.index("--optimizer.lr") < out.index("\nmore:") < out.index("--optimizer.momentum")
        )
    if step in ("evaluate", "summary", "register"):
        assert (
            out.index("--study.name")
            < out.index("which study, by options that were given to tune or main")
            < out.index("--optimizer.lr")
        )


CHOSEN_BY_INIT = {
    f"data.{name}"
    for name in (
        "image_size",
        "batch_size",
        "augment",
        "store_size",
        "interpolation",
        "fit",
        "workers",
    )
}
OF_NO_INFLUENCE = {
    "data.workers",
    "data.store",
    *(f"training.{name}" for name in ("seed", "processes", "checkpoint_seconds", "deterministic")),
}


def is_read(step: str, name: str) -> bool:
    section = name.partition(".")[0]
    if name == "tracking.keep_weights":
        return step in ("main", "tune")
    if step in ("main", "tune", "train"):
        return step != "train" or section != "study"
    if step == "prepare":
        return section in ("data", "tracking")
    if step == "init":
        return name == "training.device" or (section == "data" and name not in CHOSEN_BY_INIT)
    of_evaluation = name in ("training.device", "data.ordered")
    if step not in ("evaluate", "summary", "register") or of_evaluation:
        return step in ("evaluate", "summary")
    return name == "study.name" or (
        section not in ("study", "tracking") and name not in OF_NO_INFLUENCE
    )


@pytest.mark.parametrize("step", STEPS)
def test_a_step_lists_the_fields_it_reads_and_takes_no_other(
    cli: Cli, step: str, folder: Path
) -> None:
    listed = set(re.findall(r"--(\w+\.\w+)", cli(step, "--help").out.partition("\noptions:")[2]))
    assert [name for name in field_names() if (name in listed) != is_read(step, name)] == []
    for name in [name for name in field_names() if not is_read(step, name)][:3]:
        refused = cli(step, f"--{name}", "1")
        assert (refused.code, refused.err) == (
            2,
            f"error: option --{name} is not read by {step}; --help lists what is\n",
        )


BASE_ERRORS = [
    (["tuen"], "unknown step 'tuen'; nearest: tune"),
    (["train", "resnet18"], "'resnet18' is not an option"),
    (["train", "--optimizer.lrr", "3"], "unknown option --optimizer.lrr; nearest: optimizer.lr"),
    (["train", "--lr", "3"], "unknown option --lr; nearest: optimizer.lr"),
    (["train", "--training.epochs"], "option --training.epochs needs a value"),
    (["train", "--optimizer.lr", "-1"], "optimizer.lr: '-1' given; must be greater than 0"),
    (["train", "--optimizer.lr", "nan"], "optimizer.lr"),
    (["train", "--optimizer.lr", "fast"], "optimizer.lr: 'fast' given; must be a valid number"),
    (
        ["train", "--training.epochs", "0"],
        "training.epochs: '0' given; must be greater than or equal to 1",
    ),
    (["train", "--training.epochs", "2.5"], "training.epochs: '2.5' given"),
    (["train", "--model.name", "resnet19"], "unknown model.name 'resnet19'; nearest: resnet1"),
    (
        ["train", "--model.name", "resnet18", "--data.batch_size", "1"],
        "data.batch_size: resnet18 cannot train on one image",
    ),
    (["train", "--model.name", "file:net.py"], "must be file:PATH.py:FUNCTION"),
    (["train", "--model.name", "file:nowhere.py:build"], "file 'nowhere.py' does not exist"),
    (
        ["train", "--model.weights", "DEFALT", "--model.name", "resnet18"],
        "unknown model.weights 'DEFALT' of resnet18; nearest: DEFAULT",
    ),
    (
        ["train", "--model.weights", "file:nowhere.pt"],
        "model.weights: file 'nowhere.pt' does not exist",
    ),
    (
        ["train", "--optimizer.name", "adan"],
        "optimizer.name: 'adan' given; must be 'sgd', 'adam' or 'adamw'; nearest: adam",
    ),
    (["train", "--schedule.name", "cosin"], "nearest: cosine"),
    (["train", "--data.source", "digit"], "unknown data.source 'digit'; nearest: digits"),
    (["train", "--data.source", "folder:nowhere"], "folder 'nowhere' does not exist"),
    (
        ["train", "--data.augment", "RandomRotatoin"],
        "unknown augmentation 'RandomRotatoin'; nearest: RandomRotation",
    ),
    (["train", "--training.device", "cuda:7"], "this machine has no 'cuda:7'; allowed here: auto"),
    (["train", "--training.device", "gpu"], "training.device: 'gpu' given"),
    (["train", "--config", "nowhere.yaml"], "experiment file 'nowhere.yaml' does not exist"),
    (["tune"], "nothing to tune"),
    (["main", "--name", "a/b:c"], "name: 'a/b:c' given; a name has at most 120 characters"),
    (["register", "--name", "it's"], "a name has at most 120 characters"),
    (["train", "--experiment", "../x"], "a name has at most 120 characters"),
    (["tune", "--study.name", "a,b"], "a name has at most 120 characters"),
    (
        ["train", "--data.augment", "[RandomHorizontalFlip, {RandomRotatoin: {degrees: 15}}]"],
        "unknown augmentation 'RandomRotatoin'",
    ),
    (
        ["train", "--schedule.warmup_epochs", "9"],
        "schedule.warmup_epochs must be at most training.epochs (3), got 9",
    ),
    (["evaluate", "--run_id", "nonsense"], "there is no run 'nonsense'"),
    (["predict", "--images", "x"], "option --model_uri is needed"),
    (["init"], "option --data.source is needed"),
    (
        ["init", "--data.source", "digits", "--hours", "0"],
        "hours: '0' given; must be greater than 0",
    ),
    (["init", "--data.source", "digits", "--hours", "inf"], "hours: 'inf' given"),
    (["init", "--data.source", "digits", "--hours", "two"], "hours: 'two' given"),
    (["tune", "--study.hours", "-1"], "study: hours: '-1' given; must be greater than or equal"),
]


@pytest.mark.parametrize(
    ("arguments", "message"),
    BASE_ERRORS,
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_input_is_one_line_and_leaves_nothing(
    cli: Cli, quick: Path, workspace: Workspace, arguments: list[str], message: str
) -> None:
    needs_file = (
        arguments[0] in ("train", "tune", "evaluate", "main", "register")
        and "--config" not in arguments
    )
    done = cli(*arguments, *(["--config", str(quick)] if needs_file else []))
    assert done.code == 2
    assert message in done.err
    assert done.err.startswith("error: ")
    assert "Traceback" not in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert (
        workspace.client.search_runs(
            [one.experiment_id for one in workspace.client.search_experiments()]
        )
        == []
    )


def test_an_experiment_may_be_called_null(cli: Cli, quick: Path, workspace: Workspace) -> None:
    done = cli("evaluate", "--config", quick, "--experiment", "null")
    assert (done.code, done.err.partition(" in ")[0]) == (
        2,
        "error: experiment 'null' has no trainings",
    )
    assert cli(
        "train", "--config", quick, "--schedule.gamma", "null", "--optimizer.name", "null"
    ).err.startswith("error: " + f"{quick}: base: optimizer.name: 'null' given; must be 'sgd'")


def test_help_that_nobody_reads_to_its_end_ends_quietly(folder: Path) -> None:
    command = f"'{sys.executable}' -m pipeline evaluate --help | head -n 1"
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    for _ in range(3):
        ended = subprocess.run(
            ["sh", "-c", command],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert ended.stdout.startswith("usage:") and ended.stderr == ""


def bad_folders(root: Path) -> dict[str, Path]:
    """Write one folder of each kind that cannot be trained on."""
    folders = {
        name: root / name for name in ("empty", "no images", "one class", "too few", "unreadable")
    }
    for folder in folders.values():
        folder.mkdir(parents=True)
    (folders["no images"] / "cat").mkdir()
    (folders["no images"] / "cat" / "notes.txt").write_text("meow")
    write_digits(folders["one class"], 5, classes=(1,))
    write_digits(folders["too few"], 2)
    write_digits(folders["unreadable"], 10)
    (folders["unreadable"] / "digit 0" / "empty.png").write_bytes(b"")
    (folders["unreadable"] / "digit 1" / "text.jpg").write_text("no picture")
    whole = (folders["unreadable"] / "digit 2" / "000.png").read_bytes()
    (folders["unreadable"] / "digit 2" / "cut.png").write_bytes(whole[: len(whole) // 2])
    return folders


@pytest.mark.parametrize(
    ("name", "messages"),
    [
        ("empty", ["has no images in class folders"]),
        ("no images", ["has no images in class folders"]),
        ("one class", ["has one class only ('digit 1')"]),
        ("too few", ["3 of 3 classes have too few images", "  digit 0: 2 images"]),
        (
            "unreadable",
            [
                "3 images",
                "  digit 0/empty.png: ",
                "  digit 1/text.jpg: not an image",
                "  digit 2/cut.png: ",
            ],
        ),
    ],
)
@pytest.mark.parametrize("step", ["prepare", "train"])
def test_images_that_cannot_be_used_are_refused(
    cli: Cli, quick: Path, workspace: Workspace, name: str, messages: list[str], step: str
) -> None:
    source = bad_folders(quick.parent / "bad")[name]
    done = cli(step, "--config", quick, "--data.source", f"folder:{source}")
    assert done.code == 2
    assert [message for message in messages if message not in done.err] == []
    assert not workspace.prepared.exists() or not list(workspace.prepared.glob("*/manifest.csv"))
    # prepare keeps the report of images that were read; otherwise there is nothing to show.
    reported = step == "prepare" and name in ("too few", "unreadable")
    assert [run.info.status for run in workspace.client.search_runs([workspace.experiment_id])] == [
        "FAILED"
    ] * reported


def test_a_signal_does_not_break_the_exit(folder: Path) -> None:
    # As torchrun sends one to all processes of a group as soon as the first has ended.
    (folder / "sitecustomize.py").write_text(
        "import atexit, os, signal\natexit.register(os.kill, os.getpid(), signal.SIGTERM)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(PROJECT)])}
    ended = subprocess.run(
        [sys.executable, "-m", "pipeline", "bake"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: unknown step 'bake'")
    assert "Traceback" not in ended.stderr


def test_a_yaml_error_names_file_and_line(cli: Cli, folder: Path) -> None:
    file = folder / "broken.yaml"
    file.write_text("base:\n  training: {epochs: 3\nconfigs: []\n")
    done = cli("train", "--config", file)
    assert done.code == 2
    assert f"{file}, line 3: not valid YAML" in done.err


def test_prepare_leaves_a_manifest_and_a_run(cli: Cli, quick: Path, workspace: Workspace) -> None:
    done = cli("prepare", "--config", quick)
    assert done.code == 0, done.err
    (run,) = workspace.client.search_runs([workspace.experiment_id])
    assert run.data.tags["pipeline.step"] == "prepare"
    assert [one.dataset.name for one in run.inputs.dataset_inputs][:1] == ["digits"]
    manifest = next(workspace.prepared.glob("digits-*/manifest.csv")).read_text().splitlines()
    assert manifest[0] == "path,label,split,group,sha256,reason"
    assert len(manifest) == 91


def test_fast_scales_the_same_experiment_down_as_one_of_its_own(
    cli: Cli, quick: Path, workspace: Workspace
) -> None:
    done = cli(
        "train",
        "--config",
        quick,
        "--fast",
        "true",
        "--training.epochs",
        "50",
        "--data.image_size",
        "96",
    )
    assert done.code == 0, done.err
    assert workspace.client.search_runs([workspace.experiment_id]) == []
    (run,) = workspace.client.search_runs([open_workspace("quick-fast").experiment_id])
    assert run.data.tags["pipeline.experiment"] == "quick-fast"
    assert (run.data.params["training.epochs"], run.data.params["data.image_size"]) == ("2", "64")


@pytest.mark.thorough
def test_init_keeps_long_pictures_whole(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network_timing, "TOTAL_SECONDS", 5.0)
    for label in ("cat", "dog"):
        (folder / "strips" / label).mkdir(parents=True)
        for number in range(12):
            Image.effect_noise((20, 60), 40 + number).save(
                folder / "strips" / label / f"{number}.png"
            )
    done = cli("init", "--data.source", "folder:strips", "--out", "strips.yaml")
    assert done.code == 0, done.err
    data = load_experiment("strips.yaml", {}).base.data
    # As large as the longer side, not as the shorter.
    assert (data.fit, data.image_size, data.stored_size) == ("pad", 48, 48)


@pytest.mark.thorough
def test_init_writes_a_file_that_the_other_steps_read(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network_timing, "TOTAL_SECONDS", 5.0)
    write_digits(folder / "my digits", 12, size=40)
    done = cli("init", "--data.source", "folder:my digits", "--out", "mine.yaml", "--hours", "50")
    assert done.code == 0, done.err
    text = (folder / "mine.yaml").read_text()
    assert "image_size: 32" in text
    assert "experiment: 'my digits' " in text
    assert text.count("- {model:") == 20
    assert len(set(re.findall(r"- \{model: .*", text))) == 20
    assert "# 36 images of 3 classes, 12 of each;" in text
    assert "# One training of 30 epochs at 32 pixels:" in text and " 0 images a second" not in text
    assert cli("prepare", "--config", "mine.yaml").code == 0
    again = cli("init", "--data.source", "folder:my digits", "--out", "mine.yaml")
    assert again.code == 2
    assert "exists already" in again.err
    assert (folder / "mine.yaml").read_text() == text
