"""Writes bundles with random weights for the benchmark: the network decides the time, not what it has learned.

`demo`: two EfficientNet-lite0, as the demo preset trains; `vit-b`: DINOv2 ViT-B with registers. LayerScale is drawn anew,
since its initial 1e-5 would let a compiler of graphs, or a reader, think that blocks do nothing.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import timm
import torch
from timm.layers import set_fused_attn
from torch import nn


class Logit(nn.Module):
    """One number an image, by name and shape as bundles have it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x).squeeze(1)


def export(folder: Path, name: str, backbone: str, weight: float, seed: int) -> dict[str, object]:
    torch.manual_seed(seed)
    size = {"img_size": 224} if backbone.startswith("vit") else {}
    net = timm.create_model(backbone, pretrained=False, num_classes=1, **size).eval()
    for key, parameter in net.named_parameters():
        if key.endswith("gamma"):
            nn.init.uniform_(parameter, 0.2, 1.0)
    config = timm.data.resolve_data_config({}, model=net)
    file = folder / name / "model.onnx"
    file.parent.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        torch.onnx.export(
            Logit(net),
            (torch.randn(2, 3, 224, 224),),
            str(file),
            input_names=["input"],
            output_names=["logit"],
            dynamic_axes={"input": {0: "n"}, "logit": {0: "n"}},
            opset_version=17,
            dynamo=False,
        )
    tensors = folder / name / "model.safetensors"
    # No tensors: an eight-byte header length and an empty JSON object are a valid file, and nothing here reads them.
    tensors.write_bytes(bytes([2, 0, 0, 0, 0, 0, 0, 0]) + b"{}")

    def reference(path: Path) -> dict[str, object]:
        data = path.read_bytes()
        return {"path": str(path.relative_to(folder)), "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}

    return {
        "name": name,
        "backbone": backbone,
        "features": "final",
        "weight": weight,
        "onnx": reference(file),
        "safetensors": reference(tensors),
        "preprocess": {
            "size": 224,
            "crop": "center-square",
            "interpolation": "bicubic",
            "mean": list(config["mean"]),
            "std": list(config["std"]),
        },
        "parameters": sum(p.numel() for p in net.parameters()),
    }


def bundle(folder: Path, name: str, members: list[dict[str, object]]) -> None:
    metrics = {"accuracy": 0.5, "mcc": 0, "brier": 0.25, "n": 2}
    made = {
        "format": "streetvision-bundle/1",
        "name": name,
        "members": members,
        "calibration": {"kind": "none", "a": 1, "b": 0, "n": 0},
        "training": {"snapshot": "1" * 64, "trained": "2" * 64, "parent": None, "seed": 1},
        "metrics": {"validate": metrics, "errorCorrelation": 0},
        "parity": {"n": 1, "maxAbsDp": 0},
        "environment": {"torch": torch.__version__, "timm": timm.__version__},
    }
    (folder / "bundle.json").write_text(json.dumps(made, indent=2) + "\n")


def main() -> None:
    root = Path(sys.argv[1])
    set_fused_attn(False)
    torch.set_num_threads(1)
    demo = root / "demo"
    if not (demo / "bundle.json").exists():
        bundle(demo, "bench-demo", [export(demo, f"lite0-{i}", "tf_efficientnet_lite0", 0.5, i) for i in range(2)])
    vit = root / "vit-b"
    if not (vit / "bundle.json").exists():
        bundle(vit, "bench-vit-b", [export(vit, "dinov2-b", "vit_base_patch14_reg4_dinov2", 1.0, 7)])


if __name__ == "__main__":
    main()
