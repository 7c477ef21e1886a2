"""The control plane's process: API, console and the reconcile loop. `sublet control`."""

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, Final

import uvicorn
from fastapi import FastAPI

from sublet import __version__
from sublet.app.admissions import Admissions
from sublet.app.bootstrap import bootstrap, get_house
from sublet.app.chores import Chore
from sublet.app.engines import build_engine, home_of_engine
from sublet.app.http import BodyGuard, install_errors
from sublet.app.imports import opens
from sublet.app.leadership import Leadership, id_of_engine, wait_for_engine, wait_to_lead
from sublet.app.logs import log_to_stderr
from sublet.app.loop import Control, Loop
from sublet.app.mail import Post
from sublet.app.planning import Planning
from sublet.app.routes import (
    coming,
    contracts,
    exports,
    finance,
    internal,
    invoices,
    leases,
    ledger,
    limits,
    models,
    offers,
    operations,
    people,
    prices,
    reservations,
    suppliers,
    surplus,
    tenants,
    tunings,
    usage,
)
from sublet.app.secrets import VAULT, load_or_make
from sublet.app.services import Services
from sublet.app.sharing import artefacts_of, shared_folder
from sublet.app.signals import DRAIN
from sublet.app.tunnels import Tunnels
from sublet.app.webhooks import Webhooks
from sublet.config import Config, load
from sublet.console import pages
from sublet.console.site import build_console
from sublet.core import failpoint
from sublet.core.clock import Clock, SystemClock
from sublet.core.db import Database
from sublet.core.errors import Misconfigured, SubletError
from sublet.core.migrations import migrate
from sublet.core.net import listen
from sublet.core.postgres import wait_until_durable
from sublet.core.vault import Vault
from sublet.engine.images import Images
from sublet.invoices import budgets
from sublet.invoices import service as billing
from sublet.leases.waits import InternalWaits
from sublet.models import earnings, stored
from sublet.models.importing import Importer
from sublet.models.service import Hosting, Replicas
from sublet.models.tuning.service import Tunings
from sublet.tenants import store as tenant_store
from sublet.tenants.tenant import TenantId

if TYPE_CHECKING:
    from datetime import datetime

    from sublet.planner.service import Planner

log = logging.getLogger(__name__)

# Under `sublet up` the database starts beside us; elsewhere it may be restarting.
_DATABASE_WAIT_SECONDS: Final = 60.0


def build_api(services: Services) -> FastAPI:
    """Return the API and console over `services`."""
    app = FastAPI(
        title="Sublet",
        version=__version__,
        description="Rent out the GPUs you are not using. Have them back the moment you need them.",
        docs_url=None,  # its page would load scripts from elsewhere; the console has one of its own
        redoc_url=None,
        responses={
            "4XX": {
                "description": "What was wrong, where, and what to do",
                "content": {
                    "application/json": {
                        "schema": {
                            "type": "object",
                            "required": ["error"],
                            "properties": {
                                "error": {
                                    "type": "object",
                                    "required": ["code", "message", "retryable"],
                                    "properties": {
                                        "code": {"type": "string"},
                                        "message": {"type": "string"},
                                        "retryable": {"type": "boolean"},
                                    },
                                }
                            },
                        }
                    }
                },
            }
        },
    )
    app.state.services = services
    for routes in (
        tenants,
        limits,
        offers,
        leases,
        reservations,
        coming,
        contracts,
        exports,
        finance,
        internal,
        invoices,
        operations,
        people,
        prices,
        suppliers,
        surplus,
        ledger,
        models,
        tunings,
        usage,
        pages,
    ):
        app.include_router(routes.router)
    app.include_router(operations.metrics_router)
    app.mount("/console", build_console(services, app))
    install_errors(app)
    app.add_middleware(BodyGuard)
    app.add_middleware(Tunnels, api=app)  # outermost: what goes through them has no end to wait for
    return app


def run(config: Config) -> int:
    """Serve until told to stop and everything has left; return the exit code.

    Raises:
        Misconfigured: this instance cannot start as it is set up.
        Unavailable: the database did not answer.
    """
    if config.database_url is None:
        raise Misconfigured(
            "DATABASE_URL is not set: `sublet control` needs a PostgreSQL, `sublet up` brings one"
        )
    listener = listen(config.host, config.api_port)
    clock = SystemClock()
    config.data.mkdir(mode=0o700, parents=True, exist_ok=True)
    secrets = load_or_make(config.data / "secrets.json")
    Vault(config.data / VAULT).prepare()
    wait_until_durable(config.database_url, wait_seconds=_DATABASE_WAIT_SECONDS)
    for sign in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sign, lambda *_: sys.exit(0))  # as long as we wait
    home = home_of_engine(config)
    leadership = Leadership(
        config.database_url,
        engine=id_of_engine(home),
        place=f"{socket.gethostname()}:{home}",
        clock=clock,
    )
    with (
        Database(config.database_url, connections=12, name=leadership.name) as db,
        closing(leadership),
    ):
        migrate(db, clock=clock)
        with db.transaction() as tx:
            bootstrap(tx, secrets, model=config.model, now=clock.now())
            house = get_house(tx)
        # Of a cluster the database alone says who leads; a machine's own engine is locked, too.
        lock = wait_for_engine(home, leadership) if config.engine == "local" else None
        wait_to_lead(leadership)
        # What the loop does is accepted only as long as we lead.
        ours = db.checked(leadership.check)
        built = build_engine(config, clock=clock)
        engine = built.engine
        # Where replicas find weights, on whichever machine they run.
        shared = shared_folder(config)
        hosting = Hosting(
            house=house,
            weights=shared / "models",
            artefacts=artefacts_of(config),
            keys_url=f"{config.api_url}/v1/replicas",
            elsewhere=config.engine != "local",
        )
        replicas = Replicas(
            db=ours,
            clock=clock,
            hosting=hosting,
            address_of=lambda lease: engine.observe(lease).address,
        )
        # The routes wake the loop, and the loop needs to know the addresses that they serve.
        waits = InternalWaits()
        services = Services(
            waits=waits,
            config=config,
            db=db,
            engine=engine,
            internal_queue=built.queue,
            clock=clock,
            admissions=Admissions(db, jobs=engine.internal_jobs, clock=clock),
            replicas=replicas,
            artefacts=artefacts_of(config),
            confines=built.confines,
            images=None if config.images is None else Images(root=config.images),
            signing_key=secrets.signing_key,
            refuses_commands=built.refuses_commands,
            wake=lambda: loop.wake(),  # noqa: PLW0108 -- it is made below
        )
        planning = Planning(
            lambda: _planner(db, config.confidence),
            clock=clock,
            then=lambda now: _renew_bids(db, now),
        )
        control = Control(
            db=ours,
            engine=engine,
            reserving=built.reserving,
            clock=clock,
            first_notice_seconds=config.notice_seconds,
            replicas=replicas,
            notice_url=services.notice_url,
            tunnel_url=services.tunnel_url,
            planning=planning,
            waits=waits,
        )
        server = _Server(
            uvicorn.Config(
                build_api(services),
                loop="asyncio",
                log_config=None,
                access_log=False,
                timeout_graceful_shutdown=2,
                timeout_keep_alive=30,
                server_header=False,
            )
        )

        def finished() -> None:
            server.should_exit = True

        loop = Loop(
            control,
            leadership=leadership,
            drained=built.drained,
            when_done=finished,
        )

        def drain(*_: object) -> None:
            built.cancel_internal_jobs()
            loop.drain()

        # Stopped, we leave leases running and find them again: an upgrade costs no tenant
        # anything. Only `sublet up`, which is all there is of this cloud, asks us to drain.
        for sign in (signal.SIGTERM, signal.SIGINT):
            signal.signal(sign, lambda *_: loop.stop())
        signal.signal(DRAIN, drain)
        loop.start()
        webhooks = Webhooks(db, clock=clock, signing_key=secrets.signing_key)
        webhooks.start()
        chores = _chores(ours, clock, services, replicas, hosting)
        for chore in chores:
            chore.start()
        server.run(sockets=[listener])
        loop.join(timeout=5)
        webhooks.stop()
        webhooks.join(timeout=5)
        for chore in chores:
            chore.stop()
        for chore in chores:
            chore.join(timeout=5)
        planning.join(timeout=5)
        if lock is not None:
            lock.close()
    return 0


def _planner(db: Database, confidence: float) -> "Planner":
    from sublet.planner.service import Planner  # noqa: PLC0415 -- numpy is slow to load

    return Planner(db, confidence=confidence)


def _renew_bids(db: Database, now: "datetime") -> None:
    from sublet.leases.bidding import renew  # noqa: PLC0415 -- the same, and a solver

    renew(db, now=now)


def _chores(
    db: Database, clock: Clock, services: Services, replicas: Replicas, hosting: Hosting
) -> list[Chore]:
    """Return what is done beside the loop, as long as this control plane leads."""
    stopping = threading.Event()
    importer = Importer(
        db=db,
        clock=clock,
        shelf=services.shelf,
        opens=opens(services.config, clock),
        stopping=stopping.is_set,
    )

    config = services.config
    tunings = Tunings(
        db=db,
        clock=clock,
        shelf=services.shelf,
        hosting=hosting,
        jobs=services.engine.internal_jobs,
        url=f"{config.api_url}/v1/tunings",
        python=str(config.trainer_python or sys.executable),
    )
    post = Post(
        db, clock=clock, signing_key=services.signing_key, smtp=config.smtp,
        sender=config.mail_from or "", seller=config.seller,
    )  # fmt: skip

    def watch_budgets() -> None:
        with db.transaction() as tx:
            found = budgets.list_budgets(tx, None)
        for budget in found:
            with db.transaction("budget.alert") as tx:
                tenant = tenant_store.get_tenant(tx, TenantId(budget.tenant_id))
                zone_name = billing.profile_of(tx, tenant).time_zone
                budgets.alert(tx, budget, zone_name=zone_name, now=clock.now())

    def weigh() -> None:
        earnings.sum_up(db, now=clock.now())
        with db.transaction() as tx:
            replicas.weigh(earnings.worths(tx, now=clock.now()))

    return [
        Chore("imports", importer.step, every_seconds=0.5, when_stopped=stopping.set),
        Chore("tunings", tunings.step, every_seconds=0.5),
        Chore("earnings", weigh, every_seconds=10.0),
        Chore("mail", post.step, every_seconds=2.0),
        Chore("budgets", watch_budgets, every_seconds=300.0),
        Chore("files", lambda: stored.sweep(db, now=clock.now()), every_seconds=10.0),
    ]


class _Server(uvicorn.Server):
    """Leaves signals to us: being told to stop means draining first."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def main(**overrides: Any) -> int:
    """Run from the environment, and `overrides`; say in one line what is wrong with them."""
    log_to_stderr()
    if failpoint.arm(os.environ):
        log.warning("failpoints.armed")
    try:
        return run(load(**overrides))
    except SubletError as error:
        print(f"sublet: {error}", file=sys.stderr)  # noqa: T201 -- for the person who started it
        return 2 if isinstance(error, Misconfigured) else 1


if __name__ == "__main__":
    sys.exit(main())
