"""How well probabilities separate two classes: areas under ROC curves, thresholds, calibration."""

import math

import numpy as np
from scipy.stats import rankdata

BINS = 15  # of probability, in the calibration error


def mean_known(values: np.ndarray) -> float:
    """Returns the mean of those that are not NaN; NaN if none is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan


def aucs(p: np.ndarray, y: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Returns the area under each attribute's ROC curve, over its known faces; p, y, mask: [N, A] -> [A]."""
    return np.asarray([rank_auc(p[mask[:, a], a], y[mask[:, a], a] > 0) for a in range(y.shape[1])])


def rank_auc(p: np.ndarray, positive: np.ndarray) -> float:
    """Returns P(p of a positive > p of a negative), a tie as half (Mann-Whitney); NaN without both classes."""
    n = int(positive.sum())
    if not 0 < n < len(p):
        return math.nan
    return float((rankdata(p)[positive].sum() - n * (n + 1) / 2) / (n * (len(p) - n)))


def best_threshold(p: np.ndarray, positive: np.ndarray) -> float:
    """Returns the threshold of the highest balanced accuracy, midway between two faces; 0.5 without both classes."""
    if not 0 < positive.sum() < len(p):
        return 0.5
    order = np.argsort(p)
    p, positive = p[order].astype(np.float64), positive[order]
    specificity, missed = np.cumsum(~positive) / (~positive).sum(), np.cumsum(positive) / positive.sum()
    gain = np.where(p[1:] > p[:-1], (specificity - missed)[:-1], -np.inf)  # no cut between equal ones
    i = int(np.argmax(gain))
    return float((p[i] + p[i + 1]) / 2)


def calibration_error(p: np.ndarray, positive: np.ndarray) -> float:
    """Returns the mean distance of a bin's mean probability from its share of positives, weighted by its size."""
    bins = np.minimum((p * BINS).astype(int), BINS - 1)
    return float(sum((bins == b).mean() * abs(p[bins == b].mean() - positive[bins == b].mean())
                     for b in np.unique(bins)))
