"""Evaluate finished runs: `python evaluate.py --parzen`. `--help` lists every flag."""

import dataclasses
import functools
import math
import pathlib
from typing import Literal, NamedTuple

import jax
import numpy as np

from cmma_jax.cli import command_line
from cmma_jax.data.dataset import Dataset, Faces, spread, spread_rows
from cmma_jax.data.files import make_folder
from cmma_jax.errors import InputError
from cmma_jax.evaluation import baselines, detection, editing, embeddings, table
from cmma_jax.evaluation.classifier import (
    COMMAND,
    VISIBLE_AUC,
    Classifier,
    classifier_path,
    load_classifier,
    predict,
    scores,
)
from cmma_jax.evaluation.diversity import diversity, generated_faces
from cmma_jax.evaluation.parzen import Sampler, model_sampler, parzen
from cmma_jax.models.model import count_parameters
from cmma_jax.sampling import pictures
from cmma_jax.sampling.face_model import FaceModel
from cmma_jax.training import parallel
from cmma_jax.training.bounds import bits_per_dimension, dequantised_pixels, importance_weighted, variational_bound
from cmma_jax.training.runs import Run, check_data, find_runs, load_data, load_run

HELP = """Compare finished runs on faces that they were not trained on.

  python evaluate.py                                 the bounds of the newest finished run of each model
  python evaluate.py --parzen                        the whole table: Parzen windows, baselines, the classifier
  python evaluate.py --editing                       edits and told attributes, of the newest CMMA and CVAE
  python evaluate.py --run=runs/cmma-lfw --split=validation --picture=faces.png

The table is printed and written as results-<dataset>-<split>.json, .csv and .md into --runs_dir. All figures are
nats a face, pixels in [0, 1], constants kept; +- is the standard error of the mean over faces, or, where a system
was trained with several seeds, the standard deviation over them. A Parzen estimate that was interrupted goes on
where it stopped, with the same command."""

SIGMA_FACES = 50  # validation faces on which a Parzen window's sigma is chosen
PARZEN_SAMPLES = {"cpu": 1000}  # a GPU or TPU takes 10,000, the convention; 2 CPU cores would take hours for it


class Tools(NamedTuple):
    """What looks at generated faces, where it is there.

    Attributes:
      classifier: an attribute classifier.
      embedded: [N, 128] embeddings of the real faces; faces generated for one half are compared with the other.
      detector: whether a face detector is installed.
    """

    classifier: Classifier | None
    embedded: np.ndarray | None
    detector: bool


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What evaluate.py measures, and on what."""

    parzen: bool = False
    """Parzen-window estimates, the baselines, the classifier and what else looks at generated faces too."""
    intensities: tuple[float, ...] = editing.INTENSITIES
    """Of the edits: how often the difference that a label makes is applied."""
    editing: bool = False
    """Instead: do edits of faces show, do they keep the rest, and are attributes told rightly. Needs the classifier."""
    run: str = ""
    """One run's folder, a compact file, or the name of a model that comes with the package; empty: the newest finished
    run of each model, with its other seeds."""
    runs_dir: str = "runs"
    """Where runs are looked for, and where the table is written."""
    model: str = ""
    """Only this model: cmma, cvae, vae or cgan."""
    dataset: str = ""
    """Only runs on this data set; empty: that of the newest run."""
    data_dir: str = ""
    """Folder of the data set's files; empty: where the run found them."""
    split: Literal["train", "validation", "test"] = "test"
    """Which faces. Choose on validation, report on test."""
    limit: int = 100
    """Faces whose Parzen figure is taken, or that are edited, spread over the split; the bounds take all of it."""
    samples: int = 0
    """Parzen windows a face, N; 0: 1,000 on a CPU, 10,000 on a GPU."""
    iwae: int = 50
    """Samples of z a face in the importance-weighted bound, K."""
    classifier: str = ""
    """The attribute classifier's file; empty: <runs_dir>/classifier-<dataset>/classifier.msgpack if it is there."""
    unfinished: bool = False
    """Take runs whose training has not come to its end."""
    batch_size: int = 200
    """Samples decoded at once in a Parzen estimate."""
    seed: int = 0
    """Of every sample drawn here."""
    picture: str = ""
    """With one run: also write a PNG of faces of the split: originals; reconstructions with and without their
    attributes; faces at the prior's mean for the attributes; random samples for them."""

    def __post_init__(self) -> None:
        for name, least in (("limit", 1), ("samples", 0), ("iwae", 1), ("batch_size", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise InputError(f"--{name}={getattr(self, name)} is out of range; give {least} or more")
        if not all(0 < intensity < math.inf for intensity in self.intensities):
            raise InputError(f"--intensities={self.intensities} are out of range; give numbers above 0")


def evaluate(arguments: Arguments) -> None:
    """Measures every run that the arguments name, prints the table and writes it."""
    parallel.enable_compilation_cache()
    paths = [pathlib.Path(arguments.run)] if arguments.run else find_runs(
        arguments.runs_dir, arguments.model, arguments.dataset, arguments.unfinished)
    first = load_run(paths[0], arguments.unfinished)
    data = load_data(first, arguments.data_dir)
    faces = getattr(data, arguments.split)
    if arguments.editing:
        evaluate_editing([first if path == paths[0] else load_run(path, arguments.unfinished) for path in paths], data,
                         faces, arguments)
        return
    samples = arguments.samples or PARZEN_SAMPLES.get(jax.default_backend(), 10_000)
    tools = find_tools(arguments, data, faces)
    print(f"{data.spec.dataset}, {arguments.split}, {faces.size:,} faces; K = {arguments.iwae}"
          + (f"; Parzen: N = {samples:,}, {min(arguments.limit, faces.size)} faces, sigma chosen on "
             f"{min(SIGMA_FACES, data.validation.size)} validation faces" if arguments.parzen else ""), flush=True)
    results: dict[str, list[table.Figures]] = {}
    for path in paths:
        run = first if path == paths[0] else load_run(path, arguments.unfinished)
        check_data(run, data)
        print(f"{run.system}: {path}, seed {run.config.seed}, step {run.step}, {run.epoch} epochs", flush=True)
        results.setdefault(run.system, []).append(measure(run, data, faces, arguments, samples, tools))
        if arguments.picture and len(paths) == 1:
            pictures.save_picture(pictures.progress(run.model, run.params, faces), pathlib.Path(arguments.picture))
    rows = {system: table.over_seeds(several) for system, several in results.items()}
    if arguments.parzen:
        rows |= measure_baselines(data, faces, arguments, samples)
        rows["real faces"] = {"diversity": (1.0, None)} | look(faces.x / np.float32(255), faces, tools, real=True)
    heading = (f"{data.spec.dataset}, {arguments.split}, {faces.size:,} faces; nats a face, pixels in [0, 1]; "
               f"importance-weighted with K = {arguments.iwae}"
               + (f"; Parzen with N = {samples:,} on {min(arguments.limit, faces.size)} faces" if arguments.parzen
                  else ""))
    write(rows, heading, "results", data, arguments)


def write(rows: dict[str, table.Figures], heading: str, name: str, data: Dataset, arguments: Arguments) -> None:
    """Prints a table and writes it."""
    print("\n" + table.to_markdown(rows))
    folder = pathlib.Path(arguments.run)
    if not (arguments.run and folder.is_dir()):  # several runs, or a model without a folder
        folder = pathlib.Path(arguments.runs_dir)
        make_folder(folder, "the table's folder", "runs_dir")
    stem = folder / f"{name}-{data.spec.dataset.replace('/', '-')}-{arguments.split}"
    print("written to " + ", ".join(str(path) for path in table.write(rows, stem, heading)))


def evaluate_editing(runs: list[Run], data: Dataset, faces: Faces, arguments: Arguments) -> None:
    """Measures edits by the first seed of each model that looks at faces and attributes, and attributes as told."""
    first = {run.system: run for run in reversed(runs) if run.config.model in ("cmma", "cvae")
             and (arguments.run or affordable(run, "edits (--run=DIR takes them all the same)"))}
    if not first:
        raise InputError("edits need a CMMA or a CVAE; train one: python -m cmma_jax train --model=cmma")
    tools = find_tools(arguments, data, faces)
    if tools.classifier is None:
        raise InputError("edits are measured by a classifier; make one: "
                         f"{COMMAND} --dataset={data.spec.dataset}")
    few = spread(faces, arguments.limit)
    identity: tuple[editing.Embed, np.ndarray, float] | tuple[()] = ()
    rows: dict[str, table.Figures] = {}
    told: dict[str, table.Figures] = {}
    pairs: dict[str, table.Figures] = {}
    if tools.embedded is not None:
        threshold = float("nan")
        if arguments.split == "test" and data.test_people:
            pairs, threshold = editing.real_pairs(tools.embedded, data.test_people)
        identity = (embeddings.embed_dlib, tools.embedded[spread_rows(faces.size, arguments.limit)], threshold)
    for system, run in reversed(first.items()):
        check_data(run, data)
        model = FaceModel(run)
        for intensity, literal in [(intensity, False) for intensity in arguments.intensities] + [(1.0, True)]:
            name = f"{system}, {'literal, ' if literal else ''}intensity {intensity:g}"
            rows[name] = editing.measure_edits(model, tools.classifier, few, intensity, literal, *identity)
        if run.model.attributes:
            for steps, more in ((0, ""), (3, ", 3 steps")):
                tell = functools.partial(editing.told, model, steps=steps)
                told[f"{system}, q(y|z){more}"] = editing.measure_told(tell, tools.classifier.visible, data)
    if told:
        tell = functools.partial(predict, tools.classifier)
        told["the classifier"] = editing.measure_told(tell, tools.classifier.visible, data)
    rows |= editing.at_equal(rows, "identity" if identity else "moved") | pairs
    write(rows, f"edits of {few.size} faces of {data.spec.dataset}, {arguments.split}; "
          f"{tools.classifier.visible.sum()} attributes, one after another, details kept", "editing", data, arguments)
    if told:
        write(told, f"attributes told from {data.test.size:,} test faces of {data.spec.dataset}, mean of those that "
              "the classifier sees", "inference", data, arguments)


def measure(run: Run, data: Dataset, faces: Faces, arguments: Arguments, samples: int,
            tools: Tools) -> table.Figures:
    """Returns a run's figures: {name: (value, error)}."""
    found: table.Figures = {"parameters": (count_parameters(run.params), None)}
    if run.model.posterior:
        exact = variational_bound(run.model, run.params, faces, arguments.seed)
        smooth = variational_bound(run.model, run.params, faces, arguments.seed, as_pixels=dequantised_pixels)
        scale = bits_per_dimension(0.0, 1) - bits_per_dimension(1.0, 1)  # bits a nat
        found |= {"bound": (exact["bound"], exact["bound_stderr"]),
                  "reconstruction": (exact["reconstruction"], None), "kl": (exact["kl"], None),
                  "bits_per_dim": (bits_per_dimension(smooth["bound"], data.spec.dimensions),
                                   scale * smooth["bound_stderr"] / data.spec.dimensions),
                  "active_latents": (exact["active_latents"], None)}
        if affordable(run, "the importance-weighted bound"):
            weighted = importance_weighted(run.model, run.params, faces, arguments.iwae, arguments.seed)
            found |= {"iwae": (weighted["iwae"], weighted["iwae_stderr"])}
    if not arguments.parzen:
        return found
    few = spread(faces, arguments.limit)
    made, real = generated_faces(run.model, run.params, faces, arguments.seed), faces.x / np.float32(255)
    found |= {"diversity": (diversity(made, real), None)}
    if arguments.samples or affordable(run, "the Parzen estimate (--samples=N takes it all the same)"):
        sampler = model_sampler(run.model, run.params, conditional=run.config.model != "vae")
        found |= measure_parzen(sampler, data, few, arguments, samples, run)
    return found | look(made, faces, tools)


def affordable(run: Run, what: str) -> bool:
    """Returns whether a figure that needs many passes through the prior is had in minutes; says so if not."""
    if run.model.velocity is None or jax.default_backend() != "cpu":
        return True
    print(f"left out: {what} of a flow prior, which takes hours on a CPU")
    return False


def measure_parzen(sampler: Sampler, data: Dataset, few: Faces, arguments: Arguments, samples: int,
                   run: Run | None = None, name: str = "") -> table.Figures:
    """Returns a Parzen figure; a run's is kept beside it, face by face, so that a second call goes on."""
    save = None
    if run and run.path.is_dir():
        save = run.path / "evaluation" / (f"parzen-{arguments.split}-step{run.step}-N{samples}-faces{few.size}"
                                          f"-seed{arguments.seed}")
        save.parent.mkdir(exist_ok=True)
    found = parzen(sampler, spread(data.validation, SIGMA_FACES), few, samples, arguments.seed, arguments.batch_size,
                   save, run.system if run else name)
    return {"parzen": (found["parzen"], found["parzen_stderr"]), "parzen_sigma": (found["parzen_sigma"], None),
            "parzen_samples": (samples, None), "parzen_faces": (few.size, None)}


def measure_baselines(data: Dataset, faces: Faces, arguments: Arguments, samples: int) -> dict[str, table.Figures]:
    """Returns the figures of models that need no training: their exact log-likelihoods, and Parzen figures."""
    print("baselines: mean face, linear regression, conditional PPCA", flush=True)
    few, rows = spread(faces, arguments.limit), {}
    for baseline in baselines.fit_baselines(data):
        values = baseline.log_likelihood(faces)
        rows[baseline.name] = {"parameters": (baseline.parameters, None),
                               "exact": (float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5))}
        if baseline.sample:
            rows[baseline.name] |= measure_parzen(Sampler(baseline.sample, baseline.params), data, few, arguments,
                                                  samples, name=baseline.name)
    return rows


def find_tools(arguments: Arguments, data: Dataset, faces: Faces) -> Tools:
    """Returns the tools that there are; says how to get those that there are not."""
    if not (arguments.parzen or arguments.editing):
        return Tools(None, None, False)
    path = classifier_path(arguments.classifier or pathlib.Path(arguments.runs_dir)
                           / f"classifier-{data.spec.dataset.replace('/', '-')}")
    classifier = None
    if arguments.classifier or path.exists():
        classifier = load_classifier(path, data.spec)
        names = [name for name, seen in zip(classifier.attributes, classifier.visible, strict=True) if seen]
        print(f"classified by {len(names)} attributes, with an AUC of {VISIBLE_AUC} or more on real faces: "
              + ", ".join(names))
    elif data.spec.kind == "binary":
        print(f"no classifier in {path}; make one: {COMMAND} --dataset={data.spec.dataset} --data_dir=DIR")
    embedded = _unless_missing(embeddings.embed_dlib, faces.x / np.float32(255))
    return Tools(classifier, embedded, _unless_missing(detection.detected, faces.x[:1] / np.float32(255)) is not None)


def _unless_missing(function, x: np.ndarray) -> np.ndarray | None:
    """Returns function(x), or None and a word why where what it needs is not installed."""
    try:
        return function(x)
    except InputError as error:
        print(f"left out: {error}")
        return None


def look(x: np.ndarray, faces: Faces, tools: Tools, real: bool = False) -> table.Figures:
    """Returns what the tools say of faces x made for the attributes of a set, or of that set itself."""
    found: table.Figures = {}
    if tools.classifier:
        said = scores(tools.classifier, x, faces.y, faces.mask)
        found |= {name: (said[name], said[f"{name}_stderr"]) for name in ("accuracy", "cosine")}
        found |= {f"accuracy {name}": (value, None) for name, value in said["per_attribute"].items()}
    if tools.embedded is not None:
        # Halves for all: a Frechet distance falls with the number of faces, and the floor is that of two halves.
        if real:
            found |= {"fd_dlib": embeddings.fd_floor(tools.embedded, 0), "identities": (1.0, None)}
        else:
            embedded = embeddings.embed_dlib(x[::2])
            found |= {"fd_dlib": (embeddings.frechet_distance(embedded, tools.embedded[1::2]), None),
                      "identities": (embeddings.identity_diversity(embedded, tools.embedded[::2]), None)}
    if tools.detector:
        accepted = detection.detected(x)
        found["detected"] = (float(accepted.mean()), float(accepted.std() / len(x) ** 0.5))
    return found


def parse(argv: list[str], program: str = "evaluate.py") -> Arguments:
    """Returns the arguments of a command line; raises InputError, one line, for what is wrong with them."""
    return command_line.parse(Arguments, argv, program, HELP)


def main(argv: list[str], program: str = "evaluate.py") -> int:
    """Runs the command line; returns its exit code: 2 for bad input, 130 for an interrupt."""
    return command_line.run(program, lambda: evaluate(parse(argv, program)),
                            "the same command goes on where it stopped")
