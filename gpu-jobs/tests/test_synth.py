"""Synthesis: the pictures themselves (composites, weather, rendered streets)."""

from __future__ import annotations

import numpy as np
import pytest

from flywheel_jobs.synth import ordinary, roadwork
from flywheel_jobs.synth.camera import finish
from flywheel_jobs.synth.compositor import another_view, composite
from flywheel_jobs.synth.ground import Layer, Run, ordinary_wall, roadwork_wall
from flywheel_jobs.synth.painting import light_up
from flywheel_jobs.synth.scene import read_scene
from flywheel_jobs.synth.streets import LIGHTS, draw_street, render
from flywheel_jobs.synth.weather import KINDS, weather

STREETS = [draw_street(np.random.default_rng(seed), 200, 150) for seed in range(6)]


def photo(seed: int = 0) -> np.ndarray:
    return np.clip(STREETS[seed].values, 0, 255).astype(np.uint8)


def orange_share(image: np.ndarray) -> float:
    """Share of pixels that are strongly orange or red, as cones, drums and sheeting are."""
    r, g, b = (image[:, :, i].astype(int) for i in range(3))
    return float(((r > 110) & (r > 1.5 * g) & (r > 2.0 * b)).mean())


@pytest.mark.parametrize("maker", [*roadwork.HEIGHT, *ordinary.HEIGHT], ids=lambda m: f"{m.__module__.rsplit('.', 1)[-1]}-{m.__name__}")
def test_every_object_is_drawn_with_smooth_edges_inside_its_frame(maker: roadwork.Maker) -> None:
    for seed in range(4):
        sprite = maker(np.random.default_rng(seed), 60, 0.4)
        small = sprite.at(sprite.ppm / 3)
        assert np.isfinite(small.rgb).all()
        assert (small.rgb <= small.alpha[:, :, None] + 0.02).all(), "colour is premultiplied"
        assert small.alpha.max() > 0.95
        assert ((small.alpha > 0.05) & (small.alpha < 0.95)).any(), "edges are anti-aliased"


def test_objects_of_one_kind_differ() -> None:
    shapes = {roadwork.cone(np.random.default_rng(seed), 60, 0.0).rgb.tobytes() for seed in range(8)}
    assert len(shapes) == 8


@pytest.mark.parametrize("intent", [0, 1])
def test_a_composite_depends_on_image_intent_and_generator_alone(intent: int) -> None:
    first, again = (composite(photo(), intent, np.random.default_rng(9)) for _ in range(2))
    other = composite(photo(), intent, np.random.default_rng(10))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert first.shape == photo().shape
    assert first.dtype == np.uint8


def test_twins_share_everything_but_the_objects() -> None:
    # where nothing stands, view, light, camera and noise are alike to the bit, before the JPEG of each picture
    image, kept = photo(4), []
    for seed in range(8):
        negative, positive = (composite(image, intent, np.random.default_rng(seed)).astype(int) for intent in (0, 1))
        assert not np.array_equal(negative, positive)
        stranger = composite(image, 0, np.random.default_rng(100 + seed)).astype(int)
        alike, apart = (np.median(np.abs(negative - other).max(axis=2)) for other in (positive, stranger))
        kept.append(alike < apart)
    assert sum(kept) >= 7


def test_the_view_keeps_the_size_and_shows_a_part() -> None:
    image = photo(5)
    part = another_view(image, np.random.default_rng(0))
    assert part.shape == image.shape
    assert not np.array_equal(part, image)
    assert np.array_equal(part, another_view(image, np.random.default_rng(0)))


def test_each_class_has_something_of_every_size_to_put_up() -> None:
    # a class that alone had tall or wide things would be told by their size
    for group in ("POSTS", "BARRIERS", "SIGNS", "BIG"):
        sizes = [sorted(module.HEIGHT[maker] for maker in getattr(module, group)) for module in (roadwork, ordinary)]
        assert len(sizes[0]) >= 2
        assert 0.4 < sizes[0][-1] / sizes[1][-1] < 2.5


def test_a_composite_leaves_its_background_untouched() -> None:
    image = photo(1)
    before = image.copy()
    composite(image, 1, np.random.default_rng(0))
    assert np.array_equal(image, before)


def test_both_intents_change_the_picture_about_as_much() -> None:
    # an edit is never itself the label: the area that is changed must not tell the classes apart
    def changed(intent: int) -> float:
        shares = []
        for seed in range(36):
            image = photo(seed % 6)
            made = composite(image, intent, np.random.default_rng(seed)).astype(int)
            difference = min(np.abs(made - side).max(axis=2).mean() for side in (image.astype(int), image[:, ::-1].astype(int)))
            shares.append(difference)
        return float(np.median(shares))

    ratio = changed(1) / changed(0)
    assert 0.6 < ratio < 1.7


def test_positives_gain_roadwork_colours_over_negatives_of_the_same_street() -> None:
    gains = [
        orange_share(composite(photo(seed % 6), 1, np.random.default_rng(seed)))
        - orange_share(composite(photo(seed % 6), 0, np.random.default_rng(seed)))
        for seed in range(30)
    ]
    assert np.mean(gains) > 0


def test_any_picture_can_be_a_background() -> None:
    rng = np.random.default_rng(0)
    odd = [np.zeros((90, 120, 3), np.uint8), np.full((300, 70, 3), 255, np.uint8), rng.integers(0, 256, (64, 500, 3), dtype=np.uint8)]
    for image in odd:
        for intent in (0, 1):
            made = composite(image, intent, np.random.default_rng(intent))
            assert made.shape == image.shape


def test_the_scene_reader_finds_road_light_and_night() -> None:
    day = np.full((150, 200, 3), (190, 205, 225), np.uint8)
    day[72:] = (110, 150, 90)
    for y in range(72, 150):
        half = int(8 + (y - 72) * 1.2)
        day[y, max(0, 100 - half) : 100 + half] = (105, 105, 108)
    scene = read_scene(day, np.random.default_rng(0))
    assert scene.on_road(100, 110)
    assert not scene.on_road(10, 80)
    assert 60 < scene.horizon < 85
    assert scene.scale(140) > 2 * scene.scale(100)
    assert scene.dark == 0
    night = read_scene((day * 0.12).astype(np.uint8), np.random.default_rng(0))
    assert night.dark > 0.9
    assert night.white.mean() < scene.white.mean() / 2


def test_projection_and_ground_are_each_others_inverse() -> None:
    scene = STREETS[0].scene
    column, row = scene.project(-2.5, 17.0)
    assert scene.ground(column, row) == pytest.approx((-2.5, 17.0))


def test_white_paint_takes_the_white_of_the_scene_and_lamps_outshine_the_night() -> None:
    scene = STREETS[0].scene
    one = np.ones((2, 2), np.float32)
    paint = np.ones((2, 2, 3), np.float32)
    lit = light_up(scene, paint, one, np.zeros_like(one), 0.0, 1.0)
    np.testing.assert_allclose(lit[0, 0], scene.white, rtol=1e-4)
    lamp = light_up(scene, paint, one, one, 0.0, 1.0)
    assert (lamp >= lit - 1e-3).all()


@pytest.mark.parametrize("wall", [roadwork_wall, ordinary_wall])
def test_a_wall_grows_smaller_with_distance(wall: object) -> None:
    scene = STREETS[0].scene
    layer = Layer.empty(scene)
    wall(layer, scene, Run(3.0, 4.0, 3.0, 40.0), np.random.default_rng(3))  # type: ignore[operator]
    _, alpha = layer.floats()
    columns = np.flatnonzero((alpha > 0.3).any(axis=0))
    assert columns.size > 5
    heights = [int((alpha[:, c] > 0.3).sum()) for c in (columns[1], columns[-2])]
    assert heights[0] < heights[1]


def test_the_camera_step_never_depends_on_the_label() -> None:
    values = STREETS[2].values
    assert np.array_equal(finish(values, np.random.default_rng(4)), finish(values, np.random.default_rng(4)))


@pytest.mark.parametrize("kind", KINDS)
def test_weather_changes_the_picture_but_not_its_size(kind: str) -> None:
    image = photo(3)
    first, again = (weather(image, kind, np.random.default_rng(1)) for _ in range(2))
    assert first.shape == image.shape
    assert np.array_equal(first, again)
    assert np.abs(first.astype(int) - image).mean() > 3


def test_night_is_darker_fog_flatter_and_glare_brighter() -> None:
    image = np.clip(next(s for s in STREETS if s.scene.dark == 0 and s.scene.sun > 0.3).values, 0, 255).astype(np.uint8)
    assert weather(image, "night", np.random.default_rng(0)).mean() < 0.7 * image.mean()
    assert weather(image, "fog", np.random.default_rng(0)).std() < 0.85 * image.std()
    assert weather(image, "glare", np.random.default_rng(0)).max() >= 250


def test_an_unknown_weather_is_refused() -> None:
    with pytest.raises(ValueError, match="sleet"):
        weather(photo(), "sleet", np.random.default_rng(0))


def test_streets_come_in_all_lights() -> None:
    assert {"clear", "grey", "haze", "dusk", "night"} == set(LIGHTS)
    brightness = [s.values.mean() for s in STREETS]
    assert max(brightness) > 1.3 * min(brightness)


def test_variants_of_a_street_share_the_street_but_not_the_picture() -> None:
    one, two, other = render(5, 0, 0, 120, 90), render(5, 1, 0, 120, 90), render(6, 0, 0, 120, 90)
    assert not np.array_equal(one, two)
    assert not np.array_equal(one, other)
    base = draw_street(np.random.default_rng(np.random.SeedSequence((5, 0))), 120, 90).values
    again = draw_street(np.random.default_rng(np.random.SeedSequence((5, 0))), 120, 90).values
    assert np.array_equal(base, again)
