"""The only file that names orbax: a run's checkpoints, each with all that is needed to use it alone.

A checkpoint holds the state and, as JSON, its facts: config, description of the data, metrics, the means of the steps
of an epoch begun, and a CRC-32 of each array. The facts have a CRC-32 themselves, so that a flipped bit is found out.
"""

import contextlib
import errno
import functools
import itertools
import json
import logging
import os
import pathlib
import sys
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from cmma_jax.errors import InputError
from cmma_jax.models.spec import Spec
from cmma_jax.training.config import OWN, Config, refuse_old_version
from cmma_jax.training.parallel import on_all_processes

RANKED_BY = "score"  # the higher the better: the validation bound, or a CGAN's number of epochs
ON_HOST = ocp.RestoreArgs(restore_type=np.ndarray)
SAVE_SECONDS = 300  # in which a save must end: one that hangs is told as an error, and not waited for for ever
DISK_FAULTS = (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EACCES)


def has_checkpoints(folder: pathlib.Path) -> bool:
    """Returns whether a folder holds a checkpoint."""
    return any(path.name.isdecimal() for path in folder.glob("*"))


class Checkpoints(NamedTuple):
    """An open folder of checkpoints, named by step; `open_checkpoints` makes and closes it."""

    folder: pathlib.Path
    manager: ocp.CheckpointManager

    def steps(self) -> list[int]:
        """Returns the steps that are there, oldest first."""
        return sorted(self.manager.all_steps())

    def best_step(self) -> int | None:
        """Returns the step with the best score, None where there is no checkpoint.

        Raises:
          InputError: a save in the background failed, or a checkpoint is damaged.
        """
        self.wait()
        scores = {step: self.facts(step)[2].get(RANKED_BY, -np.inf) for step in self.steps()}
        return max(scores, key=lambda step: (scores[step], step), default=None)

    def save(self, state: Any, config: Config, spec: Spec, metrics: dict[str, float],
             begun: dict[str, list[float]] | None = None) -> None:
        """Saves a state (it has a `step`) with its config, its data's description and its metrics.

        The values are copied to the host first, so the devices may go on; the writing is done in the
        background and ends at the latest when the folder is closed. metrics: its score among them, where the state was
        measured; begun: the means of an epoch's steps so far, where it stands inside one.

        Raises:
          InputError: it, or the one before it, cannot be written; those before are as they were.
        """
        state = jax.tree.map(np.asarray, state)
        facts = {"config": json.loads(config.to_json()), "spec": spec.to_json(), "metrics": metrics,
                 "begun": begun or {}, "sums": _sums(state)}
        items = ocp.args.Composite(state=ocp.args.PyTreeSave(on_all_processes(state)),
                                   facts=ocp.args.JsonSave({"facts": facts, "sum": _sum_of_facts(facts)}))
        with self._writing():
            # By force: it is never left out because its step is not above the last one's.
            self.manager.save(int(state.step), args=items, metrics=metrics, force=True)

    def wait(self) -> None:
        """Waits until what is being saved is on disk; raises InputError if it cannot be written."""
        with self._writing():
            self.manager.wait_until_finished()

    def restore(self, like: Any, step: int | None = None) -> Any:
        """Returns the state of a step (the latest if None) as NumPy arrays, in the structure of `like`.

        Raises InputError if there is no checkpoint, it is damaged, or it does not fit `like`.
        """
        return self._restore(like, step, partial=False)

    def restore_params(self, like: dict[str, Any], step: int | None = None) -> Any:
        """Returns a step's parameters alone, in the structure of `like`, all that the model has by this stage; raises
        as `restore`.
        """
        own = OWN.get(self.folder.name)
        trained = {own: like[own]} if own else like
        frozen = {name: tree for name, tree in like.items() if name not in trained}
        found = self._restore({"params": trained} | ({"frozen": frozen} if frozen else {}), step, partial=True)
        return found["params"] | found.get("frozen", {})

    def facts(self, step: int | None = None) -> tuple[Config, Spec, dict[str, float]]:
        """Returns config, data's description and metrics of a step (the latest if None); raises as `restore`."""
        facts = self._facts(step)
        refuse_old_version(json.dumps(facts["config"]), f"the run in {self.folder.parent}")
        return Config.from_json(json.dumps(facts["config"])), Spec.from_json(facts["spec"]), facts["metrics"]

    def begun(self) -> dict[str, list[float]]:
        """Returns the means of the steps that the latest checkpoint has taken of an epoch it stands inside."""
        return self._facts(None)["begun"]

    def _restore(self, like: Any, step: int | None, partial: bool) -> Any:
        step = self._step(step)
        facts = self._facts(step)
        target = jax.tree.map(lambda a: np.empty(np.shape(a), a.dtype), like)
        # To the host's memory, wherever the arrays lay: these may not be the devices and processes that saved them.
        host = jax.tree.map(lambda _: ON_HOST, target)
        args = ocp.args.PyTreeRestore(target, restore_args=host, partial_restore=partial)
        try:
            state = self.manager.restore(step, args=ocp.args.Composite(state=args))["state"]
            _check_sums(state, facts)
        except Exception as error:  # a damaged file makes orbax and its decoders raise almost anything
            raise self._unusable(step, error) from error
        return state

    def _facts(self, step: int | None) -> dict[str, Any]:
        step = self._step(step)
        try:
            content = self.manager.restore(step, args=ocp.args.Composite(facts=ocp.args.JsonRestore()))["facts"]
            return _checked(content)
        except Exception as error:  # as above
            raise self._unusable(step, error) from error

    def _unusable(self, step: int, error: Exception) -> InputError:
        return InputError(f"checkpoint {self.folder / str(step)} cannot be restored ({_few_words(error)}); train.py "
                          "with the run's own settings puts a damaged one aside and goes on from the newest whole one")

    def _step(self, step: int | None) -> int:
        step = self.manager.latest_step() if step is None else step
        if step is None:
            raise InputError(f"no checkpoint in {self.folder}; train first: python -m cmma_jax train")
        return step

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except jax.errors.JaxRuntimeError:  # of another process, not of the disk
            raise
        except Exception as error:  # of the disk, told by tensorstore, orbax or Python, each in its own way
            raise InputError(f"no checkpoint can be written to {self.folder} ({_few_words(error)}); those in it are as "
                             "they were: make room or mend the disk, and give the same command again") from error


def _sums(tree: Any) -> dict[str, int]:
    """Returns the CRC-32 of each array's bytes, by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"):
            zlib.crc32(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data) for path, leaf in leaves}


def _checked(content: dict[str, Any]) -> dict[str, Any]:
    """Returns the facts in a checkpoint's JSON; raises ValueError if they are not those that were saved."""
    if content["sum"] != _sum_of_facts(content["facts"]):
        raise ValueError("its facts have another checksum")
    return content["facts"]


def _check_sums(tree: Any, facts: dict[str, Any]) -> None:
    wrong = [name for name, value in _sums(tree).items() if facts["sums"].get(name) != value]
    if wrong:
        raise ValueError(f"{wrong[0]} has another checksum")


def _sum_of_facts(facts: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(facts, sort_keys=True).encode())


def _few_words(error: BaseException) -> str:
    """Returns the beginning of an exception's message: of a file system's fault, its name."""
    while error.__cause__ and not isinstance(error, OSError):
        error = error.__cause__
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f": {error.filename}" if error.filename else "")
    for number in DISK_FAULTS:  # tensorstore names the fault after the path of a temporary file, which may be long
        if os.strerror(number) in str(error):
            return os.strerror(number)
    words = (str(error).splitlines() or [""])[0].split(" [tensorstore_spec")[0].split(" [source locations")[0]
    return words[:200] or type(error).__name__


def _damage(checkpoint: pathlib.Path) -> str | None:
    """Returns what is wrong with a checkpoint in a few words, None if it is whole; nothing must be open there."""
    try:
        content = json.loads((checkpoint / "facts" / "metadata").read_text())
        facts = _checked(content)
        if facts["metrics"] and json.loads((checkpoint / "metrics" / "metrics").read_text()) != facts["metrics"]:
            return "its metrics are not those that were saved"
        with ocp.PyTreeCheckpointer() as reader:
            state = checkpoint.resolve() / "state"
            saved = reader.metadata(state).item_metadata
            if saved is None:
                return "the list of its arrays cannot be read"
            args = ocp.args.PyTreeRestore(restore_args=jax.tree.map(lambda _: ON_HOST, saved.tree))
            _check_sums(reader.restore(state, args=args), facts)
    except Exception as error:  # a damaged file makes orbax and its decoders raise almost anything
        return _few_words(error)
    return None


def set_damaged_aside(folder: pathlib.Path | str) -> list[str]:
    """Moves checkpoints that cannot be read back whole from `folder` to damaged/ of the same name beside it.

    All are looked at, so that the best can be relied on too. Every process of a run must call it. Returns a line on
    each, which names it and its damage.

    Raises:
      InputError: none is whole, and nothing was moved; or it cannot be moved.
    """
    folder = pathlib.Path(folder)
    _quiet()
    # Where there is no folder the processes meet below all the same: another may find it, made by the first, empty.
    found = {int(path.name): _damage(path) for path in sorted(folder.glob("*")) if path.name.isdecimal()}
    damaged = {step: why for step, why in found.items() if why}
    if damaged and len(damaged) == len(found):
        step = max(damaged)
        raise InputError(f"no checkpoint in {folder} is whole; the newest, {step}: {damaged[step]}; restore the folder "
                         "from a copy, or give another --run_dir to train from the beginning")
    lines = []
    ocp.multihost.sync_global_processes("damaged checkpoints found")
    for step, why in damaged.items():
        names = itertools.chain([f"{step}"], (f"{step}-{again}" for again in itertools.count(2)))
        place = next(place for name in names if not (place := folder.parent / "damaged" / folder.name / name).exists())
        lines.append(f"checkpoint {folder / str(step)} is damaged ({why}); it is put aside in {place.parent}")
        if jax.process_index() == 0:
            place.parent.mkdir(parents=True, exist_ok=True)
            (folder / str(step)).rename(place)
    ocp.multihost.sync_global_processes("damaged checkpoints moved")
    return lines


@contextlib.contextmanager
def open_checkpoints(folder: pathlib.Path | str) -> Iterator[Checkpoints]:
    """Opens a folder of checkpoints: the latest two are kept, and the best by score.

    It must be a `with` block: without the close at its end a save in the background would be lost.

    Raises:
      InputError: a checkpoint's metrics are damaged; or, at the end, the last one could not be written.
    """
    folder = pathlib.Path(folder)
    _quiet()
    keep = ocp.checkpoint_managers

    def score(metrics: dict[str, float]) -> float:
        return metrics.get(RANKED_BY, -np.inf)

    options = ocp.CheckpointManagerOptions(
        best_fn=score, async_options=ocp.AsyncOptions(timeout_secs=SAVE_SECONDS),
        preservation_policy=keep.AnyPreservationPolicy(
            [keep.LatestN(2), keep.BestN(get_metric_fn=score, n=1, keep_checkpoints_without_metrics=False)]))
    try:
        manager = ocp.CheckpointManager(folder.resolve(), options=options)
    except ValueError as error:
        raise InputError(f"the checkpoints in {folder} cannot be opened: the metrics of one are damaged "
                         f"({_few_words(error)}); train.py with the run's own settings puts it aside") from error
    checkpoints = Checkpoints(folder, manager)
    try:
        yield checkpoints
        checkpoints.wait()
    except jax.errors.JaxRuntimeError:  # another process is lost, for which the close would wait
        raise
    except BaseException:
        with contextlib.suppress(Exception):  # a save that failed was told by its own error
            manager.close()
        raise
    manager.close()


@functools.cache
def _quiet() -> None:
    """Keeps to itself what orbax says beside its errors.

    It tells of each of its steps; and when one array cannot be read or written, it closes its event loop under those
    of the others, each of which would write a traceback to stderr, some after orbax has returned.
    """
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    tell = sys.unraisablehook
    sys.unraisablehook = lambda it: None if str(it.exc_value) == "Event loop is closed" else tell(it)
