"""Parts of a training run that need no whole job: choices, order of images, augmentation, loader, schedules, heads, report."""

import io
import itertools
import os
import signal

import numpy as np
import pytest
from conftest import scene, world
from PIL import Image

from flywheel_jobs import report
from flywheel_jobs.augment import Augment
from flywheel_jobs.backbones import Preprocess
from flywheel_jobs.catalogue import TABLE, Licence, licence_of, licence_warning
from flywheel_jobs.choice import choose
from flywheel_jobs.errors import BadInput, CorruptImage, OutOfMemory
from flywheel_jobs.finetune import build_member, focal_loss, parameter_groups
from flywheel_jobs.heads import LAMBDAS, Head, Rows, group_folds
from flywheel_jobs.loader import Views, batches, schedule, worker_count
from flywheel_jobs.machine import cgroup_bytes
from flywheel_jobs.pictures import decode
from flywheel_jobs.recipes import Batches, Logistic, choose_recipe, focal_slope, recipe_of
from flywheel_jobs.sampling import Plan, hold_synthetic_share
from flywheel_jobs.schedules import Settings, compiling_pays, ema_decay, learning_rate, precision_of, worth_trying
from flywheel_jobs.spec import with_defaults
from flywheel_jobs.weights import BackboneRef

OPTIONS = with_defaults("train.input", {"fineTune": {}})
HALF = Preprocess(64, (0.5,) * 3, (0.5,) * 3)


# --- the choice of a backbone ----------------------------------------------------------------------------------------


def test_a_big_gpu_and_time_give_the_biggest_backbone_and_a_laptop_the_smallest():
    assert choose("auto", 224, 80, 10_000).name.startswith("vit_giant")
    assert choose("auto", 224, 24, 10_000).name.startswith("vit_large")
    assert choose("auto", 224, 4, 100).name.startswith("tf_efficientnet_lite0")


def test_the_latency_budget_binds_before_the_memory_and_the_reason_says_so():
    choice = choose("auto", 224, 80, 100)  # two CPU cores serve
    assert choice.name.startswith("vit_small")
    assert "too slow" in choice.reason
    assert "vit_giant" in choice.reason
    assert "80 GB" in choice.reason


def test_a_family_and_a_higher_resolution_are_respected():
    assert choose("auto:convnext", 224, 24, 10_000).name.startswith("convnext_large")
    assert choose("auto:dinov2", 448, 24, 260).name.startswith("vit_small")  # four times the work


def test_nothing_that_fits_and_no_such_family_are_bad_input():
    with pytest.raises(BadInput, match=r"smallest.*efficientnet_lite0.*2 GB"):
        choose("auto", 224, 1, 100)
    with pytest.raises(BadInput, match="convnext, convnextv2, dinov2"):
        choose("auto:resnet", 224, 24, 100)


def test_every_backbone_of_the_table_is_timms():
    import timm

    assert [row.name for row in TABLE if timm.get_pretrained_cfg(row.name) is None] == []


# --- licences of weights ---------------------------------------------------------------------------------------------


def test_every_licence_of_the_catalogue_is_what_timm_says_of_the_checkpoint():
    import timm

    told = {row.name: (timm.get_pretrained_cfg(row.name).license or "").lower() for row in TABLE}
    assert told == {row.name: row.licence.spdx.lower() for row in TABLE}
    assert all(row.licence.commercial != ("-nc" in told[row.name]) for row in TABLE)


@pytest.mark.parametrize("memory_gb", [4, 8, 12, 18, 24, 80])
def test_auto_never_takes_weights_that_forbid_earning_money_unless_it_is_allowed(memory_gb):
    for milliseconds in (50, 100, 160, 400, 10_000):
        name = choose("auto", 224, memory_gb, milliseconds).name
        assert next(row for row in TABLE if row.name == name).licence.commercial
    assert choose("auto:convnextv2", 224, 24, 10_000, non_commercial=True).name.startswith("convnextv2_large")
    with pytest.raises(BadInput, match=r"forbids commercial use.*allowNonCommercial"):
        choose("auto:convnextv2", 224, memory_gb, 10_000)


def test_what_was_passed_over_for_its_licence_is_told():
    assert "convnextv2_base (CC-BY-NC-4.0 forbids commercial use" in choose("auto", 224, 12, 200).reason


@pytest.mark.parametrize(
    ("backbone", "licence"),
    [
        ("tf_efficientnet_lite0", Licence("Apache-2.0", True)),
        ("convnextv2_nano.fcmae", Licence("CC-BY-NC-4.0", False)),  # by its family
        ("vit_base_patch16_224.mae", Licence("cc-by-nc-4.0", False)),  # by timm
        ("resnet50.tv_in1k", Licence("BSD-3-Clause", True)),
        ("vit_small_patch16_dinov3", Licence("dinov3-license", None)),
    ],
)
def test_a_checkpoint_outside_the_catalogue_is_looked_up(backbone, licence):
    assert licence_of(backbone) == licence


def test_a_named_backbone_that_forbids_earning_money_is_warned_of_once_and_not_when_allowed():
    member = {"name": "cnx", "weights": "hub"}
    assert "member cnx" in (licence_warning(member, "convnextv2_tiny.fcmae_ft_in22k_in1k") or "")
    assert licence_warning({**member, "allowNonCommercial": True}, "convnextv2_tiny.fcmae_ft_in22k_in1k") is None
    assert licence_warning({**member, "weights": "none"}, "convnextv2_tiny.fcmae_ft_in22k_in1k") is None
    assert licence_warning(member, "convnext_tiny.fb_in22k_ft_in1k") is None
    assert "not known here" in (licence_warning(member, "vit_small_patch16_dinov3") or "")


def test_an_automatic_member_becomes_a_named_one():
    budget = {"memoryGb": 13, "latencyMs": 1000}
    ref = BackboneRef.of({"backbone": "auto:eva02", "weights": "hub", "resolution": 224, "budget": budget})
    assert ref.backbone == "eva02_base_patch14_224.mim_in22k"


# --- order and weight of the images ----------------------------------------------------------------------------------

LABELS = np.array([1] * 10 + [0] * 90)
GROUPS = [f"g{i // 5}" for i in range(100)]


def test_an_epoch_shows_every_image_once_in_an_order_of_its_own():
    plan = Plan.of("weights", LABELS, GROUPS, np.ones(100), 7)
    first, again, second = ([one.index for one in plan.epoch(e)] for e in (0, 0, 1))
    assert sorted(first) == list(range(100))
    assert first == again != second
    assert plan.loss_weights[LABELS == 1].sum() == pytest.approx(plan.loss_weights[LABELS == 0].sum())


@pytest.mark.parametrize(("kind", "share"), [("square-root", 0.25), ("group-balanced", 0.5)])
def test_sampling_evens_the_classes_by_drawing(kind, share):
    plan = Plan.of(kind, LABELS, GROUPS, np.ones(100), 7)
    shown = [one.index for epoch in range(5) for one in plan.epoch(epoch)]
    assert LABELS[shown].mean() == pytest.approx(share, abs=0.02)  # 1 / (1 + sqrt 9), one half
    assert set(plan.loss_weights) == {1.0}
    draws = {(one.index, one.draw) for one in plan.epoch(0)}
    assert len(draws) == 100  # one image twice gets two augmentations


def test_a_retrain_shows_every_new_image_and_as_many_old_ones():
    fresh = np.arange(100) % 10 == 0
    plan = Plan.of("weights", LABELS, GROUPS, np.ones(100), 7).incremental(fresh, 1.0)
    shown = [one.index for one in plan.epoch(3)]
    assert plan.length == len(shown) == 20
    assert {i for i in shown if fresh[i]} == set(np.flatnonzero(fresh))


def test_the_synthetic_share_is_held_but_no_image_is_blown_up(ctx):
    from flywheel_jobs.spec import read_manifest

    rows = world(ctx.objects, "train", 10, 1, 1) + world(ctx.objects, "train", 1, 1, 9, provider="composite")
    rows = read_manifest(ctx.objects, ctx.objects.put_jsonl(rows), "rows")
    weights = {row.provider: row.weight for row in hold_synthetic_share(rows, 0.2)}
    assert weights == {None: 1.0, "composite": pytest.approx(2.5)}  # 2.5 of 12.5
    assert max(row.weight for row in hold_synthetic_share(rows, 0.9)) == 4.0
    assert hold_synthetic_share(rows, 0.05) is rows


# --- augmentation and loader -----------------------------------------------------------------------------------------


def picture(seed=0):
    return decode(scene(1, np.random.default_rng(seed), 80), "x")


def test_the_recipe_repeats_by_seed_and_differs_between_seeds():
    everything = {**OPTIONS["augmentation"], "challenge": 0, "recipe": 1, "fog": 1, "rain": 1, "sun": 1}
    augment = Augment(everything, 64)
    a, again, b = (np.asarray(augment(picture(), np.random.default_rng(seed))) for seed in (1, 1, 2))
    assert np.array_equal(a, again)
    assert a.shape != b.shape or not np.array_equal(a, b)


def test_fog_takes_contrast_and_never_light():
    clear = {**OPTIONS["augmentation"], "challenge": 0, "recipe": 1, "flip": 0, "rotate": 0, "cropScale": 1, "jitter": [0, 0, 0]}
    clear |= {"grayscale": 0, "blur": 0, "fog": 0, "rain": 0, "sun": 0}
    before = np.asarray(Augment(clear, 64)(picture(), np.random.default_rng(0)), float)
    for seed in range(8):
        after = np.asarray(Augment({**clear, "fog": 1}, 64)(picture(), np.random.default_rng(seed)), float)
        assert after.std() < 0.8 * before.std()
        assert after.mean() > 0.97 * before.mean()


def test_shares_of_nothing_leave_the_picture_alone():
    nothing = {**OPTIONS["augmentation"], "challenge": 0, "recipe": 0, "flip": 0}
    assert np.array_equal(np.asarray(Augment(nothing, 64)(picture(), np.random.default_rng(1))), np.asarray(picture()))
    flipped = Augment({**nothing, "flip": 1}, 64)(picture(), np.random.default_rng(1))
    assert np.array_equal(np.asarray(flipped), np.asarray(picture())[:, ::-1])


def views_of(ctx, rows, **more):
    options = {**OPTIONS["augmentation"], **more}
    return Views(ctx.objects, [one["digest"] for one in rows], HALF, Augment(options, 64), 7)


def test_batches_are_the_same_with_workers_without_and_from_the_middle_on(ctx):
    rows = world(ctx.objects, "train", 6, 2, 1)
    plan = Plan.of("weights", np.array([one["label"] for one in rows]), [one["group"] for one in rows], np.ones(len(rows)), 7)

    def run(first, workers):
        found = batches(views_of(ctx, rows, recipe=0.5), plan, 5, 2, first, workers, 2, False)
        return [(index.tolist(), pixels.numpy()) for index, pixels in found]

    alone, helped, later = run(0, 0), run(0, 2), run(4, 1)
    assert [len(index) for index, _ in alone] == [5, 5, 2, 5, 5, 2]
    for one, other in itertools.chain(zip(alone, helped, strict=True), zip(alone[4:], later, strict=True)):
        assert one[0] == other[0]
        assert np.array_equal(one[1], other[1])


def test_a_corrupt_image_is_named_even_by_a_worker(ctx):
    rows = [*world(ctx.objects, "train", 2, 1, 1), {"digest": ctx.objects.put(b"no image")}]
    plan = Plan.of("weights", np.array([0, 1, 1]), ["a", "b", "c"], np.ones(3), 7)
    with pytest.raises(CorruptImage, match=rows[2]["digest"]) as told:
        list(batches(views_of(ctx, rows), plan, 3, 1, 0, 1, 2, False))
    assert "Traceback" not in str(told.value)


def test_workers_leave_a_core_to_the_network():
    assert [worker_count(None, threads) for threads in (1, 2, 4, 64)] == [0, 1, 3, 8]
    assert worker_count(3, 1) == 3
    assert [worker_count(None, 9, divisor) for divisor in (1, 2, 16)] == [8, 4, 0]  # after memory was short


def test_a_decoding_process_that_dies_is_a_shortage_of_memory_with_advice(ctx):
    class Dying(Views):
        def __getitem__(self, key):
            os.kill(os.getpid(), signal.SIGKILL)

    rows = world(ctx.objects, "train", 2, 2, 1)
    preprocess = Preprocess(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    views = Dying(ctx.objects, [one["digest"] for one in rows], preprocess, Augment(OPTIONS["augmentation"], 32), 1)
    plan = Plan.of("weights", np.array([0, 1, 0, 1]), list("abcd"), np.ones(4), 1)
    with pytest.raises(OutOfMemory, match=r"decodes images died .DataLoader worker.*--shm-size.*loader\.workers: 0"):
        next(batches(views, plan, 2, 1, 0, 1, 2, False))


def test_the_memory_of_a_container_is_what_it_may_use(tmp_path):
    assert cgroup_bytes(tmp_path) == float("inf")
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("2000000000\n")
    assert cgroup_bytes(tmp_path) == 2e9
    (tmp_path / "memory.max").write_text("max\n")
    assert cgroup_bytes(tmp_path) == 2e9
    (tmp_path / "memory.max").write_text("1000000000\n")
    assert cgroup_bytes(tmp_path) == 1e9


def test_a_resumed_schedule_is_the_rest_of_the_whole_one():
    plan = Plan.of("group-balanced", LABELS, GROUPS, np.ones(100), 7)
    whole = list(schedule(plan, 16, 3))
    assert list(schedule(plan, 16, 3, 10)) == whole[10:]


# --- schedules and parameters ----------------------------------------------------------------------------------------


def test_warm_restarts_rise_again_to_the_full_rate():
    rates = [learning_rate(step, 110, 0.1, 2) for step in range(110)]
    # eleven steps of warm-up, then two cycles of 49.5
    assert rates[10] == rates[11] == 1.0
    assert rates[60] < 0.01
    assert rates[61] > 0.99
    assert rates[-1] < 0.02


def test_numbers_that_decide_how_a_step_runs():
    assert ema_decay(0, 0.99) == pytest.approx(0.1)
    assert ema_decay(100_000, 0.99) == 0.99
    assert precision_of("auto", cuda=False, bf16=False) == "fp32" == precision_of("fp16", cuda=False, bf16=False)
    assert precision_of("auto", cuda=True, bf16=True) == "bf16"
    assert precision_of("auto", cuda=True, bf16=False) == "fp16"
    assert worth_trying(0.5, 10_000)
    assert not worth_trying(0.5, 100)
    assert compiling_pays(0.5, 0.4, 100)
    assert not compiling_pays(0.5, 0.49, 100)


@pytest.mark.parametrize(("name", "size"), [("test_vit", 160), ("test_efficientnet", 64), ("test_convnext", 64)])
def test_layers_farther_from_the_head_learn_slower_and_every_parameter_learns_once(ctx, name, size):
    settings = Settings(1, 8, 1e-4, 1e-3, 600, layer_decay=0.5)
    ref = BackboneRef(name, "none", size)
    width = build_member(ref, "final", Head(np.zeros(1), 0.0), ctx, False).net.model.num_features
    model = build_member(ref, "final", Head(np.zeros(width), 0.0), ctx, False)
    groups = parameter_groups(model, settings)
    ids = [id(p) for group in groups for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in model.parameters())
    rate = {id(p): group["full"] for group in groups for p in group["params"]}
    parameters = dict(model.named_parameters())
    assert rate[id(parameters["head.weight"])] == 1e-3
    backbone = [rate[id(p)] for key, p in parameters.items() if key.startswith("net.")]
    assert backbone[0] == min(backbone) < max(backbone) <= 1e-4


# --- heads -----------------------------------------------------------------------------------------------------------


def blobs(n=160, d=6, shift=1.5):
    rng = np.random.default_rng(0)
    y = np.arange(n) % 2
    x = rng.normal(size=(n, 1, d)).astype(np.float32)
    x[:, 0, 0] += shift * y
    return Rows(x, y, np.ones(n), np.array([f"g{i // 4}{i % 2}" for i in range(n)]))


def test_the_focal_slope_is_the_derivative_of_the_loss():
    import torch

    margin = torch.linspace(-4, 4, 9, dtype=torch.float64, requires_grad=True)
    for gamma in (0.0, 2.0):
        (gradient,) = torch.autograd.grad(focal_loss(margin, torch.ones_like(margin), torch.ones_like(margin), gamma), margin)
        assert np.allclose(gradient.numpy(), focal_slope(margin.detach().numpy(), gamma), atol=1e-10)


def test_a_head_trained_in_batches_learns_and_repeats_itself():
    rows = blobs(shift=3.0)
    fit = Batches(0.01, 64, 20, 2, 0.01, 2.0, 7)
    first, again = fit(rows), fit(rows)
    assert np.array_equal(first.weight, again.weight)
    right = ((first.logits(rows.features[:, 0]) > 0) == (rows.labels == 1)).mean()
    assert right > 0.85
    assert recipe_of(fit.told()) == fit
    assert recipe_of(Logistic(0.3).told()) == Logistic(0.3)


def test_the_sweep_takes_the_convex_head_unless_another_is_clearly_better():
    rows = blobs()
    fold = group_folds(list(rows.groups), rows.labels.tolist(), 4, 0)
    all_of_them = np.ones(len(rows.labels), bool)
    options = {**OPTIONS["head"], "method": "sweep", "learningRates": [1e-5, 0.01], "batches": [64]}
    recipe, judged, compared = choose_recipe(rows, fold, options, 2.0, 7, all_of_them, all_of_them, lambda *_: None)
    # every strength that was tried is told, not the chosen one alone
    assert [one["strength"] for one in compared if one["method"] == "logistic"] == list(LAMBDAS)
    assert [one["method"] for one in compared[len(LAMBDAS) :]] == ["sgd", "sgd"]
    assert judged.brier() == min(one["brier"] for one in compared) or isinstance(recipe, Logistic)
    alone, _, _ = choose_recipe(rows, fold, {**options, "method": "sgd"}, 2.0, 7, all_of_them, all_of_them, lambda *_: None)
    assert isinstance(alone, Batches)


# --- pictures --------------------------------------------------------------------------------------------------------

P, Y = np.array([0.05, 0.15, 0.95, 0.9, 0.35]), np.array([0, 1, 1, 1, 0])


def test_tables_behind_the_pictures():
    assert report.confusion(P, Y) == [[2, 0], [1, 2]]
    assert report.worst(P, Y, 2) == [1, 4]
    assert report.calibration_error(np.array([1.0, 0.0]), np.array([1, 0])) == 0
    assert sum(one["n"] for one in report.reliability(P, Y)) == 5


def test_the_same_numbers_draw_the_same_bytes(tmp_path):
    drawn = [report.draw_reliability(tmp_path, P, Y) for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert Image.open(io.BytesIO(drawn[0])).format == "PNG"
    assert Image.open(io.BytesIO(report.draw_confusion(tmp_path, P, Y))).size[0] > 200


def test_learning_curves_have_a_row_for_the_probe_and_one_for_the_fine_tune_that_was_thrown_away(tmp_path):
    recipe = {"method": "logistic", "strength": 1.0}
    probe = {
        "stage": "probe",
        "head": recipe,
        "sweep": [{**recipe, "brier": 0.1}],
        "curve": [{"images": 9, "brier": 0.2}],
        "fineTune": None,
    }
    tune = {
        "steps": [{"step": i, "loss": 1 / i, "lr": 0.1} for i in range(1, 90)],
        "epochs": [{"epoch": 1, "step": 89, "accuracy": 0.8, "brier": 0.2}],
        "probe": [{"accuracy": 0.9, "brier": 0.1}],
    }

    def height(**members):
        return Image.open(io.BytesIO(report.draw_curves(tmp_path, {"members": members}))).size[1]

    assert height(a=probe, b={**probe, "fineTune": tune}) == pytest.approx(3 * height(a=probe), abs=3)
    assert height(a={**probe, "curve": None}) == height(a=probe)  # a retrain whose parent's settings stand
