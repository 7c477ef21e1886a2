"""How long `sublet up` takes to be ready: the first time, and again; with and without a model.

    .venv/bin/python benchmarks/start.py [--rounds 3] [--json]

Seconds of wall time, medians; the load of the machine is printed beside them. "stop" is from
Ctrl-C to the last process gone.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SUBLET = Path(sys.executable).parent / "sublet"


def start_and_stop(data: Path, *, model: bool) -> tuple[float, float]:
    """Return (seconds until ready.json was there, seconds until it had stopped)."""
    command = [
        SUBLET, "up", "--data", data, "--api-port", "0", "--gateway-port", "0",
        "--gateway-http-port", "0", *([] if model else ["--no-model"]),
    ]  # fmt: skip
    began = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while not (data / "ready.json").exists():
            if process.poll() is not None:
                sys.exit("sublet up ended before it was ready")
            time.sleep(0.005)
        ready = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.wait()
    return ready - began, time.monotonic() - ready


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    figures: dict[str, float] = {}
    for name, model in (("", False), ("_with_model", True)):
        times: dict[str, list[float]] = {"first": [], "again": [], "stop": []}
        for _ in range(given.rounds):
            folder = Path(tempfile.mkdtemp(prefix="sublet-bench-"))
            try:
                first, _ = start_and_stop(folder / "data", model=model)
                again, stop = start_and_stop(folder / "data", model=model)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            for key, value in (("first", first), ("again", again), ("stop", stop)):
                times[key].append(value)
        figures |= {f"{key}{name}_s": statistics.median(of) for key, of in times.items()}
    figures["load_average"] = os.getloadavg()[0]
    if given.json:
        print(json.dumps(figures))
        return
    for key, value in figures.items():
        print(f"{key:24} {value:6.2f}")


if __name__ == "__main__":
    main()
