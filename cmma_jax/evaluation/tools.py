"""What looks at generated faces: an attribute classifier, a face embedding and a detector, where they are there."""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from cmma_jax.data.dataset import Faces
from cmma_jax.errors import InputError
from cmma_jax.evaluation import detection, embeddings
from cmma_jax.evaluation.classifier import COMMAND, VISIBLE_AUC, Classifier, classifier_path, load_classifier, scores
from cmma_jax.evaluation.table import Figures
from cmma_jax.models.spec import Spec


class Tools(NamedTuple):
    """Those that there are."""

    classifier: Classifier | None  # of attributes
    embedded: np.ndarray | None  # [N, 128], of the real faces; those generated for one half are compared with the other
    detector: bool  # whether a face detector is installed


def find_tools(classifier: str | pathlib.Path, needed: bool, spec: Spec, faces: Faces, say: Callable[[str], Any]
               ) -> Tools:
    """Returns the tools that there are; says how to get those that there are not.

    Args:
      classifier: its file or its folder.
      needed: whether it is an error if it is not there.
      spec, faces: of the real faces.
      say: a line -> None.

    Raises:
      InputError: the classifier is damaged, or for other faces, or is needed and not there.
    """
    path, found = classifier_path(classifier), None
    if needed or path.exists():
        found = load_classifier(path, spec)
        names = [name for name, seen in zip(found.attributes, found.visible, strict=True) if seen]
        say(f"classified by {len(names)} attributes, with an AUC of {VISIBLE_AUC} or more on real faces: "
            + ", ".join(names))
    elif spec.kind != "real":
        say(f"no classifier in {path}; make one: {COMMAND} --dataset={spec.dataset} --data_dir=DIR")
    embedded = _unless_missing(embeddings.embed_dlib, faces.x / np.float32(255), say)
    return Tools(found, embedded, _unless_missing(detection.detected, faces.x[:1] / np.float32(255), say) is not None)


def _unless_missing(function: Callable, x: np.ndarray, say: Callable[[str], Any]) -> np.ndarray | None:
    """Returns function(x), or None and a word why where what it needs is not installed."""
    try:
        return function(x)
    except InputError as error:
        say(f"left out: {error}")
        return None


def look(x: np.ndarray, faces: Faces, tools: Tools, real: bool = False) -> Figures:
    """Returns what the tools say of faces x made for the attributes of a set, or of that set itself."""
    found: Figures = {}
    if tools.classifier:
        scored = scores(tools.classifier, x, faces.y, faces.mask)
        found["accuracy"] = scored["accuracy"], scored["accuracy_stderr"]
        found |= {f"accuracy {name}": (value, None) for name, value in scored["per_attribute"].items()}
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
