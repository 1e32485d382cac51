"""Attributes as people write them: names, values, and what contradicts what."""

import dataclasses
import functools
import math
import re
import unicodedata
from collections.abc import Mapping

import numpy as np

from cmma_jax.errors import InputError, did_you_mean, split_names
from cmma_jax.models.spec import Spec

# Of each group at most one holds: setting a member resets the others. Names that a data set lacks do not matter.
# All pairs here are rarer together in LFW's training labels than two independent attributes would be.
EXCLUSIVE = (
    ("No Eyewear", "Eyeglasses", "Sunglasses"),
    ("Mouth Closed", "Mouth Slightly Open", "Mouth Wide Open"),
    ("Teeth Not Visible", "Mouth Slightly Open"),
    ("Teeth Not Visible", "Mouth Wide Open"),
    ("Smiling", "Frowning"),
    ("Black Hair", "Blond Hair", "Brown Hair", "Gray Hair"),
    ("Bald", "Black Hair"), ("Bald", "Blond Hair"), ("Bald", "Brown Hair"),
    ("Baby", "Youth", "Middle Aged", "Senior"),
    ("Child", "Middle Aged"), ("Child", "Senior"),
    ("No Beard", "Goatee"), ("No Beard", "Mustache"), ("No Beard", "5 o' Clock Shadow"),
    ("Straight Hair", "Curly Hair"), ("Straight Hair", "Wavy Hair"),
    ("Fully Visible Forehead", "Partially Visible Forehead", "Obstructed Forehead"),
    ("Fully Visible Forehead", "Bangs"),
    ("Oval Face", "Square Face", "Round Face"),
    ("Asian", "White", "Black"), ("Asian", "Indian"), ("White", "Indian"),
    ("Soft Lighting", "Harsh Lighting"), ("Flash", "Harsh Lighting"),
)
# What holds where every one of some attributes is absent.
OTHERWISE = {"No Eyewear": ("Eyeglasses", "Sunglasses"), "No Beard": ("Goatee", "Mustache")}

ABSENT_PERCENTILE = 5  # at which a real-valued attribute that is contradicted is reset
FARTHEST = 6.0  # deviations from the mean, the most that may be asked of a real-valued attribute
WORDS = {"yes": 1.0, "true": 1.0, "on": 1.0, "no": 0.0, "false": 0.0, "off": 0.0}
FORMS = {"binary": "a number from 0 to 1, yes, no, or ? for unknown",
         "real": "a score, +2sd or -1sd (deviations from the mean), p95 (a percentile), or ? for unknown"}

Settings = Mapping[str, float | str | None]

# Four kinds of people, and what else a face has to which one attribute at a time is added: the paper's Figure 6.
PEOPLE: dict[str, Settings] = {
    "female, Asian": {"Male": 0, "Asian": 1}, "female, not Asian": {"Male": 0, "Asian": 0},
    "male, Asian": {"Male": 1, "Asian": 1}, "male, not Asian": {"Male": 1, "Asian": 0}}
PLAIN: Settings = {"Mouth Closed": 1, "No Eyewear": 1, "Bushy Eyebrows": 0, "Big Nose": 0, "Pointy Nose": 0,
                   "Big Lips": 0}


@dataclasses.dataclass(frozen=True)
class Attributes:
    """A data set's attributes as a person names and sets them."""

    spec: Spec

    def find(self, name: str) -> int:
        """Returns an attribute's column; case, spaces, `_` and other signs in its name do not matter.

        Raises:
          InputError: there is none of that name.
        """
        columns = {plain(known): i for i, known in enumerate(self.spec.attributes)}
        if name in self.spec.attributes:
            return self.spec.attributes.index(name)
        if plain(name) not in columns:
            raise InputError(f"unknown attribute {name.strip()!r}{did_you_mean(name, self.spec.attributes)}")
        return columns[plain(name)]

    def value(self, name: str, value: float | str | None) -> float | None:
        """Returns what a model takes for an attribute's value; None: unknown.

        Binary: 0 to 1, or yes and no. Real-valued: a score in the data's own units, "+2sd", or "p95".

        Raises:
          InputError: the value is out of range, or no value.
        """
        if value is None or str(value).strip() == "?":
            return None
        text, column = str(value).strip().lower(), self.find(name)
        wrong = f"{self.spec.attributes[column]}={value} "
        kind = self.spec.kinds[column]
        try:
            if kind == "binary":
                number = WORDS[text] if text in WORDS else float(text)
                good = 0 <= number <= 1
            elif match := re.fullmatch(r"p(\d+(\.\d*)?)", text):
                percentile, scores = float(match[1]), self.spec.attribute_percentiles[column]
                number = self._standard(column, float(np.interp(percentile, np.arange(101), scores)))
                good = percentile <= 100
            else:
                deviations = text.endswith("sd")
                number = float(text.removesuffix("sd")) if deviations else self._standard(column, float(text))
                good = abs(number) <= FARTHEST
        except ValueError:
            raise InputError(wrong + f"is no value of it; give {FORMS[kind]}") from None
        if not good or not math.isfinite(number):  # a NaN compares false
            more = "" if kind == "binary" else f", within {FARTHEST:g} deviations of the mean"
            raise InputError(wrong + f"is out of range; give {FORMS[kind]}{more}")
        return number

    def settle(self, settings: Settings, y: np.ndarray, mask: np.ndarray, groups: bool = True
               ) -> tuple[np.ndarray, np.ndarray]:
        """Returns attributes with settings made on top of them, and what contradicts those reset.

        Args:
          settings: {name: value}; the value None or "?" makes an attribute unknown.
          y, mask: [..., A] the attributes so far.
          groups: whether setting an attribute resets those that contradict it (EXCLUSIVE), and resetting the last
            one of some sets what holds otherwise (OTHERWISE).

        Raises:
          InputError: an unknown name, a bad value, or, with groups, two settings that contradict each other.
        """
        asked: dict[int, float | None] = {}
        for name, value in settings.items():
            column, number = self.find(name), self.value(name, value)
            if asked.get(column, number) != number:
                raise InputError(f"{self.spec.attributes[column]} is set twice, to different values; set it once")
            asked[column] = number
        y, mask = np.array(y, np.float32), np.array(mask, bool)
        if groups:
            present = [column for column, number in asked.items()
                       if number is not None and number > (0.5 if self.spec.kinds[column] == "binary" else 0.0)]
            for column in present:
                for other in self.contradicted(column):
                    if other in present:
                        one, two = self.spec.attributes[column], self.spec.attributes[other]
                        raise InputError(f"{one} and {two} contradict each other; set one of them, or let both stand "
                                         "with --no-groups")
                    if other not in asked:
                        y[..., other] = self._absent(other)
                        mask[..., other] = True
        for column, number in asked.items():
            y[..., column], mask[..., column] = number or 0.0, number is not None
        if groups:
            self._otherwise(asked, y, mask)
        return y, mask

    def contradicted(self, column: int) -> list[int]:
        """Returns the columns of the attributes that cannot hold where this one does."""
        name, category = plain(self.spec.attributes[column]), _category(self.spec.attributes[column])
        groups = [{plain(member) for member in group} for group in EXCLUSIVE]
        others = set().union(*(group for group in groups if name in group)) - {name}
        return [i for i, known in enumerate(self.spec.attributes)
                if plain(known) in others or (category and i != column and category == _category(known))]

    def _otherwise(self, asked: dict[int, float | None], y: np.ndarray, mask: np.ndarray) -> None:
        """Sets what holds where the last one of some attributes was just reset."""
        columns = {plain(known): i for i, known in enumerate(self.spec.attributes) if self.spec.binary[i]}
        for name, others in OTHERWISE.items():
            column, reset = columns.get(plain(name)), [columns[plain(other)] for other in others
                                                        if plain(other) in columns]
            if column is None or column in asked or not any(asked.get(other) == 0 for other in reset):
                continue
            absent = (mask[..., reset] & (y[..., reset] == 0)).all(-1)
            y[..., column] = np.where(absent, 1, y[..., column])
            mask[..., column] |= absent

    def _standard(self, column: int, score: float) -> float:
        return (score - self.spec.attribute_mean[column]) / (self.spec.attribute_std[column] or 1.0)

    def _absent(self, column: int) -> float:
        if self.spec.binary[column]:
            return 0.0
        return self._standard(column, self.spec.attribute_percentiles[column][ABSENT_PERCENTILE])


def parse_settings(text: str) -> dict[str, str]:
    """Returns {"Male": "1", "Smiling": "+2sd"} of "Male=1,Smiling=+2sd"; a name alone is set to 1, and one with a comma
    stands in quotes: '"Hair, dark"=1'.

    Raises:
      InputError: a part is no setting, or a name comes twice.
    """
    settings = {}
    for part in split_names(text):
        name, equals, value = (word.strip() for word in (part.rpartition("=") if "=" in part else (part, "", "")))
        if not name or (equals and not value):
            raise InputError(f"{part!r} is no setting; give NAME=VALUE, with commas between: Male=1,Eyeglasses=0")
        if name in settings:
            raise InputError(f"{name} is set twice; set it once")
        settings[name] = value or "1"
    return settings


def _category(name: str) -> str:
    """Returns the column of which an attribute is one of the words, as `data.table` names them: "race: Asian"."""
    return name.partition(": ")[0] if ": " in name else ""


@functools.cache  # the names of a data set are asked for at every call
def plain(name: str) -> str:
    """Returns a name without what does not matter in it: case, spaces, `_` and other signs, unless it has no others."""
    kept = [sign for sign in unicodedata.normalize("NFKC", name).casefold() if unicodedata.category(sign)[0] in "LMN"]
    return "".join(kept) or name.strip()
