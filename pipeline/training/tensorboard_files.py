"""TensorBoard's event files of a training that goes on.

What the training does again must not be in them twice.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

from pipeline.files import write_whole


def drop_events(folder: Path, is_kept: Callable[[str, int], bool]) -> None:
    """Drop events from the event files of a folder; the files keep their names.

    A record that is cut off is dropped too. TensorBoard's own way is an event that says from which
    step on all events before it are void. It knows one count of steps only.

    Args:
        folder: Folder of the event files; it need not exist.
        is_kept: Called with tag and step of each event; returns whether it stays.
    """
    files = sorted(folder.glob("*.tfevents.*"))
    if not files:
        return
    # Imported here: only a training that goes on must wait for these modules.
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    for file in files:
        content = io.BytesIO()
        records = RecordWriter(content)
        for record in RawEventFileLoader(str(file)).Load():
            event = Event.FromString(record)
            if all(is_kept(value.tag, event.step) for value in event.summary.value):
                records.write(record)
        if len(content.getvalue()) != file.stat().st_size:
            write_whole(file, content.getvalue(), durable=True)
