"""Texts in any script: which fonts draw them, and what is shown where no installed font does."""

from __future__ import annotations

import contextlib
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache

import matplotlib
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.font_manager import FontEntry, FontProperties
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text

from pipeline.report.console import say
from pipeline.safe_text import make_visible

INSTEAD = "□"
"""Stands for a character that no installed font has."""

_INVISIBLE = ("Cf", "Cc")
"""Unicode's categories of characters that shape or order what stands beside them, such as joiners and marks of direction."""
_VARIATIONS = range(0xFE00, 0xFE10)
_EVERYTHING = ("lastresort", "adobeblank")
"""Fonts that claim to have every character, and draw a placeholder."""
_EAST_ASIAN = {"HIRAGANA": "JP", "KATAKANA": "JP", "HANGUL": "KR", "CJK": "SC"}
"""The form of Han characters that goes with a script; fonts for several of them name it last."""

_fonts: dict[str, str | None] = {}
"""Family that has a character which the usual font lacks; None: no installed font has it."""


def drawable(texts: Sequence[str]) -> list[str]:
    """Return texts as a figure can show them: nothing in them is read as a formula, and what no installed font has is a box.

    What no font has is said once.
    """
    # Composed, since a file system may have taken letters apart that fonts have as one.
    whole = [make_visible(unicodedata.normalize("NFC", text)) for text in texts]
    _search({character for text in whole for character in _lacking(text)})
    return ["".join(map(_shown, text)).replace("$", r"\$") for text in whole]


def is_drawable(text: str) -> bool:
    """Whether installed fonts have all characters of a text."""
    composed = unicodedata.normalize("NFC", text)
    _search(_lacking(composed))
    return all(
        _fonts.get(character, "") is not None or _is_invisible(character) for character in composed
    )


def families(texts: Iterable[str]) -> list[str]:
    """Return the families of fonts in which texts are drawn: the usual ones, then those that have what is lacking."""
    lacking = {character for text in texts for character in _lacking(text)}
    _search(lacking)
    further = dict.fromkeys(
        family for character in sorted(lacking) if (family := _fonts[character])
    )
    return [*matplotlib.rcParams["font.family"], *further]


def cover(figure: Figure) -> None:
    """Give the texts of a figure the fonts that have their characters, and write out those that no font should draw."""
    for text in figure.findobj(Text):
        if isinstance(text, Text) and not text.get_text().isprintable():
            text.set_text("\n".join(map(make_visible, text.get_text().split("\n"))))
    texts = [
        text
        for text in figure.findobj(Text)
        if isinstance(text, Text) and not text.get_text().isascii()
    ]
    if lacking := [text for text in texts if _lacking(text.get_text())]:
        found = families(text.get_text() for text in lacking)
        for text in lacking:
            text.set_fontfamily(found)


def _lacking(text: str) -> set[str]:
    """Return the characters of a text that the usual font lacks."""
    return (
        set()
        if text.isascii()
        else {
            character
            for character in text
            if ord(character) not in _usual() and not character.isspace()
        }
    )


@lru_cache
def _usual() -> frozenset[int]:
    return _characters(font_manager.findfont(FontProperties()))


@lru_cache(maxsize=8)
def _characters(file: str) -> frozenset[int]:
    return frozenset(FT2Font(file).get_charmap())


def _shown(character: str) -> str:
    if _fonts.get(character, "") is not None:
        return character
    return "" if _is_invisible(character) else INSTEAD


def _is_invisible(character: str) -> bool:
    return unicodedata.category(character) in _INVISIBLE or ord(character) in _VARIATIONS


def _search(characters: set[str]) -> None:
    """Find a font for each character that was not looked for before; say which have none."""
    missing = characters - _fonts.keys()
    if not missing:
        return
    _search_in(_by_preference(font_manager.fontManager.ttflist, missing), missing)
    if missing:
        # Matplotlib's list is from its first use on this machine; fonts may have been installed since, because we said so.
        _search_in(_by_preference(_new_fonts(), missing), missing)
    _fonts.update(dict.fromkeys(missing))
    if visible := sorted(character for character in missing if not _is_invisible(character)):
        shown = ", ".join(visible[:5]) + (", …" if len(visible) > 5 else "")
        packages = ", ".join(sorted({_package(character) for character in visible}))
        say(
            f"figures show {INSTEAD} for {len(visible)} characters that no installed font has: {shown}; "
            f"install a font that has them (Debian: {packages})"
        )


def _search_in(fonts: Iterable[FontEntry], missing: set[str]) -> None:
    """Take over what some fonts have; it is removed from `missing`."""
    seen = set()
    for font in fonts:
        if not missing:
            return
        # The faces of one file have the same characters.
        if font.fname not in seen:
            seen.add(font.fname)
            found = {
                character for character in missing if ord(character) in _characters(font.fname)
            }
            _fonts.update(dict.fromkeys(found, font.name))
            missing -= found


def _by_preference(fonts: Iterable[FontEntry], missing: set[str]) -> list[FontEntry]:
    """Return the fonts in the order in which they are looked at: those in use already, upright, regular and without serifs first."""
    used = set(_fonts.values())
    form = next(
        (
            form
            for script, form in _EAST_ASIAN.items()
            if any(_script(character) == script for character in missing)
        ),
        "",
    )

    def key(font: FontEntry) -> tuple[bool | str | int, ...]:
        name = font.name.lower()
        unusual = (
            font.style != "normal",
            font.variant != "normal",
            abs(int(font.weight) - 400) if str(font.weight).isdigit() else 0,
        )
        return (
            font.name not in used,
            *unusual,
            "serif" in name,
            "mono" in name,
            not font.name.endswith(form),
            name,
        )

    return sorted(
        (
            font
            for font in fonts
            if not font.name.lower().replace(" ", "").lstrip(".").startswith(_EVERYTHING)
        ),
        key=key,
    )


def _new_fonts() -> list[FontEntry]:
    known = {font.fname for font in font_manager.fontManager.ttflist}
    count = len(font_manager.fontManager.ttflist)
    for file in font_manager.findSystemFonts():
        if file not in known:
            # Fonts of bitmaps, as of coloured emoji, and damaged ones are refused in many ways.
            with contextlib.suppress(Exception):
                font_manager.fontManager.addfont(file)
    return list(font_manager.fontManager.ttflist[count:])


def _script(character: str) -> str:
    return unicodedata.name(character, "").partition(" ")[0]


def _package(character: str) -> str:
    if _script(character) in _EAST_ASIAN:
        return "fonts-noto-cjk"
    return "fonts-symbola" if unicodedata.category(character) in ("So", "Sk") else "fonts-noto-core"
