"""A run's public records: metrics.jsonl, one line an epoch, and the same as TensorBoard scalars."""

import contextlib
import json
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from cmma_jax.data.files import write_whole


def read_metrics(run: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the lines of a run's metrics.jsonl, oldest first; a line cut short by a crash is left out.

    All of a line are numbers but `stage`, the name of the run's stage: autoencoder, detail, flow or cgan.
    """
    path = run / "metrics.jsonl"
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    records = []
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            record = json.loads(line)
            if isinstance(record, dict) and isinstance(record.get("epoch"), int):
                records.append(record)
    return records


@contextlib.contextmanager
def open_records(run: pathlib.Path, epoch: int) -> Iterator[Callable[[dict[str, float | str]], None]]:
    """Opens a run's records after `epoch` epochs; lines of later epochs, which will be redone, are dropped.

    Yields record(metrics), which appends a line; metrics must hold "epoch". Raises InputError if the records cannot be
    written; the lines so far are as they were.
    """
    from tensorboardX import event_file_writer, summary  # here: it takes seconds where PyTorch is installed
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    kept = [record for record in read_metrics(run) if record["epoch"] <= epoch]
    path, board = run / "metrics.jsonl", run / "tensorboard"
    write_whole(path, "".join(json.dumps(record) + "\n" for record in kept).encode(), "run_dir")
    board.mkdir(exist_ok=True)
    # Its SummaryWriter would write from a thread, whose failures come as tracebacks beside our own line.
    with path.open("a") as lines, contextlib.closing(event_file_writer.EventsWriter(str(board / "events"))) as events:
        events.write_event(Event(step=epoch + 1, session_log=SessionLog(status=SessionLog.START)))

        def record(metrics: dict[str, float | str]) -> None:
            lines.write(json.dumps(metrics) + "\n")
            lines.flush()
            for name, value in metrics.items():
                if isinstance(value, str):  # the stage's name
                    continue
                events.write_event(Event(wall_time=time.time(), step=int(metrics["epoch"]),
                                         summary=summary.scalar(name, value)))
            events.flush()

        yield record
