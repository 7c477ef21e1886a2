"""Leases beside internal jobs that were submitted with sbatch, as always."""

import time
from collections.abc import Callable
from datetime import timedelta

from tests.slurm.cluster import Cluster, until
from tests.slurm.control import Control, instant

POLITE = ("sh", "-c", "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.05; done")
DEAF = ("sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.05; done")
Start = Callable[[Cluster], Control]


def wait_for_log(control: Control, lease: str, text: str) -> None:
    try:
        until(lambda: text in control.logs(lease), what=f"{text!r} in the log of {lease}")
    except AssertionError:
        # Why it did not: what Slurm and Sublet say of it.
        for line in control.log().splitlines():
            if lease in line:
                print(line)
        print(control.cluster.run("squeue", "-t", "all", "-O", "JobID,Name:50,State,Reason"))
        for log in sorted((control.cluster.folder / "log").glob("slurm*.log")):
            print(log.name, log.read_text(encoding="utf-8", errors="replace")[-3000:])
        raise


def test_a_lease_runs_to_its_end_and_is_charged_what_slurm_recorded(
    four_nodes: Cluster, run_on: Start
) -> None:
    control = run_on(four_nodes)
    lease = control.lease("sh", "-c", "echo $CUDA_VISIBLE_DEVICES; sleep 2; exit 3", gpus=2)
    ended = control.reach(lease, "ended")
    assert (ended["end_reason"], ended["exit_code"]) == ("completed", 3)
    assert control.logs(lease) == "0,1\n"
    start, end = four_nodes.run(
        "squeue", "-h", "-t", "all", "-n", f"sublet-{lease}", "-O", "StartTime:.0|,EndTime:.0"
    ).split("|")
    recorded = instant(end) - instant(start)
    assert instant(ended["stopped_at"]) - instant(ended["running_at"]) == recorded
    control.verify()


def test_internal_jobs_get_their_gpus_from_leases_that_cooperate(
    four_nodes: Cluster, run_on: Start
) -> None:
    control = run_on(four_nodes)
    # Each starts in a second of its own, the firm one first: Slurm, which knows no finer times,
    # takes the same one as we do, should it come first.
    leases: list[str] = []
    for tier in ("on_demand", *["interruptible"] * 3):
        lease = control.lease(*POLITE, gpus=8, tier=tier)
        wait_for_log(control, lease, "up")
        second = int(time.time())
        until(lambda begun=second: int(time.time()) > begun)
        leases.append(lease)
    firm = leases[0]
    job = four_nodes.sbatch("sleep 600", gpus=8)
    until(lambda: four_nodes.state(job) == "RUNNING")

    def reclaimed() -> list[str]:
        shown = [control.show(lease) for lease in leases]
        return [found["id"] for found in shown if found["state"] == "ended"]

    until(reclaimed)
    assert len(reclaimed()) == 1
    (gone,) = reclaimed()
    assert control.show(gone)["end_reason"] == "reclaimed"
    assert "bye" in control.logs(gone)
    assert gone != firm
    gang = four_nodes.sbatch("sleep 600", "--nodes=3", gpus=8)
    until(lambda: four_nodes.state(gang) == "RUNNING")
    until(lambda: len(reclaimed()) == 4)
    assert {control.show(lease)["end_reason"] for lease in leases} == {"reclaimed"}
    control.verify()


def test_whoever_ignores_the_notice_is_gone_when_it_ends(
    four_nodes: Cluster, run_on: Start
) -> None:
    control = run_on(four_nodes)
    leases = [control.lease(*DEAF, gpus=8) for _ in range(4)]
    for lease in leases:
        wait_for_log(control, lease, "up")
    job = four_nodes.sbatch("sleep 600", gpus=8)
    until(lambda: four_nodes.state(job) == "RUNNING")
    shown = [control.show(lease) for lease in leases]
    gone = [found for found in shown if found["state"] in {"draining", "ended"}]
    assert gone
    for lease in gone:
        assert lease["end_reason"] == "reclaimed"
        assert instant(lease["stops_at"]) - instant(lease["noticed_at"]) == timedelta(seconds=4)
        # Billed until it was last seen at work, which is before it was told.
        assert instant(lease["stopped_at"]) <= instant(lease["noticed_at"])
    control.verify()


def test_a_resumable_lease_is_back_once_the_internal_job_has_left(
    four_nodes: Cluster, run_on: Start
) -> None:
    control = run_on(four_nodes)
    leases = [control.lease(*POLITE, gpus=8, resumable=True) for _ in range(4)]
    for lease in leases:
        wait_for_log(control, lease, "up")
    job = four_nodes.sbatch("sleep 2", gpus=8)
    until(lambda: four_nodes.state(job) == "COMPLETED")

    def resumed() -> list[str]:
        live = control.api("GET", "/v1/leases?live=true")["items"]
        return [found["id"] for found in live if found["resumes"] in leases]

    (back,) = until(resumed, what="the paused lease")
    wait_for_log(control, back, "up")
    before = control.show(control.show(back)["resumes"])
    assert (before["end_reason"], before["paused"]) == ("reclaimed", False)
    left = instant(control.reach(back, "running")["ends_at"]) - instant(
        control.show(back)["running_at"]
    )
    used = instant(before["stopped_at"]) - instant(before["running_at"])
    assert timedelta(0) <= timedelta(hours=1) - used - left < timedelta(seconds=1)
    control.verify()
