"""Smaller number formats of an exported graph: FP16 and INT8, float32 at input and output whichever it is.

Pure functions on graphs: nothing here measures what a format costs (`variants.py` does).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .backbones import Floats

LIMIT = 2_000_000_000
"""bytes of weights above which they go into a file beside the graph: protobuf ends at 2 GiB"""
CONVOLUTIONAL = ("Conv", "Gemm", "MatMul", "Add", "Clip", "Relu", "AveragePool", "GlobalAveragePool")
"""quantised in convolutional networks: activations stay int8 from one convolution to the next"""
ATTENTIVE = ("Conv", "Gemm", "MatMul")
"""quantised in transformers: normalisation, softmax and the residual stream keep their range in float"""


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


def to_int8(graph: Graph, name: str, batches: Iterable[Floats], limit: int = LIMIT) -> Graph:
    """Static quantisation, QDQ: activations uint8 with ranges seen on the calibration batches, weights int8 per channel.

    Weights use 7 bits (`reduce_range`): on x86 without VNNI the 8-bit product of both saturates, so that the answers would depend
    on the miner's processor. The first layer, which sees the raw pixels, and whatever turns the last features into the logit stay
    in float32.
    """
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(_Reader, CalibrationDataReader):  # type: ignore[misc, unused-ignore]
        pass

    big = graph.data is not None
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        source, prepared, target = graph.write(folder, "float.onnx"), folder / "prepared.onnx", folder / "int8.onnx"
        # folds batch normalisation into convolutions, so that it does not stand between two quantised layers
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True, save_as_external_data=big)
        model = _plain_load(prepared)
        quantize_static(
            str(prepared),
            str(target),
            Reader(batches),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(operators(model)),
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=sensitive(model),
            use_external_data_format=big,
            calibrate_method=CalibrationMethod.MinMax,
            # attention multiplies two activations: only products with weights are quantised
            extra_options={"MatMulConstBOnly": True},
        )
        import onnx

        return pack(_plain(onnx.load(str(target))), name, limit)


def operators(model: Any) -> tuple[str, ...]:
    """Which operators are quantised: transformers (with a softmax) keep more in float than convolutional networks."""
    kinds = {node.op_type for node in model.graph.node}
    return ATTENTIVE if kinds & {"Softmax", "LayerNormalization"} else CONVOLUTIONAL


def sensitive(model: Any) -> list[str]:
    """Names of the nodes that stay in float32: the first layer with weights, and everything from the last layer with weights on."""
    weighted = [index for index, node in enumerate(model.graph.node) if node.op_type in ("Conv", "Gemm", "MatMul")]
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
