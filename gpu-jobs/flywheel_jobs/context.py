"""What every job is handed beside its input."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .objects import FileObjects
from .progress import Progress


@dataclass(frozen=True)
class JobContext:
    """Object store, folders and limits of one job."""

    objects: FileObjects
    """content-addressed store, shared with everything else"""
    cache_dir: Path
    """caches that outlive the job (features); may be deleted at any time"""
    work_dir: Path
    """the job's own folder: checkpoint, progress.jsonl, result.json"""
    threads: int
    """cap on compute threads"""
    progress: Progress
    batch_divisor: int = 1
    """every batch is divided by this: above 1 after an earlier start ran out of memory"""

    def batch(self, wanted: int) -> int:
        """A batch of `wanted` images, divided as the spec says, at least 1."""
        return max(1, wanted // self.batch_divisor)
