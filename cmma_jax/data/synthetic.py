"""The embedded data set: 64x64 portraits drawn from named attributes, in NumPy alone, the same on every run.

A face is drawn in head coordinates, pixels from the middle of the canonical picture (x to the right, y
downwards), which the nuisance moves, turns and scales. Every part of the head is a function that paints soft-edged
masks over the picture, back to front. Inside `render` the arrays are

    image: [3, n, h, w] float32, channels in [0, 1], a view of the part's window; painted in place
    x, y: [n, h, w] float32, head coordinates of the window's pixels
    a: attribute name -> [n, 1, 1] float32
    z: the nuisance, of fields [n, 1, 1] and [k, n, 1, 1]
"""

from types import SimpleNamespace

import numpy as np

from cmma_jax.data.dataset import Dataset, Faces, make_dataset

SIZE = 64
CHUNK = 50  # faces drawn at once: what bounds the memory, and keeps the pieces in the processor's cache

HAIR = ("Black Hair", "Blond Hair", "Brown Hair", "Gray Hair", "Bald")
EYEWEAR = ("No Eyewear", "Eyeglasses", "Sunglasses")
MOUTH = ("Mouth Closed", "Mouth Slightly Open", "Mouth Wide Open")

ATTRIBUTES = (
    "Male", "Senior", "Black Hair", "Blond Hair", "Brown Hair", "Gray Hair", "Bald", "No Eyewear", "Eyeglasses",
    "Sunglasses", "Mustache", "Smiling", "Frowning", "Chubby", "Bangs", "Receding Hairline", "Bushy Eyebrows",
    "Arched Eyebrows", "Narrow Eyes", "Big Nose", "Big Lips", "Mouth Closed", "Mouth Slightly Open",
    "Mouth Wide Open", "No Beard", "Goatee", "Wearing Hat", "Wearing Lipstick", "Rosy Cheeks", "Pale Skin",
)


def sample_nuisance(rng: np.random.Generator, n: int) -> dict[str, np.ndarray]:
    """Draws what varies from face to face and no attribute names, [n, ...] each, float32 but for `grain`.

    Normal ones are cut at 2 standard deviations; at 0 a face is centred and evenly lit.
    """
    def normal(deviation: float, *shape: int) -> np.ndarray:
        return np.clip(rng.standard_normal((n, *shape)), -2, 2).astype(np.float32) * np.float32(deviation)

    def uniform(most: float, *shape: int) -> np.ndarray:
        return rng.uniform(-most, most, (n, *shape)).astype(np.float32)

    return {
        "shift": normal(1.2, 2),  # pixels right, down
        "scale": normal(0.04),  # logarithm of the head's size
        "tilt": normal(0.05),  # radians clockwise
        "light": uniform(0.28, 2),  # gain of brightness across half a picture to the right, downwards
        "exposure": normal(0.08),  # logarithm of the brightness
        "tone": uniform(1.0),  # skin, from -1 (light) to 1 (dark)
        "hue": uniform(1.0),  # warmth of the skin
        "face_width": normal(0.04),  # relative, as are the sizes that follow
        "eye_size": normal(0.08),
        "eye_distance": normal(0.5),  # pixels, as are the heights that follow
        "nose_length": normal(0.8),
        "mouth_width": normal(0.08),  # relative
        "mouth_height": normal(0.7),  # pixels
        "brow_height": normal(0.6),
        "hairline": normal(1.0),
        "hair_shade": normal(0.12),  # relative brightness of the hair
        "gaze": normal(0.5, 2),  # pixels that the irises move
        "iris": uniform(0.16, 3),  # change of the irises' colour
        "hat": uniform(0.3, 3),  # and of the hat's
        "background": uniform(0.32),  # change of the background's brightness
        "backdrop": uniform(0.12, 3),  # and of its colour
        "gradient": uniform(0.2, 2),  # change of the background to the right, downwards
        "noise": rng.uniform(0, 0.05, n).astype(np.float32),  # largest change of a pixel
        "grain": rng.integers(2**32, size=n, dtype=np.uint32)}  # names the noise's pattern


# Chances of the attributes that depend on Male alone: with it, without it.
_CHANCES = {
    "Mustache": (0.30, 0.01), "Wearing Lipstick": (0.01, 0.50), "Rosy Cheeks": (0.12, 0.30), "Pale Skin": (0.22, 0.22),
    "Bushy Eyebrows": (0.35, 0.10), "Arched Eyebrows": (0.15, 0.40), "Narrow Eyes": (0.25, 0.25),
    "Big Nose": (0.32, 0.16), "Big Lips": (0.25, 0.25), "Chubby": (0.25, 0.20), "Wearing Hat": (0.15, 0.10),
}


def sample_attributes(rng: np.random.Generator, n: int) -> np.ndarray:
    """Draws [n, A] float32 attributes in {0, 1} that go together.

    Exactly one of `EYEWEAR` and one of `MOUTH` hold, at most one of `HAIR` (red hair has no name), not both
    Smiling and Frowning, nor No Beard and Goatee; a beard that is no Goatee is full. Bangs go with neither Bald
    nor Receding Hairline, nor do these two with each other.
    """
    def flip(chance):
        return rng.random(n) < chance

    def choose(*chances):
        return (rng.random(n) < np.cumsum([np.broadcast_to(p, n) for p in chances], axis=0)).argmax(0)

    male, senior = flip(0.5), flip(0.22)
    bald = np.where(male, np.where(senior, 0.25, 0.13), 0.02)
    gray = np.where(senior, 0.55, 0.05)
    rest = 1 - bald - gray
    hair = choose(rest * 0.30, rest * 0.25, rest * 0.30, gray, bald, 1.0)
    eyewear = choose(np.where(senior, 0.5, 0.72), np.where(senior, 0.4, 0.16), 1.0)
    mouth = choose(0.42, 0.36, 1.0)
    hairless = hair == HAIR.index("Bald")
    receding = flip(np.where(male, np.where(senior, 0.45, 0.22), 0.04)) & ~hairless
    smiling, bearded = flip(0.45), flip(np.where(male, 0.38, 0.01))
    columns = {name: flip(np.where(male, *chances)) for name, chances in _CHANCES.items()} | {
        "Male": male, "Senior": senior, "Smiling": smiling, "Frowning": ~smiling & flip(0.35),
        "Receding Hairline": receding, "Bangs": flip(np.where(male, 0.15, 0.4)) & ~hairless & ~receding,
        "No Beard": ~bearded, "Goatee": bearded & flip(0.55),
    }
    for names, choice in ((HAIR, hair), (EYEWEAR, eyewear), (MOUTH, mouth)):
        columns |= {name: choice == k for k, name in enumerate(names)}
    return np.stack([columns[name] for name in ATTRIBUTES], axis=1).astype(np.float32)


def _rgb(red, green, blue):
    """Returns a colour as [3, 1, 1, 1] float32 in [0, 1], from 0..255."""
    return np.array([red, green, blue], np.float32).reshape(3, 1, 1, 1) / 255


def _mix(first, second, weight):
    """Returns first where weight is 0, second where it is 1."""
    return first + weight * (second - first)


def _soft(distance, width=1.0):
    """Returns 1 where a signed distance is inside (negative), 0 outside, with an edge so many pixels wide."""
    return np.clip(0.5 - distance / width, 0, 1)


def _ellipse(x, y, half_width, half_height):
    """Returns roughly the signed distance to an ellipse around the origin."""
    radius = np.sqrt(np.square(x / half_width) + np.square(y / half_height))
    return (radius - 1) * np.minimum(half_width, half_height)


def _blob(x, y, half_width, half_height):
    """Returns a smooth bump of height 1 around the origin."""
    return np.exp(-np.square(x / half_width) - np.square(y / half_height))


def _stroke(x, y, half_length, half_thickness, width=1.0):
    """Returns the mask of a line along x that thins towards its ends."""
    thickness = half_thickness * (1 - np.square(x / half_length))
    return _soft(np.abs(y) - thickness, width) * _soft(np.abs(x) - half_length)


def _paint(image, mask, colour):
    """Covers the image with a colour where the mask, at most 1, says so."""
    image += mask * (colour - image)


def _skin_colour(a, z):
    tone = _mix(_mix(_rgb(226, 172, 138), _rgb(244, 204, 176), np.maximum(-z.tone, 0)), _rgb(128, 84, 62),
                np.maximum(z.tone, 0))
    tone = tone + z.hue * _rgb(8, 0, -10)
    return _mix(tone, _rgb(250, 230, 216), 0.66 * a["Pale Skin"])


def _hair_colour(a, z):
    weights = [a[name] for name in HAIR[:-1]]
    colours = [_rgb(30, 26, 28), _rgb(222, 184, 106), _rgb(96, 60, 36), _rgb(176, 176, 178)]
    unnamed = np.maximum(1 - sum(weights), 0)
    mixed = sum(weight * colour for weight, colour in zip(weights, colours, strict=True))
    return (mixed + unnamed * _rgb(158, 70, 34)) / (sum(weights) + unnamed) * (1 + z.hair_shade)


def _face_radius(x, y, a, z):
    """Returns how far out a pixel is in the face: 0 at its middle, 1 on its outline."""
    y = y + 3
    lower = np.maximum(y, 0) / 32
    width = 22.5 * (1 + z.face_width) * (1 - lower * (0.17 - 0.13 * a["Male"]))
    width = width + 4.6 * a["Chubby"] * np.exp(-np.square((y - 23) / 15))
    height = np.where(y > 0, np.square(lower), np.square(y / 27))
    height = height * (1 + a["Male"] * 0.4 * (np.minimum(height, 1) - 1) * (y > 0))
    return np.sqrt(np.square(x / width) + height)


def _background(image, x, y, a, z):
    image[:] = _rgb(118, 132, 146) + z.background + z.backdrop
    image += (z.gradient[0] * x + z.gradient[1] * y) / 32


def _hair_behind(image, x, y, a, z):
    """Long hair behind the neck, of those who are not Male."""
    mask = _soft(_ellipse(x, y - 6, 29.5, 40)) * _soft(-y - 8, 8) * (1 - a["Bald"]) * (1 - a["Male"])
    _paint(image, mask, 0.62 * _hair_colour(a, z))


def _neck_and_ears(image, x, y, a, z):
    skin = _skin_colour(a, z)
    _paint(image, _soft(np.abs(x) - 14 - 4 * a["Male"]) * _soft(18 - y, 4), 0.62 * skin)
    across = np.abs(x) - 23.5 * (1 + z.face_width)
    _paint(image, _soft(_ellipse(across, y + 1, 3.4, 6.5)), 0.86 * skin)
    _paint(image, 0.6 * _soft(_ellipse(across - 0.4, y + 1, 1.2, 3.8), 2), 0.6 * skin)


def _skin(image, x, y, a, z):
    """The face, darker towards its outline and in the eye sockets, lighter on forehead and cheeks."""
    radius = _face_radius(x, y, a, z)
    across = np.abs(x)
    shade = 1.04 - 0.30 * np.square(np.square(np.minimum(radius, 1.1)))
    shade = shade - 0.15 * _blob(across - 9, y + 7, 7, 4) + 0.05 * _blob(across - 12, y - 4, 6, 5)
    shade = shade - 0.10 * _blob(x, y - 23, 5, 1.8) + 0.04 * _blob(x, y + 18, 11, 5)
    shade = shade + z.light[0] * 0.35 * np.clip(x / 16, -1, 1)
    double_chin = a["Chubby"] * 0.22 * _blob(x, y - 26.2 + x * x * 0.02, 11, 1.1)
    _paint(image, _soft((radius - 1) * 22), _skin_colour(a, z) * (shade - double_chin))


def _cheeks(image, x, y, a, z):
    _paint(image, 0.55 * a["Rosy Cheeks"] * _blob(np.abs(x) - 13.5, y - 6.5, 5, 4.5), _rgb(222, 70, 84))


def _wrinkles(image, x, y, a, z):
    """Lines on the forehead, beside nose and eyes, and bags under the eyes."""
    across = np.abs(x)
    eye = across - 10.5 - z.eye_distance
    lines = sum(_stroke(x, y - height + 0.008 * x * x, 12, 0.75) for height in (-19.5, -16.5))
    lines = lines + _stroke(y - 12, across - 8.6 - 0.3 * (y - 12) + 0.03 * np.square(y - 12), 6.5, 1.0, 1.5)
    lines = lines + _stroke(eye, y - 0.8 + 0.07 * eye * eye, 5.5, 0.9)
    lines = lines + _soft(np.abs(np.abs(y + 4.5) - 0.45 * (across - 16)) - 0.3) * _soft(np.abs(across - 18.5) - 2)
    _paint(image, np.minimum(lines, 1) * 0.42 * a["Senior"], 0.5 * _skin_colour(a, z))


def _beard(image, x, y, a, z):
    """A full beard without No Beard; Goatee and Mustache on top of it."""
    hair = _mix(_skin_colour(a, z), 0.8 * _hair_colour(a, z), 0.85)
    inside = _soft((_face_radius(x, y, a, z) - 0.98) * 22, 2)
    texture = 0.94 + 0.06 * np.sin(2.1 * x + np.sin(y)) * np.sin(1.3 * y)
    full = np.maximum(_soft(15 - y - 0.05 * np.square(np.abs(x) - 9), 6), _soft(_ellipse(x, y - 13, 10, 2.5), 3))
    _paint(image, 0.66 * (1 - a["No Beard"]) * full * inside * texture, hair)
    goatee = _soft(_ellipse(x, y - 23 - 0.5 * z.mouth_height, 9.5, 7.5), 2.5) * _soft(17 - y - 0.25 * np.abs(x), 2)
    _paint(image, a["Goatee"] * goatee * inside * texture, hair)
    mustache = _stroke(x, y - 12.8 - 0.022 * x * x, 10, 2.0, 1.5) * (1 - 0.4 * _blob(x, y - 12, 1, 2))
    _paint(image, a["Mustache"] * mustache, hair)


def _mouth(image, x, y, a, z):
    """Two lips along a curved line, which part to show teeth."""
    unnamed = np.maximum(1 - sum(a[name] for name in MOUTH), 0)
    weight = sum(a[name] for name in MOUTH) + unnamed
    gap = (2.4 * a["Mouth Slightly Open"] + 7.0 * a["Mouth Wide Open"] + 1.2 * unnamed) / weight
    width = 8.2 * (1 + z.mouth_width) + 2.2 * a["Smiling"] - 0.15 * gap
    along = np.square(x / width)
    middle = 17 + z.mouth_height - a["Smiling"] * 3.2 * (along - 0.4) + a["Frowning"] * 2.3 * (along - 0.4)
    arch = np.maximum(1 - along, 0)
    top, bottom = middle - 0.2 * gap * arch, middle + 0.8 * gap * arch
    plump = 1 + 0.75 * a["Big Lips"]
    bow = 1.9 * plump * arch * (1 - 0.25 * np.exp(-np.square(x / 1.6)))
    lips = _soft(np.maximum(top - bow - y, y - bottom - 2.4 * plump * arch)) * _soft(np.abs(x) - width)
    skin = _skin_colour(a, z)
    colour = _mix(skin * _rgb(222, 150, 150), _rgb(186, 16, 48), 0.85 * a["Wearing Lipstick"])
    upper = _soft(y - middle, 2)
    _paint(image, lips * 0.9, colour * (1.08 - 0.2 * upper))
    inside = _soft(np.maximum(top - y, y - bottom)) * _soft(np.abs(x) - width + 0.8) * np.minimum(gap, 1)
    _paint(image, inside, _rgb(70, 18, 22))
    teeth = inside * _soft(y - top - np.minimum(0.55 * gap, 2.6)) * _soft(np.abs(x) - 0.75 * width)
    _paint(image, 0.9 * teeth, _rgb(244, 240, 230))
    line = _stroke(x, y - middle, width + 0.8, 0.55) * np.maximum(1 - gap, 0)
    _paint(image, 0.75 * line, colour * 0.35)
    folds = _stroke(y - 12, np.abs(x) - width - 2.4 + 0.04 * np.square(y - 15), 6, 0.9, 1.5)
    _paint(image, 0.45 * a["Smiling"] * folds, 0.6 * skin)


def _nose(image, x, y, a, z):
    """A ridge with a lit and a shaded side, wings, and nostrils."""
    skin = _skin_colour(a, z)
    size = 1 + 0.6 * a["Big Nose"]
    tip = 8.0 + z.nose_length + 1.2 * a["Big Nose"]
    down = np.clip((y + 6) / (tip + 6), 0, 1)
    width = (1.7 + 2.3 * down * down) * size
    span = _soft(y - tip - 0.5, 3) * _soft(-y - 5, 6)
    side = _blob(np.abs(x) - width, 0, 1.5, 1) * span
    _paint(image, side * np.clip(0.34 - 0.9 * z.light[0] * np.sign(x), 0.05, 0.7), 0.62 * skin)
    _paint(image, 0.5 * _blob(x, 0, 1.3 * size, 1) * span, np.minimum(1.14 * skin, 1))
    wings = np.maximum(_ellipse(np.abs(x) - 3.4 * size, y - tip, 2.0 * size, 2.1),
                       -_ellipse(np.abs(x) - 2.9 * size, y - tip + 0.6, 1.9 * size, 2.0))
    _paint(image, 0.5 * _soft(wings, 1.5), 0.55 * skin)
    _paint(image, 0.45 * _blob(x, y - tip - 2.3, 3.8 * size, 0.9), 0.5 * skin)
    _paint(image, 0.85 * _soft(_ellipse(np.abs(x) - 2.3 * size, y - tip - 1.3, 1.4 * size, 0.9)), 0.28 * skin)


def _eyes(image, x, y, a, z):
    """Almond eyes with iris, pupil, glint, lashes and the fold of the lid."""
    skin = _skin_colour(a, z)
    across = np.abs(x) - 10.3 - z.eye_distance
    y = y + 4.5
    half = 5.3 * (1 + z.eye_size)
    height = 2.9 * (1 + z.eye_size) * (1 - 0.58 * a["Narrow Eyes"])
    arch = 1 - np.square(across / half)
    upper, lower = y + height * arch, y - 0.75 * height * arch
    white = _soft(np.maximum(-upper, lower)) * _soft(np.abs(across) - half)
    _paint(image, white, _rgb(238, 234, 230))
    pupil_x, pupil_y = across - z.gaze[0] * np.sign(x), y + 0.3 - 0.6 * z.gaze[1]
    iris = _ellipse(pupil_x, pupil_y, 2.6, 2.6)
    _paint(image, white * _soft(iris), _rgb(84, 78, 66) + z.iris)
    _paint(image, white * _soft(iris + 1.4), _rgb(16, 12, 12))
    glint = _ellipse(pupil_x + 0.9 * np.sign(x), pupil_y + 0.9, 0.7, 0.7)
    _paint(image, 0.9 * white * _soft(glint), _rgb(255, 255, 255))
    lash = _soft(np.abs(upper) - 0.75 + 0.3 * a["Male"]) * _soft(np.abs(across) - half - 0.6)
    _paint(image, 0.85 * lash, _rgb(36, 24, 22))
    _paint(image, 0.3 * _soft(np.abs(lower) - 0.3) * _soft(np.abs(across) - half), 0.45 * skin)
    fold = _soft(np.abs(y + height * arch + 1.9) - 0.3) * _soft(np.abs(across) - half)
    _paint(image, 0.4 * fold, 0.5 * skin)


def _brows(image, x, y, a, z):
    across = np.abs(x) - 10.8 - z.eye_distance
    inner = np.clip(0.5 - across / 14, 0, 1)
    arch = np.maximum(1 - np.square((across - 1.5) / 6.5), 0)
    centre = z.brow_height - 10.3 - (0.9 + 2.6 * a["Arched Eyebrows"]) * arch
    centre = centre + a["Frowning"] * (3.2 * inner * inner - 0.6)
    thick = (0.95 + 0.45 * a["Male"] + 1.1 * a["Bushy Eyebrows"]) * (0.5 + 0.75 * inner)
    rough = a["Bushy Eyebrows"] * 0.35 * np.sin(2 * across + 1.5 * y)
    mask = _soft(np.abs(y - centre) - thick - rough, 1.2) * _soft(np.abs(across) - 6.8 - a["Bushy Eyebrows"], 1.5)
    colour = _mix(_rgb(58, 40, 30), _hair_colour(a, z), 0.45)
    _paint(image, 0.88 * mask, colour)
    crease = _stroke(y + 9.5, np.abs(x) - 1.9, 3.5, 0.8)
    _paint(image, 0.5 * a["Frowning"] * crease, 0.5 * _skin_colour(a, z))


def _hair(image, x, y, a, z):
    """Hair around the face: long without Male; Bangs over the forehead."""
    male = a["Male"]
    across = np.abs(x)
    outer = _ellipse(x, y + 4 * male, 29.5 - 3.5 * male, 38 - 4 * male + 30 * (1 - male) * (y > 0))
    top = 24.5 - z.hairline + 5.0 * a["Receding Hairline"]
    corner = a["Receding Hairline"] * 4.2 * _blob(across - 12, y + 22, 5, 7)
    width = 20.5 * (1 + z.face_width)
    window = np.where(y < 3, _ellipse(x, y - 3, width, top), across - width)
    window = window - corner - (1 - male) * 0.05 * np.maximum(y - 3, 0)
    length = _soft(y + 4 - 60 * (1 - male), 6)
    mask = _soft(outer, 1.5) * _soft(-window, 1.5) * length
    bangs = _soft(y + 14.6 + 0.8 * np.sin(1.1 * x) - 0.006 * x * x, 1.5) * _soft(outer, 1.5)
    mask = np.maximum(mask, a["Bangs"] * bangs) * (1 - a["Bald"])
    strands = np.sin(1.1 * x * (1 - 0.004 * y)) * np.sin(0.37 * x + 0.06 * y)
    strands = 1 + 0.12 * strands + 0.12 * _blob(x - 6, y + 26, 12, 4)
    shadow = 0.25 * _soft(window - 1.5, 4) * (1 - a["Bangs"] * bangs)
    _paint(image, mask, _hair_colour(a, z) * (strands - shadow))


def _hat(image, x, y, a, z):
    edge = y + 18.2 - 0.006 * x * x
    crown = _soft(_ellipse(x, y + 12, 28.5, 30)) * _soft(edge)
    colour = _rgb(52, 66, 130) + z.hat
    _paint(image, a["Wearing Hat"] * crown, colour * (1.05 - 0.012 * np.abs(x)))
    _paint(image, a["Wearing Hat"] * _soft(np.abs(edge + 2) - 2) * _soft(np.abs(x) - 28), 0.6 * colour)
    shadow = _soft(np.abs(edge - 1.5) - 1.2, 2) * _soft(np.abs(x) - 20)
    _paint(image, 0.35 * a["Wearing Hat"] * shadow, _rgb(30, 20, 20))


def _eyewear(image, x, y, a, z):
    """Dark frames of Eyeglasses, dark lenses of Sunglasses; thin wire where no attribute says which eyewear."""
    eyeglasses, sunglasses = a["Eyeglasses"], a["Sunglasses"]
    wire = np.maximum(1 - eyeglasses - sunglasses - a["No Eyewear"], 0)
    across, y = np.abs(x) - 10.4 - z.eye_distance, y + 3.6
    lens = np.maximum(np.maximum(np.abs(across) - 8, np.abs(y) - 6), (np.abs(across) + np.abs(y)) * 0.75 - 8.2)
    bridge = np.maximum(np.abs(y + 2.5) - 0.7, np.abs(x) - 3 - z.eye_distance)
    temple = np.maximum(np.abs(y + 3) - 0.8, np.abs(np.abs(x) - 21) - 2.4)
    rim = np.minimum(np.minimum(np.abs(lens) - 0.7, bridge), temple)
    shine = _soft(np.abs(across + 0.8 * y + 3) - 1.2, 2)
    _paint(image, sunglasses * _soft(lens), _rgb(34, 32, 40) + 0.012 * np.maximum(y, 0) + 0.10 * shine)
    _paint(image, eyeglasses * _soft(lens) * (0.10 + 0.18 * shine), _rgb(235, 242, 250))
    _paint(image, np.maximum(eyeglasses, sunglasses) * 0.95 * _soft(rim), _rgb(30, 24, 24))
    _paint(image, 0.7 * wire * _soft(rim + 0.4), _rgb(150, 140, 120))


def _light(image, x, y, a, z):
    image *= np.exp(z.exposure) * (1 + (z.light[0] * x + z.light[1] * y) / 32)


def _noise(image, x, y, a, z):
    """Adds noise from a hash of the pixel's place and the face's grain; its bytes serve the three channels."""
    place = np.arange(SIZE * SIZE, dtype=np.uint32).reshape(1, SIZE, SIZE)
    code = (place + z.grain) * np.uint32(0x9E3779B1)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        code = (code ^ (code >> np.uint32(shift))) * np.uint32(factor)
    for channel in range(3):
        image[channel] += z.noise * (((code >> np.uint32(8 * channel)) & np.uint32(255)) / np.float32(127.5) - 1)


# Back to front: what paints, and the (top, left, bottom, right) of the picture that it may reach when moved.
_PARTS = (
    (_background, (0, 0, 64, 64)), (_hair_behind, (0, 0, 64, 64)), (_neck_and_ears, (14, 0, 64, 64)),
    (_skin, (0, 0, 64, 64)), (_cheeks, (16, 0, 60, 64)), (_wrinkles, (4, 4, 60, 60)), (_beard, (26, 4, 64, 60)),
    (_mouth, (32, 10, 64, 54)), (_nose, (14, 12, 54, 52)), (_eyes, (12, 6, 42, 58)), (_brows, (6, 6, 38, 58)),
    (_hair, (0, 0, 64, 64)), (_hat, (0, 0, 28, 64)), (_eyewear, (8, 0, 46, 64)), (_light, (0, 0, 64, 64)),
    (_noise, (0, 0, 64, 64)),
)


def _head_coordinates(z):
    """Returns the head coordinates x, y [n, 64, 64] of the picture's pixels."""
    place = np.arange(SIZE, dtype=np.float32) - (SIZE - 1) / 2
    x, y = place - z.shift[0], place[:, None] - z.shift[1]
    cos, sin = np.cos(z.tilt) / np.exp(z.scale), np.sin(z.tilt) / np.exp(z.scale)
    return cos * x + sin * y, cos * y - sin * x


def _render_chunk(y: np.ndarray, nuisance: dict[str, np.ndarray]) -> np.ndarray:
    attributes = {name: y[:, k, None, None] for k, name in enumerate(ATTRIBUTES)}
    z = SimpleNamespace(**{name: v.T.reshape(*v.shape[1:], len(v), 1, 1) for name, v in nuisance.items()})
    rows, columns = _head_coordinates(z)[::-1]
    image = np.empty((3, len(y), SIZE, SIZE), np.float32)
    for part, (top, left, bottom, right) in _PARTS:
        window = np.s_[..., top:bottom, left:right]
        part(image[window], columns[window], rows[window], attributes, z)
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8).transpose(1, 2, 3, 0)


def render(y: np.ndarray, nuisance: dict[str, np.ndarray]) -> np.ndarray:
    """Draws faces, [n, 64, 64, 3] uint8; each depends on its own row alone.

    y: [n, A] float32 in the order of `ATTRIBUTES`, in [0, 1]; values in between draw faces in between; nuisance: drawn.
    """
    faces = np.empty((len(y), SIZE, SIZE, 3), np.uint8)
    for start in range(0, len(y), CHUNK):
        rows = slice(start, start + CHUNK)
        faces[rows] = _render_chunk(y[rows], {name: v[rows] for name, v in nuisance.items()})
    return faces


def make_synthetic(seed: int = 0, train: int = 4000, validation: int = 500, test: int = 500) -> Dataset:
    """Draws the data set; every part has its own stream of random numbers, whatever the other parts' sizes."""
    def draw(stream: int, n: int) -> Faces:
        rng = np.random.default_rng([seed, stream])
        y = sample_attributes(rng, n)
        return Faces(render(y, sample_nuisance(rng, n)), y, np.ones(y.shape, bool))

    return make_dataset("synthetic", ATTRIBUTES, "binary", *map(draw, range(3), (train, validation, test)))
