"""Interactive leases on compute nodes: reached through Sublet, and in no other way."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from tests.engine.door import ECHO, refused, speaks, talk
from tests.slurm.cluster import Cluster, until
from tests.slurm.control import SUBLET, Control

LONG = bytes(range(256)) * 4096


def test_a_tenant_reaches_its_lease_through_sublet_until_the_lease_ends(
    four_nodes: Cluster, run_on: Callable[[Cluster], Control]
) -> None:
    control = run_on(four_nodes)
    lease = control.lease(*ECHO, gpus=8, interactive=True)
    quiet = control.lease("sleep", "60")
    until(lambda: "up" in control.logs(lease))
    key = control.keys["tenant_key"]
    assert talk(control.url, key, lease, b"hello") == b"hello"
    assert talk(control.url, key, lease, LONG) == LONG
    # Four at a time, so that one ends while others wait for the node to dial again.
    words = [b"word %d" % number for number in range(40)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda word: talk(control.url, key, lease, word), words)) == words
    environment = {
        **os.environ, "SUBLET_URL": control.url, "SUBLET_KEY": key, "SUBLET_DATA": str(control.data)
    }  # fmt: skip
    command = [str(SUBLET), "lease", "connect", lease]
    assert speaks(command, environment, b"by ssh's proxy") == b"by ssh's proxy"
    # Not without its tenant's key, and not where it was not asked for.
    tenant = control.api("POST", "/v1/tenants", {"name": "other"})
    other = control.api("POST", f"/v1/tenants/{tenant['id']}/keys", {"name": "k"})
    assert refused(control.url, other.get("key") or other["secret"], lease)[0] == 404
    assert refused(control.url, "sk-sublet-nobody", lease)[0] == 401
    assert refused(control.url, key, quiet)[0] == 409
    # The node dials again when the control plane was away.
    control.kill()
    control.start()
    until(lambda: control.show(lease).get("state") == "running")
    assert talk(control.url, key, lease, b"again") == b"again"
    control.api("DELETE", f"/v1/leases/{lease}", tenant=True)
    control.reach(lease, "ended")
    assert refused(control.url, key, lease) == (409, f"lease {lease} has ended")
    control.verify()
