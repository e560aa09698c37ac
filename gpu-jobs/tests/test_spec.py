import json
from importlib import resources

import pytest
from conftest import row
from jsonschema import Draft202012Validator

from flywheel_jobs.errors import BadInput
from flywheel_jobs.spec import forbid_leaks, read_manifest, validate

A, B, C = "a" * 64, "b" * 64, "c" * 64


def test_every_generated_schema_is_a_valid_schema():
    files = [file for file in resources.files("flywheel_jobs").joinpath("schema").iterdir() if file.name.endswith(".json")]
    assert len(files) >= 20
    for file in files:
        Draft202012Validator.check_schema(json.loads(file.read_text()))


def test_a_wrong_field_is_named():
    with pytest.raises(BadInput, match="pool"):
        validate("image-row", row(A, 1, "everything", "g"), "row 1")


def test_a_manifest_row_gets_the_defaults_of_the_contract(ctx):
    (found,) = read_manifest(ctx.objects, ctx.objects.put_jsonl([row(A, 1, "train", "g")]), "manifest")
    assert (found.weight, found.provider, found.parents, found.synthetic) == (1.0, None, (), False)


def test_a_test_row_is_refused(ctx):
    digest = ctx.objects.put_jsonl([row(A, 1, "train", "g"), row(B, 1, "test", "h")])
    with pytest.raises(BadInput, match=f"test.*{B}"):
        read_manifest(ctx.objects, digest, "manifest")


def test_an_image_named_twice_is_refused(ctx):
    digest = ctx.objects.put_jsonl([row(A, 1, "train", "g"), row(A, 1, "train", "g")])
    with pytest.raises(BadInput, match="twice"):
        read_manifest(ctx.objects, digest, "manifest")


def load(ctx, *rows):
    return read_manifest(ctx.objects, ctx.objects.put_jsonl(rows), "snapshot")


def test_a_group_in_two_pools_is_a_leak(ctx):
    with pytest.raises(BadInput, match="leaks: group 'g'"):
        forbid_leaks(load(ctx, row(A, 1, "train", "g"), row(B, 1, "validate", "g")), "snapshot")


def test_an_image_made_from_a_held_out_one_is_a_leak(ctx):
    made = row(B, 1, "train", "h", parents=[A], provider="composite")
    with pytest.raises(BadInput, match="leaks: image"):
        forbid_leaks(load(ctx, row(A, 1, "validate", "g"), made), "snapshot")


def test_traffic_and_train_may_share_a_group(ctx):
    forbid_leaks(load(ctx, row(A, 1, "train", "g"), row(B, 0, "traffic", "g"), row(C, 0, "validate", "h")), "snapshot")
