"""TensorRT through its own program `trtexec`, for machines whose onnxruntime has no TensorRT provider.

An engine that trtexec builds is no engine of onnxruntime's, so that the miner does not serve it: it is for whoever serves with TensorRT
itself. It passes the same check against PyTorch. Options are those of TensorRT 8.6 to 10.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .backbones import Floats
from .errors import Infrastructure
from .objects import sha256
from .quantise import Graph

PROGRAM = "trtexec"
WORKSPACE_MB = 2048
BUILD_SECONDS = 3600
RUN_SECONDS = 600
ROUNDS = 25
TOLD = 1500
"""characters of the program's last words that an error repeats"""


def found() -> str | None:
    """Where the program is; None when it is not on PATH."""
    return shutil.which(PROGRAM)


def version(program: str) -> str:
    """TensorRT's version as the program prints it. Raises Infrastructure when it does not: an engine fits one version only."""
    said = _run([program, "--help"], 60, "tell its version")
    match = re.search(r"TensorRT[. ]v?\S*\s*\[?TensorRT v(\d+)|TensorRT v(\d+)", said)
    if match is None:
        raise Infrastructure(f"{program} does not tell its version. Nothing was exported. Is it TensorRT's own program?")
    return match.group(1) or match.group(2)


def precision_flags(precision: str) -> list[str]:
    """An fp16 graph may be computed in fp16 and a quantised one in int8; TF32 would lose what fp32 promises."""
    return {"fp16": ["--fp16"], "int8": ["--int8", "--noTF32"]}.get(precision, ["--noTF32"])


def _run(command: Sequence[str], seconds: float, what: str) -> str:
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=seconds, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Infrastructure(f"{command[0]} could not {what}: {error}. Nothing was exported. Set `export.tensorrt` to never.") from error
    if done.returncode != 0:
        raise Infrastructure(
            f"{command[0]} could not {what}, exit code {done.returncode}: {done.stdout[-TOLD:].strip()}. Nothing was exported. "
            "Mend TensorRT, or set `export.tensorrt` to never."
        )
    return done.stdout


class Engine:
    """An engine with the face of an onnxruntime session: built once, kept in `folder`, asked by a process a call."""

    def __init__(self, program: str, graph: Graph, precision: str, size: int, batch: int, folder: Path, scratch: Path) -> None:
        """Builds the engine unless it is in the folder already; it gets its name when it is whole. Raises Infrastructure."""
        self.batch = batch
        self._program, self._size, self._scratch = program, size, scratch
        self._plan = folder / f"trtexec-{precision}.plan"
        if self._plan.is_file():
            return
        folder.mkdir(parents=True, exist_ok=True)
        source = graph.write(scratch, f"{sha256(graph.model)[:16]}-{precision}.onnx")
        part = folder / f".part-{os.getpid()}-{self._plan.name}"
        try:
            shapes = [f"--{which}Shapes=input:{n}x3x{size}x{size}" for which, n in (("min", 1), ("opt", 1), ("max", batch))]
            options = [*shapes, *precision_flags(precision), f"--memPoolSize=workspace:{WORKSPACE_MB}", "--skipInference"]
            _run([program, f"--onnx={source}", f"--saveEngine={part}", *options], BUILD_SECONDS, f"build an engine of {source.name}")
            if not part.is_file():
                raise Infrastructure(f"{program} built no engine of {source.name}, and did not say why. Nothing was exported.")
            with part.open("rb") as file:
                os.fsync(file.fileno())
            part.replace(self._plan)
        finally:
            part.unlink(missing_ok=True)

    def run(self, _names: Sequence[str], feeds: dict[str, Floats]) -> list[Floats]:
        """Logits [n] of at most `batch` prepared images."""
        x = np.ascontiguousarray(feeds["input"], "<f4")
        given, said = self._scratch / "input.bin", self._scratch / "output.json"
        given.write_bytes(x.tobytes())
        said.unlink(missing_ok=True)
        once = ["--iterations=1", "--warmUp=0", "--duration=0"]
        self._ask([*once, f"--shapes=input:{'x'.join(map(str, x.shape))}", f"--loadInputs=input:{given}", f"--exportOutput={said}"])
        for one in self._read(said):
            if one.get("name") == "logit":
                return [np.asarray(one["values"], np.float32)[: len(x)]]
        raise Infrastructure(f"{self._program} gave no output `logit`. Nothing was exported.")

    def median_ms(self) -> float:
        """Median latency of one image, transfers included, as the program itself measures it."""
        times = self._scratch / "times.json"
        shape = f"--shapes=input:1x3x{self._size}x{self._size}"
        self._ask([f"--iterations={ROUNDS}", "--warmUp=200", "--duration=1", shape, f"--exportTimes={times}"])
        return float(np.median([float(one["latencyMs"]) for one in self._read(times)]))

    def _ask(self, options: Sequence[str]) -> None:
        _run([self._program, f"--loadEngine={self._plan}", *options], RUN_SECONDS, f"run {self._plan.name}")

    def _read(self, file: Path) -> list[dict[str, Any]]:
        try:
            rows = json.loads(file.read_text())
            return [row for row in rows if isinstance(row, dict)]
        except (OSError, ValueError, TypeError) as error:
            raise Infrastructure(f"what {self._program} wrote can not be read: {error}. Nothing was exported.") from error
