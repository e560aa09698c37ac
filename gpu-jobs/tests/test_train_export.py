import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import onnxruntime
import pytest
from conftest import MEMBERS, export_order, make_context, row, scene, snapshot_rows, train_input, world
from safetensors.numpy import load

from flywheel_jobs import export, train
from flywheel_jobs.errors import BadInput, Interrupted
from flywheel_jobs.metrics import sigmoid
from flywheel_jobs.pictures import decode
from flywheel_jobs.schedules import learning_rate
from flywheel_jobs.spec import validate
from flywheel_jobs.trained import Trained

TUNE = {"mode": "always", "gate": 0.5, "epochs": 2, "batch": 8, "backboneLr": 1e-4, "headLr": 1e-3, "maxSeconds": 600}


def run(ctx, rows, **more):
    output = train.run(ctx, train_input(ctx.objects.put_jsonl(rows), **more))
    validate("train.output", output, "output")
    return output, Trained.load(ctx.objects, output["trained"])


def difference(a, b):
    """Largest difference of any head weight of two ensembles."""
    return max(float(np.abs(x.head.weight - y.head.weight).max()) for x, y in zip(a.members, b.members, strict=True))


def test_the_probe_learns_and_says_how_its_members_did(ctx):
    output, trained = run(ctx, snapshot_rows(ctx.objects))
    assert output["validate"]["accuracy"] > 0.8
    assert output["validate"]["n"] == 12
    assert [one["stage"] for one in output["members"]] == ["probe", "probe"]
    assert sum(one["weight"] for one in output["members"]) == pytest.approx(1)
    assert output["counts"] == {"real": 30, "synthetic": 0, "leftOut": 0}
    assert trained.calibration["kind"] == "temperature"  # the pool has too few groups for a shift


def test_the_same_spec_gives_the_same_weights_from_an_empty_cache(ctx, tmp_path):
    rows = snapshot_rows(ctx.objects)
    _, first = run(ctx, rows)
    other = make_context(tmp_path, cache="cache2", work="work2", objects="objects2")  # the store shares features too
    assert snapshot_rows(other.objects) == rows
    _, second = run(other, rows)
    assert difference(first, second) < 1e-6


@pytest.mark.parametrize("pool", ["train", "calibrate", "validate"])
def test_a_pool_of_one_class_is_refused_with_the_counts(ctx, pool):
    rows = [one for one in snapshot_rows(ctx.objects) if one["pool"] != pool or one["label"] == 0]
    with pytest.raises(BadInput, match=f"{pool} lacks one.*{pool}: 0 with roadwork"):
        run(ctx, rows)


def test_a_test_image_is_refused(ctx):
    with pytest.raises(BadInput, match="test"):
        run(ctx, [*snapshot_rows(ctx.objects), *world(ctx.objects, "test", 2, 1, 8)])


def test_a_planted_leak_is_refused(ctx):
    rows = snapshot_rows(ctx.objects)
    held = next(one for one in rows if one["pool"] == "validate")
    digest = ctx.objects.put(scene(1, np.random.default_rng(4), 10))
    planted = row(digest, 1, "train", "elsewhere", parents=[held["digest"]], provider="composite", truth="consensus")
    with pytest.raises(BadInput, match="leaks"):
        run(ctx, [*rows, planted])


def composites(objects, rows, wrong, provider, count=2):
    """Images made from the training ones, with the right or the wrong label."""
    rng = np.random.default_rng(len(provider))
    made = []
    for parent in (one for one in rows if one["pool"] == "train"):
        for _ in range(count):
            label = int(rng.integers(0, 2))
            digest = objects.put(scene(label, rng, 60))
            said = 1 - label if wrong else label
            made.append(row(digest, said, "train", parent["group"], parents=[parent["digest"]], provider=provider, truth="consensus"))
    return made


def test_a_provider_that_harms_real_images_is_left_out_and_a_helpful_one_kept(ctx):
    rows = snapshot_rows(ctx.objects)
    everything = [*rows, *composites(ctx.objects, rows, True, "broken"), *composites(ctx.objects, rows, False, "composite", 1)]
    output, _ = run(ctx, everything)
    by_name = {one["provider"]: one for one in output["ablation"]}
    assert by_name["broken"]["kept"] is False
    assert by_name["broken"]["with"]["brier"] > by_name["broken"]["without"]["brier"]
    assert "left out" in by_name["broken"]["reason"]
    assert by_name["composite"]["kept"] is True
    assert output["counts"] == {"real": 30, "synthetic": 30, "leftOut": 60}


def test_the_share_of_synthetic_weight_is_capped(ctx):
    rows = snapshot_rows(ctx.objects)
    made = [{**one, "weight": 0.5} for one in composites(ctx.objects, rows, False, "composite", 4)]
    output, _ = run(ctx, [*rows, *made], maxSyntheticShare=0.4, ablation=False)
    assert output["counts"] == {"real": 30, "synthetic": 40, "leftOut": 80}  # 40 * 0.5 / (30 + 20) = 0.4


def test_a_retrain_from_the_parent_converges_to_the_same_probe(ctx, tmp_path):
    rows = snapshot_rows(ctx.objects)
    output, first = run(ctx, rows)
    _, second = run(make_context(tmp_path, work="work2"), rows, initFrom=output["trained"])
    assert second.parent is None or second.parent == output["trained"]
    assert difference(first, second) < 1e-3


def test_an_unlabelled_traffic_image_is_no_training_image(ctx):
    extra = [{**one, "label": None, "truth": "none"} for one in world(ctx.objects, "traffic", 2, 1, 20)]
    output, _ = run(ctx, [*snapshot_rows(ctx.objects), *extra])
    assert output["counts"]["real"] == 30


def test_the_learning_rate_warms_up_and_falls_to_nothing():
    rates = [learning_rate(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == 1.0 == rates[9]
    assert rates[-1] < 0.001


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A fine-tuned ensemble, made once: (folder, rows, output, trained)."""
    root = tmp_path_factory.mktemp("tuned")
    ctx = make_context(root)
    rows = snapshot_rows(ctx.objects)
    output, trained = run(ctx, rows, fineTune=TUNE, members=MEMBERS[:1])
    return root, rows, output, trained


def test_a_fine_tune_is_kept_only_when_it_beats_its_probe(tuned):
    _, _, output, trained = tuned
    (member,) = output["members"]
    if member["stage"] == "fine-tune":
        assert member["note"].startswith("fine-tuned")
        assert trained.members[0].ref.weights.startswith("object:")
    else:
        assert "thrown away" in member["note"]
        assert trained.members[0].ref.weights == "none"


def test_a_ruinous_fine_tune_is_thrown_away(ctx):
    ruin = {**TUNE, "backboneLr": 0.1, "headLr": 1.0, "epochs": 1}
    output, trained = run(ctx, snapshot_rows(ctx.objects), fineTune=ruin, members=MEMBERS[:1])
    assert output["members"][0]["stage"] == "probe"
    assert "thrown away" in output["members"][0]["note"]
    assert trained.members[0].ref.weights == "none"


def test_the_time_cap_keeps_the_best_so_far_and_says_so(ctx):
    output, _ = run(ctx, snapshot_rows(ctx.objects), fineTune={**TUNE, "maxSeconds": 1e-6}, members=MEMBERS[:1])
    assert "time cap after 1 of" in output["members"][0]["note"]


def test_an_interrupted_fine_tune_goes_on_to_the_same_weights(tuned, tmp_path, monkeypatch):
    root, rows, _, whole = tuned
    ctx = make_context(root, work="interrupted")
    step = ctx.progress.step

    def stop_at_five(phase, done, *rest, **more):
        step(phase, done, *rest, **more)
        if phase == "fine-tune" and done == 5:
            raise Interrupted("SIGTERM")

    monkeypatch.setattr(ctx.progress, "step", stop_at_five)
    with pytest.raises(Interrupted):
        run(ctx, rows, fineTune=TUNE, members=MEMBERS[:1])
    monkeypatch.undo()
    seen = []
    monkeypatch.setattr(ctx.progress, "step", lambda phase, done, *rest, **more: seen.append((phase, done)))
    _, resumed = run(ctx, rows, fineTune=TUNE, members=MEMBERS[:1])
    assert ("fine-tune", 5) not in seen
    assert ("fine-tune", 6) in seen
    assert difference(whole, resumed) < 1e-6


def test_a_killed_training_started_again_ends_with_the_same_weights(tuned):
    root, rows, _, whole = tuned
    snapshot = make_context(root).objects.put_jsonl(rows)
    work = root / "killed"
    work.mkdir()
    spec = {"version": 1, "job": "train", "name": "killed", "objects": {"kind": "file", "root": str(root / "objects")}}
    spec |= {"cacheDir": str(root / "cache-killed"), "workDir": str(work), "threads": 1}
    (work / "spec.json").write_text(json.dumps({**spec, "input": train_input(snapshot, fineTune=TUNE, members=MEMBERS[:1])}))
    command = [sys.executable, "-m", "flywheel_jobs.cli", "run", str(work / "spec.json")]
    progress = work / "progress.jsonl"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not (progress.is_file() and '"phase":"fine-tune"' in progress.read_text()):
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    assert not (work / "result.json").is_file()
    _, resumed = run(make_context(root, cache="cache-killed", work="killed"), rows, fineTune=TUNE, members=MEMBERS[:1])
    assert difference(whole, resumed) < 1e-6


# --- export ----------------------------------------------------------------------------------------------------------


def export_input(ctx, output, rows, **more):
    return export_order(ctx, output, rows, **{"parityImages": 6, "parityTolerance": 1e-4, **more})


@pytest.fixture(scope="module")
def bundled(ensemble):
    """An exported probe ensemble: (ctx, rows, train output, trained, export output, bundle)."""
    ctx, rows, output = ensemble
    trained = Trained.load(ctx.objects, output["trained"])
    found = export.run(ctx, export_input(ctx, output, rows))
    validate("export.output", found, "output")
    return ctx, rows, output, trained, found, json.loads(ctx.objects.get(found["bundle"]))


def test_every_file_of_the_bundle_is_an_object_of_the_named_size(bundled):
    ctx, _, output, _, found, bundle = bundled
    files = [member[part] for member in bundle["members"] for part in ("onnx", "safetensors")]
    assert all(len(ctx.objects.get(file["sha256"])) == file["bytes"] for file in files)
    assert found["bytes"] == sum(file["bytes"] for file in files) + len(ctx.objects.get(found["bundle"]))
    assert bundle["training"]["trained"] == output["trained"]
    assert list(bundle) == sorted(bundle)


def test_the_bundles_onnx_gives_the_probabilities_of_the_trained_heads(bundled):
    ctx, rows, _, trained, found, bundle = bundled
    assert found["parity"]["maxAbsDp"] < 1e-4
    held = [one for one in rows if one["pool"] == "validate"]
    for member, entry in zip(trained.members, bundle["members"], strict=True):
        session = onnxruntime.InferenceSession(ctx.objects.get(entry["onnx"]["sha256"]))
        pixels = np.stack([member.preprocess.pixels(decode(ctx.objects.get(one["digest"]), "x")) for one in held])
        (logits,) = session.run(["logit"], {"input": member.preprocess.tensor(pixels)})
        assert logits.shape == (len(held),)  # n is dynamic
        right = np.mean((sigmoid(logits.astype(float)) > 0.5) == np.array([one["label"] for one in held]))
        assert right > 0.7


def test_the_same_model_exported_twice_is_the_same_bytes(bundled, tmp_path):
    ctx, rows, output, _, found, _ = bundled
    again = export.run(make_context(ctx.objects.root.parent, work="again"), export_input(ctx, output, rows))
    assert again["bundle"] == found["bundle"]


def test_safetensors_hold_the_head_and_only_the_layers_in_use(bundled):
    ctx, _, _, trained, _, bundle = bundled
    final, mid = (load(ctx.objects.get(member["safetensors"]["sha256"])) for member in bundle["members"])
    assert np.allclose(final["head.weight"][0], trained.members[0].head.weight, atol=1e-6)
    assert any("conv_head" in name for name in final)
    assert not any("conv_head" in name for name in mid)


def test_final_and_mid_level_features_in_one_head_train_export_and_agree_with_pytorch(ctx):
    rows = snapshot_rows(ctx.objects)
    both = {**MEMBERS[0], "name": "tiny-both", "features": "both"}
    settings = {"members": [both], "views": 0, "ablation": False, "report": False}
    output, trained = run(ctx, rows, **settings)
    _, alike = run(ctx, rows, **settings, head={"midScale": 1})
    assert output["validate"]["accuracy"] > 0.8
    assert difference(trained, alike) > 1e-6
    found = export.run(ctx, export_input(ctx, output, rows))
    bundle = json.loads(ctx.objects.get(found["bundle"]))
    assert bundle["members"][0]["features"] == "both"
    assert found["parity"]["maxAbsDp"] < 1e-4
    weights = load(ctx.objects.get(bundle["members"][0]["safetensors"]["sha256"]))
    assert weights["head.weight"].shape[1] == len(trained.members[0].head.weight)
    assert any("conv_head" in name for name in weights)


def test_a_difference_beyond_the_tolerance_refuses_the_bundle(bundled):
    ctx, rows, output, _, _, _ = bundled
    with pytest.raises(BadInput, match="differ by"):
        export.run(ctx, export_input(ctx, output, rows, parityTolerance=1e-15))


def test_a_changed_backbone_refuses_the_bundle(bundled, monkeypatch):
    ctx, rows, output, _, _, _ = bundled
    monkeypatch.setattr(export, "weights_digest", lambda *_: "0" * 64)
    with pytest.raises(BadInput, match="was trained on weights"):
        export.run(ctx, export_input(ctx, output, rows))


def test_an_object_that_is_no_trained_model_is_refused(bundled):
    ctx, rows, _, _, _, _ = bundled
    with pytest.raises(BadInput, match="no `trained` object"):
        export.run(ctx, export_input(ctx, {"trained": ctx.objects.put_json({"a": 1})}, rows))


def test_an_empty_parity_manifest_is_refused(bundled):
    ctx, rows, output, _, _, _ = bundled
    with pytest.raises(BadInput, match="empty"):
        export.run(ctx, export_input(ctx, output, rows, parity=ctx.objects.put_jsonl([])))
