"""An attribute classifier of faces, trained on real ones alone.

It predicts whether a face shows the attributes that were asked for. Its figures on real test faces are the ceiling
of those on generated ones: what it gets wrong there is the labels' or its own fault.
"""

import dataclasses
import functools
import json
import math
import pathlib
import shlex
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import serialization
from tqdm import tqdm

from cmma_jax.data.dataset import Dataset
from cmma_jax.data.files import write_whole
from cmma_jax.errors import InputError
from cmma_jax.evaluation.classification import aucs, best_threshold, mean_known
from cmma_jax.models.architecture import check
from cmma_jax.models.distributions import Bernoulli, split_each
from cmma_jax.models.networks import HE_NORMAL, STAGES
from cmma_jax.models.spec import Spec
from cmma_jax.sampling.faces import in_batches
from cmma_jax.training import parallel
from cmma_jax.training.config import Config
from cmma_jax.training.step import begin, fit, make_optimizer, make_step

FILE = "classifier.msgpack"
COMMAND = "python -m cmma_jax classifier"
VISIBLE_AUC = 0.75  # below it the classifier, or the label, says too little of a face to count
STEPS_PER_CALL = 10  # so that the bar moves on a CPU, where a step takes a good part of a second


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a classifier is trained; every field is a flag of the command line."""

    dataset: str = "synthetic"
    """synthetic (embedded), lfw, folder, or tfds/NAME; its attributes must be binary."""
    data_dir: str = "data"
    """Folder of the data set's files; synthetic needs none."""
    image_size: int = 64
    """Height and width of the faces, a multiple of 16; synthetic and lfw have 64."""
    out: str = ""
    """Folder of the classifier; empty: runs/classifier-<dataset>."""
    epochs: int = 14
    """Passes over the training faces; the best by validation AUC is kept."""
    batch_size: int = 100
    """Faces a step."""
    learning_rate: float = 2e-3
    """Of Adam, the highest; a cosine leads it down to 0."""
    width: int = 32
    """Channels of the first convolution; each of the four stages doubles them."""
    hidden: int = 512
    """Units of the dense layer."""
    dropout: float = 0.5
    """Fraction of those units left out for each face and step."""
    seed: int = 0
    """Of the parameters, the order of the faces, and the noise."""

    def __post_init__(self) -> None:
        for name in ("image_size", "epochs", "batch_size", "learning_rate", "width", "hidden"):
            check(getattr(self, name) > 0, name, getattr(self, name), "a number above 0")
        check(0 <= self.dropout < 1, "dropout", self.dropout, "from 0 to below 1")

    def out_path(self) -> pathlib.Path:
        """Returns `out`, or where the classifier lies if it was not given."""
        return pathlib.Path(self.out or f"runs/classifier-{self.dataset.replace('/', '-')}")


class Classifier(NamedTuple):
    """A trained classifier of A attributes with what it is good for."""

    attributes: tuple[str, ...]
    params: dict  # of `ClassifierNetwork`
    thresholds: np.ndarray  # [A], an attribute counts as present where its probability is above
    auc: np.ndarray  # [A], area under the ROC curve on the validation faces; NaN where they have one class alone
    visible: np.ndarray  # [A] bool, where that area is at least `VISIBLE_AUC`
    dataset: str  # its name


class ClassifierNetwork(nn.Module):
    """Attribute logits of faces: four strided convolutions and a dense layer with dropout."""

    attributes: int
    width: int
    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array, keep: jax.Array) -> jax.Array:
        """x: [B, H, W, 3] in [0, 1]; keep: [B, hidden], factors on the dense layer's units -> [B, A]."""
        features = 4 * x - 2  # about centred, deviation about 1
        for stage in range(STAGES):
            features = nn.relu(nn.Conv(self.width * 2**stage, (4, 4), (2, 2), kernel_init=HE_NORMAL,
                                       name=f"conv{stage}")(features))
        features = nn.relu(nn.Dense(self.hidden, name="dense")(features.reshape(len(x), -1)))
        return nn.Dense(self.attributes, name="logits")(features * keep)


def network_of(params: dict) -> ClassifierNetwork:
    """Returns the network whose parameters these are."""
    return ClassifierNetwork(len(params["logits"]["bias"]), len(params["conv0"]["bias"]), len(params["dense"]["bias"]))


def shift(keys: jax.Array, x: jax.Array) -> jax.Array:
    """Moves each face by up to H/16 pixels each way, its border repeated; keys: [B], x: [B, H, W, 3]."""
    most = x.shape[1] // 16
    padded = jnp.pad(x, ((0, 0), (most, most), (most, most), (0, 0)), mode="edge")
    corners = jax.vmap(lambda key: jax.random.randint(key, (2,), 0, 2 * most + 1))(keys)
    return jax.vmap(lambda face, at: jax.lax.dynamic_slice(face, (at[0], at[1], 0), x.shape[1:]))(padded, corners)


def make_classifier_loss(network: ClassifierNetwork, dropout: float) -> Callable:
    """Returns the loss of `make_step`: binary cross-entropy, in nats an attribute, unknown ones counted as 0."""

    def loss(params, keys, x, y, mask):
        shift_keys, drop_keys = split_each(keys, 2)
        kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - dropout, (network.hidden,)))(drop_keys)
        logits = network.apply({"params": params}, shift(shift_keys, x), kept / (1 - dropout))
        return -jnp.where(mask, Bernoulli(logits).log_prob(y), 0).mean(-1), {}

    return loss


def train_classifier(data: Dataset, settings: Settings) -> Classifier:
    """Trains on the training faces; epoch and thresholds are chosen on the validation faces. Shows a bar.

    Raises:
      InputError: no attribute is binary, there are too few faces, or no attribute turned out visible.
    """
    if data.spec.kind == "real":
        raise InputError(f"a classifier needs binary attributes; those of data set {data.spec.dataset!r} are "
                         "real-valued")
    train, validation = (part._replace(mask=np.asarray(part.mask) & data.spec.binary[None])  # of those it learns
                         for part in (data.train, data.validation))
    data = dataclasses.replace(data, train=train, validation=validation)
    if data.train.size < settings.batch_size:
        raise InputError(f"{data.train.size} training faces are fewer than --batch_size={settings.batch_size}; "
                         f"give --batch_size={max(1, data.train.size // 2)}")
    network = ClassifierNetwork(len(data.spec.attributes), settings.width, settings.hidden)
    steps = data.train.size // settings.batch_size
    optimizer, _ = make_optimizer(Config(learning_rate=settings.learning_rate, epochs=settings.epochs), steps)
    params = _init(network, data.spec, settings.seed)
    placement = parallel.place(1, "pmap", settings.batch_size)
    loss = make_classifier_loss(network, settings.dropout)
    step = make_step(loss, optimizer, settings.seed, settings.batch_size, True, placement)
    x, y, mask = data.validation.x / np.float32(255), data.validation.y, data.validation.mask
    best, best_auc, validated = params, -math.inf, ""
    with tqdm(total=steps * settings.batch_size * settings.epochs, unit=" faces", dynamic_ncols=True) as bar:
        for now, means in fit(step, begin(params, optimizer), data.train, placement, settings.seed,
                              settings.batch_size, settings.epochs, STEPS_PER_CALL):
            bar.set_postfix_str(f"loss {means['loss'].mean():.4f}{validated}", refresh=False)
            bar.update(len(means["loss"]) * settings.batch_size)
            if int(now.step) % steps:
                continue
            mean_auc = mean_known(aucs(_probabilities(now.params, x), y, mask))
            if mean_auc > best_auc:
                best, best_auc = jax.tree.map(np.array, now.params), mean_auc  # copied: the state is donated
            validated = f", validation AUC {mean_auc:.4f} (best {best_auc:.4f})"
            bar.set_postfix_str(f"loss {means['loss'].mean():.4f}{validated}")
    p = _probabilities(best, x)
    auc = aucs(p, y, mask)
    thresholds = [best_threshold(p[mask[:, a], a], y[mask[:, a], a] > 0) for a in range(y.shape[1])]
    classifier = Classifier(data.spec.attributes, best, np.asarray(thresholds), auc, _visible(auc), data.spec.dataset)
    if not classifier.visible.any():
        raise InputError(f"no attribute reached a validation AUC of {VISIBLE_AUC} (their mean is {best_auc:.3f}): "
                         "there is nothing to measure by; give more --epochs, or more faces")
    return classifier


def _init(network: ClassifierNetwork, spec: Spec, seed: int) -> dict:
    x, keep = jnp.zeros((1, *spec.image_shape)), jnp.ones((1, network.hidden))
    return jax.jit(network.init)(jax.random.fold_in(jax.random.key(seed), 0), x, keep)["params"]


def _visible(auc: np.ndarray) -> np.ndarray:
    return np.nan_to_num(auc) >= VISIBLE_AUC


def predict(classifier: Classifier, x: np.ndarray | jax.Array) -> np.ndarray:
    """Returns the probability of each attribute; x: [N, H, W, 3] float in [0, 1] -> [N, A]."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"faces of type {x.dtype}; expected floats in [0, 1] (data.dataset.pixels)")
    return _probabilities(classifier.params, x)


def _probabilities(params: dict, x: np.ndarray | jax.Array) -> np.ndarray:
    return in_batches(functools.partial(_batch_probabilities, params), np.asarray(x))


@jax.jit
def _batch_probabilities(params: dict, x: jax.Array) -> jax.Array:
    network = network_of(params)
    return jax.nn.sigmoid(network.apply({"params": params}, x, jnp.ones((len(x), network.hidden))))


def scores(classifier: Classifier, x: np.ndarray | jax.Array, y: np.ndarray, mask: np.ndarray) -> dict:
    """Returns how well faces show the attributes that were asked for, by the visible attributes alone.

    x: [N, H, W, 3] in [0, 1]; y: [N, A], 0 or 1, as asked; mask: [N, A] bool, True where an attribute was asked for
    either way.

    Keys:
      accuracy: balanced, mean over the attributes of (true positive rate + true negative rate) / 2; 0.5 is chance.
      accuracy_stderr: over faces, whose attributes go together; linearised (the infinitesimal jackknife).
      per_attribute: {name: balanced accuracy}, for visible attributes with both values among the asked.
    """
    p, y, mask = predict(classifier, x), np.asarray(y, np.float64), np.asarray(mask, bool)
    right = (p > classifier.thresholds[None]) == (y > 0)
    per_attribute, influence = {}, np.zeros(len(p))
    for a in np.flatnonzero(classifier.visible):
        classes = [mask[:, a] & (y[:, a] > 0), mask[:, a] & (y[:, a] <= 0)]
        if not all(rows.any() for rows in classes):
            continue
        rates = [right[rows, a].mean() for rows in classes]
        per_attribute[classifier.attributes[a]] = float(np.mean(rates))
        for rows, rate in zip(classes, rates, strict=True):
            influence[rows] += (right[rows, a] - rate) / (2 * rows.sum())
    counted = max(len(per_attribute), 1)
    return {"accuracy": mean_known(np.asarray(list(per_attribute.values()))),
            "accuracy_stderr": float(np.sqrt(np.square(influence / counted).sum())),
            "per_attribute": per_attribute}


def classifier_path(path: str | pathlib.Path) -> pathlib.Path:
    """Returns the classifier's file; `path` may be it or its folder."""
    path = pathlib.Path(path)
    return path if path.suffix == pathlib.Path(FILE).suffix else path / FILE


def save_classifier(classifier: Classifier, path: str | pathlib.Path) -> pathlib.Path:
    """Writes the classifier's one file, whole or not at all, and returns it; `path` may be it or its folder."""
    path = classifier_path(path)
    facts = {"dataset": classifier.dataset, "attributes": classifier.attributes,
             **{name: getattr(classifier, name).tolist() for name in ("thresholds", "auc")}}
    content = serialization.msgpack_serialize({"facts": json.dumps(facts),
                                               "params": jax.tree.map(np.asarray, classifier.params)})
    write_whole(path, content)
    return path


def load_classifier(path: str | pathlib.Path, spec: Spec) -> Classifier:
    """Reads a classifier, from its file or its folder, for faces as a spec describes them.

    Raises:
      InputError: there is none, it is damaged, or it is for other faces or attributes.
    """
    path = classifier_path(path)
    again = f"{COMMAND} --dataset={spec.dataset.split()[0]} --data_dir=DIR --out={shlex.quote(str(path.parent))}"
    if not path.is_file():
        raise InputError(f"no classifier in {path}; make one: {again}")
    try:
        content = serialization.msgpack_restore(path.read_bytes())
        facts, params = json.loads(content["facts"]), content["params"]
        shapes = jax.tree.map(np.shape, params)
        thresholds, auc = (np.asarray(facts[name]) for name in ("thresholds", "auc"))
        classifier = Classifier(tuple(facts["attributes"]), params, thresholds, auc, _visible(auc), facts["dataset"])
        expected = jax.tree.map(np.shape, jax.eval_shape(lambda: _init(network_of(params), spec, 0)))
    except Exception as error:  # a cut or foreign file makes the decoder raise almost anything
        raise InputError(f"{path} is damaged ({' '.join(str(error).split())}); make it again: {again}") from error
    if (classifier.dataset, classifier.attributes) != (spec.dataset, spec.attributes):
        raise InputError(f"{path} is for the {len(classifier.attributes)} attributes of data set "
                         f"{classifier.dataset!r}, not the {len(spec.attributes)} of {spec.dataset!r}; make another: "
                         f"{again}")
    if shapes != expected:
        raise InputError(f"{path} is for faces of another size than {spec.image_shape}; make another: {again}")
    return classifier
