"""Two face detectors on photographs that packages bring: dlib's, by which a photograph's face is found, and Viola and
Jones's, by which LFW's were.

    pip install scikit-image scikit-learn matplotlib && python -m benchmarks.photos

Each photograph lies in four ways. A find is right where the face is, and the photograph upright; every other is false.
"""

import importlib.util
import pathlib
import time

import numpy as np
from PIL import Image

from cmma_jax.sampling.photos import Box, detect, turned

PHOTOGRAPHS = {  # of packages that may be there: where their face is, left, top, width, height; None: there is none
    "matplotlib/mpl-data/sample_data/grace_hopper.jpg": (170, 150, 200, 200),
    "skimage/data/astronaut.png": (185, 85, 85, 85),
    **dict.fromkeys(["skimage/data/" + name for name in (
        "camera.png", "chelsea.png", "coffee.png", "coins.png", "rocket.jpg", "motorcycle_left.png", "retina.jpg",
        "gravel.png", "brick.png", "hubble_deep_field.jpg")]),
    **dict.fromkeys(["sklearn/datasets/images/china.jpg", "sklearn/datasets/images/flower.jpg"])}


def viola_jones(picture: Image.Image) -> list[Box]:
    """Returns the faces that OpenCV's detector finds, by its usual settings."""
    import cv2
    cascade = cv2.CascadeClassifier(cv2.data.haarcascades + "haarcascade_frontalface_default.xml")
    grey = cv2.equalizeHist(np.asarray(picture.convert("L")))
    return [Box(*map(float, box)) for box in cascade.detectMultiScale(grey, scaleFactor=1.1, minNeighbors=5)]


def main() -> None:
    """Prints a row a detector."""
    pictures = []
    for path, place in PHOTOGRAPHS.items():
        package, rest = path.split("/", 1)
        spec = importlib.util.find_spec(package)
        if spec and spec.origin and (file := pathlib.Path(spec.origin).parent / rest).exists():
            pictures.append((Image.open(file).convert("RGB"), place))
    faces = sum(place is not None for _, place in pictures)
    print(f"{len(pictures)} photographs, {faces} with a face, in four ways\n\n| detector | faces found | false finds, "
          "upright | false finds, turned | seconds a picture |\n|---|---|---|---|---|")
    for name, find in (("dlib, as the package has it", lambda picture: detect(picture)[1]),
                       ("Viola and Jones, OpenCV", viola_jones)):
        right, wrong, began = 0, {True: 0, False: 0}, time.perf_counter()
        for picture, place in pictures:
            for turn in (0, 90, 180, 270):
                for box in find(turned(picture, turn)):
                    hit = turn == 0 and place is not None and _inside(box, Box(*place))
                    right += hit
                    wrong[turn == 0] += not hit
        seconds = (time.perf_counter() - began) / (4 * len(pictures))
        print(f"| {name} | {right} of {faces} | {wrong[True]} | {wrong[False]} | {seconds:.2f} |")


def _inside(box: Box, place: Box) -> bool:
    """Whether the middle of a find lies in a face's place."""
    x, y = box.left + box.width / 2, box.top + box.height / 2
    return place.left <= x <= place.left + place.width and place.top <= y <= place.top + place.height


if __name__ == "__main__":
    main()
