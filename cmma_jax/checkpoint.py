"""The only file that names orbax: a run's checkpoints, each with all that is needed to use it alone."""

import contextlib
import json
import logging
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from cmma_jax.config import Config
from cmma_jax.data.dataset import Spec
from cmma_jax.errors import InputError
from cmma_jax.parallel import on_all_processes

RANKED_BY = "score"  # the higher the better: the validation bound, or a CGAN's number of epochs


class Checkpoints(NamedTuple):
    """An open folder of checkpoints, named by step; `open_checkpoints` makes and closes it."""

    folder: pathlib.Path
    manager: ocp.CheckpointManager

    def steps(self) -> list[int]:
        """Returns the steps that are there, oldest first."""
        return sorted(self.manager.all_steps())

    def best_step(self) -> int | None:
        """Returns the step with the best score, None where there is no checkpoint."""
        self.manager.wait_until_finished()
        return self.manager.best_step()

    def save(self, state: Any, config: Config, spec: Spec, metrics: dict[str, float]) -> None:
        """Saves a state (it has a `step`) with its config, its data's description and its metrics.

        The values are copied to the host first, so the devices may go on; the writing is done in the
        background and ends at the latest when the folder is closed.
        """
        facts = {"config": json.loads(config.to_json()), "spec": spec.to_json(), "metrics": metrics}
        items = ocp.args.Composite(state=ocp.args.PyTreeSave(on_all_processes(jax.tree.map(np.asarray, state))),
                                   facts=ocp.args.JsonSave(facts))
        self.manager.save(int(state.step), args=items, metrics=metrics)

    def restore(self, like: Any, step: int | None = None) -> Any:
        """Returns the state of a step (the latest if None) as NumPy arrays, in the structure of `like`.

        Raises:
          InputError: there is no checkpoint, or it does not fit `like`.
        """
        return self._restore(like, step, partial=False)

    def restore_params(self, like: Any, step: int | None = None) -> Any:
        """Returns a step's parameters alone, in the structure of `like`; raises as `restore`."""
        return self._restore({"params": like}, step, partial=True)["params"]

    def _restore(self, like: Any, step: int | None, partial: bool) -> Any:
        step = self._step(step)
        target = jax.tree.map(lambda a: np.empty(np.shape(a), a.dtype), like)
        # To the host's memory, wherever the arrays lay: these may not be the devices and processes that saved them.
        host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), target)
        args = ocp.args.PyTreeRestore(target, restore_args=host, partial_restore=partial)
        try:
            return self.manager.restore(step, args=ocp.args.Composite(state=args))["state"]
        except (ValueError, KeyError, OSError) as error:
            why = str(error).splitlines()[0].split(" [tensorstore_spec")[0]
            raise InputError(f"checkpoint {self.folder / str(step)} cannot be restored ({why}); delete "
                             "that folder to use the one before it") from error

    def facts(self, step: int | None = None) -> tuple[Config, Spec, dict[str, float]]:
        """Returns the config, the data's description and the metrics of a step (the latest if None)."""
        facts = self.manager.restore(self._step(step), args=ocp.args.Composite(facts=ocp.args.JsonRestore()))["facts"]
        return Config.from_json(json.dumps(facts["config"])), Spec.from_json(facts["spec"]), facts["metrics"]

    def _step(self, step: int | None) -> int:
        step = self.manager.latest_step() if step is None else step
        if step is None:
            raise InputError(f"no checkpoint in {self.folder}; train first: python train.py")
        return step


@contextlib.contextmanager
def open_checkpoints(folder: pathlib.Path | str) -> Iterator[Checkpoints]:
    """Opens a folder of checkpoints: the latest two are kept, and the best by score.

    It must be a `with` block: without the close at its end a save in the background would be lost.
    """
    folder = pathlib.Path(folder)
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax tells of each of its steps
    keep = ocp.checkpoint_managers
    options = ocp.CheckpointManagerOptions(
        best_fn=lambda metrics: metrics[RANKED_BY],
        preservation_policy=keep.AnyPreservationPolicy(
            [keep.LatestN(2), keep.BestN(get_metric_fn=lambda metrics: metrics[RANKED_BY], n=1)]))
    with ocp.CheckpointManager(folder.resolve(), options=options) as manager:
        yield Checkpoints(folder, manager)
