"""Whole train jobs: what they tell, how a fine-tune ends, and retrains from a parent."""

import json
import os
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import MEMBERS, make_context, snapshot_rows, train_input, world
from PIL import Image

from flywheel_jobs import finetune, shards, train, tuning, votes
from flywheel_jobs.errors import NotFinite, OneImageTooBig
from flywheel_jobs.features import Extractor
from flywheel_jobs.finetune import Score, score_of, settled
from flywheel_jobs.spec import validate
from flywheel_jobs.trained import Trained

TUNE = {"mode": "always", "gate": 0.5, "epochs": 2, "batch": 8, "backboneLr": 1e-4, "headLr": 1e-3, "maxSeconds": 600}
ONE = MEMBERS[:1]


def run(ctx, rows, **more):
    more.setdefault("report", False)
    output = train.run(ctx, train_input(ctx.objects.put_jsonl(rows), **more))
    validate("train.output", output, "output")
    return output, Trained.load(ctx.objects, output["trained"])


def apart(a, b):
    return max(float(np.abs(x.head.weight - y.head.weight).max()) for x, y in zip(a.members, b.members, strict=True))


def test_a_probe_job_leaves_pictures_curves_and_what_gives_it_again(ctx):
    rows = snapshot_rows(ctx.objects)
    output, _ = run(ctx, rows, report=True)
    for name in ("learningCurves", "confusion", "reliability", "worst"):
        with Image.open(ctx.objects.path(output["report"][name])) as image:
            assert image.format == "PNG"
            assert image.size[0] > 300
    history = ctx.objects.get_json(output["report"]["history"])
    assert [one["images"] for one in history["members"]["tiny-final"]["curve"]][-1] == 30
    assert sum(map(sum, history["validate"]["confusion"])) == 12
    assert history["validate"]["worst"][0]["digest"] in {one["digest"] for one in rows}
    reproduce = output["reproduce"]
    assert ctx.objects.get_json(reproduce["config"])["seed"] == reproduce["seed"] == 7
    assert reproduce["environment"]["numpy"] == np.__version__
    assert output["members"][0]["head"]["method"] == "logistic"
    assert [one["kind"] for one in output["ensemble"]["compared"]] == ["equal", "searched", "single"]
    assert output["ensemble"]["pairs"][0]["b"] == "tiny-mid"


def test_the_recipes_own_weights_stand_unless_others_win_beyond_doubt(ctx):
    members = [{**one, "recipeWeight": weight} for one, weight in zip(MEMBERS, (0.6, 0.4), strict=True)]
    output, _ = run(ctx, snapshot_rows(ctx.objects), members=members)
    assert [one["kind"] for one in output["ensemble"]["compared"]] == ["equal", "recipe", "searched", "single"]
    expected = [0.6, 0.4] if output["ensemble"]["chosen"] == "recipe" else output["ensemble"]["compared"][2]["weights"]
    assert [one["weight"] for one in output["members"]] == pytest.approx(expected)
    assert sorted(output["ensemble"]["compared"][3]["weights"]) == [0.0, 1.0]


def test_a_job_reads_its_images_from_shards(ctx):
    rows = snapshot_rows(ctx.objects)
    packed = shards.run(ctx, {"manifest": ctx.objects.put_jsonl(rows), "maxShardBytes": 40_000})
    for one in rows:
        ctx.objects.path(one["digest"]).unlink()
    output, _ = run(ctx, rows, shards=packed["index"], members=ONE)
    assert output["counts"]["real"] == 30


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A fine-tuned parent, kept by force: (root, rows, output, trained)."""
    root = tmp_path_factory.mktemp("parent")
    ctx = make_context(root)
    rows = snapshot_rows(ctx.objects)
    with pytest.MonkeyPatch.context() as patch:
        _keep(patch)
        output, trained = run(ctx, rows, fineTune=TUNE, members=ONE, report=True, sampling={"kind": "group-balanced"})
    assert output["members"][0]["stage"] == "fine-tune"
    return root, rows, output, trained


def _keep(patch):
    """Whatever the fine-tunes are worth."""
    patch.setattr(finetune._Run, "_score", _better_each_time())
    patch.setattr(tuning.FineTunes, "_worse_on_views", lambda *_: None)


def _better_each_time():
    calls = []

    def score(_self, _logits):
        calls.append(1)
        return Score(0.5 + len(calls) / 100, 0.3 - len(calls) / 100, 1.0, 0.0)

    return score


def test_a_fine_tune_tells_how_it_ran_and_leaves_tensorboard_events(tuned):
    root, _, output, _ = tuned
    ctx = make_context(root, work="look")
    facts = output["members"][0]["fineTune"]
    assert (facts["steps"], facts["precision"], facts["device"], facts["compiled"]) == (8, "fp32", "cpu", False)
    (told,) = output["report"]["tensorboard"]
    events = ctx.objects.get(told["events"])
    assert b"train/loss" in events
    assert b"validate/brier" in events
    lines = [json.loads(line) for line in (root / "work" / "progress.jsonl").read_text().splitlines()]
    last = [line for line in lines if line["phase"] == "fine-tune"][-1]
    validate("job-progress", last, "line")
    assert {"epoch", "step", "loss", "learningRate", "imagesPerSecond", "etaSeconds", "memoryMb"} <= last.keys()
    assert last["epoch"] == 2


def test_two_fine_tunes_on_a_cpu_give_the_same_weights(tuned, monkeypatch):
    root, rows, _, first = tuned
    _keep(monkeypatch)
    _, second = run(make_context(root, work="second"), rows, fineTune=TUNE, members=ONE, sampling={"kind": "group-balanced"})
    assert first.members[0].ref.weights == second.members[0].ref.weights  # digests of the tensors
    assert apart(first, second) == 0


def test_a_retrain_goes_on_from_the_parent_with_new_images_and_a_replay(tuned, monkeypatch):
    root, rows, output, parent = tuned
    ctx = make_context(root, work="retrain")
    new = world(ctx.objects, "train", 2, 3, 50)
    _keep(monkeypatch)
    again = {"replay": 1, "epochs": 1, "keepChoicesBelow": 0.5}
    more, child = run(ctx, [*rows, *new], fineTune=TUNE, members=ONE, initFrom=output["trained"], incremental=again)
    note, facts = more["members"][0]["note"], more["members"][0]["fineTune"]
    assert "6 new images with 6 old ones an epoch" in note
    assert (facts["images"], facts["steps"]) == (12, 2)  # not the whole 36 again
    assert more["retention"]["n"] == 12
    assert more["retention"]["newImages"] == 6
    assert more["retention"]["choicesKept"]
    assert more["retention"]["before"] == pytest.approx(output["validate"])
    assert more["ablation"] == []
    assert child.members[0].ref.weights != parent.members[0].ref.weights
    kept, before = (one.choices["heads"]["tiny-final"]["recipe"] for one in (child, parent))
    assert kept == before
    learned = {one["digest"] for one in [*rows, *new] if one["pool"] == "train"}
    assert not learned & known_to(ctx, parent), "a retrain that goes on needs no features of what was learned"


def known_to(ctx, trained):
    """Images whose features by the first member's backbone are in the shared store."""
    shared = ctx.objects.derived(f"features/{Extractor(ctx, trained.members[0].ref).backbone.space}")
    return {digest for note in shared.names(".json") for digest in json.loads(shared.get(note))["images"]}


def test_a_retrain_that_is_no_better_than_its_parent_learns_a_head_on_the_parents_backbone(tuned):
    root, rows, output, parent = tuned
    ctx = make_context(root, work="no-better")
    new = world(ctx.objects, "train", 2, 3, 50)
    ruin = {**TUNE, "backboneLr": 0.1, "headLr": 1.0}
    again = {"epochs": 1, "keepChoicesBelow": 0.5}
    more, child = run(ctx, [*rows, *new], fineTune=ruin, members=ONE, initFrom=output["trained"], incremental=again)
    assert "no better than its parent" in more["members"][0]["note"]
    assert "a new head on the parent's backbone learned from old and new images instead" in more["members"][0]["note"]
    assert child.members[0].ref == parent.members[0].ref
    assert apart(parent, child) > 0
    assert {one["digest"] for one in new} <= known_to(ctx, child)


def test_where_a_new_head_is_worse_than_the_parents_too_the_parents_weights_stand(tuned, monkeypatch):
    root, rows, output, parent = tuned
    ctx = make_context(root, work="stands")
    new = world(ctx.objects, "train", 2, 3, 50)
    monkeypatch.setattr(tuning, "share_worse", lambda *_: 0.95)
    ruin = {**TUNE, "backboneLr": 0.1, "headLr": 1.0}
    more, child = run(ctx, [*rows, *new], fineTune=ruin, members=ONE, initFrom=output["trained"], incremental={"keepChoicesBelow": 0.5})
    assert "worse in 95% of resamples: the parent's weights stand" in more["members"][0]["note"]
    assert apart(parent, child) == 0


@pytest.mark.parametrize(("worse", "kept"), [(1, True), (6, False)])
def test_what_goes_on_from_a_parent_is_kept_unless_it_is_worse_beyond_doubt(worse, kept):
    """The parent was the best of its epochs on these images, a retrain saw others."""
    labels = np.array([0, 1] * 6)
    before = np.where(labels == 1, 2.0, -2.0)
    now = before.copy()
    now[: 2 * worse] *= 0.5  # less sure in so many of six groups, a little surer in the others
    now[2 * worse :] *= 1.05
    assert (votes.share_worse(now, before, labels, [str(i // 2) for i in range(12)], 1) < votes.WORSE_CONFIDENCE) is kept


def test_a_fine_tune_is_judged_by_the_features_that_later_jobs_compute(tuned, tmp_path):
    root, rows, _, trained = tuned
    home, ref = make_context(root, work="look"), trained.members[0].ref
    held = [one["digest"] for one in rows if one["pool"] == "validate"]
    assert set(held) <= known_to(home, trained)
    kept = Extractor(home, ref).features(held)
    ctx = make_context(tmp_path)  # a store without features
    for digest in [*held, ref.weights.removeprefix("object:")]:
        ctx.objects.put(home.objects.get(digest))
    computed = Extractor(ctx, ref).features(held)
    for kind in ("final", "mid"):
        np.testing.assert_allclose(kept.of(kind), computed.of(kind), atol=1e-5)


def test_what_a_fine_tune_starts_from_is_judged_alike_by_kept_features_and_anew(tuned, monkeypatch):
    root, rows, _, _ = tuned
    told = []
    real = finetune.fine_tune
    for known in (True, False):
        monkeypatch.setattr(tuning, "fine_tune", lambda ctx, job, known=known: real(ctx, job if known else replace(job, known=None)))
        output, _ = run(make_context(root, work=f"known-{known}"), rows, fineTune={**TUNE, "epochs": 1}, members=ONE)
        told.append(output["members"][0]["note"])
    assert told[0] == told[1]


def test_a_retrain_with_many_new_images_chooses_anew(tuned):
    root, rows, output, _ = tuned
    ctx = make_context(root, work="anew")
    never = {**TUNE, "mode": "never"}
    new = world(ctx.objects, "train", 2, 3, 50)
    again = {"keepChoicesBelow": 0.1}
    more, _ = run(ctx, [*rows, *new], fineTune=never, members=ONE, initFrom=output["trained"], incremental=again)
    assert not more["retention"]["choicesKept"]


def test_a_retrain_without_anything_new_keeps_the_parents_backbone(tuned):
    root, rows, output, parent = tuned
    more, child = run(make_context(root, work="same"), rows, fineTune=TUNE, members=ONE, initFrom=output["trained"])
    assert "nothing new" in more["members"][0]["note"]
    assert child.members[0].ref == parent.members[0].ref


def test_a_fine_tune_that_is_worse_on_what_validators_send_is_thrown_away(ctx, monkeypatch):
    """It is judged on the photographs while it runs; a head that forgot the challenge views must not pass by that."""
    rows = snapshot_rows(ctx.objects)
    _, probe = run(ctx, rows, members=ONE)

    def forgetful(ctx, job):
        return finetune.Outcome(job.ref, replace(job.probe, weight=0 * job.probe.weight), "fine-tuned: validate accuracy 1.000")

    monkeypatch.setattr(tuning, "fine_tune", forgetful)
    output, trained = run(ctx, rows, members=ONE, fineTune=TUNE)
    (member,) = output["members"]
    assert member["stage"] == "probe"
    assert re.match(
        r"fine-tune thrown away, worse with the challenge views: accuracy .* before .*; on the photographs alone", member["note"]
    )
    assert apart(probe, trained) == 0


def test_epochs_that_are_no_better_end_the_fine_tune(ctx):
    idle = {**TUNE, "backboneLr": 1e-12, "headLr": 1e-12, "epochs": 6, "patience": 1}
    output, _ = run(ctx, snapshot_rows(ctx.objects), fineTune=idle, members=ONE)
    assert "stopped early after" in output["members"][0]["note"]
    assert output["members"][0]["fineTune"]["steps"] < 24


def test_gradient_checkpointing_accumulation_and_bf16_train_too(ctx):
    frugal = {**TUNE, "epochs": 1, "gradientCheckpointing": True, "microBatch": 3, "precision": "bf16"}
    output, _ = run(ctx, snapshot_rows(ctx.objects), fineTune=frugal, members=ONE)
    facts = output["members"][0]["fineTune"]
    assert (facts["microBatch"], facts["precision"], facts["steps"]) == (3, "bf16", 4)


def compile_soon(monkeypatch, tmp_path):
    """Compiling from the third step on, with nothing compiled before."""
    monkeypatch.setattr(finetune, "COMPILE_AFTER", 2)
    monkeypatch.setattr(finetune, "TIMED", 1)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    return {"fineTune": {**TUNE, "compile": "always"}, "members": ONE, "sampling": {"kind": "group-balanced"}}


def test_a_machine_without_a_compiler_fine_tunes_without_one_and_says_so(tuned, tmp_path, monkeypatch):
    root, rows, _, plain = tuned
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("/nowhere/g++",))
    _keep(monkeypatch)
    output, without = run(make_context(root, work="no-compiler"), rows, **compile_soon(monkeypatch, tmp_path))
    facts = output["members"][0]["fineTune"]
    assert not facts["compiled"]
    assert "the run went on without" in facts["compileNote"]
    assert "C++ compiler" in facts["compileNote"]
    assert apart(plain, without) == 0  # the step that failed left no trace


def test_memory_that_a_compiled_step_cannot_have_is_no_failure_of_the_compiler():
    said = "CUDA out of memory. Tried to allocate 2.00 GiB"
    assert not finetune.compiling_failed(RuntimeError(said))
    assert finetune.compiling_failed(torch._dynamo.exc.TorchDynamoException(said))  # the compiler's own memory: eager steps need less
    assert finetune.compiling_failed(FileNotFoundError("gcc"))


@pytest.mark.skipif("FLYWHEEL_TEST_COMPILE" not in os.environ, reason="compiles for minutes: set FLYWHEEL_TEST_COMPILE to run it")
def test_a_compiled_fine_tune_learns_what_an_eager_one_learns_and_tells_the_times(ctx, tmp_path, monkeypatch):
    rows = snapshot_rows(ctx.objects)
    order = {**compile_soon(monkeypatch, tmp_path), "members": [{**ONE[0], "backbone": "test_vit", "resolution": 160}], "report": True}
    _keep(monkeypatch)
    tune = {**order["fineTune"], "batch": 10}  # batches of one size are compiled once
    eager, _ = run(ctx, rows, **{**order, "fineTune": {**tune, "compile": "never"}})
    compiled, _ = run(make_context(tmp_path, work="compiled"), rows, **{**order, "fineTune": tune})
    facts = compiled["members"][0]["fineTune"]
    assert facts["compiled"]
    assert re.fullmatch(r"a step took [\d.]+ s, compiled [\d.]+ s; compiling took \d+ s", facts["compileNote"])
    losses = [losses_of(ctx, one) for one in (eager, compiled)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0][3:] != losses[1][3:]  # other kernels did compute it


def losses_of(ctx, output):
    history = ctx.objects.get_json(output["report"]["history"])
    return [one["loss"] for one in history["members"]["tiny-final"]["fineTune"]["steps"]]


def out_of_memory_above(monkeypatch, limit):
    real = finetune._Run._tensor

    def scarce(self, pixels):
        if len(pixels) > limit and torch.is_grad_enabled():
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(self, pixels)

    monkeypatch.setattr(finetune._Run, "_tensor", scarce)


def test_a_batch_that_does_not_fit_is_halved_and_the_result_stays(ctx, tmp_path, monkeypatch):
    rows = snapshot_rows(ctx.objects)
    one_epoch = {**TUNE, "epochs": 1}
    whole, _ = run(ctx, rows, fineTune=one_epoch, members=ONE, report=True)
    out_of_memory_above(monkeypatch, 2)
    halved, _ = run(make_context(tmp_path, work="halved"), rows, fineTune=one_epoch, members=ONE, report=True)
    facts = halved["members"][0]["fineTune"]
    assert (facts["microBatch"], facts["halvedByMemory"]) == (2, 2)
    losses = [losses_of(ctx, one) for one in (whole, halved)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_one_image_that_does_not_fit_is_out_of_memory(ctx, monkeypatch):
    out_of_memory_above(monkeypatch, 0)
    with pytest.raises(OneImageTooBig, match="one image at a time"):
        run(ctx, snapshot_rows(ctx.objects), fineTune=TUNE, members=ONE)


def test_a_loss_that_is_no_number_ends_the_job_and_says_what_to_lower(ctx, monkeypatch):
    monkeypatch.setattr(finetune, "focal_loss", lambda logits, *_: (logits * float("nan")).sum())
    with pytest.raises(NotFinite, match="backboneLr"):
        run(ctx, snapshot_rows(ctx.objects), fineTune=TUNE, members=ONE)


def test_a_fine_tune_is_judged_at_the_boundary_that_suits_it_and_gains_nothing_by_it():
    rng = np.random.default_rng(5)
    labels = np.arange(200) % 2
    logits = 2.0 * (2 * labels - 1) + rng.normal(size=200) * 1.5
    alone = [str(i) for i in range(200)]
    plain = settled(logits, labels, alone)
    for moved in (logits + 3.0, 0.4 * logits, 2.5 * logits - 4.0):
        found = settled(moved, labels, alone)
        assert found.accuracy == pytest.approx(plain.accuracy, abs=0.011)
        assert found.brier == pytest.approx(plain.brier, abs=0.002)
    assert settled(logits + 3.0, labels, alone).shift < plain.shift - 2.0
    # noise stays noise: nothing is won where there is nothing to tell
    assert settled(rng.normal(size=200), labels, alone).brier == pytest.approx(0.25, abs=0.01)


def test_a_handful_of_images_of_one_class_may_hardly_move_the_boundary():
    labels = np.array([0] * 30 + [1])
    logits = np.where(labels == 1, 3.0, -3.0)
    logits[0] = 4.0  # one wrong answer among thirty
    assert abs(settled(logits, labels, [str(i) for i in range(31)]).shift) < 2.0


def test_two_clips_move_the_boundary_less_than_as_many_photographs():
    labels = np.arange(200) % 2
    logits = 2.0 * (2 * labels - 1) + 3.0
    photographs, clips = [str(i) for i in range(200)], [f"clip {label}" for label in labels]
    assert abs(settled(logits, labels, clips).shift) < 0.7 * abs(settled(logits, labels, photographs).shift)


def test_classes_count_alike_in_the_judging_and_one_class_alone_moves_nothing():
    labels = np.array([0] * 90 + [1] * 10)
    careless, fair = np.where(labels == 1, -2.0, -2.0), np.where(labels == 1, 2.0, -2.0)
    fair[:20] = 2.0
    assert score_of(careless, labels).accuracy == pytest.approx(0.5)
    assert score_of(fair, labels).accuracy == pytest.approx((1 + 70 / 90) / 2)
    ones = np.ones(5, np.int64)
    assert settled(np.full(5, -1.0), ones, list("abcde")) == score_of(np.full(5, -1.0), ones)


def test_a_member_may_be_fine_tuned_or_not_whatever_the_others_are(ctx):
    members = [{**ONE[0], "name": "probe", "fineTune": "never"}, {**ONE[0], "name": "tuned"}]
    output, trained = run(ctx, snapshot_rows(ctx.objects), fineTune={**TUNE, "epochs": 1}, members=members)
    probe, tuned = output["members"]
    assert (probe["note"], probe["fineTune"]) == ("fine-tune switched off", None)
    assert tuned["fineTune"]["steps"] > 0
    assert [one.name for one in trained.members] == ["probe", "tuned"]


def test_a_corrected_label_makes_an_image_new_to_a_retrain(ctx):
    rows = snapshot_rows(ctx.objects)
    output, _ = run(ctx, rows, fineTune={**TUNE, "mode": "never"}, members=ONE)
    at = next(i for i, one in enumerate(rows) if one["pool"] == "train")
    corrected = [{**one, "label": 1 - one["label"]} if i == at else one for i, one in enumerate(rows)]
    more, _ = run(ctx, corrected, fineTune={**TUNE, "mode": "never"}, members=ONE, initFrom=output["trained"])
    assert more["retention"]["newImages"] == 1


@pytest.mark.parametrize(("first", "then", "kept"), [((0.86, 0.13), (0.85, 0.11), True), ((0.85, 0.11), (0.86, 0.13), False)])
def test_one_image_more_or_less_does_not_decide_against_the_brier_score(ctx, monkeypatch, first, then, kept):
    scores = iter([Score(*first, 1.0, 0.0), *[Score(*then, 1.0, 0.0)] * 3])
    monkeypatch.setattr(finetune._Run, "_score", lambda _self, _logits: next(scores))
    monkeypatch.setattr(tuning.FineTunes, "_worse_on_views", lambda *_: None)
    output, _ = run(ctx, snapshot_rows(ctx.objects), fineTune={**TUNE, "epochs": 1}, members=ONE)
    assert ("thrown away" not in output["members"][0]["note"]) is kept
