"""Set KILLED again on a launched run that was interrupted.

``mlflow run`` sets its run to FAILED whenever its command ends with an error, even if the run has
ended already (its check compares the name of the status with numbers). So after an interruption
this file is started as a process of its own. It waits until the launcher has ended, and sets KILLED
again.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

_LONGEST_WAIT = 60.0
_PROJECT = Path(__file__).resolve().parents[2]


def restore_killed_later(run_id: str) -> None:
    """Start the process that sets a run to KILLED when the launcher, our parent, has ended."""
    # The process starts in the user's folder. With -P it imports this package, even if something in
    # that folder is called pipeline.
    paths = [str(_PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])]
    subprocess.Popen(
        [sys.executable, "-P", "-m", __name__, run_id, str(os.getppid())],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _is_process_alive(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def main(run_id: str, launcher: int) -> None:
    """Wait for the launcher's end, then correct the status, unless the run has been continued."""
    from mlflow import MlflowClient

    from pipeline.tracking import names
    from pipeline.tracking.workspace import tracking_uri

    started = time.monotonic()
    while _is_process_alive(launcher) and time.monotonic() - started < _LONGEST_WAIT:
        time.sleep(0.1)
    client = MlflowClient(tracking_uri())
    run = client.get_run(run_id)
    if run.info.status == "FAILED" and run.data.tags.get(names.STATE) == names.INTERRUPTED:
        client.set_terminated(run_id, "KILLED", run.info.end_time)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
