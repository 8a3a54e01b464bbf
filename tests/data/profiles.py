"""Colour profiles made by hand, by the layout of ICC.1:2001.

They are matrix profiles, which say where three colours lie and how levels rise.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_D65_TO_D50 = np.array(
    [
        [1.0478112, 0.0228866, -0.0501270],
        [0.0295424, 0.9904844, -0.0170491],
        [-0.0092345, 0.0150436, 0.7521316],
    ]
)
"""Bradford's adaptation, as profiles need it."""
_D65 = (0.3127, 0.3290)
SRGB = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
ADOBE_RGB = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06))
DISPLAY_P3 = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))


def linear_srgb(levels: Floats) -> Floats:
    """Return light from sRGB's levels, both 0 to 1 (IEC 61966-2-1)."""
    return np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)


def levels_srgb(light: Floats) -> Floats:
    """Return sRGB's levels from light."""
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * np.abs(light) ** (1 / 2.4) - 0.055)


def power(levels: Floats, gamma: float) -> Floats:
    """Return levels to the power of gamma."""
    return np.maximum(levels, 0) ** gamma


def _xyz(x: float, y: float) -> Floats:
    return np.array([x / y, 1, (1 - x - y) / y])


def matrix(primaries: tuple[tuple[float, float], ...]) -> Floats:
    """Return the matrix from linear colours to XYZ under D65.

    The primaries are given by their chromaticities.
    """
    columns = np.stack([_xyz(*place) for place in primaries], axis=1)
    return columns * np.linalg.solve(columns, _xyz(*_D65))


def rgb_profile(
    primaries: tuple[tuple[float, float], ...], linear: Callable[[Floats], Floats]
) -> bytes:
    """Return an ICC profile of colours that lie at `primaries`.

    Their levels become light by `linear`.
    """
    adapted = _D65_TO_D50 @ matrix(primaries)
    curve = _curve(linear)
    colours = {
        f"{name}XYZ".encode(): _place(adapted[:, number]) for number, name in enumerate("rgb")
    }
    return _profile(b"RGB ", {**colours, **{f"{name}TRC".encode(): curve for name in "rgb"}})


def grey_profile(gamma: float) -> bytes:
    """Return an ICC profile of grey levels that become light by a power."""
    return _profile(b"GRAY", {b"kTRC": _curve(partial(power, gamma=gamma))})


def srgb_as(
    levels: NDArray[np.uint8], primaries: tuple[tuple[float, float], ...], gamma: float
) -> NDArray[np.uint8]:
    """Return an sRGB picture's pixels (height, width, 3) as another space of colours writes them.

    The levels of that space are a power of light.
    """
    light = linear_srgb(levels / 255) @ (np.linalg.inv(matrix(primaries)) @ matrix(SRGB)).T
    return (power(light, 1 / gamma) * 255).round().clip(0, 255).astype(np.uint8)


def _curve(linear: Callable[[Floats], Floats]) -> bytes:
    values = (linear(np.linspace(0, 1, 1024)) * 65535).round().astype(">u2")
    return b"curv\0\0\0\0" + struct.pack(">I", len(values)) + values.tobytes()


def _place(xyz: Floats) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in xyz))


def _profile(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    texts = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(78),
        b"cprt": b"text\0\0\0\0none\0",
    }
    white = {b"wtpt": _place(np.array([0.9642, 1.0, 0.8249]))}
    offset, table, body = 128 + 4 + 12 * (len(tags) + 3), b"", b""
    for name, content in {**texts, **white, **tags}.items():
        padded = content + bytes(-len(content) % 4)
        table += struct.pack(">4sII", name, offset + len(body), len(content))
        body += padded
    size = offset + len(body)
    header = struct.pack(
        ">I4sI4s4s4s12s4s", size, bytes(4), 0x02400000, b"mntr", space, b"XYZ ", bytes(12), b"acsp"
    )
    header = header.ljust(68, b"\0") + struct.pack(">3i", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags) + 3) + table + body
