"""The use of processor, memory, disk, network and GPUs while a run works, as metrics of the run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

PREFIX = "system/"
Write = Callable[[Mapping[str, float], int], None]
"""A function that logs metrics of one step."""


class SystemMetrics(SystemMetricsMonitor):
    """MLflow's monitor, which hands on what it measures instead of asking a server by itself.

    It measures in a thread of its own, every ten seconds. If logging fails, it stops: the run goes
    on without these metrics.

    Args:
        write: The function that logs.
        first_step: Step of the first measurement.
    """

    def __init__(self, write: Write, first_step: int) -> None:
        super().__init__("")  # type: ignore[no-untyped-call]
        self._write = write
        self._logging_step = first_step

    def monitor(self) -> None:
        """Measure and log until `finish` is called."""
        while True:
            for _ in range(self.samples_before_logging):
                self.collect_metrics()  # type: ignore[no-untyped-call]
                if self._shutdown_event.wait(self.sampling_interval):
                    return
            values = self.aggregate_metrics()  # type: ignore[no-untyped-call]
            named = {f"{PREFIX}{name}": value for name, value in values.items()}
            try:
                self._write(named, self._logging_step)
            except Exception as error:
                logging.getLogger(__name__).warning("system metrics are not logged: %s", error)
                return
            self._logging_step += 1
            for monitor in self.monitors:
                monitor.clear_metrics()  # type: ignore[no-untyped-call]

    def finish(self) -> None:
        """Stop measuring."""
        self._shutdown_event.set()
        if self._process is not None:
            self._process.join()
