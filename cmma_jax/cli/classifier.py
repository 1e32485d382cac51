"""Train the attribute classifier: `python -m cmma_jax classifier --dataset=lfw --data_dir=DIR`."""

import numpy as np

from cmma_jax.cli import command_line
from cmma_jax.data import load_dataset
from cmma_jax.data.files import make_folder
from cmma_jax.evaluation.classification import mean_known
from cmma_jax.evaluation.classifier import COMMAND, VISIBLE_AUC, Settings, save_classifier, scores, train_classifier
from cmma_jax.training import parallel

HELP = f"""Train the attribute classifier by which `evaluate` measures generated faces, on real training faces alone.

  {COMMAND} --dataset=lfw --data_dir=DIR

It writes OUT/classifier.msgpack: the epoch with the best mean AUC on the validation faces, and for each attribute the
threshold that suits those faces best. An attribute counts as visible where its AUC is {VISIBLE_AUC} or more; only
those enter a model's scores. At the end stand the scores of the real test faces, a model's ceiling."""


def train(settings: Settings) -> None:
    """Trains a classifier, writes it, and prints what it sees and how it scores real test faces."""
    parallel.prepare()
    data = load_dataset(settings.dataset, settings.data_dir, image_size=settings.image_size)
    out = settings.out_path()
    make_folder(out, "the classifier's folder", "out")  # before the minutes of training
    classifier = train_classifier(data, settings)
    path = save_classifier(classifier, out)
    real = scores(classifier, data.test.x / np.float32(255), data.test.y, data.test.mask)
    auc, visible = classifier.auc, classifier.visible
    names = ", ".join(f"{classifier.attributes[a]} {auc[a]:.2f}" for a in np.argsort(-auc) if visible[a])
    print(f"validation AUC    {mean_known(auc):.4f}, the mean over {len(auc)} attributes\n"
          f"visible           {visible.sum()} of them, their AUC {mean_known(auc[visible]):.4f}: {names}\n"
          f"real test faces   accuracy {real['accuracy']:.4f} +- {real['accuracy_stderr']:.4f} "
          f"({data.test.size:,} faces, visible attributes)\n"
          f"classifier        {path}")


def parse(argv: list[str], program: str = COMMAND) -> Settings:
    """Returns the settings of a command line; raises InputError, one line, for what is wrong with them."""
    return command_line.parse(Settings, argv, program, HELP)


def main(argv: list[str], program: str = COMMAND) -> int:
    """Runs the command line; returns its exit code: 2 for bad input, 130 for an interrupt."""
    return command_line.run(program, lambda: train(parse(argv, program)), "nothing was written")
