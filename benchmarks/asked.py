"""Whether single attributes show where they alone are asked for, by the scale of guidance.

    python -m benchmarks.asked --run=lfw --classifier=runs/classifier-lfw

A face for each seed and each attribute that the classifier sees well, all else unknown, the same noise under every
scale: the share in which the classifier finds the attribute, and that in which a detector finds a face; the first row
asks for nothing.
"""

import argparse
import sys

import numpy as np

from cmma_jax.evaluation.classifier import classifier_path, load_classifier, predict
from cmma_jax.evaluation.detection import detected
from cmma_jax.sampling.face_model import load

SEEN = 0.85  # the classifier's AUC on real faces, from which an attribute is asked for


def main(argv: list[str]) -> int:
    """Measures and prints a row a scale, and the attributes that show least."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", default="lfw", help="a run's folder, or the name of a shipped model")
    parser.add_argument("--classifier", default="runs/classifier-lfw", help="its file or its folder")
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 1.5, 3.0, 5.0, 7.0], help="scales")
    parser.add_argument("--faces", type=int, default=8, help="seeds of each attribute")
    options = parser.parse_args(argv)
    model = load(options.run)
    classifier = load_classifier(classifier_path(options.classifier), model.run.spec)
    columns = np.flatnonzero(classifier.visible & (classifier.auc >= SEEN))
    encoded = [model.encode({classifier.attributes[column]: 1}) for column in columns]
    y, mask = (np.repeat(np.stack(each), options.faces, 0) for each in zip(*encoded, strict=True))
    print(f"{model.run.path}, {len(columns)} attributes, {options.faces} faces each\n\n"
          "| guidance | shown | detected | shown least |\n|---|---|---|---|")
    for name, scale in (("nothing asked", None), *((f"{scale:g}", scale) for scale in options.guidance)):
        made = model.generate_encoded(y, mask if scale else mask & False, guidance=scale)
        shown = predict(classifier, made) > classifier.thresholds
        shown = shown[np.arange(len(made)), np.repeat(columns, options.faces)]
        rates = shown.reshape(len(columns), options.faces).mean(1)
        least = ", ".join(f"{classifier.attributes[columns[i]]} {rates[i]:.2f}" for i in np.argsort(rates)[:5])
        error = rates.std() / np.sqrt(len(rates))
        print(f"| {name} | {rates.mean():.3f} +- {error:.3f} | {detected(made).mean():.3f} | {least} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
