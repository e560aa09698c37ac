import errno
import json
import os
import signal
import sys
import types
from importlib import resources
from pathlib import Path

import pytest

from flywheel_jobs import cli, progress
from flywheel_jobs.errors import FAILURES, BadInput, DiskFull
from flywheel_jobs.objects import FileObjects, write_atomic

DIGEST = "0" * 64
RENDER = {"count": 2, "seed": 1}


@pytest.fixture
def job(tmp_path, monkeypatch):
    """Puts a function in the place of the render job and gives a runner: (exit code, result)."""
    calls = []

    def go(body, job_input=RENDER, name="turn-1/render", **spec_more):
        module = types.ModuleType("fake_job")

        def run(ctx, given):
            calls.append(given)
            return body(ctx, given)

        module.run = run
        monkeypatch.setitem(sys.modules, "fake_job", module)
        monkeypatch.setitem(cli.JOBS, "render", "fake_job")
        spec = {"version": 1, "job": "render", "name": name, "objects": {"kind": "file", "root": str(tmp_path / "o")}}
        spec |= {"cacheDir": str(tmp_path / "c"), "workDir": str(tmp_path / "w"), "threads": 1, "input": job_input} | spec_more
        (tmp_path / "spec.json").write_text(json.dumps(spec))
        code = cli.run(str(tmp_path / "spec.json"))
        file = tmp_path / "w" / "result.json"
        return code, json.loads(file.read_text()) if file.is_file() else None

    go.calls = calls
    yield go
    progress._stop.clear()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def done(ctx, given):
    return {"images": ctx.objects.put(b""), "count": given["count"]}


def test_a_job_leaves_its_output_and_the_versions_it_ran_on(job):
    code, result = job(done)
    assert code == 0
    assert result["ok"] is True
    assert result["name"] == "turn-1/render"
    assert result["output"]["count"] == 2
    assert {"python", "torch", "onnxruntime"} <= result["environment"].keys()


def test_defaults_of_the_contract_are_filled_in(job):
    job(done)
    assert job.calls == [{"perGroup": 1, "width": 400, "height": 300, **RENDER}]


def test_a_finished_job_started_again_does_nothing(job):
    job(done)
    code, result = job(done)
    assert code == 0
    assert result["ok"] is True
    assert len(job.calls) == 1


def test_another_input_in_the_same_folder_is_run(job):
    job(done)
    _, result = job(done, {"count": 3, "seed": 1})
    assert result["output"]["count"] == 3


def test_a_failed_job_started_again_runs_again(job):
    def fail(ctx, given):
        raise BadInput("no street here")

    assert job(fail)[0] == 65
    assert job(done)[0] == 0


def test_an_input_outside_the_contract_is_refused_before_the_job_starts(job):
    code, result = job(done, {"count": 0, "seed": 1})
    assert code == 64
    assert result["error"]["kind"] == "bad-input"
    assert result["error"]["reason"] == "wrong-spec"
    assert "count" in result["error"]["message"]
    assert job.calls == []


def test_an_unreadable_spec_has_its_own_exit_code(tmp_path, capsys):
    (tmp_path / "spec.json").write_text("{")
    assert cli.run(str(tmp_path / "spec.json")) == 64
    assert "cannot be read" in capsys.readouterr().err


def test_a_spec_of_another_contract_version_says_which_and_starts_nothing(job):
    code, result = job(done, version=2)
    assert code == 64
    assert "version 2, this flywheel-job speaks 1" in result["error"]["message"]
    assert job.calls == []


def test_the_table_of_failures_is_that_of_the_contract():
    contract = json.loads(resources.files("flywheel_jobs").joinpath("schema", "job-failures.json").read_text())
    ours = {failure.reason: {"exit": failure.exit_code, "kind": failure.kind} for failure in FAILURES}
    assert ours == {reason: {"exit": entry["exit"], "kind": entry["kind"]} for reason, entry in contract.items()}
    assert len({failure.exit_code for failure in FAILURES}) == len(FAILURES)


def test_the_table_of_failures_is_printed_for_the_operator(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["failures"])
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(FAILURES)
    assert any(line.startswith("73  disk-full ") for line in lines)


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: failure.reason)
def test_every_failure_ends_with_its_own_exit_code_reason_and_message(job, failure):
    def fail(ctx, given):
        raise failure("what happened, what was kept, what to do")

    code, result = job(fail)
    assert code == failure.exit_code
    assert result["error"] == {"kind": failure.kind, "reason": failure.reason, "message": "what happened, what was kept, what to do"}


def test_batches_are_divided_as_the_spec_says_and_never_below_one(job):
    seen = []

    def look(ctx, given):
        seen.extend([ctx.batch(32), ctx.batch(4)])
        return done(ctx, given)

    assert job(look, batchDivisor=8)[0] == 0
    assert seen == [4, 1]


def test_a_full_disk_leaves_no_part_of_a_file(tmp_path, monkeypatch):
    write_atomic(tmp_path / "kept", b"old")

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFull, match=r"the disk is full: .*kept could not be written"):
        write_atomic(tmp_path / "kept", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept").read_bytes() == b"old"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_fills_up_under_a_job_ends_it_with_the_exit_code_of_a_full_disk(job, tmp_path):
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "progress.jsonl").symlink_to("/dev/full")

    def busy(ctx, given):
        ctx.progress.step("scenes", 1, 1, "images")
        return done(ctx, given)

    code, result = job(busy)
    assert code == 73
    assert result["error"]["reason"] == "disk-full"
    assert "Free space" in result["error"]["message"]


@pytest.mark.parametrize(
    ("error", "code", "kind"),
    [
        (BadInput("x"), 65, "bad-input"),
        (MemoryError(), 76, "out-of-memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 76, "out-of-memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), 76, "out-of-memory"),
        (OSError(errno.ENOSPC, "No space left on device"), 73, "infrastructure"),
        (OSError(errno.EFBIG, "File too large"), 73, "infrastructure"),
        (KeyError("surprise"), 71, "infrastructure"),
    ],
)
def test_every_failure_has_its_exit_code_and_kind(job, error, code, kind):
    def fail(ctx, given):
        raise error

    got, result = job(fail)
    assert got == code
    assert result["ok"] is False
    assert result["error"]["kind"] == kind


def test_an_output_outside_the_contract_is_the_jobs_own_fault(job):
    code, result = job(lambda ctx, given: {"images": "nonsense", "count": 1})
    assert code == 71
    assert "images" in result["error"]["message"]


def test_sigterm_ends_the_job_at_its_next_step_and_a_new_start_goes_on(job):
    def stopped(ctx, given):
        ctx.progress.step("scenes", 1, 2, "images")
        os.kill(os.getpid(), signal.SIGTERM)
        ctx.progress.step("scenes", 2, 2, "images")
        raise AssertionError("went on after SIGTERM")

    code, result = job(stopped)
    assert code == 75
    assert result["error"]["kind"] == "interrupted"
    progress._stop.clear()
    assert job(done)[0] == 0


def test_two_processes_never_work_in_one_folder(job, tmp_path):
    def inner(ctx, given):
        with pytest.raises(Exception, match="another process"), cli._alone(tmp_path / "w"):
            pass
        return done(ctx, given)

    assert job(inner)[0] == 0


def test_progress_goes_to_the_file_as_json_lines_with_the_last_one_always(tmp_path):
    reporter = progress.Progress(tmp_path, every_seconds=3600, quiet=True)
    for number in range(1, 6):
        reporter.step("features", number, 5, "images", loss=0.5)
    lines = [json.loads(line) for line in (tmp_path / "progress.jsonl").read_text().splitlines()]
    assert [line["done"] for line in lines] == [1, 5]
    assert lines[-1] == {"phase": "features", "done": 5, "total": 5, "unit": "images", "loss": 0.5}


def test_a_closed_standard_output_does_not_stop_the_job(tmp_path, monkeypatch):
    class Gone:
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Gone())
    progress.Progress(tmp_path).step("features", 1, 1, "images")
    assert (tmp_path / "progress.jsonl").is_file()


def test_the_store_of_the_spec_is_the_one_used(job, tmp_path):
    _, result = job(done)
    assert FileObjects(tmp_path / "o").has(result["output"]["images"])
