import io

import numpy as np
import pytest
from conftest import MEMBERS, row, world
from PIL import Image
from safetensors.numpy import load

from flywheel_jobs import embed, import_check
from flywheel_jobs.errors import BadInput, EmptySplit
from flywheel_jobs.spec import validate, with_defaults


def encoded(image: Image.Image, kind: str, **more) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **more)
    return buffer.getvalue()


def noise(seed: int, size=(96, 72), mode="RGB") -> Image.Image:
    shape = (size[1], size[0], len(Image.new(mode, (1, 1)).getbands()))
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8).squeeze(), mode if mode != "CMYK" else None)


def smooth() -> Image.Image:
    """Large shapes, as photographs have: compression does not change what is brighter than what."""
    return noise(5, (9, 8)).resize((288, 216), Image.Resampling.BICUBIC)


def check(ctx, **given):
    found = import_check.run(ctx, with_defaults("import-check.input", given))
    validate("import-check.output", found, "output")
    return found, ctx.objects.get_jsonl(found["findings"])


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "photos"
    (root / "sub").mkdir(parents=True)
    return root


def test_a_clean_folder_has_no_findings(ctx, folder):
    for number in range(3):
        (folder / f"{number}.jpg").write_bytes(encoded(noise(number), "JPEG"))
    (folder / "labels.csv").write_text("file,label\n")
    found, findings = check(ctx, folder=str(folder))
    assert (found["checked"], found["usable"], findings) == (3, 3, [])
    assert found["byFormat"] == {"JPEG": 3}


@pytest.mark.parametrize(
    ("name", "data", "kind", "unusable"),
    [
        ("empty.jpg", b"", "corrupt", True),
        ("text.jpg", b"not an image at all", "corrupt", True),
        ("cut.jpg", encoded(noise(1), "JPEG")[:900], "corrupt", True),
        ("old.bmp", encoded(noise(1), "BMP"), "unsupported-format", True),
        ("tiny.png", encoded(noise(1, (40, 80)), "PNG"), "too-small", False),
        ("alpha.png", encoded(noise(1, mode="RGBA"), "PNG"), "odd-mode", False),
        ("huge.png", encoded(Image.new("L", (3000, 300)), "PNG"), "too-large", True),
    ],
)
def test_each_fault_is_found_and_named(ctx, folder, name, data, kind, unusable):
    (folder / "sub" / name).write_bytes(data)
    (folder / "good.jpg").write_bytes(encoded(noise(2), "JPEG"))
    found, findings = check(ctx, folder=str(folder), maxPixels=800_000)
    assert [(one["image"], one["kind"], one["unusable"]) for one in findings] == [(f"sub/{name}", kind, unusable)]
    assert found["usable"] == (1 if unusable else 2)


def test_equal_and_nearly_equal_images_are_told_with_their_twin(ctx, folder):
    picture = smooth()
    (folder / "a.png").write_bytes(encoded(picture, "PNG"))
    (folder / "b.png").write_bytes(encoded(picture, "PNG"))
    (folder / "c.jpg").write_bytes(encoded(picture, "JPEG", quality=80))
    (folder / "d.jpg").write_bytes(encoded(noise(3), "JPEG"))
    _, findings = check(ctx, folder=str(folder))
    assert [(one["image"], one["kind"], one["other"]) for one in findings] == [
        ("b.png", "duplicate", "a.png"),
        ("c.jpg", "near-duplicate", "a.png"),
    ]
    assert [one["kind"] for one in check(ctx, folder=str(folder), nearDuplicates=None)[1]] == ["duplicate"]


def test_a_near_duplicate_across_a_border_is_a_leak_and_with_another_label_a_conflict(ctx):
    picture = smooth()
    one = row(ctx.objects.put(encoded(picture, "PNG")), 1, "train", "g1")
    two = row(ctx.objects.put(encoded(picture, "JPEG", quality=80)), 0, "test", "g2")
    _, findings = check(ctx, manifest=ctx.objects.put_jsonl([one, two]))
    assert {finding["kind"] for finding in findings} - {"wrong-size"} == {"near-duplicate", "leak", "label-conflict"}


def test_a_manifests_missing_changed_or_mis_sized_objects_are_told(ctx):
    rows = [row(ctx.objects.put(encoded(noise(seed), "JPEG")), 1, "train", f"g{seed}") for seed in range(3)]
    rows[0]["width"] = 500
    changed = ctx.objects.path(rows[1]["digest"])
    changed.write_bytes(b"x" + changed.read_bytes()[1:])
    gone = row("f" * 64, 1, "train", "gone")
    found, findings = check(ctx, manifest=ctx.objects.put_jsonl([*rows, gone]))
    assert found["byKind"] == {"corrupt": 1, "missing": 1, "wrong-size": 1}
    assert found["usable"] == 2
    assert findings[0]["unusable"]


def test_nothing_to_check_is_told_apart_from_a_wrong_request(ctx, folder):
    with pytest.raises(EmptySplit, match="holds no image"):
        check(ctx, folder=str(folder))
    with pytest.raises(BadInput, match="no folder"):
        check(ctx, folder=str(folder / "nothing"))
    with pytest.raises(BadInput, match="either"):
        check(ctx)


def embedded(ctx, rows, **more):
    found = embed.run(ctx, with_defaults("embed.input", {"manifest": ctx.objects.put_jsonl(rows), "member": MEMBERS[0], **more}))
    validate("embed.output", found, "output")
    return found, load(ctx.objects.get(found["embeddings"]))["embeddings"]


def test_embeddings_come_in_the_order_of_the_index_and_of_length_one(ctx):
    rows = world(ctx.objects, "test", 3, 2, 1)
    found, table = embedded(ctx, rows)
    assert table.shape == (6, 1, found["dimensions"])
    assert np.linalg.norm(table[:, 0], axis=1) == pytest.approx(np.ones(6), abs=1e-5)
    assert [line["digest"] for line in ctx.objects.get_jsonl(found["index"])] == sorted(one["digest"] for one in rows)
    again, _ = embedded(ctx, rows[::-1])
    assert again["embeddings"] == found["embeddings"]


def test_views_are_embedded_beside_the_image(ctx):
    rows = world(ctx.objects, "train", 1, 2, 1)
    _, table = embedded(ctx, rows, views=2, unit=False)
    assert table.shape[:2] == (2, 3)
    assert not np.allclose(table[:, 0], table[:, 1])


def test_an_empty_manifest_is_refused(ctx):
    with pytest.raises(EmptySplit, match="nothing to embed"):
        embedded(ctx, [])
