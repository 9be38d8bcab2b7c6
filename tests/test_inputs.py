"""inputs.py: what a run says about leaks, in the terminal, in config.json and on its page."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import inputs
import leaks
import train


def scene(rng):
    small = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((16, 16), Image.Resampling.BICUBIC), float)


def draw_tracks(root, name="{t:05d}_{f:05d}"):
    """3 classes with 10 tracks of 8 frames. Neighbouring frames are near-duplicates; the first and last are not."""
    rng = np.random.default_rng(0)
    for c in range(3):
        (root / f"class{c}").mkdir(parents=True)
        for t in range(10):
            first, last = scene(rng), scene(rng)
            for f in range(8):
                frame = Image.fromarray((first + f / 7 * (last - first)).astype(np.uint8))
                frame.save(root / f"class{c}" / (name.format(t=t, f=f, code=rng.bytes(8).hex()) + ".png"))


@pytest.fixture
def start(tmp_path, monkeypatch, capsys):
    """Runs train.py on the folder d, and returns what it prints and config.json."""
    monkeypatch.chdir(tmp_path)

    def start(*words):
        out = f"run{len(list(Path().glob('run*')))}"
        fixed = ["--data", "d", "--size", 16, "--model", "resnet8", "--epochs", 1, "--cache", "cache", "--out", out]
        train.main([str(word) for word in [*fixed, *words]])
        return capsys.readouterr().out, json.loads((Path(out) / "config.json").read_text("utf-8"))

    return start


def refused(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        train.main([str(word) for word in ["--data", "d", "--size", 16, "--epochs", 1, "--out", "no", *words]])
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_tracks_are_warned_of_with_an_expression_also_after_leaks_group_and_not_once_it_is_used(start, tmp_path):
    draw_tracks(tmp_path / "d")
    text, config = start()
    assert re.search(r"groups on both sides: 0, but \d\d by the file names\n", text)
    names, duplicates = config["warnings"]
    assert names.startswith("the names of the 240 files look like 30 groups: ") and f"\nwarning  {names}\n" in text
    assert re.match(r"\d\d% of the validation images are identical to a training image or near-", duplicates)
    assert "--leaks group is not enough" in duplicates and "moves them to one side" not in text
    shared = re.search(r"(\d+)% of the validation images share", names)[1]
    assert int(shared) > 90 and int(duplicates[:2]) > 10

    text, config = start("--leaks", "group")
    assert re.search(r"groups on both sides: 0, but \d+ by the file names\n", text)
    (again,) = config["warnings"]
    assert again.startswith("the names of the 240 files look like 30 groups: ") and "leaks.csv" not in text

    regex = re.search("--group-regex '(.*)'", names)[1]
    assert regex == re.search("--group-regex '(.*)'", again)[1]
    text, config = start("--group-regex", regex)
    assert "groups on both sides: 0\n" in text and "warning" not in text and config["warnings"] == []


def test_frames_without_telling_names_are_a_warning_and_a_note_after_leaks_group(start, tmp_path):
    draw_tracks(tmp_path / "d", "{code}")
    text, config = start()
    assert "groups on both sides: 0\n" in text and "look like" not in text
    (warning,) = config["warnings"]
    assert "frames or photos of the same objects" in warning and f"\nwarning  {warning}\n" in text
    text, config = start("--leaks", "group")
    (note,) = config["notes"]
    assert config["warnings"] == [] and f"\nnote     {note}\n" in text
    assert re.match(r"\d\d% of the validation images have near-duplicates, which --leaks group keeps on one side", note)
    assert "other images of an object may still be on both sides" in note


def test_after_leaks_group_nothing_is_left_to_say_if_the_groups_are_known(start, tmp_path):
    draw_tracks(tmp_path / "d", "x{t}y{f}")
    _, config = start("--leaks", "group", "--group-regex", r"(class\d/x\d+)y")
    assert config["warnings"] == config["notes"] == []


@pytest.mark.parametrize("pairs, is_warning", [(0, False), (10, False), (11, True)])
def test_duplicates_of_more_than_10_percent_of_the_validation_images_are_a_warning(pairs, is_warning):
    found = [leaks.Pair("alike", f"{i}.jpg", "a", f"{i}b.jpg", "a") for i in range(pairs)]
    split = inputs.Split(np.arange(400), np.arange(400, 500), leaks=found)
    inputs.add_duplicate_notes(split, True)
    assert len(split.warnings) == is_warning and len(split.notes) == (pairs > 0)
    if pairs:
        assert f"validation images with a near-duplicate in the training set: {pairs} (see leaks.csv)" in split.notes[0]
        assert split.notes[0].endswith("--leaks group moves them to one side") == (not is_warning)
        fixed = inputs.Split(np.arange(400), np.arange(400, 500), leaks=found)
        inputs.add_duplicate_notes(fixed, False)  # the data fix the split: --leaks group is refused
        assert "--leaks group moves them" not in fixed.notes[0]


@pytest.mark.parametrize("share, is_warning", [(0.1, False), (0.11, True)])
def test_guessed_groups_that_share_more_than_10_percent_are_a_warning(share, is_warning):
    split = inputs.Split(np.arange(80), np.arange(80, 100), guess=leaks.Guess("photos", "(.*)_", 30, share, 3))
    inputs.add_name_note(split, 100)
    assert len(split.warnings) == is_warning and len(split.notes) == (not is_warning)
    assert "use --group-regex '(.*)_'" in (split.warnings + split.notes)[0]


def test_names_without_a_group_are_groups_of_their_own_and_counted(start, tmp_path, capsys):
    draw_tracks(tmp_path / "d")
    folder = tmp_path / "d" / "class0"
    files = sorted(folder.iterdir())
    for i, file in enumerate(files[::7]):  # 12 of 240
        file.rename(folder / f"new{i}.png")
    regex = r"([^/]+/\d+)_\d+\.png"
    text, config = start("--group-regex", regex, "--leaks", "warn")
    note = "--group-regex finds no group in 12 of 240 paths, such as d/class0/new0.png: each of these images is a group"
    assert note in config["notes"][0] and note in text
    files[1].rename(folder / "one_more.png")
    assert "gives no group for 13 of 240 images" in refused(capsys, "--group-regex", regex)


@pytest.mark.parametrize("part", ["image", "label", "group", "fold"])
def test_a_column_of_a_folder_without_a_csv_is_refused_by_its_flag(start, tmp_path, capsys, part):
    draw_tracks(tmp_path / "d")
    error = refused(capsys, f"--{part}-col", "person")
    assert f"train.py: error: --{part}-col: image folder d has no CSV, so it has no column 'person'" in error


def test_groups_by_an_expression_are_read_of_validation_data_too(start, tmp_path):
    draw_tracks(tmp_path / "d")
    for file in sorted((tmp_path / "d").rglob("0000[0-4]_0000[0-3].png")):
        (tmp_path / "v" / file.parent.name).mkdir(parents=True, exist_ok=True)
        file.rename(tmp_path / "v" / file.parent.name / file.name)
    text, _ = start("--val-data", "v", "--group-regex", r"([^/]+/\d+)_\d+\.png")
    assert "groups on both sides: 15\n" in text
