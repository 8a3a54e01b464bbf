"""What a person sees in the MLflow UI of a finished study, in a real browser."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import FrameLocator, Page, sync_playwright

from pipeline.__main__ import main
from pipeline.jobs.summary import summarise
from pipeline.tracking.ui_views import view_urls
from pipeline.tracking.workspace import Workspace, open_workspace
from tests.conftest import use_folder
from tests.servers import mlflow_server

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)

if CHROMIUM is None and not os.environ.get("CI"):
    pytest.skip("needs Chromium on the PATH", allow_module_level=True)


@pytest.fixture(scope="module")
def server(smoke: Path) -> Iterator[str]:
    """The address of a real MLflow server on the finished study."""
    with mlflow_server(smoke / "mlflow.db") as running:
        yield running.uri


TWENTY = """
experiment: twenty
base:
  data: {source: digits, image_size: 16, batch_size: 64, limit: 400}
  model: {name: small_cnn}
  training: {epochs: 1, precision: fp32}
configs:
  - {optimizer: {lr: 3.0e-3}}
  - {optimizer: {lr: 1.0e-3}, schedule: {name: cosine}}
space:
  optimizer.lr: {low: 1.0e-4, high: 1.0e-2, log: true}
  schedule.name: [none, cosine]
study: {trials: 20, evaluate: best}
"""


@pytest.fixture(scope="module")
def twenty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Workspace]]:
    """The address of a real MLflow server on a finished study of 20 trials, and its store."""
    folder = tmp_path_factory.mktemp("twenty")
    (folder / "twenty.yaml").write_text(TWENTY)
    with pytest.MonkeyPatch.context() as monkeypatch:
        use_folder(folder, monkeypatch)
        assert main(["tune", "--config", "twenty.yaml"]) == 0
        workspace = open_workspace("twenty")
    with mlflow_server(folder / "mlflow.db") as running:
        yield running.uri, workspace


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    """A fresh browser profile: a first-time visitor."""
    arguments = [
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
    ]
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            str(tmp_path / "profile"),
            executable_path=CHROMIUM,
            args=arguments,
            viewport={"width": 1900, "height": 1000},
        )
        yield context.new_page()
        context.close()


def open_comparison(page: Page) -> FrameLocator:
    """Open the page of the comparison among the artifacts of a study, which are in view."""
    page.get_by_text("summary", exact=True).first.click(timeout=60_000)
    page.get_by_text("comparison.html").first.click(timeout=30_000)
    frame = page.frame_locator("iframe").first
    frame.get_by_text("leads on validation accuracy with").wait_for(timeout=30_000)
    return frame


def test_the_saved_table_shows_the_trainings_best_first(
    server: str, page: Page, in_smoke: Workspace
) -> None:
    page.goto(view_urls(in_smoke)["table"].replace("http://127.0.0.1:5000", server))
    page.get_by_text("matching runs").wait_for(timeout=60_000)
    page.get_by_text("best/val_accuracy", exact=True).first.wait_for(timeout=30_000)
    text = page.inner_text("body")
    assert "3 matching runs" in text
    for column in ("pipeline.state", "best/val_loss", "best/epoch", "model.name", "optimizer.lr"):
        assert column in text
    assert text.index("00 resnet18") < text.index("01 small_cnn")


def test_the_parent_links_to_the_best_run(server: str, page: Page, in_smoke: Workspace) -> None:
    compared = summarise(in_smoke)
    page.goto(f"{server}/#/experiments/{in_smoke.experiment_id}/runs/{compared.parent}")
    link = page.get_by_role("link", name=compared.rows[0]["run_name"]).first
    link.wait_for(timeout=60_000)
    assert compared.rows[0]["run_id"] in str(link.get_attribute("href"))


def test_the_parent_tells_the_conclusion_and_shows_the_figure(
    server: str, page: Page, in_smoke: Workspace
) -> None:
    parent = summarise(in_smoke).parent
    page.goto(f"{server}/#/experiments/{in_smoke.experiment_id}/runs/{parent}")
    page.get_by_text("Show more").first.click(timeout=60_000)
    page.get_by_text("leads on validation accuracy with").first.wait_for(timeout=30_000)
    figure = page.locator("img[src*='get-artifact']").first
    figure.wait_for(timeout=30_000)
    page.wait_for_function("image => image.naturalWidth > 500", arg=figure.element_handle())


def test_the_page_of_the_comparison_opens_among_the_artifacts(
    server: str, page: Page, in_smoke: Workspace
) -> None:
    compared = summarise(in_smoke)
    page.goto(f"{server}/#/experiments/{in_smoke.experiment_id}/runs/{compared.parent}/artifacts")
    frame = open_comparison(page)
    text = frame.locator("body").inner_text()
    for row in compared.rows:
        assert f"{row['val_accuracy']:.2%}" in text
    assert frame.locator("img[alt^='02 resnet18']").count() == 1


def test_the_page_of_the_comparison_is_sorted_by_a_click(page: Page, in_smoke: Workspace) -> None:
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto((in_smoke.outputs / "comparison.html").as_uri())
    runs = page.locator("tbody td:nth-child(2)")
    before = runs.all_inner_texts()
    page.get_by_role("button", name="val accuracy").click()
    assert runs.all_inner_texts() == before[::-1]
    page.get_by_role("button", name="val accuracy").click()
    assert runs.all_inner_texts() == before
    assert page.locator("th[aria-sort=descending]").inner_text() == "val accuracy"
    # On a telephone the page itself is not wider than the screen.
    page.set_viewport_size({"width": 400, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    assert said == []


@pytest.mark.thorough
def test_twenty_trials_are_compared_in_the_browser(
    twenty: tuple[str, Workspace], page: Page
) -> None:
    uri, workspace = twenty
    compared = summarise(workspace)
    ranked = compared.ranked()
    assert len(ranked) == 20
    page.goto(view_urls(workspace)["table"].replace("http://127.0.0.1:5000", uri))
    page.get_by_text("20 matching runs").wait_for(timeout=60_000)
    for column in ("best/val_accuracy", "optimizer.lr", "schedule.name"):
        page.get_by_text(column, exact=True).first.wait_for(timeout=30_000)
    # What all have in common takes no column.
    assert page.get_by_text("model.name", exact=True).count() == 0
    page.goto(f"{uri}/#/experiments/{workspace.experiment_id}/runs/{compared.parent}/artifacts")
    frame = open_comparison(page)
    text = frame.locator("table").inner_text()
    for row in ranked:
        assert f"{row['val_accuracy']:.2%}" in text
    assert f"{ranked[0]['test_accuracy']:.2%}" in text
    page.goto(f"{uri}/#/experiments/{workspace.experiment_id}/runs/{ranked[0]['run_id']}/artifacts")
    page.get_by_text("confusion_matrix", exact=True).first.click(timeout=60_000)
    page.get_by_text("test.png", exact=True).first.click(timeout=30_000)
    picture = page.locator("img[src^='blob:'], img[src*='artifact']").first
    picture.wait_for(timeout=30_000)
    page.wait_for_function("image => image.naturalWidth > 300", arg=picture.element_handle())
