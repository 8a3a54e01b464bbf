"""The comparison as one page."""

from __future__ import annotations

import base64
import math
from html.parser import HTMLParser

from pipeline.report import people_table
from pipeline.report.comparison_page import Part, Picture, to_html
from pipeline.report.people_table import table_for_people
from tests.report.test_tables import row

HOSTILE = '<script>alert("x")</script> & more'
PNG = b"\x89PNG and the rest"


class Cells(HTMLParser):
    """Collects the text of cells, and the names and attributes of all elements."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "td":
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "td":
            self.cells[-1] += data.rstrip("\n")


def parsed(page: str) -> Cells:
    parser = Cells()
    parser.feed(page)
    parser.close()
    return parser


def test_the_page_escapes_what_runs_and_notes_are_named() -> None:
    parts = [Part(HOSTILE, HOSTILE, [Picture(PNG, HOSTILE)], {HOSTILE: [HOSTILE]})]
    table = table_for_people([row(run_name=HOSTILE)])
    page = to_html(HOSTILE, [HOSTILE], [HOSTILE], table, parts)
    parser = parsed(page)
    # The page has one script of its own, whose hash alone is allowed to run.
    assert [tag for tag, _ in parser.tags].count("script") == 1
    assert HOSTILE in parser.cells
    assert page.count("&lt;script&gt;") == 12
    (image,) = [attributes for tag, attributes in parser.tags if tag == "img"]
    assert set(image) == {"src", "alt"} and image["alt"] == HOSTILE
    assert image["src"] == "data:image/png;base64," + base64.b64encode(PNG).decode()


def test_the_page_asks_for_nothing_from_elsewhere() -> None:
    parts = [Part("Pictures", pictures=[Picture(PNG, "one"), Picture(b"\xff\xd8", "two")])]
    page = to_html("Comparison", [], [], table_for_people([row()]), parts)
    sources = [attributes["src"] for tag, attributes in parsed(page).tags if "src" in attributes]
    assert [str(source).partition(";")[0] for source in sources] == [
        "data:image/png",
        "data:image/jpeg",
    ]
    assert "url(" not in page and "@import" not in page and "http:" not in page


def test_the_page_has_each_cell_and_marks_the_leader_and_the_unranked() -> None:
    rows = [row(), row(val_accuracy=0.9), row(state="failed", val_accuracy=math.nan)]
    table = table_for_people(rows)
    parser = parsed(to_html("Comparison", ["it leads"], ["a note"], table))
    assert parser.cells == [str(value) for line in table.itertuples(index=False) for value in line]
    assert [attributes.get("class") for tag, attributes in parser.tags if tag == "tr"] == [
        None,
        "leader",
        "",
        "unranked",
    ]
    assert "img" not in [tag for tag, _ in parser.tags]


def test_a_command_stands_apart_from_its_sentence() -> None:
    sentence = "Next: train it: python -m pipeline tune --study.only a,b (about 3 min)"
    page = to_html("Comparison", [sentence], [], table_for_people([row()]))
    assert "<code>python -m pipeline tune --study.only a,b</code> (about 3 min)" in page


def test_parts_that_show_nothing_are_left_out() -> None:
    parts = [Part("Nothing here"), Part("Something", "", (), {"one": ["said"]})]
    page = to_html("Comparison", [], [], table_for_people([row()]), parts)
    assert "Nothing here" not in page
    assert '<a href="#part0">Something</a>' in page and "<h2 id=part0>Something</h2>" in page


def test_only_the_next_command_is_set_apart() -> None:
    typed = "python -m pipeline tune --study.repeats 3"
    assert f"`{typed}`" in people_table.markdown_sentence(f"Next: train these two: {typed}")
    strange = f"m {typed}\n\n![a](http://evil/x.png) leads on validation accuracy."
    for sentence in (strange, f"Next: {strange}"):
        written = people_table.markdown_sentence(sentence)
        assert "`" not in written.replace("\\`", "") and "![a](" not in written
