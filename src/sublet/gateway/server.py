"""A gateway's process: two listeners, one event loop, and an orderly end; or several of them.

On SIGTERM it stops listening and lets streams end; what still runs ten seconds later is cut
with an error inside the stream, and settled. Then it waits for what is left to settle.
"""

import asyncio
import contextlib
import gc
import glob
import logging
import signal
import socket
import ssl
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Final

import uvloop
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from sublet import __version__
from sublet.core.clock import SystemClock
from sublet.core.db import Database
from sublet.core.errors import Misconfigured, Unavailable
from sublet.core.failpoint import failpoint
from sublet.core.vault import Vault
from sublet.gateway import metrics
from sublet.gateway.app import Gateway
from sublet.gateway.background import Background
from sublet.gateway.batches.service import Batches
from sublet.gateway.batches.store import Me
from sublet.gateway.batches.worker import Worker
from sublet.gateway.bought import book, buyer
from sublet.gateway.bought import metrics as bought
from sublet.gateway.budgets import Budgets
from sublet.gateway.cashier import Cashier
from sublet.gateway.directory import Directory
from sublet.gateway.files import Files
from sublet.gateway.fine_tuning import FineTuning
from sublet.gateway.http import Server
from sublet.gateway.instance import Instance
from sublet.gateway.kept import Kept
from sublet.gateway.limits import Limiter
from sublet.gateway.listeners import Listeners, listening
from sublet.gateway.metrics import Metrics
from sublet.gateway.replica import Replicas
from sublet.gateway.service import Patience, Service
from sublet.gateway.settings import Settings
from sublet.gateway.signers import Signers
from sublet.gateway.spool import Spool, read
from sublet.gateway.till import Till
from sublet.gateway.tracing import Tracer
from sublet.gateway.tuning import Tuning, Watched
from sublet.gateway.workers import Workers, name_of
from sublet.metering.report import Report
from sublet.models.catalogue import Shelf
from sublet.models.chest import Chest
from sublet.suppliers.quotas import give_back

log: Final = logging.getLogger(__name__)

_REFRESH_SECONDS: Final = 0.25
_BEAT_SECONDS: Final = 1.0
_SHARE_SECONDS: Final = 1.0
_TELL_SECONDS: Final = 0.5
_PROBE_SECONDS: Final = 1.0
_SHOW_SECONDS: Final = 1.0
_WATCH_SECONDS: Final = 0.5
_TIDY_SECONDS: Final = 0.5
_FORGET_SECONDS: Final = 60.0
_NAME_WAIT_SECONDS: Final = 5.0  # an earlier process of this name may just be ending
_DRAIN_SECONDS: Final = 10.0  # to hand everything over, after the last stream ended
_CONNECTIONS: Final = 8
_PURCHASES: Final = ".purchases"  # beside the spools of what is charged
_AT_ONCE: Final = 1000  # reports of an earlier run, handed over together


def serve(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT. Call it in the main thread: it takes the signals.

    Raises:
        Misconfigured: a port, the name or the spool is taken, or the certificate cannot be used.
        Unavailable: the database did not answer.
    """
    _tuning(settings)  # it shall not start as nobody wants it
    with contextlib.ExitStack() as stack:
        listeners = [
            stack.enter_context(listening(settings)) for _ in range(_checked_workers(settings))
        ]
        shared, purchases = metrics.board(settings.workers), bought.board(settings.workers)
        if settings.workers == 1:
            counted = Metrics(shared, bought=bought.BoughtMetrics(purchases))
            _serve_alone(settings, listeners[0], counted, retired=_retired(settings))
            return

        def work(worker: int) -> None:
            own = replace(settings, name=name_of(settings.name, worker))
            retired = _retired(settings) if worker == 0 else []
            counted = Metrics(shared, worker, bought.BoughtMetrics(purchases, worker))
            _serve_alone(own, listeners[worker], counted, retired=retired)

        def let_go(worker: int | None) -> None:
            for number, sockets in enumerate(listeners):
                if number != worker:
                    for listener, _ in sockets:
                        listener.close()

        ended = partial(metrics.rest, shared)
        Workers(settings.workers, work=work, let_go=let_go, ended=ended).run()


def _checked_workers(settings: Settings) -> int:
    """Return how many there are to be.

    Raises:
        Misconfigured: the system cannot share a port, or somebody else has one.
    """
    if settings.workers > 1 and not hasattr(socket, "SO_REUSEPORT"):
        raise Misconfigured("several workers cannot share a port on this system: use one")
    # With SO_REUSEPORT even a stranger's port could be shared: look first without.
    with listening(replace(settings, workers=1)):
        return settings.workers


def _retired(settings: Settings) -> list[str]:
    """Return the names of workers that left something, when there were more of them."""
    own = {name_of(settings.name, worker) for worker in range(settings.workers)}
    there = settings.spool.glob(f"{glob.escape(settings.name)}.*")
    return sorted(path.name for path in there if path.is_dir() and path.name not in own)


def _serve_alone(
    settings: Settings, sockets: Listeners, counted: Metrics, *, retired: Sequence[str]
) -> None:
    # A thread that works for the database gives way to the requests ten times sooner.
    sys.setswitchinterval(0.0005)
    clock = SystemClock()
    with contextlib.ExitStack() as stack:
        url = _bounded(settings.database_url, settings.name)
        db = stack.enter_context(Database(url, connections=_CONNECTIONS, wait_seconds=2))
        for name in retired:
            with contextlib.ExitStack() as brief:
                _take_over(replace(settings, name=name), db, clock, brief)
            for left in (settings.spool / name, settings.spool / _PURCHASES / name):
                with contextlib.suppress(OSError):  # something damaged was set aside there
                    (left / "lock").unlink(missing_ok=True)
                    left.rmdir()
        instance, spool, purchases, till = _take_over(settings, db, clock, stack)
        directory = Directory(db, instance, clock)
        stack.callback(directory.stop)
        cashier = Cashier(till, spool, settings.purse_seconds)
        stack.callback(cashier.stop)
        budgets = Budgets(db, holder=instance.holder, clock=clock)
        stack.callback(budgets.stop)
        buying = buyer.Buyer(
            db=db, clock=clock, book=book.Book(purchases, db, clock),
            vault=None if settings.vault is None else Vault(settings.vault),
            holder=settings.name, instance=instance.id, metrics=counted.bought,
        )  # fmt: skip
        stack.callback(buying.book.stop)
        # What is there by now stays to the end, and need not be looked through again and again
        # while everybody waits.
        gc.collect()
        gc.freeze()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(
                _serve(
                    settings, db, instance, directory, cashier, budgets, buying, counted, sockets
                )
            )


def _take_over(
    settings: Settings, db: Database, clock: SystemClock, stack: contextlib.ExitStack
) -> tuple[Instance, Spool, Spool, Till]:
    """Take the name and its spool, hand over what earlier runs left, and return what they held."""
    instance = Instance(settings.name, _bounded(settings.database_url, settings.name), clock)
    stack.callback(instance.stop)
    instance.start(db, wait_seconds=_NAME_WAIT_SECONDS)
    spool = Spool(settings.spool / settings.name, instance.id)
    spool.open()
    stack.callback(spool.close)
    purchases = Spool(settings.spool / _PURCHASES / settings.name, instance.id)
    purchases.open()
    stack.callback(purchases.close)
    till = Till(db, holder=instance.holder, clock=clock)
    book.recover(purchases, db, clock)
    with db.transaction() as tx:
        give_back(tx, settings.name, str(instance.id))
    recovered = recover(spool, till)
    returned = instance.sweep(db)
    log.info(
        "gateway.started",
        extra=_facts(settings, instance) | {"reports": recovered, "holds_returned": returned},
    )
    return instance, spool, purchases, till


def recover(spool: Spool, till: Till) -> int:
    """Hand over what earlier runs left on the disk; say how many reports that were.

    Raises:
        Unavailable: the database did not answer; all of it is still there.
    """
    recovered = 0
    for path in spool.left_behind():
        reports = list(read(path, Report.read))
        for start in range(0, len(reports), _AT_ONCE):
            _hand_over(till, reports[start : start + _AT_ONCE])
        recovered += len(reports)
        failpoint("gateway.recover.before_removal")
        path.unlink()
    return recovered


def _hand_over(till: Till, reports: list[Report]) -> None:
    """As `Till.recover`; one that the database does not take does not stop the others."""
    try:
        till.recover(reports)
    except Unavailable:
        raise
    except Exception:
        if len(reports) == 1:
            log.exception("gateway.unhanded", extra={"report": reports[0].line.decode()})
            return
        half = len(reports) // 2
        _hand_over(till, reports[:half])
        _hand_over(till, reports[half:])


def _bounded(url: str, name: str) -> str:
    """Let no statement wait for ever: a thread that waits is one that nobody else has."""
    options = conninfo_to_dict(url).get("options") or ""
    return make_conninfo(
        url,
        application_name=f"sublet gateway {name}",
        tcp_user_timeout=10_000,
        options=f"{options} -c lock_timeout=4s -c statement_timeout=5s".strip(),
    )


async def _serve(
    settings: Settings,
    db: Database,
    instance: Instance,
    directory: Directory,
    cashier: Cashier,
    budgets: Budgets,
    buying: buyer.Buyer,
    counted: Metrics,
    sockets: Listeners,
) -> None:
    tuning = _tuning(settings)
    loop = asyncio.get_running_loop()
    asked_to_stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked_to_stop.set)
    with contextlib.ExitStack() as stack:
        replicas = stack.enter_context(contextlib.closing(Replicas()))
        stack.callback(buying.close)
        tracer = _tracer(settings)
        if tracer is not None:
            stack.callback(tracer.close)
        vault = None if settings.vault is None else Vault(settings.vault)
        kept = Kept(directory, vault)
        files = Files(directory, _shelf(settings, vault), most_bytes=settings.most_file_bytes)
        stack.callback(files.stop)
        service = Service(
            source=f"gateway:{instance.id}",
            supplier=f"supplier:{instance.id}",
            tokeniser=f"tokeniser:{instance.id}",
            directory=directory,
            cashier=cashier,
            replicas=replicas,
            budgets=budgets,
            metrics=counted,
            buyer=buying,
            kept=kept,
            background=Background(kept),
            files=files,
            batches=Batches(files),
            tuning=FineTuning(files),
            tracer=tracer,
            limiter=Limiter(
                requests_per_minute=tuning.requests_per_minute,
                tokens_per_minute=tuning.tokens_per_minute,
            ),
        )
        _tune(service, tuning)
        await service.refresh()
        app = Gateway(service, Signers(directory, vault))
        worker = _worker(service, db, instance, vault)
        server = Server(app.answer)
        for listener, context in sockets:
            await server.listen(listener, context)
        loops = [
            asyncio.create_task(_refresh(service)),
            asyncio.create_task(_share_rates(service)),
            asyncio.create_task(_tell_loads(service)),
            asyncio.create_task(_probe(service)),
            asyncio.create_task(_show(service)),
            asyncio.create_task(_tidy(service)),
            asyncio.create_task(_watch(service, settings, [one for _, one in sockets if one])),
            asyncio.create_task(_beat(instance, directory, asked_to_stop)),
            asyncio.create_task(cashier.watch()),
            asyncio.create_task(buying.watch()),
        ]
        for task in loops:
            task.add_done_callback(_died)
        working = None if worker is None else asyncio.create_task(worker.run())
        try:
            await asked_to_stop.wait()
            log.info("gateway.stopping")
            app.stop()
            if worker is not None and working is not None:
                working.cancel()
                await worker.stop()
            loop.call_later(settings.drain_seconds, service.cut)
            # The app ends everything by itself before this.
            await server.stop(within_seconds=settings.drain_seconds + 20)
            await service.drain(_DRAIN_SECONDS)
        finally:
            for task in loops:
                task.cancel()
    log.info("gateway.stopped")


def _worker(
    service: Service, db: Database, instance: Instance, vault: Vault | None
) -> Worker | None:
    """Return what works on batches, where their files are reached."""
    if vault is None or not service.files.there:
        return None
    return Worker(service=service, db=db, me=Me(instance.id, instance.name), vault=vault)


def _shelf(settings: Settings, vault: Vault | None) -> Shelf | None:
    if settings.artefacts is None or vault is None:
        return None
    chest = Chest(settings.artefacts)
    return Shelf(chest=chest, vault=vault, most_bytes=settings.tenant_bytes)


def _tracer(settings: Settings) -> Tracer | None:
    if settings.traces is None:
        return None
    return Tracer(
        settings.traces, share=settings.traces_share, gateway=settings.name, version=__version__
    )


def _died(task: asyncio.Task[None]) -> None:
    """What goes on for ever has ended: nobody else would ever hear of it."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("gateway.failed", exc_info=error)


async def _refresh(service: Service) -> None:
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(_REFRESH_SECONDS)
        await service.refresh()
        service.limiter.forget(now=loop.time())


def _tuning(settings: Settings) -> Tuning:
    """Raises Misconfigured: the file is wrong."""
    own = Tuning(
        requests_per_minute=settings.requests_per_minute,
        tokens_per_minute=settings.tokens_per_minute,
        first_token_seconds=settings.first_token_seconds,
        stall_seconds=settings.stall_seconds,
    )
    return own if settings.tuning is None else own.read(settings.tuning)


def _tune(service: Service, tuning: Tuning) -> None:
    service.limiter.set_defaults(
        requests_per_minute=tuning.requests_per_minute, tokens_per_minute=tuning.tokens_per_minute
    )
    service.patience = Patience(
        first_token_seconds=tuning.first_token_seconds, stall_seconds=tuning.stall_seconds
    )


async def _watch(service: Service, settings: Settings, contexts: Sequence[ssl.SSLContext]) -> None:
    """Go by the settings' file and the certificate as they are now, without a restart."""
    tuning = None if settings.tuning is None else Watched(settings.tuning)
    certificate = None if settings.certificate is None else Watched(settings.certificate)
    while True:
        await asyncio.sleep(_WATCH_SECONDS)
        try:
            if tuning is not None and tuning.changed():
                _tune(service, _tuning(settings))
                log.info("gateway.tuned", extra={"file": str(tuning.path)})
            if certificate is not None and certificate.changed():
                for context in contexts:  # for connections to come
                    context.load_cert_chain(certificate.path, settings.private_key)
                log.info("gateway.certificate_renewed")
        except (Misconfigured, OSError, ssl.SSLError) as error:
            log.error("gateway.not_tuned", extra={"error": str(error)})  # noqa: TRY400


async def _probe(service: Service) -> None:
    while True:
        await asyncio.sleep(_PROBE_SECONDS)
        await service.replicas.probe(service.table.ready())


async def _show(service: Service) -> None:
    """For a scrape of the gateway that another of its processes answers."""
    while True:
        service.show()
        await asyncio.sleep(_SHOW_SECONDS)


async def _tidy(service: Service) -> None:
    """Stop background answers that nobody wants any more, and forget kept ones in time."""
    loop = asyncio.get_running_loop()
    forgot = float("-inf")
    while True:
        await asyncio.sleep(_TIDY_SECONDS)
        with contextlib.suppress(Unavailable):
            await service.background.look()
            if loop.time() - forgot > _FORGET_SECONDS:
                forgot = loop.time()
                await service.kept.forget()


async def _share_rates(service: Service) -> None:
    while True:
        await asyncio.sleep(_SHARE_SECONDS)
        try:
            await service.directory.share_rates(service.limiter)
        except Unavailable:
            log.warning("gateway.rates_not_shared")


async def _tell_loads(service: Service) -> None:
    """Say how much of each deployment is used, which is what replicas are scaled by."""
    while True:
        await asyncio.sleep(_TELL_SECONDS)
        loads = service.demand.news(now=asyncio.get_running_loop().time())
        if loads:
            try:
                await service.directory.tell_loads(loads)
            except Unavailable:
                log.warning("gateway.loads_not_told")


async def _beat(instance: Instance, directory: Directory, asked_to_stop: asyncio.Event) -> None:
    """Keep the name; end this process if another has it for good."""
    lost = 0
    while True:
        try:
            lost = 0 if await directory.beat() else lost + 1
        except Unavailable:
            log.warning("gateway.database_away")
        # After an outage our own old connection may hold it for a while.
        if lost * _BEAT_SECONDS > 30:
            log.error("gateway.name_lost", extra={"gateway": instance.name})
            asked_to_stop.set()
        await asyncio.sleep(_BEAT_SECONDS)


def _facts(settings: Settings, instance: Instance) -> dict[str, object]:
    return {
        "gateway": settings.name,
        "instance": str(instance.id),
        "http_port": settings.http_port,
        "https_port": settings.https_port if settings.certificate is not None else None,
    }
