"""Smaller number formats of an exported graph: FP16 and INT8, float32 at input and output whichever it is.

Pure functions on graphs: nothing here measures what a format costs (`variants.py` does).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .backbones import Floats
from .metrics import Array

LIMIT = 2_000_000_000
"""bytes of weights above which they go into a file beside the graph: protobuf ends at 2 GiB"""
CONVOLUTIONAL = ("Conv", "Gemm", "MatMul", "Add", "Clip", "Relu", "AveragePool", "GlobalAveragePool")
"""quantised in convolutional networks: activations stay int8 from one convolution to the next"""
ATTENTIVE = ("Conv", "Gemm", "MatMul")
"""quantised in transformers: normalisation, softmax and the residual stream keep their range in float"""
WEIGHTED = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True)
class Graph:
    """An ONNX graph as files: the model, and its weights where they do not fit into it."""

    model: bytes
    data: bytes | None = None
    data_name: str = ""
    """name of the file beside the graph that the graph asks for"""

    @property
    def bytes(self) -> int:
        """Of both files."""
        return len(self.model) + len(self.data or b"")

    def write(self, folder: Path, name: str) -> Path:
        """Lays the files out as a bundle does, and returns the graph's."""
        path = folder / name
        path.write_bytes(self.model)
        if self.data is not None:
            (folder / self.data_name).write_bytes(self.data)
        return path


def pack(model: Any, name: str, limit: int = LIMIT) -> Graph:
    """An `onnx.ModelProto` as files `<name>` and, when its weights are above the limit, `<name>.data`. Equal models give equal bytes."""
    from onnx.external_data_helper import convert_model_to_external_data, write_external_data_tensors

    total = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if total <= limit:
        return Graph(model.SerializeToString(deterministic=True))
    location = f"{name}.data"
    with tempfile.TemporaryDirectory() as folder:
        convert_model_to_external_data(model, all_tensors_to_one_file=True, location=location, size_threshold=1024)
        written = write_external_data_tensors(model, folder)
        return Graph(written.SerializeToString(deterministic=True), (Path(folder) / location).read_bytes(), location)


def load(graph: Graph) -> Any:
    """The `onnx.ModelProto` with its weights inside."""
    import onnx

    if graph.data is None:
        return onnx.load_from_string(graph.model)
    with tempfile.TemporaryDirectory() as folder:
        return onnx.load(str(graph.write(Path(folder), "graph.onnx")))


def opset(graph: Graph) -> int:
    """Version of the standard operator set."""
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        model = onnx.load(str(graph.write(Path(folder), "graph.onnx")), load_external_data=False)
    return int(next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")))


def to_fp16(graph: Graph, name: str, limit: int = LIMIT) -> Graph:
    """Weights and arithmetic in half precision, input and output in float32. Operators that need range (softmax and the like
    in onnxruntime's own list) stay in float32."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    converted = convert_float_to_float16(load(graph), keep_io_types=True, disable_shape_infer=graph.data is not None)
    return pack(_plain(converted), name, limit)


class _Reader:
    """Calibration images for onnxruntime, a batch at a time."""

    def __init__(self, batches: Iterable[Floats]) -> None:
        self._batches: Iterator[Floats] = iter(batches)

    def get_next(self) -> dict[str, Floats] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"input": batch}


class Quantiser:
    """Static quantisation of one graph, QDQ: activations uint8 with ranges seen on calibration batches, weights int8 per channel.

    Ranges are seen once and serve every choice of nodes that is tried. Weights use 7 bits (`reduce_range`): on x86 without VNNI the
    8-bit product of both saturates, so that the answers would depend on the miner's processor. The first layer, which sees the raw
    pixels, and whatever turns the last features into the logit stay in float32.
    """

    def __init__(self, graph: Graph, name: str, batches: Iterable[Floats], folder: Path, limit: int = LIMIT) -> None:
        """`folder`: scratch that is there as long as this object. The batches are read at the first graph."""
        from onnxruntime.quantization.shape_inference import quant_pre_process

        self._name, self._batches, self._folder, self._limit = name, batches, folder, limit
        self._big = graph.data is not None
        self._prepared = folder / f"{name}.prepared.onnx"
        # folds batch normalisation into convolutions, so that it does not stand between two quantised layers
        quant_pre_process(
            str(graph.write(folder, f"{name}.float.onnx")), str(self._prepared), skip_symbolic_shape=True, save_as_external_data=self._big
        )
        model = _plain_load(self._prepared)
        self._operators, self._sensitive = list(operators(model)), sensitive(model)
        self.nodes: tuple[str, ...] = tuple(
            node.name for node in model.graph.node if node.op_type in WEIGHTED and node.name and node.name not in self._sensitive
        )
        """names of the layers with weights that may be quantised, in the order of the graph"""

    def graph(self, exclude: Iterable[str] = (), only: Iterable[str] = ()) -> Graph:
        """The quantised graph. `exclude`: these stay in float32, too. `only`: nothing but these is quantised."""
        import onnx
        from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

        class Reader(_Reader, CalibrationDataReader):  # type: ignore[misc, unused-ignore]
            pass

        target = self._folder / f"{self._name}.int8.onnx"
        quantize_static(
            str(self._prepared),
            str(target),
            Reader(self._batches),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=self._operators,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=list(only),
            nodes_to_exclude=[*self._sensitive, *exclude],
            use_external_data_format=self._big,
            calibrate_method=CalibrationMethod.MinMax,
            # attention multiplies two activations: only products with weights are quantised
            extra_options={"MatMulConstBOnly": True},
            calibration_cache_path=str(self._folder / f"{self._name}.ranges.json"),
        )
        return pack(_plain(onnx.load(str(target))), self._name, self._limit)


def to_int8(graph: Graph, name: str, batches: Iterable[Floats], limit: int = LIMIT) -> Graph:
    """`Quantiser` with everything quantised that may be."""
    with tempfile.TemporaryDirectory() as scratch:
        return Quantiser(graph, name, batches, Path(scratch), limit).graph()


def match(small: Array, plain: Array) -> tuple[float, float]:
    """Scale and shift that bring the logits of a smaller precision nearest to those of fp32 on the same images (least squares).

    No label is looked at: what the ensemble's calibration was fitted to is the fp32 logits, and so it goes on to hold. The scale stays
    within 20%: more is no rounding error.
    """
    spread = float(((small - small.mean()) ** 2).sum())
    scale = 1.0 if spread < 1e-12 else float(((small - small.mean()) * (plain - plain.mean())).sum()) / spread
    scale = min(max(scale, 0.8), 1.2)
    return scale, float(plain.mean() - scale * small.mean())


def matched(graph: Graph, name: str, scale: float, shift: float, limit: int = LIMIT) -> Graph:
    """The graph with `logit` times scale plus shift as its new `logit`, in float32."""
    from onnx import TensorProto, helper

    model = load(graph)
    body = model.graph
    for node in body.node:
        for index, output in enumerate(node.output):
            if output == "logit":
                node.output[index] = "logit/unmatched"
    for key, value in (("scale", scale), ("shift", shift)):
        body.initializer.append(helper.make_tensor(f"logit/{key}", TensorProto.FLOAT, [], [value]))
    body.node.append(helper.make_node("Mul", ["logit/unmatched", "logit/scale"], ["logit/scaled"], name="logit/mul"))
    body.node.append(helper.make_node("Add", ["logit/scaled", "logit/shift"], ["logit"], name="logit/add"))
    return pack(model, name, limit)


def ranked(nodes: Sequence[str], error: Callable[[str], float], seconds: float) -> list[str]:
    """The nodes, the costliest first. `error`: what quantising this node alone changes. What is not reached in time comes last, in the
    order given: a large network's search ends before its training's next checkpoint would."""
    end = time.monotonic() + seconds
    found: dict[str, float] = {}
    for node in nodes:
        if time.monotonic() > end:
            break
        found[node] = error(node)
    return [*sorted(found, key=lambda node: -found[node]), *(node for node in nodes if node not in found)]


def operators(model: Any) -> tuple[str, ...]:
    """Which operators are quantised: transformers (with a softmax) keep more in float than convolutional networks."""
    kinds = {node.op_type for node in model.graph.node}
    return ATTENTIVE if kinds & {"Softmax", "LayerNormalization"} else CONVOLUTIONAL


def sensitive(model: Any) -> list[str]:
    """Names of the nodes that stay in float32: the first layer with weights, and everything from the last layer with weights on."""
    weighted = [index for index, node in enumerate(model.graph.node) if node.op_type in WEIGHTED]
    if not weighted:
        return []
    kept = {model.graph.node[weighted[0]].name, *(node.name for node in model.graph.node[weighted[-1] :])}
    return sorted(name for name in kept if name)


def _plain_load(path: Path) -> Any:
    import onnx

    return onnx.load(str(path), load_external_data=False)


def _plain(model: Any) -> Any:
    """Takes out what varies between runs and machines."""
    model.producer_name, model.producer_version, model.doc_string = "flywheel_jobs", "", ""
    del model.metadata_props[:]
    return model


def batches_of(tensors: Floats, size: int) -> Iterator[Floats]:
    """Slices of at most `size` rows."""
    for start in range(0, len(tensors), size):
        yield np.ascontiguousarray(tensors[start : start + size])
