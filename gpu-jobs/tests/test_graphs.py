"""Exported graphs by themselves: every family against PyTorch, half and int8, weights beside the graph."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from flywheel_jobs.nets import feature_net, onnx_model
from flywheel_jobs.objects import FileObjects
from flywheel_jobs.quantise import Graph, load, operators, opset, pack, sensitive, to_fp16, to_int8
from flywheel_jobs.weights import BackboneRef, create


class Net(nn.Module):
    def __init__(self, backbone: str, size: int, objects: FileObjects) -> None:
        super().__init__()
        self.backbone = feature_net(create(BackboneRef(backbone, "none", size), objects), ("final",), trim=True)
        with torch.inference_mode():
            width = self.backbone(torch.zeros(1, 3, size, size))[0].shape[1]
        torch.manual_seed(0)
        self.head = nn.Linear(width, 1)

    def forward(self, x):
        return self.head(self.backbone(x)[0]).flatten()


def outputs(graph: Graph, x, folder: Path):
    folder.mkdir(exist_ok=True)
    return onnxruntime.InferenceSession(str(graph.write(folder, "g.onnx"))).run(None, {"input": x})[0]


# one small member of each family: registers and fixed positions, global response normalisation, rotary positions
FAMILIES = [("vit_small_patch14_reg4_dinov2", 56), ("test_convnext2", 64), ("eva02_tiny_patch14_224", 56), ("test_efficientnet", 64)]


@pytest.mark.parametrize(("backbone", "size"), FAMILIES)
def test_every_family_exports_at_a_fixed_size_with_a_free_batch_and_agrees_with_pytorch(backbone, size, tmp_path):
    net = Net(backbone, size, FileObjects(tmp_path)).eval()
    graph = pack(onnx_model(net, size, ("logit",)), "m.onnx")
    x = np.random.default_rng(0).normal(size=(3, 3, size, size)).astype(np.float32)
    with torch.inference_mode():
        wanted = net(torch.from_numpy(x)).numpy()
    assert wanted.std() > 1e-3  # lively: parity of constants would mean nothing
    found = outputs(graph, x, tmp_path / "f")
    p = [1 / (1 + np.exp(-z.astype(np.float64))) for z in (found, wanted)]
    assert np.abs(p[0] - p[1]).max() <= 1e-3
    assert outputs(graph, x[:1], tmp_path / "f") == pytest.approx(found[:1], abs=1e-4)
    assert opset(graph) == 17
    half = to_fp16(graph, "m.onnx")
    assert half.bytes < 0.6 * graph.bytes
    assert np.abs(outputs(half, x, tmp_path / "f") - wanted).max() < 0.05


def test_weights_above_the_limit_go_beside_the_graph_and_give_the_same_answers(tmp_path):
    net = Net("test_efficientnet", 64, FileObjects(tmp_path)).eval()
    model = onnx_model(net, 64, ("logit",))
    inside = pack(model, "m.onnx")
    outside = pack(onnx_model(net, 64, ("logit",)), "m.onnx", limit=1000)
    assert outside.data_name == "m.onnx.data"
    assert len(outside.model) < 0.5 * len(inside.model)
    x = np.random.default_rng(0).normal(size=(2, 3, 64, 64)).astype(np.float32)
    expected = outputs(inside, x, tmp_path / "a")
    assert outputs(outside, x, tmp_path / "b") == pytest.approx(expected, abs=1e-6)
    assert load(outside).graph.initializer[0].raw_data == load(inside).graph.initializer[0].raw_data
    small = to_int8(outside, "m.onnx", [x], limit=1000)
    assert small.data is not None
    assert outputs(small, x, tmp_path / "c").shape == (2,)


def test_the_first_layer_and_the_head_stay_in_float(tmp_path):
    net = Net("test_efficientnet", 64, FileObjects(tmp_path)).eval()
    model = onnx_model(net, 64, ("logit",))
    kept = sensitive(model)
    weighted = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    assert {weighted[0].name, weighted[-1].name} <= set(kept)
    assert len(kept) < len(weighted)
    assert "Add" in operators(model)


def test_int8_is_the_same_bytes_twice(tmp_path):
    graph = pack(onnx_model(Net("test_efficientnet", 64, FileObjects(tmp_path)).eval(), 64, ("logit",)), "m.onnx")
    x = np.random.default_rng(0).normal(size=(2, 3, 64, 64)).astype(np.float32)
    assert to_int8(graph, "m", [x]).model == to_int8(graph, "m", [x]).model
