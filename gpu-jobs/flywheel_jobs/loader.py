"""Batches of augmented pixels for a fine-tune: decoded and augmented on the fly, by worker processes where there are cores.

Pictures and their order follow from the plan and the seed alone: the number of workers, a restart in the middle and the time of
day change nothing. Only undecoded images are read from the store; a bounded number of decoded ones is kept in memory.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .augment import Augment
from .backbones import Preprocess
from .errors import OutOfMemory
from .objects import FileObjects
from .pictures import decode
from .sampling import Plan, Shown

if TYPE_CHECKING:
    import torch

PICTURE_BYTES = 256_000_000
"""decoded pictures kept by each process"""
MAX_WORKERS = 8


class Pictures:
    """Decoded pictures by digest, the oldest dropped when there are too many bytes."""

    def __init__(self, objects: FileObjects, limit: int = PICTURE_BYTES) -> None:
        self._objects, self._limit, self._bytes = objects, limit, 0
        self._kept: dict[str, Image.Image] = {}

    def __call__(self, digest: str) -> Image.Image:
        """Raises CorruptImage for what is no image."""
        found = self._kept.get(digest)
        if found is None:
            found = decode(self._objects.get(digest), digest)
            self._bytes += found.width * found.height * 3
            self._kept[digest] = found
            while self._bytes > self._limit and len(self._kept) > 1:
                old = self._kept.pop(next(iter(self._kept)))
                self._bytes -= old.width * old.height * 3
        return found


class Views:
    """A map-style data set: (epoch, Shown) to pixels [size, size, 3] of the augmented view."""

    def __init__(self, objects: FileObjects, digests: Sequence[str], preprocess: Preprocess, augment: Augment, seed: int) -> None:
        self._pictures = Pictures(objects)
        self._digests, self._preprocess, self._augment, self._seed = digests, preprocess, augment, seed

    def __getitem__(self, key: tuple[int, Shown]) -> NDArray[np.uint8]:
        epoch, shown = key
        rng = np.random.default_rng((self._seed, 3, epoch, shown.index, shown.draw))
        return self._preprocess.pixels(self._augment(self._pictures(self._digests[shown.index]), rng))

    def __len__(self) -> int:
        return len(self._digests)


def schedule(plan: Plan, batch: int, epochs: int, first: int = 0) -> Iterator[list[tuple[int, Shown]]]:
    """Batches of a run from step `first` on; the last batch of an epoch may be smaller."""
    per_epoch = -(-plan.length // batch)
    for epoch in range(first // per_epoch, epochs):
        shown = plan.epoch(epoch)
        for place in range(first % per_epoch if epoch == first // per_epoch else 0, per_epoch):
            yield [(epoch, one) for one in shown[place * batch : (place + 1) * batch]]


def worker_count(asked: int | None, threads: int, divisor: int = 1) -> int:
    """Workers to start: as asked, else the threads less the one that computes. `divisor`: fewer, after memory was short."""
    return (min(max(threads - 1, 0), MAX_WORKERS) if asked is None else asked) // divisor


def batches(
    views: Views, plan: Plan, batch: int, epochs: int, first: int, workers: int, prefetch: int, pin: bool
) -> Iterator[tuple[NDArray[np.int64], torch.Tensor]]:
    """(indices [n], pixels [n, size, size, 3] of 8 bits) from step `first` on. Raises CorruptImage for an image that is none."""
    import torch

    order = _Order(plan, batch, epochs, first)
    keys = iter(order)
    if workers == 0:
        for chunk in keys:
            pixels = torch.from_numpy(np.stack([views[key] for key in chunk]))
            yield _indices(chunk), pixels.pin_memory() if pin else pixels
        return
    loader: Any = torch.utils.data.DataLoader(
        views,  # type: ignore[arg-type]
        batch_sampler=order,
        num_workers=workers,
        prefetch_factor=prefetch,
        pin_memory=pin,
        collate_fn=_collate,
        worker_init_fn=_start_worker,
        # forked: the decoder needs nothing that a fork breaks, and a fresh interpreter would import torch again
        multiprocessing_context="fork",
    )
    for chunk, pixels in zip(keys, _naming_images(loader), strict=True):
        yield _indices(chunk), pixels


class _Order:
    """A sampler of batches that starts in the middle."""

    def __init__(self, plan: Plan, batch: int, epochs: int, first: int) -> None:
        self._plan, self._batch, self._epochs, self._first = plan, batch, epochs, first

    def __iter__(self) -> Iterator[list[tuple[int, Shown]]]:
        return schedule(self._plan, self._batch, self._epochs, self._first)

    def __len__(self) -> int:
        return -(-self._plan.length // self._batch) * self._epochs - self._first


def _indices(chunk: list[tuple[int, Shown]]) -> NDArray[np.int64]:
    return np.array([shown.index for _, shown in chunk], np.int64)


def _collate(pixels: list[NDArray[np.uint8]]) -> torch.Tensor:
    import torch

    return torch.from_numpy(np.stack(pixels))


def _start_worker(_number: int) -> None:
    import cv2

    cv2.setNumThreads(0)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey, args=(os.getppid(),), daemon=True).start()


def _obey(parent: int) -> None:
    """Ends this process at its parent's SIGTERM. One to the whole group is the parent's to answer, which writes a checkpoint first."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def says_worker_died(error: Exception) -> bool:
    """Whether PyTorch says that a decoding process ended by itself."""
    return isinstance(error, RuntimeError) and "DataLoader worker" in str(error)


def worker_died(error: Exception) -> OutOfMemory:
    """That in the job's words: it is what a kernel short of memory, or a container short of /dev/shm, does."""
    told = str(error).splitlines()[0].rstrip(" .")
    return OutOfMemory(
        f"a process that decodes images died ({told}). Memory was short, or in a container shared memory "
        "(`docker run --shm-size 8g`). The last checkpoint was kept; a start with `batchDivisor` has fewer of these processes, "
        "`loader.workers: 0` none."
    )


def _naming_images(loader: Any) -> Iterator[torch.Tensor]:
    """The loader's batches; a job's own error in a worker comes out as itself, without the worker's traceback around it.

    Raises OutOfMemory for a worker that died.
    """
    from .errors import FAILURES, JobError

    try:
        yield from loader
    except JobError as error:
        own = {kind.__name__: kind for kind in FAILURES}[type(error).__name__]
        lines = [line for line in str(error).splitlines() if line.startswith(f"{own.__module__}.{own.__name__}: ")]
        raise own(lines[-1].partition(": ")[2] if lines else str(error)) from None
    except RuntimeError as error:
        if not says_worker_died(error):
            raise
        raise worker_died(error) from error
