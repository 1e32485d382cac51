"""What a model must know of its data."""

import dataclasses
from typing import Literal

import numpy as np

Kind = Literal["binary", "real"]


@dataclasses.dataclass(frozen=True)
class Spec:
    """What a model must know of its data, and what travels with a checkpoint.

    Attributes:
      dataset: name of the data set.
      attributes: names of the A attributes, in the order of the columns of y.
      kinds: [A], of each attribute: "binary" (y in {0, 1}) or "real" (y standardised).
      attribute_mean, attribute_std: [A] training-row statistics of the attributes as they were read;
        for "real", y = (score - mean) / std.
      mean_face: [H, W, 3] float32, the mean training face, pixels in [0, 1].
      pixel_std: the root mean squared deviation of a training pixel from the mean face.
      attribute_percentiles: [A][101] of the training rows as they were read, 0th to 100th; [A][0] of binary ones.
    """

    dataset: str
    attributes: tuple[str, ...]
    kinds: tuple[Kind, ...]
    attribute_mean: tuple[float, ...]
    attribute_std: tuple[float, ...]
    mean_face: np.ndarray
    pixel_std: float
    attribute_percentiles: tuple[tuple[float, ...], ...]

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

    @property
    def dimensions(self) -> int:
        """D, the number of pixel values of a face."""
        return int(np.prod(self.mean_face.shape))

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
