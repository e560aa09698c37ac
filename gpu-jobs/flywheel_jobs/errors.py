"""The ways a job may fail; the GPU backend decides on the exit code whether to try again, and how.

Each failure is of one of four kinds (what its starter should do) and has a reason and an exit code of its own. The table is
that of the job contract (`src/domain/contracts/jobs.ts`, JOB_FAILURES); a test compares the two. Messages say what happened,
what was kept and what to do next.
"""

from __future__ import annotations

import errno
from typing import ClassVar, Literal

ErrorKind = Literal["bad-input", "out-of-memory", "infrastructure", "interrupted"]


class JobError(Exception):
    """Base of every failure a job reports by itself."""

    kind: ClassVar[ErrorKind] = "infrastructure"
    reason: ClassVar[str] = "infrastructure"
    exit_code: ClassVar[int] = 71


class BadInput(JobError):
    """The specification or the data is wrong: never tried again."""

    kind: ClassVar[ErrorKind] = "bad-input"
    reason: ClassVar[str] = "bad-input"
    exit_code: ClassVar[int] = 65


class OutOfMemory(JobError):
    """Out of memory: tried again with every batch halved (`batchDivisor` of the spec)."""

    kind: ClassVar[ErrorKind] = "out-of-memory"
    reason: ClassVar[str] = "out-of-memory"
    exit_code: ClassVar[int] = 76


class Infrastructure(JobError):
    """Store out of reach, an unreadable object, a fault of the job itself: may be tried again elsewhere."""

    kind: ClassVar[ErrorKind] = "infrastructure"
    reason: ClassVar[str] = "infrastructure"
    exit_code: ClassVar[int] = 71


class Interrupted(JobError):
    """SIGTERM came: what was done is kept; the same spec in the same folder goes on from there."""

    kind: ClassVar[ErrorKind] = "interrupted"
    reason: ClassVar[str] = "interrupted"
    exit_code: ClassVar[int] = 75


class WrongSpec(BadInput):
    """The spec cannot be read, is of another version, or does not fit the contract."""

    reason: ClassVar[str] = "wrong-spec"
    exit_code: ClassVar[int] = 64


class UnknownBackbone(BadInput):
    """timm knows no model of that name."""

    reason: ClassVar[str] = "unknown-backbone"
    exit_code: ClassVar[int] = 66


class MissingWeights(BadInput):
    """No file or package holds the weights, or what it holds does not fit the backbone."""

    reason: ClassVar[str] = "missing-weights"
    exit_code: ClassVar[int] = 67


class CorruptImage(BadInput):
    """An image cannot be decoded."""

    reason: ClassVar[str] = "corrupt-image"
    exit_code: ClassVar[int] = 68


class EmptySplit(BadInput):
    """A manifest, or one of the pools it should fill, holds nothing."""

    reason: ClassVar[str] = "empty-split"
    exit_code: ClassVar[int] = 69


class OneClass(BadInput):
    """There is nothing to tell apart: one of the two classes is missing."""

    reason: ClassVar[str] = "one-class"
    exit_code: ClassVar[int] = 70


class NotFinite(BadInput):
    """A loss or a result is NaN or infinite: the same start would end there again."""

    reason: ClassVar[str] = "not-finite"
    exit_code: ClassVar[int] = 72


class DiskFull(Infrastructure):
    """No space left where the job writes."""

    reason: ClassVar[str] = "disk-full"
    exit_code: ClassVar[int] = 73


class WeightsOutOfReach(Infrastructure):
    """The hub that holds the weights does not answer from here."""

    reason: ClassVar[str] = "weights-out-of-reach"
    exit_code: ClassVar[int] = 74


class ParityLost(BadInput):
    """The exported graph and PyTorch disagree by more than the tolerance."""

    reason: ClassVar[str] = "parity-lost"
    exit_code: ClassVar[int] = 77


class LossAboveLimit(BadInput):
    """The precision asked for loses more than its limit allows."""

    reason: ClassVar[str] = "loss-above-limit"
    exit_code: ClassVar[int] = 78


class OneImageTooBig(OutOfMemory):
    """Out of memory even at batch 1: only a bigger machine, a smaller backbone or a lower resolution helps."""

    reason: ClassVar[str] = "one-image-too-big"
    exit_code: ClassVar[int] = 79


FAILURES: tuple[type[JobError], ...] = (
    BadInput,
    OutOfMemory,
    Infrastructure,
    Interrupted,
    WrongSpec,
    UnknownBackbone,
    MissingWeights,
    CorruptImage,
    EmptySplit,
    OneClass,
    NotFinite,
    DiskFull,
    WeightsOutOfReach,
    ParityLost,
    LossAboveLimit,
    OneImageTooBig,
)
"""every failure of the contract, each with its own exit code"""


def is_full(error: OSError) -> bool:
    """Whether the error says that the disk, the quota on it, or the limit on a file's size is used up."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def not_written(what: object, error: OSError) -> Infrastructure:
    """The failure of a write that the disk refused: DiskFull or Infrastructure."""
    if is_full(error):
        return DiskFull(
            f"the disk is full: {what} could not be written ({error}). Nothing of it was kept, finished parts were. "
            "Free space (the cache folder may be deleted at any time) or raise the limit, then start the job again."
        )
    return Infrastructure(
        f"could not write {what}: {error}. Nothing of it was kept, finished parts were. Correct the permissions, then start the job again."
    )


def says_out_of_memory(error: BaseException) -> bool:
    """Whether an exception of any library tells of memory that could not be had."""
    signs = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory", "bad allocation", "bad_alloc")
    text = f"{type(error).__name__}: {error}".lower()
    return isinstance(error, MemoryError) or any(sign in text for sign in (*signs, "failed to allocate memory", "outofmemory"))
