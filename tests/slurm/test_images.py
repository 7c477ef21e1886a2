"""Leases on container images, on compute nodes; and what becomes of one that cannot run."""

from collections.abc import Callable

from tests.engine.root_folder import unpack
from tests.slurm.cluster import Cluster, until
from tests.slurm.control import Control


def test_a_lease_runs_on_an_image_and_what_cannot_is_refused_at_the_order(
    four_nodes: Cluster, run_on: Callable[[Cluster], Control]
) -> None:
    control = run_on(four_nodes)
    body = {"command": ["cat", "/etc/os-release"], "max_seconds": 60, "image": "toolbox"}
    refused = control.api("POST", "/v1/leases", body, tenant=True)
    assert "no images are kept here" in refused["error"]["message"], refused
    control.stop()
    control.images = control.folder / "images"
    unpack(control.images / "toolbox")
    control.start()
    refused = control.api("POST", "/v1/leases", body | {"image": "cuda"}, tenant=True)
    assert "there are: toolbox" in refused["error"]["message"], refused
    script = "cat /etc/os-release; echo $CUDA_VISIBLE_DEVICES; exit 3"
    lease = control.lease("sh", "-c", script, gpus=2, image="toolbox")
    ended = control.reach(lease, "ended")
    assert (ended["end_reason"], ended["exit_code"]) == ("completed", 3)
    until(lambda: control.logs(lease) == "NAME=an image of a test\n0,1\n")
    control.verify()
