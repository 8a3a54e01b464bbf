"""After an interruption under ``mlflow run``: put the status right that the launcher overwrites.

``mlflow run`` sets the run it has made to FAILED whenever its command ends with an error, even where the run is
ended already (its check compares the status' name with numbers). So this is started as a process of its own,
waits until the launcher is gone, and sets KILLED again.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

_LONGEST_WAIT = 60.0


def restore_killed_later(run_id: str) -> None:
    """Start the process that sets `run_id` to KILLED once the launcher, our parent process, has ended."""
    arguments = [sys.executable, "-m", __name__, run_id, str(os.getppid())]
    subprocess.Popen(arguments, start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _is_alive(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def main(run_id: str, launcher: int) -> None:
    """Wait for the launcher's end, then correct the status, unless the run is being continued."""
    from mlflow import MlflowClient

    from pipeline.tracking import names
    from pipeline.tracking.store import tracking_uri

    started = time.monotonic()
    while _is_alive(launcher) and time.monotonic() - started < _LONGEST_WAIT:
        time.sleep(0.1)
    client = MlflowClient(tracking_uri())
    run = client.get_run(run_id)
    if run.info.status == "FAILED" and run.data.tags.get(names.STATE) == names.INTERRUPTED:
        client.set_terminated(run_id, "KILLED", run.info.end_time)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
