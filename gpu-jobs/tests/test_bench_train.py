"""The training bench: what counts as a source, a camera and a clip, what is left out, and how intervals are drawn."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

from train import Photos, evaluate, gain, interval, place, units


def world() -> Photos:
    """Two clips and a single photograph of one source, three photographs of another; one clip is in `val`."""
    told = [("Mi3-Lab/workzone", f"demo/{city}.mp4#t={t}") for city in ("boston", "houston") for t in (1.0, 2.0)]
    told += [("Tracer1337/gtsdb", f"images/{n}.jpg") for n in range(3)]
    source, camera, clip = (np.array(column) for column in zip(*(place(*one) for one in told), strict=True))
    val = np.array([False, False, True, True, False, False, False])
    return Photos([str(n) for n in range(7)], np.array([1, 1, 1, 0, 0, 1, 0]), val, source, camera, clip)


def test_a_video_is_one_camera_and_one_clip_a_still_is_a_clip_of_its_sources_camera() -> None:
    photos = world()
    assert photos.camera.tolist() == ["roadwork/boston"] * 2 + ["roadwork/houston"] * 2 + ["gtsdb"] * 3
    assert len(set(photos.clip[:4])) == 2
    assert len(set(photos.clip[4:])) == 3


def test_only_the_train_split_is_left_out_in_turn_and_each_photograph_once() -> None:
    photos = world()
    found = units(photos)
    assert [len(found[name]) for name in ("leaveOneCityOut", "leaveOneSourceOut", "camerasNeverSeen")] == [1, 2, 2]
    for name in ("leaveOneSourceOut", "camerasNeverSeen"):
        assert np.array_equal(np.sum(found[name], axis=0), (~photos.val).astype(int))


def test_the_interval_takes_clips_whole() -> None:
    # one clip right, one wrong: whole clips swing from 0 to 1, single images would not
    y = np.array([1] * 20 + [0] * 20)
    p = np.full(40, 0.9)
    one = interval([p], y, np.array(["a"] * 20 + ["b"] * 20))
    many = interval([p], y, np.array([str(n) for n in range(40)]))
    assert one["accuracy"]["mean"] == many["accuracy"]["mean"] == pytest.approx(0.5)
    assert one["accuracy"]["ci95"] == [0.0, 1.0]
    assert many["accuracy"]["ci95"][0] > 0.25
    assert (one["clips"], many["clips"]) == (2, 40)


def test_figures_are_means_over_seeds() -> None:
    y, clips = np.array([1, 0, 1, 0]), np.array(list("abcd"))
    right, wrong = np.array([0.9, 0.1, 0.9, 0.1]), np.array([0.1, 0.9, 0.1, 0.9])
    found = interval([right, wrong], y, clips)
    assert found["accuracy"]["mean"] == pytest.approx(0.5)
    assert found["bySeed"] == [1.0, 0.0]


def test_a_gain_is_paired_photograph_by_photograph() -> None:
    y, clips = np.array([1, 1, 0, 0] * 10), np.array([str(n) for n in range(40)])
    base = np.where(np.arange(40) % 4 == 0, 0.1, np.where(y == 1, 0.9, 0.1))
    better = np.where(y == 1, 0.9, 0.1)
    assert gain([base], [base], y, clips) == {"mean": 0.0, "ci95": [0.0, 0.0]}
    found = gain([better], [base], y, clips)
    assert found["mean"] == pytest.approx(0.25)
    assert 0 < found["ci95"][0] < 0.25 < found["ci95"][1]


def test_challenge_views_are_judged_beside_the_photographs_by_the_same_head() -> None:
    photos = world()
    asked: list[int] = []

    def setting(learns: np.ndarray, seed: int):
        asked.append(seed)
        right = photos.label.astype(float)
        return lambda index, view: right[index] if view == 0 else 1 - right[index]

    found, behind = evaluate(photos, setting, 2, ["val", "leaveOneSourceOut"])
    for name in ("val", "leaveOneSourceOut"):
        assert found[name]["accuracy"]["mean"] == 1.0
        assert found[name]["challenges"]["accuracy"]["mean"] == 0.0
        assert len(behind[f"{name}, challenges"]) == 4  # two views of two seeds
    assert len(asked) == 2 * (1 + 2)  # one fit for `val` and one for each source
