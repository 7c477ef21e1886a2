"""Interactive leases on this machine: the same contract as on a cluster."""

import pytest
from tests.e2e.instance import SUBLET, Instance, until
from tests.engine.door import ECHO, refused, speaks_to_port, talk

pytestmark = pytest.mark.e2e


def test_a_tenant_reaches_its_lease_and_nothing_that_the_lease_may_not(instance: Instance) -> None:
    url = instance.ready["api_url"]
    _, key = instance.tenant("interactive")
    _, other = instance.tenant("another")
    lease = instance.lease(key, command=list(ECHO), interactive=True)["id"]
    until(lambda: "up" in instance.cli("lease", "logs", lease, "--as-operator").stdout)
    assert talk(url, key, lease, b"hello") == b"hello"
    assert refused(url, other, lease)[0] == 404
    environment = instance.environment(SUBLET_DATA=str(instance.data), SUBLET_KEY=key)
    command = [str(SUBLET), "lease", "connect", lease, "--listen", "0"]
    assert speaks_to_port(command, environment, b"GET /") == b"GET /"
    # A link to somebody else's socket, put where the lease's own should be, leads nowhere.
    script = 'ln -s "$1" "$SUBLET_SOCKET"; echo up; sleep 60'
    sly = instance.lease(
        key, command=["sh", "-c", script, "sh", f"{instance.data}/postgres/.s.PGSQL.5432"],
        interactive=True,
    )["id"]  # fmt: skip
    until(lambda: "up" in instance.cli("lease", "logs", sly, "--as-operator").stdout)
    assert talk(url, key, sly, b"hello") == b""
    # And whoever comes by a port is told so at once, and does not wait until it gives up.
    assert speaks_to_port([*command[:3], sly, *command[4:]], environment, b"GET /") == b""
    for id_ in (lease, sly):
        instance.api("DELETE", f"/v1/leases/{id_}", key=key)
        instance.await_lease(id_, "ended")
    instance.verify()
