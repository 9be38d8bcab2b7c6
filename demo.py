# From f1kit. MIT licence, copyright (c) 2026 The f1kit authors. Keep this line and LICENSE with a copy of this file.
"""The demo data set: drawn faces with and without masks, so that training needs no download.

    python demo.py                          # draws demo_data/ (400 people, 2,800 photos, about 15 MB, a few seconds)
    python demo.py FOLDER --people 60       # a different folder, fewer people

    ROOT/train/train.csv                                 id,gender,race,age,path
    ROOT/train/images/000123_female_Asian_25/mask1.jpg   7 photos per person: mask1 ... mask5, incorrect_mask, normal
    ROOT/demo.png                                        a picture: one row of photos per type of person
    ROOT/demo.json                                       the settings; a folder without it is not a demo set

It copies these properties of the mask competition's data set:
    - the folder layout, text ids, mixed file extensions, and seven photos per person;
    - the 18 classes (mask * 6 + gender * 3 + age bracket);
    - the numbers of people, and so the imbalance: the largest class has about 50 times the photos of the smallest;
    - many ages close to the borders of the age brackets.
The people are not real. They are cartoons of 96 x 128 pixels, much easier than photographs. A face depends on the age
bracket, not on the exact age, and the features of gender and age are invented. The features of the two younger brackets
overlap on purpose. The oldest bracket has few people, so its features are clearer.
A score on this set shows that training works. It does not predict the score on photographs.

Needs numpy and Pillow. The same people, seed and library versions give the same bytes.
"""

import argparse
import csv
import json
import os
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

VERSION = 1  # of the drawing code: increased when the pictures change
PEOPLE = 400  # 2,800 photos; the smallest of the six types has 12 people
WIDTH, HEIGHT = 96, 128  # the real photos are 384 x 512
GENDERS = ("male", "female")
AGES = ((18, 29), (30, 59), (60, 65))  # the three age brackets: < 30, < 60, >= 60
REAL_COUNTS = (549, 410, 83, 732, 817, 109)  # people in the real set, by type = gender * 3 + age bracket
STEMS = ("mask1", "mask2", "mask3", "mask4", "mask5", "incorrect_mask", "normal")
STATES = ("wear", "incorrect", "normal")  # the mask's part of the label; 5, 1 and 1 photos per person
COLUMNS = ("id", "gender", "race", "age", "path")


class BadInput(ValueError):
    """A file or value that the user gave is wrong. The message tells which one, what is valid, and what to do."""


# ---------------------------------------------------------------------------------------------------------------------
# People: ids, genders and ages


def type_counts(people: int) -> list[int]:
    """People of each type, (6,): the real proportions by the largest-remainder method, and at least one of each."""
    quotas = people * np.array(REAL_COUNTS) / sum(REAL_COUNTS)
    counts = np.floor(quotas).astype(int)
    rest = people - counts.sum()
    counts[np.argsort(counts - quotas, kind="stable")[:rest]] += 1  # the largest remainders first
    while counts.min() == 0:  # a very small set
        counts[counts.argmin()] += 1
        counts[counts.argmax()] -= 1
    return counts.tolist()


def cast(people: int, seed: int) -> list[dict]:
    """The rows of train.csv."""
    rng = np.random.default_rng([seed, people])
    types = np.repeat(np.arange(6), type_counts(people))
    rows, number = [], 0
    for index, kind in enumerate(types[np.argsort(rng.random(people))].tolist()):
        gender, (low, high) = GENDERS[kind // 3], AGES[kind % 3]
        borders = [age for age in (27, 28, 29, 30, 31, 57, 58, 59, 60) if low <= age <= high]
        age = borders[rng.integers(len(borders))] if rng.random() < 0.6 else int(rng.integers(low, high + 1))
        if index % 100 != 4:  # a few people share a number: 000093-1 and 000093-2
            number += int(rng.integers(1, 30))
        person = f"{number:06d}" + {3: "-1", 4: "-2"}.get(index % 100, "")
        row = (person, gender, "Asian", str(age), f"{person}_{gender}_Asian_{age}")
        rows.append(dict(zip(COLUMNS, row, strict=True)))
    return rows


def label(gender: str, age: int, state: int) -> int:
    """The class of a photo, in [0, 18). state is the index in STATES."""
    return state * 6 + GENDERS.index(gender) * 3 + (0 if age < 30 else 1 if age < 60 else 2)


# ---------------------------------------------------------------------------------------------------------------------
# Shapes: (colour, points, line width or 0 for a filled polygon). The origin of the coordinates is the middle of the
# face, x points right, y down, 1 is half the width of the face. Eyes at y = -0.12, mouth at 0.75, chin at 1.35.


def bell(rng: np.random.Generator, mean: float, std: float) -> float:
    """A roughly normal draw within 3 std of the mean. Only random() is used: it is the same in all numpy versions."""
    return mean + std * 2 * (float(rng.random(3).sum()) - 1.5)


def blend(a, b, t: float) -> tuple[int, ...]:
    """The colour (1 - t) a + t b."""
    return tuple(int(x + (y - x) * t) for x, y in zip(a, b, strict=True))


def oval(x: float, y: float, rx: float, ry: float, start=0.0, stop=1.0, square=1.0) -> np.ndarray:
    """Points of an ellipse, clockwise from its right end; start and stop in turns. square < 1 widens its corners."""
    angle = 2 * np.pi * np.linspace(start, stop, max(6, int(24 * (stop - start))))
    c, s = np.cos(angle), np.sin(angle)
    return np.stack([x + rx * np.sign(c) * np.abs(c) ** square, y + ry * np.sign(s) * np.abs(s) ** square], 1)


def mirror(colour, points, width=0) -> list[tuple]:
    """A shape and its mirror image."""
    return [(colour, points, width), (colour, np.asarray(points) * (-1, 1), width)]


def looks(rng: np.random.Generator, male: bool, bracket: int) -> SimpleNamespace:
    """The features that a person has in all photos. Most overlap between the genders and the age brackets."""
    p, sex = SimpleNamespace(male=male), 1 if male else -1
    # hair: long for most women and few men; in the oldest bracket grey unless dyed, and men have less of it
    dyed, unusual = rng.random() < (0.25, 0.2, 0.1)[bracket], rng.random() < (0.09, 0.09, 0)[bracket]
    p.grey = min(1, max(0, bell(rng, (-0.1, 0.15, 0.95)[bracket], 0.1))) * (1 - dyed * (0.8, 0.8, 0.4)[bracket])
    hair = blend((22, 18, 20), (78, 50, 34), rng.random())
    hair = blend(hair, ((150, 98, 52), (118, 50, 36), (70, 42, 30))[bracket], dyed * rng.random())
    p.hair, p.part = blend(hair, (208, 208, 212), p.grey), bell(rng, 0, 0.3)
    p.long = 0 if male != unusual else bell(rng, 0.9, 0.25) if male else max(0.5, bell(rng, 1.5, 0.4))
    p.volume = max(0.02, bell(rng, ((0.2, 0.17, 0.18), (0.14, 0.11, 0.05))[male][bracket], 0.03))
    p.hairline = bell(rng, ((-0.55, -0.7, -0.55), (-0.65, -0.8, -1.3))[male][bracket], 0.08)
    # face: skin, jaw, eyebrows, eyes, beard shadow, lips; wrinkles and glasses are more frequent with age
    p.skin = blend(blend((247, 214, 186), (196, 146, 112), rng.random()), (170, 116, 86), (0, 0.12, 0.4)[bracket])
    p.jaw, p.neck = bell(rng, 0.86 - 0.1 * sex, 0.05), bell(rng, 0.55 + 0.07 * sex, 0.04)
    p.brow, p.eyes = max(0.03, bell(rng, 0.085 + 0.03 * sex, 0.014)), bell(rng, 0.125 - 0.012 * sex, 0.01)
    p.beard = max(0, bell(rng, 0.22, 0.12)) if male else 0
    p.lips, p.smile = min(1, max(0, bell(rng, 0.4 - 0.3 * sex, 0.15))), bell(rng, 0.03, 0.03)
    p.lines = min(1, max(0, bell(rng, (0.12, 0.48, 1.05)[bracket], 0.13)))
    p.glasses, p.rim = rng.random() < (0.25, 0.3, 0.45)[bracket], blend((20, 20, 24), (120, 80, 50), rng.random())
    # clothes and room
    taste = ((240, 210, 90), (40, 50, 80), (120, 120, 90) if male else (170, 90, 140))[bracket]
    p.cloth, p.collar = blend(rng.integers(30, 230, 3).tolist(), taste, 0.4), rng.random() < 0.4
    p.shoulders = bell(rng, 2.0 + 0.12 * sex, 0.1)
    p.wall, p.door = blend((232, 232, 226), rng.integers(50, 230, 3).tolist(), 0.35), (4 * rng.random() - 1) * WIDTH
    p.seed = int(rng.integers(2**31))  # seed of the photos
    p.body, p.face, p.front = body_shapes(p), head_shapes(p) + feature_shapes(p), hair_shapes(p)
    return p


def body_shapes(p: SimpleNamespace) -> list[tuple]:
    """Shoulders and clothes, which do not tilt with the head."""
    w = p.shoulders
    right = [(0.5, 1.7), (0.7 * w, 1.95), (w, 2.3), (w + 0.3, 6)]
    shapes = [(p.cloth, right + [(-x, y) for x, y in right[::-1]], 0)]
    if p.collar:
        shapes += mirror(blend(p.cloth, (255, 255, 255), 0.4), [(0.05, 2.5), (0.45, 1.5), (0.85, 1.75), (0.4, 2.75)])
    return shapes


def head_shapes(p: SimpleNamespace) -> list[tuple]:
    """Hair behind the head, neck, ears, face, beard shadow, wrinkles."""
    shade, w, shapes = blend(p.skin, (90, 50, 40), 0.25), 1.1 + p.volume, []
    if p.long:
        back = np.concatenate([oval(0, -0.2, w, 1.2 + p.volume, 0.5, 1), [(w * 1.05, p.long), (-w * 1.05, p.long)]])
        shapes += [(blend(p.hair, (0, 0, 0), 0.25), back, 0)]
    shapes += [(shade, [(-p.neck, 0.8), (p.neck, 0.8), (p.neck, 1.75), (0, 2.2), (-p.neck, 1.75)], 0)]
    shapes += mirror(shade, oval(1.03, 0.05, 0.13, 0.26))
    shapes += [(p.skin, np.concatenate([oval(0, 0, 1, 1.35, 0, 0.5, p.jaw), oval(0, 0, 1, 1.3, 0.5, 1)]), 0)]
    if p.beard > 0.05:
        chin = np.concatenate([oval(0, 0, 0.97, 1.32, 0.03, 0.47, p.jaw), [(-0.5, 0.5), (0, 0.42), (0.5, 0.5)]])
        shapes += [(blend(p.skin, (60, 62, 70), p.beard), chin, 0)]
    if p.lines > 0.2:
        line, thin, thick = blend(p.skin, (80, 40, 30), 0.12 + 0.42 * p.lines), 1 + p.lines, 1 + 2 * p.lines
        for y in (-0.62, -0.78, -0.93)[: 1 + int(p.lines * 2.5)]:  # on the forehead
            shapes += [(line, [(-0.5, y + 0.03), (-0.2, y), (0.2, y), (0.5, y + 0.03)], thin)]
        shapes += mirror(line, [(0.24, 0.12), (0.42, 0.17), (0.6, 0.1)], thick)  # under the eyes
        shapes += mirror(line, [(0.66, -0.12), (0.84, -0.2)], thin) + mirror(line, [(0.66, -0.08), (0.84, -0.02)], thin)
        shapes += mirror(line, [(0.24, 0.4), (0.42, 0.62), (0.46, 0.82)], thick)  # from nose to mouth
    return shapes


def feature_shapes(p: SimpleNamespace) -> list[tuple]:
    """Eyes, eyebrows, nose and mouth."""
    shapes = mirror((250, 250, 248), oval(0.42, -0.12, 0.21, p.eyes))
    shapes += mirror((38, 26, 22), oval(0.42, -0.12, 0.1, p.eyes))
    shapes += mirror((30, 22, 22), [(0.2, -0.14), (0.3, -0.23), (0.5, -0.25), (0.65, -0.15)], 2 if p.male else 3.4)
    brow = [(0.17, -0.45), (0.45, -0.53), (0.7, -0.43), (0.45, -0.53 + 1.5 * p.brow), (0.17, -0.45 + p.brow)]
    shapes += mirror(blend(p.hair, (30, 24, 24), 0.4), brow)
    nose = [(-0.1, -0.1), (-0.19, 0.36), (0.0, 0.44), (0.19, 0.36), (0.05, 0.3)]
    shapes += [(blend(p.skin, (110, 60, 45), 0.45), nose, 0)]
    lip, corner = blend(blend(p.skin, (150, 70, 66), 0.5), (196, 40, 62), p.lips), 0.76 - p.smile
    mouth = [(-0.36, corner), (-0.1, 0.7), (0, 0.72), (0.1, 0.7), (0.36, corner), (0.15, 0.87), (-0.15, 0.87)]
    return shapes + [(lip, mouth, 0), (blend(lip, (40, 0, 0), 0.5), [mouth[0], (0, 0.78), mouth[4]], 1.5)]


def hair_shapes(p: SimpleNamespace) -> list[tuple]:
    """Hair in front of the head, and glasses on top."""
    w, top, part = 1.04 + p.volume, 1.33 + p.volume, 0.5 * p.part
    x = np.linspace(0.95, -0.95, 15)
    edge = p.hairline + (-0.2 - p.hairline) * np.minimum(np.abs(x - part), 1) ** 3
    shapes = [(p.hair, np.concatenate([oval(0, -0.05, w, top, 0.49, 1.01), np.stack([x, edge], 1)]), 0)]
    if p.long:
        end = min(p.long, 1.9)
        shapes += mirror(p.hair, [(0.86, -0.5), (w, -0.4), (w * 1.05, end), (0.92, end), (0.94, 0.2)])
    streak = blend(p.hair, (225, 225, 230), 0.12 + 0.35 * p.grey)
    for at in (-0.75, -0.4, 0.1, 0.45, 0.8):
        points = [(part + at * 0.3, 0.08 - top), (at * 0.8, 0.2 - top), (at, max(p.hairline, -1.2) - 0.08)]
        shapes += [(streak, points, 1.5)]
    if p.glasses:
        shapes += mirror(p.rim, oval(0.43, -0.08, 0.31, 0.25), 3) + mirror(p.rim, [(0.74, -0.12), (1.02, -0.1)], 3)
        shapes += [(p.rim, [(-0.12, -0.12), (0.12, -0.12)], 3)]
    return shapes


def mask_shapes(rng: np.random.Generator, style: int, incorrect: bool) -> list[tuple]:
    """A mask: white, blue, black, folded or patterned. Worn incorrectly: below the nose, on the chin or on the eyes."""
    colours = ((240, 240, 242), (150, 196, 226), (40, 40, 46), (226, 226, 222), rng.integers(90, 240, 3).tolist())
    base = blend(colours[style], rng.integers(0, 256, 3).tolist(), 0.12)
    dark, light, slack = blend(base, (20, 20, 40), 0.3), blend(base, (255, 255, 255), 0.6), rng.random()
    top, low = bell(rng, 0.13, 0.03), 1.42
    if incorrect:
        top, low = (0.64, 1.5) if slack < 0.55 else (1.02, 1.65) if slack < 0.9 else (-0.42, 0.42)
    middle, half = (top + low) / 2, (low - top) / 2
    w = 0.9 if middle < 1.2 else 0.78
    right = [(0, top - 0.06), (0.3, top), (w, top + 0.12), (0.95 * w, middle), (0.5, low - 0.08), (0, low)]
    shapes = mirror(dark, [(w, top + 0.15), (1.05, min(top, 0))], 2)  # the straps
    shapes += mirror(dark, [(0.95 * w, middle), (1.05, 0.15)], 2)
    shapes += [(base, right + [(-x, y) for x, y in right[::-1]], 0)]
    if style < 2:
        shapes += [(dark, [(-0.9 * w, middle + t * half), (0.9 * w, middle + t * half)], 1.5) for t in (-0.3, 0.1, 0.5)]
    elif style == 3:
        shapes += [(dark, [(-w, middle + y), (0, middle + 2.6 * y), (w, middle + y)], 2) for y in (-0.1, 0.1)]
    elif style == 4:
        spots = [(x, t) for x in (-0.5, 0, 0.5) for t in (-0.45, 0.45)] + [(-0.25, 0), (0.25, 0)]
        shapes += [(light, oval(x, middle + t * half, 0.07, 0.07), 0) for x, t in spots]
    return shapes


# ---------------------------------------------------------------------------------------------------------------------
# Photos: pose, drawing, light, blur and noise


def place(shapes: list[tuple], pose: SimpleNamespace, tilt: float, turn: float) -> list[list]:
    """The points of the shapes in pixels. `turn` moves the middle of a face sideways, but not its outline."""
    ends = np.cumsum([len(points) for _, points, _ in shapes])[:-1]
    x, y = np.concatenate([points for _, points, _ in shapes]).T
    x = x + turn * np.clip(1 - (x / 1.15) ** 2, 0, 1)
    c, s = np.cos(tilt) * pose.scale, np.sin(tilt) * pose.scale
    points = np.stack([pose.x + c * x - s * y, pose.y + s * x + c * y], 1)
    return [part.ravel().tolist() for part in np.split(points, ends)]


def photo(p: SimpleNamespace, index: int) -> Image.Image:
    """Photo `index` of a person, drawn from its own seed."""
    rng = np.random.default_rng([p.seed, index])
    pose = SimpleNamespace(x=bell(rng, WIDTH, 4), y=bell(rng, HEIGHT * 0.93, 4), scale=bell(rng, 56, 2))
    image = Image.new("RGB", (2 * WIDTH, 2 * HEIGHT), p.wall)  # twice the size, halved at the end: smooth edges
    pen = ImageDraw.Draw(image)
    pen.rectangle((p.door, 20, p.door + 70, 2 * HEIGHT), blend(p.wall, (90, 80, 70), 0.25))
    style = index if index < 5 else int(rng.integers(5))
    cover = mask_shapes(rng, style, index == 5) if index < 6 else []
    for shapes, tilt, turn in ((p.body, 0, 0), (p.face + cover + p.front, bell(rng, 0, 0.05), bell(rng, 0, 0.08))):
        for (colour, _, width), points in zip(shapes, place(shapes, pose, tilt, turn), strict=True):
            if width:
                pen.line(points, colour, max(1, round(width * pose.scale / 45)), "curve")
            else:
                pen.polygon(points, colour)
    image = image.reduce(2).filter(ImageFilter.BoxBlur(0.1 + 0.4 * rng.random()))
    down, right = bell(rng, 0, 0.05) * np.linspace(-1, 1, HEIGHT), bell(rng, 0, 0.06) * np.linspace(-1, 1, WIDTH)
    light = (bell(rng, 0.97, 0.06) + down[:, None] + right).astype(np.float32)[..., None]  # (H, W, 1)
    tint = (1 + (rng.random(3) - 0.5) * 0.06).astype(np.float32)
    noise = rng.integers(-128, 128, (HEIGHT, WIDTH, 3), np.int8) * np.float32(0.04 + 0.04 * rng.random())
    pixels = np.asarray(image) * light * tint + noise  # (H, W, 3) float32
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


# ---------------------------------------------------------------------------------------------------------------------
# The folder


def paint(folder: Path, people: int, seed: int) -> None:
    """Writes all photos, train.csv and demo.png into a new folder."""
    rows, shown = cast(people, seed), {}
    for index, row in enumerate(rows):
        rng = np.random.default_rng([seed, index])  # one per person, so that a face does not depend on the other people
        kind = label(row["gender"], int(row["age"]), 2) - 12
        person, endings = looks(rng, kind < 3, kind % 3), rng.random(7)
        album = folder / "train" / "images" / row["path"]
        album.mkdir(parents=True)
        photos = [photo(person, k) for k in range(7)]
        for stem, image, ending in zip(STEMS, photos, endings, strict=True):
            name = f"{stem}.{'jpg' if ending < 0.85 else 'jpeg' if ending < 0.95 else 'png'}"
            image.save(album / name, quality=85, compress_level=1)
        shown.setdefault(kind, (f"{row['gender']} {row['age']}", photos))
    with open(folder / "train" / "train.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    sheet = Image.new("RGB", (7 * (WIDTH + 4), 6 * (HEIGHT + 18) + 18), "white")
    pen = ImageDraw.Draw(sheet)
    for k, stem in enumerate(STEMS):
        pen.text((k * (WIDTH + 4) + 2, 3), stem, "black")
    for kind, (text, photos) in shown.items():
        for k, image in enumerate(photos):
            sheet.paste(image, (k * (WIDTH + 4) + 2, 18 + kind * (HEIGHT + 18)))
        pen.text((2, 18 + kind * (HEIGHT + 18) + HEIGHT + 1), text, "black")
    sheet.save(folder / "demo.png")


def is_drawn(root: Path, wanted: dict) -> bool:
    """True if `root` contains exactly this set, False if it is missing or empty. BadInput for anything else."""
    file, advice = root / "demo.json", "remove it, or choose a different folder"
    if file.is_file():
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise BadInput(f"{root} is not a demo set ({file} is damaged: {error}): {advice}") from error
        if found == wanted:
            return True
        raise BadInput(f"{root} contains the demo set {found}, not {wanted}: {advice}")
    if root.exists() and not (root.is_dir() and not any(root.iterdir())):
        raise BadInput(f"{root} is not a demo set (it has no demo.json): {advice}")
    return False


def draw(root: str | Path = "demo_data", people: int = PEOPLE, seed: int = 0) -> Path:
    """Draws the set into the folder `root` and returns the folder. A set that is already there is not drawn again.

    The set is drawn into a temporary folder beside `root`, which is renamed when it is complete. So an interrupted
    drawing is never used as a data set. If two processes draw at once, both get the set of the first to finish.

    Raises: BadInput if people < 6 or seed < 0, or `root` contains anything else.
    """
    if people < 6:
        raise BadInput(f"people must be >= 6, at least one of each type, got {people}")
    if seed < 0:
        raise BadInput(f"seed must be >= 0, got {seed}")
    root, wanted = Path(root), {"version": VERSION, "people": people, "seed": seed}
    if is_drawn(root, wanted):
        return root
    parent = root.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{root.name}.drawing-", dir=parent) as temporary:
        drawn = Path(temporary) / "whole"
        paint(drawn, people, seed)
        (drawn / "demo.json").write_text(json.dumps(wanted), encoding="utf-8")
        try:
            if root.is_dir():
                root.rmdir()  # works only if it is empty
            os.rename(drawn, root)
        except OSError:
            if not is_drawn(root, wanted):  # True if another process was faster
                raise
    return root


def main() -> None:
    parser = argparse.ArgumentParser(description="Draws the demo data set.")
    parser.add_argument("root", nargs="?", default="demo_data", help="output folder (default demo_data)")
    parser.add_argument(
        "--people", type=int, default=PEOPLE, help=f"number of people, 7 photos each (default {PEOPLE})"
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed of people and photos (default 0)")
    options = parser.parse_args()
    try:
        root = draw(options.root, options.people, options.seed)
    except (OSError, BadInput) as error:
        parser.error(str(error))
    counts = type_counts(options.people)
    print(f"{root}: {options.people} people, {7 * options.people} photos")
    print("class  mask       gender  age    people  photos")
    for state, (name, photos) in enumerate(zip(STATES, (5, 1, 1), strict=True)):
        for kind, count in enumerate(counts):
            age = ("< 30", "30-59", ">= 60")[kind % 3]
            print(f"{state * 6 + kind:5}  {name:9}  {GENDERS[kind // 3]:6}  {age:5}  {count:6}  {count * photos:6}")
    print(f"imbalance (largest / smallest class): {5 * max(counts) / min(counts):.0f}")
    print(f"To see the photos, open {root / 'demo.png'}. To train on them: --data {root}")


if __name__ == "__main__":
    main()
