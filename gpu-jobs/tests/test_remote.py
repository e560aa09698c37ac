"""Objects of a bucket, against a real S3 gateway (versitygw on loopback): from FLYWHEEL_S3_GATEWAY, PATH, or built once with Go."""

import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import MEMBERS, make_context, snapshot_rows, world

from flywheel_jobs import backbones, import_check
from flywheel_jobs.context import JobContext
from flywheel_jobs.errors import BadInput, Infrastructure
from flywheel_jobs.features import Extractor
from flywheel_jobs.objects import FileObjects, sha256
from flywheel_jobs.progress import Progress
from flywheel_jobs.remote import Bucket, RemoteObjects
from flywheel_jobs.shards import ShardedObjects
from flywheel_jobs.shards import run as pack
from flywheel_jobs.spec import with_defaults
from flywheel_jobs.weights import BackboneRef

GATEWAY = "github.com/versity/versitygw/cmd/versitygw@v1.8.0"
BIG = 1 << 30


def gateway_program() -> str | None:
    """The program; None where it is not there and can not be built."""
    told = os.environ.get("FLYWHEEL_S3_GATEWAY") or shutil.which("versitygw")
    if told:
        return told
    bin_folder = Path.home() / ".cache" / "streetvision-flywheel" / "versitygw-1.8.0"
    program = bin_folder / "versitygw"
    if not program.is_file() and shutil.which("go"):
        made = subprocess.run(
            ["go", "install", GATEWAY], env={**os.environ, "GOBIN": str(bin_folder)}, capture_output=True, timeout=600, check=False
        )
        if made.returncode != 0:
            print(made.stderr.decode()[-500:])
    return str(program) if program.is_file() else None


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    """(endpoint, folder behind it); the bucket `flywheel` is there."""
    program = gateway_program()
    if program is None:
        pytest.skip("no versitygw: give FLYWHEEL_S3_GATEWAY, put it on PATH, or install Go and let it be built once")
    folder = tmp_path_factory.mktemp("gateway")
    (folder / "flywheel").mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    access = {"ROOT_ACCESS_KEY": "test", "ROOT_SECRET_KEY": "testtest"}
    server = subprocess.Popen(
        [program, "--port", f"127.0.0.1:{port}", "posix", str(folder)],
        env={**os.environ, **access},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert server.poll() is None, "the gateway ended at once"
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}", folder / "flywheel"
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def bucket(gateway, monkeypatch, request):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testtest")
    return Bucket("flywheel", f"{request.node.name[:40]}/", gateway[0], "us-east-1")


def test_what_one_machine_writes_another_reads_with_the_layout_of_the_file_store(bucket, gateway, tmp_path):
    digest = RemoteObjects(bucket, tmp_path / "one", BIG).put(b"roadwork")
    assert digest == sha256(b"roadwork")
    assert (gateway[1] / bucket.prefix / digest[:2] / digest).read_bytes() == b"roadwork"
    other = RemoteObjects(bucket, tmp_path / "two", BIG)
    assert other.has(digest)
    assert not other.has("0" * 64)
    assert other.get(digest) == b"roadwork"
    assert FileObjects(tmp_path / "two").get(digest) == b"roadwork"
    rows = [{"a": 1}, {"a": 2}]
    assert other.get_jsonl(other.put_jsonl(rows)) == rows


def test_what_is_in_the_cache_is_not_asked_for_again_and_a_damaged_copy_is(bucket, gateway, tmp_path):
    store = RemoteObjects(bucket, tmp_path / "one", BIG)
    digest = store.put(b"once")
    (gateway[1] / bucket.prefix / digest[:2] / digest).rename(tmp_path / "away")
    assert store.get(digest) == b"once"
    store.path(digest).write_bytes(b"torn")
    with pytest.raises(BadInput, match="is not in bucket flywheel"):
        store.get(digest)
    (tmp_path / "away").rename(gateway[1] / bucket.prefix / digest[:2] / digest)
    assert store.get(digest) == b"once"
    assert store.path(digest).read_bytes() == b"once"


def test_bytes_that_were_changed_in_the_bucket_are_never_used(bucket, gateway, tmp_path):
    digest = RemoteObjects(bucket, tmp_path / "one", BIG).put(b"true")
    (gateway[1] / bucket.prefix / digest[:2] / digest).write_bytes(b"lies")
    store = RemoteObjects(bucket, tmp_path / "two", BIG)
    with pytest.raises(Infrastructure, match="is corrupt in bucket"):
        store.get(digest)
    assert not store.path(digest).exists()


def test_the_cache_stays_within_its_limit_and_what_was_used_last_stays(bucket, tmp_path):
    store = RemoteObjects(bucket, tmp_path / "one", 1000)
    digests = [store.put(bytes([number]) * 100) for number in range(9)]
    for age, digest in enumerate(digests):
        os.utime(store.path(digest), (1000 + age, 1000 + age))
    store.get(digests[0])
    for number in range(20, 24):
        store.put(bytes([number]) * 100)
    held = [path for path in (tmp_path / "one").glob("??/*") if path.is_file()]
    assert sum(path.stat().st_size for path in held) <= 1000
    assert store.path(digests[0]).exists()
    assert not store.path(digests[1]).exists()
    assert store.get(digests[1]) == bytes([1]) * 100  # it is still in the bucket
    with pytest.raises(Infrastructure, match="more than the whole cache may hold"):
        store.put(bytes(1001))


def test_a_bucket_out_of_reach_is_infrastructure_and_never_an_object_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testtest")
    monkeypatch.setattr("flywheel_jobs.remote.ATTEMPTS", 1)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        store = RemoteObjects(Bucket("b", "", f"http://127.0.0.1:{closed.getsockname()[1]}", "us-east-1"), tmp_path, BIG)
        with pytest.raises(Infrastructure, match="Check bucket, endpoint and credentials"):
            store.has("0" * 64)


def test_wrong_credentials_are_told(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    with pytest.raises(Infrastructure, match="credentials"):
        RemoteObjects(bucket, tmp_path, BIG).put(b"x")


def test_images_come_out_of_tar_shards_of_the_bucket(bucket, tmp_path):
    ctx = make_context(tmp_path)
    rows = snapshot_rows(ctx.objects)
    out = pack(ctx, {"manifest": ctx.objects.put_jsonl(rows), "maxShardBytes": 50_000})
    store = RemoteObjects(bucket, tmp_path / "cache-of-bucket", BIG)
    index = store.put_json(ctx.objects.get_json(out["index"]))
    for shard in ctx.objects.get_json(out["index"])["shards"]:
        store.put(ctx.objects.get(shard["tar"]))
        store.put(ctx.objects.get(shard["index"]))
    fresh = RemoteObjects(bucket, tmp_path / "another-machine", BIG)
    sharded = ShardedObjects(fresh, index)
    for row in rows:
        assert sharded.get(row["digest"]) == ctx.objects.get(row["digest"])
    assert not fresh.path(rows[0]["digest"]).exists()  # no image was fetched by itself


def test_a_job_on_a_bucket_gives_what_it_gives_on_files(bucket, tmp_path):
    here = make_context(tmp_path)
    rows = world(here.objects, "train", 4, 2, 1)
    rows.append({**rows[0], "digest": "0" * 64})  # one that is nowhere is told
    order = with_defaults("import-check.input", {"manifest": here.objects.put_jsonl(rows)})
    plain = import_check.run(here, order)
    assert plain["byKind"]["missing"] == 1
    store = RemoteObjects(bucket, tmp_path / "upload", BIG)
    for digest in [*(row["digest"] for row in rows[:-1]), order["manifest"]]:
        store.put(here.objects.get(digest))
    spec = {
        "version": 1,
        "job": "import-check",
        "name": "t",
        "objects": {"kind": "s3", "bucket": bucket.name, "prefix": bucket.prefix, "endpoint": bucket.endpoint, "region": bucket.region},
        "cacheDir": str(tmp_path / "rented" / "cache"),
        "workDir": str(tmp_path / "rented" / "work"),
        "threads": 1,
        "input": order,
    }
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    ran = subprocess.run(
        [sys.executable, "-m", "flywheel_jobs.cli", "run", str(tmp_path / "spec.json")], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    result = json.loads((tmp_path / "rented" / "work" / "result.json").read_text())
    assert {**result["output"], "findings": "", "first": []} == {**plain, "findings": "", "first": []}
    findings = RemoteObjects(bucket, tmp_path / "home", BIG).get_jsonl(result["output"]["findings"])
    assert [one["kind"] for one in findings] == [one["kind"] for one in here.objects.get_jsonl(plain["findings"])]
    assert "testtest" not in (tmp_path / "rented" / "work" / "result.json").read_text() + ran.stdout + ran.stderr


TINY = BackboneRef.of(MEMBERS[0])


class Machine:
    """A machine of its own on the bucket: cache and work folder, and how many images went through the network there."""

    def __init__(self, bucket: Bucket, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.computed = 0
        (root / "work").mkdir(parents=True)
        self.objects = RemoteObjects(bucket, root / "cache" / "objects", BIG)
        self.ctx = JobContext(self.objects, root / "cache", root / "work", 1, Progress(root / "work", quiet=True))
        self._patch = monkeypatch
        self._real = backbones.Backbone.compute

    def features(self, digests, views=0):
        def counted(backbone, pixels):
            self.computed += len(pixels)
            return self._real(backbone, pixels)

        with self._patch.context() as patch:
            patch.setattr(backbones.Backbone, "compute", counted)
            return Extractor(self.ctx, TINY).features(digests, views)

    def told(self):
        lines = [json.loads(line) for line in (self.ctx.work_dir / "progress.jsonl").read_text().splitlines()]
        return [line["message"] for line in lines if line["phase"] == "shared-features"]


@pytest.fixture
def machine(bucket, tmp_path, monkeypatch):
    return lambda name: Machine(bucket, tmp_path / name, monkeypatch)


def in_bucket(gateway, bucket, suffix):
    return sorted((gateway[1] / bucket.prefix / "derived" / "features").rglob(f"*{suffix}"))


def test_features_are_computed_once_for_all_machines_and_only_what_is_wanted_is_fetched(machine, gateway, bucket, monkeypatch):
    monkeypatch.setattr("flywheel_jobs.features.SHARD", 4)
    monkeypatch.setattr("flywheel_jobs.features.BATCH", 4)
    monkeypatch.setattr("flywheel_jobs.remote.PAGE", 3)  # 8 files of shards and notes: three pages
    first, second, third = machine("first"), machine("second"), machine("third")
    digests = [one["digest"] for one in world(first.objects, "train", 8, 1, 1)]
    whole = first.features(digests, views=1)
    assert first.computed == 16
    assert [len(in_bucket(gateway, bucket, suffix)) for suffix in (".npz", ".json")] == [4, 4]
    assert np.array_equal(second.features(digests[::-1], views=1).final[::-1], whole.final)
    assert second.computed == 0
    assert len(list((second.ctx.cache_dir / "features").rglob("*.npz"))) == 4
    third.features(digests[:1])
    assert third.computed == 0
    assert len(list((third.ctx.cache_dir / "features").rglob("*.npz"))) == 1
    assert not [*first.told(), *second.told(), *third.told()]


def test_torn_shards_and_notes_in_the_bucket_are_computed_again_and_mended(machine, gateway, bucket, monkeypatch):
    monkeypatch.setattr("flywheel_jobs.features.SHARD", 2)
    monkeypatch.setattr("flywheel_jobs.features.BATCH", 2)
    first, second, third = machine("first"), machine("second"), machine("third")
    digests = [one["digest"] for one in world(first.objects, "train", 6, 1, 1)]
    whole = first.features(digests)
    shards, notes = in_bucket(gateway, bucket, ".npz"), in_bucket(gateway, bucket, ".json")
    shards[0].write_bytes(shards[0].read_bytes()[:200])
    notes[1].write_bytes(b'{"sha256":')
    assert np.array_equal(second.features(digests).final, whole.final)
    assert second.computed == 4
    assert in_bucket(gateway, bucket, ".npz") == shards
    third.features(digests)
    assert third.computed == 0


def test_a_bucket_that_takes_no_features_costs_time_and_is_told_once(machine, gateway, bucket, monkeypatch):
    first = machine("first")
    digests = [one["digest"] for one in world(first.objects, "train", 3, 1, 1)]
    (gateway[1] / bucket.prefix / "derived").write_bytes(b"in the way")
    found = first.features(digests)
    assert (len(found.final), first.computed) == (3, 3)
    (once,) = first.told()
    assert "computes what is missing" in once
    assert f"{bucket.prefix}derived/features/" in once
    assert first.features(digests).final.shape == found.final.shape
    assert first.computed == 3  # the machine's own folder has them


def test_the_bucket_is_listed_and_read_after_a_fork_too(machine, gateway, bucket):
    first = machine("first")
    first.objects.derived("features/x").put("one.json", b"1")

    def child(sender):
        shared = first.objects.derived("features/x")
        sender.send((shared.names(".json"), shared.get("one.json"), shared.get("none.json"), shared.names(".npz")))

    receiver, sender = multiprocessing.Pipe(duplex=False)
    forked = multiprocessing.get_context("fork").Process(target=child, args=(sender,))
    forked.start()
    assert receiver.poll(60)
    assert receiver.recv() == (["one.json"], b"1", None, [])
    forked.join(60)


def test_a_job_that_reads_shards_shares_its_features_through_the_bucket_behind_them(bucket, tmp_path):
    store = RemoteObjects(bucket, tmp_path / "one", BIG)
    ctx = make_context(tmp_path)
    rows = world(ctx.objects, "train", 2, 1, 1)
    packed = ctx.objects.get_json(pack(ctx, {"manifest": ctx.objects.put_jsonl(rows), "maxShardBytes": 50_000})["index"])
    for shard in packed["shards"]:
        store.put(ctx.objects.get(shard["index"]))
    ShardedObjects(store, store.put_json(packed)).derived("features/x").put("one.json", b"1")
    assert RemoteObjects(bucket, tmp_path / "two", BIG).derived("features/x").names(".json") == ["one.json"]
