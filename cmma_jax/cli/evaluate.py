"""Evaluate finished runs: `python evaluate.py --parzen`. `--help` lists every flag."""

import dataclasses
import functools
import math
import os
import pathlib
import zlib
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from cmma_jax.cli import command_line
from cmma_jax.data.dataset import Dataset, Faces, spread, spread_rows
from cmma_jax.data.files import make_folder, read_lines
from cmma_jax.errors import InputError
from cmma_jax.evaluation import baselines, editing, embeddings, flows, table
from cmma_jax.evaluation.classifier import COMMAND, VISIBLE_AUC, Classifier, predict
from cmma_jax.evaluation.diversity import diversity, generated_faces
from cmma_jax.evaluation.parzen import Sampler, files, model_sampler, parzen
from cmma_jax.evaluation.tools import Tools, find_tools, look
from cmma_jax.models.architecture import check
from cmma_jax.models.distributions import row_keys
from cmma_jax.models.flow import STEPS
from cmma_jax.models.model import count_parameters
from cmma_jax.sampling import pictures
from cmma_jax.sampling.attributes import Attributes
from cmma_jax.sampling.face_model import FaceModel
from cmma_jax.sampling.faces import GUIDANCE
from cmma_jax.training import parallel
from cmma_jax.training.bounds import (
    bits,
    dequantised_bits,
    dequantised_pixels,
    importance_weighted,
    standard_error,
    variational_bound,
)
from cmma_jax.training.runs import Run, check_data, find_runs, load_data, load_run

HELP = """Compare finished runs on faces that they were not trained on.

  python evaluate.py                                 the bounds of the newest finished run of each model
  python evaluate.py --parzen                        the whole table: Parzen windows, baselines, the classifier
  python evaluate.py --editing                       edits and inferred attributes, of the newest CMMA and CVAE
  python evaluate.py --run=runs/cmma-lfw --split=validation --picture=faces.png

The table is printed and written as results-<dataset>-<split>.json and .md into --runs_dir. Likelihoods are nats a
face, pixels in [0, 1], constants kept (of discretised pixels log P + D ln 255), and unguided; bits/dim is that of the
bytes themselves where pixels are discretised, and of dequantised ones under a heading of its own where they are not.
+- is the standard error of the mean over faces, or, where a system was trained with several seeds, the standard
deviation over them. A flow's bound and a Parzen estimate take long and say how long; one that was interrupted goes on
where it stopped, with the same command."""

FLOW_FACES = 200  # of a flow's bound on a CPU, where a face of 64x64 takes about half a second
FLOW_BATCH = {"cpu": 10}  # faces of it at once, between two records of what is done
PACE_SAMPLES = 20  # of a flow, by which the time of its Parzen estimate is estimated beforehand
SIGMA_FACES = 50  # validation faces on which a Parzen window's sigma is chosen
PARZEN_SAMPLES = {"cpu": 1000}  # a GPU or TPU takes 10,000, the convention; 2 CPU cores would take hours for it


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What evaluate.py measures, and on what."""

    parzen: bool = False
    """Parzen-window estimates, the baselines, the classifier and what else looks at generated faces too."""
    intensities: tuple[float, ...] = (1.0,)
    """Of the edits: how often the difference that a label makes is applied."""
    editing: bool = False
    """Instead: do edits of faces show, do they keep the rest, and are attributes inferred rightly. Needs the
    classifier."""
    attributes: str = ""
    """Only edits of these attributes, with commas between; empty: of all that the classifier sees."""
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
    unconditional: bool = False
    """The bounds of p(x) too, no attribute known: the difference is what the attributes are worth."""
    bound_faces: int = 0
    """Faces on which a flow's bound is taken, spread over the split; 0: all of them on a GPU, 200 on a CPU."""
    steps: int = STEPS
    """Of a flow's solver, in likelihoods and random faces; their error is measured and printed."""
    guidance: float = 0.0
    """Scale of the guidance under which a CMMA's flow makes the faces that the classifier, the embedding and the
    detector look at; 1: none; 0: as shipped. No likelihood and no Parzen estimate is guided."""
    samples: int = 0
    """Parzen windows a face, N; 0: 1,000 on a CPU, 10,000 on a GPU."""
    iwae: int = 50
    """Samples of z a face in the importance-weighted bound, K, of models without a flow."""
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
    attributes; two random samples for them, guided as shipped; without a flow the face at the prior's mean, and one."""

    def __post_init__(self) -> None:
        for name, least in (("limit", 1), ("samples", 0), ("iwae", 1), ("batch_size", 1), ("seed", 0), ("steps", 1),
                            ("bound_faces", 0)):
            check(getattr(self, name) >= least, name, getattr(self, name), f"{least} or more")
        check(0 <= self.guidance < math.inf, "guidance", self.guidance,
              "a finite number above 0, 1 for none, or 0 for what is shipped")
        check(all(0 < each < math.inf for each in self.intensities), "intensities", self.intensities, "numbers above 0")


def evaluate(arguments: Arguments) -> None:
    """Measures every run that the arguments name, prints the table and writes it."""
    parallel.prepare()
    paths = [pathlib.Path(arguments.run)] if arguments.run else find_runs(
        arguments.runs_dir, arguments.model, arguments.dataset, arguments.unfinished)
    results_folder(arguments)  # before the minutes of work
    first = load_run(paths[0], arguments.unfinished)
    data = load_data(first, arguments.data_dir)
    faces = getattr(data, arguments.split)
    if arguments.editing:
        evaluate_editing([first if path == paths[0] else load_run(path, arguments.unfinished) for path in paths], data,
                         faces, arguments)
        return
    samples = arguments.samples or PARZEN_SAMPLES.get(jax.default_backend(), 10_000)
    tools = tools_of(arguments, data, faces) if arguments.parzen else Tools(None, None, False)
    print(f"{data.spec.dataset}, {arguments.split}, {faces.size:,} faces; K = {arguments.iwae}"
          + (f"; Parzen: N = {samples:,}, {min(arguments.limit, faces.size)} faces, sigma chosen on "
             f"{min(SIGMA_FACES, data.validation.size)} validation faces" if arguments.parzen else ""), flush=True)
    results: dict[str, list[table.Figures]] = {}
    notes: dict[str, str] = {}
    for path in paths:
        run = first if path == paths[0] else load_run(path, arguments.unfinished)
        check_data(run, data)
        print(f"{run.system}: {path}, seed {run.config.seed}, step {run.step}, {run.epoch} epochs", flush=True)
        results.setdefault(run.system, []).append(measure(run, data, faces, arguments, samples, tools, notes))
        if arguments.picture and len(paths) == 1:
            pictures.save_picture(pictures.progress(run.model, run.params, faces), pathlib.Path(arguments.picture))
    rows = {system: table.over_seeds(several) for system, several in results.items()}
    if arguments.parzen:
        rows |= measure_baselines(data, faces, arguments, samples)
        rows["real faces"] = {"diversity": (1.0, None)} | look(faces.x / np.float32(255), faces, tools, real=True)
    heading = (f"{data.spec.dataset}, {arguments.split}, {faces.size:,} faces; likelihoods in nats a face, pixels in "
               "[0, 1], log P + D ln 255 where they are discretised, unguided; "
               f"importance-weighted with K = {arguments.iwae}"
               + (f"; Parzen with N = {samples:,} on {min(arguments.limit, faces.size)} faces" if arguments.parzen
                  else ""))
    if notes:
        notes[""] = ("No importance-weighted bound of a flow: the noise of its estimated density would be a bias "
                     "inside the logarithm.")
    write(rows, "\n\n".join([heading, *notes.values()]), "results", data, arguments)


def write(rows: dict[str, table.Figures], heading: str, name: str, data: Dataset, arguments: Arguments) -> None:
    """Prints a table and writes it."""
    print("\n" + table.to_markdown(rows))
    stem = results_folder(arguments) / f"{name}-{data.spec.dataset.replace('/', '-')}-{arguments.split}"
    print("written to " + ", ".join(str(path) for path in table.write(rows, stem, heading)))


def results_folder(arguments: Arguments) -> pathlib.Path:
    """Returns where the table goes: one run's own folder, or, of several, of a file, or of a run that cannot be written
    to, --runs_dir; raises InputError if nothing can be written there.
    """
    if arguments.run and os.access(arguments.run, os.W_OK) and os.path.isdir(arguments.run):
        return pathlib.Path(arguments.run)
    folder = pathlib.Path(arguments.runs_dir)
    make_folder(folder, "the table's folder", "runs_dir")
    return folder


def evaluate_editing(runs: list[Run], data: Dataset, faces: Faces, arguments: Arguments) -> None:
    """Measures edits by the first seed of each model that looks at faces and attributes, and attributes as inferred."""
    named = bool(arguments.run or arguments.model)  # a VAE's edits change nothing, and are measured when it is named
    first = {run.system: run for run in reversed(runs)
             if run.model.posterior and (named or run.config.model != "vae")}
    if not first:
        raise InputError("edits need a CMMA or a CVAE; train one: python -m cmma_jax train --model=cmma")
    tools = tools_of(arguments, data, faces)
    if tools.classifier is None:
        raise InputError("edits are measured by a classifier; make one: "
                         f"{COMMAND} --dataset={data.spec.dataset}")
    columns = edited_columns(arguments.attributes, data, tools.classifier)
    few = spread(faces, arguments.limit)
    identity: tuple[editing.Embed, np.ndarray, float] | tuple[()] = ()
    rows: dict[str, table.Figures] = {}
    inferred: dict[str, table.Figures] = {}
    pairs: dict[str, table.Figures] = {}
    if tools.embedded is not None:
        threshold = float("nan")
        if arguments.split == "test" and data.test_people:
            pairs, threshold = editing.real_pairs(tools.embedded, data.test_people)
        identity = (embeddings.embed_dlib, tools.embedded[spread_rows(faces.size, arguments.limit)], threshold)
    for system, run in reversed(first.items()):
        check_data(run, data)
        model = FaceModel(run)
        ways = [(intensity, False) for intensity in arguments.intensities]
        if run.model.velocity is None:  # the paper's step 2 is one of a Gaussian prior
            ways.append((1.0, True))
        for intensity, literal in ways:
            name = f"{system}, {'literal, ' if literal else ''}intensity {intensity:g}"
            rows[name] = editing.measure_edits(model, tools.classifier, few, columns, intensity, literal, *identity)
        if run.model.attributes:
            infer = functools.partial(editing.inferred, model)
            inferred[f"{system}, q(y|z)"] = editing.measure_inferred(infer, tools.classifier.visible, data)
    if inferred:
        infer = functools.partial(predict, tools.classifier)
        inferred["the classifier"] = editing.measure_inferred(infer, tools.classifier.visible, data)
    write(rows | pairs, f"edits of {few.size} faces of {data.spec.dataset}, {arguments.split}; {len(columns)} "
          "attributes, one after another, details kept", "editing", data, arguments)
    if inferred:
        write(inferred, f"attributes inferred from {data.test.size:,} test faces of {data.spec.dataset}, mean of those "
              "that the classifier sees", "inference", data, arguments)


def edited_columns(names: str, data: Dataset, classifier: Classifier) -> np.ndarray:
    """Returns the numbers of the attributes to be edited: those named, with commas between, or all visible ones."""
    if not names:
        return np.flatnonzero(classifier.visible)
    columns = np.asarray([Attributes(data.spec).find(name.strip()) for name in names.split(",")])
    for column in columns:
        if not classifier.visible[column]:
            raise InputError(f"--attributes={names}: the classifier does not see {data.spec.attributes[column]} (AUC "
                             f"{classifier.auc[column]:.2f}, below {VISIBLE_AUC}), nor so whether an edit shows; leave "
                             "it out")
    return columns


def measure(run: Run, data: Dataset, faces: Faces, arguments: Arguments, samples: int,
            tools: Tools, notes: dict[str, str]) -> table.Figures:
    """Returns a run's figures: {name: (value, error)}; adds to notes what is to be said of a flow's."""
    found: table.Figures = {"parameters": (count_parameters(run.params), None)}
    scale, steps = arguments.guidance or GUIDANCE, arguments.steps
    guidance = scale if run.model.guided and scale != 1 else None
    if run.model.velocity:
        few = bound_faces(faces, arguments)
        pixels, nats = flows.solver_error(run.model, run.params, faces, steps, arguments.seed)
        how = f"at guidance {guidance:g}" if guidance else "unguided"
        notes[run.system] = (f"{run.system}: p(z|y) is a flow of {steps} solver steps, which differ from "
                             f"{flows.TIMES_STEPS * steps} by {pixels:.2g} of a pixel's range and {nats:.2g} nats of "
                             f"log p(z|y), the means over {min(flows.FACES, faces.size)} faces; its bound on "
                             f"{few.size:,} of the {faces.size:,} faces, the trace estimated without bias"
                             + (f"; random faces {how}." if arguments.parzen else "."))
        print(notes[run.system], flush=True)
        found |= {"solver_pixels": (pixels, None), "solver_nats": (nats, None), "steps": (steps, None),
                  "bound_faces": (few.size, None)}
    if run.model.posterior:
        found |= measure_bound(run, faces, arguments)
        if arguments.unconditional:
            unknown = measure_bound(run, faces._replace(mask=np.zeros_like(faces.mask)), arguments, "-unconditional")
            found |= {f"{name}_unconditional": figure for name, figure in unknown.items()
                      if name.startswith(("bound", "bits"))}
    if not arguments.parzen:
        return found
    few = spread(faces, arguments.limit)
    made = generated_faces(run.model, run.params, faces, arguments.seed, guidance=guidance, steps=steps)
    found |= {"diversity": (diversity(made, faces.x / np.float32(255)), None)}
    sampler = model_sampler(run.model, run.params, run.config.model != "vae", steps)
    found |= measure_parzen(sampler, data, few, arguments, samples, run)
    return found | look(made, faces, tools)


def bound_faces(faces: Faces, arguments: Arguments) -> Faces:
    """Returns the faces on which a flow's bound is taken."""
    count = arguments.bound_faces or (FLOW_FACES if jax.default_backend() == "cpu" else faces.size)
    return faces if count >= faces.size else spread(faces, count)


def measure_bound(run: Run, faces: Faces, arguments: Arguments, given: str = "") -> table.Figures:
    """Returns a run's bound and its parts; a flow's is kept beside it, face by face, for a second call to go on.

    given: added to the name under which it is kept, where not all attributes are.
    """
    model, params, seed = run.model, run.params, arguments.seed
    how: dict[str, Any]
    if model.velocity:
        faces = bound_faces(faces, arguments)
        size = min(FLOW_BATCH.get(jax.default_backend(), 100), faces.size)
        save = record(run, arguments, f"steps{arguments.steps}-faces{faces.size}-batch{size}{given}")
        save, smooth = (save and save.with_name(f"{kind}-{save.name}.jsonl") for kind in ("bound", "dequantised"))
        todo = sum(faces.size - len(read_lines(path)) for path in ([save] if model.discrete else [save, smooth]))
        if todo:
            batch = spread(faces, size)
            took = flows.seconds(lambda: variational_bound(model, params, batch, seed, size, steps=arguments.steps))
            print(f"{run.system}: its bound takes about {flows.in_words(todo / size * took)} (--bound_faces=N)",
                  flush=True)
        how = {"batch_size": size, "steps": arguments.steps, "save": save, "progress": f"{run.system}, bound"}
    else:
        how, smooth = {}, None
    exact = variational_bound(model, params, faces, seed, **how)
    found: table.Figures = {"bound": (exact["bound"], exact["bound_stderr"]),
                            "reconstruction": (exact["reconstruction"], None), "kl": (exact["kl"], None)}
    if model.discrete:
        found["bits_per_dim"] = (exact["bits_per_dim"], exact["bits_per_dim_stderr"])
    else:
        found["bits_per_dim_dequantised"] = dequantised_bits(model, params, faces, seed, **how | {"save": smooth})
    if not model.velocity:
        weighted = importance_weighted(model, params, faces, arguments.iwae, seed)
        found["iwae"] = (weighted["iwae"], weighted["iwae_stderr"])
    return found


def record(run: Run, arguments: Arguments, what: str) -> pathlib.Path | None:
    """Returns where a figure of a run is kept as far as it is done: beside it, named for what it depends on, among it
    the weights' checksum, for a run may be trained again in its folder; None: there is no folder, or a read-only one.
    """
    if not (run.path.is_dir() and os.access(run.path, os.W_OK)):
        return None
    checksum = 0
    for leaf in jax.tree.leaves(run.params):
        checksum = zlib.crc32(np.asarray(leaf).tobytes(), checksum)
    folder = run.path / "evaluation"
    folder.mkdir(exist_ok=True)
    return folder / f"{what}-{arguments.split}-seed{arguments.seed}-weights{checksum:08x}"


def measure_parzen(sampler: Sampler, data: Dataset, few: Faces, arguments: Arguments, samples: int,
                   run: Run | None = None, name: str = "") -> table.Figures:
    """Returns a Parzen figure; a run's is kept beside it, face by face, so that a second call goes on."""
    chosen = spread(data.validation, SIGMA_FACES)
    save = record(run, arguments, f"parzen-steps{arguments.steps}-N{samples}-faces{few.size}") if run else None
    if run and run.model.velocity:
        keys, count = row_keys(0, np.arange(PACE_SAMPLES)), chosen.size + few.size
        y, mask = (np.repeat(a[:1], PACE_SAMPLES, 0) for a in few[1:])
        sets = count - sum(len(read_lines(path)) for path in files(save)) if sampler.conditional else 2
        sample = jax.jit(sampler.sample)
        took = flows.seconds(lambda: sample(sampler.params, keys, y, mask)) / PACE_SAMPLES
        print(f"{run.system}: its Parzen estimate takes about {flows.in_words(sets * samples * took)} (--samples=N, "
              "--limit=N)", flush=True)
    found = parzen(sampler, chosen, few, samples, arguments.seed, arguments.batch_size, save,
                   run.system if run else name)
    return {"parzen": (found["parzen"], found["parzen_stderr"]), "parzen_sigma": (found["parzen_sigma"], None),
            "parzen_samples": (samples, None), "parzen_faces": (few.size, None)}


def measure_baselines(data: Dataset, faces: Faces, arguments: Arguments, samples: int) -> dict[str, table.Figures]:
    """Returns the figures of models that need no training: their exact log-likelihoods, and Parzen figures."""
    print("baselines: mean face, linear regression, conditional PPCA", flush=True)
    few, rows = spread(faces, arguments.limit), {}
    keys = row_keys(arguments.seed, np.arange(faces.size))
    dequantised = faces._replace(x=255 * np.asarray(dequantised_pixels(keys, jnp.asarray(faces.x))))
    for baseline in baselines.fit_baselines(data):
        values, smooth = baseline.log_likelihood(faces), baseline.log_likelihood(dequantised)
        dimensions = math.prod(data.spec.image_shape)
        rows[baseline.name] = {"parameters": (baseline.parameters, None),
                               "exact": (float(values.mean()), standard_error(values)),
                               "bits_per_dim_dequantised": (bits(float(smooth.mean()), dimensions, 256),
                                                            standard_error(smooth) / (dimensions * math.log(2)))}
        if baseline.sample:
            rows[baseline.name] |= measure_parzen(Sampler(baseline.sample, baseline.params), data, few, arguments,
                                                  samples, name=baseline.name)
    return rows


def tools_of(arguments: Arguments, data: Dataset, faces: Faces) -> Tools:
    """Returns the tools that there are, with the classifier that was asked for, or the one beside the runs."""
    place = pathlib.Path(arguments.runs_dir) / f"classifier-{data.spec.dataset.replace('/', '-')}"
    return find_tools(arguments.classifier or place, bool(arguments.classifier), data.spec, faces, print)


def parse(argv: list[str], program: str = "evaluate.py") -> Arguments:
    """Returns the arguments of a command line; raises InputError, one line, for what is wrong with them."""
    return command_line.parse(Arguments, argv, program, HELP)


def main(argv: list[str], program: str = "evaluate.py") -> int:
    """Runs the command line; returns its exit code: 2 for bad input, 130 for an interrupt."""
    return command_line.run(program, lambda: evaluate(parse(argv, program)),
                            "the same command goes on where it stopped")
