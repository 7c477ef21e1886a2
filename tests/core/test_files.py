import os
from pathlib import Path

import pytest

from sublet.core.files import write_whole


def test_a_file_takes_the_place_of_another_whole_and_as_readable_as_said(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    (tmp_path / "secret.new").write_text("left by a crash")
    before = os.umask(0o077)
    try:
        write_whole(path, b"one", mode=0o644)
        assert path.stat().st_mode & 0o777 == 0o644
        write_whole(path, b"two")
    finally:
        os.umask(before)
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["secret"]


def test_what_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "place"
    path.mkdir()  # a file cannot take its place
    with pytest.raises(OSError, match="directory"):
        write_whole(path, b"x")
    assert path.is_dir()
