"""The only file that names devices: one device, pmap over several, and jit over a mesh.

All three run the same step, written once for a `Placement`; parameters agree up to rounding, because an
example's noise belongs to the example and a batch's mean is the mean of equal shares.
"""

import contextlib
import functools
import math
import os
import pathlib
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from cmma_jax.errors import InputError

AXIS = "batch"
LOST_SECONDS = 30
DATA_SHARE = 0.25  # of a device's memory; the rest is for parameters, their optimiser's state and a step's activations
Tree = Any


class Placement(NamedTuple):
    """How a computation is laid over devices; `share` and `mean` are for inside the computation."""

    devices: int  # how many, over all processes
    share: Callable[[Tree], Tree]  # a tree of [B, ...] arrays -> the rows this device works on
    mean: Callable[[Tree], Tree]  # a tree of per-device means -> their mean over the devices
    rows: np.ndarray  # [B / processes] the numbers of the batch's rows that this process's devices work on, in order
    put: Callable[[Tree], Tree]  # a tree of host arrays -> the same values on every device
    # A tree of host arrays [B / processes, ...], those rows of a batch -> the same on this process's devices, to each
    # its part, which the computation then has to itself.
    split: Callable[[Tree], Tree]
    get: Callable[[Tree], Tree]  # what `put` or `compile` returned -> single arrays, without a copy where possible
    compile: Callable[[Callable], Callable]  # function of (state, data) -> the same compiled; the state is donated


def place(devices: int, how: str, batch_size: int, group: int = 1) -> Placement:
    """Returns the placement for `--devices` and `--parallel`.

    devices: 0 for all that JAX sees; several processes always use all of theirs. how: "pmap" or "mesh"; one device uses
    plain jit for either. batch_size: faces a step over all devices; group: faces that a device compares at once.

    Raises:
      InputError: there are fewer devices, or they do not divide the batch into groups.
    """
    there = jax.devices()
    if jax.process_count() > 1 and devices not in (0, len(there)):
        raise InputError(f"--devices={devices} with {jax.process_count()} processes; leave it out to use all "
                         f"{len(there)} devices")
    count = devices or len(there)
    if count > len(there):
        raise InputError(f"--devices={devices} but JAX sees {len(there)} ({there[0].platform}); give at most "
                         f"{len(there)}, or on a CPU set XLA_FLAGS=--xla_force_host_platform_device_count={count}")
    unit = count * group
    if batch_size % unit:
        groups = f" into the groups of {group} faces that a CGAN's discriminator compares" if group > 1 else ""
        raise InputError(f"--batch_size={batch_size} is not divided by {count} devices{groups}; "
                         f"try --batch_size={batch_size // unit * unit or unit}")
    if count == 1:
        return _single(there[0], batch_size)
    return {"pmap": _pmap, "mesh": _mesh}[how](there[:count], batch_size)


def _identity(tree: Tree) -> Tree:
    return tree


def _single(device: jax.Device, batch_size: int) -> Placement:
    put = functools.partial(jax.device_put, device=device)
    return Placement(1, _identity, _identity, np.arange(batch_size), put, put, _identity,
                     functools.partial(jax.jit, donate_argnums=0))


def _local_rows(devices: list[jax.Device], batch_size: int) -> np.ndarray:
    """Returns the numbers of the batch's rows that fall to this process's devices, wherever those stand in the list."""
    shares = np.arange(batch_size).reshape(len(devices), -1)
    return shares[[device.process_index == jax.process_index() for device in devices]].reshape(-1)


def _pmap(devices: list[jax.Device], batch_size: int) -> Placement:
    count = len(devices)
    local = [device for device in devices if device.process_index == jax.process_index()]
    copy = jax.pmap(lambda _, tree: tree, in_axes=(0, None), devices=devices)
    spread = jax.pmap(_identity, devices=devices)

    def share(tree: Tree) -> Tree:
        def rows(a: jax.Array) -> jax.Array:
            size = len(a) // count
            return jax.lax.dynamic_slice_in_dim(a, jax.lax.axis_index(AXIS) * size, size)
        return jax.tree.map(rows, tree)

    def put(tree: Tree) -> Tree:
        return copy(np.arange(len(local)), tree)

    def split(tree: Tree) -> Tree:
        return spread(jax.tree.map(lambda a: a.reshape(len(local), -1, *a.shape[1:]), tree))

    def get(tree: Tree) -> Tree:
        return jax.tree.map(lambda a: a.addressable_data(0).reshape(a.shape[1:]), tree)

    return Placement(count, share, functools.partial(jax.lax.pmean, axis_name=AXIS),
                     _local_rows(devices, batch_size), put, split, get,
                     functools.partial(jax.pmap, axis_name=AXIS, donate_argnums=0, devices=devices))


def _mesh(devices: list[jax.Device], batch_size: int) -> Placement:
    mesh = Mesh(devices, (AXIS,), axis_types=(AxisType.Auto,))
    everywhere, divided = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(AXIS))

    def share(tree: Tree) -> Tree:
        return jax.lax.with_sharding_constraint(tree, divided)

    def put(tree: Tree) -> Tree:
        return jax.tree.map(lambda a: jax.make_array_from_callback(np.shape(a), everywhere, lambda _: a), tree)

    def split(tree: Tree) -> Tree:
        return jax.tree.map(lambda a: jax.make_array_from_process_local_data(divided, a, (batch_size, *a.shape[1:])),
                            tree)

    def get(tree: Tree) -> Tree:
        return jax.tree.map(lambda a: a.addressable_data(0), tree)

    return Placement(len(devices), share, _identity, _local_rows(devices, batch_size), put, split, get,
                     functools.partial(jax.jit, donate_argnums=0, out_shardings=everywhere))


def start_processes(coordinator: str, num_processes: int, process_id: int) -> None:
    """Joins this process to the others; must come before anything else touches a device.

    One process without a coordinator is alone. With num_processes 0 JAX finds the cluster itself, from the
    environment of Slurm, Open MPI, GKE or a TPU pod. A process that is not heard of for LOST_SECONDS is given up, and
    JAX ends the others, whatever they wait for.
    """
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM, which is train.py's
    start = functools.partial(jax.distributed.initialize, heartbeat_timeout_seconds=LOST_SECONDS)
    if num_processes == 0:
        start()
    elif coordinator:
        start(coordinator, num_processes, process_id)
    elif num_processes > 1:
        raise InputError("--num_processes needs --coordinator=ADDRESS:PORT, the address of process 0")


def highest(number: int) -> int:
    """Returns the highest of the processes' numbers; all of them must call it."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.process_allgather(np.int32(number)).max())


@contextlib.contextmanager
def losses_told(program: str, mend: str) -> Iterator[None]:
    """Ends this process with one line and exit code 1 when another one of several is lost.

    It ends at once, without closing anything: whatever is closed would wait for the other.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        print(f"\n{program}: error: process {jax.process_index()} of {jax.process_count()} lost another one "
              f"({str(error).splitlines()[0]}); {mend}", file=sys.stderr, flush=True)
        os._exit(1)


def on_all_processes(tree: Tree) -> Tree:
    """Returns host arrays, equal on all processes, as arrays which all of them hold: Orbax has each write a part.

    Of one process alone they stay as they are.
    """
    if jax.process_count() == 1:
        return tree
    firsts = {device.process_index: device for device in reversed(jax.devices())}
    held = NamedSharding(Mesh([firsts[i] for i in range(jax.process_count())], ("process",)), PartitionSpec())
    return jax.tree.map(lambda a: jax.make_array_from_callback(np.shape(a), held, lambda _: a), tree)


def room_for_faces(data_on_device: str) -> float:
    """Returns how many bytes of training faces go to every device; more are streamed.

    data_on_device: "true": any number; "false": none; "auto": DATA_SHARE of a device's memory, which CPU devices have
    in equal parts of the machine's, and of the machine's, where the faces lie as well.
    """
    if data_on_device != "auto":
        return {"true": math.inf, "false": 0.0}[data_on_device]
    known = "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {})  # not on Windows
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if known else math.inf
    stats = jax.local_devices()[0].memory_stats()
    device = stats["bytes_limit"] if stats and "bytes_limit" in stats else machine / jax.local_device_count()
    return DATA_SHARE * min(machine, device)


def warn_unused_gpu() -> str | None:
    """Returns one line if the machine has an NVIDIA GPU that JAX does not see, otherwise None."""
    if jax.default_backend() == "cpu" and pathlib.Path("/proc/driver/nvidia/version").exists():
        return ("this machine has an NVIDIA GPU, but JAX does not see it and trains on the CPU; "
                "install the CUDA build: pip install -r requirements.txt")
    return None


def prepare() -> None:
    """Prepares JAX for a program: looks whether there are the devices that it was told to use, and keeps compiled
    programs on disk, in JAX_COMPILATION_CACHE_DIR or ~/.cache/cmma_jax.

    Raises:
      InputError: JAX_ENABLE_X64 or JAX_PLATFORMS asks for what cannot be had.
    """
    if jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        raise InputError("JAX_ENABLE_X64 asks for numbers of 64 bits, which no part of this program is made for; unset "
                         "that variable")
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # of some platforms JAX says no more than that
        name = next((name for name in ("JAX_PLATFORMS", "JAX_PLATFORM_NAME") if os.environ.get(name)), "JAX_PLATFORMS")
        asked = os.environ.get(name) or jax.config.jax_platforms  # type: ignore[attr-defined]
        raise InputError(f"{name}={asked}: JAX finds no such device on this machine; unset that variable, or set "
                         "JAX_PLATFORMS=cpu") from error
    folder = getattr(jax.config, "jax_compilation_cache_dir", None)
    try:
        if not folder:
            folder = str(pathlib.Path.home() / ".cache" / "cmma_jax")
        pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, RuntimeError):
        warnings.warn(f"compiled programs are not kept: {folder or 'the home folder'} is not writable", stacklevel=2)
        warnings.filterwarnings("ignore", "Error writing persistent compilation cache")  # one a function
        if not os.path.isdir(folder or ""):
            folder = None  # and no warning a function that it cannot be read
    jax.config.update("jax_compilation_cache_dir", folder)
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def over_devices(function: Callable[..., jax.Array], shared: int, devices: int) -> Callable[..., jax.Array]:
    """Returns function compiled, the work split over so many local devices along a leading axis, which they divide.

    function: pure, of `shared` arguments that every device needs whole, then of [M, ...] arrays; returns [M, ...].
    """
    if devices == 1:
        return jax.jit(function)

    def run(*args: Tree) -> jax.Array:
        rows = [a.reshape(devices, -1, *a.shape[1:]) for a in args[shared:]]
        mapped = jax.pmap(function, in_axes=(None,) * shared + (0,) * len(rows), devices=jax.local_devices()[:devices])
        result = jax.device_get(mapped(*args[:shared], *rows))
        return result.reshape(-1, *result.shape[2:])

    return run
