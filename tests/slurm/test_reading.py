"""What Slurm prints, in columns and in JSON of two generations, is read into the same values."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from sublet.engine.slurm.accounts import read_accounted
from sublet.engine.slurm.pieces import Unknown, expand, gpus_of
from sublet.engine.slurm.reading import (
    SlurmJob,
    read_jobs,
    read_jobs_json,
    read_nodes,
    read_nodes_json,
    read_topology,
)

COLUMNS = (
    "17|RUNNING|None|internal|2026-01-01T12:00:00|2026-01-01T12:00:00|2026-01-01T12:00:05"
    "|2026-01-02T12:00:05|N/A|cpu=64,mem=1T,node=2,billing=64,gres/gpu=16|gres:gpu:h200:8|N/A|N/A"
    "|2|2|n[1-2]|0|0|train | with a bar"
)
ROW: dict[str, Any] = {
    "job_id": 17, "array_job_id": 0, "array_task_id": None, "array_task_string": "",
    "array_max_tasks": 0, "name": "train | with a bar", "partition": "internal",
    "job_state": "RUNNING", "state_reason": "None", "submit_time": 1767268800,
    "eligible_time": 1767268800, "start_time": 1767268805, "end_time": 1767355205,
    "preempt_time": 0, "tres_alloc_str": "cpu=64,mem=1T,node=2,billing=64,gres/gpu=16",
    "tres_req_str": "", "tres_per_node": "gres:gpu:h200:8", "tres_per_job": "",
    "tres_per_task": "", "node_count": 2, "tasks": 2, "cpus": 64, "nodes": "n[1-2]",
    "exit_code": 0, "restart_cnt": 0,
}  # fmt: skip


def wrapped(value: object) -> object:
    """Write a number as Slurm 23.02 and later do."""
    if isinstance(value, int):
        return {"set": True, "infinite": False, "number": value}
    return {"set": False, "infinite": False, "number": 0} if value is None else value


def newer(row: dict[str, Any]) -> dict[str, Any]:
    return {name: wrapped(value) for name, value in row.items()} | {
        "job_id": row["job_id"],
        "job_state": [row["job_state"]],
        "exit_code": {
            "status": ["SUCCESS"], "return_code": wrapped(0),
            "signal": {"id": {"set": False, "infinite": False, "number": 0}, "name": ""},
        },
    }  # fmt: skip


@pytest.mark.parametrize("row", [ROW, newer(ROW)], ids=["22.05", "23.02 and later"])
def test_json_says_what_the_columns_say(row: dict[str, Any]) -> None:
    (job,) = read_jobs_json(json.dumps({"jobs": [row]}))
    assert [job] == read_jobs(COLUMNS)
    assert (job.gpus, job.gpu_model, job.nodes) == (16, "h200", ("n1", "n2"))
    # Slurm cuts instants to whole seconds; we round them up.
    assert job.started_at == datetime(2026, 1, 1, 12, 0, 6, tzinfo=UTC)


def array(tasks: str, most: int = 0) -> list[SlurmJob]:
    row = ROW | {
        "job_state": "PENDING", "array_job_id": 17, "array_task_string": tasks,
        "array_max_tasks": most,
    }  # fmt: skip
    return read_jobs_json(json.dumps({"jobs": [row]}))


@pytest.mark.parametrize(
    ("tasks", "most", "keys"),
    [
        ("1-3", 0, ["17_1", "17_2", "17_3"]),
        ("1,5-9:2", 0, ["17_1", "17_5", "17_7", "17_9"]),
        ("1-1000", 2, ["17_1", "17_2"]),
        ("1-1000%2", 2, ["17_1", "17_2"]),
    ],
)
def test_an_array_is_so_many_jobs_as_may_run_at_a_time(
    tasks: str, most: int, keys: list[str]
) -> None:
    assert [job.key for job in array(tasks, most)] == keys
    line = COLUMNS.replace(
        "17|RUNNING", f"17_[{tasks}{f'%{most}' if most and '%' not in tasks else ''}]|PENDING"
    )
    assert [job.key for job in read_jobs(line)] == keys


@pytest.mark.parametrize("text", ["", "{}", '{"jobs": [{}]}', '{"jobs": 3}', "no JSON"])
def test_json_of_another_shape_is_refused_not_guessed(text: str) -> None:
    with pytest.raises(Unknown):
        read_jobs_json(text)


def test_columns_of_another_shape_are_refused_not_guessed() -> None:
    for read in (read_jobs, read_nodes, read_accounted):
        with pytest.raises(Unknown):
            read("one|two\n")


@pytest.mark.parametrize(
    ("asked", "gpus"),
    [
        ({"tres": "cpu=1,gres/gpu=4"}, (4, None)),
        ({"tres": "cpu=1,gres/gpu:h200=4"}, (4, "h200")),
        ({"tres": "cpu=1", "per_node": "gres:gpu:h200:8", "nodes": 3}, (24, "h200")),
        ({"tres": "cpu=1", "per_job": "gpu:2"}, (2, None)),
        ({"tres": "cpu=1", "per_task": "gres:gpu:1", "tasks": 5}, (5, None)),
        ({"tres": "cpu=1", "per_node": "gres:shard:3"}, (0, None)),
    ],
)
def test_gpus_are_counted_however_they_were_asked_for(
    asked: dict[str, Any], gpus: tuple[int, str | None]
) -> None:
    whole = {"per_node": "", "per_job": "", "per_task": "", "nodes": 1, "tasks": 1} | asked
    assert gpus_of(**whole) == gpus


def test_a_list_of_nodes_is_spelt_out() -> None:
    assert list(expand("n[1-3,07],m2,x[1-2]y")) == ["n1", "n2", "n3", "n07", "m2", "x1y", "x2y"]
    assert list(expand("None")) == []


@pytest.mark.parametrize(
    ("state", "flags", "word"),
    [
        ("idle", [], "idle"),
        ("mixed", ["DRAIN"], "draining"),
        ("idle", ["DRAIN"], "drained"),
        ("down", ["DRAIN"], "down"),
        ("idle", ["RESERVED"], "reserved"),
        ("idle", ["NOT_RESPONDING", "MAINTENANCE"], "maint"),
    ],
)
def test_nodes_from_slurmrestd_are_those_of_sinfo(state: str, flags: list[str], word: str) -> None:
    row = {
        "name": "n1", "state": state, "state_flags": flags, "gres": "gpu:h200:8(S:0-1)",
        "cpus": 64, "real_memory": 1024, "address": "10.0.0.1", "reason": "",
        "partitions": ["internal", "sublet"],
    }  # fmt: skip
    # As of 23.02 states and flags are in one list, in capitals.
    later = row | {"state": [state.upper(), *flags], "real_memory": wrapped(1024)}
    for each in (row, later):
        (node,) = read_nodes_json(json.dumps({"nodes": [each]}), partition="sublet")
        (same,) = read_nodes(f"n1|{word}|gpu:h200:8(S:0-1)|1/63/0/64|1024|10.0.0.1|none\n")
        assert node == same
    assert read_nodes_json(json.dumps({"nodes": [row]}), partition="other") == []


def test_a_node_of_two_models_is_two_and_one_without_gpus_is_its_cores() -> None:
    text = (
        "n1|mixed*|gpu:h200:8(S:0-1),gpu:a100:2|10/54/0/64|1024|10.0.0.1|none\n"
        "c1|idle|(null)|1/31/0/32|2048|c1|none\n"
    )
    nodes = read_nodes(text)
    assert [n.address for n in nodes] == ["10.0.0.1", "10.0.0.1", "c1"]
    assert [(n.name, n.state, n.gpu_model, n.gpus) for n in nodes] == [
        ("n1", "mixed", "h200", 8), ("n1", "mixed", "a100", 2), ("c1", "idle", "cpu", 32),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "blocks"),
    [
        (
            (
                "SwitchName=s0 Level=0 LinkSpeed=1 Nodes=n[1-2]\n"
                "SwitchName=s1 Level=0 LinkSpeed=1 Nodes=n3\n"
                "SwitchName=top Level=1 LinkSpeed=1 Nodes=n[1-3] Switches=s[0-1]\n"
            ),
            {"n1": "s0", "n2": "s0", "n3": "s1"},
        ),
        (
            (
                "BlockName=rack1 BlockIndex=0 Nodes=n[1-2] BlockSize=2\n"
                "BlockName=rack2 BlockIndex=1 Nodes=n[3-4] BlockSize=2\n"
                "AggregatedBlock=rack[1-2] BlockIndex=2 Nodes=n[1-4] BlockSize=4\n"
            ),
            {"n1": "rack1", "n2": "rack1", "n3": "rack2", "n4": "rack2"},
        ),
        ("", {}),
        ("No topology information available\n", {}),
    ],
)
def test_leaf_switches_and_blocks_are_read(text: str, blocks: dict[str, str]) -> None:
    assert read_topology(text) == blocks
