"""What logits are divided by before the softmax, so that confidence is nearer to accuracy.

It stands apart from `pipeline.scores.calibration`, which finds it: a served model needs no more
than this.
"""

from __future__ import annotations

LOWEST, HIGHEST = 0.25, 10.0
"""The range of temperatures.

On a few validation images the best one may lie anywhere; beyond these it says more about the few
images than about the network.
"""


def valid_temperature(value: object) -> float | None:
    """Return a temperature that was read from somewhere, or None if it cannot be one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if LOWEST <= value <= HIGHEST else None
