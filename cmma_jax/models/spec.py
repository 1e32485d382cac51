"""What a model must know of its data."""

import dataclasses
from typing import Literal

import numpy as np

Kind = Literal["binary", "real"]


@dataclasses.dataclass(frozen=True)
class Spec:
    """What a model must know of its data, and what travels with a checkpoint.

    Statistics are of the training rows, those of attributes as they were read.
    """

    dataset: str  # its name
    attributes: tuple[str, ...]  # names of the A attributes, in the order of the columns of y
    kinds: tuple[Kind, ...]  # [A]: "binary", y in {0, 1}, or "real", y = (score - mean) / std
    attribute_mean: tuple[float, ...]  # [A]
    attribute_std: tuple[float, ...]  # [A]
    mean_face: np.ndarray  # [H, W, 3] float32, pixels in [0, 1]
    pixel_std: float  # the root mean squared deviation of a pixel from the mean face
    attribute_percentiles: tuple[tuple[float, ...], ...]  # [A][101], 0th to 100th; [A][0] of binary ones

    @property
    def binary(self) -> np.ndarray:
        """[A] bool, which attributes are binary."""
        return np.array([kind == "binary" for kind in self.kinds])

    @property
    def kind(self) -> Literal["binary", "real", "mixed"]:
        """That of all attributes."""
        return "binary" if self.binary.all() else "mixed" if self.binary.any() else "real"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.mean_face.shape

    def to_json(self) -> dict:
        """Returns plain lists and numbers; `from_json` is its exact inverse."""
        fields = dataclasses.asdict(self)
        return fields | {"mean_face": self.mean_face.astype(float).tolist()}

    @classmethod
    def from_json(cls, fields: dict) -> "Spec":
        sequences = ("attributes", "kinds", "attribute_mean", "attribute_std")
        percentiles = tuple(tuple(each) for each in fields["attribute_percentiles"])
        return cls(**fields | {k: tuple(fields[k]) for k in sequences} | {"attribute_percentiles": percentiles}
                   | {"mean_face": np.asarray(fields["mean_face"], np.float32)})
