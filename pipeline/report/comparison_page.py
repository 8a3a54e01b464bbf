"""The comparison of a study as one page that needs nothing else: text, table and pictures."""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from pipeline.report.format import NEXT
from pipeline.safe_text import make_visible

# A backslash at the end of a line joins the line with the next one.
_STYLE = """
:root { color-scheme: light; -webkit-print-color-adjust: exact; print-color-adjust: exact; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 84rem; \
padding: 0 1rem; color: #1c2430; background: #fff; }
h1 { margin: 0 0 1rem; overflow-wrap: anywhere; } \
h2 { margin: 2.2rem 0 .4rem; font-size: 1.25rem; break-after: avoid; }
p { margin: .4rem 0; } .quiet, figcaption { color: #5f6976; font-size: .85rem; }
.conclusion { background: #eaf4ee; border-left: 6px solid #6fae88; border-radius: 6px; \
padding: .7rem 1rem; font-size: 1.05rem; overflow-wrap: anywhere; }
.conclusion p:first-child { font-weight: 600; }
code { font: .85em/1.5 ui-monospace, monospace; background: #fff; border-radius: 4px; \
padding: .1rem .3rem; overflow-wrap: anywhere; }
nav a { margin-right: 1rem; display: inline-block; } a { color: #2f6391; }
.scrolled { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; border-bottom: 2px solid #1c2430; background: #fff; white-space: nowrap; }
th button { all: unset; cursor: pointer; font-weight: 600; } \
th button:focus-visible { outline: 2px solid #2f6391; }
th button::after { content: " ↕"; color: #b4bcc6; } \
th[aria-sort=ascending] button::after { content: " ↑"; color: #1c2430; } \
th[aria-sort=descending] button::after { content: " ↓"; color: #1c2430; }
th, td { padding: .35rem .6rem; vertical-align: top; } td { white-space: nowrap; }
td.text { white-space: normal; min-width: 9rem; overflow-wrap: anywhere; }
td.number { text-align: right; }
tbody tr { border-bottom: 1px solid #dfe3e8; break-inside: avoid; }
tbody tr.leader { background: #e8f3ec; font-weight: 600; }
tbody tr.alike { background: #f4f9f6; } tbody tr.unranked { color: #77808c; }
img { max-width: 100%; height: auto; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(34rem, 1fr)); \
gap: 1.2rem; } .small { grid-template-columns: repeat(auto-fill, minmax(10rem, 1fr)); }
figure { margin: .6rem 0; break-inside: avoid; } figcaption { overflow-wrap: anywhere; }
dt { font-weight: 600; margin-top: .7rem; overflow-wrap: anywhere; } dd { margin: 0 0 0 1.2rem; }
@media (max-width: 85rem) { td.text { min-width: 7rem; } th, td { padding: .35rem .4rem; } }
@media (max-width: 45rem) { body { margin: 1rem auto; } .pictures { display: block; } \
th, td { padding: .3rem .4rem; font-size: .85rem; } }
@media print { body { margin: 0; max-width: none; font-size: 11px; } nav { display: none; } \
.scrolled { overflow: visible; } td, th { white-space: normal; padding: .15rem .3rem; } \
td.text { min-width: 0; } h2 + p { break-after: avoid; } \
th button::after { content: ""; } }
"""

_SCRIPT = """
"use strict";
const units = { min: 60, h: 3600, M: 1e6 };
function key(cell) {
  const match = cell.textContent.replace(/,/g, "").match(/^(-?[0-9.]+)\\s*([A-Za-z]*)/);
  return match ? Number(match[1]) * (units[match[2]] || 1) : null;
}
function order(a, b) {
  const [x, y] = [key(a), key(b)];
  if (x !== null && y !== null) return x - y;
  if (x !== null || y !== null) return x !== null ? -1 : 1;
  return a.textContent.localeCompare(b.textContent);
}
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const rows = [...table.tBodies[0].rows];
    rows.sort((a, b) => (down ? -1 : 1) * order(a.cells[column], b.cells[column]));
    table.tBodies[0].append(...rows);
  }));
}
"""
_TEXTS = ("run", "settings", "notes", "image", "label", "answer")
_CLASS_OF_VERDICT = {"leader": "leader", "not told apart": "alike"}


@dataclass(frozen=True)
class Picture:
    """A picture of the page.

    Attributes:
        content: The PNG or JPEG.
        caption: What stands below it, and is read out in its place.
    """

    content: bytes
    caption: str


@dataclass(frozen=True)
class Part:
    """A part of the page.

    Attributes:
        title: Its heading.
        text: A sentence below the heading, or empty.
        pictures: Its pictures; several stand side by side.
        entries: What is said of something, by its name.
        are_small: Whether many pictures stand in one line.
    """

    title: str
    text: str = ""
    pictures: Sequence[Picture] = ()
    entries: Mapping[str, Sequence[str]] | None = None
    are_small: bool = False


def to_html(
    title: str,
    conclusion: Sequence[str],
    notes: Sequence[str],
    table: pd.DataFrame,
    parts: Sequence[Part] = (),
) -> str:
    """Return the comparison as a standalone page.

    Args:
        title: Heading of the page.
        conclusion: Sentences at its top.
        notes: What is to be known beside them, below the table.
        table: Result of `pipeline.report.people_table.table_for_people`.
        parts: What follows.
    """
    digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    # Names of runs and classes are foreign texts. Should one of them become a part of the page all
    # the same, it can load nothing and run nothing.
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'"
    )
    shown = [part for part in parts if part.pictures or part.entries]
    links = "".join(
        f'<a href="#part{number}">{_text(part.title)}</a>' for number, part in enumerate(shown)
    )
    sentences = "".join(f"<p>{_sentence(sentence)}</p>" for sentence in conclusion)
    box = f"<div class=conclusion>{sentences}</div>\n" if sentences else ""
    quiet = "".join(f"<p class=quiet>{_text(note)}</p>\n" for note in notes)
    rest = "".join(_part(number, part) for number, part in enumerate(shown))
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        f'<meta http-equiv=Content-Security-Policy content="{policy}">'
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        f"<title>{_text(title)}</title><style>{_STYLE}</style>\n"
        f"<h1>{_text(title)}</h1>\n{box}"
        f"<nav><p>{links}</p></nav>\n"
        f"{_table(table)}{quiet}{rest}"
        f"<script>{_SCRIPT}</script></html>\n"
    )


def _text(value: Any) -> str:
    return html.escape(make_visible(str(value)))


def _sentence(sentence: str) -> str:
    """Return a sentence, with the command that it ends with set apart."""
    before, command, after = sentence.partition("python -m pipeline ")
    if not command or not sentence.startswith(NEXT):
        # Any other sentence may name what anybody has written.
        return _text(sentence)
    typed, about, rest = (command + after).partition(" (about ")
    return f"{_text(before)}<code>{_text(typed)}</code>{_text(about + rest)}"


def _table(table: pd.DataFrame) -> str:
    heads = "".join(f"<th><button>{_text(name)}</button></th>" for name in table.columns)
    body = ""
    for number, row in enumerate(table.to_dict("records")):
        is_leader = number == 0 and "settings" in row
        mark = _CLASS_OF_VERDICT.get(str(row.get("verdict")), "leader" if is_leader else "")
        if not str(row.get("#", "0")).isdigit():
            mark = "unranked"
        cells = ""
        for name, value in row.items():
            kind = "text" if name in _TEXTS else "word" if name == "verdict" else "number"
            cells += f"<td class={kind}>{_text(value)}</td>"
        body += f"<tr class='{mark}'>{cells}</tr>\n"
    return (
        "<div class=scrolled><table class=sortable>"
        f"<thead><tr>{heads}</tr></thead><tbody>\n{body}</tbody></table></div>\n"
    )


def _part(number: int, part: Part) -> str:
    text = f"<p>{_text(part.text)}</p>" if part.text else ""
    pictures = "".join(_figure(picture) for picture in part.pictures)
    if len(part.pictures) > 1:
        size = " small" if part.are_small else ""
        pictures = f"<div class='pictures{size}'>{pictures}</div>"
    entries = ""
    for name, said in (part.entries or {}).items():
        entries += f"<dt>{_text(name)}</dt>"
        entries += "".join(f"<dd>{_text(one)}</dd>" for one in said)
    if entries:
        entries = f"<dl>{entries}</dl>"
    return f"<h2 id=part{number}>{_text(part.title)}</h2>{text}{pictures}{entries}\n"


def _figure(picture: Picture) -> str:
    kind = "png" if picture.content.startswith(b"\x89PNG") else "jpeg"
    data = base64.b64encode(picture.content).decode()
    caption = _text(picture.caption)
    return (
        f'<figure><img src="data:image/{kind};base64,{data}" alt="{caption}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )
