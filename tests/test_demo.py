"""demo.py: the layout, the class counts, the bytes, and interrupted drawings."""

import csv
import hashlib
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import demo

FEW = 8  # people in most tests: 56 photos


def rows_of(root):
    with open(root / "train" / "train.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def digests(root):
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def of_classes(rows):
    """The number of photos of each class, by the competition's formula."""
    ages = [np.searchsorted([30, 60], int(row["age"]), side="right") for row in rows]
    types = [3 * (row["gender"] == "female") + int(age) for row, age in zip(rows, ages, strict=True)]
    return Counter(mask * 6 + kind for kind in types for mask in (0, 0, 0, 0, 0, 1, 2))


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    return demo.draw(tmp_path_factory.mktemp("demo") / "few", people=FEW)


def test_layout_is_the_competitions(few):
    rows = rows_of(few)
    assert list(rows[0]) == ["id", "gender", "race", "age", "path"]
    assert {path.name for path in few.iterdir()} == {"train", "demo.png", "demo.json"}
    assert {path.name for path in (few / "train" / "images").iterdir()} == {row["path"] for row in rows}
    stems = ["incorrect_mask", "mask1", "mask2", "mask3", "mask4", "mask5", "normal"]
    for row in rows:
        assert row["path"] == f"{row['id']}_{row['gender']}_{row['race']}_{row['age']}"
        files = list((few / "train" / "images" / row["path"]).iterdir())
        assert sorted(file.stem for file in files) == stems
        assert {file.suffix for file in files} <= {".jpg", ".jpeg", ".png"}


def test_every_photo_decodes_to_one_size(few):
    files = list((few / "train" / "images").rglob("*.*"))
    assert len(files) == 7 * FEW
    for file in files:
        with Image.open(file) as image:
            assert image.format == ("PNG" if file.suffix == ".png" else "JPEG")
            assert image.convert("RGB").size == (96, 128)


def test_extensions_are_mixed(tmp_path):
    suffixes = Counter(file.suffix for file in demo.draw(tmp_path / "set", people=30).rglob("*mask*.*"))
    assert set(suffixes) == {".jpg", ".jpeg", ".png"}
    assert 130 < suffixes[".jpg"] < 180  # of 180: about 85 %


def test_photos_of_a_person_differ_and_none_is_blank(few):
    for row in rows_of(few):
        files = (few / "train" / "images" / row["path"]).iterdir()
        photos = [np.asarray(Image.open(file).convert("RGB"), float) for file in files]
        assert min(photo.std() for photo in photos) > 20
        assert min(abs(a - b).mean() for i, a in enumerate(photos) for b in photos[:i]) > 2


def test_class_counts_follow_the_real_set():
    rows = demo.cast(demo.PEOPLE, seed=0)
    counts = of_classes(rows)
    real = [2745, 2050, 415, 3660, 4085, 545] + 2 * [549, 410, 83, 732, 817, 109]
    assert len(rows) == demo.PEOPLE and sum(counts.values()) == 7 * demo.PEOPLE
    for k, count in enumerate(real):
        photos = 5 if k < 6 else 1  # one person more or fewer
        assert abs(counts[k] - count * demo.PEOPLE / 2700) < photos
    assert min(counts.values()) < max(counts.values()) / 10
    assert min(demo.type_counts(demo.PEOPLE)) >= 8


@pytest.mark.parametrize("people", [6, 7, 8, 9, 12, 25, 100, 1001, 2700])
def test_type_counts_add_up_and_leave_no_type_empty(people):
    counts = demo.type_counts(people)
    assert sum(counts) == people and min(counts) >= 1


def test_all_the_real_people_give_the_real_counts():
    assert demo.type_counts(2700) == [549, 410, 83, 732, 817, 109]


def test_ids_are_text_with_leading_zeros_and_unique():
    rows = demo.cast(demo.PEOPLE, seed=0)
    ids = [row["id"] for row in rows]
    assert len(set(ids)) == len(ids)
    assert all(len(name.split("-")[0]) == 6 and name.startswith("0") for name in ids)
    twins = [name for name in ids if "-" in name]
    assert 2 <= len(twins) <= len(ids) // 20  # a few, like 001498-1
    assert {name[-2:] for name in twins} == {"-1", "-2"}


def test_ages_crowd_at_the_borders_of_the_brackets():
    ages = Counter(int(row["age"]) for row in demo.cast(demo.PEOPLE, seed=0))
    assert min(ages) >= 18 and max(ages) <= 65
    assert {29, 30, 59, 60} <= set(ages)
    assert sum(ages[age] for age in (27, 28, 29, 30, 31, 57, 58, 59, 60)) > demo.PEOPLE / 2


def test_label_is_the_formula_at_the_borders():
    assert [demo.label("male", age, 0) for age in (18, 29, 30, 59, 60)] == [0, 0, 1, 1, 2]
    assert demo.label("female", 60, 0) == 5
    assert demo.label("male", 29, 1) == 6
    assert demo.label("female", 60, 2) == 17


def test_the_same_seed_gives_the_same_bytes(few, tmp_path):
    again = demo.draw(tmp_path / "again", people=FEW)
    assert digests(again) == digests(few)


def test_another_seed_gives_other_bytes(few, tmp_path):  # the negative control of the test above
    def photos(root):
        return {digest for name, digest in digests(root).items() if "/images/" in name}

    other = demo.draw(tmp_path / "other", people=FEW, seed=1)
    assert rows_of(other) != rows_of(few)
    assert not photos(other) & photos(few)


def test_a_photo_does_not_depend_on_the_order_of_drawing():
    def person():
        return demo.looks(np.random.default_rng([0, 3]), male=True, bracket=1)

    forwards, backwards = person(), person()
    first = [np.asarray(demo.photo(forwards, k)) for k in range(7)]
    last = [np.asarray(demo.photo(backwards, k)) for k in reversed(range(7))][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(first, last, strict=True))
    assert not np.array_equal(first[0], first[1])


def test_a_second_call_touches_nothing(few):
    before = {path: path.stat().st_mtime_ns for path in few.rglob("*")}
    assert demo.draw(few, people=FEW) == few
    assert {path: path.stat().st_mtime_ns for path in few.rglob("*")} == before


def test_other_parameters_in_the_same_folder_are_refused(few):
    before = digests(few)
    with pytest.raises(demo.BadInput, match="'people': 8.*'people': 9.*remove it, or choose a different folder"):
        demo.draw(few, people=FEW + 1)
    with pytest.raises(demo.BadInput, match="'seed': 0.*'seed': 1"):
        demo.draw(few, people=FEW, seed=1)
    assert digests(few) == before


def test_a_folder_without_the_marker_is_refused_and_left_alone(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "mine.txt").write_text("mine")
    with pytest.raises(demo.BadInput, match="is not a demo set"):
        demo.draw(tmp_path / "set", people=6)
    assert [path.name for path in tmp_path.rglob("*")] == ["set", "mine.txt"]


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "set").write_text("mine")
    with pytest.raises(demo.BadInput, match="is not a demo set"):
        demo.draw(tmp_path / "set", people=6)


@pytest.mark.parametrize("content", [b"{", b"\xff", b""])
def test_a_damaged_marker_is_refused_and_named(tmp_path, content):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "demo.json").write_bytes(content)
    with pytest.raises(demo.BadInput, match="set is not a demo set .*demo.json is damaged"):
        demo.draw(tmp_path / "set", people=6)
    assert (tmp_path / "set" / "demo.json").read_bytes() == content


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "set").mkdir()
    assert len(rows_of(demo.draw(tmp_path / "set", people=6))) == 6


def test_an_interrupted_drawing_leaves_no_data_set_and_the_next_one_is_whole(few, tmp_path, monkeypatch):
    photo, drawn = demo.photo, []

    def interrupted(person, index):
        drawn.append(index)
        if len(drawn) > 20:
            raise KeyboardInterrupt
        return photo(person, index)

    monkeypatch.setattr(demo, "photo", interrupted)
    with pytest.raises(KeyboardInterrupt):
        demo.draw(tmp_path / "set", people=FEW)
    assert list(tmp_path.iterdir()) == []  # the temporary folder is removed too
    monkeypatch.setattr(demo, "photo", photo)
    assert digests(demo.draw(tmp_path / "set", people=FEW)) == digests(few)


def test_what_a_killed_drawing_left_is_not_used(few, tmp_path):
    killed = tmp_path / "set.drawing-abc" / "whole"
    shutil.copytree(few, killed)
    (killed / "demo.json").unlink()
    shutil.rmtree(killed / "train" / "images")
    assert digests(demo.draw(tmp_path / "set", people=FEW)) == digests(few)
    assert killed.is_dir()  # another process may still be drawing into it


def test_of_two_drawings_at_once_one_wins_and_both_go_on(few, tmp_path, monkeypatch):
    root, paint = tmp_path / "set", demo.paint

    def overtaken(folder, people, seed):
        paint(folder, people, seed)
        shutil.copytree(few, root)  # the other process finishes first

    monkeypatch.setattr(demo, "paint", overtaken)
    assert demo.draw(root, people=FEW) == root
    assert digests(root) == digests(few)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_two_processes_draw_at_once(few, tmp_path):
    command = [sys.executable, str(Path(demo.__file__)), str(tmp_path / "set"), "--people", str(FEW)]
    both = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait(timeout=60) for process in both] == [0, 0]
    assert digests(tmp_path / "set") == digests(few)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"people": 5}, "people must be >= 6, at least one of each type, got 5"),
        ({"people": 0}, "people must be >= 6, at least one of each type, got 0"),
        ({"seed": -1}, "seed must be >= 0, got -1"),
    ],
)
def test_impossible_parameters_are_refused(tmp_path, options, message):
    with pytest.raises(demo.BadInput, match=message):
        demo.draw(tmp_path / "set", **options)
    assert list(tmp_path.iterdir()) == []


def run_alone(folder, *arguments):
    """Runs a copy of demo.py in a folder without the other modules."""
    shutil.copy(demo.__file__, folder / "demo.py")
    command = [sys.executable, "-s", "demo.py", *arguments]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=60)


def test_runs_when_copied_alone(tmp_path):
    done = run_alone(tmp_path, "--people", "6")
    assert done.returncode == 0, done.stderr
    assert "6 people, 42 photos" in done.stdout
    assert len([line for line in done.stdout.splitlines() if line.split()[0].isdigit()]) == 18  # one line per class
    with Image.open(tmp_path / "demo_data" / "demo.png") as sheet:
        assert min(sheet.size) > 600


def test_a_wrong_command_ends_with_one_line_and_code_2(tmp_path):
    done = run_alone(tmp_path, "--people", "5")
    assert done.returncode == 2 and "people must be >= 6" in done.stderr and "Traceback" not in done.stderr


def test_imports_only_numpy_pillow_and_the_standard_library(tmp_path):
    script = "import sys, demo; demo.cast(9, 0); print({'torch', 'torchvision', 'tqdm'} & set(sys.modules))"
    shutil.copy(demo.__file__, tmp_path / "demo.py")
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "set()", done.stderr
