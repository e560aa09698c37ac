"""What is computed of a timm model: its features as one module, and a module as an ONNX graph.

torch and timm are imported only inside functions: light jobs need neither.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from .errors import BadInput

if TYPE_CHECKING:
    import torch
    from torch import nn

FeatureKind = Literal["final", "mid", "both"]
OPSET = 17


def feature_net(model: nn.Module, kinds: tuple[FeatureKind, ...], trim: bool = False) -> nn.Module:
    """A module whose forward gives one [n, d] tensor for each kind, from a single pass.

    `final`: the pooled features the classifier would see. `mid`: mean and standard deviation over the positions of two
    maps at half and two thirds of the depth (EfficientNet: stages 3 and 4 of 0..6, 80 and 112 channels): they see texture and
    small objects rather than the scene, and so err differently. `both`: the two side by side. `trim` drops layers that no kind needs
    (changes `model`).
    """
    import torch
    from timm.models import EfficientNet
    from torch import nn
    from torch.utils.checkpoint import checkpoint

    final, mid = (any(kind in (part, "both") for kind in kinds) for part in ("final", "mid"))

    def of_kinds(out: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return tuple(torch.cat([out["final"], out["mid"]], dim=1) if kind == "both" else out[kind] for kind in kinds)

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
            if trim and not final:
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
                if index == self.taps[-1] and not final:
                    break
            out = {}
            if mid:
                out["mid"] = torch.cat(maps, dim=1)
            if final:
                out["final"] = m.forward_head(m.bn2(m.conv_head(x)), pre_logits=True)
            return of_kinds(out)

    class Generic(nn.Module):
        """Any timm model; `mid` asks for `forward_intermediates`."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model
            if mid and not hasattr(model, "forward_intermediates"):
                raise BadInput(
                    "this backbone gives no intermediate maps: use `features: final`, or another backbone for the second member."
                )
            depth = len(getattr(model, "feature_info", ())) or 1
            self.taps = sorted({max(depth // 2 - 1, 0), max(2 * depth // 3 - 1, 0)})

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            m = cast("Any", self.model)
            out: dict[str, torch.Tensor] = {}
            if not mid:
                out["final"] = m.forward_head(m.forward_features(x), pre_logits=True)
            else:
                given = m.forward_intermediates(x, indices=self.taps, output_fmt="NCHW", intermediates_only=not final, stop_early=not final)
                last, maps = given if final else (None, given)
                out["mid"] = torch.cat([pooled(one) for one in maps], dim=1)
                if last is not None:
                    out["final"] = m.forward_head(last, pre_logits=True)
            return of_kinds(out)

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
