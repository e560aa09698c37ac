import numpy as np
from conftest import row, snapshot_rows, train_input

from flywheel_jobs import train
from flywheel_jobs.heads import Rows
from flywheel_jobs.spec import read_manifest, validate
from flywheel_jobs.unseen import leave_places_out, places_of


def rows_of(ctx, raw):
    return read_manifest(ctx.objects, ctx.objects.put_jsonl(sorted(raw, key=lambda one: one["digest"])), "rows")


def named(number):
    return f"{number:064x}"


def test_a_clip_is_a_place_and_photographs_that_stand_alone_share_their_source(ctx):
    rows = rows_of(
        ctx,
        [
            row(named(1), 1, "train", "boston.mp4", source="drives"),
            row(named(2), 1, "train", "boston.mp4", source="drives"),
            row(named(3), 0, "train", "sign-1", source="signs"),
            row(named(4), 0, "train", "sign-2", source="signs"),
            row(named(5), None, "train", "boston.mp4", source="drives", parents=[named(1)], provider="composite", intent=0),
            row(named(6), None, "train", "sign-1", source="signs", parents=[named(3)], provider="composite", intent=1),
        ],
    )
    assert list(places_of(rows)) == ["clip boston.mp4"] * 2 + ["source signs"] * 2 + ["clip boston.mp4", "source signs"]


def test_a_source_that_tells_the_label_by_itself_helps_nobody_once_it_is_left_out(ctx):
    # Two sources: in each the label stands in feature 0; feature 1 names the source, and in training it nearly tells the label.
    rng = np.random.default_rng(1)
    raw, features = [], []
    for number in range(80):
        source, label = number % 2, int(rng.random() < (0.9 if number % 2 else 0.1))
        raw.append(row(named(number + 1), label, "train", f"g{number}", source=f"s{source}"))
        features.append([[0.1 * (2 * label - 1) + rng.normal(0, 0.3), 3.0 * source]])
    rows = rows_of(ctx, raw)
    everyone = np.ones(80, bool)
    labels = np.array([one.label for one in rows], np.int64)
    table = Rows(np.array(features, np.float32), labels, np.ones(80), np.array([one.group for one in rows]))
    lines, places = leave_places_out(rows, everyone, everyone, [table], [(0.1, 1.0)], [1.0], lambda done, total: None)
    assert places == 2
    right = np.mean([(line["prediction"] > 0.5) == line["label"] for line in lines])
    assert right < 0.75  # the source alone gives 0.9 where it was seen
    assert [line["digest"] for line in lines] == sorted(line["digest"] for line in lines)


def test_what_was_made_from_a_place_is_left_out_with_it(ctx):
    # The only image of class 1 outside place b was made from place a, so that a cannot be judged without it.
    rows = rows_of(
        ctx,
        [
            row(named(1), 0, "train", "a", source="s"),
            row(named(2), 0, "train", "a", source="s"),
            row(named(3), 0, "train", "b", source="s"),
            row(named(4), 0, "train", "b", source="s"),
            row(named(5), 1, "train", "a", source="s", truth="consensus", parents=[named(1)], provider="composite"),
        ],
    )
    labels = np.array([one.label for one in rows], np.int64)
    table = Rows(np.ones((5, 1, 2), np.float32), labels, np.ones(5), np.array([one.group for one in rows]))
    judges = np.array([not one.synthetic for one in rows])
    lines, places = leave_places_out(rows, np.ones(5, bool), judges, [table], [(0.1, 1.0)], [1.0], lambda done, total: None)
    assert places == 1
    assert {line["place"] for line in lines} == {"clip b"}


def test_the_training_tells_its_figure_for_every_real_photograph_it_may_judge_on(ctx):
    raw = snapshot_rows(ctx.objects)
    output = train.run(ctx, train_input(ctx.objects.put_jsonl(raw)))
    validate("train.output", output, "output")
    judged = [one for one in raw if one["pool"] in ("train", "validate")]
    assert output["unseen"]["n"] == len(judged)
    assert output["unseen"]["places"] == len({one["group"] for one in judged})


def test_the_vote_on_places_left_out_is_weighted_as_the_ensembles(ctx):
    rng = np.random.default_rng(0)
    rows = rows_of(ctx, [row(named(i + 1), i % 2, "train", f"clip-{i // 4}") for i in range(24)])
    labels = np.array([one.label for one in rows], np.int64)
    groups = np.array([one.group for one in rows])
    tables = [Rows((rng.normal(size=(24, 1, 3)) + labels[:, None, None]).astype(np.float32), labels, np.ones(24), groups) for _ in "ab"]
    everyone = np.ones(24, bool)

    def predicted(some, weights):
        lines, _ = leave_places_out(rows, everyone, everyone, some, [(0.1, 1.0)] * len(some), weights, lambda done, total: None)
        return [line["prediction"] for line in lines]

    alone = [np.array(predicted([table], [1.0])) for table in tables]
    together = np.array(predicted(tables, [0.7, 0.3]))
    assert np.abs(together - (0.7 * alone[0] + 0.3 * alone[1])).max() < 1e-5
    assert np.abs(alone[0] - alone[1]).max() > 0.1
