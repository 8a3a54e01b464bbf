"""The page of what `prepare` has found."""

from __future__ import annotations

import base64
import copy
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.report import data_report

PNG, JPEG = b"\x89PNG\r\n\x1a\n one", b"\xff\xd8\xff\xe0 other"
HOSTILE = "<script>alert(\"x\")</script> & 'more'"
SECTIONS = ["warnings", "counts", "samples", "duplicates", "leaks", "left-out"]
VOID = {"meta", "col", "img"}

Report = dict[str, Any]


def image(
    path: str, label: str = "rose", split: str = "train", kept: bool = True
) -> dict[str, Any]:
    return {"path": path, "label": label, "split": split, "kept": kept}


def clean(num_classes: int = 3, splits: tuple[str, ...] = ("train", "val", "test")) -> Report:
    """A report without any finding, each class with more images than the one before."""
    classes = [f"class {number}" for number in range(num_classes)]
    counts = {
        name: {split: 10 * number + place + 1 for place, split in enumerate(splits)}
        for number, name in enumerate(classes)
    }
    return {
        "name": "flowers", "source": "/data/flowers", "digest": "0123456789abcdef" * 2,
        "classes": classes, "splits": list(splits), "counts": counts,
        "num_images": sum(sum(count.values()) for count in counts.values()),
        "majority": {"class": classes[-1], "share": 0.731},
        "policies": {"bad": "warn", "duplicates": "group", "near_distance": 4},
        "quarantined": [], "leaks": [], "num_leaks": 0, "warnings": [], "ignored": {},
        "duplicates": {
            "groups": [], "num_images": 0, "num_groups": 0, "under_two_labels": 0,
            "across_splits": 0,
        },
        "samples": {name: [f"{name}/{number}.jpg" for number in range(2)] for name in classes},
    }  # fmt: skip


def with_findings() -> Report:
    groups = [
        {"kind": "equal", "images": [image("a.jpg"), image("b.jpg", label="lily")]},
        {"kind": "near", "images": [image("c.jpg"), image("d.jpg", split="test")]},
        {"kind": "equal", "images": [image("e.jpg"), image("f.jpg", kept=False)]},
    ]
    return {
        **clean(),
        "quarantined": [
            {"path": "bad.jpg", "label": "rose", "reason": "truncated: 12 bytes missing"}
        ],
        "duplicates": {
            "groups": groups,
            "num_images": 6,
            "num_groups": 3,
            "under_two_labels": 1,
            "across_splits": 1,
        },
        "leaks": [
            {
                "first": "g.jpg",
                "first_split": "train",
                "second": "h.jpg",
                "second_split": "test",
                "kind": "equal",
                "removed": False,
            }
        ],
        "num_leaks": 1,
        "warnings": ["class 'Cat' and 'cat ' differ only by case or blanks"],
        "ignored": {".txt": 3, "": 1},
    }


def thumbnails(report: Report) -> dict[str, bytes]:
    return dict.fromkeys(data_report.paths_shown(report), PNG)


class Page(HTMLParser):
    """Collects the elements, the text under each section's id, the rows of tables and the cards."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.sections: dict[str, str] = {"": ""}
        self.rows: list[list[str]] = []
        self.cards: list[list[tuple[str, str]]] = []
        self.tiles: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert [tag for tag, _ in self.open] == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if tag not in VOID:
            self.open.append((tag, attributes))
        classes = (attributes.get("class") or "").split()
        if tag == "section":
            self.sections[str(attributes["id"])] = ""
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif "card" in classes:
            self.cards.append([("card", " ".join(classes[1:]))])
        elif "chip" in classes and "card" in self._classes():
            self.cards[-1].append(("", " ".join(classes[1:])))
        elif "tile" in classes:
            self.tiles.append(("", classes[1]))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        inside = [tag for tag, _ in self.open]
        classes = self._classes()
        section = next(
            (str(attributes["id"]) for tag, attributes in self.open if tag == "section"), ""
        )
        if "style" not in inside:
            self.sections[section] += data
        if inside[-1:] in (["td"], ["th"], ["i"]) and "tr" in inside:
            self.rows[-1][-1] += data
        if "card" in classes and "chip" in classes:
            text, colour = self.cards[-1][-1]
            self.cards[-1][-1] = (text + data, colour)
        if "tile" in classes and inside[-1] == "b":
            self.tiles[-1] = (self.tiles[-1][0] + data, self.tiles[-1][1])

    def _classes(self) -> set[str]:
        return {
            name for _, attributes in self.open for name in (attributes.get("class") or "").split()
        }

    @property
    def images(self) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == "img"]

    @property
    def text(self) -> str:
        return " ".join(self.sections.values())


def page_of(report: Report, pictures: dict[str, bytes] | None = None) -> Page:
    return Page(data_report.to_html(report, thumbnails(report) if pictures is None else pictures))


def test_every_section_stands_in_its_order() -> None:
    assert list(page_of(with_findings()).sections) == ["", *SECTIONS]


def test_without_a_finding_there_are_counts_and_samples_only() -> None:
    page = page_of(clean())
    assert list(page.sections) == ["", "counts", "samples"]
    assert page.tiles == [("0", "green")] * 4


@pytest.mark.parametrize(
    ("section", "emptied"),
    [
        ("warnings", {"warnings": []}),
        ("samples", {"samples": {}}),
        ("duplicates", {"duplicates": clean()["duplicates"]}),
        ("leaks", {"leaks": [], "num_leaks": 0}),
        ("left-out", {"quarantined": []}),
    ],
)
def test_a_section_without_content_is_absent(section: str, emptied: Report) -> None:
    assert list(page_of({**with_findings(), **emptied}).sections) == [
        "",
        *(name for name in SECTIONS if name != section),
    ]


def test_the_head_has_the_key_figures() -> None:
    head = page_of({**with_findings(), "num_images": 1234}).sections[""]
    for text in (
        "flowers",
        "/data/flowers",
        "1,234 images",
        "3 classes",
        "train (33), val (36), test (39)",
        "digest 01234567",
    ):
        assert text in head
    assert "012345678" not in head
    assert "3 .txt, 1 without extension" in head
    assert "passed over" not in page_of(clean()).text


def test_the_tiles_tell_the_verdict_by_colour_and_lead_to_their_sections() -> None:
    page = page_of(with_findings())
    assert page.tiles == [("1", "amber"), ("3", "red"), ("1", "red"), ("1", "amber")]
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert links == ["#left-out", "#duplicates", "#leaks", "#warnings"]
    for text in ("6 images", "1 group with different labels", "1 group across splits"):
        assert text in page.sections[""]


def test_duplicates_of_one_label_are_amber() -> None:
    report = with_findings()
    report["duplicates"]["under_two_labels"] = 0
    assert page_of(report).tiles[1] == ("3", "amber")
    assert "at least one is wrong" not in page_of(report).text


def test_what_was_not_looked_for_is_grey_and_not_zero() -> None:
    report = clean()
    report["policies"]["duplicates"] = "ignore"
    page = page_of(report)
    assert page.tiles == [("0", "green"), ("–", "grey"), ("0", "green")]
    assert "not looked for" in page.sections[""]
    assert page_of(
        {**report, **{name: with_findings()[name] for name in ("leaks", "num_leaks")}}
    ).tiles[2] == ("1", "red")


def test_the_baseline_is_a_sentence() -> None:
    assert (
        "validation accuracy of 73.1%: that of always answering class 2, the most frequent class"
        in page_of(clean()).sections[""]
    )


def test_the_chart_has_the_counts_given_the_largest_class_first() -> None:
    report = clean()
    report["counts"]["class 0"] = {"train": 4000, "val": 0}
    rows = page_of(report).rows
    assert rows == [
        ["class", "", "train", "val", "test", "all"],
        ["class 0", "", "4,000", "0", "0", "4,000"],
        ["class 2", "", "21", "22", "23", "66"],
        ["class 1", "", "11", "12", "13", "36"],
    ]
    page = page_of(report)
    assert [
        attributes["class"]
        for tag, attributes in page.tags
        if tag == "td" and attributes.get("class")
    ] == ["zero", "zero"]
    assert "From 36 images (class 1) to 4,000 (class 0)." in page.sections["counts"]


def test_classes_of_one_size_are_said_to_be_so() -> None:
    report = clean()
    report["counts"] = {name: {"train": 5, "val": 1, "test": 1} for name in report["classes"]}
    assert "7 of every class." in page_of(report).sections["counts"]


@pytest.mark.parametrize(
    "splits", [("train", "val", "test"), ("fold 0", "fold 1", "fold 2", "fold 3", "fold 4", "test")]
)
@pytest.mark.parametrize("num_classes", [2, 40, 300])
def test_every_class_has_a_row_and_a_bar_in_proportion(
    num_classes: int, splits: tuple[str, ...]
) -> None:
    report = clean(num_classes, splits)
    page = page_of(report)
    header, *rows = page.rows
    assert header == ["class", "", *splits, "all"]
    assert {row[0]: [int(text.replace(",", "")) for text in row[2:-1]] for row in rows} == {
        name: list(count.values()) for name, count in report["counts"].items()
    }
    totals = [int(row[-1].replace(",", "")) for row in rows]
    assert totals == sorted(
        (sum(count.values()) for count in report["counts"].values()), reverse=True
    )
    bars = [
        str(attributes["style"]) for _, attributes in page.tags if attributes.get("class") == "bar"
    ]
    assert [float(bar.removeprefix("width:").removesuffix("%")) for bar in bars] == pytest.approx(
        [100 * total / totals[0] for total in totals], abs=0.01
    )
    parts = [
        attributes for _, attributes in page.tags if "flex-grow" in (attributes.get("style") or "")
    ]
    assert [part["class"] for part in parts] == [
        f"s{number}" for number in range(len(splits))
    ] * num_classes


def test_splits_differ_in_colour() -> None:
    splits = ("train", "val", "fold 0", "fold 1", "fold 2", "fold 3", "fold 4", "test")
    rules = re.findall(
        r"^\.s(\d) { background: (.+?);",
        data_report.to_html(clean(splits=splits), {}),
        flags=re.MULTILINE,
    )
    assert [number for number, _ in rules] == [str(number) for number in range(len(splits))]
    assert len({colour for _, colour in rules}) == len(splits)


@pytest.mark.parametrize(
    ("num_classes", "sizes"),
    [(40, []), (41, ["compact"]), (100, ["compact"]), (101, ["compact", "scrolled"])],
)
def test_many_classes_become_compact_then_scroll(num_classes: int, sizes: list[str]) -> None:
    page = page_of(clean(num_classes))
    (chart,) = [
        attributes["class"]
        for _, attributes in page.tags
        if (attributes.get("class") or "").startswith("chart")
    ]
    assert str(chart).split() == ["chart", *sizes]
    # The tallest layer lies at the bottom.
    assert [attributes["class"] for tag, attributes in page.tags if tag == "polygon"] == [
        "s2",
        "s1",
        "s0",
    ] * bool(sizes)


def test_pictures_are_embedded_with_their_type_and_path() -> None:
    report = {**clean(), "samples": {"class 0": ["one.png", "two.jpg", "three.jpg"]}}
    page = page_of(report, {"one.png": PNG, "two.jpg": JPEG})
    assert [(found["src"], found["alt"]) for found in page.images] == [
        (f"data:image/png;base64,{base64.b64encode(PNG).decode()}", "one.png"),
        (f"data:image/jpeg;base64,{base64.b64encode(JPEG).decode()}", "two.jpg"),
    ]
    assert page.sections["samples"].count("no picture") == 1


def test_nothing_is_loaded_or_run() -> None:
    page = page_of(with_findings())
    addresses = [
        value
        for _, attributes in page.tags
        for name, value in attributes.items()
        if name in ("src", "href")
    ]
    assert addresses and all(str(address).startswith(("data:image/", "#")) for address in addresses)
    assert {"script", "link", "iframe", "object"}.isdisjoint(tag for tag, _ in page.tags)
    assert "url(" not in data_report.to_html(
        with_findings(), {}
    ) and "@import" not in data_report.to_html(with_findings(), {})


def test_private_images_are_not_shown_and_the_page_says_so() -> None:
    text = data_report.to_html(with_findings(), {})
    page = Page(text)
    assert "data:" not in text and not page.images
    assert "The images are private" in page.sections[""]
    assert list(page.sections) == ["", *(name for name in SECTIONS if name != "samples")]
    for path in ("a.jpg", "b.jpg", "g.jpg", "h.jpg", "bad.jpg"):
        assert path in page.text
    assert "no picture" not in page.text
    assert "private" not in page_of(with_findings()).text


def test_marks_of_duplicates() -> None:
    cards = page_of(with_findings()).cards
    assert cards == [
        [
            ("card", "red"),
            ("equal", ""),
            ("different labels", "red"),
            ("rose", "red"),
            ("train", ""),
            ("lily", "red"),
            ("train", ""),
        ],
        [
            ("card", "amber"),
            ("near", ""),
            ("across splits", "amber"),
            ("rose", ""),
            ("train", "amber"),
            ("rose", ""),
            ("test", "amber"),
        ],
        [
            ("card", ""),
            ("equal", ""),
            ("rose", ""),
            ("train", ""),
            ("rose", ""),
            ("train", ""),
            ("removed", ""),
        ],
        [
            ("card", "amber"),
            ("equal", ""),
            ("across splits", "amber"),
            ("train", "amber"),
            ("test", "amber"),
        ],
    ]


def test_a_removed_copy_crosses_no_splits() -> None:
    report = with_findings()
    report["duplicates"]["groups"] = [
        {"kind": "equal", "images": [image("a.jpg", split="test"), image("b.jpg", kept=False)]}
    ]
    assert page_of(report).cards[0] == [
        *[
            ("card", ""),
            ("equal", ""),
            ("rose", ""),
            ("test", ""),
            ("rose", ""),
            ("train", ""),
            ("removed", ""),
        ],
    ]


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        ("group", "Copies stay on one side of a split."),
        ("error", "Copies stop the preparation."),
        ("warn", "Copies are listed only"),
        ("drop", "Copies were removed from training and validation, never from test."),
        ("ignore", "Copies were not looked for."),
    ],
)
def test_what_the_policy_means_is_said(policy: str, text: str) -> None:
    report = {**with_findings(), "leaks": [], "num_leaks": 0}
    report["policies"]["duplicates"] = policy
    assert text in page_of(report).sections["duplicates"]


def test_given_splits_are_said_to_limit_the_grouping() -> None:
    assert (
        "splits that came with the images are kept"
        in page_of(with_findings()).sections["duplicates"]
    )


@pytest.mark.parametrize(
    ("policy", "text"),
    [("warn", "a score on them rewards memory"), ("drop", "the copies outside test were removed")],
)
def test_what_became_of_leaks_is_said(policy: str, text: str) -> None:
    report = with_findings()
    report["policies"]["duplicates"] = policy
    assert text in page_of(report).sections["leaks"]


@pytest.mark.parametrize("policy", ["error", "warn", "drop"])
def test_what_becomes_of_unreadable_images_is_said(policy: str) -> None:
    report = with_findings()
    report["policies"]["bad"] = policy
    assert ("stop the preparation" if policy == "error" else "are left out") in page_of(
        report
    ).sections["left-out"]


@pytest.mark.parametrize(("distance", "said"), [(-1, False), (0, True), (7, True)])
def test_near_is_explained_where_it_counts(distance: int, said: bool) -> None:
    report = with_findings()
    report["policies"]["near_distance"] = distance
    assert (f"at most {distance} of 64 bits" in page_of(report).sections["duplicates"]) == said


def test_files_left_out_are_a_table_with_reasons() -> None:
    report = with_findings()
    report["quarantined"] += [
        {"path": f"{name}.jpg", "label": "lily", "reason": f"copy of {name}"} for name in ("x", "y")
    ]
    page = page_of(report)
    assert page.rows[-3:] == [
        ["bad.jpg", "rose", "truncated: 12 bytes missing"],
        ["x.jpg", "lily", "copy of x"],
        ["y.jpg", "lily", "copy of y"],
    ]
    assert "copy: 2 truncated: 1" in page.sections["left-out"]


def many_findings() -> Report:
    """More of everything than the page shows, more duplicates and leaks than the report lists."""
    report = {**clean(33), "warnings": [f"warning {number}" for number in range(45)]}
    report["quarantined"] = [
        {"path": f"{number}.jpg", "label": "rose", "reason": "empty"} for number in range(1502)
    ]
    groups = [
        {"kind": "equal", "images": [image(f"{number}-{side}.jpg") for side in range(2)]}
        for number in range(70)
    ]
    groups[0]["images"] = [
        image(f"0-{side}.jpg", label="lily" if side == 29 else "rose") for side in range(30)
    ]
    report["duplicates"] = {
        "groups": groups,
        "num_images": 9000,
        "num_groups": 4000,
        "under_two_labels": 0,
        "across_splits": 0,
    }
    leak = {"first_split": "train", "second_split": "test", "kind": "near", "removed": False}
    report["leaks"] = [
        {"first": f"{number}-first.jpg", "second": f"{number}-second.jpg", **leak}
        for number in range(65)
    ]
    return {**report, "num_leaks": 65}


@pytest.mark.parametrize(
    ("section", "text"),
    [
        ("warnings", "5 more warnings in report.json."),
        ("samples", "3 more classes have their samples in report.json."),
        ("duplicates", "3,940 more groups, of which report.json lists 10."),
        ("leaks", "5 more pairs in report.json."),
        ("left-out", "1,002 more files in report.json."),
    ],
)
def test_limits_say_how_many_more(section: str, text: str) -> None:
    assert text in page_of(many_findings()).sections[section]
    assert "more" not in page_of(with_findings()).sections[section]


def test_limits_hold() -> None:
    page = page_of(many_findings())
    tags = [tag for tag, _ in page.tags]
    assert tags.count("li") == 40
    assert len([1 for _, attributes in page.tags if attributes.get("class") == "row"]) == 30
    assert len(page.cards) == 60 + 60
    assert len(page.rows) == 34 + 501
    assert len(page.images) == 30 * 2 + (12 + 59 * 2) + 60 * 2


def test_the_cause_of_a_mark_is_shown_though_the_group_is_cut() -> None:
    page = page_of(many_findings())
    assert ("lily", "red") in page.cards[0]
    assert (
        "0-29.jpg" in page.sections["duplicates"] and "0-28.jpg" not in page.sections["duplicates"]
    )
    assert "and 18 more" in page.sections["duplicates"]


def test_no_other_picture_is_needed_than_said() -> None:
    report = many_findings()
    every = {image["path"] for group in report["duplicates"]["groups"] for image in group["images"]}
    every |= {leak[side] for leak in report["leaks"] for side in ("first", "second")}
    every |= {path for paths in report["samples"].values() for path in paths}
    assert data_report.paths_shown(report) < every
    assert data_report.to_html(report, dict.fromkeys(every, PNG)) == data_report.to_html(
        report, thumbnails(report)
    )
    assert {found["alt"] for found in page_of(report).images} == data_report.paths_shown(report)


def test_a_report_is_left_as_it_was() -> None:
    report = many_findings()
    before = copy.deepcopy(report)
    page_of(report)
    assert report == before


def named(name: str, path: str) -> Report:
    """A report in which every text of any origin is this name or path."""
    other, splits = f"{name} too", [name, f"{name} test"]
    images = [image(path, name, splits[0]), image(f"{path} too", other, splits[1], kept=False)]
    return {
        **clean(2), "name": name, "source": path, "digest": name * 8,
        "classes": [name, other], "splits": splits,
        "majority": {"class": name, "share": 0.5},
        "counts": {name: dict(zip(splits, (3, 2), strict=True)), other: {name: 1}},
        "quarantined": [{"path": path, "label": name, "reason": f"{name}: {path}"}],
        "samples": {name: [path]}, "ignored": {path: 1},
        "duplicates": {
            "groups": [{"kind": name, "images": images}],
            "num_images": 2, "num_groups": 1, "under_two_labels": 1, "across_splits": 1,
        },
        "leaks": [
            {
                "first": path, "first_split": splits[0],
                "second": f"{path} too", "second_split": splits[1],
                "kind": name, "removed": False,
            }
        ],
        "num_leaks": 1, "warnings": [f"class {name} has 3 training images"],
    }  # fmt: skip


def skeleton(page: Page) -> list[tuple[str, list[str]]]:
    return [(tag, list(attributes)) for tag, attributes in page.tags]


def test_markup_in_names_and_paths_is_text() -> None:
    report = named(HOSTILE, f"folder/{HOSTILE}.jpg")
    text = data_report.to_html(report, thumbnails(report))
    page = Page(text)
    assert "<script" not in text and "&lt;script&gt;" in text
    assert skeleton(page) == skeleton(page_of(named("rose", "rose.jpg")))
    assert [HOSTILE, "", "3", "2", "5"] in page.rows
    assert [f"folder/{HOSTILE}.jpg", HOSTILE, f"{HOSTILE}: folder/{HOSTILE}.jpg"] in page.rows
    assert {found["alt"] for found in page.images} == {
        f"folder/{HOSTILE}.jpg",
        f"folder/{HOSTILE}.jpg too",
    }


NAMES = st.text(min_size=1) | st.text(alphabet="<>&\"'/=!-; \nascript", min_size=1)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(name=NAMES, path=NAMES, private=st.booleans())
def test_no_name_yields_markup(name: str, path: str, private: bool) -> None:
    report, harmless = named(name, path), named("rose", "rose.jpg")
    page = page_of(report, {} if private else None)
    assert skeleton(page) == skeleton(page_of(harmless, {} if private else None))
    assert [len(row) for row in page.rows] == [5, 5, 5, 3, 3]


def test_a_file_name_that_is_no_utf8_can_be_written() -> None:
    path = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    text = data_report.to_html(named("rose", path), {path: PNG})
    assert b"caf\\udce9.jpg" in text.encode()
