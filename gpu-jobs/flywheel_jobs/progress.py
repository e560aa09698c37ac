"""Progress as JSON lines, to standard output and to `<workDir>/progress.jsonl`, and the place where SIGTERM is noticed.

Lines are throttled; the first and the last of a phase are always written. A closed standard output never stops a job:
the file holds everything.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

from .errors import Interrupted, not_written

_stop = threading.Event()


def _on_sigterm(_signal: int, _frame: FrameType | None) -> None:
    _stop.set()


def catch_sigterm() -> None:
    """From now on SIGTERM asks the job to stop at its next step instead of killing it."""
    signal.signal(signal.SIGTERM, _on_sigterm)


class Progress:
    """Reports steps and raises Interrupted at the first one after SIGTERM."""

    def __init__(self, work_dir: Path | None = None, every_seconds: float = 0.5, quiet: bool = False) -> None:
        """`work_dir` None: no file. `quiet`: nothing on standard output (tests)."""
        self._path = None if work_dir is None else Path(work_dir) / "progress.jsonl"
        self._every = every_seconds
        self._quiet = quiet
        self._last_time = float("-inf")
        self._last_phase: str | None = None
        self._begun = False

    @property
    def stopping(self) -> bool:
        """Whether SIGTERM arrived. Long steps look here to write a checkpoint."""
        return _stop.is_set()

    def check(self) -> None:
        """Raises Interrupted when SIGTERM arrived."""
        if self.stopping:
            raise Interrupted(
                "SIGTERM arrived; finished parts and the last checkpoint were kept. Start the same spec in the same folder to go on."
            )

    def step(
        self, phase: str, done: float, total: float, unit: str, message: str | None = None, loss: float | None = None, **more: float
    ) -> None:
        """Reports that `done` of `total` `unit`s of the phase are finished, then raises Interrupted if SIGTERM arrived.

        `more`: the other numbers of JobProgress (`src/domain/contracts/jobs.ts`), by their names there.
        """
        now = time.monotonic()
        if phase != self._last_phase or done >= total or self.stopping or now - self._last_time >= self._every:
            self._last_time, self._last_phase = now, phase
            line: dict[str, Any] = {"phase": phase, "done": done, "total": total, "unit": unit}
            if message is not None:
                line["message"] = message
            if loss is not None:
                line["loss"] = loss
            line |= more
            self._write(json.dumps(line, separators=(",", ":"), ensure_ascii=False) + "\n")
        self.check()

    def _write(self, text: str) -> None:
        if not self._quiet:
            # the reader may be gone (a lost connection): the file below still has every line
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.write(text)
                sys.stdout.flush()
        if self._path is not None:
            try:
                with self._path.open("ab+") as file:
                    # a killed attempt may have cut off its last line: ours begins on one of its own
                    if not self._begun and file.tell() > 0:
                        file.seek(-1, os.SEEK_END)
                        text = text if file.read(1) == b"\n" else "\n" + text
                    self._begun = True
                    file.write(text.encode())
            except OSError as error:
                raise not_written(self._path, error) from error
