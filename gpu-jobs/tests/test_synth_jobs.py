"""The jobs `synthesize` and `render`: what may be made from what, lineage, balance, determinism."""

from __future__ import annotations

import io
from collections import Counter
from typing import Any

import numpy as np
import pytest
from conftest import make_context, row
from PIL import Image

from flywheel_jobs.context import JobContext
from flywheel_jobs.errors import BadInput
from flywheel_jobs.synth import job, render_job
from flywheel_jobs.synth.streets import draw_street


class World:
    """Small photographs in a store, each its own group."""

    def __init__(self, ctx: JobContext) -> None:
        self.ctx = ctx
        self.count = 0

    def photo(self, label: int | None, pool: str = "train", **more: Any) -> dict[str, Any]:
        values = draw_street(np.random.default_rng(self.count), 120, 90).values
        buffer = io.BytesIO()
        Image.fromarray(np.clip(values, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
        self.count += 1
        size = {"width": 120, "height": 90}
        return row(self.ctx.objects.put(buffer.getvalue()), label, pool, f"clip-{self.count}", **size, **more)

    def make(
        self, failures: list[dict[str, Any]], corpus: list[dict[str, Any]], near: dict[str, list[dict[str, Any]]] | None = None, **more: Any
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        objects = self.ctx.objects
        links = [
            {"query": f["digest"], "neighbours": [{"digest": n["digest"], "score": 0.9} for n in (near or {}).get(f["digest"], corpus)]}
            for f in failures
        ]
        given = {
            "failures": objects.put_jsonl(failures),
            "corpus": objects.put_jsonl(corpus),
            "neighbours": objects.put_jsonl(links),
            "perFailure": 8,
            "maxImages": 100,
            "providers": ["composite", "weather"],
            "seed": 5,
            **more,
        }
        out = job.run(self.ctx, given)
        return out, objects.get_jsonl(out["manifest"])


@pytest.fixture
def world(ctx: JobContext) -> World:
    return World(ctx)


def test_every_image_names_its_parents_and_inherits_pool_group_and_source(world: World) -> None:
    failure = world.photo(1, source="camera-a")
    corpus = [world.photo(label, source="camera-b") for label in (0, 0, 1)]
    out, rows = world.make([failure], corpus)
    known = {r["digest"]: r for r in (failure, *corpus)}
    assert out["count"] == len(rows) == 8
    for made in rows:
        background = known[made["parents"][0]]
        assert {k: made[k] for k in ("pool", "group", "source")} == {k: background[k] for k in ("pool", "group", "source")}
        assert (made["label"], made["truth"], made["weight"]) == (None, "none", 1)
        with Image.open(io.BytesIO(world.ctx.objects.get(made["digest"]))) as image:
            assert image.size == (made["width"], made["height"])
    assert [r["digest"] for r in rows] == sorted(r["digest"] for r in rows)


def test_intents_and_providers_are_counted_and_near_balance(world: World) -> None:
    failures = [world.photo(label) for label in (0, 1, None, 1)]
    corpus = [world.photo(label) for label in (0, 0, 0, 1)]
    out, rows = world.make(failures, corpus)
    assert out["byIntent"] == {str(i): sum(r["intent"] == i for r in rows) for i in (0, 1)}
    assert out["byProvider"] == dict(Counter(r["provider"] for r in rows))
    assert abs(out["byIntent"]["0"] - out["byIntent"]["1"]) <= 6
    assert 4 <= out["byProvider"]["weather"] <= 12
    assert out["skipped"] == []


def test_no_negative_is_made_from_a_background_that_may_show_roadwork(world: World) -> None:
    failures = [world.photo(1), world.photo(None)]
    corpus = [world.photo(0), world.photo(1), world.photo(None)]
    _, rows = world.make(failures, corpus, perFailure=20)
    labels = {r["digest"]: r["label"] for r in (*failures, *corpus)}
    backgrounds = Counter((r["intent"], labels[r["parents"][0]]) for r in rows if r["provider"] == "composite")
    assert backgrounds[0, 1] == backgrounds[0, None] == 0
    assert backgrounds[0, 0] > 5


def test_composites_come_as_twins_of_one_background(world: World) -> None:
    failures = [world.photo(label) for label in (1, 0)]
    _, rows = world.make(failures, [world.photo(label) for label in (0, 0, 1)], providers=["composite"], perFailure=6)
    intents = {
        background: Counter(r["intent"] for r in rows if r["parents"][0] == background) for background in {r["parents"][0] for r in rows}
    }
    assert len(rows) == 12
    known = {r["digest"]: r for r in rows}
    assert all(known[r["twin"]]["twin"] == r["digest"] and known[r["twin"]]["intent"] == 1 - r["intent"] for r in rows)
    assert all(count[0] == count[1] for count in intents.values()), "a background tells nothing of the label"


def test_weather_keeps_the_label_of_its_parent(world: World) -> None:
    failures = [world.photo(None), world.photo(1)]
    corpus = [world.photo(0), world.photo(1)]
    _, rows = world.make(failures, corpus, providers=["weather"])
    labels = {r["digest"]: r["label"] for r in (*failures, *corpus)}
    assert rows
    assert all(r["intent"] == labels[r["parents"][0]] for r in rows)


def test_weather_of_unknown_truth_is_skipped_with_its_reason(world: World) -> None:
    failure = world.photo(None)
    out, rows = world.make([failure], [], providers=["weather"], perFailure=5)
    assert rows == []
    assert len(out["skipped"]) == 5
    assert out["skipped"][0]["parent"] == failure["digest"]
    assert "label" in out["skipped"][0]["reason"]


def test_negatives_without_a_clean_photograph_are_skipped_and_said(world: World) -> None:
    out, rows = world.make([world.photo(1)], [world.photo(1)], providers=["composite"])
    assert {r["intent"] for r in rows} == {1}
    assert len(rows) + len(out["skipped"]) == 8
    assert all("without roadwork" in s["reason"] for s in out["skipped"])


def test_neighbours_of_another_pool_are_never_used(world: World) -> None:
    failure = world.photo(0, pool="traffic")
    corpus = [world.photo(0), world.photo(1)]
    _, rows = world.make([failure], corpus)
    assert {r["parents"][0] for r in rows} == {failure["digest"]}
    assert {r["pool"] for r in rows} == {"traffic"}


@pytest.mark.parametrize("place", ["failures", "corpus"])
def test_a_test_image_is_refused_by_name(world: World, place: str) -> None:
    planted = world.photo(1, pool="test")
    good = world.photo(0)
    failures, corpus = ([planted], [good]) if place == "failures" else ([good], [planted])
    with pytest.raises(BadInput, match=planted["digest"]):
        world.make(failures, corpus)


def test_parents_from_two_pools_are_refused_naming_both(world: World) -> None:
    original = world.photo(0, pool="validate")
    leak = world.photo(1, pool="train", parents=[original["digest"]])
    with pytest.raises(BadInput) as caught:
        world.make([leak], [original, world.photo(0)])
    assert leak["digest"] in str(caught.value)
    assert original["digest"] in str(caught.value)


def test_an_image_that_stands_in_two_pools_is_refused(world: World) -> None:
    failure = world.photo(0, pool="traffic")
    with pytest.raises(BadInput, match="pool traffic"):
        world.make([failure], [{**failure, "pool": "train"}])


def test_a_derived_failure_hands_on_all_its_parents(world: World) -> None:
    original = world.photo(1)
    failure = world.photo(1, parents=[original["digest"]])
    _, rows = world.make([failure], [original, world.photo(0)], perFailure=20)
    own = [r for r in rows if r["parents"][0] == failure["digest"]]
    assert own
    assert all(r["parents"] == [failure["digest"], original["digest"]] for r in own)


def test_the_order_of_rows_does_not_matter(world: World) -> None:
    failures = [world.photo(label) for label in (0, 1, None)]
    corpus = [world.photo(label) for label in (0, 1, 0)]
    near = {f["digest"]: corpus for f in failures}
    first, _ = world.make(failures, corpus, near)
    second, _ = world.make(failures[::-1], corpus[::-1], near)
    assert first["manifest"] == second["manifest"]


def test_another_store_and_run_give_the_same_manifest(world: World, tmp_path: Any) -> None:
    failures, corpus = [world.photo(1)], [world.photo(0)]
    first, _ = world.make(failures, corpus)
    elsewhere = World(make_context(tmp_path, objects="other"))
    failures, corpus = [elsewhere.photo(1)], [elsewhere.photo(0)]
    assert elsewhere.make(failures, corpus)[0]["manifest"] == first["manifest"]
    assert world.make(failures, corpus, seed=6)[0]["manifest"] != first["manifest"]


def test_a_cap_takes_from_all_failures_alike(world: World) -> None:
    failures = [world.photo(0) for _ in range(3)]
    near = {f["digest"]: [] for f in failures}
    out, rows = world.make(failures, failures, near, maxImages=7, perFailure=5)
    # which background serves is drawn, so failures are counted by their own backgrounds only where none is shared
    assert out["count"] == 7
    assert len({r["digest"] for r in rows}) == 7
    # pair by pair, so that the cap parts at most one pair of twins
    assert [slot.number for slot in job._slots(failures, 5, 7)] == [0, 1, 0, 1, 0, 1, 2]


def test_an_unreadable_background_is_skipped_and_named(world: World) -> None:
    broken = row(world.ctx.objects.put(b"no image"), None, "train", "g")
    out, rows = world.make([broken], [], providers=["composite"], perFailure=6)
    assert rows == []
    assert any(broken["digest"] in s["reason"] for s in out["skipped"])


def test_a_neighbour_nobody_knows_is_refused(world: World) -> None:
    failure, stranger = world.photo(0), world.photo(0)
    with pytest.raises(BadInput, match=stranger["digest"]):
        world.make([failure], [], {failure["digest"]: [stranger]})


def test_large_photographs_are_reduced(world: World) -> None:
    buffer = io.BytesIO()
    Image.effect_noise((1600, 1000), 40).convert("RGB").save(buffer, "JPEG")
    big = row(world.ctx.objects.put(buffer.getvalue()), 0, "train", "big", width=1600, height=1000)
    _, rows = world.make([big], [], perFailure=1)
    assert (rows[0]["width"], rows[0]["height"]) == (800, 500)


def render(ctx: JobContext, **more: Any) -> list[dict[str, Any]]:
    out = render_job.run(ctx, {"count": 6, "seed": 2, "width": 80, "height": 60, **more})
    rows = ctx.objects.get_jsonl(out["images"])
    assert out["count"] == len(rows)
    return rows


def test_rendered_scenes_are_half_and_half_and_each_its_own_group(ctx: JobContext) -> None:
    rows = render(ctx)
    assert Counter(r["label"] for r in rows) == {0: 3, 1: 3}
    assert [r["group"] for r in rows] == [f"render-2-{k}" for k in range(6)]
    assert {(r["source"], r["width"], r["height"]) for r in rows} == {("rendered", 80, 60)}
    with Image.open(io.BytesIO(ctx.objects.get(rows[0]["digest"]))) as image:
        assert (image.format, image.size) == ("JPEG", (80, 60))


def test_variants_of_a_rendered_street_share_a_group(ctx: JobContext) -> None:
    rows = render(ctx, perGroup=2)
    assert [r["group"] for r in rows] == ["render-2-0"] * 2 + ["render-2-1"] * 2 + ["render-2-2"] * 2
    assert {r["label"] for r in rows[:2]} == {0, 1}
    assert len({r["digest"] for r in rows}) == 6


def test_rendering_repeats_itself_and_a_larger_count_begins_the_same(ctx: JobContext) -> None:
    assert render(ctx, count=2) == render(ctx, count=4)[:2]
    assert render(ctx, seed=3, count=2)[0]["digest"] != render(ctx, count=2)[0]["digest"]
