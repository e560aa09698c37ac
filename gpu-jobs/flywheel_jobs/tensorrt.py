"""Which execution provider a graph is measured on, and TensorRT's engines.

An engine fits one GPU model, one TensorRT version and one graph, so it is no part of a bundle: it lies in the cache, in a folder
named by these three, from where the miner of the same machine may take it. A machine without TensorRT simply measures on what it has.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np

from . import trtexec
from .backbones import onnx_session
from .errors import Infrastructure
from .machine import cuda_visible
from .objects import sha256
from .quantise import Graph

TENSORRT, CUDA, CPU = "TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"
TRTEXEC = "trtexec"
"""no provider of onnxruntime: TensorRT's own program, see `trtexec.py`"""
WORKSPACE = 2 << 30
"""bytes that TensorRT may use while it looks for the fastest kernels"""
Wish = Literal["auto", "never", "always"]


def choose(built_in: Sequence[str], gpu: bool, wish: Wish, program: bool = False) -> str:
    """The provider that is measured. Raises Infrastructure when TensorRT is asked for and not there.

    `built_in`: what this onnxruntime was compiled with, which says nothing of the machine. `program`: `trtexec` is on PATH. It serves
    where TensorRT is asked for by name; `auto` measures on what the miner serves with, which is onnxruntime.
    """
    if wish != "never" and gpu and TENSORRT in built_in:
        return TENSORRT
    if wish == "always":
        if gpu and program:
            return TRTEXEC
        lacking = "this onnxruntime has no TensorRT provider, and trtexec is not on PATH"
        what = lacking if gpu else "this machine has no visible NVIDIA GPU"
        raise Infrastructure(
            f"`tensorrt: always`, but {what}. Nothing was exported. Use a machine with a GPU and onnxruntime-gpu with TensorRT, "
            "or set `export.tensorrt` to auto."
        )
    return CUDA if gpu and CUDA in built_in else CPU


def provider_here(wish: Wish) -> str:
    """`choose` for this machine."""
    import onnxruntime

    return choose(onnxruntime.get_available_providers(), cuda_visible(), wish, trtexec.found() is not None)


def gpu_name() -> str:
    """Model and driver of the first GPU, as nvidia-smi says. Raises Infrastructure when it does not answer."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader", "--id=0"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        raise Infrastructure(f"nvidia-smi does not tell the GPU's name: {error}. An engine fits one GPU model only.") from error


def engine_folder(cache: Path, graph: Graph, gpu: str, version: str) -> Path:
    """Where the engines of a graph lie for a GPU model and a version of onnxruntime (which fixes TensorRT's) or of trtexec."""
    key = sha256("\n".join([sha256(graph.model), sha256(graph.data or b""), gpu, version]).encode())[:40]
    return cache / "tensorrt" / key


def engine_options(folder: Path, size: int, precision: str, batch: int) -> dict[str, str]:
    """Options of the provider. Shapes are those the miner sends: 1 to `batch` images of the fixed size; one engine serves them all."""
    shape = f"3x{size}x{size}"
    return {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(folder.parent),
        "trt_max_workspace_size": str(WORKSPACE),
        # an fp16 graph may be computed in fp16; an fp32 graph must not lose what its precision promises
        "trt_fp16_enable": "1" if precision == "fp16" else "0",
        "trt_int8_enable": "1" if precision == "int8" else "0",
        "trt_profile_min_shapes": f"input:1x{shape}",
        "trt_profile_opt_shapes": f"input:1x{shape}",
        "trt_profile_max_shapes": f"input:{batch}x{shape}",
    }


def open_session(graph: Graph, provider: str, threads: int, scratch: Path, cache: Path, size: int, precision: str, batch: int = 8) -> Any:
    """A session on one provider. The first on TensorRT builds the engine, minutes for a large model; later ones find it in the cache.

    Raises Infrastructure when the provider falls back to another: figures of the wrong one would be worse than none.
    """
    if provider == CPU and graph.data is None:
        return onnx_session(graph.model, threads)
    if provider == TRTEXEC:
        program = trtexec.found()
        if program is None:
            raise Infrastructure("trtexec is not on PATH any more. Nothing was exported. Start the job again when it is.")
        folder = engine_folder(cache, graph, gpu_name(), f"trtexec {trtexec.version(program)}")
        return trtexec.Engine(program, graph, precision, size, batch, folder, scratch)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    path = graph.write(scratch, f"{sha256(graph.model)[:16]}-{precision}.onnx")

    def opened(first: Any, rest: list[str]) -> Any:
        session = onnxruntime.InferenceSession(str(path), options, providers=[first, *rest])
        if session.get_providers()[0] != provider:
            raise Infrastructure(
                f"onnxruntime was asked for {provider} and opened {session.get_providers()[0]} instead "
                "(a library is missing or does not fit the driver?). Nothing was exported. "
                "Mend the installation, or set `export.tensorrt` to never."
            )
        return session

    if provider != TENSORRT:
        return opened(provider, [CPU] if provider != CPU else [])
    with published(engine_folder(cache, graph, gpu_name(), onnxruntime.__version__)) as folder:
        session = opened((TENSORRT, engine_options(folder, size, precision, batch)), [CUDA, CPU])
        session.run(["logit"], {"input": np.zeros((1, 3, size, size), np.float32)})  # whatever is built late is built now
        return session


@contextmanager
def published(folder: Path) -> Iterator[Path]:
    """The folder itself where it is there, else one beside it that gets its name at the end: half an engine is never found."""
    if folder.is_dir():
        yield folder
        return
    part = folder.with_name(f".part-{os.getpid()}-{folder.name}")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        if not folder.is_dir():
            part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
