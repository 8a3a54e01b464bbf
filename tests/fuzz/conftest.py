"""The server that requests are sent to."""

from __future__ import annotations

from tests.tracking.test_served_model import model, server

__all__ = ["model", "server"]
