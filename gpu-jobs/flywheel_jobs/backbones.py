"""Backbones: where their weights come from, which features are taken, and the graph that computes them.

A backbone is named by `BackboneRef` and identified by the digest of its weights. On a machine without a CUDA device the
features are computed by onnxruntime on a graph exported once and cached, since that is twice as fast as eager PyTorch on
CPUs and spares the light jobs the import of torch and timm (some ten seconds). torch and timm are imported only inside
functions for the same reason.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .choice import check_resolution, chosen, is_auto, patch_of
from .context import JobContext
from .errors import BadInput, MissingWeights, UnknownBackbone, WeightsOutOfReach
from .machine import cuda_visible, memory_gb
from .objects import FileObjects, canonical_json, sha256, write_atomic

if TYPE_CHECKING:
    import torch
    from torch import nn

FeatureKind = Literal["final", "mid"]
Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

LAYOUT = 2
"""raise when the definition of the features changes: old caches are then left alone"""
OPSET = 17


@dataclass(frozen=True)
class BackboneRef:
    """A timm model with its weights (`package:`, `hub`, `hub@<revision>`, `none`, a path, or `object:<digest>`: trained here)."""

    backbone: str
    weights: str
    resolution: int

    @classmethod
    def of(cls, member: dict[str, Any]) -> BackboneRef:
        """From a MemberSpec of the contract; an automatic backbone is chosen for this machine. Raises BadInput when nothing fits."""
        backbone = member["backbone"]
        if is_auto(backbone):
            backbone = chosen(member, memory_gb()).name
        return cls(backbone, member["weights"], int(member["resolution"]))


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
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        scaled = (pixels.astype(np.float32) / np.float32(255) - mean) / std
        return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


# --- weights ---------------------------------------------------------------------------------------------------------


def package_checkpoint(package: str) -> Path:
    """The one checkpoint file inside an installed Python package. Raises MissingWeights when there is none or more than one."""
    found = importlib.util.find_spec(package.replace("-", "_"))
    if found is None or not found.submodule_search_locations:
        raise MissingWeights(f"the package {package!r} that should carry the weights is not installed. `uv sync` installs the pinned ones.")
    root = Path(next(iter(found.submodule_search_locations)))
    files = sorted(path for pattern in ("*.pth", "*.pt", "*.safetensors") for path in root.rglob(pattern))
    if len(files) != 1:
        raise MissingWeights(
            f"the package {package!r} holds {len(files)} checkpoints, expected one. Give the path of the file as `weights`."
        )
    return files[0]


def is_hub(weights: str) -> bool:
    """Whether the weights come from the Hugging Face Hub, at a pinned revision or at its newest."""
    return weights == "hub" or weights.startswith("hub@")


def _weights_file(ref: BackboneRef, objects: FileObjects) -> Path | None:
    """The file behind the weights; None for `hub` and `none`."""
    if ref.weights.startswith("package:"):
        return package_checkpoint(ref.weights.removeprefix("package:"))
    if ref.weights.startswith("object:"):
        digest = ref.weights.removeprefix("object:")
        objects.get(digest)  # verified before use
        return objects.path(digest)
    if ref.weights == "none" or is_hub(ref.weights):
        return None
    path = Path(ref.weights)
    if not path.is_file():
        raise MissingWeights(
            f"no weights file at {path} for {ref.backbone}. "
            "Three ways: `hub` or `hub@REVISION`, `package:NAME`, or the path of a checkpoint (`none`: random, for tests only)."
        )
    return path


def weights_digest(ref: BackboneRef, ctx: JobContext) -> str:
    """SHA-256 that identifies the weights: of the file, or of name and seed for random ones, or of the tensors for `hub`."""
    file = _weights_file(ref, ctx.objects)
    if file is not None:
        return sha256(file.read_bytes())
    if ref.weights == "none":
        return sha256(canonical_json(["random", ref.backbone]))
    alias = ctx.cache_dir / "graphs" / f"hub-{sha256(canonical_json([ref.backbone, ref.weights, ref.resolution]))[:24]}.json"
    if alias.is_file():
        return str(json.loads(alias.read_text())["digest"])
    digest = state_digest(create(ref, ctx.objects).state_dict())
    write_atomic(alias, canonical_json({"backbone": ref.backbone, "digest": digest}))
    return digest


def state_digest(state: dict[str, torch.Tensor]) -> str:
    """SHA-256 over names, shapes and values of a state dict."""
    digest = hashlib.sha256()
    for name in sorted(state):
        array = state[name].detach().cpu().contiguous().numpy()
        digest.update(f"{name}{array.dtype}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _read_state(path: Path) -> dict[str, torch.Tensor]:
    import torch

    try:
        if path.suffix == ".safetensors" or "." not in path.name:  # objects carry no suffix
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise MissingWeights(
            f"the weights {path} cannot be read: {type(error).__name__}: {error}. Give a safetensors or PyTorch checkpoint."
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    return cast("dict[str, torch.Tensor]", state)


def fit_state(state: dict[str, torch.Tensor], model: nn.Module, what: str) -> dict[str, torch.Tensor]:
    """A checkpoint's tensors under the model's own names.

    Equal names are taken as they are. Otherwise both lists must run in step: as many tensors, and at each place the same
    last name (`weight`, `running_mean` ...) and shape; that is how the original EfficientNet-Lite naming maps onto timm's.
    Raises MissingWeights naming the first place where they part.
    """
    own = model.state_dict()
    state = fit_positions(state, model)
    if own.keys() <= state.keys():
        return {name: state[name] for name in own}
    if len(own) != len(state):
        raise MissingWeights(
            f"{what} holds {len(state)} tensors, the model {len(own)}; the names differ too. Are these the weights of this backbone?"
        )
    for (name, tensor), (theirs, given) in zip(own.items(), state.items(), strict=True):
        if name.rsplit(".", 1)[-1] != theirs.rsplit(".", 1)[-1] or tensor.shape != given.shape:
            raise MissingWeights(
                f"{what} does not fit: {theirs} {tuple(given.shape)} stands where the model has {name} {tuple(tensor.shape)}."
            )
    return dict(zip(own, state.values(), strict=True))


def fit_positions(state: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """The checkpoint with its positional embedding resampled to the model's grid (bicubic, prefix tokens left alone), where one
    of another resolution was trained with. Anything else is returned as it is."""
    own, given = getattr(model, "pos_embed", None), state.get("pos_embed")
    if own is None or given is None or own.shape == given.shape or given.shape[-1] != own.shape[-1]:
        return state
    from timm.layers.pos_embed import resample_abs_pos_embed

    m = cast("Any", model)
    prefix = 0 if getattr(m, "no_embed_class", False) else int(getattr(m, "num_prefix_tokens", 0))
    resampled = resample_abs_pos_embed(given, new_size=list(m.patch_embed.grid_size), num_prefix_tokens=prefix)
    return {**state, "pos_embed": resampled}


def create(ref: BackboneRef, objects: FileObjects, fused: bool = False) -> nn.Module:
    """The timm model with its weights, no classifier, in eval mode. `fused`: attention kernels that are fast on a GPU but do not
    export for every backbone.

    Raises UnknownBackbone, BadInput (resolution), MissingWeights or WeightsOutOfReach.
    """
    import timm
    import torch
    from timm.layers.config import set_fused_attn

    set_fused_attn(fused)
    if not timm.is_model(ref.backbone.split(".", 1)[0]):
        raise UnknownBackbone(f"timm knows no model {ref.backbone!r}. `timm.list_models()` lists the names.")
    check_resolution(ref.backbone, ref.resolution, patch_of(ref.backbone))
    config = timm.get_pretrained_cfg(ref.backbone)
    extra: dict[str, Any] = {"img_size": ref.resolution} if config is not None and config.fixed_input_size else {}
    file = _weights_file(ref, objects)
    if is_hub(ref.weights):
        _, _, revision = ref.weights.partition("@")
        if revision:
            where = config.hf_hub_id if config is not None else None
            if not where:
                raise MissingWeights(f"timm knows no place on the hub for {ref.backbone}: give a path or `package:NAME` as its weights.")
            extra["pretrained_cfg_overlay"] = {"hf_hub_id": f"{where}@{revision}"}
        try:
            return _sized(ref, timm.create_model(ref.backbone, pretrained=True, num_classes=0, **extra))
        except BadInput:
            raise
        except Exception as error:
            raise WeightsOutOfReach(
                f"the weights of {ref.backbone} could not be fetched from the Hugging Face Hub: "
                f"{type(error).__name__}: {str(error)[:300]}. "
                "Three ways on: the hub: let this machine reach huggingface.co (HF_TOKEN; HF_ENDPOINT for a mirror; HF_HOME for a filled "
                "cache) and pin a revision by `hub@REVISION`; a path: download the checkpoint elsewhere and give its path as the member's "
                "`weights`; a package: `package:NAME` of an installed Python package that carries the checkpoint. "
                "The demo preset needs no download."
            ) from error
    if file is None:
        with torch.random.fork_rng(devices=[]):
            # the name, not the job's seed: random backbones are one thing, so that their cached features stay valid
            torch.manual_seed(int(sha256(ref.backbone.encode())[:8], 16))
            model = timm.create_model(ref.backbone, pretrained=False, num_classes=0, **extra)
            _make_lively(model)
            return _sized(ref, model)
    state = _read_state(file)
    if ref.weights.startswith("object:"):
        model = timm.create_model(ref.backbone, pretrained=False, num_classes=0, **extra)
        model.load_state_dict(fit_state(state, model, f"object {ref.weights}"))
        return _sized(ref, model)
    # an original checkpoint brings its classifier: fit it whole, so that every tensor is accounted for, then drop it
    model = timm.create_model(ref.backbone, pretrained=False, **extra)
    headless = timm.create_model(ref.backbone, pretrained=False, num_classes=0, **extra)
    if headless.state_dict().keys() <= state.keys():
        model = headless
    model.load_state_dict(fit_state(state, model, f"the checkpoint {file.name}"))
    cast("Any", model).reset_classifier(0)
    return _sized(ref, model)


def _sized(ref: BackboneRef, model: nn.Module) -> nn.Module:
    """The model in eval mode, once its patch size is known to divide the resolution. Raises BadInput."""
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    if isinstance(patch, tuple):
        check_resolution(ref.backbone, ref.resolution, int(patch[0]))
    return model.eval()


def _make_lively(model: nn.Module) -> None:
    """Random LayerScale starts near 0, which would hide every layer behind it: give it a size that shows."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("ls1.gamma", "ls2.gamma", ".gamma")):
                parameter.uniform_(0.5, 1.0)


def preprocess_of(ref: BackboneRef, model: nn.Module) -> Preprocess:
    """Size from the member, mean and deviation that the weights were trained with."""
    config = cast("dict[str, Any]", model.pretrained_cfg)
    mean, std = config["mean"], config["std"]
    return Preprocess(ref.resolution, tuple(map(float, mean)), tuple(map(float, std)))  # type: ignore[arg-type]


# --- features --------------------------------------------------------------------------------------------------------


def feature_net(model: nn.Module, kinds: tuple[FeatureKind, ...], trim: bool = False) -> nn.Module:
    """A module whose forward gives one [n, d] tensor for each kind, from a single pass.

    `final`: the pooled features the classifier would see. `mid`: mean and standard deviation over the positions of two
    maps at half and two thirds of the depth (EfficientNet: stages 3 and 4 of 0..6, 80 and 112 channels): they see texture and
    small objects rather than the scene, and so err differently. `trim` drops layers that no kind needs (changes `model`).
    """
    import torch
    from timm.models import EfficientNet
    from torch import nn
    from torch.utils.checkpoint import checkpoint

    def pooled(x: torch.Tensor) -> torch.Tensor:
        variance = x.var(dim=(2, 3), unbiased=False)
        return torch.cat([x.mean(dim=(2, 3)), torch.sqrt(variance + 1e-6)], dim=1)

    class Staged(nn.Module):
        """EfficientNet: the stages are walked by hand, which exports cleanly and can stop early."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model
            count = len(model.blocks)  # type: ignore[arg-type]
            self.taps = (max(count - 4, 0), max(count - 3, 0))
            if trim and "final" not in kinds:
                del model.blocks[self.taps[1] + 1 :]  # type: ignore[union-attr, operator]
                model.conv_head, model.bn2 = nn.Identity(), nn.Identity()

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            m = cast("Any", self.model)
            x = m.bn1(m.conv_stem(x))
            maps = []
            saving = m.grad_checkpointing and torch.is_grad_enabled()
            for index, stage in enumerate(m.blocks):
                x = checkpoint(stage, x, use_reentrant=False) if saving else stage(x)
                if index in self.taps:
                    maps.append(pooled(x))
                if index == self.taps[-1] and "final" not in kinds:
                    break
            out = {}
            if "mid" in kinds:
                out["mid"] = torch.cat(maps, dim=1)
            if "final" in kinds:
                out["final"] = m.forward_head(m.bn2(m.conv_head(x)), pre_logits=True)
            return tuple(out[kind] for kind in kinds)

    class Generic(nn.Module):
        """Any timm model; `mid` asks for `forward_intermediates`."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model
            if "mid" in kinds and not hasattr(model, "forward_intermediates"):
                raise BadInput(
                    "this backbone gives no intermediate maps: use `features: final`, or another backbone for the second member."
                )
            depth = len(getattr(model, "feature_info", ())) or 1
            self.taps = sorted({max(depth // 2 - 1, 0), max(2 * depth // 3 - 1, 0)})

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            m = cast("Any", self.model)
            out: dict[str, torch.Tensor] = {}
            if "mid" not in kinds:
                out["final"] = m.forward_head(m.forward_features(x), pre_logits=True)
            else:
                only = "final" not in kinds
                given = m.forward_intermediates(x, indices=self.taps, output_fmt="NCHW", intermediates_only=only, stop_early=only)
                last, maps = (None, given) if only else given
                out["mid"] = torch.cat([pooled(one) for one in maps], dim=1)
                if last is not None:
                    out["final"] = m.forward_head(last, pre_logits=True)
            return tuple(out[kind] for kind in kinds)

    return (Staged() if isinstance(model, EfficientNet) else Generic()).eval()


def to_onnx(module: nn.Module, size: int, outputs: tuple[str, ...]) -> bytes:
    """`onnx_model` as bytes, for graphs below protobuf's 2 GiB."""
    return cast("bytes", onnx_model(module, size, outputs).SerializeToString(deterministic=True))


def onnx_model(module: nn.Module, size: int, outputs: tuple[str, ...]) -> Any:
    """The module as an `onnx.ModelProto`: input `input` float32 [n, 3, size, size] with n dynamic; opset 17. Equal weights give equal
    bytes.

    The TorchScript exporter is used: about a second for a small network where the newer one takes ten. Names of source
    files, versions and times are taken out. Weights are inside whatever their size (the exporter writes those of models above
    2 GB to files of their own, which are read back).
    """
    import tempfile
    import warnings

    import onnx
    import torch

    axes = {name: {0: "n"} for name in ("input", *outputs)}
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "graph.onnx")
        warnings.simplefilter("ignore")
        example = (torch.zeros(2, 3, size, size),)
        torch.onnx.export(
            module,
            example,
            file,
            input_names=["input"],
            output_names=list(outputs),
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
        )
        onnx.checker.check_model(file)  # by path: a larger one can't be checked in memory
        model = onnx.load(file)
    model.producer_name, model.producer_version, model.doc_string, model.domain = "flywheel_jobs", "", "", ""
    del model.metadata_props[:]
    for node in model.graph.node:
        node.doc_string = ""
        if hasattr(node, "metadata_props"):
            del node.metadata_props[:]
    model.graph.doc_string, model.graph.name = "", "streetvision"
    return model


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
        self.dimensions: dict[FeatureKind, int] = card["dimensions"]
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
        kinds: tuple[FeatureKind, ...] = ("final", "mid")
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

    def compute(self, pixels: Bytes) -> dict[FeatureKind, Floats]:
        """Both kinds of features of [n, size, size, 3] pixels."""
        return self.compute_tensor(self.preprocess.tensor(pixels))

    def compute_tensor(self, x: Floats) -> dict[FeatureKind, Floats]:
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
