"""A batch of 1,000 lines on the real model, across reclaims and a restart of everything.

    .venv/bin/python benchmarks/batches.py [--lines 1000] [--reclaims 2] [--json]

A whole Sublet on two slots. At equal parts of the batch an internal job takes every slot; in the
middle all processes are killed, and `sublet up` is started again. Printed: how many lines were
answered, how often each was charged, what the auditor found, and the seconds it took.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.e2e.instance import Instance, until
from tests.e2e.test_batches import ask, reclaim, sell


def send(instance: Instance, key: str, lines: int) -> str:
    client = instance.openai(key, max_retries=10)
    text = "".join(
        json.dumps(
            {"custom_id": f"q{n}", "method": "POST", "url": "/v1/chat/completions", "body": ask(n)}
        )
        + "\n"
        for n in range(lines)
    )
    file = client.files.create(file=("q.jsonl", text.encode()), purpose="batch")
    return client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    ).id


def completed(instance: Instance, key: str, batch_id: str) -> int:
    counts = instance.openai(key, max_retries=10).batches.retrieve(batch_id).request_counts
    return 0 if counts is None else counts.completed


def play(instance: Instance, *, lines: int, reclaims: int) -> dict[str, Any]:
    instance.start()
    instance.await_model()
    sell(instance)
    _, key = instance.tenant("batches", usd="10")
    began = time.monotonic()
    batch_id = send(instance, key, lines)
    parts = reclaims + 2
    for part in range(1, parts):
        wanted = lines * part // parts
        until(lambda: completed(instance, key, batch_id) >= wanted, seconds=3600, what="its lines")  # noqa: B023
        if part == parts // 2:
            instance.kill()
            instance.start()
        else:
            reclaim(instance)
    client = instance.openai(key, max_retries=10)
    until(
        lambda: client.batches.retrieve(batch_id).status == "completed",
        seconds=3600,
        what="its end",
    )
    seconds = time.monotonic() - began
    batch = client.batches.retrieve(batch_id)
    assert batch.output_file_id is not None
    answers = [
        json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()
    ]
    instance.settled(key)
    instance.verify()
    with instance.database() as database:
        rows = database.execute(
            "SELECT sequence, count(*) AS n FROM usage WHERE source LIKE 'batch:%' GROUP BY sequence"
        ).fetchall()
    return {
        "lines": lines,
        "reclaims": reclaims,
        "restarts": 1,
        "answered": len(answers),
        "answered_once": sum(n == 1 for n in Counter(a["custom_id"] for a in answers).values()),
        "charged": len(rows),
        "charged_once": sum(row["n"] == 1 for row in rows),
        "differences": 0,  # else `verify` had raised
        "seconds": round(seconds, 1),
        "lines_per_s": round(lines / seconds, 2),
        "load_average": os.getloadavg()[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lines", type=int, default=1000)
    parser.add_argument("--reclaims", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="sublet-bench-"))
    instance = Instance(folder / "data", slots=2, arguments=("--notice", "1"))
    try:
        figures = play(instance, lines=given.lines, reclaims=given.reclaims)
    finally:
        instance.clean_up()
        shutil.rmtree(folder, ignore_errors=True)
    if given.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:>16}  {value}")


if __name__ == "__main__":
    main()
