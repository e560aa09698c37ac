"""Smaller precisions: what they keep, what they cost, when they are refused, and which one is served."""

import json
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
from conftest import export_order

from flywheel_jobs import evaluate, export
from flywheel_jobs.errors import EmptySplit, LossAboveLimit, OneClass
from flywheel_jobs.metrics import measure
from flywheel_jobs.predicted import expected_reward, predicted_reward, reward
from flywheel_jobs.quantise import Graph, Quantiser, load, match, matched, opset, pack, ranked, to_int8
from flywheel_jobs.spec import validate, with_defaults
from flywheel_jobs.variants import Loss, Variant, above, by_nearness, loss, pick

FREE = {"fp16": {"accuracy": 1, "reward": 1}, "int8": {"accuracy": 1, "reward": 1}}


@pytest.fixture(scope="module")
def int8(ensemble):
    """Its bundle in int8: (bundle, output)."""
    ctx, rows, output = ensemble
    found = export.run(ctx, export_order(ctx, output, rows, precision="int8", limits=FREE))
    validate("export.output", found, "output")
    return json.loads(ctx.objects.get(found["bundle"])), found


def test_an_int8_bundle_takes_and_gives_float32_and_is_smaller(ensemble, int8):
    ctx, _, _ = ensemble
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


def test_a_precision_that_loses_more_than_its_limit_is_refused_by_name(ensemble, monkeypatch):
    ctx, rows, output = ensemble
    monkeypatch.setattr(export, "loss", lambda p, q, y, n: Loss(n, 0.03 if p is not q else 0.0, 0.05))
    with pytest.raises(LossAboveLimit, match=r"in int8 loses 0.0300 of accuracy, limit 0.0100, on 24 images.*fp32"):
        export.run(ctx, export_order(ctx, output, rows, precision="int8"))


def test_members_that_together_lose_too_much_go_back_to_fp32_when_the_choice_is_free(ensemble, monkeypatch):
    ctx, rows, output = ensemble
    calls = []

    def fake(p, reference, y, n):
        calls.append(1)
        # three precisions of two members are fine alone; the first look at the whole is not
        return Loss(n, 0.02 if len(calls) == 7 else 0.0, 0.0)

    monkeypatch.setattr(export, "loss", fake)
    monkeypatch.setattr(export, "time_sessions", lambda sessions, x: [9.0, 9.0, *([1.0] * (len(sessions) - 2))])
    found = export.run(ctx, export_order(ctx, output, rows, precision="auto"))
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
def test_a_loss_that_cannot_be_measured_refuses_smaller_precisions(ensemble, pools):
    ctx, rows, output = ensemble
    kept = [row for row in rows if row["pool"] in pools and (row["pool"] == "train" or row["label"] == 1)]
    with pytest.raises(EmptySplit if len(pools) == 1 else OneClass, match="smaller precision"):
        export.run(ctx, export_order(ctx, output, kept, precision="auto"))


def test_the_images_of_the_ranges_are_not_those_that_judge_and_never_synthetic_or_test(ensemble):
    ctx, rows, output = ensemble
    made = [{**row, "provider": "composite", "digest": ctx.objects.put(row["digest"].encode())} for row in rows if row["pool"] == "train"]
    evidence = export._evidence(ctx, export_order(ctx, output, [*rows, *made], lossImages=8, calibrationImages=60))
    assert len(evidence.judged) == 8
    assert not {row.digest for row in evidence.judged} & {row.digest for row in evidence.calibration}
    assert not any(row.synthetic for row in evidence.calibration)
    assert {row.pool for row in evidence.judged} <= {"validate", "calibrate"}
    assert {row.pool for row in evidence.calibration} <= {"train", "calibrate"}


def test_the_validation_gate_is_data_in_the_bundle(int8, ensemble):
    bundle, found = int8
    _, _, output = ensemble
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


# --- evaluate --------------------------------------------------------------------------------------------------------


def judged(ctx, rows, **more):
    found = evaluate.run(ctx, with_defaults("evaluate.input", {"manifest": ctx.objects.put_jsonl(rows), **more}))
    validate("evaluate.output", found, "output")
    return found


def test_a_bundle_in_fp32_and_the_trained_ensemble_behind_it_say_the_same(ensemble):
    ctx, rows, output = ensemble
    bundle = export.run(ctx, export_order(ctx, output, rows))["bundle"]
    one, two = judged(ctx, rows, bundle=bundle), judged(ctx, rows, trained=output["trained"])
    p, q = ([line["prediction"] for line in ctx.objects.get_jsonl(found["predictions"])] for found in (one, two))
    assert p == pytest.approx(q, abs=1e-3)
    assert one["metrics"] == pytest.approx(two["metrics"], abs=0.03)


def test_figures_tell_the_sources_apart_with_intervals_by_group(ensemble):
    ctx, rows, output = ensemble
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


def test_an_image_that_cannot_be_decoded_is_told_and_the_rest_judged(ensemble):
    ctx, rows, output = ensemble
    broken = {**rows[0], "digest": ctx.objects.put(b"no image")}
    found = judged(ctx, [broken, *rows[:5]], trained=output["trained"])
    assert [one["digest"] for one in found["failed"]] == [broken["digest"]]
    assert found["n"] == 6
    assert len(ctx.objects.get_jsonl(found["predictions"])) == 5


def test_the_mirrored_view_is_averaged_where_the_bundle_asks_for_it(ensemble, int8):
    ctx, rows, _ = ensemble
    bundle, found = int8
    flipped = ctx.objects.put_json({**bundle, "tta": {"flip": True}})
    plain, mirrored = (
        [line["prediction"] for line in ctx.objects.get_jsonl(judged(ctx, rows[:6], bundle=which)["predictions"])]
        for which in (found["bundle"], flipped)
    )
    assert plain != mirrored
    assert plain == pytest.approx(mirrored, abs=0.5)


def test_unlabelled_images_get_predictions_and_no_metrics(ensemble):
    ctx, rows, output = ensemble
    found = judged(ctx, [{**row, "label": None, "truth": "none"} for row in rows[:4]], trained=output["trained"])
    assert (found["metrics"], found["figures"], found["predictedReward"]) == (None, [], None)
    assert len(ctx.objects.get_jsonl(found["predictions"])) == 4


def test_ranges_are_seen_once_and_every_choice_of_layers_is_made_from_them(tmp_path, ensemble, int8):
    ctx, _, output = ensemble
    bundle = json.loads(ctx.objects.get(export.run(ctx, export_order(ctx, output, ensemble[1]))["bundle"]))
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


def test_logits_are_matched_to_those_of_fp32_without_labels(ensemble, int8):
    rng = np.random.default_rng(0)
    plain = rng.normal(0, 2, 200)
    scale, shift = match(plain * 0.9 - 0.4 + rng.normal(0, 0.01, 200), plain)
    assert scale == pytest.approx(1 / 0.9, abs=0.01)
    assert shift == pytest.approx(0.4 / 0.9, abs=0.01)
    assert match(plain * 0.5, plain)[0] == 1.2  # a rounding error is never that large
    assert match(np.zeros(5), np.full(5, 3.0)) == (1.0, 3.0)
    ctx, _, _ = ensemble
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


def test_int8_that_loses_too_much_is_tried_with_other_layers_in_float(ensemble, monkeypatch):
    ctx, rows, output = ensemble
    monkeypatch.setattr(export, "KEPT", (0, 2, 4))
    monkeypatch.setattr(export, "by_nearness", lambda tries: list(range(len(tries))))
    calls = []

    def fake(p, reference, y, n):
        calls.append(1)
        # of the first member fp32 loses nothing, the first two int8 graphs too much, the third nothing
        return Loss(n, 0.5 if len(calls) in (2, 3) else 0.0, 0.0)

    monkeypatch.setattr(export, "loss", fake)
    found = export.run(ctx, export_order(ctx, output, rows, precision="int8"))
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
    whole = json.loads(ctx.objects.get(export.run(ctx, export_order(ctx, output, rows, precision="int8"))["bundle"]))
    assert quantised(bundle["members"][0]) < quantised(whole["members"][0])
