import io
import tarfile

import pytest
from conftest import world

from flywheel_jobs import shards
from flywheel_jobs.errors import BadInput
from flywheel_jobs.shards import ShardedObjects
from flywheel_jobs.spec import validate, with_defaults


@pytest.fixture
def packed(ctx):
    """(rows, output of the pack job) of twelve images in several shards."""
    rows = world(ctx.objects, "train", 6, 2, 1)
    output = shards.run(ctx, {"manifest": ctx.objects.put_jsonl(rows), "maxShardBytes": 12_000})
    validate("pack.output", output, "output")
    return rows, output


def test_every_image_is_in_a_shard_that_ordinary_tar_reads(ctx, packed):
    rows, output = packed
    assert output["shards"] > 1
    names = []
    for shard in ctx.objects.get_json(output["index"])["shards"]:
        with tarfile.open(fileobj=io.BytesIO(ctx.objects.get(shard["tar"]))) as tar:
            names += tar.getnames()
    assert names == [f"{row['digest']}.jpg" for row in rows]


def test_images_are_read_from_shards_when_their_objects_are_gone(ctx, packed):
    rows, output = packed
    expected = {row["digest"]: ctx.objects.get(row["digest"]) for row in rows}
    for digest in expected:
        ctx.objects.path(digest).unlink()
    sharded = ShardedObjects(ctx.objects, output["index"])
    assert {digest: sharded.get(digest) for digest in reversed(list(expected))} == expected


def test_a_damaged_shard_is_never_believed(ctx, packed):
    rows, output = packed
    sharded = ShardedObjects(ctx.objects, output["index"])
    whole = ctx.objects.get(rows[0]["digest"])
    for tar in sharded.shards():
        path = ctx.objects.path(tar)
        path.write_bytes(b"x" * path.stat().st_size)
    assert sharded.get(rows[0]["digest"]) == whole
    ctx.objects.path(rows[0]["digest"]).unlink()
    with pytest.raises(BadInput, match="not in the store"):
        sharded.get(rows[0]["digest"])


def test_packing_twice_gives_the_same_index(ctx, packed):
    rows, output = packed
    assert shards.run(ctx, {"manifest": ctx.objects.put_jsonl(rows), "maxShardBytes": 12_000}) == output


def test_something_else_is_no_index(ctx):
    with pytest.raises(BadInput, match="no index of tar shards"):
        ShardedObjects(ctx.objects, ctx.objects.put_json({"format": "other"}))


def test_defaults_are_filled_in_at_every_depth():
    filled = with_defaults("train.input", {"fineTune": {"mode": "never"}, "members": [{"name": "a", "budget": {"latencyMs": 50}}]})
    assert filled["fineTune"]["mode"] == "never"
    assert filled["fineTune"]["layerDecay"] == 0.8
    assert filled["head"]["method"] == "logistic"
    assert filled["members"][0]["budget"] == {"latencyMs": 50, "servingGmacs": 100}
