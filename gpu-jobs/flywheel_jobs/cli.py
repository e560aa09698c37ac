"""`flywheel-job run SPEC.json`: checks the spec, runs one job, writes its result.

Exit codes: 0 done; 65 bad input, 71 infrastructure, 75 interrupted (start again to go on), 76 out of memory, and one for
every special case of these (`flywheel_jobs/errors.py`; `flywheel-job failures` prints the table).
Modules are imported when a job needs them, so that light jobs start fast.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import importlib
import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import FAILURES, BadInput, Infrastructure, JobError, OutOfMemory, is_full, not_written, says_out_of_memory

if TYPE_CHECKING:
    from .objects import FileObjects

CONTRACT_VERSION = 1
CACHE_BYTES = 20_000_000_000
"""of a bucket's objects on the local disk, where the spec does not say"""
JOBS = {
    "challenges": "flywheel_jobs.challenges",
    "neighbours": "flywheel_jobs.neighbours",
    "render": "flywheel_jobs.synth.render_job",
    "synthesize": "flywheel_jobs.synth.job",
    "label": "flywheel_jobs.label",
    "train": "flywheel_jobs.train",
    "pack": "flywheel_jobs.shards",
    "export": "flywheel_jobs.export",
    "evaluate": "flywheel_jobs.evaluate",
    "embed": "flywheel_jobs.embed",
    "import-check": "flywheel_jobs.import_check",
}
_PACKAGES = ("torch", "torchvision", "timm", "onnx", "onnxruntime", "numpy", "pillow", "scipy")


def environment() -> dict[str, str]:
    """Versions of what the result depends on, read from package metadata (nothing is imported)."""
    found = {"python": platform.python_version(), "flywheel_jobs": _version("flywheel-jobs") or "source"}
    return found | {name: version for name in _PACKAGES if (version := _version(name))}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def as_job_error(error: BaseException) -> JobError:
    """Any failure as one of the contract's."""
    if isinstance(error, JobError):
        return error
    text = f"{type(error).__name__}: {error}"
    if says_out_of_memory(error):
        return OutOfMemory(
            f"out of memory: {text}. Finished parts were kept; start again with smaller batches (`batchDivisor`) or on a bigger machine."
        )
    if isinstance(error, OSError) and is_full(error):
        return not_written(error.filename or "a file of the job", error)
    return Infrastructure(f"unexpected failure: {text}. Finished parts were kept; see the traceback in the job's log.")


def store(told: dict[str, Any], cache: Path) -> FileObjects:
    """The object store that a spec names. A bucket is read through `<cache>/objects`."""
    from .objects import FileObjects

    if told["kind"] == "file":
        return FileObjects(told["root"])
    from .remote import Bucket, RemoteObjects

    bucket = Bucket(told["bucket"], told.get("prefix", ""), told.get("endpoint"), told.get("region"))
    return RemoteObjects(bucket, cache / "objects", int(told.get("cacheBytes", CACHE_BYTES)))


@contextmanager
def _alone(work_dir: Path) -> Iterator[None]:
    """One process a folder: two would write over each other's checkpoints. The lock ends with the process."""
    with (work_dir / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Infrastructure(f"another process works in {work_dir}; nothing was touched. Wait for it, or adopt it.") from error
        yield


def _finished(result_file: Path, mark_file: Path, mark: str) -> bool:
    """Whether this very spec was finished here before."""
    try:
        return mark_file.read_text() == mark and json.loads(result_file.read_text()).get("ok") is True
    except (OSError, ValueError, AttributeError):
        return False


def run(spec_path: str) -> int:
    """Runs the job of a spec file and returns the exit code."""
    started = time.monotonic()
    # the spec is read with nothing heavy imported, since thread limits must be set before numpy and torch start
    from .spec import Spec, validate

    try:
        spec = Spec.load(spec_path)
    except JobError as error:
        print(f"flywheel-job: {error}", file=sys.stderr)
        _report_unusable_spec(spec_path, error, time.monotonic() - started)
        return error.exit_code
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
        os.environ[variable] = str(spec.threads)
    # numpy's products are small here (heads), and its threads wait for each other by spinning: on a machine that also serves, a job of
    # 2 s of computing took 45. torch and onnxruntime have threads of their own
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

    from .context import JobContext
    from .objects import canonical_json, write_atomic
    from .progress import Progress, catch_sigterm

    result_file, mark_file = spec.work_dir / "result.json", spec.work_dir / "spec.sha256"
    mark = hashlib.sha256(canonical_json([CONTRACT_VERSION, spec.job, spec.input])).hexdigest()
    head = {"version": CONTRACT_VERSION, "job": spec.job, "name": spec.name}
    try:
        catch_sigterm()
        spec.work_dir.mkdir(parents=True, exist_ok=True)
        spec.cache_dir.mkdir(parents=True, exist_ok=True)
        with _alone(spec.work_dir):
            if _finished(result_file, mark_file, mark):
                return 0
            write_atomic(mark_file, mark.encode())
            try:
                objects, progress = store(spec.objects, spec.cache_dir), Progress(spec.work_dir)
                context = JobContext(objects, spec.cache_dir, spec.work_dir, spec.threads, progress, spec.batch_divisor)
                job: Callable[[JobContext, dict[str, Any]], dict[str, Any]] = importlib.import_module(JOBS[spec.job]).run
                output = job(context, spec.input)
                try:
                    validate(f"{spec.job}.output", output, f"the output of job {spec.job}")
                except BadInput as error:
                    # the input was right: a wrong output is a fault of the job itself
                    raise Infrastructure(f"{error} This is a fault of the job, please report it.") from error
                seconds = round(time.monotonic() - started, 3)
                result = {**head, "ok": True, "output": output, "seconds": seconds, "environment": environment()}
                write_atomic(result_file, json.dumps(result, ensure_ascii=False, indent=1).encode())
                return 0
            except Exception as error:
                failure = as_job_error(error)
                _print_failure(error, failure)
                seconds = round(time.monotonic() - started, 3)
                result = {**head, "ok": False, "error": _told(failure), "seconds": seconds}
                write_atomic(result_file, json.dumps(result, ensure_ascii=False, indent=1).encode())
                return failure.exit_code
    except Exception as error:  # no place to write a result: the exit code and the log say it
        failure = as_job_error(error)
        _print_failure(error, failure)
        return failure.exit_code


def _told(failure: JobError) -> dict[str, str]:
    return {"kind": failure.kind, "reason": failure.reason, "message": str(failure)}


def _print_failure(error: Exception, failure: JobError) -> None:
    if not isinstance(error, JobError):
        traceback.print_exc()
    print(f"flywheel-job: {failure.reason}: {failure}", file=sys.stderr)


def _report_unusable_spec(spec_path: str, error: JobError, seconds: float) -> None:
    """Writes result.json when at least the work folder of a wrong spec can be read."""
    try:
        raw = json.loads(Path(spec_path).read_text(encoding="utf-8"))
        work_dir, head = Path(raw["workDir"]), {"version": CONTRACT_VERSION, "job": str(raw["job"]), "name": str(raw["name"])}
    except (OSError, ValueError, KeyError, TypeError):
        return
    from .objects import write_atomic

    failure = {**head, "ok": False, "error": _told(error), "seconds": round(seconds, 3)}
    try:
        write_atomic(work_dir / "result.json", json.dumps(failure, ensure_ascii=False, indent=1).encode())
    except JobError as second:
        print(f"flywheel-job: {second}", file=sys.stderr)


def main(argv: list[str] | None = None) -> None:
    """Entry point of the console script."""
    parser = argparse.ArgumentParser(prog="flywheel-job", description="Runs one job of the StreetVision flywheel.")
    commands = parser.add_subparsers(dest="command", required=True)
    run_parser = commands.add_parser("run", help="run the job a spec file describes")
    run_parser.add_argument("spec", help="path of the JSON spec; the result goes to its workDir")
    commands.add_parser("failures", help="print every failure: exit code, reason, kind, what it means")
    arguments = parser.parse_args(argv)
    if arguments.command == "failures":
        for failure in sorted(FAILURES, key=lambda one: one.exit_code):
            print(f"{failure.exit_code}  {failure.reason:22}{failure.kind:16}{(failure.__doc__ or '').splitlines()[0]}")
        sys.exit(0)
    sys.exit(run(arguments.spec))


if __name__ == "__main__":
    main()
