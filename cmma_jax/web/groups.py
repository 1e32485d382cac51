"""Attributes in named groups, as the page lists them, and sets of them to begin with."""

from cmma_jax.sampling.attributes import PEOPLE, PLAIN, Settings, plain

GROUPS = {
    "Person": ("Male", "Baby", "Child", "Youth", "Young", "Middle Aged", "Senior", "Asian", "Black", "Indian", "White",
               "Attractive", "Attractive Man", "Attractive Woman", "Chubby"),
    "Expression and mouth": ("Smiling", "Frowning", "Mouth Closed", "Mouth Slightly Open", "Mouth Wide Open",
                             "Teeth Not Visible", "Big Lips"),
    "Hair": ("Black Hair", "Blond Hair", "Brown Hair", "Gray Hair", "Bald", "Bangs", "Curly Hair", "Straight Hair",
             "Wavy Hair", "Receding Hairline"),
    "Beard": ("No Beard", "Mustache", "Goatee", "Sideburns", "5 o' Clock Shadow"),
    "Eyes and brows": ("Eyes Open", "Narrow Eyes", "Brown Eyes", "Bags Under Eyes", "Arched Eyebrows",
                       "Bushy Eyebrows"),
    "Nose and shape": ("Big Nose", "Pointy Nose", "High Cheekbones", "Double Chin", "Round Jaw", "Oval Face",
                       "Round Face", "Square Face", "Fully Visible Forehead", "Partially Visible Forehead",
                       "Obstructed Forehead", "Strong Nose-Mouth Lines"),
    "Skin and make-up": ("Pale Skin", "Shiny Skin", "Rosy Cheeks", "Flushed Face", "Heavy Makeup", "Wearing Lipstick"),
    "Things worn": ("No Eyewear", "Eyeglasses", "Sunglasses", "Wearing Hat", "Wearing Earrings", "Wearing Necklace",
                    "Wearing Necktie"),
    "Picture": ("Blurry", "Color Photo", "Posed Photo", "Outdoor", "Flash", "Harsh Lighting", "Soft Lighting"),
}
OTHERS = "Others"  # the group of what has no name here

PRESETS: dict[str, Settings] = {
    **{f"Fig. 6: {who}": {**people, **PLAIN} for who, people in PEOPLE.items()},
    "Old, with a moustache": {"Male": 1, "Senior": 1, "Gray Hair": 1, "Mustache": 1},
    "Sunglasses and a smile": {"Sunglasses": 1, "Smiling": 1},
    "Hat and lipstick": {"Male": 0, "Wearing Hat": 1, "Wearing Lipstick": 1},
    "Spectacles, no beard": {"Male": 1, "Eyeglasses": 1, "No Beard": 1},
}


def group_of(name: str) -> str:
    """Returns the group of an attribute; `_`, case and other signs do not matter."""
    return next((group for group, names in GROUPS.items() if plain(name) in map(plain, names)), OTHERS)


def presets(attributes: tuple[str, ...]) -> dict[str, dict[str, bool]]:
    """Returns the sets whose first two attributes are known, less what else is not, under the names that are known."""
    known = {plain(name): name for name in attributes}
    return {title: {known[plain(name)]: bool(value) for name, value in wanted.items() if plain(name) in known}
            for title, wanted in PRESETS.items() if all(plain(name) in known for name in [*wanted][:2])}
