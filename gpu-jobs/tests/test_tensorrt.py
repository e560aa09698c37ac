"""TensorRT and the other providers: which one is taken, what an engine is found again by, and trtexec as a stand-in program plays it."""

import json

import numpy as np
import onnxruntime
import pytest
from conftest import export_order
from torch import nn

from flywheel_jobs import export, tensorrt
from flywheel_jobs.errors import Infrastructure, ParityLost
from flywheel_jobs.nets import onnx_model
from flywheel_jobs.quantise import Graph, pack
from flywheel_jobs.variants import time_sessions


@pytest.mark.parametrize(
    ("built_in", "gpu", "wish", "chosen"),
    [
        ([tensorrt.TENSORRT, tensorrt.CUDA, tensorrt.CPU], True, "auto", tensorrt.TENSORRT),
        ([tensorrt.TENSORRT, tensorrt.CUDA, tensorrt.CPU], True, "never", tensorrt.CUDA),
        ([tensorrt.TENSORRT, tensorrt.CUDA, tensorrt.CPU], False, "auto", tensorrt.CPU),
        ([tensorrt.CUDA, tensorrt.CPU], True, "auto", tensorrt.CUDA),
        ([tensorrt.CPU], True, "auto", tensorrt.CPU),
    ],
)
def test_variants_are_measured_on_the_fastest_provider_that_is_really_there(built_in, gpu, wish, chosen):
    assert tensorrt.choose(built_in, gpu, wish) == chosen


@pytest.mark.parametrize(("built_in", "gpu", "told"), [([tensorrt.TENSORRT], False, "no visible NVIDIA GPU"), ([], True, "no TensorRT")])
def test_tensorrt_that_is_asked_for_and_not_there_says_what_is_missing(built_in, gpu, told):
    with pytest.raises(Infrastructure, match=told):
        tensorrt.choose(built_in, gpu, "always")


def test_an_engine_is_found_again_only_for_its_graph_gpu_and_version(tmp_path):
    one = tensorrt.engine_folder(tmp_path, Graph(b"a"), "H100, 560", "1.30")
    assert one == tensorrt.engine_folder(tmp_path, Graph(b"a"), "H100, 560", "1.30")
    others = [(Graph(b"b"), "H100, 560", "1.30"), (Graph(b"a"), "L4, 560", "1.30"), (Graph(b"a"), "H100, 560", "1.31")]
    assert one not in [tensorrt.engine_folder(tmp_path, *other) for other in others]
    options = tensorrt.engine_options(one, 224, "fp16", 8)
    assert options["trt_fp16_enable"] == "1"
    assert options["trt_profile_max_shapes"] == "input:8x3x224x224"
    assert tensorrt.engine_options(one, 224, "fp32", 8)["trt_fp16_enable"] == "0"


def test_a_provider_that_does_not_open_is_an_error_and_never_measured_as_another(tmp_path):
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 1), nn.Flatten(0)).eval()
    graph = pack(onnx_model(net, 64, ("logit",)), "m.onnx")
    with pytest.raises(Infrastructure, match="was asked for CUDAExecutionProvider and opened CPUExecutionProvider"):
        tensorrt.open_session(graph, tensorrt.CUDA, 1, tmp_path, tmp_path, 64, "fp32")


STAND_IN = """#!{python}
import json, sys
import numpy as np
import onnxruntime

given = dict(one.lstrip("-").split("=", 1) if "=" in one else (one.lstrip("-"), "") for one in sys.argv[1:])
with open({log!r}, "a") as log:
    log.write(json.dumps(given) + "\\n")
if "help" in given:
    print("&&&& RUNNING TensorRT.trtexec [TensorRT v100800] # trtexec --help")
elif "onnx" in given:
    with open(given["onnx"], "rb") as source, open(given["saveEngine"], "wb") as engine:
        engine.write(source.read())
elif "exportTimes" in given:
    json.dump([{{"latencyMs": ms, "computeMs": ms / 2}} for ms in (3.0, 1.0, 2.0)], open(given["exportTimes"], "w"))
else:
    shape = [int(n) for n in given["shapes"].split(":")[1].split("x")]
    x = np.fromfile(given["loadInputs"].split(":", 1)[1], "<f4").reshape(shape)
    z = onnxruntime.InferenceSession(given["loadEngine"]).run(["logit"], {{"input": x}})[0] + {error}
    json.dump([{{"name": "logit", "dimensions": str(len(z)), "values": z.tolist()}}], open(given["exportOutput"], "w"))
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Puts a program that plays trtexec on PATH, and a GPU into view; gives a function that installs it and its log's path."""
    import sys

    log = tmp_path / "asked.jsonl"

    def install(error=0.0):
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        program = folder / "trtexec"
        program.write_text(STAND_IN.format(python=sys.executable, log=str(log), error=error))
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(folder), prepend=":")

    monkeypatch.setattr(tensorrt, "cuda_visible", lambda: True)
    monkeypatch.setattr(tensorrt, "gpu_name", lambda: "a GPU, 1")
    return install, log


def asked(log):
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_trtexec_played_by_a_stand_in_program_builds_one_engine_a_member_that_passes_the_parity_check(ensemble, stand_in):
    ctx, rows, output = ensemble
    install, log = stand_in
    install()
    wish = export_order(ctx, output, rows, precision="fp32", tensorrt="always")
    found = export.run(ctx, wish)
    assert [member["variants"][0]["provider"] for member in found["members"]] == ["trtexec", "trtexec"]
    built = [one for one in asked(log) if "onnx" in one]
    assert len(built) == 2
    assert built[0]["maxShapes"] == "input:8x3x64x64"
    assert "noTF32" in built[0] and "fp16" not in built[0] and "skipInference" in built[0]
    plans = sorted(ctx.cache_dir.glob("tensorrt/*/trtexec-fp32.plan"))
    assert len(plans) == 2
    assert not list(ctx.cache_dir.glob("tensorrt/*/.part*"))
    export.run(ctx, wish)
    assert len([one for one in asked(log) if "onnx" in one]) == 2  # the engines were kept


def test_trtexec_played_by_a_stand_in_program_that_answers_wrong_is_refused(ensemble, stand_in):
    ctx, rows, output = ensemble
    install, _ = stand_in
    install(error=0.5)
    with pytest.raises(ParityLost, match="trtexec and PyTorch differ"):
        export.run(ctx, export_order(ctx, output, rows, precision="fp32", tensorrt="always"))


def test_trtexec_played_by_a_stand_in_program_tells_its_own_time_and_has_a_flag_for_a_smaller_precision(tmp_path, ensemble, stand_in):
    ctx, _, output = ensemble
    install, log = stand_in
    install()
    bundle = json.loads(ctx.objects.get(export.run(ctx, export_order(ctx, output, ensemble[1]))["bundle"]))
    graph = Graph(ctx.objects.get(bundle["members"][0]["onnx"]["sha256"]))
    engine = tensorrt.open_session(graph, tensorrt.TRTEXEC, 1, tmp_path, tmp_path / "c", 64, "fp16")
    assert time_sessions([engine, engine], None) == [2.0, 2.0]
    x = np.random.default_rng(0).normal(size=(5, 3, 64, 64)).astype(np.float32)
    plain = onnxruntime.InferenceSession(graph.model).run(["logit"], {"input": x})[0]
    np.testing.assert_allclose(engine.run(["logit"], {"input": x})[0], plain, atol=1e-5)
    assert "fp16" in next(one for one in asked(log) if "onnx" in one)


def test_trtexec_is_used_where_it_is_asked_for_by_name_and_a_broken_one_is_told(tmp_path, stand_in, monkeypatch):
    assert tensorrt.choose(["CPUExecutionProvider"], gpu=True, wish="always", program=True) == tensorrt.TRTEXEC
    assert tensorrt.choose(["CUDAExecutionProvider"], gpu=True, wish="auto", program=True) == tensorrt.CUDA
    with pytest.raises(Infrastructure, match="no visible NVIDIA GPU"):
        tensorrt.choose([], gpu=False, wish="always", program=True)
    (tmp_path / "trtexec").write_text("#!/bin/sh\necho no driver; exit 3\n")
    (tmp_path / "trtexec").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(Infrastructure, match="exit code 3: no driver"):
        tensorrt.open_session(Graph(b"x"), tensorrt.TRTEXEC, 1, tmp_path, tmp_path / "c", 64, "fp32")


def test_an_engine_that_was_not_built_to_its_end_is_never_found(tmp_path):
    folder = tmp_path / "tensorrt" / "key"
    with pytest.raises(RuntimeError), tensorrt.published(folder) as part:
        (part / "half.engine").write_bytes(b"x")
        raise RuntimeError
    assert not folder.exists()
    assert list(folder.parent.iterdir()) == []
    with tensorrt.published(folder) as part:
        assert part != folder
        (part / "whole.engine").write_bytes(b"x")
    assert [file.name for file in folder.iterdir()] == ["whole.engine"]
    with tensorrt.published(folder) as again:
        assert again == folder
