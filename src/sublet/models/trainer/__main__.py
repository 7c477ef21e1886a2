"""`python -m sublet.models.trainer --url JOB`: train until all is learnt, or until told to go.

The secret of its run is in SUBLET_TRAINER_SECRET. On SIGTERM it ends the step that it is at, keeps
what it has learnt, and leaves; whoever trains next goes on from there.
"""

import argparse
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Final

from sublet.core.errors import SubletError
from sublet.models.chest import Chest
from sublet.models.replica.weights import Where, at_hand
from sublet.models.trainer.control import Away, Control, Over
from sublet.models.trainer.protocol import Told, Work

log = logging.getLogger(__name__)

EXIT_FAILED: Final = 1
_TROUBLE_SECONDS: Final = 30.0


def run(options: argparse.Namespace, secret: str, leaving: threading.Event) -> int:
    control = Control(options.url, secret)
    try:
        work = control.get("/work", Work)
        try:
            _train(control, work, options, leaving)
        except (ValueError, NotImplementedError, KeyError) as error:
            # Of the files or the model: no other run would do better.
            log.error("trainer.failed", extra={"error": str(error)})  # noqa: TRY400 - told to its tenant
            told = Told(code="invalid_training_data", message=str(error))
            control.put("/trouble", told, seconds=_TROUBLE_SECONDS)
    except Over as error:
        log.info("trainer.over", extra={"detail": str(error)})
    except (Away, SubletError, ValueError, OSError) as error:
        log.error("trainer.ended", extra={"error": f"{type(error).__name__}: {error}"})  # noqa: TRY400
        return EXIT_FAILED
    return 0


def _train(
    control: Control, work: Work, options: argparse.Namespace, leaving: threading.Event
) -> None:
    # Seconds, and most of a gigabyte: only once there is work.
    from sublet.models.trainer.learner import Learner  # noqa: PLC0415
    from sublet.models.trainer.training import Run  # noqa: PLC0415

    where = Where(
        assembled=str(options.weights), artefacts=str(options.artefacts), key=work.weights_key
    )
    # With as many threads as there are cores, any other work would make it several times slower.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = max(1, min(options.threads, (cores or 2) - 1))
    with at_hand(work.recipe, where) as weights:
        learner = Learner(weights, work.recipe, work.method, threads=threads)
    Run(
        control=control,
        work=work,
        chest=Chest(options.artefacts),
        learner=learner,
        leaving=leaving.is_set,
    ).go()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m sublet.models.trainer", description=__doc__)
    parser.add_argument("--url", required=True, help="address of the job")
    parser.add_argument("--artefacts", type=Path, required=True, help="folder of sealed files")
    parser.add_argument("--weights", type=Path, required=True, help="folder of assembled weights")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    options = parser.parse_args()
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s"
    )
    leaving = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: leaving.set())
    return run(options, os.environ.get("SUBLET_TRAINER_SECRET", ""), leaving)


if __name__ == "__main__":
    sys.exit(main())
