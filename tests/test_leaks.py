"""leaks.py: near-duplicates, groups from file names, both sides of a split, and the answer of `python leaks.py`."""

import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter

import leaks
from data import ImageTable, shared_groups, split
from pixels import decode


def scene(seed):
    """A picture with large and small things in it, as photographs have."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((96, 80), Image.Resampling.BICUBIC)


def array_of(pictures, size=64):
    return np.stack([np.asarray(picture.resize((size, size))) for picture in pictures])


def jpeg(image, **options):
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


# --- near-duplicates -------------------------------------------------------------------------------------------------

COPIES = {
    "saved at quality 30": lambda image: Image.open(io.BytesIO(jpeg(image, quality=30))),
    "half the size": lambda image: image.resize((48, 40)),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "more contrast": lambda image: ImageEnhance.Contrast(image).enhance(1.3),
    "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(2)),
    "noisy": lambda image: Image.fromarray(
        (np.asarray(image, int) + np.random.default_rng(0).normal(0, 20, (80, 96, 3))).clip(0, 255).astype(np.uint8)
    ),
    "cropped": lambda image: image.crop((2, 2, 94, 78)),
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "turned and noisy": lambda image: COPIES["noisy"](image).transpose(Image.Transpose.ROTATE_90),
    "turned and mirrored": lambda image: image.transpose(Image.Transpose.TRANSVERSE),
}


@pytest.mark.parametrize("name", COPIES)
def test_copies_are_found_and_different_images_are_not(name):
    originals = [scene(i) for i in range(60)]
    pixels = array_of([*originals, *(COPIES[name](image) for image in originals[:20])])
    same, alike = leaks.find_copies(pixels)
    assert (same == np.arange(80)).all()
    assert (alike[:60] == np.arange(60)).all()  # none of 1,770 pairs of different images
    assert (alike[60:] == np.arange(20)).mean() > 0.9


def test_identical_images_are_found_and_one_grey_level_makes_another():
    originals = [scene(i) for i in range(5)]
    changed = np.array(originals[1].resize((64, 64)))
    changed[3, 3, 0] ^= 1
    pixels = np.concatenate([array_of([*originals, originals[0], originals[0]]), changed[None]])
    same, alike = leaks.find_copies(pixels)
    assert same.tolist() == [0, 1, 2, 3, 4, 0, 0, 7] and alike.tolist() == [0, 1, 2, 3, 4, 0, 0, 1]


def test_blank_pages_are_not_alike_unless_identical():
    rng = np.random.default_rng(0)
    pages = [Image.fromarray((250 + rng.integers(0, 3, (64, 64, 3))).astype(np.uint8)) for _ in range(30)]
    same, alike = leaks.find_copies(array_of([*pages, pages[0]]))
    assert (alike[:30] == np.arange(30)).all() and alike[30] == same[30] == 0


# --- the result is kept ----------------------------------------------------------------------------------------------


@pytest.fixture
def cached(tmp_path):
    """(decoded images from a cache file, the file where the result is kept): image 4 is image 1."""
    paths = [str(tmp_path / f"{i}.png") for i in range(5)]
    for i, path in enumerate(paths):
        scene(i).save(path)
    shutil.copy(paths[1], paths[4])
    images = decode(paths, np.arange(5) % 2, 20, tmp_path / "cache")
    return images, images.file.with_suffix(".copies.npz")


def searches(monkeypatch):
    """Counts how often the images are compared."""
    counted, find = [], leaks._find_copies
    monkeypatch.setattr(leaks, "_find_copies", lambda *words: counted.append(1) or find(*words))
    return counted


def test_what_was_found_is_kept_and_used_again(cached, monkeypatch):
    images, kept = cached
    counted = searches(monkeypatch)
    first = leaks.find_copies(images.pixels, kept=kept)
    again = leaks.find_copies(images.pixels, kept=kept)
    assert again[0].tolist() == again[1].tolist() == first[0].tolist() == [0, 1, 2, 3, 1]
    assert len(counted) == 1 and sorted(path.suffix for path in kept.parent.iterdir()) == [".npy", ".npz"]
    leaks.find_copies(images.pixels)
    assert len(counted) == 2  # without `kept`


@pytest.mark.parametrize(
    "spoil",
    [
        lambda kept: kept.write_bytes(b""),
        lambda kept: kept.write_bytes(kept.read_bytes()[:-20]),
        lambda kept: kept.write_bytes(b"PK\3\4 not an archive"),
        lambda kept: kept.write_bytes(b"\x93NUMPY\1\0v\0{'descr': (((("),
        lambda kept: np.savez(kept, found=np.zeros((2, 4), np.int64)),
        lambda kept: np.savez(kept, found=np.zeros((2, 5))),
        lambda kept: np.savez(kept, found=np.array([{}] * 2)),
        lambda kept: np.savez(kept, other=np.zeros((2, 5), np.int64)),
        lambda kept: np.save(kept.open("wb"), np.zeros((2, 5), np.int64)),
        lambda kept: kept.write_bytes(kept.read_bytes().replace(np.int64([3, 1]).tobytes(), bytes(16))),
        lambda kept: os.utime(kept, ns=(1, 1)),  # older than the pixels
        lambda kept: kept.unlink(),
    ],
)
def test_a_kept_file_that_is_broken_or_stale_is_computed_again(cached, monkeypatch, spoil):
    images, kept = cached
    right = leaks.find_copies(images.pixels, kept=kept)
    spoil(kept)
    counted = searches(monkeypatch)
    for _ in range(2):  # and written again
        found = leaks.find_copies(images.pixels, kept=kept)
        assert np.array_equal(found, right) and len(counted) == 1


def test_a_kept_file_as_old_as_the_pixels_is_used_and_one_of_an_array_in_memory_too(cached, monkeypatch):
    images, kept = cached
    leaks.find_copies(images.pixels, kept=kept)
    counted = searches(monkeypatch)
    os.utime(kept, ns=(os.stat(images.file).st_mtime_ns,) * 2)
    leaks.find_copies(images.pixels, kept=kept)
    os.utime(kept, ns=(1, 1))
    leaks.find_copies(np.array(images.pixels), kept=kept)
    assert not counted


def test_what_was_found_alike_is_forgotten_when_a_file_is_mended(tmp_path):
    paths = [str(tmp_path / f"{i}.png") for i in range(3)]
    for i, path in enumerate(paths):
        Image.effect_noise((16, 16), 50 + i).convert("RGB").save(path)
    good, status = Path(paths[0]).read_bytes(), os.stat(paths[0])
    for content, n in ((b"\0" * len(good), 2), (good, 3)):
        Path(paths[0]).write_bytes(content)
        os.utime(paths[0], ns=(status.st_atime_ns, status.st_mtime_ns))
        images = decode(paths, np.zeros(3, np.int64), 16, tmp_path / "cache", bad="skip")
        assert len(leaks.find_copies(images.pixels, kept=images.file.with_suffix(".copies.npz"))[0]) == n


def test_E3_a_full_disk_leaves_no_kept_file_and_a_planted_link_is_not_followed(cached, tmp_path, monkeypatch):
    images, kept = cached

    def full(file):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            leaks.find_copies(images.pixels, kept=kept)
    assert [path.suffix for path in kept.parent.iterdir()] == [".npy"]
    (tmp_path / "victim").write_text("precious")
    monkeypatch.setattr(leaks.secrets, "token_hex", lambda n: "00")  # as if its random name had been guessed
    kept.with_name(f".{kept.name}.00.{leaks.socket.gethostname()}-{os.getpid()}.tmp").symlink_to(tmp_path / "victim")
    with pytest.raises(FileExistsError):
        leaks.find_copies(images.pixels, kept=kept)
    assert (tmp_path / "victim").read_text() == "precious"


def test_E7_an_eps_file_with_the_name_of_a_photo_is_not_opened(tmp_path):
    (tmp_path / "x.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\n%%EOF\n")
    assert leaks._decode(str(tmp_path / "x.jpg")).startswith("not an image in one of the formats JPEG, PNG, ")


def test_a_kept_file_that_cannot_be_written_is_an_os_error_and_leaves_nothing(tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        leaks.find_copies(array_of([scene(0)]), kept=tmp_path / "nowhere" / "kept.npy")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        leaks.find_copies(array_of([scene(0)]), kept=tmp_path / "folder")
    assert os.listdir(tmp_path) == ["folder"]


# --- both sides of a split -------------------------------------------------------------------------------------------


def test_each_validation_image_with_a_copy_in_training_is_named_once():
    paths, targets, classes = [f"{i}.jpg" for i in range(6)], np.array([0, 1, 0, 1, 0, 1]), ["0", "1"]
    same = np.array([0, 1, 2, 0, 4, 5])  # 3 is 0 again, with another label
    alike = np.array([0, 1, 2, 0, 1, 0])
    train, val = np.array([0, 1, 2]), np.array([3, 4, 5])
    assert leaks.find_leaks(paths, targets, classes, same, alike, train, val) == [
        ("identical", "3.jpg", "1", "0.jpg", "0"),
        ("alike", "4.jpg", "0", "1.jpg", "1"),
        ("alike", "5.jpg", "1", "0.jpg", "0"),
    ]
    assert leaks.find_leaks(paths, targets, classes, np.arange(6), np.arange(6), train, val) == []
    assert leaks.find_two_labels(paths, targets, classes, same) == [("identical", "3.jpg", "1", "0.jpg", "0")]


# --- names that look like groups -------------------------------------------------------------------------------------


def named_table(names, targets):
    targets = np.asarray(targets)
    return ImageTable(names, targets, names, [str(c) for c in range(targets.max() + 1)], "made")


def suspected(table, train, val):
    return leaks.suspect_groups(table.paths, table.targets, table.classes, table.groups, train, val)


LIKE_COPIES = {
    "{i:04d}.jpg {i:04d}_aug1.jpg {i:04d}_aug2.jpg": 3,
    "aug_{i:04d}_0.jpg aug_{i:04d}_1.jpg": 2,
    "{i}_rotated_90.jpg {i}_rotated_180_noisy.jpg {i}.jpg": 3,
    "scan {i} (1).png scan {i} (2).png scan {i}.png": 3,
    "d/{i}.jpg d/{i}_hflip.jpg d/{i}_blur.jpg": 3,
}


@pytest.mark.parametrize("pattern", LIKE_COPIES)
def test_D6_names_that_look_like_copies_are_a_guess_whose_expression_puts_it_right(pattern):
    # "scan 3 (1).png" has blanks, so the names of a pattern end with their extension
    forms = [form for form in re.findall(r"\S.*?\.\w+", pattern)]
    names = [form.format(i=i) for i in range(50) for form in forms]
    table = named_table(names, np.repeat(np.arange(50) % 5, len(forms)))
    guess = suspected(table, *split(table))
    assert "copies of one image" in guess.what and guess.count == 50 and guess.share > 0.6
    table.groups = leaks.groups_by_regex(names, guess.regex)
    assert len(set(table.groups)) == 50
    train, val = split(table)
    assert shared_groups(table, train, val) == 0 and suspected(table, train, val) is None


def test_copies_are_a_guess_although_a_few_have_a_wrong_label():
    names, targets = [f"{i}_aug{k}.jpg" for i in range(60) for k in range(3)], np.repeat(np.arange(60) % 4, 3)
    targets[[5, 90]] = [2, 3]
    guess = suspected(named_table(names, targets), *split(named_table(names, targets)))
    assert guess.what.startswith("copies of one image (") and guess.count == 60


@pytest.mark.parametrize("form, groups", [("{i:06d}-1_{k}.jpg", 60), ("images/{i:06d}_male/{k}.jpg", 60)])
def test_names_that_look_like_photos_of_a_person_are_a_guess(form, groups):
    names = [form.format(i=i, k=k) for i in range(60) for k in ("mask1", "mask2", "normal")]
    table = named_table(names, np.tile([0, 0, 1], 60))
    guess = suspected(table, *split(table))
    assert guess.count == groups and guess.what.startswith("several photos of one person")


def tracks(frames, root=""):
    """CLASS/TRACK_FRAME of 5 classes with 12 tracks each, numbered from 0 in every class; and the class of each."""
    rows = [(c, t, f) for c in range(5) for t in range(12) for f in frames]
    return [f"{root}class{c}/{t:05d}_{f:05d}.ppm" for c, t, f in rows], np.array([c for c, _, _ in rows])


@pytest.mark.parametrize("odd", [0, 30])
@pytest.mark.parametrize("frames", [range(30), range(0, 30, 2), [0, 7]])
def test_tracks_that_are_numbered_from_0_in_every_class_are_groups_within_their_class_folder(frames, odd):
    names, targets = tracks(frames, "signs/")
    for i in range(odd * len(names) // 900):  # a few names of another form
        names[7 * i] = f"signs/class{targets[7 * i]}/new{i}.ppm"
    table = named_table(names, targets)
    guess = suspected(table, *split(table))
    assert guess.count == 60 + odd * len(names) // 900 and guess.share > 0.1
    groups = leaks.groups_by_regex(names, guess.regex)
    assert {groups[i] for i in range(len(names)) if "_" in names[i]} == {
        f"class{c}/{t:05d}" for c in range(5) for t in range(12)
    }
    table.groups = groups
    train, val = split(table)
    assert shared_groups(table, train, val) == 0 and suspected(table, train, val) is None


def test_tracks_with_folders_of_their_own_are_groups_within_their_class_folder():
    names, targets = tracks(range(9), "signs/")
    names = [name.replace("_", "/") for name in names]
    table = named_table(names, targets)
    guess = suspected(table, *split(table))
    assert guess.count == 60 and leaks.groups_by_regex(names, guess.regex)[0] == "class0/00000"


def test_tracks_that_are_numbered_over_all_classes_are_groups_without_the_folder():
    names = [f"signs/class{t % 5}/{t:05d}_{f:05d}.ppm" for t in range(60) for f in range(9)]
    table = named_table(names, np.arange(540) // 9 % 5)
    guess = suspected(table, *split(table))
    assert guess.count == 60 and leaks.groups_by_regex(names, guess.regex)[0] == "00000"


@pytest.mark.parametrize("most", [30, 4, 2])
def test_the_person_is_named_and_not_the_first_name(most):
    people = [
        f"{first}{middle}_{last}" for first in ("George", "Anna", "Li") for middle in ("", "_W") for last in "abcdefgh"
    ]
    photos = [most if i % 3 == 0 else 1 for i in range(len(people))]  # most people have one photo
    names = [f"faces/{name}_{k + 1:04d}.jpg" for name, n in zip(people, photos, strict=True) for k in range(n)]
    table = named_table(names, np.arange(len(names)) % 2)
    guess = suspected(table, *split(table))
    assert guess.count == 48 and set(leaks.groups_by_regex(names, guess.regex)) == set(people)


def test_groups_that_are_guessed_are_counted_on_both_sides_and_no_guess_if_none_is():
    names = [f"{i:03d}_{k}.jpg" for i in range(50) for k in range(4)]
    table, rows = named_table(names, np.arange(200) // 4 % 3), np.arange(200)
    guess = suspected(table, rows[:182], rows[182:])  # groups 0 to 45, and 45 to 49: two of 18 share a group
    assert guess.on_both_sides == 1 and guess.share == 2 / 18
    assert suspected(table, rows[:180], rows[180:]) is None


@pytest.mark.parametrize(
    "form",
    [
        "{c}/DSC_{i:04d}.jpg",
        "{c}/img_{i:04d}.jpg",
        "{c}/IMG-20240131-WA{i:04d}.jpg",
        "{c}{i}.jpg",
        "{c}/{c}{i}.jpg",
        "{c}/{c}_{n}.jpg",
        "{c}/{c} ({n}).jpg",
        "train/{c}/image_{i:04d}.jpg",
        "{side}/{c}/img_{i:04d}.jpg",
        "{c}/{hash}.jpg",
        "{c}/{hash}_{i}.jpg",
        "{c}/{hash:.8}-{hash:.4}-4{hash:.3}-a{hash:.3}-{hash:.12}.jpg",
        "{c}/{n:05d}_0001.jpg",
        "{c}/{n:05d}_o.jpg",
        "{c}/Black_Footed_{c}_{n:04d}_{hash:.5}.jpg",
        "ILSVRC2012_val_{n:08d}.JPEG",
    ],
)
def test_names_with_a_prefix_of_all_images_or_of_one_are_no_groups(form):
    rows = [(c, i, c * 40 + i) for c in range(5) for i in range(40)]
    names = []
    for c, i, n in rows:
        code = hashlib.sha1(str(n).encode()).hexdigest()
        side = "val" if i % 5 == 0 else "train" if i % 5 < 4 else "test"
        names.append("data/" + form.format(c=f"class{'abcde'[c]}", i=i, n=n, hash=code, side=side))
    table = named_table(names, np.repeat(np.arange(5), 40))
    assert suspected(table, *split(table)) is None


def test_the_names_of_trashnet_are_no_groups():
    sizes = {"cardboard": 403, "glass": 501, "metal": 410, "paper": 594, "plastic": 482, "trash": 137}
    names = [f"{name}{i + 1}.jpg" for name, n in sizes.items() for i in range(n)]
    targets = np.repeat(np.arange(6), list(sizes.values()))
    for place in ("{0}", "dataset/{1}/{0}"):
        table = named_table([place.format(name, name.rstrip("0123456789.jpg")) for name in names], targets)
        assert suspected(table, *split(table)) is None


@pytest.mark.parametrize(
    "form",
    [
        "{c}/{i:04d}.jpg",
        "{c}_{i:04d}.jpg",
        "{i}.jpg",
        "n{c:08d}_{n}.JPEG",
        "{c}/img_{n}.jpg",
        "IMG{n}.jpg",
    ],
)
def test_plain_numbers_and_class_names_are_no_groups(form):
    names = [form.format(c=c, i=i, n=c * 100 + i) for c in range(5) for i in range(30)]
    if len(set(names)) < 150:
        names = [form.format(c=c, i=c * 30 + i) for c in range(5) for i in range(30)]
    table = named_table(names, np.repeat(np.arange(5), 30))
    assert suspected(table, *split(table)) is None


@pytest.mark.parametrize("form", ["{side}/{c}/{i:04d}.jpg", "{side}/{i:04d}.jpg"])
def test_equal_names_in_two_folders_are_no_copies_but_names_of_copies_in_two_folders_are(form):
    names = [form.format(side=side, c=i % 5, i=i) for side in ("train", "test") for i in range(100)]
    targets, rows = np.tile(np.arange(100) % 5, 2), np.arange(200)
    assert suspected(named_table(names, targets), rows[:100], rows[100:]) is None
    names[100:] = [name.replace(".jpg", "_aug1.jpg") for name in names[100:]]
    assert suspected(named_table(names, targets), rows[:100], rows[100:]).share == 1


def test_the_names_of_a_torchvision_data_set_are_no_groups():
    names = [f"CIFAR10/{part}/{i}" for part in ("train", "test") for i in range(100)]
    table = named_table(names, np.arange(200) % 10)
    assert suspected(table, *split(table)) is None


def test_known_groups_are_not_suspected():
    names = [f"{i}_aug{k}.jpg" for i in range(40) for k in range(3)]
    table = named_table(names, np.repeat(np.arange(40) % 4, 3))
    assert suspected(table, *split(table))
    table.groups = [name[:2] for name in names]
    assert suspected(table, *split(table)) is None


def test_groups_by_an_expression_are_its_first_group_or_the_whole_match():
    paths = ["d/s0_aug1.png", "d/s0_aug2.png", "d/s10_aug1.png"]
    assert leaks.groups_by_regex(paths, r"(s\d+)_aug") == ["s0", "s0", "s10"]
    assert leaks.groups_by_regex(paths, r"s\d+_") == ["s0_", "s0_", "s10_"]
    assert leaks.groups_by_regex(paths, r"(x)|s(\d+)_") == ["0", "0", "10"]
    decomposed = [unicodedata.normalize("NFD", "각하_1.png"), "각하_2.png"]
    assert leaks.groups_by_regex(decomposed, "(.+)_") == ["각하", "각하"]
    for regex, said in (
        ("(", r"'\(' is not a valid regular expression: "),
        (r"s0_", r"'s0_' gives no group for 1 of 3 images, such as d/s10_aug1.png"),
        (r"(x?)s", "gives no group for 3 of 3 images"),
    ):
        with pytest.raises(leaks.BadInput, match=said):
            leaks.groups_by_regex(paths, regex)


def test_up_to_5_percent_of_the_paths_may_be_without_a_group_and_are_groups_of_their_own():
    paths = [f"{i}_{k}.png" for i in range(19) for k in range(2)] + ["cover.png", "back.png"]
    groups = leaks.groups_by_regex(paths, r"(\d+)_")
    assert groups == [str(i) for i in range(19) for _ in range(2)] + ["cover.png", "back.png"]
    assert leaks.without_group(paths, r"(\d+)_") == ["cover.png", "back.png"]
    with pytest.raises(leaks.BadInput, match="gives no group for 2 of 39 images, such as cover.png"):
        leaks.groups_by_regex(paths[1:], r"(\d+)_")


# --- python leaks.py TRAIN [VAL] -------------------------------------------------------------------------------------


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """leaks.py in a folder of its own, with train (20 images of 2 classes) and val (10, without a leak)."""
    shutil.copy(leaks.__file__, tmp_path)
    for i in range(20):
        save(tmp_path / "train" / "ab"[i % 2] / f"{i}.png", scene(i))
    for i in range(20, 30):
        save(tmp_path / "val" / "ab"[i % 2] / f"{i}.png", scene(i))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def ask(capsys):
    def ask(*words):
        leaks.answer(*words)
        return capsys.readouterr().out

    return ask


@pytest.mark.parametrize(
    "words, code, said, error",
    [
        (["train", "val"], 0, "\n\nno leak found\n", ""),
        (["train", "nowhere"], 2, "", "leaks.py: error: nowhere is neither a folder of images nor a CSV file\n"),
        ([], 1, "", "python leaks.py TRAIN VAL"),
        (["train", "val", "test"], 1, "", "python leaks.py TRAIN VAL"),
    ],
)
def test_alone_in_a_folder_it_answers_or_says_what_is_wrong(alone, words, code, said, error):
    done = subprocess.run([sys.executable, "leaks.py", *words], capture_output=True, text=True)
    assert done.returncode == code and done.stdout.endswith(said) and error in done.stderr
    assert "Traceback" not in done.stderr and (code or not done.stderr)


def test_a_split_without_leaks_is_called_so(alone, ask):
    said = ask("train", "val")
    assert said.startswith("TRAIN train: images 20, classes 2\nVAL   val: images 10, classes 2\n")
    assert "identical to a TRAIN image: 0 of 10" in said and said.endswith("\n\nno leak found\n")
    assert ask("train").endswith("\n\nno leak found\n")


def test_copies_on_both_sides_are_counted_and_named_with_their_labels(alone, ask):
    save(alone / "val" / "a" / "new.png", scene(3))  # in train it is of class b
    save(alone / "val" / "b" / "flipped.png", scene(5).transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    said = ask("train", "val")
    assert "that are identical to a TRAIN image: 1 of 12 (8.3%)\n  VAL a/new.png (a), TRAIN b/3.png (b)\n" in said
    assert "near-duplicates of a TRAIN image: 1 of 12 (8.3%)\n  VAL b/flipped.png (b), TRAIN b/5.png (b)\n" in said
    assert "identical to one with a different label: 1 of 32 (3.1%)\n  a/new.png (a), b/3.png (b)\n" in said
    assert said.endswith("\nleak: 2 of 12 VAL images (16.7%) have a duplicate in TRAIN\n")
    assert max(map(len, said.splitlines())) <= 80


def test_more_than_20_pairs_are_20_and_a_number(alone, ask):
    for i in range(23):
        save(alone / "val" / "a" / f"new{i:02d}.png", scene(4))
    said = ask("train", "val")
    assert said.count("  VAL a/new") == 20 and "\n  and 3 more\n" in said


def test_one_folder_is_judged_by_what_a_random_split_would_leak(alone, ask):
    for i in (1, 2):
        save(alone / "train" / "a" / f"new{i}.png", scene(4))
    said = ask("train")
    assert "Images that are identical to an earlier image: 2 of 22 (9.1%)\n  a/new1.png (a), a/4.png (a)\n" in said
    # a cluster of 3: each is in validation with 0.2, and then one of the others is in training with 1 - 0.2^2
    assert np.isclose(leaks._expected_leaks(np.array([0, 1, 2, 2, 2])), 3 * 0.2 * 0.96)
    assert said.replace("\n  ", " ").endswith(
        "\nleak: in a random 20% split, about 1 of 4 validation images (13.1%) would have a duplicate in training\n"
    )


def test_the_expected_leaks_are_the_mean_over_random_splits():
    rng = np.random.default_rng(0)
    cluster = rng.integers(0, 300, 1000)
    leaking = []
    for _ in range(200):
        is_val = rng.random(1000) < leaks.VAL_SHARE
        leaking.append(np.isin(cluster[is_val], cluster[~is_val]).sum())
    assert abs(np.mean(leaking) - leaks._expected_leaks(cluster)) < 3
    assert leaks._expected_leaks(np.arange(1000)) == 0


def test_groups_guessed_from_names_are_a_leak_with_their_expression(alone, ask):
    for i in range(100, 150):
        for k in range(3):
            save(alone / "people" / f"{i}_{k}.png", scene(3 * i + k))
            save(alone / ("old" if k else "new") / f"{i}_{k}.png", scene(3 * i + k))
    said = ask("people").replace("\n  ", " ")
    assert "look like 50 groups: several photos of one person or object (same name before the last number)" in said
    assert r"--group-regex '([^/\\]+)[\s._-]\d+\.\w+$'" in said
    share = "about 96% of the validation images would share a group with training"  # 1 - 0.2^2
    assert f"If these groups are real, a random 20% split leaks: {share}." in said
    assert said.endswith(f"\nleak: by the file names, {share}\n")
    said = ask("old", "new").replace("\n  ", " ")
    assert said.endswith("\nleak: by the file names, 100% of the VAL images share a group with TRAIN\n")


def test_equal_names_in_two_folders_are_no_leak(alone, ask):
    for i in range(20):
        save(alone / "renumbered" / "ab"[i % 2] / f"{i}.png", scene(100 + i))
    assert ask("train", "renumbered").endswith("\nno leak found\n")


def test_folders_without_classes_have_no_labels(alone, ask):
    for i in range(4):
        save(alone / "flat" / f"{i}.png", scene(i + 8))
    said = ask("train", "flat")
    assert "VAL   flat: images 4, classes unknown\nTRAIN and VAL have no class in common" in said
    assert "  VAL 0.png, TRAIN a/8.png (a)\n" in said and "different label: 0 of 24" in said


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp949"])
@pytest.mark.parametrize("place", ["", "train", "images"])
def test_csvs_are_read_by_their_image_and_label_columns(alone, ask, encoding, place):
    names = ["각하.png", "나비.png", "c.png", "d.png"]
    for i, name in enumerate(names):
        save(alone / "set" / place / unicodedata.normalize("NFD", name), scene(i + 50))
    lines = [f"{i},{name},{'고양이' if i % 2 else '개'},{'x' * 300}\n" for i, name in enumerate(names)]
    text = "no,ID,Target,note\n" + "".join(lines)
    (alone / "set" / "train.csv").write_bytes(text.encode(encoding))
    (alone / "set" / "val.csv").write_text("ID,kind\nc.png,y\n")
    said = ask("set/train.csv", "set/val.csv").replace("\n  ", " ")
    folder = "/".join(filter(None, ["set", place]))
    assert f"set/train.csv: images 4, classes 2 (image column ID, label column Target, images in {folder})" in said
    assert f"set/val.csv: images 1, classes 1 (image column ID, label column kind, images in {folder})" in said
    assert "VAL c.png, TRAIN c.png (개)" in said and "leak: 1 of 1 VAL images (100.0%)" in said


@pytest.mark.parametrize("separator", [";", "\t"])
def test_B6_B7_a_csv_with_another_separator_and_korean_headers_is_read(alone, separator):
    for i, name in enumerate("ab"):
        save(alone / f"{name}.png", scene(i + 50))
    rows = [["파일명", "라벨", "메모"], ["a.png", "cat", "1,2"], ["b.png", "dog", ""]]
    (alone / "sheet.csv").write_text("".join(separator.join(row) + "\n" for row in rows), encoding="utf-8")
    side = leaks.read_side("sheet.csv")
    assert side.labels == ["cat", "dog"] and "image column 파일명, label column 라벨" in side.read_as


def test_a_csv_of_names_alone_or_without_extensions_is_read(alone):
    for i in range(3):
        save(alone / "set" / f"{i:03d}.JPG", scene(i + 50))
    (alone / "names.csv").write_text("id\nset\\000\nset/001\nset/002.JPG\n")
    side = leaks.read_side("names.csv")
    assert side.files == ["set/000.JPG", "set/001.JPG", "set/002.JPG"] and side.labels == ["", "", ""]
    assert side.read_as == " (image column id, no label column, images in .)"


def test_what_cannot_be_decoded_is_listed_counted_and_left_out(alone, ask):
    (alone / "train" / "a" / "text.png").write_text("no image")
    (alone / "val" / "a" / "cut.png").write_bytes((alone / "val" / "a" / "20.png").read_bytes()[:999])
    (alone / "val.csv").write_text("image,label\nval/a/20.png,a\nval/a/gone.png,a\n")
    said = ask("train", "val")
    assert "2 of 32 images cannot be decoded:\n  train/a/text.png: not an image" in said
    assert "\n  val/a/cut.png: " in said and "\nThese images are left out.\n" in said
    assert "identical to a TRAIN image: 0 of 10" in said and said.endswith("\nno leak found\n")
    said = ask("train", "val.csv")
    assert "2 of 23 images cannot be decoded:" in said and "\n  val/a/gone.png: No such file or directory\n" in said
    assert "identical to a TRAIN image: 0 of 1 " in said


@pytest.mark.parametrize(
    "words, said",
    [
        (["nowhere"], "nowhere is neither a folder of images nor a CSV file"),
        (["train", "nowhere"], "nowhere is neither a folder of images nor a CSV file"),
        (["empty"], "empty has no image (.bmp, "),
        (
            ["text.csv"],
            "text.csv has no image column: no value is an image file in . or its train, images or test folder. "
            "Its columns are a, b",
        ),
        (["header.csv"], "header.csv has no rows"),
        (["train/a/0.png"], "0.png is not a CSV in UTF-8, UTF-16 or cp949"),
        (["quote.csv"], "quote.csv cannot be read as a CSV: "),
        (["broken"], "1 of 1 images cannot be decoded:"),
        (["train", "broken"], "no VAL image can be decoded"),
        (["broken", "val"], "no TRAIN image can be decoded"),
    ],
)
def test_bad_input_is_one_line_that_names_it(alone, words, said):
    (alone / "empty").mkdir()
    (alone / "broken").mkdir()
    (alone / "broken" / "x.jpg").write_bytes(b"")
    (alone / "text.csv").write_text("a,b\nhello," + "word " * 1000 + "\n")
    (alone / "header.csv").write_text("a,b\n")
    (alone / "quote.csv").write_text('a,b\n"hello,x\n')
    with pytest.raises(leaks.BadInput) as error:
        leaks.answer(*words)
    assert said in str(error.value)
    assert len(str(error.value).splitlines()) == 1 or "cannot be decoded:" in str(error.value)


def test_our_own_errors_are_not_called_bad_input(alone, monkeypatch):
    monkeypatch.setattr(leaks, "find_copies", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        leaks.answer("train")


def test_photos_of_every_kind_are_compared_as_train_py_does(tmp_path):
    """Orientation, transparency, 16 bits and palettes: a copy saved in another way is the same picture."""
    photo = scene(7)
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "exif.png", exif=exif)
    photo.save(tmp_path / "plain.png")
    photo.quantize(256).save(tmp_path / "palette.png")
    photo.quantize(256).convert("RGB").save(tmp_path / "colors.png")
    photo.convert("RGBA").save(tmp_path / "alpha.png")
    photo.save(tmp_path / "photo.jpg", quality=95)
    grey = np.asarray(photo.convert("L")).astype(np.uint16) * 257
    Image.fromarray(grey).save(tmp_path / "grey16.png")
    photo.convert("L").save(tmp_path / "grey.png")
    Image.new("RGBA", (96, 80), (9, 9, 9, 0)).save(tmp_path / "clear.png")
    Image.new("RGB", (96, 80), "white").save(tmp_path / "white.png")
    Image.fromarray(np.zeros((8, 8), np.float32)).save(tmp_path / "float.tif")
    side = leaks.read_side(str(tmp_path))
    pixels, reasons = leaks.decode_thumbnails(side.files)
    assert [(side.names[i], "floating-point" in reason) for i, reason in reasons.items()] == [("float.tif", True)]
    names = [name for name in side.names if name != "float.tif"]
    images = dict(zip(names, np.array(pixels).astype(int), strict=True))
    equal = [("exif", "plain"), ("alpha", "plain"), ("palette", "colors"), ("grey16", "grey"), ("clear", "white")]
    for one, other in equal:
        assert np.array_equal(images[f"{one}.png"], images[f"{other}.png"]), one
    assert np.abs(images["photo.jpg"] - images["plain.png"]).max() <= 20
