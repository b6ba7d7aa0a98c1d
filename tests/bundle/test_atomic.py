"""A crash leaves the old file or the new one."""

import os

import pytest

from vaeserve.bundle.atomic import move_into_place, write_atomically


def test_a_file_is_written_and_replaced(tmp_path):
    path = tmp_path / "state.json"
    write_atomically(path, "größer\n")
    assert path.read_bytes() == "größer\n".encode()
    write_atomically(path, b"\x00\x01")
    assert path.read_bytes() == b"\x00\x01"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file_alone(tmp_path, monkeypatch):
    path = tmp_path / "state.json"
    write_atomically(path, "old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_moves_with_its_files_unless_the_place_is_taken(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    move_into_place(tmp_path / "first", tmp_path / "place")
    assert (tmp_path / "place/file").read_text() == "first"
    with pytest.raises(OSError, match="not empty"):
        move_into_place(tmp_path / "second", tmp_path / "place")
    assert (tmp_path / "second/file").read_text() == "second"
