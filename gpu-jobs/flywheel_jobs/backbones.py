"""Backbones that compute features: an image's way into the network, and the graph behind it.

On a machine without a CUDA device the features are computed by onnxruntime on a graph exported once and cached, since that is
twice as fast as eager PyTorch on CPUs and spares the light jobs the import of torch and timm (some ten seconds). Weights come from
`weights`, the modules from `nets`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .context import JobContext
from .machine import cuda_visible
from .nets import OPSET, feature_net, to_onnx
from .objects import canonical_json, sha256, write_atomic
from .weights import BackboneRef, create, weights_digest

if TYPE_CHECKING:
    from torch import nn

Computed = Literal["final", "mid"]
"""what is computed and kept of an image; other kinds of features are made of these"""
Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

LAYOUT = 2
"""raise when the definition of the features changes: old caches are then left alone"""


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes an input tensor; `Preprocess` in `src/domain/contracts/common.ts`.

    The centre square starts at floor((width - side) / 2), floor((height - side) / 2) and is resized by Pillow's
    antialiasing bilinear filter; an image that already has the size is taken as it is.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bilinear"
    crop: str = "center-square"

    def to_json(self) -> dict[str, Any]:
        """The contract's object."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Preprocess:
        """From the contract's object."""
        mean, std = (cast("tuple[float, float, float]", tuple(map(float, value[key]))) for key in ("mean", "std"))
        return cls(int(value["size"]), mean, std, value["interpolation"], value["crop"])

    def pixels(self, image: Image.Image) -> Bytes:
        """The cropped and resized image, [size, size, 3] of 8-bit RGB."""
        image = image.convert("RGB")
        width, height = image.size
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        if (width, height) != (side, side):
            image = image.crop((left, top, left + side, top + side))
        if side != self.size:
            filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
            image = image.resize((self.size, self.size), filters[self.interpolation])
        return np.asarray(image, np.uint8)

    def tensor(self, pixels: Bytes) -> Floats:
        """[n, size, size, 3] 8-bit pixels as the network's input [n, 3, size, size]."""
        mean, std = (np.array(value, np.float32)[:, None, None] for value in (self.mean, self.std))
        # in place: as numbers these arrays are large, and fresh memory costs more than the arithmetic
        scaled = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)).astype(np.float32)
        scaled /= np.float32(255)
        scaled -= mean
        scaled /= std
        return scaled


def preprocess_of(ref: BackboneRef, model: nn.Module) -> Preprocess:
    """Size from the member, mean and deviation that the weights were trained with."""
    config = cast("dict[str, Any]", model.pretrained_cfg)
    mean, std = config["mean"], config["std"]
    return Preprocess(ref.resolution, tuple(map(float, mean)), tuple(map(float, std)))  # type: ignore[arg-type]


class Backbone:
    """A backbone ready to compute features; created once a job for each `BackboneRef`."""

    def __init__(self, ref: BackboneRef, ctx: JobContext) -> None:
        """Raises BadInput or Infrastructure when the weights cannot be had."""
        self.ref = ref
        self._ctx = ctx
        self.digest = weights_digest(ref, ctx)
        self.engine: Literal["onnxruntime", "torch-cuda"] = "torch-cuda" if cuda_visible() else "onnxruntime"
        key = sha256(canonical_json([LAYOUT, OPSET, ref.backbone, self.digest, ref.resolution]))[:40]
        self._graph = ctx.cache_dir / "graphs" / f"{key}.onnx"
        self._card = self._graph.with_suffix(".json")
        self._session: Any = None
        card = self._read_card()
        self.preprocess = Preprocess.from_json(card["preprocess"])
        self.dimensions: dict[Computed, int] = card["dimensions"]
        self.space = sha256(canonical_json([LAYOUT, ref.backbone, self.digest, self.preprocess.to_json()]))[:40]
        """names the feature space: equal only when weights and preprocessing are. The engines agree to within rounding (fp32 on
        both), so that a GPU's features serve the box at home"""

    def _read_card(self) -> dict[str, Any]:
        if self._card.is_file() and self._graph.is_file():
            try:
                card = cast("dict[str, Any]", json.loads(self._card.read_text()))
                if sha256(self._graph.read_bytes()) == card["graph"]:
                    return card
            except (ValueError, KeyError):
                pass  # a damaged cache entry is made again
        self._ctx.progress.step("backbone", 0, 1, "graph", f"preparing {self.ref.backbone}")
        import torch

        model = create(self.ref, self._ctx.objects)
        kinds: tuple[Computed, ...] = ("final", "mid")
        net = feature_net(model, kinds)
        with torch.inference_mode():
            outputs = net(torch.zeros(1, 3, self.ref.resolution, self.ref.resolution))
        graph = to_onnx(net, self.ref.resolution, kinds)
        card = {
            "preprocess": preprocess_of(self.ref, model).to_json(),
            "dimensions": {kind: int(out.shape[1]) for kind, out in zip(kinds, outputs, strict=True)},
            "graph": sha256(graph),
        }
        write_atomic(self._graph, graph)
        write_atomic(self._card, canonical_json(card))
        self._ctx.progress.step("backbone", 1, 1, "graph")
        return card

    def compute(self, pixels: Bytes) -> dict[Computed, Floats]:
        """Both kinds of features of [n, size, size, 3] pixels."""
        return self.compute_tensor(self.preprocess.tensor(pixels))

    def compute_tensor(self, x: Floats) -> dict[Computed, Floats]:
        """Of prepared input [n, 3, size, size]."""
        if self._session is None:
            self._session = self._open()
        final, mid = self._session(x)
        return {"final": np.asarray(final, np.float32), "mid": np.asarray(mid, np.float32)}

    def _open(self) -> Any:
        if self.engine == "torch-cuda":
            import torch

            torch.backends.cudnn.allow_tf32 = False
            net = feature_net(create(self.ref, self._ctx.objects, fused=True), ("final", "mid")).cuda()

            def on_gpu(x: Floats) -> tuple[Floats, ...]:
                with torch.inference_mode():
                    return tuple(out.float().cpu().numpy() for out in net(torch.from_numpy(x).cuda()))

            return on_gpu
        session = onnx_session(self._graph.read_bytes(), self._ctx.threads)
        return lambda x: session.run(["final", "mid"], {"input": x})


def onnx_session(graph: bytes, threads: int) -> Any:
    """An onnxruntime session on the CPU with a capped number of threads that do not spin while idle."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
