"""Each bad input by the real job, from spec to exit code: its own code, a message that tells what to do, nothing that looks complete."""

import json
import signal

import pytest
from conftest import MEMBERS, make_context, row, snapshot_rows, train_input, world

from flywheel_jobs import cli, progress
from flywheel_jobs.backbones import Backbone

TUNE = {"mode": "always", "gate": 0.5, "epochs": 2, "batch": 8, "backboneLr": 1e-4, "headLr": 1e-3, "maxSeconds": 600}


@pytest.fixture
def start(tmp_path):
    """Runs a job on a store: (exit code, error of the result)."""
    ctx = make_context(tmp_path)

    def go(job, job_input):
        spec = {"version": 1, "job": job, "name": "bad", "objects": {"kind": "file", "root": str(tmp_path / "objects")}, "threads": 1}
        spec |= {"cacheDir": str(tmp_path / "cache"), "workDir": str(tmp_path / "work"), "input": job_input}
        (tmp_path / "spec.json").write_text(json.dumps(spec))
        code = cli.run(str(tmp_path / "spec.json"))
        result = json.loads((tmp_path / "work" / "result.json").read_text())
        assert result["ok"] is False
        assert "output" not in result
        return code, result["error"]

    go.objects = ctx.objects
    yield go
    progress._stop.clear()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def embed_input(objects, rows, **member):
    return {"manifest": objects.put_jsonl(rows), "member": {**MEMBERS[0], **member}}


def test_a_corrupt_image(start):
    rows = [*world(start.objects, "train", 2, 1, 1), row(start.objects.put(b"no image"), 1, "train", "g")]
    code, error = start("embed", embed_input(start.objects, rows))
    assert (code, error["reason"]) == (68, "corrupt-image")
    assert "Take its row out" in error["message"]


@pytest.mark.parametrize(("keep", "code", "reason"), [(lambda r: False, 69, "empty-split"), (lambda r: r["label"] == 1, 70, "one-class")])
def test_an_empty_split_and_a_split_of_one_class(start, keep, code, reason):
    rows = [one for one in snapshot_rows(start.objects) if one["pool"] != "validate" or keep(one)]
    found, error = start("train", train_input(start.objects.put_jsonl(rows)))
    assert (found, error["reason"]) == (code, reason)
    assert "validate" in error["message"]


def test_missing_weights(start):
    rows = world(start.objects, "train", 2, 1, 1)
    code, error = start("embed", embed_input(start.objects, rows, weights="/nowhere/weights.safetensors"))
    assert (code, error["reason"]) == (67, "missing-weights")
    assert "/nowhere/weights.safetensors" in error["message"]


def test_an_unknown_backbone(start):
    code, error = start("embed", embed_input(start.objects, world(start.objects, "train", 2, 1, 1), backbone="resnot50"))
    assert (code, error["reason"]) == (66, "unknown-backbone")
    assert "resnot50" in error["message"]


def test_a_loss_that_is_no_number(start):
    snapshot = start.objects.put_jsonl(snapshot_rows(start.objects))
    code, error = start("train", train_input(snapshot, fineTune={**TUNE, "backboneLr": 1e30, "headLr": 1e30}, members=MEMBERS[:1]))
    assert (code, error["reason"]) == (72, "not-finite")
    assert "backboneLr" in error["message"]


def test_too_little_memory_even_for_one_image(start, monkeypatch):
    sizes = []

    def no_room(self, pixels):
        sizes.append(len(pixels))
        raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(Backbone, "compute", no_room)
    code, error = start("embed", embed_input(start.objects, world(start.objects, "train", 4, 2, 1)))
    assert (code, error["reason"]) == (79, "one-image-too-big")
    assert sizes == [8, 4, 2, 1]
    assert "smaller backbone" in error["message"]
