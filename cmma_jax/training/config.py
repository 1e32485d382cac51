"""The configuration of a run: one frozen value, its presets, and its JSON."""

import dataclasses
import json
import re
from typing import Any, Literal, get_args, get_origin, get_type_hints

from cmma_jax.data.table import Reading, parse_unknown
from cmma_jax.errors import InputError, did_you_mean, split_names
from cmma_jax.models.architecture import Architecture, ModelName, check

FIRST, DETAIL, FLOW = "checkpoints", "detail", "flow"  # the folders, in a run's, of its stages, in their order
OWN = {DETAIL: "detail", FLOW: "flow"}  # the parameters that a stage trains; the first one's are all that it has


@dataclasses.dataclass(frozen=True)
class Config(Architecture):
    """A run's settings. Every field, the architecture's among them, is a flag of train.py and a key of config.json."""

    preset: Literal["default", "large", "paper", "gauthier", "projection"] = "default"
    """Where the other settings start: default, large (for a GPU), paper (as published), gauthier (a CGAN as in Gauthier
    2015), projection (a CGAN whose attributes are to arrive). Flags override it."""
    dataset: str = "synthetic"
    """synthetic (embedded), lfw, folder (images and attributes.csv), or tfds/NAME, e.g. tfds/celeb_a."""
    data_dir: str = "data"
    """Folder of the data set's files; synthetic needs none."""
    attributes: Literal["binary", "real"] = "binary"
    """For lfw: binary labels (LFWA+), or real-valued scores (Kumar et al.), standardised."""
    ignore: str = ""
    """For folder: columns of the table that are no attributes, with commas between, such as person,id."""
    unknown: str = ""
    """For folder: what stands for "unknown" in the table: numbers, such as -1, or of one column COLUMN=NUMBER, with
    commas between; none in a number's place: every number is a value."""
    follow_links: bool = False
    """For folder: images may be links that lead out of it."""
    image_size: int = 64
    """Height and width of the faces, a multiple of 16; synthetic and lfw have 64."""
    data_on_device: Literal["auto", "true", "false"] = "auto"
    """true: the training faces are put on every device; false: their batches are streamed, by threads, from the host's
    memory, or, of folder and tfds, from memory maps on disk; auto: on the device if they take at most a quarter of its
    memory. The parameters are the same to the last bit."""
    cache: str = ""
    """Where folder and tfds keep the memory maps, 12,288 bytes a face of 64x64; empty: .cmma_jax in data_dir."""
    run_dir: str = ""
    """Where checkpoints and records go; empty: runs/<model>-<dataset>."""

    epochs: int = 8
    """Passes over the training faces of the first stage, which trains f, g, h and h2 by the bound; a finished run goes
    on when this grows, if no later stage was begun, which belongs to the latents that it was trained on."""
    detail_epochs: int = 8
    """Passes of the stage that trains the detail, if there is one, on the latents of the first's best epoch."""
    flow_epochs: int = 60
    """Passes of the last stage, which trains the flow on those latents, if --prior=flow."""
    batch_size: int = 100
    """Faces a step, over all devices together."""
    optimizer: Literal["adam", "adagrad", "sgd"] = "adam"
    """Of the first stage; adagrad is the paper's, with an accumulator that starts at 0; sgd has momentum."""
    learning_rate: float = 2e-3
    """The highest of the first stage; a linear warm-up leads to it."""
    detail_rate: float = 2e-3
    """The highest of the detail's stage: Muon moves the kernels of its blocks, Adam all else."""
    flow_rate: float = 1e-3
    """The highest of the flow's stage, whose optimiser is Muon for the matrices of its blocks and Adam for all else."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """After the warm-up: constant, or a cosine down to 0 at a stage's last step."""
    warmup_steps: int = 200
    """Steps of linear warm-up, of each stage."""
    clip_norm: float = 1.0
    """Gradients are clipped at this global norm (of the bound's loss in nats a pixel value); 0: not at all."""
    average: float = 0.998
    """Decay, a step, of the first stage's moving average of the parameters, which is evaluated and kept; 0: the last
    ones are. The detail's is the same, the flow's 0.9995."""
    momentum: float = 0.5
    """sgd: momentum at the start."""
    final_momentum: float = 0.7
    """sgd: momentum from epoch 250 on; it rises evenly until then."""
    mirror: bool = True
    """Train on mirrored faces as well, half of the time."""
    attribute_dropout: float = 0.25
    """Fraction of training faces that lose some or all attributes in the first stage; 0 is the strict paper model."""
    attribute_weight: float = 1.0
    """Weight of the joint term log q(y|z), which is in no reported bound."""
    kl_weight: float = 1.0
    """Weight of z's KL in the first stage's loss: above 1, z holds less. Every reported bound has it once."""

    discriminator_rate: float = 1.0
    """cgan: factor on the discriminator's learning rate."""
    discriminator_dropout: float = 0.0
    """cgan: fraction of the pixel values that the discriminator does not see."""
    gradient_penalty: float = 1.0
    """cgan: weight of the squared gradient of the discriminator at real faces."""
    wrong_attributes: float = 0.0
    """cgan: weight of real faces with another face's attributes, which the discriminator is to tell (Reed et al.
    2016)."""
    augment: bool = False
    """cgan: the discriminator sees faces brighter, shifted, and with a hole (Zhao et al. 2020)."""
    weight_variance: float = 1.0
    """cgan: factor on the variance of the initial weights."""

    seed: int = 0
    """Of the parameters, the order of the faces, and the noise."""
    seeds: str = ""
    """Several seeds, as 0,1,2: a run each, one after another; the first in run_dir, the others in run_dir-seed<S>."""
    devices: int = 0
    """Devices to train on; 0: all that JAX sees."""
    parallel: Literal["pmap", "mesh"] = "pmap"
    """How several devices share a step: pmap, or jit over a mesh; the results are equal."""
    coordinator: str = ""
    """Several processes: address:port of the first."""
    num_processes: int = 1
    """Processes that train together; 0: JAX finds the cluster itself (Slurm, Open MPI, GKE, TPU pods)."""
    process_id: int = 0
    """Several processes: the number of this one."""
    resume: bool = True
    """Go on where the run in run_dir stopped; --no-resume refuses to touch a run that is there."""
    checkpoint_every: int = 1
    """Epochs between checkpoints."""
    grid_every: int = 5
    """Epochs between pictures of originals, reconstructions and samples."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("image_size", "epochs", "batch_size", "learning_rate", "detail_rate", "flow_rate",
                     "weight_variance", "checkpoint_every", "grid_every"):
            check(getattr(self, name) > 0, name, getattr(self, name), "a number above 0")
        for name in ("warmup_steps", "attribute_weight", "kl_weight", "seed", "devices", "process_id", "num_processes",
                     "clip_norm", "discriminator_rate", "gradient_penalty", "wrong_attributes"):
            check(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        check(0 <= self.attribute_dropout <= 1, "attribute_dropout", self.attribute_dropout, "from 0 to 1")
        for name in ("momentum", "final_momentum", "discriminator_dropout", "average"):
            check(0 <= getattr(self, name) < 1, name, getattr(self, name), "at least 0 and below 1")
        check(bool(re.fullmatch(r"(\d+(,\d+)*)?", self.seeds)), "seeds", self.seeds,
              "whole numbers with commas between")
        try:
            parse_unknown(self.unknown)
        except ValueError:
            check(False, "unknown", self.unknown, "numbers, or COLUMN=NUMBER, with commas between, or none")
        check(self.process_id < max(1, self.num_processes), "process_id", self.process_id,
              f"below num_processes, {self.num_processes}")
        if self.prior == "flow":
            check(self.flow_epochs > 0, "flow_epochs", self.flow_epochs, "a number above 0, or --prior=gaussian")
        if self.detail_width:
            check(self.detail_epochs > 0, "detail_epochs", self.detail_epochs, "a number above 0, or --detail_width=0")

    @property
    def all_epochs(self) -> int:
        """The epochs of all stages."""
        return (self.epochs + (self.detail_epochs if self.detail_width else 0)
                + (self.flow_epochs if self.prior == "flow" else 0))

    @property
    def reading(self) -> Reading:
        """How a folder's table is to be read."""
        return Reading(tuple(split_names(self.ignore)), self.unknown, self.follow_links)

    def run_path(self) -> str:
        """Returns run_dir, or where the run lies if it was not given."""
        return self.run_dir or f"runs/{self.model}-{self.dataset.replace('/', '-')}"

    def to_json(self) -> str:
        """Returns the settings as JSON text; `from_json` is its exact inverse."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Config":
        """Reads settings back.

        Raises:
          InputError: the text is no JSON object, is of another version, or has a value that is none.
        """
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"config.json is not JSON ({error}); restore it or start a new --run_dir") from error
        if not isinstance(fields, dict):
            raise InputError("config.json holds no JSON object; restore it or start a new --run_dir")
        refuse_old_version(text, "this run")
        kinds = get_type_hints(cls)
        for name, value in fields.items():
            if name not in kinds:
                raise InputError(f"config.json has an unknown setting {name!r}{did_you_mean(name, list(kinds))}")
            if not _is_a(kinds[name], value):
                raise InputError(f"config.json has {name}={json.dumps(value):.80}, which is no value of it; restore it "
                                 "or start a new --run_dir")
        return cls(**fields)


def up_to(config: Config, folder: str) -> Config:
    """Returns settings without the stages that come after the one of a folder."""
    if folder != FLOW:
        config = dataclasses.replace(config, prior="gaussian")
    return dataclasses.replace(config, detail_width=0) if folder == FIRST else config


def refuse_old_version(text: str, what: str) -> None:
    """Raises InputError if settings in JSON, damaged or not, are of version 0.1; what: whose they are."""
    if '"linear_path"' in text:  # it had that one, whatever else it had
        raise InputError(f"{what} was made by cmma_jax 0.1, whose networks are others; train it again with this "
                         "version into a new --run_dir, or install cmma_jax 0.1 to use it as it is")


# Settings that say where and how a run is carried out, and not what it computes: they may change on a resume.
MAY_CHANGE = ("data_dir", "data_on_device", "cache", "run_dir", "epochs", "detail_epochs", "flow_epochs", "seeds",
              "devices", "parallel", "coordinator", "num_processes", "process_id", "resume", "checkpoint_every",
              "grid_every")


def default(model: ModelName, dataset: str) -> Config:
    """z a map, pixels group by group, and a flow by a transformer.

    python train.py --model=cmma
    python train.py --model=cmma --dataset=lfw --data_dir=DIR
    """
    if model == "cgan":
        return dataclasses.replace(paper(model, dataset), preset="default")
    if dataset == "synthetic":  # drawn faces: smaller networks do, in minutes
        return Config(model=model, dataset=dataset, width=24, batch_size=50, epochs=6, detail_width=24, detail_blocks=2,
                      detail_epochs=2, flow_width=128, flow_blocks=4, flow_epochs=10)
    return Config(model=model, dataset=dataset, detail_width=64)


def large(model: ModelName, dataset: str) -> Config:
    """Wider and deeper, trained for longer, for a GPU or TPU, in batches that fill more of it; nobody has trained it to
    its end yet (`python -m benchmarks.gpu --parts large`).

    python train.py --model=cmma --dataset=lfw --data_dir=DIR --preset=large
    """
    if model == "cgan":
        raise InputError(f"--preset=large has no CGAN; give --preset=paper, or another --model than {model}")
    return Config(model=model, preset="large", dataset=dataset, batch_size=250, width=64, blocks=2, epochs=40,
                  kl_weight=2.0, detail_width=128, detail_blocks=4, detail_epochs=90, flow_width=384, flow_blocks=7,
                  flow_epochs=200, precision="bfloat16")


def paper(model: ModelName, dataset: str) -> Config:
    """The paper as it is to be read: Adagrad, f of 800 softplus units, 500 latents, convolutions alone.

    python train.py --model=cmma --dataset=lfw --data_dir=DIR --preset=paper --mirror --schedule=cosine --epochs=20
      validation bound 14,801 nats; 2 shared CPU cores, 19 minutes.
    python train.py --model=cgan --dataset=lfw --data_dir=DIR --preset=paper --mirror --epochs=10
      diversity 0.83; learning rates and initial variance by `benchmarks.search_cgan`; 2 shared CPU cores, 25 minutes.
    """
    start = Config(model=model, preset="paper", dataset=dataset, epochs=500, optimizer="adagrad", learning_rate=0.02,
                   schedule="constant", mirror=False, attribute_dropout=0.0, latent_size=500, width=32,
                   prior="gaussian", average=0.0)
    if model == "cgan":
        return dataclasses.replace(start, learning_rate=0.01, weight_variance=0.25, clip_norm=0)
    return start


def gauthier(model: ModelName, dataset: str) -> Config:
    """A CGAN with the settings of Gauthier (2015), which were found for faces of 32x32."""
    if model != "cgan":
        raise InputError(f"--preset=gauthier is a CGAN's; give --model=cgan, or another preset for --model={model}")
    return dataclasses.replace(paper(model, dataset), preset="gauthier", batch_size=128, optimizer="sgd",
                               learning_rate=0.004, warmup_steps=0, momentum=0.5, final_momentum=0.7, latent_size=100,
                               weight_variance=1.0, discriminator_dropout=0.5)


def projection(model: ModelName, dataset: str) -> Config:
    """A CGAN whose attributes are to arrive: its discriminator projects them on a face's features (Miyato and Koyama
    2018), is shown real faces with wrong ones (Reed et al. 2016), and sees all faces augmented (Zhao et al. 2020).
    Nobody has trained it yet.

    python train.py --model=cgan --dataset=lfw --data_dir=DIR --preset=projection
    """
    if model != "cgan":
        raise InputError(f"--preset=projection is a CGAN's; give --model=cgan, or another preset for --model={model}")
    return dataclasses.replace(paper(model, dataset), preset="projection", epochs=40, optimizer="adam",
                               learning_rate=5e-4, schedule="cosine", latent_size=100, mirror=True, average=0.998,
                               projection=True, wrong_attributes=0.5, augment=True)


PRESETS = {"default": default, "large": large, "paper": paper, "gauthier": gauthier, "projection": projection}


def _is_a(kind: Any, value: object) -> bool:
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    return isinstance(value, (int, float) if kind is float else kind)
