"""The four ways a job may fail; the GPU backend decides on the exit code whether to try again, and how.

Messages say what happened, what was kept and what to do next. The codes are those of the job contract
(`src/domain/contracts/jobs.ts`, JOB_EXIT).
"""

from __future__ import annotations

from typing import ClassVar, Literal

ErrorKind = Literal["bad-input", "out-of-memory", "infrastructure", "interrupted"]


class JobError(Exception):
    """Base of every failure a job reports by itself."""

    kind: ClassVar[ErrorKind] = "infrastructure"
    exit_code: ClassVar[int] = 71


class BadInput(JobError):
    """The specification or the data is wrong: never tried again."""

    kind: ClassVar[ErrorKind] = "bad-input"
    exit_code: ClassVar[int] = 65


class OutOfMemory(JobError):
    """Out of memory even at the smallest batch the job tries itself: only a bigger machine helps."""

    kind: ClassVar[ErrorKind] = "out-of-memory"
    exit_code: ClassVar[int] = 76


class Infrastructure(JobError):
    """Disk full, store out of reach and the like: may be tried again elsewhere."""

    kind: ClassVar[ErrorKind] = "infrastructure"
    exit_code: ClassVar[int] = 71


class Interrupted(JobError):
    """SIGTERM came: what was done is kept; the same spec in the same folder goes on from there."""

    kind: ClassVar[ErrorKind] = "interrupted"
    exit_code: ClassVar[int] = 75
