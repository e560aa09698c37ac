"""Challenge images of the validator profiles: each distortion against values worked out by hand, and the two modes of the job."""

from __future__ import annotations

import io
from collections import Counter
from typing import Any

import numpy as np
import pytest
from conftest import row, scene
from PIL import Image

from flywheel_jobs import challenges
from flywheel_jobs.context import JobContext
from flywheel_jobs.errors import BadInput
from flywheel_jobs.pictures import decode


def flat(colour: tuple[int, int, int], size: int = 32) -> np.ndarray:
    return np.full((size, size, 3), colour, np.uint8)


def manifest(ctx: JobContext, labels: list[int | None], **more: Any) -> str:
    rows = []
    for i, label in enumerate(labels):
        data = scene(label or 0, np.random.default_rng(i), (37 * i) % 200)
        rows.append(row(ctx.objects.put(data), label, "train", f"g{i}", **more))
    return ctx.objects.put_jsonl(rows)


def ask(ctx: JobContext, digest: str, **more: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    out = challenges.run(ctx, {"manifest": digest, "profile": "2026-01", "mode": "draw", "count": 8, "seed": 3, **more})
    return out, ctx.objects.get_jsonl(out["set"])


@pytest.mark.parametrize(("level", "factor"), list(enumerate([0.4, 0.3, 0.2, 0.1, 0.0], 1)))
def test_saturation_scales_chroma_about_the_middle(level: int, factor: float) -> None:
    # pure red: Y = 0.299 * 255; red's distance to Y shrinks by the factor, then the cast cuts off the fraction
    luma = 0.299 * 255
    expected = [luma + (value - luma) * factor for value in (255, 0, 0)]
    seen = challenges.distort(flat((255, 0, 0)), "CS", level, np.random.default_rng(0))[0, 0]
    np.testing.assert_allclose(seen, expected, atol=1.1)


def test_saturation_at_level_five_is_grey() -> None:
    pixel = challenges.distort(flat((200, 90, 30)), "CS", 5, np.random.default_rng(0))[0, 0].astype(int)
    assert np.ptp(pixel) <= 1


@pytest.mark.parametrize(("level", "factor"), list(enumerate([0.85, 0.725, 0.6, 0.475, 0.35], 1)))
def test_contrast_multiplies_and_cuts_off(level: int, factor: float) -> None:
    seen = challenges.distort(flat((201, 100, 7)), "CC", level, np.random.default_rng(0))[0, 0]
    assert seen.tolist() == [int(201 * factor), int(100 * factor + 1e-6), int(7 * factor)]


@pytest.mark.parametrize(("level", "factor"), list(enumerate([2, 3, 4, 5, 6], 1)))
def test_resample_forgets_detail_finer_than_its_factor(level: int, factor: int) -> None:
    # one bright column: bilinear without antialiasing samples at single points, then spreads what it kept
    image = flat((0, 0, 0), 60)
    image[:, 30:] = 240
    seen = challenges.distort(image, "JPEG", level, np.random.default_rng(0))
    width = 60 // factor
    # the small image by hand: bilinear samples at (i + 0.5) * factor - 0.5
    positions = (np.arange(width) + 0.5) * factor - 0.5
    left = np.floor(positions).astype(int)
    share = positions - left
    small = image[0, left, 0] * (1 - share) + image[0, np.minimum(left + 1, 59), 0] * share
    back = np.clip((np.arange(60) + 0.5) / factor - 0.5, 0, width - 1)
    low = np.floor(back).astype(int)
    expected = np.round(small)[low] * (1 - (back - low)) + np.round(small)[np.minimum(low + 1, width - 1)] * (back - low)
    np.testing.assert_allclose(seen[0, :, 0], expected, atol=1.5)


@pytest.mark.parametrize(("level", "variance"), list(enumerate([0.001, 0.002, 0.005, 0.01, 0.05], 1)))
def test_noise_has_the_variance_of_its_level(level: int, variance: float) -> None:
    seen = challenges.distort(flat((128, 128, 128), 256), "GNC", level, np.random.default_rng(5)).astype(np.float64)
    # Y noise on the 0-1 scale of video range 219/255: a grey level is 255/219 of it. Green carries Y and both chromas.
    luma = 255 * np.sqrt(variance) * 255 / 219
    chroma = 255 * np.sqrt(variance) * 255 / 224
    expected = np.sqrt(luma**2 + (1.403 * chroma) ** 2)
    clipped = np.clip(128 + expected * np.random.default_rng(1).standard_normal(400_000), 0, 255).std()
    assert seen[:, :, 0].std() == pytest.approx(clipped, rel=0.03)


@pytest.mark.parametrize(("level", "kernel"), list(enumerate([7, 9, 13, 17, 21], 1)))
def test_blur_spreads_a_point_as_a_gaussian_of_a_sixth_of_its_kernel(level: int, kernel: int) -> None:
    image = flat((0, 0, 0), 41)
    image[20, 20] = 255
    seen = challenges.distort(image, "GB", level, np.random.default_rng(0))[:, :, 0]
    offsets = np.arange(kernel) - kernel // 2
    weights = np.exp(-(offsets**2) / (2 * (kernel / 6) ** 2))
    weights /= weights.sum()
    half = kernel // 2
    np.testing.assert_allclose(seen[20, 20 - half : 21 + half], 255 * weights * weights[half], atol=1.0)
    assert seen[20, 20 + half + 1 :].max() == 0


def test_level_zero_of_a_distortion_changes_nothing() -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    for name in challenges.PARAMETERS:
        assert np.array_equal(challenges.distort(image, name, 0, np.random.default_rng(0)), image)


def test_challenge_level_zero_is_the_resized_centre_square() -> None:
    image = np.zeros((224, 448, 3), np.uint8)
    image[:, 112:336] = (10, 200, 30)
    seen = challenges.augment(image, 0, np.random.default_rng(0))
    assert seen.shape == (224, 224, 3)
    assert (seen == (10, 200, 30)).all()


def test_rotation_leaves_black_corners_and_keeps_the_canvas() -> None:
    views = [challenges.augment(flat((255, 255, 255), 224), 1, np.random.default_rng(seed)) for seed in range(30)]
    assert all(view.shape == (224, 224, 3) for view in views)
    assert any(view[0, 0].max() == 0 or view[0, -1].max() == 0 for view in views)
    assert all(view[112, 112].min() == 255 for view in views)


def test_crop_areas_are_even_between_a_fifth_and_the_whole_of_a_square_image() -> None:
    rng = np.random.default_rng(2)
    shares = np.array([challenges.crop_box(1000, 1000, rng)[2] ** 2 / 1e6 for _ in range(4000)])
    assert shares.min() >= 0.199
    assert shares.max() <= 1.0
    assert np.quantile(shares, [0.25, 0.5, 0.75]) == pytest.approx([0.4, 0.6, 0.8], abs=0.03)


def test_crop_that_never_fits_falls_back_to_the_centre_square() -> None:
    assert challenges.crop_box(1000, 10, np.random.default_rng(0)) == (0, 495, 10)


def test_crop_is_shifted_to_hold_the_mask_centre() -> None:
    for seed in range(200):
        top, left, side = challenges.crop_box(400, 300, np.random.default_rng(seed), (3, 296))
        assert left <= 3 < left + side
        assert top <= 296 < top + side
        assert top + side <= 300


def test_flips_never_happen_unless_asked_for() -> None:
    image = np.zeros((224, 224, 3), np.uint8)
    image[:, :40] = 255

    def right_is_bright(view: np.ndarray) -> bool:
        return bool(view[:, 170:].mean() > view[:, :54].mean())

    plain = [right_is_bright(challenges.augment(image, 1, np.random.default_rng(s))) for s in range(40)]
    flipped = [right_is_bright(challenges.augment(image, 1, np.random.default_rng(s), flips=True)) for s in range(40)]
    assert not any(plain)
    assert any(flipped)


@pytest.mark.parametrize(("level", "darkest"), [(2, 0.85), (3, 0.725)])
def test_levels_two_and_three_draw_contrast_up_to_their_own_limit(level: int, darkest: float) -> None:
    means = [challenges.augment(flat((200, 200, 200), 64), level, np.random.default_rng(s))[112, 112].mean() for s in range(60)]
    factors = {round(m / 200, 1) for m in means}
    assert min(means) == pytest.approx(200 * darkest, abs=25 if level == 3 else 3)
    assert len(factors) > 1


def test_challenges_are_224_pixel_jpegs_of_quality_75(ctx: JobContext) -> None:
    _, rows = ask(ctx, manifest(ctx, [0, 1]))
    with Image.open(io.BytesIO(ctx.objects.get(rows[0]["digest"]))) as image:
        reference = io.BytesIO()
        image.convert("RGB").save(reference, "JPEG", quality=75)
        with Image.open(reference) as again:
            assert (image.format, image.size) == ("JPEG", (224, 224))
            assert image.quantization == again.quantization  # type: ignore[attr-defined]


def test_drawn_labels_and_levels_have_equal_shares(ctx: JobContext) -> None:
    out, rows = ask(ctx, manifest(ctx, [0, 0, 0, 0, 0, 1]), count=600)
    labels, levels = Counter(r["label"] for r in rows), Counter(r["level"] for r in rows)
    # 600 draws: four standard deviations of a binomial share
    assert abs(labels[1] - 300) < 49
    assert all(abs(levels[level] - 150) < 43 for level in range(4))
    assert out["byLevel"] == {str(level): levels[level] for level in range(4)}
    assert out["count"] == 600


def test_real_and_synthetic_are_drawn_evenly_where_both_exist(ctx: JobContext) -> None:
    real = ctx.objects.get_jsonl(manifest(ctx, [0, 1, 0, 1, 0, 1]))
    made = [{**r, "provider": "composite", "parents": [r["digest"]]} for r in real[:2]]
    _, rows = ask(ctx, ctx.objects.put_jsonl(real[2:] + made), count=300)
    assert abs(sum(r["synthetic"] for r in rows) - 150) < 35


def test_a_row_carries_what_is_known_of_its_source(ctx: JobContext) -> None:
    digest = manifest(ctx, [0, 1], source="camera-7")
    sources = {r["digest"]: r for r in ctx.objects.get_jsonl(digest)}
    _, rows = ask(ctx, digest)
    for made in rows:
        parent = sources[made["parent"]]
        kept = ("label", "group", "source", "pool", "truth")
        assert {key: made[key] for key in kept} == {key: parent[key] for key in kept}
        assert made["synthetic"] is False


def test_the_same_input_gives_the_same_set_and_another_seed_another(ctx: JobContext) -> None:
    digest = manifest(ctx, [0, 1, 1])
    first, again, other = (ask(ctx, digest, seed=seed)[0]["set"] for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_a_longer_draw_begins_with_the_shorter_one(ctx: JobContext) -> None:
    digest = manifest(ctx, [0, 1, 1])
    assert ask(ctx, digest, count=9)[1][:4] == ask(ctx, digest, count=4)[1]


def test_a_missing_class_is_refused_with_the_counts(ctx: JobContext) -> None:
    with pytest.raises(BadInput, match=r"0 images with roadwork, 2 without and 1 without a label"):
        ask(ctx, manifest(ctx, [0, 0, None]))


def test_variants_are_made_of_every_image_at_levels_one_to_three(ctx: JobContext) -> None:
    digest = manifest(ctx, [0, None])
    _, rows = ask(ctx, digest, mode="variants", count=4)
    parents = [r["digest"] for r in ctx.objects.get_jsonl(digest)]
    assert [r["parent"] for r in rows] == [parents[0]] * 4 + [parents[1]] * 4
    assert [r["level"] for r in rows] == [1, 2, 3, 1] * 2
    assert [r["label"] for r in rows] == [0] * 4 + [None] * 4


def test_an_unreadable_image_is_named(ctx: JobContext) -> None:
    broken = ctx.objects.put(b"no image")
    digest = ctx.objects.put_jsonl([row(broken, 1, "train", "g")])
    with pytest.raises(BadInput, match=broken):
        ask(ctx, digest, mode="variants")


def test_the_colour_space_of_noise_and_saturation_goes_there_and_back() -> None:
    image = np.random.default_rng(4).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    there = challenges._to_ycbcr(image)
    np.testing.assert_allclose(challenges._from_ycbcr(there), image.astype(np.float32), atol=0.6)
    assert there[:, :, 0].max() <= (255 * 219 + 16) / 255 + 1e-3


def test_profile_2026_05_sends_images_as_they_are(ctx: JobContext) -> None:
    digest = manifest(ctx, [0, 1])
    sizes = {}
    for r in ctx.objects.get_jsonl(digest):
        with Image.open(io.BytesIO(ctx.objects.get(r["digest"]))) as picture:
            sizes[r["digest"]] = picture.size
    _, rows = ask(ctx, digest, profile="2026-05", count=6)
    for made in rows:
        with Image.open(io.BytesIO(ctx.objects.get(made["digest"]))) as picture:
            assert picture.size == sizes[made["parent"]]
            assert made["level"] == 0
        source = np.asarray(decode(ctx.objects.get(made["parent"]), made["parent"]))
        assert ctx.objects.get(made["digest"]) == challenges.encode(source, 75)


def test_profile_2026_05_draws_a_third_each_of_real_synthetic_and_benchmark(ctx: JobContext) -> None:
    real = ctx.objects.get_jsonl(manifest(ctx, [0, 1] * 3))
    made = [{**r, "provider": "sdxl", "parents": [r["digest"]]} for r in real[:2]]
    tasks = [{**r, "source": "benchmark-proxy"} for r in real[2:4]]
    out, rows = ask(ctx, ctx.objects.put_jsonl(real[4:] + made + tasks), count=600, profile="2026-05")
    # 600 draws: four standard deviations of a binomial share of a third
    assert all(abs(out["byKind"][kind] - 200) < 47 for kind in ("real", "synthetic", "benchmark"))
    assert {r["provider"] for r in rows if r["synthetic"]} == {"sdxl"}


def test_an_unknown_profile_is_refused_with_the_known_ones(ctx: JobContext) -> None:
    with pytest.raises(BadInput, match=r"'1999-01'; this version knows 2026-01, 2026-05"):
        ask(ctx, manifest(ctx, [0, 1]), profile="1999-01")
