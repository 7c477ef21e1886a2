"""A hosted model on a node of a Slurm cluster: a lease like any other, found where it runs."""

from collections.abc import Callable
from typing import Any

import httpx
import psycopg
from tests.slurm.cluster import Cluster, until
from tests.slurm.control import Control

Start = Callable[..., Control]


def test_a_replica_answers_on_its_node_and_gives_way_to_an_internal_job(
    four_nodes: Cluster, run_on: Start, database_url: str
) -> None:
    control = run_on(four_nodes, model=True)

    def replica(state: str) -> tuple[Any, str, str] | None:
        with psycopg.connect(database_url) as connection:
            return connection.execute(
                "SELECT id, url, secret FROM replica WHERE state = %s", [state]
            ).fetchone()

    found = until(lambda: replica("ready"), seconds=120, what="a replica that answers")
    lease, url, secret = found
    node = four_nodes.run("squeue", "-h", "-t", "R", "-n", f"sublet-{lease}", "-o", "%N")
    (address,) = four_nodes.run(
        "sinfo", "-h", "-N", "-n", node, "-p", "sublet", "-O", "NodeAddr:0"
    ).split()
    assert url.startswith(f"http://{address}:")
    assert address != "127.0.0.1"
    headers = {"Authorization": f"Bearer {secret}"}
    assert httpx.get(f"{url}/health", headers=headers).status_code == 200
    assert httpx.get(f"{url}/health").status_code == 401
    job = four_nodes.sbatch("sleep 600", "--nodes=4", gpus=8)
    until(lambda: four_nodes.state(job) == "RUNNING", what="the internal job")
    assert control.reach(str(lease), "ended")["end_reason"] == "reclaimed"
    until(lambda: replica("gone"), what="the replica to be gone")
    control.verify()
