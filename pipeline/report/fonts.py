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
"""Unicode's categories of characters that shape or order what stands beside them.

Joiners and marks of direction are among them.
"""
_VARIATIONS = range(0xFE00, 0xFE10)
_EVERYTHING = ("lastresort", "adobeblank")
"""Fonts that claim to have every character, and draw a placeholder."""
_EAST_ASIAN = {"HIRAGANA": "JP", "KATAKANA": "JP", "HANGUL": "KR", "CJK": "SC"}
"""The form of Han characters that goes with a script; fonts for several of them name it last."""

_fonts: dict[str, str | None] = {}
"""Family that has a character which the usual font lacks; None: no installed font has it."""


def drawable(texts: Sequence[str]) -> list[str]:
    """Return texts as a figure can show them.

    Nothing in them is read as a formula. A character that no installed font has is replaced by
    `INSTEAD`, and is said on the console once.
    """
    # The texts are composed: a file system may have taken apart letters that fonts have as one.
    whole = [make_visible(unicodedata.normalize("NFC", text)) for text in texts]
    _search(_lacking(whole))
    return [_escape("".join(map(_shown, text))) for text in whole]


def _escape(text: str) -> str:
    r"""Return a text that matplotlib draws as it is: ``$`` begins a formula.

    A legend leaves out labels that begin with an underscore.
    """
    text = text.replace("$", r"\$")
    return f"\u200a{text}" if text.startswith("_") else text


def is_drawable(text: str) -> bool:
    """Whether installed fonts have all characters of a text."""
    composed = unicodedata.normalize("NFC", text)
    _search(_lacking([composed]))
    return all(_has_font(character) or _is_invisible(character) for character in composed)


def families(texts: Iterable[str]) -> list[str]:
    """Return the families of fonts in which texts are drawn.

    These are the usual ones, then those that have the characters which the usual ones lack.
    """
    lacking = _lacking(texts)
    _search(lacking)
    found = [_fonts[character] for character in sorted(lacking)]
    further = dict.fromkeys(filter(None, found))
    return [*matplotlib.rcParams["font.family"], *further]


def cover(figure: Figure) -> None:
    """Give the texts of a figure the fonts that have their characters.

    Characters that no font should draw are written out.
    """
    texts = [found for found in figure.findobj(Text) if isinstance(found, Text)]
    for text in texts:
        if not text.get_text().isprintable():
            text.set_text("\n".join(map(make_visible, text.get_text().split("\n"))))
    uncovered = [text for text in texts if _lacking([text.get_text()])]
    if uncovered:
        found = families(text.get_text() for text in uncovered)
        for text in uncovered:
            text.set_fontfamily(found)


def _lacking(texts: Iterable[str]) -> set[str]:
    """Return the characters of texts that the usual font lacks."""
    lacking = set()
    for text in texts:
        if text.isascii():
            continue
        for character in text:
            if ord(character) not in _read_usual_characters() and not character.isspace():
                lacking.add(character)
    return lacking


@lru_cache
def _read_usual_characters() -> frozenset[int]:
    return _read_characters(font_manager.findfont(FontProperties()))


@lru_cache(maxsize=8)
def _read_characters(file: str) -> frozenset[int]:
    return frozenset(FT2Font(file).get_charmap())


def _shown(character: str) -> str:
    if _has_font(character):
        return character
    return "" if _is_invisible(character) else INSTEAD


def _has_font(character: str) -> bool:
    return _fonts.get(character, "") is not None


def _is_invisible(character: str) -> bool:
    return unicodedata.category(character) in _INVISIBLE or ord(character) in _VARIATIONS


def _search(characters: set[str]) -> None:
    """Find a font for each character that was not looked for before; say which have none."""
    missing = characters - _fonts.keys()
    if not missing:
        return
    _search_in(_by_preference(font_manager.fontManager.ttflist, missing), missing)
    if missing:
        # Matplotlib has made its list at its first use on this machine. Fonts may have been
        # installed since, because we said so.
        _search_in(_by_preference(_add_new_fonts(), missing), missing)
    _fonts.update(dict.fromkeys(missing))
    visible = sorted(character for character in missing if not _is_invisible(character))
    if visible:
        _say_missing(visible)


def _search_in(fonts: Iterable[FontEntry], missing: set[str]) -> None:
    """Note which of the missing characters some fonts have, and remove them from `missing`."""
    seen = set()
    for font in fonts:
        if not missing:
            return
        # The faces of one file have the same characters.
        if font.fname in seen:
            continue
        seen.add(font.fname)
        characters = _read_characters(font.fname)
        found = {character for character in missing if ord(character) in characters}
        _fonts.update(dict.fromkeys(found, font.name))
        missing -= found


def _by_preference(fonts: Iterable[FontEntry], missing: set[str]) -> list[FontEntry]:
    """Return the fonts in the order in which they are looked at.

    First come those that are in use already, then upright and regular ones without serifs.
    """
    used = set(_fonts.values())
    form = _han_form(missing)

    def key(font: FontEntry) -> tuple[bool | str | int, ...]:
        name = font.name.lower()
        weight = abs(int(font.weight) - 400) if str(font.weight).isdigit() else 0
        return (
            font.name not in used,
            font.style != "normal",
            font.variant != "normal",
            weight,
            "serif" in name,
            "mono" in name,
            not font.name.endswith(form),
            name,
        )

    return sorted((font for font in fonts if not _claims_everything(font)), key=key)


def _claims_everything(font: FontEntry) -> bool:
    return font.name.lower().replace(" ", "").lstrip(".").startswith(_EVERYTHING)


def _han_form(characters: set[str]) -> str:
    scripts = {_script(character) for character in characters}
    for script, form in _EAST_ASIAN.items():
        if script in scripts:
            return form
    return ""


def _add_new_fonts() -> list[FontEntry]:
    """Add fonts that are not in matplotlib's list to it; return them."""
    known = {font.fname for font in font_manager.fontManager.ttflist}
    count = len(font_manager.fontManager.ttflist)
    for file in font_manager.findSystemFonts():
        if file not in known:
            # Fonts of bitmaps, such as coloured emoji, and damaged ones are refused in many ways.
            with contextlib.suppress(Exception):
                font_manager.fontManager.addfont(file)
    return list(font_manager.fontManager.ttflist[count:])


def _say_missing(characters: Sequence[str]) -> None:
    shown = ", ".join(characters[:5])
    if len(characters) > 5:
        shown += ", …"
    packages = ", ".join(sorted({_package(character) for character in characters}))
    say(
        f"figures show {INSTEAD} for {len(characters)} characters that no installed font has: "
        f"{shown}; install a font that has them (Debian: {packages})"
    )


def _script(character: str) -> str:
    return unicodedata.name(character, "").partition(" ")[0]


def _package(character: str) -> str:
    """Return the name of the Debian package whose fonts are most likely to have a character."""
    if _script(character) in _EAST_ASIAN:
        return "fonts-noto-cjk"
    if unicodedata.category(character) in ("So", "Sk"):
        return "fonts-symbola"
    return "fonts-noto-core"
