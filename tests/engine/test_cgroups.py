"""Control groups, on folders that look like them; `test_sandbox.py` has the real ones."""

from pathlib import Path
from uuid import UUID

from sublet.engine.cgroups import Cgroups, clear, find_cgroups

ID = UUID(int=7)


def test_version_2_limits_memory_swap_and_processes_in_one_group(tmp_path: Path) -> None:
    (tmp_path / "memory.swap.max").touch()
    groups = Cgroups(memory=tmp_path, pids=tmp_path, version=2)
    assert groups.limits(ID, memory_bytes=1000, processes=10) == {
        tmp_path / f"sublet-{ID}": {
            "memory.max": "1000",
            "memory.swap.max": "0",
            "pids.max": "14",
        }
    }


def test_version_1_has_a_group_for_each(tmp_path: Path) -> None:
    groups = Cgroups(memory=tmp_path / "memory", pids=tmp_path / "pids", version=1)
    assert groups.limits(ID, memory_bytes=1000, processes=10) == {
        tmp_path / "memory" / f"sublet-{ID}": {"memory.limit_in_bytes": "1000"},
        tmp_path / "pids" / f"sublet-{ID}": {"pids.max": "14"},
    }


def test_without_limits_there_are_groups_all_the_same(tmp_path: Path) -> None:
    groups = Cgroups(memory=tmp_path, pids=None, version=2)
    limits = groups.limits(ID, memory_bytes=None, processes=None)
    assert limits == {tmp_path / f"sublet-{ID}": {}}


def test_where_no_group_can_be_made_there_are_none(tmp_path: Path) -> None:
    assert find_cgroups(tmp_path / "missing", "0::/user.slice\n") is None
    # Folders can be made here, but no limit appears in them: it is no control group.
    (tmp_path / "memory").mkdir()
    assert find_cgroups(tmp_path, "4:memory:/\n") is None
    assert list((tmp_path / "memory").iterdir()) == []


def test_a_group_that_is_gone_is_cleared(tmp_path: Path) -> None:
    assert clear([tmp_path / "gone"]) is True
