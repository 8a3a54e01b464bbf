"""Benchmark of the memory of a served model under hostile requests.

    python -m tests.benchmarks.serving --figure memory.png

Requests of a few kilobytes, each of which would take a server without limits hundreds of megabytes,
and among them good ones, go to a real scoring server. The benchmark draws its memory, and exits 0
if after the last request it is at most 1.1 times that after the tenth. A thousand requests take
about six minutes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from matplotlib.figure import Figure

from tests.benchmarks.measure import Results
from tests.model_server import GOOD, hostile, scoring_server, text, train_model

MOST = 1.1
"""Times the memory after the tenth request."""
GOOD_EVERY = 50


def memory_by_request(count: int) -> list[float]:
    """Return the resident megabytes of a server before the first request and after each.

    A good image is answered all the while.
    """
    requests = hostile()
    with (
        tempfile.TemporaryDirectory() as folder,
        scoring_server(train_model(Path(folder)), {}) as server,
    ):
        megabytes = [server.memory() / 1e6]
        for number in range(count):
            server.post(requests[number % len(requests)])
            megabytes.append(server.memory() / 1e6)
            if number % GOOD_EVERY == 0 and not server.ask(text(GOOD))[0]["label"]:
                raise RuntimeError("a good image is not answered")
        return megabytes


def draw(megabytes: list[float], file: Path) -> None:
    """Draw the memory, and the bound."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(megabytes, label="after each request", linewidth=1)
    axes.axhline(
        MOST * megabytes[10],
        linestyle="--",
        color="tab:red",
        label=f"{MOST} times that after the tenth",
    )
    axes.set(
        xlabel="hostile requests",
        ylabel="memory of the server in MB",
        ylim=(0, 1.2 * max(megabytes)),
    )
    axes.set_title("Memory of a served model", loc="left")
    axes.legend(loc="lower right")
    figure.savefig(file, dpi=100)


def main() -> int:
    """Print the table; return the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--figure", type=Path, help="PNG to draw")
    given = parser.parse_args()
    results = Results("Memory of a served model under hostile requests")
    megabytes = memory_by_request(max(given.requests, 11))
    ratio = megabytes[-1] / megabytes[10]
    results.add(
        f"after {len(megabytes) - 1:,} requests; against after ten",
        f"{megabytes[-1]:.0f} MB",
        f"{megabytes[10]:.0f} MB",
        (
            f"{ratio:.2f} times, at most {MOST}; before the first {megabytes[0]:.0f} MB, at most "
            f"{max(megabytes):.0f} MB"
        ),
        ratio <= MOST,
    )
    if given.figure:
        draw(megabytes, given.figure)
    return results.conclude()


if __name__ == "__main__":
    sys.exit(main())
