"""What `prepare` has found in the images, as a page to look at before training."""

from __future__ import annotations

import base64
import html
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.natural_order import natural_key
from pipeline.safe_text import make_visible

NUM_CLASSES = 30
"""Number of classes whose samples are shown."""
NUM_GROUPS = 60
"""Number of groups of duplicates that are shown, and number of leaks."""
NUM_IMAGES = 12
"""Number of images that are shown of one group."""
NUM_LEFT_OUT = 500
"""Number of files left out of training that are listed."""
NUM_WARNINGS = 40
"""Number of warnings that are listed."""

_COMPACT = 40
"""Number of classes above which the chart is compact, and has an outline above it."""
_SCROLLED = 100
"""Number of classes above which the chart is scrolled."""
_COPIES = {
    "group": "Copies stay on one side of a split.",
    "error": "Copies stop the preparation.",
    "warn": "Copies are listed only: every one of them is used.",
    "drop": "Copies were removed from training and validation, never from test.",
    "ignore": "Copies were not looked for.",
}
_UNREADABLE = {
    "error": "stop the preparation",
    "warn": "are left out and listed",
    "drop": "are left out",
}
_COLOURS = {"train": "#2f6391", "val": "#86b8dc", "test": "#9a78bd"}

# A backslash at the end of a line joins the line with the next one.
_STYLE = """
:root { color-scheme: light; -webkit-print-color-adjust: exact; print-color-adjust: exact; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; \
padding: 0 1rem; color: #1c2430; background: #fff; }
h1 { margin: 0; } h2 { margin: 2.4rem 0 .4rem; font-size: 1.25rem; break-after: avoid; } \
p { margin: .3rem 0; }
h1, li, td, .name, .path, .chip { overflow-wrap: anywhere; white-space: pre-wrap; } \
.quiet, .path, small { color: #5f6976; }
.path, .chip, small { font-size: .8rem; } .tile small, .row small { display: block; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .8rem; \
margin: 1.2rem 0; }
.tile, ul { border-left: 6px solid; border-radius: 6px; padding: .6rem .9rem; color: inherit; \
text-decoration: none; }
.tile b { display: block; font-size: 1.9rem; line-height: 1.2; } \
ul { margin: .4rem 0; padding-left: 2rem; }
.green { background: #eaf4ee; border-color: #6fae88; } \
.grey { background: #f1f3f5; border-color: #b4bcc6; }
.amber { background: #fdf1d8; border-color: #dfa12d; } \
.red { background: #fbe3e1; border-color: #cb4b41; }
.chip { display: inline-block; border-radius: 4px; padding: 0 .4rem; background: #eceff2; } \
.card .chip { margin: 0 .2rem .15rem 0; }
.chip.amber { background: #fbdf9f; } .chip.red { background: #f3b5b0; }
table { border-collapse: collapse; width: 100%; } tbody tr { border-bottom: 1px solid #e6e9ed; }
td, th { padding: .2rem .5rem; text-align: left; vertical-align: top; font-weight: 500; } \
td { font-weight: 400; }
thead th { background: #fff; box-shadow: inset 0 -2px #1c2430; position: sticky; top: 0; }
.chart { overflow-x: auto; } \
.scrolled { max-height: 38rem; overflow-y: auto; border-bottom: 1px solid #b4bcc6; }
.chart table { table-layout: fixed; font-variant-numeric: tabular-nums; } \
.chart td, .chart th { vertical-align: middle; }
.number, .chart td { text-align: right; white-space: nowrap; padding-left: 0; } \
.zero { color: #b3261e; }
.bar { display: flex; min-width: 2px; height: 1.1em; border-radius: 3px; overflow: hidden; }
.key { display: inline-block; width: .7em; height: .7em; border-radius: 2px; margin-right: .3em; }
.compact { font-size: 12px; line-height: 1.2; } \
.compact td, .compact tbody th { padding-top: 1px; padding-bottom: 1px; }
svg { display: block; width: 100%; height: 6rem; margin: .6rem 0; \
border-bottom: 1px solid #b4bcc6; }
.row { display: flex; gap: .4rem 1rem; align-items: center; padding: .35rem 0; \
border-bottom: 1px solid #e6e9ed; break-inside: avoid; }
.row .label { flex: 0 0 11rem; } \
.strip, .cards { display: flex; flex-wrap: wrap; align-items: flex-start; gap: .4rem; }
.picture { width: 6.2rem; height: 6.2rem; object-fit: contain; background: #f1f3f5; \
border-radius: 4px; display: block; }
span.picture { display: grid; place-items: center; } .removed .picture { opacity: .4; }
.cards { gap: .8rem; margin-top: .8rem; } .card .strip { gap: .7rem; margin-top: .3rem; }
.card { border: 1px solid #d5dae0; border-top-width: 4px; border-radius: 6px; \
padding: .5rem .6rem; break-inside: avoid; }
.card.amber { border-color: #dfa12d; background: none; } \
.card.red { border-color: #cb4b41; background: none; }
figure { margin: 0; width: 6.8rem; line-height: 1.25; } figcaption { margin-top: .3rem; } \
.private figure { width: 15rem; max-width: 100%; }
@media (max-width: 45rem) { .chart { font-size: 12px; } .row { display: block; } \
.row .picture { width: 4.6rem; height: 4.6rem; } }
@media print { body { margin: 0; max-width: none; } .scrolled { max-height: none; } \
thead th { position: static; } }
"""


def to_html(report: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    """Return the findings as a standalone page.

    Args:
        report: Content of ``report.json``.
        pictures: Thumbnails, PNG or JPEG, by path. Those of `paths_shown` are enough, and some may
            be missing. If the images are private, there are none: the page then shows counts and
            paths only.
    """
    is_private = not pictures and bool(paths_shown(report))
    colours = ""
    for number, colour in enumerate(_split_colours(report["splits"])):
        colours += f".s{number} {{ background: {colour}; fill: {colour}; }}\n"
    sections = [
        _head(report, is_private),
        _refusal(report),
        _tiles(report),
        _baseline(report),
        _warnings_section(report),
        _counts_section(report),
        _samples_section(report, pictures),
        _duplicates_section(report, pictures),
        _leaks_section(report, pictures),
        _left_out_section(report),
    ]
    body_class = " class=private" if is_private else ""
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        f"<title>{_text(report['name'])}: data report</title><style>{_STYLE}{colours}</style>\n"
        f"<body{body_class}>\n{''.join(sections)}</body></html>\n"
    )


def paths_shown(report: Mapping[str, Any]) -> set[str]:
    """Return the paths of which `to_html` shows a picture: no other thumbnail need be made."""
    paths: set[str] = set()
    for name in _sampled_classes(report)[:NUM_CLASSES]:
        paths.update(report["samples"][name])
    groups = [*report["duplicates"]["groups"][:NUM_GROUPS], *_leak_groups(report)[:NUM_GROUPS]]
    for group in groups:
        paths.update(image["path"] for image in _first_images(group["images"]))
    return paths


def _text(value: object) -> str:
    # A file name that is no UTF-8 holds lone surrogates, with which the page could not be written.
    return html.escape(make_visible(str(value)))


def _chip(value: object, colour: str = "") -> str:
    return f"<span class='chip {colour}'>{_text(value)}</span>"


def _count_text(number: int, one: str, many: str = "") -> str:
    name = one if number == 1 else many or f"{one}s"
    return f"{number:,} {name}"


def _rest_text(shown: int, total: int, what: str, listed: int | None = None) -> str:
    """Return a paragraph about what is not shown; nothing if all is.

    Args:
        shown: Number of entries that are shown at most.
        total: Number of all entries.
        what: Name of the entries.
        listed: Number of entries in report.json; None: it has all.
    """
    if total <= shown:
        return ""
    where = " in report.json"
    if listed is not None and listed != total:
        where = f", of which report.json lists {max(listed - shown, 0):,}"
    return f"<p class=quiet>{total - shown:,} more {what}{where}.</p>"


def _section(name: str, heading: str, *parts: str) -> str:
    return f"<section id={name}><h2>{heading}</h2>\n" + "\n".join(parts) + "</section>\n"


def _class_totals(report: Mapping[str, Any]) -> dict[str, int]:
    """Return how many images each class has.

    The largest class comes first. Equally large ones stand in the order in which people look for
    them.
    """
    totals = {name: sum(report["counts"][name].values()) for name in report["classes"]}
    return dict(sorted(totals.items(), key=lambda item: (-item[1], natural_key(item[0]))))


def _sampled_classes(report: Mapping[str, Any]) -> list[str]:
    return [name for name in _class_totals(report) if report["samples"].get(name)]


def _split_colours(splits: Sequence[str]) -> list[str]:
    colours = []
    for number, split in enumerate(splits):
        lightness = 34 + 44 * number / len(splits)
        colours.append(_COLOURS.get(split, f"hsl(207 50% {lightness:.0f}%)"))
    return colours


def _head(report: Mapping[str, Any], is_private: bool) -> str:
    sizes = []
    for split in report["splits"]:
        size = sum(counts.get(split, 0) for counts in report["counts"].values())
        sizes.append(f"{_text(split)} ({size:,})")
    images = _count_text(report["num_images"], "image")
    classes = _count_text(len(report["classes"]), "class", "classes")
    digest = ""
    if report["digest"]:
        digest = f" · digest <code>{_text(report['digest'][:8])}</code>"
    head = (
        f"<h1>{_text(report['name'])}</h1><p class=path>{_text(report['source'])}</p>\n"
        f"<p><b>{images}</b> · <b>{classes}</b> · {', '.join(sizes)}{digest}</p>\n"
    )
    ignored = []
    for extension, number in report["ignored"].items():
        ignored.append(f"{number:,} {_text(extension or 'without extension')}")
    if ignored:
        kinds = ", ".join(ignored)
        head += f"<p class=quiet>Files passed over, being no images: {kinds}.</p>\n"
    if is_private:
        head += (
            "<p class=quiet>The images are private: this page shows counts and paths only.</p>\n"
        )
    return head


def _refusal(report: Mapping[str, Any]) -> str:
    if not report.get("refused"):
        return ""
    return f"<ul class=red><li>Not prepared: {_text(report['refused'])}.</li></ul>\n"


def _tiles(report: Mapping[str, Any]) -> str:
    left_out = len(report["quarantined"])
    tiles = [_tile(left_out, "left out of training", "left-out", "amber", "unreadable, or copies")]
    policy = report["policies"]["duplicates"]
    if policy == "ignore" and not report["num_leaks"]:
        tiles.append(
            "<div class='tile grey'><b>–</b>duplicates and leaks<small>not looked for</small></div>"
        )
    else:
        tiles.append(_duplicates_tile(report["duplicates"]))
        tiles.append(_leaks_tile(report["num_leaks"], policy == "drop"))
    tiles.append(_tile(len(report["warnings"]), "warnings", "warnings", "amber"))
    return f"<div class=tiles>{''.join(tiles)}</div>\n"


def _duplicates_tile(copies: Mapping[str, Any]) -> str:
    conflicts = copies["under_two_labels"]
    details = [_count_text(copies["num_images"], "image")]
    if conflicts:
        details.append(f"{_count_text(conflicts, 'group')} with different labels")
    if copies["across_splits"]:
        details.append(f"{_count_text(copies['across_splits'], 'group')} across splits")
    colour = "red" if conflicts else "amber"
    return _tile(copies["num_groups"], "groups of duplicates", "duplicates", colour, *details)


def _leaks_tile(number: int, are_removed: bool) -> str:
    if are_removed:
        return _tile(number, "leaks between splits", "leaks", "amber", "copies removed")
    return _tile(number, "leaks between splits", "leaks", "red", "pairs of the same picture")


def _tile(number: int, what: str, target: str, colour: str, *details: str) -> str:
    if not number:
        return f"<div class='tile green'><b>0</b>{what}</div>"
    lines = "".join(f"<small>{detail}</small>" for detail in details)
    return f"<a class='tile {colour}' href=#{target}><b>{number:,}</b>{what}{lines}</a>"


def _baseline(report: Mapping[str, Any]) -> str:
    if "majority" not in report:
        return ""
    majority = report["majority"]
    return (
        "<p>The baseline to beat is a validation accuracy of "
        f"<b>{majority['share']:.1%}</b>: that of always answering {_chip(majority['class'])}, "
        "the most frequent class in training.</p>\n"
    )


def _warnings_section(report: Mapping[str, Any]) -> str:
    warnings = report["warnings"]
    if not warnings:
        return ""
    items = "".join(f"<li>{_text(warning)}</li>" for warning in warnings[:NUM_WARNINGS])
    more = _rest_text(NUM_WARNINGS, len(warnings), "warnings")
    return _section("warnings", "Warnings", f"<ul class=amber>{items}</ul>", more)


def _counts_section(report: Mapping[str, Any]) -> str:
    totals = _class_totals(report)
    is_compact = len(totals) > _COMPACT
    (first, most), *_, (last, fewest) = totals.items()
    span = f"{most:,} of every class."
    if fewest < most:
        span = f"From {_count_text(fewest, 'image')} ({_chip(last)}) to {most:,} ({_chip(first)})."
    outline = _outline(report, totals) if is_compact else ""
    compact = "compact" if is_compact else ""
    scrolled = "scrolled" if len(totals) > _SCROLLED else ""
    table = _counts_table(report, totals)
    chart = f"<div class='chart {compact} {scrolled}'>{table}</div>"
    return _section("counts", "Images per class", f"<p>{span}</p>", outline, chart)


def _counts_table(report: Mapping[str, Any], totals: Mapping[str, int]) -> str:
    splits = report["splits"]
    keys = ""
    for number, split in enumerate(splits):
        keys += f"<th class=number><i class='key s{number}'></i>{_text(split)}</th>"
    head = f"<thead><tr><th>class</th><th></th>{keys}<th class=number>all</th></tr></thead>"
    most = max(totals.values())
    rows = []
    for name in totals:
        counts = [report["counts"][name].get(split, 0) for split in splits]
        rows.append(_counts_row(name, counts, most))
    # The columns have fixed widths: a long class name would squeeze the bars out.
    columns = "<col style=width:24%><col>" + "<col style=width:4.6em>" * (len(splits) + 1)
    lines = "\n".join(rows)
    return (
        f"<table style=min-width:{22 + 5 * len(splits)}em>{columns}{head}"
        f"<tbody>\n{lines}</tbody></table>"
    )


def _counts_row(name: str, counts: Sequence[int], most: int) -> str:
    parts = ""
    for number, count in enumerate(counts):
        if count:
            parts += f"<i class=s{number} style=flex-grow:{count}></i>"
    numbers = ""
    for count in (*counts, sum(counts)):
        mark = "" if count else "zero"
        numbers += f"<td class='{mark}'>{count:,}</td>"
    width = 100 * sum(counts) / max(most, 1)
    bar = f"<div class=bar style=width:{width:.2f}%>{parts}</div>"
    return f"<tr><th class=name>{_text(name)}</th><td>{bar}</td>{numbers}</tr>"


def _outline(report: Mapping[str, Any], totals: Mapping[str, int]) -> str:
    """Return the outline of all bars, the largest class left.

    It shows how long the tail is if the bars fill pages.
    """
    splits = report["splits"]
    most = max(totals.values())
    layers = ""
    for number in reversed(range(len(splits))):
        steps = []
        for x, name in enumerate(totals):
            counts = report["counts"][name]
            y = most - sum(counts.get(split, 0) for split in splits[: number + 1])
            steps.append(f"{x},{y} {x + 1},{y}")
        points = f"0,{most} {' '.join(steps)} {len(totals)},{most}"
        layers += f"<polygon class=s{number} points='{points}'/>"
    return (
        f"<svg viewBox='0 0 {len(totals)} {most}' preserveAspectRatio=none aria-hidden=true>"
        f"{layers}</svg>"
    )


def _picture(path: str, pictures: Mapping[str, bytes]) -> str:
    if path not in pictures:
        return "<span class='picture quiet'>no picture</span>" if pictures else ""
    kind = "png" if pictures[path].startswith(b"\x89PNG") else "jpeg"
    source = f"data:image/{kind};base64,{base64.b64encode(pictures[path]).decode()}"
    return f'<img class=picture src="{source}" alt="{_text(path)}" title="{_text(path)}">'


def _samples_section(report: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    names = _sampled_classes(report)
    if not names or not pictures:
        return ""
    totals = _class_totals(report)
    rows = ""
    for name in names[:NUM_CLASSES]:
        strip = "".join(_picture(path, pictures) for path in report["samples"][name])
        size = _count_text(totals[name], "image")
        label = f"<span class=name>{_text(name)}</span><small>{size}</small>"
        rows += (
            f"<div class=row><div class=label>{label}</div><div class=strip>{strip}</div></div>\n"
        )
    more = _rest_text(NUM_CLASSES, len(names), "classes have their samples")
    return _section("samples", "Samples", rows, more)


def _first_images(images: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the images of a group to show.

    One of each label and split comes first: so the reason of a mark is not cut off.
    """
    first = {(image["label"], image["split"]): image for image in reversed(images)}
    ordered = sorted(images, key=lambda image: image is not first[image["label"], image["split"]])
    return ordered[:NUM_IMAGES]


def _card(group: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    images = group["images"]
    labels = {image["label"] for image in images}
    splits = {image["split"] for image in images if image["kept"]}
    conflict = "red" if len(labels) > 1 else ""
    crossing = "amber" if len(splits) > 1 else ""
    marks = _chip(group["kind"])
    if conflict:
        marks += _chip("different labels", conflict)
    if crossing:
        marks += _chip("across splits", crossing)
    figures = "".join(
        _figure(image, conflict, crossing, pictures) for image in _first_images(images)
    )
    hidden = ""
    if len(images) > NUM_IMAGES:
        hidden = f"<small>and {len(images) - NUM_IMAGES:,} more</small>"
    return (
        f"<div class='card {conflict or crossing}'>{marks}"
        f"<div class=strip>{figures}</div>{hidden}</div>\n"
    )


def _figure(
    image: Mapping[str, Any], conflict: str, crossing: str, pictures: Mapping[str, bytes]
) -> str:
    """Return one image of a card.

    Args:
        image: Path, label and split of the image, and whether it was kept.
        conflict: Colour of the label, or empty.
        crossing: Colour of the split if the image was kept, or empty.
        pictures: Thumbnails by path.
    """
    state = "" if image["kept"] else "class=removed"
    chips = ""
    if image["label"]:
        chips += _chip(image["label"], conflict)
    if image["split"]:
        chips += _chip(image["split"], crossing if image["kept"] else "")
    if not image["kept"]:
        chips += _chip("removed")
    path = f"<div class=path>{_text(image['path'])}</div>"
    picture = _picture(image["path"], pictures)
    return f"<figure {state}>{picture}<figcaption>{chips}{path}</figcaption></figure>"


def _cards(
    groups: Sequence[Mapping[str, Any]], total: int, what: str, pictures: Mapping[str, bytes]
) -> str:
    cards = "".join(_card(group, pictures) for group in groups[:NUM_GROUPS])
    more = _rest_text(NUM_GROUPS, total, what, listed=len(groups))
    return f"<div class=cards>{cards}</div>{more}"


def _duplicates_section(report: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    copies = report["duplicates"]
    if not copies["num_groups"]:
        return ""
    policy = report["policies"]["duplicates"]
    distance = report["policies"]["near_distance"]
    meaning = _COPIES[policy]
    if policy == "group" and report["num_leaks"]:
        meaning = (
            "Copies stay on one side of a split, but splits that came with the images are kept: "
            "see the leaks below."
        )
    if copies["under_two_labels"]:
        meaning += " Where equal images have different labels, at least one is wrong."
    kinds = "Equal: the same pixels."
    if distance >= 0:
        kinds += (
            f" Near: hashes at most {distance} of 64 bits apart, which may be different pictures "
            "after all."
        )
    texts = f"<p>{meaning}</p><p class=quiet>{kinds}</p>"
    cards = _cards(copies["groups"], copies["num_groups"], "groups", pictures)
    return _section("duplicates", "Duplicates", texts, cards)


def _leak_groups(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the leaks as groups of two images."""
    groups = []
    for leak in report["leaks"]:
        first = {
            "path": leak["first"],
            "label": "",
            "split": leak["first_split"],
            "kept": not leak["removed"],
        }
        second = {
            "path": leak["second"],
            "label": "",
            "split": leak["second_split"],
            "kept": True,
        }
        groups.append({"kind": leak["kind"], "images": [first, second]})
    return groups


def _leaks_section(report: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    if not report["num_leaks"]:
        return ""
    if report["policies"]["duplicates"] == "drop":
        verb = "were"
        outcome = "the copies outside test were removed"
    else:
        verb = "are"
        outcome = "a score on them rewards memory"
    text = f"<p>These pictures {verb} on both sides of a split: {outcome}.</p>"
    cards = _cards(_leak_groups(report), report["num_leaks"], "pairs", pictures)
    return _section("leaks", "Leaks", text, cards)


def _left_out_section(report: Mapping[str, Any]) -> str:
    files = report["quarantined"]
    if not files:
        return ""
    reasons = Counter(file["reason"].partition(":")[0].partition(" of ")[0] for file in files)
    chips = " ".join(_chip(f"{reason}: {number:,}") for reason, number in reasons.most_common(6))
    rows = []
    for file in files[:NUM_LEFT_OUT]:
        cells = "".join(f"<td>{_text(file[key])}</td>" for key in ("path", "label", "reason"))
        rows.append(f"<tr>{cells}</tr>")
    lines = "\n".join(rows)
    head = "<thead><tr><th>path</th><th>label</th><th>reason</th></tr></thead>"
    table = f"<table>{head}<tbody>\n{lines}</tbody></table>"
    texts = f"<p>Unreadable images {_UNREADABLE[report['policies']['bad']]}.</p><p>{chips}</p>"
    more = _rest_text(NUM_LEFT_OUT, len(files), "files")
    return _section("left-out", "Left out of training", texts, table, more)
