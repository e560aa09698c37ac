"""kill -9 at any moment: whatever has the name of a whole file is whole, and the next start comes to the end."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from conftest import NEVER, snapshot_rows, train_input

from flywheel_jobs.board import whole_records
from flywheel_jobs.errors import Interrupted
from flywheel_jobs.objects import FileObjects, sha256
from flywheel_jobs.progress import Progress

LEFTOVER = ".part-"
"""how names of files begin that are being written"""
TUNE = NEVER | {"mode": "always", "epochs": 4, "checkpointSeconds": 0}


def whole(file: Path) -> None:
    """Raises when a file with a final name can not be read to its end."""
    data = file.read_bytes()
    if file.suffix == ".json":
        json.loads(data)
    elif file.suffix == ".npz":
        with np.load(file, allow_pickle=False) as table:
            assert all(table[name].size for name in table.files)
    elif file.suffix == ".onnx":
        import onnx

        onnx.load_from_string(data)
    elif file.suffix == ".pt":
        import torch

        torch.load(file, weights_only=False)
    elif file.name.startswith("events.out.tfevents"):
        assert len(whole_records(data)) <= len(data)
    elif file.suffix == ".jsonl":
        for line in data.decode().split("\n")[:-1]:  # the last one may be half written
            json.loads(line)
    elif file.name not in (".lock", "spec.sha256"):
        raise AssertionError(f"{file} is of a kind that this test does not know: say how it is known to be whole")


def paths(root: Path) -> set[Path]:
    """Every file in store, cache and work folder, those being written among them."""
    return {path for part in ("objects", "cache", "work") for path in (root / part).rglob("*")}


def check(root: Path) -> int:
    """Everything that a killed job left in store, cache and work folder; the number of files looked at."""
    count = 0
    for part in ("objects", "cache", "work"):
        for file in (root / part).rglob("*"):
            if not file.is_file() or file.name.startswith(LEFTOVER) or "matplotlib" in file.parts:
                continue
            count += 1
            if part == "objects" and "derived" not in file.parts:
                assert sha256(file.read_bytes()) == file.name
            else:
                whole(file)
    return count


def train_spec(root: Path, objects: FileObjects, **more: object) -> Path:
    """The file of a train job in `root`."""
    spec = {
        "version": 1,
        "job": "train",
        "name": "t/train",
        "objects": {"kind": "file", "root": str(objects.root)},
        "cacheDir": str(root / "cache"),
        "workDir": str(root / "work"),
        "threads": 1,
        "input": train_input(objects.put_jsonl(snapshot_rows(objects)), **more),
    }
    file = root / "spec"
    file.write_text(json.dumps(spec))
    return file


def start(root: Path, file: Path) -> subprocess.Popen[bytes]:
    """Starts the job in a process group of its own; what it says goes to `log`."""
    with (root / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "flywheel_jobs.cli", "run", str(file)], stdout=log, stderr=log, start_new_session=True
        )


def test_a_job_killed_at_random_moments_leaves_nothing_that_only_looks_whole_and_comes_to_its_end(tmp_path):
    objects = FileObjects(tmp_path / "objects")
    file = train_spec(tmp_path, objects, fineTune=TUNE)
    moments = random.Random(1)
    killed, looked_at = 0, 0
    for _ in range(3):
        job = start(tmp_path, file)
        # at a moment when something is being written: that is when a file could look whole and not be
        before, wanted, end = paths(tmp_path), moments.randint(1, 5), time.monotonic() + 60
        while job.poll() is None and len(paths(tmp_path) - before) < wanted and time.monotonic() < end:
            time.sleep(0.02)
        time.sleep(moments.uniform(0, 0.02))
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
            killed += 1
        job.wait()
        looked_at += check(tmp_path)
    assert killed > 0
    assert looked_at > 0
    done = subprocess.run([sys.executable, "-m", "flywheel_jobs.cli", "run", str(file)], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    result = json.loads((tmp_path / "work" / "result.json").read_text())
    assert result["ok"] is True
    for line in (tmp_path / "work" / "progress.jsonl").read_text().splitlines():
        assert line == "" or isinstance(tried(line), dict)
    trained = objects.get_json(result["output"]["trained"])
    assert len(trained["members"]) == 2
    for events in result["output"]["report"]["tensorboard"]:
        data = objects.get(events["events"])
        assert whole_records(data) == data
    check(tmp_path)


def test_a_sigterm_that_reaches_the_decoding_processes_first_still_ends_in_a_checkpoint(tmp_path):
    objects = FileObjects(tmp_path / "objects")
    long = TUNE | {"epochs": 500, "patience": 0, "checkpointSeconds": 600}
    progress = tmp_path / "work" / "progress.jsonl"
    job = start(tmp_path, train_spec(tmp_path, objects, fineTune=long, loader={"workers": 2}))

    def reach(steps: int) -> None:
        end = time.monotonic() + 120
        while job.poll() is None and time.monotonic() < end:
            if progress.is_file() and progress.read_text().count('"fine-tune"') >= steps:
                return
            time.sleep(0.05)
        raise AssertionError((tmp_path / "log").read_text()[-2000:])

    try:
        reach(3)
        children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
        assert len(children) >= 2
        for child in children:
            os.kill(int(child), signal.SIGTERM)
        reach(progress.read_text().count('"fine-tune"') + 12)
        os.killpg(job.pid, signal.SIGTERM)
        assert job.wait(60) == Interrupted.exit_code, (tmp_path / "log").read_text()[-2000:]
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
            job.wait()
    import torch

    (checkpoint,) = [path for path in (tmp_path / "work").glob("finetune-*.pt") if "-best-" not in path.name]
    assert torch.load(checkpoint, weights_only=True)["step"] >= 15


def tried(line: str) -> object:
    """A line of progress; one that was cut off by a kill stands alone and is passed over."""
    try:
        return json.loads(line)
    except ValueError:
        return {}


def test_progress_goes_on_on_a_line_of_its_own_after_one_that_was_cut_off(tmp_path):
    file = tmp_path / "progress.jsonl"
    file.write_text('{"phase":"a","done":1,"total":2,"unit":"x"}\n{"phase":"a","do')
    Progress(tmp_path, quiet=True).step("b", 2, 2, "x")
    assert [json.loads(line)["phase"] for line in (file.read_text().splitlines()[0], file.read_text().splitlines()[-1])] == ["a", "b"]


def test_events_that_were_cut_off_end_at_the_last_whole_record(tmp_path):
    from flywheel_jobs.board import Board

    board = Board(tmp_path)
    for step in range(3):
        board.scalars(step, loss=1.0 / (step + 1))
    (file,) = board.close()
    data = file.read_bytes()
    assert whole_records(data) == data
    for cut in (1, 5, 17):
        assert data.startswith(whole_records(data[:-cut]))
        assert len(whole_records(data[:-cut])) < len(data) - cut + 1
    assert whole_records(data[:-1]) == whole_records(data[:-5])
    assert whole_records(b"") == b""
