import numpy as np
import pytest
from conftest import MEMBERS, row, scene, world

from flywheel_jobs import label, neighbours
from flywheel_jobs.errors import BadInput
from flywheel_jobs.features import Extractor
from flywheel_jobs.weights import BackboneRef


def ask(ctx, queries, corpus, k=3):
    job_input = {"queries": ctx.objects.put_jsonl(queries), "corpus": ctx.objects.put_jsonl(corpus), "k": k, "member": MEMBERS[0]}
    output = neighbours.run(ctx, job_input)
    return output, ctx.objects.get_jsonl(output["neighbours"])


def test_neighbours_are_the_exact_nearest_by_cosine_without_the_query(ctx):
    rows = world(ctx.objects, "train", 8, 1, 1)
    digests = [one["digest"] for one in rows]
    output, found = ask(ctx, rows[:3], rows)
    vectors = Extractor(ctx, BackboneRef.of(MEMBERS[0])).features(digests).final[:, 0].astype(float)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert [line["query"] for line in found] == digests[:3]
    for index, line in enumerate(found):
        scores = vectors @ vectors[index]
        best = [digests[i] for i in np.argsort(-scores) if i != index][:3]
        assert [one["digest"] for one in line["neighbours"]] == best
        assert line["neighbours"][0]["score"] == pytest.approx(np.sort(scores)[-2], abs=1e-4)
    assert (output["queries"], output["corpus"]) == (3, 8)


def test_more_neighbours_than_images_gives_all_there_are(ctx):
    rows = world(ctx.objects, "train", 3, 1, 1)
    _, found = ask(ctx, rows[:1], rows, k=50)
    assert len(found[0]["neighbours"]) == 2


def test_a_test_image_is_never_a_neighbour(ctx):
    rows = world(ctx.objects, "train", 2, 1, 1)
    with pytest.raises(BadInput, match="test"):
        ask(ctx, rows, [*rows, *world(ctx.objects, "test", 2, 1, 2)])


def test_an_empty_corpus_is_bad_input(ctx):
    with pytest.raises(BadInput, match="nothing to compare"):
        ask(ctx, world(ctx.objects, "train", 2, 1, 1), [])


def votes(ctx, candidates, train, folds=3):
    job_input = {"candidates": ctx.objects.put_jsonl(candidates), "train": ctx.objects.put_jsonl(train)}
    output = label.run(ctx, {**job_input, "members": MEMBERS, "folds": folds, "seed": 4})
    return output, {line["digest"]: [vote["p"] for vote in line["votes"]] for line in ctx.objects.get_jsonl(output["votes"])}


@pytest.fixture
def candidates(ctx):
    rng = np.random.default_rng(9)
    made = [(ctx.objects.put(scene(i % 2, rng, 100)), f"train-{i % 4}") for i in range(8)]
    return sorted((row(d, None, "train", g, provider="composite", intent=1) for d, g in made), key=lambda one: one["digest"])


def test_no_vote_depends_on_the_labels_of_the_images_own_group(ctx, candidates, monkeypatch):
    def by_name(groups, labels, folds, seed):
        # folds usually even out the classes; here they must not follow the labels that are turned
        order = {group: index for index, group in enumerate(sorted(set(groups)))}
        return np.array([order[group] % folds for group in groups])

    monkeypatch.setattr(label, "group_folds", by_name)
    train = world(ctx.objects, "train", 10, 2, 1)
    mine = [one for one in candidates if one["group"] == "train-2"]
    turned = [{**one, "label": 1 - one["label"]} if one["group"] == "train-2" else one for one in train]
    other = [{**one, "label": 1 - one["label"]} if one["group"] == "train-3" else one for one in train]
    before, after, control = (votes(ctx, mine, rows)[1] for rows in (train, turned, other))
    assert before == after
    assert before != control


def test_two_members_vote_on_every_candidate_in_the_order_of_digests(ctx, candidates):
    output, found = votes(ctx, candidates, world(ctx.objects, "train", 10, 2, 1))
    assert list(found) == sorted(one["digest"] for one in candidates)
    assert all(len(p) == 2 and all(0 <= x <= 1 for x in p) for p in found.values())
    assert [one["member"] for one in output["outOfFold"]] == ["tiny-final", "tiny-mid"]
    assert output["count"] == 8


def test_easy_images_get_confident_right_votes(ctx):
    truth = world(ctx.objects, "traffic", 6, 2, 5)
    _, found = votes(ctx, [{**one, "label": None, "truth": "none"} for one in truth], world(ctx.objects, "train", 30, 2, 1), folds=4)
    right = [all((p > 0.8) if one["label"] else (p < 0.2) for p in found[one["digest"]]) for one in truth]
    assert np.mean(right) > 0.6


def test_a_test_image_never_votes_nor_is_voted_on(ctx, candidates):
    train = world(ctx.objects, "train", 6, 1, 1)
    with pytest.raises(BadInput, match="test"):
        votes(ctx, candidates, [*train, *world(ctx.objects, "test", 2, 1, 2)])


def test_voters_of_one_class_are_refused_with_the_counts(ctx, candidates):
    train = [one for one in world(ctx.objects, "train", 6, 1, 1) if one["label"] == 1]
    with pytest.raises(BadInput, match="3 images with roadwork and 0 without"):
        votes(ctx, candidates, train)


def test_no_candidates_is_an_empty_list_of_votes(ctx):
    output, found = votes(ctx, [], world(ctx.objects, "train", 6, 1, 1))
    assert (output["count"], found) == (0, {})


def twins(ctx, pairs, swapped=()):
    """Pairs of one picture with orange and with blue marks, each of a group of its own that no photograph has."""
    made = []
    for number in range(pairs):
        hue = int(np.random.default_rng(number).integers(0, 255))
        two = [ctx.objects.put(scene(side, np.random.default_rng((number, 1)), hue)) for side in (0, 1)]
        meant = (1, 0) if number in swapped else (0, 1)
        for side in (0, 1):
            more = {"provider": "composite", "intent": meant[side], "twin": two[1 - side], "parents": []}
            made.append(row(two[side], None, "train", f"street-{number}", **more))
    return sorted(made, key=lambda one: one["digest"])


def test_twins_are_voted_on_as_pairs_and_both_pass_or_neither(ctx):
    asked = twins(ctx, 16)
    _, found = votes(ctx, asked, world(ctx.objects, "train", 10, 2, 1))
    for one in asked:
        assert np.allclose(np.add(found[one["digest"]], found[one["twin"]]), 1, atol=1e-5)
    right = [all((p > 0.5) == bool(one["intent"]) for p in found[one["digest"]]) for one in asked]
    assert np.mean(right) > 0.8


def test_a_twin_whose_intents_were_mixed_up_is_not_believed(ctx):
    # the intent of an image never reaches the heads that vote on it: the pair is judged by what it shows
    asked = twins(ctx, 16, swapped=(3,))
    _, found = votes(ctx, asked, world(ctx.objects, "train", 10, 2, 1))
    mixed = [one for one in asked if one["group"] == "street-3"]
    assert all((p > 0.5) != bool(one["intent"]) for one in mixed for p in found[one["digest"]])


def test_few_twins_are_voted_on_singly(ctx):
    asked = twins(ctx, 3)
    train = world(ctx.objects, "train", 10, 2, 1)
    _, found = votes(ctx, asked, train)
    _, alone = votes(ctx, [{**one, "twin": None} for one in asked], train)
    assert found == alone
