"""The registry by itself: a real store, models that are exported to it, versions, aliases."""

from __future__ import annotations

import pytest

from pipeline import models
from pipeline.config import Model
from pipeline.data.transforms import Preprocessing
from pipeline.errors import UserError
from pipeline.tracking import export, registry
from pipeline.tracking.tracked_run import TrackedRun
from pipeline.tracking.workspace import Workspace

pytestmark = pytest.mark.slow

CLASSES = ["cat", "dog"]


def run_with_model(workspace: Workspace) -> str:
    """Return the id of a run that has exported a small network."""
    network = models.build(Model(name="small_cnn"), len(CLASSES), 16).module
    preprocessing = Preprocessing(16, 16, "bilinear", (0.5,) * 3, (0.2,) * 3)
    with TrackedRun(workspace, "train", "small_cnn") as run:
        export.log_model(run, network, CLASSES, preprocessing)
    return run.id


@pytest.fixture
def run_id(workspace: Workspace) -> str:
    return run_with_model(workspace)


def test_a_run_is_registered_once_and_becomes_champion(workspace: Workspace, run_id: str) -> None:
    assert registry.champion(workspace, "pets") is None
    assert registry.register(workspace, run_id, "pets", {"accuracy": "0.9"}) == "1"
    assert registry.register(workspace, run_id, "pets", {"accuracy": "0.8"}) == "1"
    champion = registry.champion(workspace, "pets")
    assert champion is not None
    assert (champion.version, champion.run_id) == ("1", run_id)
    assert champion.tags["accuracy"] == "0.8"


def test_the_latest_registered_run_is_the_champion(workspace: Workspace, run_id: str) -> None:
    second = run_with_model(workspace)
    assert registry.register(workspace, run_id, "pets", {}) == "1"
    assert registry.register(workspace, second, "pets", {}) == "2"
    champion = registry.champion(workspace, "pets")
    assert champion is not None and champion.run_id == second
    # The first one is taken again as it is.
    assert registry.register(workspace, run_id, "pets", {}) == "1"
    champion = registry.champion(workspace, "pets")
    assert champion is not None and champion.run_id == run_id


def test_a_version_that_only_says_it_is_of_the_run_is_not_taken(
    workspace: Workspace, run_id: str
) -> None:
    other = run_with_model(workspace)
    model_id = export.find_logged_model(workspace, other)
    workspace.client.create_registered_model("pets")
    workspace.client.create_model_version("pets", f"models:/{model_id}", run_id)
    assert registry.register(workspace, run_id, "pets", {}) == "2"


def test_a_registered_model_is_loaded_and_says_where_it_came_from(
    workspace: Workspace, run_id: str
) -> None:
    for wrong in ("a/b", "a:b"):
        with pytest.raises(UserError, match=r"name: .* cannot be a registered model"):
            registry.register(workspace, run_id, wrong, {})
    assert workspace.client.search_registered_models() == []
    registry.register(workspace, run_id, "pets", {})
    for uri in ("models:/pets@champion", "models:/pets/1", f"runs:/{run_id}/model"):
        classifier, origin = registry.load_model(uri)
        assert classifier.classes == CLASSES
        assert (origin["model_uri"], origin["run_id"]) == (uri, run_id)
        assert origin["model_id"] == export.find_logged_model(workspace, run_id)


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("pets", "allowed: models:/NAME@champion"),
        ("/etc/passwd", "allowed: models:/NAME@champion"),
        ("models:/pets@champion", "cannot be loaded"),
        ("runs:/0123456789abcdef0123456789abcdef/model", "cannot be loaded"),
    ],
)
def test_what_is_no_model_of_the_store_is_wrong_input(
    workspace: Workspace, uri: str, expected: str
) -> None:
    with pytest.raises(UserError, match=expected):
        registry.load_model(uri)


def test_a_run_without_an_exported_model_has_none(workspace: Workspace) -> None:
    with TrackedRun(workspace, "train", "without") as run:
        pass
    assert export.find_logged_model(workspace, run.id) == ""
