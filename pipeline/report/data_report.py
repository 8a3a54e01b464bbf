"""What `prepare` has found in the images, as a page to look at before training."""

from __future__ import annotations

import base64
import html
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.natural_order import natural_key
from pipeline.safe_text import make_visible

NUM_CLASSES, NUM_GROUPS, NUM_IMAGES, NUM_LEFT_OUT, NUM_WARNINGS = 30, 60, 12, 500, 40
"""How much of each list is shown: groups of duplicates and as many leaks, images of one group."""

_COMPACT, _SCROLLED = 40, 100
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

_STYLE = """
:root { color-scheme: light; -webkit-print-color-adjust: exact; print-color-adjust: exact; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; color: #1c2430; background: #fff; }
h1 { margin: 0; } h2 { margin: 2.4rem 0 .4rem; font-size: 1.25rem; break-after: avoid; } p { margin: .3rem 0; }
h1, li, td, .name, .path, .chip { overflow-wrap: anywhere; white-space: pre-wrap; } .quiet, .path, small { color: #5f6976; }
.path, .chip, small { font-size: .8rem; } .tile small, .row small { display: block; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .8rem; margin: 1.2rem 0; }
.tile, ul { border-left: 6px solid; border-radius: 6px; padding: .6rem .9rem; color: inherit; text-decoration: none; }
.tile b { display: block; font-size: 1.9rem; line-height: 1.2; } ul { margin: .4rem 0; padding-left: 2rem; }
.green { background: #eaf4ee; border-color: #6fae88; } .grey { background: #f1f3f5; border-color: #b4bcc6; }
.amber { background: #fdf1d8; border-color: #dfa12d; } .red { background: #fbe3e1; border-color: #cb4b41; }
.chip { display: inline-block; border-radius: 4px; padding: 0 .4rem; background: #eceff2; } .card .chip { margin: 0 .2rem .15rem 0; }
.chip.amber { background: #fbdf9f; } .chip.red { background: #f3b5b0; }
table { border-collapse: collapse; width: 100%; } tbody tr { border-bottom: 1px solid #e6e9ed; }
td, th { padding: .2rem .5rem; text-align: left; vertical-align: top; font-weight: 500; } td { font-weight: 400; }
thead th { background: #fff; box-shadow: inset 0 -2px #1c2430; position: sticky; top: 0; }
.chart { overflow-x: auto; } .scrolled { max-height: 38rem; overflow-y: auto; border-bottom: 1px solid #b4bcc6; }
.chart table { table-layout: fixed; font-variant-numeric: tabular-nums; } .chart td, .chart th { vertical-align: middle; }
.number, .chart td { text-align: right; white-space: nowrap; padding-left: 0; } .zero { color: #b3261e; }
.bar { display: flex; min-width: 2px; height: 1.1em; border-radius: 3px; overflow: hidden; }
.key { display: inline-block; width: .7em; height: .7em; border-radius: 2px; margin-right: .3em; }
.compact { font-size: 12px; line-height: 1.2; } .compact td, .compact tbody th { padding-top: 1px; padding-bottom: 1px; }
svg { display: block; width: 100%; height: 6rem; margin: .6rem 0; border-bottom: 1px solid #b4bcc6; }
.row { display: flex; gap: .4rem 1rem; align-items: center; padding: .35rem 0; border-bottom: 1px solid #e6e9ed; break-inside: avoid; }
.row .label { flex: 0 0 11rem; } .strip, .cards { display: flex; flex-wrap: wrap; align-items: flex-start; gap: .4rem; }
.picture { width: 6.2rem; height: 6.2rem; object-fit: contain; background: #f1f3f5; border-radius: 4px; display: block; }
span.picture { display: grid; place-items: center; } .removed .picture { opacity: .4; }
.cards { gap: .8rem; margin-top: .8rem; } .card .strip { gap: .7rem; margin-top: .3rem; }
.card { border: 1px solid #d5dae0; border-top-width: 4px; border-radius: 6px; padding: .5rem .6rem; break-inside: avoid; }
.card.amber { border-color: #dfa12d; background: none; } .card.red { border-color: #cb4b41; background: none; }
figure { margin: 0; width: 6.8rem; line-height: 1.25; } figcaption { margin-top: .3rem; } .private figure { width: 15rem; max-width: 100%; }
@media (max-width: 45rem) { .chart { font-size: 12px; } .row { display: block; } .row .picture { width: 4.6rem; height: 4.6rem; } }
@media print { body { margin: 0; max-width: none; } .scrolled { max-height: none; } thead th { position: static; } }
"""


def to_html(report: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    """Return the findings as a standalone page.

    Args:
        report: What ``report.json`` holds.
        pictures: Thumbnails, PNG or JPEG, by path; those of `paths_shown` are enough, and some may be missing. Empty where
            the images are private: the page then shows counts and paths only.
    """
    private = not pictures and bool(paths_shown(report))
    colours = "".join(
        f".s{number} {{ background: {colour}; fill: {colour}; }}\n"
        for number, colour in enumerate(_colours(report["splits"]))
    )
    sections = [
        _head(report, private),
        _refused(report),
        _tiles(report),
        _baseline(report),
        _warnings(report),
        _chart(report),
    ]
    sections += [
        _samples(report, pictures),
        _duplicates(report, pictures),
        _leaks(report, pictures),
        _left_out(report),
    ]
    return (
        '<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width, initial-scale=1">'
        f"<title>{_text(report['name'])}: data report</title><style>{_STYLE}{colours}</style>\n"
        f"<body{' class=private' if private else ''}>\n{''.join(section for section in sections if section)}</body></html>\n"
    )


def paths_shown(report: Mapping[str, Any]) -> set[str]:
    """Return the paths of which `to_html` shows a picture: no other thumbnail need be made."""
    samples = {path for name in _sampled(report)[:NUM_CLASSES] for path in report["samples"][name]}
    groups = [*report["duplicates"]["groups"][:NUM_GROUPS], *_leaking(report)[:NUM_GROUPS]]
    return samples | {image["path"] for group in groups for image in _varied(group["images"])}


def _text(value: object) -> str:
    # A file name that is no UTF-8 holds lone surrogates, with which the page could not be written.
    return html.escape(make_visible(str(value)))


def _chip(value: object, colour: str = "") -> str:
    return f"<span class='chip {colour}'>{_text(value)}</span>"


def _num(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _more(shown: int, total: int, what: str, listed: int | None = None) -> str:
    where = (
        " in report.json"
        if listed in (None, total)
        else f", of which report.json lists {max((listed or 0) - shown, 0):,}"
    )
    return f"<p class=quiet>{total - shown:,} more {what}{where}.</p>" if total > shown else ""


def _section(name: str, heading: str, *parts: str) -> str:
    return f"<section id={name}><h2>{heading}</h2>\n" + "\n".join(parts) + "</section>\n"


def _totals(report: Mapping[str, Any]) -> dict[str, int]:
    """Return how many images each class has, the largest first, equally large ones as people look for them."""
    totals = {name: sum(report["counts"][name].values()) for name in report["classes"]}
    return dict(sorted(totals.items(), key=lambda item: (-item[1], natural_key(item[0]))))


def _sampled(report: Mapping[str, Any]) -> list[str]:
    return [name for name in _totals(report) if report["samples"].get(name)]


def _colours(splits: Sequence[str]) -> list[str]:
    return [
        _COLOURS.get(split, f"hsl(207 50% {34 + 44 * number / len(splits):.0f}%)")
        for number, split in enumerate(splits)
    ]


def _head(report: Mapping[str, Any], private: bool) -> str:
    sizes = {
        split: sum(counts.get(split, 0) for counts in report["counts"].values())
        for split in report["splits"]
    }
    splits = ", ".join(f"{_text(split)} ({size:,})" for split, size in sizes.items())
    images, classes = (
        _num(report["num_images"], "image"),
        _num(len(report["classes"]), "class", "classes"),
    )
    digest = f" · digest <code>{_text(report['digest'][:8])}</code>" if report["digest"] else ""
    ignored = ", ".join(
        f"{number:,} {_text(extension or 'without extension')}"
        for extension, number in report["ignored"].items()
    )
    return (
        f"<h1>{_text(report['name'])}</h1><p class=path>{_text(report['source'])}</p>\n"
        f"<p><b>{images}</b> · <b>{classes}</b> · {splits}{digest}</p>\n"
        + (
            f"<p class=quiet>Files passed over, being no images: {ignored}.</p>\n"
            if ignored
            else ""
        )
        + (
            "<p class=quiet>The images are private: this page shows counts and paths only.</p>\n"
            if private
            else ""
        )
    )


def _tile(number: int, what: str, target: str, colour: str, *details: str) -> str:
    lines = "".join(f"<small>{detail}</small>" for detail in details)
    if not number:
        return f"<div class='tile green'><b>0</b>{what}</div>"
    return f"<a class='tile {colour}' href=#{target}><b>{number:,}</b>{what}{lines}</a>"


def _tiles(report: Mapping[str, Any]) -> str:
    copies, conflicts = report["duplicates"], report["duplicates"]["under_two_labels"]
    marks = {"with different labels": conflicts, "across splits": copies["across_splits"]}
    details = [
        _num(copies["num_images"], "image"),
        *(f"{_num(number, 'group')} {mark}" for mark, number in marks.items() if number),
    ]
    tiles = [
        _tile(
            len(report["quarantined"]),
            "left out of training",
            "left-out",
            "amber",
            "unreadable, or copies",
        )
    ]
    if report["policies"]["duplicates"] == "ignore" and not report["num_leaks"]:
        tiles += [
            "<div class='tile grey'><b>–</b>duplicates and leaks<small>not looked for</small></div>"
        ]
    else:
        tiles += [
            _tile(
                copies["num_groups"],
                "groups of duplicates",
                "duplicates",
                "red" if conflicts else "amber",
                *details,
            )
        ]
        removed = report["policies"]["duplicates"] == "drop"
        detail = "copies removed" if removed else "pairs of the same picture"
        tiles += [
            _tile(
                report["num_leaks"],
                "leaks between splits",
                "leaks",
                "amber" if removed else "red",
                detail,
            )
        ]
    return f"<div class=tiles>{''.join(tiles)}{_tile(len(report['warnings']), 'warnings', 'warnings', 'amber')}</div>\n"


def _refused(report: Mapping[str, Any]) -> str:
    return (
        f"<ul class=red><li>Not prepared: {_text(report['refused'])}.</li></ul>\n"
        if report.get("refused")
        else ""
    )


def _baseline(report: Mapping[str, Any]) -> str:
    if "majority" not in report:
        return ""
    return (
        f"<p>The baseline to beat is a validation accuracy of <b>{report['majority']['share']:.1%}</b>: "
        f"that of always answering {_chip(report['majority']['class'])}, the most frequent class in training.</p>\n"
    )


def _warnings(report: Mapping[str, Any]) -> str:
    warnings = report["warnings"]
    items = "".join(f"<li>{_text(warning)}</li>" for warning in warnings[:NUM_WARNINGS])
    more = _more(NUM_WARNINGS, len(warnings), "warnings")
    return (
        _section("warnings", "Warnings", f"<ul class=amber>{items}</ul>", more) if warnings else ""
    )


def _chart(report: Mapping[str, Any]) -> str:
    totals, splits = _totals(report), report["splits"]
    (first, most), *_, (last, fewest) = totals.items()
    span = (
        f"From {_num(fewest, 'image')} ({_chip(last)}) to {most:,} ({_chip(first)})."
        if fewest < most
        else f"{most:,} of every class."
    )
    head = "".join(
        f"<th class=number><i class='key s{number}'></i>{_text(split)}</th>"
        for number, split in enumerate(splits)
    )
    # Fixed columns: a long class name would squeeze the bars out.
    columns = "<col style=width:24%><col>" + "<col style=width:4.6em>" * (len(splits) + 1)
    rows = "\n".join(
        _chart_row(name, [report["counts"][name].get(split, 0) for split in splits], most)
        for name in totals
    )
    head = f"<thead><tr><th>class</th><th></th>{head}<th class=number>all</th></tr></thead>"
    size = f"{'compact' if len(totals) > _COMPACT else ''} {'scrolled' if len(totals) > _SCROLLED else ''}"
    table = f"<table style=min-width:{22 + 5 * len(splits)}em>{columns}{head}<tbody>\n{rows}</tbody></table>"
    chart = f"<div class='chart {size}'>{table}</div>"
    return _section(
        "counts",
        "Images per class",
        f"<p>{span}</p>",
        _profile(report) if len(totals) > _COMPACT else "",
        chart,
    )


def _chart_row(name: str, counts: Sequence[int], most: int) -> str:
    parts = "".join(
        f"<i class=s{number} style=flex-grow:{count}></i>"
        for number, count in enumerate(counts)
        if count
    )
    numbers = "".join(
        f"<td class='{'' if count else 'zero'}'>{count:,}</td>" for count in [*counts, sum(counts)]
    )
    width = 100 * sum(counts) / max(most, 1)
    return f"<tr><th class=name>{_text(name)}</th><td><div class=bar style=width:{width:.2f}%>{parts}</div></td>{numbers}</tr>"


def _profile(report: Mapping[str, Any]) -> str:
    """Return the outline of all bars, the largest class left: how long the tail is, where the bars fill pages."""
    totals, splits = _totals(report), report["splits"]
    most = max(totals.values())
    layers = []
    for number in reversed(range(len(splits))):
        heights = [
            sum(report["counts"][name].get(split, 0) for split in splits[: number + 1])
            for name in totals
        ]
        steps = " ".join(
            f"{x},{most - height} {x + 1},{most - height}" for x, height in enumerate(heights)
        )
        layers.append(f"<polygon class=s{number} points='0,{most} {steps} {len(totals)},{most}'/>")
    return f"<svg viewBox='0 0 {len(totals)} {most}' preserveAspectRatio=none aria-hidden=true>{''.join(layers)}</svg>"


def _picture(path: str, pictures: Mapping[str, bytes]) -> str:
    if path not in pictures:
        return "<span class='picture quiet'>no picture</span>" if pictures else ""
    kind = "png" if pictures[path].startswith(b"\x89PNG") else "jpeg"
    source = f"data:image/{kind};base64,{base64.b64encode(pictures[path]).decode()}"
    return f'<img class=picture src="{source}" alt="{_text(path)}" title="{_text(path)}">'


def _samples(report: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    names, totals, rows = _sampled(report), _totals(report), ""
    for name in names[:NUM_CLASSES]:
        strip = "".join(_picture(path, pictures) for path in report["samples"][name])
        label = f"<span class=name>{_text(name)}</span><small>{_num(totals[name], 'image')}</small>"
        rows += (
            f"<div class=row><div class=label>{label}</div><div class=strip>{strip}</div></div>\n"
        )
    more = _more(NUM_CLASSES, len(names), "classes have their samples")
    return _section("samples", "Samples", rows, more) if rows and pictures else ""


def _varied(images: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the images of a group to show, one of each label and split first: the reason of a mark is not cut off."""
    first = {(image["label"], image["split"]): image for image in reversed(images)}
    return sorted(images, key=lambda image: image is not first[image["label"], image["split"]])[
        :NUM_IMAGES
    ]


def _card(group: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    images = group["images"]
    conflict = "red" if len({image["label"] for image in images}) > 1 else ""
    crossing = "amber" if len({image["split"] for image in images if image["kept"]}) > 1 else ""
    marks = (_chip("different labels", conflict) if conflict else "") + (
        _chip("across splits", crossing) if crossing else ""
    )
    figures = "".join(
        _figure(image, conflict, crossing if image["kept"] else "", pictures)
        for image in _varied(images)
    )
    hidden = (
        f"<small>and {len(images) - NUM_IMAGES:,} more</small>" if len(images) > NUM_IMAGES else ""
    )
    return f"<div class='card {conflict or crossing}'>{_chip(group['kind'])}{marks}<div class=strip>{figures}</div>{hidden}</div>\n"


def _figure(
    image: Mapping[str, Any], conflict: str, crossing: str, pictures: Mapping[str, bytes]
) -> str:
    label, split = (
        _chip(image[key], colour) if image[key] else ""
        for key, colour in (("label", conflict), ("split", crossing))
    )
    state, removed = ("", "") if image["kept"] else ("class=removed", _chip("removed"))
    caption = f"<figcaption>{label}{split}{removed}<div class=path>{_text(image['path'])}</div></figcaption>"
    return f"<figure {state}>{_picture(image['path'], pictures)}{caption}</figure>"


def _cards(
    groups: Sequence[Mapping[str, Any]], total: int, what: str, pictures: Mapping[str, bytes]
) -> str:
    cards = "".join(_card(group, pictures) for group in groups[:NUM_GROUPS])
    return f"<div class=cards>{cards}</div>" + _more(NUM_GROUPS, total, what, listed=len(groups))


def _duplicates(report: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    copies, policy, distance = (
        report["duplicates"],
        report["policies"]["duplicates"],
        report["policies"]["near_distance"],
    )
    meaning = _COPIES[policy]
    if policy == "group" and report["num_leaks"]:
        meaning = "Copies stay on one side of a split, but splits that came with the images are kept: see the leaks below."
    wrong = (
        " Where equal images have different labels, at least one is wrong."
        if copies["under_two_labels"]
        else ""
    )
    near = (
        f" Near: hashes at most {distance} of 64 bits apart, which may be different pictures after all."
        if distance >= 0
        else ""
    )
    texts = f"<p>{meaning}{wrong}</p><p class=quiet>Equal: the same pixels.{near}</p>"
    cards = _cards(copies["groups"], copies["num_groups"], "groups", pictures)
    return _section("duplicates", "Duplicates", texts, cards) if copies["num_groups"] else ""


def _leaking(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the leaks as groups of two."""

    def image(leak: Mapping[str, Any], side: str) -> dict[str, Any]:
        return {
            "path": leak[side],
            "label": "",
            "split": leak[f"{side}_split"],
            "kept": side == "second" or not leak["removed"],
        }

    return [
        {"kind": leak["kind"], "images": [image(leak, "first"), image(leak, "second")]}
        for leak in report["leaks"]
    ]


def _leaks(report: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    dropped = report["policies"]["duplicates"] == "drop"
    outcome = (
        "the copies outside test were removed" if dropped else "a score on them rewards memory"
    )
    text = (
        f"<p>These pictures {'were' if dropped else 'are'} on both sides of a split: {outcome}.</p>"
    )
    cards = _cards(_leaking(report), report["num_leaks"], "pairs", pictures)
    return _section("leaks", "Leaks", text, cards) if report["num_leaks"] else ""


def _left_out(report: Mapping[str, Any]) -> str:
    files = report["quarantined"]
    kinds = Counter(
        file["reason"].partition(":")[0].partition(" of ")[0] for file in files
    ).most_common(6)
    chips = " ".join(_chip(f"{kind}: {number:,}") for kind, number in kinds)
    lines = [
        "".join(f"<td>{_text(file[key])}</td>" for key in ("path", "label", "reason"))
        for file in files[:NUM_LEFT_OUT]
    ]
    rows = "\n".join(f"<tr>{line}</tr>" for line in lines)
    table = f"<table><thead><tr><th>path</th><th>label</th><th>reason</th></tr></thead><tbody>\n{rows}</tbody></table>"
    texts = f"<p>Unreadable images {_UNREADABLE[report['policies']['bad']]}.</p><p>{chips}</p>"
    more = _more(NUM_LEFT_OUT, len(files), "files")
    return _section("left-out", "Left out of training", texts, table, more) if files else ""
