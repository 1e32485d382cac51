"""Edits and inferred attributes, measured on faces whose attributes are known.

An edit sets an attribute of a face that lacks it, or resets one that a face has, all else as it is. Five questions
are asked of it: does the classifier see the change (effectiveness); how far do its other attributes move; does the
reverse edit lead back (reversibility); does an edit that changes nothing change nothing (composition; Monteiro et al.
2023); and is it still the same person.
"""

import math
from collections.abc import Callable

import numpy as np
from tqdm import tqdm

from cmma_jax.data.dataset import Dataset, Faces
from cmma_jax.evaluation.classification import aucs, best_threshold, calibration_error, mean_known
from cmma_jax.evaluation.classifier import Classifier, predict
from cmma_jax.evaluation.table import Figures
from cmma_jax.sampling.attributes import Attributes
from cmma_jax.sampling.face_model import FaceModel

IDENTITY_FACES = 3  # for each attribute, other ones each time: an embedding costs as much as a hundred edits
PAIRS = 500  # of two real faces of one person, and of two persons

Embed = Callable[[np.ndarray], np.ndarray]


def measure_edits(model: FaceModel, classifier: Classifier, faces: Faces, columns: np.ndarray, intensity: float,
                  literal: bool = False, embed: Embed | None = None, start: np.ndarray | None = None,
                  same_person: float = math.nan) -> Figures:
    """Returns figures of edits with details kept, some attributes in turn: {name of COLUMNS: (value, error)}.

    Keys:
      flips: share of the edits that the classifier sees, of faces of which it was right before: the mean over
        attributes, and over set and reset, with its standard error over faces.
      others: mean absolute change of the classifier's probability of the visible attributes that were not to change.
      moved, back, empty: root mean squared change of a pixel; empty_kept: the largest.
      identity: mean cosine between the embeddings of a face before and after; kept: share above `same_person`.

    Args:
      columns: numbers of the attributes to be edited, which the classifier sees.
      embed: [N, H, W, 3] -> [N, d]; without it identity is left out.
      start: [N, d], the embeddings of the faces.
      same_person: from `real_pairs`.
    """
    x, settings = faces.x / np.float32(255), Attributes(model.run.spec)
    before, visible = predict(classifier, x), np.flatnonzero(classifier.visible)
    rates: dict[int, list[float]] = {0: [], 1: []}
    influence = np.zeros(len(x))
    others, squares, squares_back, cosines = [], [], [], []
    for column in tqdm(columns, desc=f"{model.run.system}, intensity {intensity:g}", unit=" attributes"):
        new_y, new_mask = faces.y.copy(), faces.mask.copy()
        for wanted in (0, 1):
            rows = faces.y[:, column] == 1 - wanted
            new_y[rows], new_mask[rows] = settings.settle({model.attributes[column]: wanted}, faces.y[rows],
                                                          faces.mask[rows])
        edited = model.edit_encoded(x, faces.y, faces.mask, new_y, new_mask, intensity, literal=literal,
                                    keep_detail=True)
        back = model.edit_encoded(edited, new_y, new_mask, faces.y, faces.mask, intensity, literal=literal,
                                  keep_detail=True)
        after = predict(classifier, edited)
        seen, sees = (p[:, column] > classifier.thresholds[column] for p in (before, after))
        was_right = faces.mask[:, column] & (seen == (faces.y[:, column] > 0))
        flipped = sees == (new_y[:, column] > 0)
        for wanted in (0, 1):
            rows = was_right & (new_y[:, column] == wanted)
            if rows.any():
                rates[wanted].append(flipped[rows].mean())
                influence[rows] += (flipped[rows] - flipped[rows].mean()) / rows.sum()
        kept = (new_y == faces.y)[:, visible]
        others.append(np.abs(after - before)[:, visible][kept].mean())
        squares.append(np.square(edited - x).mean())
        squares_back.append(np.square(back - x).mean())
        if embed and start is not None:
            few = np.arange(column, column + IDENTITY_FACES) % len(x)
            cosines.append(_cosines(embed(edited[few]), start[few]))
    cells = [*rates[0], *rates[1]]
    error = float(np.sqrt(np.square(influence / max(len(cells), 1)).sum()))
    found = {"flips": (mean_known(np.asarray(cells)), error), "set": (mean_known(np.asarray(rates[1])), None),
             "reset": (mean_known(np.asarray(rates[0])), None),
             "others": (float(np.mean(others)), None), "moved": (math.sqrt(np.mean(squares)), None),
             "back": (math.sqrt(np.mean(squares_back)), None)}
    same = (x, faces.y, faces.mask, faces.y, faces.mask)
    empty, kept_empty = (model.edit_encoded(*same, keep_detail=kept) - x for kept in (False, True))
    found |= {"empty": (math.sqrt(np.square(empty).mean()), None),
              "empty_kept": (float(np.abs(kept_empty).max()), None)}
    if embed:
        found |= {"identity": (float(np.mean(cosines)), None),
                  "kept": (float(np.mean(np.concatenate(cosines) > same_person)), None)}
    return found


def real_pairs(embedded: np.ndarray, people: tuple[str, ...]) -> tuple[dict[str, Figures], float]:
    """Returns the embeddings' cosines of pairs of real faces, of one person and of two, and the threshold between them.

    The threshold is that of the best balanced accuracy. embedded: [N, d]; people: N names.
    """
    rng, names = np.random.default_rng(0), np.asarray(people)
    i, j = np.triu_indices(len(names), 1)
    same = names[i] == names[j]
    chosen = np.concatenate([rng.permutation(np.flatnonzero(rows))[:PAIRS] for rows in (same, ~same)])
    cosines, same = _cosines(embedded[i[chosen]], embedded[j[chosen]]), same[chosen]
    threshold = best_threshold(cosines, same)
    return {name: {"identity": (float(cosines[rows].mean()), None), "kept": (float((cosines[rows] > threshold).mean()),
                                                                              None)}
            for name, rows in (("two faces of one person", same), ("faces of two persons", ~same))}, threshold


def measure_inferred(infer: Callable[[np.ndarray], np.ndarray], visible: np.ndarray, data: Dataset) -> Figures:
    """Returns how well attributes are inferred from test faces: balanced accuracy, AUC and calibration error.

    The threshold is that of the best balanced accuracy on the validation faces. infer: [N, H, W, 3] -> [N, A]
    probabilities, by q(y|z) or the classifier; visible: [A] bool, the attributes over which is averaged.
    """
    chosen, p = (infer(part.x / np.float32(255)) for part in (data.validation, data.test))
    y, mask, rates = data.test.y, data.test.mask, []
    for column in np.flatnonzero(visible):
        known = data.validation.mask[:, column]
        threshold = best_threshold(chosen[known, column], data.validation.y[known, column] > 0)
        right = (p[:, column] > threshold) == (y[:, column] > 0)
        classes = [right[mask[:, column] & (y[:, column] == value)] for value in (0, 1)]
        if all(map(len, classes)):
            rates.append(np.mean([rows.mean() for rows in classes]))
    known = mask & visible[None]
    return {"accuracy": (float(np.mean(rates)), None), "auc": (float(np.nanmean(aucs(p, y, mask)[visible])), None),
            "ece": (calibration_error(p[known], y[known] > 0), None)}


def inferred(model: FaceModel, x: np.ndarray) -> np.ndarray:
    """Returns the probabilities [N, A] that a model's q(y|z) gives to faces x."""
    return np.stack([mean for mean, _ in model.infer_attributes(x).values()], -1)


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(-1) / np.sqrt(np.square(a).sum(-1) * np.square(b).sum(-1))
