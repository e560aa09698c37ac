"""TensorBoard event files, written without importing torch or TensorFlow: `tensorboard --logdir <workDir>/tensorboard`."""

from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import Any


class Board:
    """Scalars of one member. Nothing is imported or written before the first scalar; a run that goes on adds a file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writer: Any = None

    def scalars(self, step: int, **values: float) -> None:
        """One event for each value; names use `/` as `__`."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        if self._writer is None:
            from tensorboard.summary.writer.event_file_writer import EventFileWriter

            self.folder.mkdir(parents=True, exist_ok=True)
            self._writer = EventFileWriter(str(self.folder))
        parts = [Summary.Value(tag=name.replace("__", "/"), simple_value=value) for name, value in values.items()]
        self._writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=parts)))

    def close(self) -> list[Path]:
        """Flushes; the event files of this and earlier attempts, oldest first."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        return sorted(self.folder.glob("events.out.tfevents.*")) if self.folder.is_dir() else []


_LENGTH, _CHECKS = 8, 4 + 4


def whole_records(data: bytes) -> bytes:
    """The whole records of an event file (TFRecord: length, its check, the event, its check): a killed run may have cut off the last."""
    end = 0
    while end + _LENGTH <= len(data):
        (length,) = struct.unpack_from("<Q", data, end)
        after = end + _LENGTH + length + _CHECKS
        if after > len(data):
            break
        end = after
    return data[:end]
