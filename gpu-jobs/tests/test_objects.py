import hashlib

import pytest

from flywheel_jobs.errors import BadInput, Infrastructure
from flywheel_jobs.objects import FileObjects


def test_the_same_bytes_are_one_object_named_by_their_hash(tmp_path):
    objects = FileObjects(tmp_path)
    digest = objects.put(b"street")
    assert digest == hashlib.sha256(b"street").hexdigest() == objects.put(b"street")
    assert objects.path(digest) == tmp_path / digest[:2] / digest
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [digest]


def test_changed_bytes_are_refused(tmp_path):
    objects = FileObjects(tmp_path)
    digest = objects.put(b"street")
    objects.path(digest).write_bytes(b"strEet")
    with pytest.raises(Infrastructure, match="corrupt"):
        objects.get(digest)


def test_a_torn_object_is_written_anew(tmp_path):
    objects = FileObjects(tmp_path)
    digest = objects.put(b"street")
    objects.path(digest).write_bytes(b"str")
    assert objects.put(b"street") == digest
    assert objects.get(digest) == b"street"


@pytest.mark.parametrize("digest", ["../../etc/passwd", "ABC", "", "0" * 63])
def test_a_name_that_is_no_digest_is_refused(tmp_path, digest):
    with pytest.raises(BadInput, match="not a SHA-256"):
        FileObjects(tmp_path).get(digest)


def test_a_missing_object_is_bad_input(tmp_path):
    with pytest.raises(BadInput, match="is not in the store"):
        FileObjects(tmp_path).get("0" * 64)


def test_json_lines_are_compact_keep_order_and_come_back(tmp_path):
    objects = FileObjects(tmp_path)
    rows = [{"b": 1, "a": "ß"}, {"a": None}]
    digest = objects.put_jsonl(rows)
    assert objects.get(digest).decode() == '{"b":1,"a":"ß"}\n{"a":null}\n'
    assert objects.get_jsonl(digest) == rows


@pytest.mark.parametrize(("text", "line"), [(b'{"a":1}\nnope\n', "line 2"), (b"[1]\n", "line 1")])
def test_a_broken_row_is_named_by_its_line(tmp_path, text, line):
    objects = FileObjects(tmp_path)
    with pytest.raises(BadInput, match=line):
        objects.get_jsonl(objects.put(text))


def test_a_disk_that_refuses_is_an_infrastructure_error_and_leaves_no_part(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(Infrastructure, match="could not write"):
        FileObjects(tmp_path / "file").put(b"street")
