"""Smaller precisions: what they keep, what they cost, when they are refused, and which one is served."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import make_context, snapshot_rows, train_input
from torch import nn

from flywheel_jobs import evaluate, export, tensorrt, train
from flywheel_jobs.errors import EmptySplit, Infrastructure, LossAboveLimit, OneClass, ParityLost
from flywheel_jobs.metrics import measure
from flywheel_jobs.nets import feature_net, onnx_model
from flywheel_jobs.objects import FileObjects
from flywheel_jobs.predicted import expected_reward, predicted_reward, reward
from flywheel_jobs.quantise import Graph, Quantiser, load, match, matched, operators, opset, pack, ranked, sensitive, to_fp16, to_int8
from flywheel_jobs.spec import validate, with_defaults
from flywheel_jobs.variants import Loss, Variant, above, by_nearness, loss, pick, time_sessions
from flywheel_jobs.weights import BackboneRef, create

FREE = {"fp16": {"accuracy": 1, "reward": 1}, "int8": {"accuracy": 1, "reward": 1}}


def order(ctx, output, rows, **more):
    base = {"trained": output["trained"], "name": "demo-1", "snapshot": ctx.objects.put_jsonl(rows), "parent": None}
    base |= {"parity": ctx.objects.put_jsonl(rows), "parityImages": 4, "parityTolerance": 1e-3, "seed": 3, "calibrationImages": 8}
    return with_defaults("export.input", {**base, **more})


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A trained ensemble: (ctx, rows, train output)."""
    ctx = make_context(tmp_path_factory.mktemp("precisions"))
    rows = snapshot_rows(ctx.objects)
    return ctx, rows, train.run(ctx, train_input(ctx.objects.put_jsonl(rows)))


@pytest.fixture(scope="module")
def int8(world):
    """Its bundle in int8: (bundle, output)."""
    ctx, rows, output = world
    found = export.run(ctx, order(ctx, output, rows, precision="int8", limits=FREE))
    validate("export.output", found, "output")
    return json.loads(ctx.objects.get(found["bundle"])), found


def test_an_int8_bundle_takes_and_gives_float32_and_is_smaller(world, int8):
    ctx, _, _ = world
    bundle, _ = int8
    for member in bundle["members"]:
        assert member["precision"] == "int8"
        session = onnxruntime.InferenceSession(ctx.objects.get(member["onnx"]["sha256"]))
        (given,), (said,) = session.get_inputs(), session.get_outputs()
        assert (given.name, given.type, given.shape) == ("input", "tensor(float)", ["n", 3, 64, 64])
        assert (said.name, said.type) == ("logit", "tensor(float)")
        assert session.run(None, {"input": np.zeros((3, 3, 64, 64), np.float32)})[0].shape == (3,)
        kinds = {node.op_type for node in load(Graph(ctx.objects.get(member["onnx"]["sha256"]))).graph.node}
        assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
        plain, small = member["variants"]
        assert (plain["precision"], small["precision"]) == ("fp32", "int8")
        assert small["bytes"] < plain["bytes"]
        assert small["chosen"] and not plain["chosen"]


def test_the_table_of_precisions_tells_bytes_time_difference_and_loss(int8):
    bundle, found = int8
    for member in bundle["members"]:
        for variant in member["variants"]:
            assert variant["ms"] > 0
            assert variant["loss"]["n"] == 24  # the 24 labelled images of validate and calibrate
            assert set(variant["loss"]) == {"n", "accuracy", "reward"}
        assert member["variants"][0]["loss"] == {"n": 24, "accuracy": 0, "reward": 0}
        assert member["variants"][0]["maxAbsDp"] < 1e-4
    assert bundle["export"]["loss"]["n"] == 24
    assert found["members"][0]["variants"] == bundle["members"][0]["variants"]


def test_a_precision_that_loses_more_than_its_limit_is_refused_by_name(world, monkeypatch):
    ctx, rows, output = world
    monkeypatch.setattr(export, "loss", lambda p, q, y, n: Loss(n, 0.03 if p is not q else 0.0, 0.05))
    with pytest.raises(LossAboveLimit, match=r"in int8 loses 0.0300 of accuracy, limit 0.0100, on 24 images.*fp32"):
        export.run(ctx, order(ctx, output, rows, precision="int8"))


def test_members_that_together_lose_too_much_go_back_to_fp32_when_the_choice_is_free(world, monkeypatch):
    ctx, rows, output = world
    calls = []

    def fake(p, reference, y, n):
        calls.append(1)
        # three precisions of two members are fine alone; the first look at the whole is not
        return Loss(n, 0.02 if len(calls) == 7 else 0.0, 0.0)

    monkeypatch.setattr(export, "loss", fake)
    monkeypatch.setattr(export, "time_sessions", lambda sessions, x: [9.0, 9.0, *([1.0] * (len(sessions) - 2))])
    found = export.run(ctx, order(ctx, output, rows, precision="auto"))
    assert sorted(member["precision"] for member in found["members"]) == ["fp32", "int8"]
    (back,) = (member for member in found["members"] if member["precision"] == "fp32")
    assert "with the other members loses" in back["variants"][2]["refused"]


def test_the_fastest_within_its_limit_is_taken_and_fp32_where_nothing_pays():
    graph = Graph(b"")

    def variants(fp16, int8, refused=None):
        plain = Variant("fp32", graph, "CPU", 10.0, 0.0, Loss(9, 0, 0))
        return [plain, replace(plain, precision="fp16", ms=fp16), replace(plain, precision="int8", ms=int8, refused=refused)]

    assert pick(variants(20, 4), "auto", 1.1, "m").precision == "int8"
    assert pick(variants(20, 4, "loses"), "auto", 1.1, "m").precision == "fp32"
    assert pick(variants(5, 4, "loses"), "auto", 1.1, "m").precision == "fp16"
    assert pick(variants(20, 9.5), "auto", 1.1, "m").precision == "fp32"
    assert pick(variants(20, 4), "fp32", 1.1, "m").precision == "fp32"
    with pytest.raises(LossAboveLimit, match="member m in int8 loses"):
        pick(variants(20, 4, "loses"), "int8", 1.1, "m")


def test_a_loss_is_refused_by_either_measure():
    limit = {"accuracy": 0.01, "reward": 0.02}
    assert above(Loss(9, 0.01, 0.02), limit) is None
    assert "accuracy" in above(Loss(9, 0.011, 0), limit)
    assert "reward" in above(Loss(9, 0, 0.021), limit)


def test_losses_are_measured_with_the_classes_alike():
    y = np.array([1] * 2 + [0] * 8)
    reference, one_wrong = np.where(y == 1, 0.9, 0.1), np.where(y == 1, 0.9, 0.1)
    one_wrong[0] = 0.1
    found = loss(one_wrong, reference, y, 10)
    assert found.accuracy == pytest.approx(0.25)  # half of the positives, a quarter of a validator's draws
    assert found.reward > 0.2


@pytest.mark.parametrize("pools", [("train",), ("train", "validate")])
def test_a_loss_that_cannot_be_measured_refuses_smaller_precisions(world, pools):
    ctx, rows, output = world
    kept = [row for row in rows if row["pool"] in pools and (row["pool"] == "train" or row["label"] == 1)]
    with pytest.raises(EmptySplit if len(pools) == 1 else OneClass, match="smaller precision"):
        export.run(ctx, order(ctx, output, kept, precision="auto"))


def test_the_images_of_the_ranges_are_not_those_that_judge_and_never_synthetic_or_test(world):
    ctx, rows, output = world
    made = [{**row, "provider": "composite", "digest": ctx.objects.put(row["digest"].encode())} for row in rows if row["pool"] == "train"]
    evidence = export._evidence(ctx, order(ctx, output, [*rows, *made], lossImages=8, calibrationImages=60))
    assert len(evidence.judged) == 8
    assert not {row.digest for row in evidence.judged} & {row.digest for row in evidence.calibration}
    assert not any(row.synthetic for row in evidence.calibration)
    assert {row.pool for row in evidence.judged} <= {"validate", "calibrate"}
    assert {row.pool for row in evidence.calibration} <= {"train", "calibrate"}


def test_the_validation_gate_is_data_in_the_bundle(int8, world):
    bundle, found = int8
    _, _, output = world
    (gate,) = bundle["gates"]
    assert gate == found["gates"][0]
    assert gate["threshold"] == 0.92
    assert gate["value"] == output["validate"]["accuracy"]
    assert gate["passed"] is (min(gate["value"], gate["balanced"]) >= 0.92)
    assert export.validation_gate({"validation": None}, output["validate"]) is None


def test_a_model_that_always_says_no_passes_no_gate_on_streets_that_are_nearly_all_without_roadwork():
    def passed(p, y):
        return export.validation_gate({"validation": 0.92}, measure(np.array(p), np.array(y)))["passed"]

    assert passed([0.1] * 100, [1] * 5 + [0] * 95) is False
    assert passed([0.9] * 5 + [0.1] * 95, [1] * 5 + [0] * 95) is True
    assert passed([0.1] * 100, [0] * 100) is None  # nothing is known of streets with roadwork
    assert passed([0.9] * 100, [0] * 100) is False
    assert export.validation_gate({"validation": 0.92}, {"accuracy": 0.95, "n": 43})["passed"] is True  # measured by an older version


# --- graphs ----------------------------------------------------------------------------------------------------------


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


# --- reward ----------------------------------------------------------------------------------------------------------


def test_the_reward_is_the_validators():
    perfect = np.array([0.9, 0.1] * 50)
    y = np.array([1, 0] * 50)
    assert reward(perfect, y) == 1
    assert reward(np.append(perfect, -1.0), np.append(y, 1)) == 0
    assert reward(np.append(perfect, 1.2), np.append(y, 1)) == 0
    assert reward(np.full(100, 0.9), y) == pytest.approx((0.5 * 0.5) ** 3)  # one class said: MCC 0, half right
    assert reward(np.full(10, 0.5), np.zeros(10, int)) == pytest.approx(0.125)  # 0.5 rounds to 0


def test_the_expected_reward_is_the_mean_over_windows_of_the_exact_one():
    rng = np.random.default_rng(5)
    values = []
    for _ in range(1500):
        y = (rng.random(100) < 0.5).astype(int)
        right = rng.random(100) < np.where(y == 1, 0.9, 0.95)
        values.append(reward(np.where(right == (y == 1), 0.9, 0.1), y))
    assert expected_reward(0.9, 0.95) == pytest.approx(np.mean(values), abs=0.02)
    assert expected_reward(1, 1) == 1
    assert predicted_reward(np.array([0.9]), np.array([1])) is None


# --- providers -------------------------------------------------------------------------------------------------------


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


def test_a_provider_that_does_not_open_is_an_error_and_never_measured_as_another(world, tmp_path):
    graph = pack(onnx_model(Net("test_efficientnet", 64, FileObjects(tmp_path)).eval(), 64, ("logit",)), "m.onnx")
    with pytest.raises(Infrastructure, match="was asked for CUDAExecutionProvider and opened CPUExecutionProvider"):
        tensorrt.open_session(graph, tensorrt.CUDA, 1, tmp_path, tmp_path, 64, "fp32")


# --- evaluate --------------------------------------------------------------------------------------------------------


def judged(ctx, rows, **more):
    found = evaluate.run(ctx, with_defaults("evaluate.input", {"manifest": ctx.objects.put_jsonl(rows), **more}))
    validate("evaluate.output", found, "output")
    return found


def test_a_bundle_in_fp32_and_the_trained_ensemble_behind_it_say_the_same(world):
    ctx, rows, output = world
    bundle = export.run(ctx, order(ctx, output, rows))["bundle"]
    one, two = judged(ctx, rows, bundle=bundle), judged(ctx, rows, trained=output["trained"])
    p, q = ([line["prediction"] for line in ctx.objects.get_jsonl(found["predictions"])] for found in (one, two))
    assert p == pytest.approx(q, abs=1e-3)
    assert one["metrics"] == pytest.approx(two["metrics"], abs=0.03)


def test_figures_tell_the_sources_apart_with_intervals_by_group(world):
    ctx, rows, output = world
    two = [{**row, "source": "b" if row["label"] else "a"} for row in rows]
    found = judged(ctx, two, trained=output["trained"])
    overall, a, b = found["figures"]
    assert [overall["of"], a["of"], b["of"]] == ["overall", "a", "b"]
    assert overall["n"] == a["n"] + b["n"] == len(rows)
    assert overall["groups"] == len({row["group"] for row in rows})
    assert overall["ci95"][0] <= overall["accuracy"] <= overall["ci95"][1]
    assert a["positives"] == 0 and b["positives"] == b["n"]
    assert overall["accuracy"] == found["metrics"]["accuracy"]
    assert 0 <= found["predictedReward"] <= 1


def test_an_image_that_cannot_be_decoded_is_told_and_the_rest_judged(world):
    ctx, rows, output = world
    broken = {**rows[0], "digest": ctx.objects.put(b"no image")}
    found = judged(ctx, [broken, *rows[:5]], trained=output["trained"])
    assert [one["digest"] for one in found["failed"]] == [broken["digest"]]
    assert found["n"] == 6
    assert len(ctx.objects.get_jsonl(found["predictions"])) == 5


def test_the_mirrored_view_is_averaged_where_the_bundle_asks_for_it(world, int8):
    ctx, rows, _ = world
    bundle, found = int8
    flipped = ctx.objects.put_json({**bundle, "tta": {"flip": True}})
    plain, mirrored = (
        [line["prediction"] for line in ctx.objects.get_jsonl(judged(ctx, rows[:6], bundle=which)["predictions"])]
        for which in (found["bundle"], flipped)
    )
    assert plain != mirrored
    assert plain == pytest.approx(mirrored, abs=0.5)


def test_unlabelled_images_get_predictions_and_no_metrics(world):
    ctx, rows, output = world
    found = judged(ctx, [{**row, "label": None, "truth": "none"} for row in rows[:4]], trained=output["trained"])
    assert (found["metrics"], found["figures"], found["predictedReward"]) == (None, [], None)
    assert len(ctx.objects.get_jsonl(found["predictions"])) == 4


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


def test_trtexec_played_by_a_stand_in_program_builds_one_engine_a_member_that_passes_the_parity_check(world, stand_in):
    ctx, rows, output = world
    install, log = stand_in
    install()
    wish = order(ctx, output, rows, precision="fp32", tensorrt="always")
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


def test_trtexec_played_by_a_stand_in_program_that_answers_wrong_is_refused(world, stand_in):
    ctx, rows, output = world
    install, _ = stand_in
    install(error=0.5)
    with pytest.raises(ParityLost, match="trtexec and PyTorch differ"):
        export.run(ctx, order(ctx, output, rows, precision="fp32", tensorrt="always"))


def test_trtexec_played_by_a_stand_in_program_tells_its_own_time_and_computes_a_smaller_precision_with_its_flag(tmp_path, world, stand_in):
    ctx, _, output = world
    install, log = stand_in
    install()
    bundle = json.loads(ctx.objects.get(export.run(ctx, order(ctx, output, world[1]))["bundle"]))
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


def test_ranges_are_seen_once_and_every_choice_of_layers_is_made_from_them(tmp_path, world, int8):
    ctx, _, output = world
    bundle = json.loads(ctx.objects.get(export.run(ctx, order(ctx, output, world[1]))["bundle"]))
    graph = Graph(ctx.objects.get(bundle["members"][0]["onnx"]["sha256"]))
    x = np.random.default_rng(0).normal(size=(6, 3, 64, 64)).astype(np.float32)
    read = []

    class Batches(list):
        def __iter__(self):
            read.append(1)
            return super().__iter__()

    quantiser = Quantiser(graph, "m.onnx", Batches([x[:3], x[3:]]), tmp_path)
    whole = quantiser.graph()
    assert quantiser.graph().model == whole.model  # from the kept ranges: the same bytes
    fewer, one = quantiser.graph(quantiser.nodes[:2]), quantiser.graph(only=quantiser.nodes[:1])

    def count(made):
        return sum(node.op_type == "QuantizeLinear" for node in load(made).graph.node)

    assert count(whole) > count(fewer) > count(one) > 0
    assert to_int8(graph, "m.onnx", [x[:3], x[3:]]).model == whole.model
    assert opset(whole) == opset(graph)


def test_logits_are_matched_to_those_of_fp32_without_labels(world, int8):
    rng = np.random.default_rng(0)
    plain = rng.normal(0, 2, 200)
    scale, shift = match(plain * 0.9 - 0.4 + rng.normal(0, 0.01, 200), plain)
    assert scale == pytest.approx(1 / 0.9, abs=0.01)
    assert shift == pytest.approx(0.4 / 0.9, abs=0.01)
    assert match(plain * 0.5, plain)[0] == 1.2  # a rounding error is never that large
    assert match(np.zeros(5), np.full(5, 3.0)) == (1.0, 3.0)
    ctx, _, _ = world
    graph = Graph(ctx.objects.get(int8[0]["members"][0]["onnx"]["sha256"]))
    x = rng.normal(size=(4, 3, 64, 64)).astype(np.float32)
    before, after = (
        onnxruntime.InferenceSession(one.model).run(["logit"], {"input": x})[0] for one in (graph, matched(load_twice(graph), "m", 1.5, -2))
    )
    np.testing.assert_allclose(after, before * 1.5 - 2, atol=1e-4)


def load_twice(graph):
    """The exported graph is matched already: its names are given way."""
    model = load(graph)
    for node in model.graph.node:
        node.input[:] = [name.replace("logit/", "first/") for name in node.input]
        node.output[:] = [name.replace("logit/", "first/") for name in node.output]
        node.name = node.name.replace("logit/", "first/")
    for tensor in model.graph.initializer:
        tensor.name = tensor.name.replace("logit/", "first/")
    return pack(model, "m")


def test_layers_are_ranked_by_what_they_cost_and_what_was_not_reached_in_time_comes_last():
    cost = {"a": 1.0, "b": 3.0, "c": 2.0}
    assert ranked("abc", cost.get, 60) == ["b", "c", "a"]
    assert ranked("abc", cost.get, -1) == ["a", "b", "c"]


def test_the_nearest_of_the_fastest_int8_graphs_is_judged_first():
    assert by_nearness([(0.4, 10.0), (0.2, 10.4), (0.1, 12.0), (0.3, 9.99)]) == [1, 3, 0, 2]
    assert by_nearness([]) == []


def test_int8_that_loses_too_much_is_tried_with_other_layers_in_float(world, monkeypatch):
    ctx, rows, output = world
    monkeypatch.setattr(export, "KEPT", (0, 2, 4))
    monkeypatch.setattr(export, "by_nearness", lambda tries: list(range(len(tries))))
    calls = []

    def fake(p, reference, y, n):
        calls.append(1)
        # of the first member fp32 loses nothing, the first two int8 graphs too much, the third nothing
        return Loss(n, 0.5 if len(calls) in (2, 3) else 0.0, 0.0)

    monkeypatch.setattr(export, "loss", fake)
    found = export.run(ctx, order(ctx, output, rows, precision="int8"))
    validate("export.output", found, "output")
    bundle = json.loads(ctx.objects.get(found["bundle"]))
    validate("bundle", bundle, "bundle")
    first, second = (member["variants"][1] for member in bundle["members"])
    assert (first["keptFloat"], first["chosen"], first["refused"]) == (4, True, None)
    assert "keptFloat" not in second
    assert first["ms"] > 0

    def quantised(member):
        kinds = [node.op_type for node in load(Graph(ctx.objects.get(member["onnx"]["sha256"]))).graph.node]
        return kinds.count("QuantizeLinear")

    assert quantised(bundle["members"][0]) > 0
    monkeypatch.setattr(export, "KEPT", (0,))
    monkeypatch.setattr(export, "loss", lambda p, reference, y, n: Loss(n, 0.0, 0.0))
    whole = json.loads(ctx.objects.get(export.run(ctx, order(ctx, output, rows, precision="int8"))["bundle"]))
    assert quantised(bundle["members"][0]) < quantised(whole["members"][0])
