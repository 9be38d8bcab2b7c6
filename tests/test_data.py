"""data.py: layouts, classes, splits without leaks. Small files are made here; nothing is downloaded."""

import csv
import os
import re
import shutil
import struct
import subprocess
import sys
import time
import unicodedata
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

import data
from data import BadInput, ImageTable, join, read, split
from pixels import decode


def picture(seed=0, size=(12, 10), mode="RGB"):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def write_images(folder, counts, extension=".png"):
    """folder/CLASS/00.png ..., each of another content."""
    number = 0
    for name, n in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            picture(number := number + 1).save(folder / name / f"{i:02d}{extension}")
    return folder


def table_of(targets, groups=None):
    targets = np.asarray(targets)
    paths = [f"{i}.jpg" for i in range(len(targets))]
    groups = paths if groups is None else [str(group) for group in groups]
    return ImageTable(paths, targets, groups, [str(c) for c in range(targets.max() + 1)], "made")


def write_csv(path, rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


# --- reading ---------------------------------------------------------------------------------------------------------


def test_D16_an_image_folder_is_read_in_sorted_order_without_dot_files(tmp_path):
    write_images(tmp_path, {"나": 2, "cat": 3})
    (tmp_path / "cat" / "._00.png").write_bytes(b"mac")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / "cat" / "notes.txt").write_text("x")
    (tmp_path / "cat" / ".ipynb_checkpoints").mkdir()
    picture(1).save(tmp_path / "cat" / ".ipynb_checkpoints" / "00-checkpoint.png")
    picture(9).save(tmp_path / "cat" / "Z.JPEG")
    table = read(str(tmp_path))
    assert table.classes == ["cat", "나"]
    assert [os.path.basename(p) for p in table.paths] == ["00.png", "01.png", "02.png", "Z.JPEG", "00.png", "01.png"]
    assert table.targets.tolist() == [0, 0, 0, 0, 1, 1]
    notes = tmp_path / "cat" / "notes.txt"
    assert table.notes == [f"ignored files or folders that are not images: 1, such as {notes}"]


@pytest.mark.parametrize("name", ["val", "valid"])
def test_a_folder_with_train_and_val_keeps_that_split(tmp_path, name):
    write_images(tmp_path / "train", {"a": 3, "b": 3})
    write_images(tmp_path / name, {"a": 1, "b": 2})
    table = read(str(tmp_path))
    train, val = split(table)
    assert len(train) == 6 and len(val) == 3
    assert all(f"/{name}/" in table.paths[i] for i in val)


def test_a_test_folder_beside_train_is_left_alone_and_said_so(tmp_path):
    write_images(tmp_path / "train", {"a": 3, "b": 3})
    write_images(tmp_path / "test", {"a": 1, "b": 2})
    table = read(str(tmp_path))
    assert len(table) == 6 and table.is_val is None
    assert "ignored folders beside" in table.notes[0] and str(tmp_path / "test") in table.notes[0]


def test_validation_data_is_matched_to_the_training_classes_by_name(tmp_path):
    write_images(tmp_path / "t", {"a": 2, "b": 2, "c": 2})
    write_images(tmp_path / "v", {"b": 1, "c": 2})
    table = join(read(str(tmp_path / "t")), read(str(tmp_path / "v"), train=False))
    train, val = split(table)
    assert table.targets[val].tolist() == [1, 2, 2] and len(train) == 6
    assert data.shared_groups(table, train, val) == 0
    write_images(tmp_path / "w", {"b": 1, "z": 2})
    with pytest.raises(BadInput, match="class 'z' of .* is not among the training classes"):
        join(read(str(tmp_path / "t")), read(str(tmp_path / "w"), train=False))
    with pytest.raises(BadInput, match="files that are both in training and in validation: "):
        join(read(str(tmp_path / "t")), read(str(tmp_path / "t"), train=False))


def test_document_layout_ids_are_file_names_and_meta_names_the_classes(tmp_path):
    (tmp_path / "train").mkdir()
    rows = [{"ID": f"{i:04d}.jpg", "target": i % 3} for i in range(6)]
    for i, row in enumerate(rows):
        picture(i).save(tmp_path / "train" / row["ID"])
    write_csv(tmp_path / "train.csv", rows)
    names = ("account", "bill", "card", "diploma")
    write_csv(tmp_path / "meta.csv", [{"target": c, "class_name": name} for c, name in enumerate(names)])
    table = read(str(tmp_path))
    assert table.classes == ["account", "bill", "card", "diploma"]  # M9: C from meta.csv, not from the labels seen
    assert table.targets.tolist() == [0, 1, 2, 0, 1, 2]
    assert "classes without images, whose F1 is 0: 1 of 4 (diploma)" in table.notes
    assert "image column ID, label column target" in table.layout


def test_M9_the_number_of_classes_is_the_largest_label_plus_1(tmp_path):
    rows = [{"file": f"{i}.png", "label": c} for i, c in enumerate([0, 0, 4, 4])]
    for i, row in enumerate(rows):
        picture(i).save(tmp_path / row["file"])
    write_csv(tmp_path / "train.csv", rows)
    assert read(str(tmp_path)).classes == ["0", "1", "2", "3", "4"]


def test_D15_text_ids_stay_text_and_an_id_that_is_no_file_is_no_image_column(tmp_path):
    (tmp_path / "img").mkdir()
    rows = [{"id": f"{i:06d}", "img_path": f"img/{i}.jpg", "artist": "van Gogh" if i % 2 else "Klee"} for i in range(4)]
    for i, row in enumerate(rows):
        picture(i).save(tmp_path / row["img_path"])
    write_csv(tmp_path / "train.csv", rows)
    table = read(str(tmp_path))
    assert table.classes == ["Klee", "van Gogh"] and table.targets.tolist() == [0, 1, 0, 1]
    assert "image column img_path, label column artist, group column id" in table.layout
    for row in rows:  # and ids without their extension are found with it
        picture(0).save(tmp_path / f"{row['id']}.jpg")
    write_csv(tmp_path / "other.csv", [{"id": row["id"], "artist": row["artist"]} for row in rows])
    table = read(str(tmp_path), str(tmp_path / "other.csv"))
    assert [os.path.basename(p) for p in table.paths] == ["000000.jpg", "000001.jpg", "000002.jpg", "000003.jpg"]


def test_a_group_column_keeps_copies_together(tmp_path):
    rows = [{"path": f"{i}.png", "y": i % 2, "source": f"s{i // 4}"} for i in range(16)]
    for i, row in enumerate(rows):
        picture(i).save(tmp_path / row["path"])
    write_csv(tmp_path / "train.csv", rows)
    table = read(str(tmp_path))
    assert table.groups == [f"s{i // 4}" for i in range(16)]
    write_csv(tmp_path / "val.csv", [{**row, "path": f"v{row['path']}"} for row in rows[:5]])
    for i in range(5):
        picture(50 + i).save(tmp_path / f"v{i}.png")
    joined = join(table, read(str(tmp_path), str(tmp_path / "val.csv"), train=False))
    assert data.shared_groups(joined, *split(joined)) == 2  # groups are known by name: s0 and s1 are on both sides


def test_columns_and_groups_can_be_named(tmp_path):
    rows = [{"path": f"s{i // 4}_aug{i % 4}.png", "y": i % 2} for i in range(16)]
    for i, row in enumerate(rows):
        row |= {"style": "ab"[i // 8], "Patient": i % 5, "copy": f"copy{i}.png"}
        picture(i).save(tmp_path / row["path"])
        picture(i).save(tmp_path / row["copy"])
    write_csv(tmp_path / "train.csv", rows)
    table = read(str(tmp_path), columns={"image": "copy", "label": "style", "group": "patient"})
    assert table.classes == ["a", "b"] and table.paths[3].endswith("copy3.png")
    assert table.groups == [str(i % 5) for i in range(16)]
    assert "image column copy, label column style, group column Patient" in table.layout
    assert table.csv_file == tmp_path / "train.csv"
    with pytest.raises(BadInput, match="has no column 'artist': it has path, y, style, Patient, copy"):
        read(str(tmp_path), columns={"label": "artist"})


@pytest.mark.parametrize("name", ["folder", "x: image column y"])  # what a folder is called decides nothing
def test_a_column_of_a_folder_without_a_csv_is_an_error(tmp_path, name):
    write_images(tmp_path / name, {"a": 2, "b": 2})
    assert read(str(tmp_path / name)).csv_file is None
    with pytest.raises(BadInput, match=f"{name} has no CSV, so it has no column 'style'"):
        read(str(tmp_path / name), columns={"label": "style"})


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp949", "euc-kr", "utf-16"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
@pytest.mark.parametrize("in_csv", ["NFC", "NFD"])
def test_every_encoding_line_end_and_spelling_of_korean_names_finds_its_files(
    tmp_path, encoding, newline, on_disk, in_csv
):
    if in_csv == "NFD" and encoding in ("cp949", "euc-kr"):
        in_csv = "NFC"  # these have no decomposed Hangul: a file in them is composed
    names, folder = ["각하.png", "나비.png", "한글 이름.png", "plain.png"], unicodedata.normalize(on_disk, "사진")
    (tmp_path / folder).mkdir()
    rows = ["image_path,label"]
    for i, name in enumerate(names):
        picture(i).save(tmp_path / folder / unicodedata.normalize(on_disk, name))
        label = ("고양이", "개")[i % 2]
        rows.append(unicodedata.normalize(in_csv, f"사진/{name},{label}"))
    (tmp_path / "train.csv").write_bytes((newline.join(rows) + newline).encode(encoding))
    table = read(str(tmp_path))
    assert table.classes == ["개", "고양이"] and table.targets.tolist() == [1, 0, 1, 0]
    assert [unicodedata.normalize("NFC", os.path.basename(path)) for path in table.paths] == names
    assert all(os.path.isfile(path) for path in table.paths)


def test_class_folders_in_nfc_and_nfd_are_one_class(tmp_path):
    write_images(tmp_path / "t", {unicodedata.normalize("NFD", "고양이"): 2, "개": 2})
    write_images(tmp_path / "v", {unicodedata.normalize("NFC", "고양이"): 1, "개": 1})
    picture(77).save(tmp_path / "v" / "개" / "00.png")
    table = join(read(str(tmp_path / "t")), read(str(tmp_path / "v"), train=False))
    assert table.classes == ["개", "고양이"] and table.targets[-2:].tolist() == [0, 1]


def mask_layout(root, people=4):
    rows = []
    for i in range(people):
        gender, age = ("male", "female")[i % 2], (29, 30, 59, 60)[i % 4]
        row = {"id": f"{i:06d}-1", "gender": gender, "race": "Asian", "age": age}
        row["path"] = f"{row['id']}_{gender}_Asian_{age}"
        folder = root / "train" / "images" / row["path"]
        folder.mkdir(parents=True)
        extensions = (".jpg", ".jpeg", ".png")
        for k, stem in enumerate(("mask1", "mask2", "mask3", "mask4", "mask5", "incorrect_mask", "normal")):
            picture(7 * i + k).save(folder / (stem + extensions[k % 3]))
            (folder / f"._{stem}.jpg").write_bytes(b"mac")
        rows.append(row)
    write_csv(root / "train" / "train.csv", rows)
    return root


def test_mask_layout_labels_and_groups(tmp_path):
    table = read(str(mask_layout(tmp_path)))
    assert len(table) == 28 and len(table.classes) == 18
    # person 0: male, 29: mask 0, incorrect 6, normal 12; sorted by name: incorrect_mask, mask1..5, normal
    assert table.targets[:7].tolist() == [6, 0, 0, 0, 0, 0, 12]
    assert table.targets[7:14].tolist() == [10, 4, 4, 4, 4, 4, 16]  # female, 30
    assert table.targets[21:28].tolist() == [11, 5, 5, 5, 5, 5, 17]  # female, 60
    assert len(set(table.groups)) == 4 and table.groups[0] == table.groups[6] == "000000-1_male_Asian_29"
    (tmp_path / "train" / "images" / "000000-1_male_Asian_29" / "selfie.jpg").write_bytes(b"")
    with pytest.raises(BadInput, match="selfie.jpg: the name must be mask1 to mask5"):
        read(str(tmp_path))


def test_a_torchvision_data_set_by_name(tmp_path):
    table = read("FakeData", cache=tmp_path)
    assert len(table) == 1000 and len(table.classes) == 10 and "torchvision data set FakeData" in table.layout
    names = table.paths[:5]
    table = ImageTable(names, table.targets[:5], names, table.classes, "made", source=table.source)
    images = decode(table.paths, table.targets, 32, tmp_path, table.source)
    assert images[3][0].shape == (3, 32, 32) and int(images[3][1]) == int(table.source[3][1])


def test_a_torchvision_data_set_from_its_own_files(tmp_path):
    raw = tmp_path / "torchvision" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    digits = np.random.default_rng(0).integers(0, 256, (20, 28, 28), dtype=np.uint8)
    for part, n in (("train", 20), ("t10k", 10)):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">iiii", 2051, n, 28, 28) + digits[:n].tobytes())
        labels = np.arange(n, dtype=np.uint8) % 10
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">ii", 2049, n) + labels.tobytes())
    table = join(read("MNIST", cache=tmp_path), read("MNIST", cache=tmp_path, train=False))
    train, val = split(table)
    assert len(train) == 20 and len(val) == 10 and table.classes[3] == "3 - three"
    images = decode(table.paths, table.targets, 28, tmp_path, table.source)
    assert (images[7][0] == torch.from_numpy(digits[7])).all() and (images[23][0] == torch.from_numpy(digits[3])).all()


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda p: None, "neither a folder nor the name of a torchvision data set"),
        (lambda p: p.mkdir(), "contains no class folders"),
        (lambda p: (p / "a").mkdir(parents=True), "class folder .*a contains no image"),
        (lambda p: write_images(p, {"a": 3}), "contains only one class, 'a'"),
        (lambda p: (p.mkdir(), (p / "train.csv").write_text("")), "train.csv has no rows"),
        (lambda p: (p.mkdir(), (p / "train.csv").write_text("a,b\n1,2\n")), "has no image column"),
        (lambda p: (p.mkdir(), (p / "train.csv").write_text("ID,target\nx.jpg,0\n")), "no file x.jpg in"),
        (lambda p: (write_images(p, {"": 1}), (p / "train.csv").write_text("ID\n00.png\n")), "no label column"),
        (
            lambda p: (write_images(p, {"": 2}), (p / "train.csv").write_text("ID,y\n00.png,0\nno.png,1\n")),
            "1 of 2 images cannot be found in .*:\n  no.png",
        ),
        (lambda p: (write_images(p, {"": 1}), (p / "train.csv").write_text("ID,y\n00.png,\n")), "rows without a label"),
    ],
)
def test_bad_data_is_an_error_that_names_it(tmp_path, make, said):
    make(tmp_path / "x")
    with pytest.raises(BadInput, match=said):
        read(str(tmp_path / "x"), cache=tmp_path)


# --- splitting -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_D1_no_group_is_on_both_sides_and_every_class_has_its_share(seed):
    rng = np.random.default_rng(seed)
    people = rng.integers(40, 200)
    kind = rng.choice(3, people, p=[0.7, 0.25, 0.05])
    groups = np.repeat(np.arange(people), 7)
    targets = np.repeat(kind, 7) + 3 * np.tile([0, 0, 0, 0, 0, 1, 2], people)
    table = table_of(np.concatenate([targets, np.arange(9)]), np.concatenate([groups, np.full(9, people)]))
    train, val = split(table, 0.2, seed)
    assert data.shared_groups(table, train, val) == 0
    assert sorted([*train, *val]) == list(range(len(table)))
    shares = data.counts(table, val) / data.counts(table, np.arange(len(table)))
    big = data.counts(table, np.arange(len(table))) > 100
    assert np.abs(shares[big] - 0.2).max() < 0.03 and (shares > 0).all()


def test_D1_a_split_by_image_would_share_groups():
    table = table_of(np.tile([0, 1], 70), np.repeat(np.arange(20), 7))
    by_image = np.random.default_rng(0).permutation(140)
    assert data.shared_groups(table, by_image[28:], by_image[:28]) > 0


@pytest.mark.parametrize("seed", range(10))
def test_D1_groups_of_every_size_and_mixture_share_out_near_the_target(seed):
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, 120, 1500)
    targets = (groups + rng.integers(0, 3, 1500)) % 5
    table = table_of(targets, groups)
    train, val = split(table, 0.2, seed)
    assert data.shared_groups(table, train, val) == 0
    shares = data.counts(table, val) / data.counts(table, np.arange(1500))
    assert np.abs(shares - 0.2).max() < 0.02


def test_D2_a_split_without_groups_is_exact_and_draws_no_image_twice():
    table = table_of(np.repeat([0, 1, 2], [1000, 100, 10]))
    train, val = split(table, 0.2, 1)
    assert data.counts(table, val).tolist() == [200, 20, 2]
    assert len(set(train) | set(val)) == 1110 and not set(train) & set(val)
    assert set(split(table, 0.2, 2)[1]) != set(val) == set(split(table, 0.2, 1)[1])


def test_D3_the_share_asked_for_is_the_share_given():
    table = table_of(np.repeat([0, 1], 500))
    for share in (0.1, 0.25, 0.5):
        assert len(split(table, share)[1]) == 1000 * share


def test_a_class_that_cannot_be_on_both_sides_is_an_error_that_names_it():
    with pytest.raises(BadInput, match=r"class '2' has only 1 image \(4.jpg\)"):
        split(table_of([0, 0, 1, 1, 2]))
    with pytest.raises(BadInput, match="class '1' has only images of 1 group"):
        split(table_of([0, 0, 1, 1], [0, 1, 2, 2]))
    train, val = split(table_of([0, 0, 1, 1]))  # two of each are enough
    assert len(train) == len(val) == 2


def test_duplicate_rows_stay_on_one_side(tmp_path):
    rows = [{"file": f"{i}.png", "label": i % 2} for i in range(10)]
    for i, row in enumerate(rows):
        picture(i).save(tmp_path / row["file"])
    write_csv(tmp_path / "train.csv", rows * 3)
    table = read(str(tmp_path))
    train, val = split(table, 0.3)
    assert not {table.paths[i] for i in train} & {table.paths[i] for i in val} and len(val) == 3
    assert len(table) == 10  # each image is counted once
    assert any("rows that repeat an image and its label: 20, such as lines 2 and 12" in note for note in table.notes)


def test_a_split_that_a_single_descent_misses_is_found():
    targets = [2, 2, 0, 0, 1, 2, 1, 0, 3, 2, 3, 0, 3, 3]
    groups = [0, 1, 2, 3, 0, 1, 2, 1, 3, 3, 0, 2, 2, 1]
    for seed in range(30):
        table = table_of(targets, groups)
        train, val = split(table, 0.2, seed)
        assert data.counts(table, train).all() and data.counts(table, val).all()
        assert data.shared_groups(table, train, val) == 0


def test_a_class_that_no_split_has_on_both_sides_is_an_error_that_names_it():
    # three groups of two classes each: both sides would need two of them
    with pytest.raises(BadInput, match="no split found that has class '[012]' on both sides"):
        split(table_of([0, 1, 0, 2, 1, 2], [0, 0, 1, 1, 2, 2]))


def dense_search(targets, groups, val_frac, rng):
    """What data._choose_validation must return: every move is judged by its cost over all classes."""
    order = np.lexsort((targets, groups))
    _, starts = np.unique(groups[order], return_index=True)
    members, kind_of = np.split(order, starts[1:]), {}
    kind = np.array([kind_of.setdefault(targets[rows].tobytes(), len(kind_of)) for rows in members])
    contents = np.array([np.bincount(np.frombuffer(key, np.int64), minlength=targets.max() + 1) for key in kind_of])
    contents, available = contents.astype(float), np.bincount(kind)
    total = available @ contents

    def cost(have):
        missing = (have == 0) | (have == total)
        return (((have / total.clip(1) - val_frac) ** 2 + missing) * (total > 0)).sum(-1)

    chosen = np.floor(val_frac * available + rng.random(len(available))).astype(int)
    while True:
        have = chosen @ contents
        more = np.where(chosen < available, cost(have + contents), np.inf)
        fewer = np.where(chosen > 0, cost(have - contents), np.inf)
        if min(more.min(), fewer.min()) >= cost(have) - 1e-12:
            break
        if more.min() < fewer.min():
            chosen[more.argmin()] += 1
        else:
            chosen[fewer.argmin()] -= 1
    groups_of_kind = np.split(np.argsort(kind, kind="stable"), np.cumsum(available)[:-1])
    taken = [rng.permutation(groups)[:n] for groups, n in zip(groups_of_kind, chosen, strict=True)]
    return np.isin(np.arange(len(targets)), np.concatenate([members[g] for g in np.concatenate(taken)] or [[]]))


def small_table(seed):
    """Few images, many equal classes and groups: several moves are equally good."""
    rng = np.random.default_rng(seed)
    n = int(rng.choice([12, 30, 100, 400]))
    C, groups = int(rng.integers(2, min(n // 2, 30) + 1)), rng.integers(0, rng.integers(4, n + 1), n)
    targets = (rng.integers(0, C, n), (groups + rng.integers(0, 2, n)) % C, np.arange(n) % C)[seed % 3]
    groups = np.arange(n) // rng.integers(1, 8) if seed % 3 == 2 else groups
    return targets.astype(np.int64), data._first_of(groups.tolist()), float(rng.choice([0.1, 0.2, 0.25, 0.5]))


def test_the_search_for_a_split_ends_where_the_dense_one_does():
    differs = 0
    for seed in range(600):
        targets, groups, val_frac = small_table(seed)
        found = data._choose_validation(targets, groups, val_frac, np.random.default_rng(seed))
        assert np.array_equal(found, dense_search(targets, groups, val_frac, np.random.default_rng(seed))), seed
        differs += not np.array_equal(found, dense_search(targets, groups, val_frac, np.random.default_rng(seed + 1)))
    assert differs > 500  # the control: a different random start


@pytest.mark.parametrize("shared", [False, True])  # True: a group has an image of each of two classes
def test_10_000_classes_of_2_images_are_split_in_seconds(shared):
    number = np.arange(20_000)
    start = time.process_time()
    train, val = split(table_of(number // 2, number // 4 * 2 + number % 2 if shared else number))
    assert time.process_time() - start < 60
    assert (np.sort(val // 2) == np.arange(10_000)).all() and len(train) == 10_000


# --- labels and columns ----------------------------------------------------------------------------------------------


def csv_folder(root, rows, column="file"):
    """A folder with train.csv and a file for each name in the column."""
    root.mkdir(exist_ok=True)
    for i, name in enumerate(dict.fromkeys(row[column] for row in rows)):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        picture(i).save(root / name)
    write_csv(root / "train.csv", rows)
    return str(root)


def rows_of(labels, **more):
    return [{"file": f"{i}.png", "label": label} | {k: v[i] for k, v in more.items()} for i, label in enumerate(labels)]


def test_labels_in_mixed_case_are_two_classes_and_a_note_and_blanks_around_them_are_dropped(tmp_path):
    table = read(csv_folder(tmp_path, rows_of(["Cat", "cat", " cat ", "dog", "dog\t", "Cat"])))
    assert table.classes == ["Cat", "cat", "dog"] and table.targets.tolist() == [0, 1, 1, 2, 2, 0]
    note = "'Cat' and 'cat' differ only in case or spaces: they are used as different classes"
    assert f"{note}; --fold-case reads them as one" in table.notes


def test_gaps_between_class_numbers_are_classes_without_images_and_a_note(tmp_path):
    table = read(csv_folder(tmp_path, rows_of(["0", "7", "7", "0"])))
    assert len(table.classes) == 8 and table.targets.tolist() == [0, 7, 7, 0]
    assert table.notes == ["classes without images, whose F1 is 0: 6 of 8 (1, 2, 3, 4, 5, 6)"]


@pytest.mark.parametrize("label", ["", "  "])
def test_a_row_without_a_label_is_an_error_that_names_it(tmp_path, label):
    with pytest.raises(BadInput, match=r"rows without a label in column 'label': 1; .*\n  line 4 \(2.png\): ''"):
        read(csv_folder(tmp_path, rows_of(["0", "1", label, "0"])))


def test_images_with_two_labels_are_all_listed(tmp_path):
    rows = rows_of(["a", "b", "a", "b"])
    with pytest.raises(BadInput, match="images with two labels: 2; keep one row") as error:
        read(csv_folder(tmp_path, rows + [rows[0] | {"label": "b"}, rows[3] | {"label": "a"}]))
    assert re.search(
        r"/0.png: a \(line 2\) and b \(line 6\)\n.*/3.png: b \(line 5\) and a \(line 7\)$", str(error.value)
    )


def test_the_sketch_layout_has_its_class_names_in_a_column_of_their_own(tmp_path):
    names = ["tabby", "beagle", "tabby", "beagle"]
    rows = [
        {"class_name": name, "image_path": f"{name}/{i}.JPEG", "target": int(name == "tabby")}
        for i, name in enumerate(names)
    ]
    csv_folder(tmp_path / "train", rows, "image_path")
    os.rename(tmp_path / "train" / "train.csv", tmp_path / "train.csv")
    table = read(str(tmp_path))
    assert table.classes == ["beagle", "tabby"] and table.targets.tolist() == [1, 0, 1, 0]
    assert "image column image_path, label column target" in table.layout
    write_csv(tmp_path / "train.csv", [*rows, rows[0] | {"image_path": rows[1]["image_path"]}])
    with pytest.raises(BadInput, match=r"beagle/1.JPEG: beagle \(line 3\) and tabby \(line 6\)"):
        read(str(tmp_path))
    write_csv(tmp_path / "train.csv", [*rows[1:], rows[0] | {"class_name": "mouse"}])
    with pytest.raises(BadInput, match="class 1 is named 'tabby' and 'mouse' in class_name"):
        read(str(tmp_path))


def test_an_image_in_two_rows_ties_the_groups_of_both(tmp_path):
    rows = rows_of([0, 1, 0, 1, 0, 1], group=list("abcdef"))
    table = read(csv_folder(tmp_path, [*rows, rows[0] | {"group": "d"}, rows[5] | {"group": "a"}]))
    assert len({table.groups[i] for i in (0, 3, 5)}) == 1 and len(set(table.groups)) == 4 and len(table) == 6


def test_a_folder_named_like_an_image_is_a_note(tmp_path):
    write_images(tmp_path, {"a": 2, "b": 2})
    (tmp_path / "a" / "x.jpg").mkdir()
    table = read(str(tmp_path))
    assert len(table) == 4 and table.notes[0].endswith(str(tmp_path / "a" / "x.jpg"))


# --- choosing --------------------------------------------------------------------------------------------------------


def test_merged_classes_are_one_in_the_place_of_the_first():
    table = table_of([0, 1, 2, 3, 4, 4, 1])
    table.classes = ["a", "b", "c", "d", "e"]
    for chosen in ("1,3,4", "b, d, e", "4,1,3"):
        merged = data.merge(table, chosen)
        assert merged.classes == ["a", "b+d+e", "c"] and merged.targets.tolist() == [0, 1, 2, 1, 1, 1, 1]
    assert table.classes == ["a", "b", "c", "d", "e"] and table.targets.tolist() == [0, 1, 2, 3, 4, 4, 1]


def test_only_some_classes_keep_their_images_groups_and_names():
    table = table_of([0, 1, 2, 3, 4, 4, 1], list("ppqqrrs"))
    table.fold_of = np.arange(7) % 2
    chosen = data.only(table, "4,1")
    assert chosen.classes == ["1", "4"] and chosen.targets.tolist() == [0, 1, 1, 0]
    assert chosen.paths == ["1.jpg", "4.jpg", "5.jpg", "6.jpg"] and chosen.groups == ["p", "r", "r", "s"]
    assert chosen.fold_of.tolist() == [1, 0, 1, 0] and "only 1, 4" in chosen.layout


def test_a_class_is_found_by_name_before_by_number():
    table = table_of([0, 1, 2])
    table.classes = ["1", "10", "2"]  # an image folder's names sort as text
    assert data.only(table, "1,2").classes == ["1", "2"] and data.only(table, "10, 0").classes == ["1", "10"]


@pytest.mark.parametrize(
    "choose, chosen, said",
    [
        (data.merge, "0,1,2", "are all classes"),
        (data.merge, "1", "is fewer than two classes: give at least two"),
        (data.only, "1,1", "is fewer than two classes: give at least two"),
        (data.only, "0,7", "'7' is not a valid class: choose from 0 0, 1 1, 2 2"),
        (data.merge, "0,,1", "'' is not a valid class"),
    ],
)
def test_a_choice_of_classes_that_makes_no_sense_is_an_error(choose, chosen, said):
    with pytest.raises(BadInput, match=said):
        choose(table_of([0, 1, 2]), chosen)


def test_the_long_tail_has_the_exponential_profile():
    table = table_of(np.repeat(np.arange(10), 500))
    rows = data.long_tail(table, np.arange(5000), 100)
    # int(500 * 0.01 ** (i / 9))
    assert data.counts(table, rows).tolist() == [500, 299, 179, 107, 64, 38, 23, 13, 8, 5]
    assert len(set(rows)) == len(rows) and set(rows) != set(data.long_tail(table, np.arange(5000), 100, seed=1))
    assert data.counts(table, data.long_tail(table, np.arange(5000), 1)).tolist() == [500] * 10
    uneven = table_of(np.repeat([0, 1, 2], [500, 20, 300]))  # the rarest class is the tail
    assert data.counts(uneven, data.long_tail(uneven, np.arange(820), 100)).tolist() == [500, 5, 50]
    with pytest.raises(BadInput, match="class '1' has 4 training images, and with imbalance 100 it would have 5"):
        data.long_tail(table_of(np.repeat([0, 1, 2], [500, 4, 300])), np.arange(804), 100)
    with pytest.raises(BadInput, match="imbalance factor must be at least 1, got 0.5"):
        data.long_tail(table, np.arange(5000), 0.5)


def test_classes_are_written_as_the_data_wrote_them(tmp_path):
    numbers = read(csv_folder(tmp_path / "numbers", rows_of([0, 1, 2, 0])))
    write_csv(tmp_path / "numbers" / "meta.csv", [{"target": c, "class_name": "abc"[c]} for c in range(3)])
    named = read(str(tmp_path / "numbers"))
    assert numbers.labels == ["0", "1", "2"] == named.labels and named.classes == ["a", "b", "c"]
    assert data.merge(named, "a,c").labels == ["0+2", "1"] and data.only(named, "b,c").labels == ["1", "2"]
    assert read(csv_folder(tmp_path / "text", rows_of(["Klee", "Monet"]))).labels == ["Klee", "Monet"]
    assert read(str(mask_layout(tmp_path / "mask"))).labels == [str(c) for c in range(18)]


# --- folds -----------------------------------------------------------------------------------------------------------


def share_errors(table, fold_of, k):
    """Largest deviation of a class's share of a fold from its share of all images; of a fold's share of a class."""
    C = len(table.classes)
    n = np.bincount(fold_of * C + table.targets, minlength=k * C).reshape(k, C)
    total = n.sum(0)
    of_a_fold = np.abs(n / n.sum(1, keepdims=True) - total / len(table)).max()
    return np.array([of_a_fold, np.abs(n[:, total > 0] / total[total > 0] - 1 / k).max()])


def random_set(seed):
    rng = np.random.default_rng(seed)
    n, C, k = int(rng.integers(100, 1500)), int(rng.integers(2, 20)), int(rng.integers(2, 11))
    n_groups = int(rng.integers(max(30, 3 * k), max(31, n // 2 + 1)))
    prior = rng.dirichlet(np.full(C, rng.choice([0.3, 1, 5])))
    if rng.random() < 0.5:  # groups that are mostly of one class
        groups, class_of = rng.integers(0, n_groups, n), rng.choice(C, n_groups, p=prior)
        targets = np.where(rng.random(n) < 0.8, class_of[groups], rng.choice(C, n, p=prior))
    else:  # groups of very different sizes
        groups = (n_groups * rng.random(n) ** rng.choice([1, 2])).astype(int)
        targets = rng.choice(C, n, p=prior)
    targets[0] = C - 1
    return table_of(targets.astype(np.int64), groups), k


@pytest.mark.parametrize("start", (0, 10))
def test_folds_share_classes_as_evenly_as_scikit_learn_to_one_point_and_part_no_group(start):
    StratifiedGroupKFold = pytest.importorskip("sklearn.model_selection").StratifiedGroupKFold
    for seed in range(start, start + 10):
        table, k = random_set(seed)
        fold_of = data.folds(table, k, seed)
        assert sorted(set(fold_of)) == list(range(k))
        assert len(set(zip(table.groups, fold_of, strict=True))) == len(set(table.groups))
        theirs = np.empty(len(table), int)
        splitter = StratifiedGroupKFold(k, shuffle=True, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # classes with fewer images than folds
            for f, (_, val) in enumerate(splitter.split(table.targets, table.targets, table.groups)):
                theirs[val] = f
        assert (share_errors(table, fold_of, k) <= share_errors(table, theirs, k) + 0.01).all()


def test_folds_by_chance_are_not_as_even():
    table, k = random_set(3)
    by_group = np.random.default_rng(0).integers(0, k, 10_000)
    by_chance = np.array([by_group[int(group)] for group in table.groups])
    assert (share_errors(table, by_chance, k) > share_errors(table, data.folds(table, k), k) + 0.01).any()


def test_folds_without_groups_are_exact_and_depend_on_the_seed():
    table = table_of(np.repeat([0, 1, 2], [1000, 100, 11]))
    fold_of = data.folds(table, 5, seed=1)
    n = np.bincount(fold_of * 3 + table.targets, minlength=15).reshape(5, 3)
    assert n[:, :2].tolist() == [[200, 20]] * 5 and sorted(n[:, 2].tolist()) == [2, 2, 2, 2, 3]
    assert np.array_equal(fold_of, data.folds(table, 5, seed=1))
    assert not np.array_equal(fold_of, data.folds(table, 5, seed=2))


def test_a_fold_column_is_obeyed(tmp_path):
    column = ["2", "10", "1", "2", "1", "10"]
    folder = csv_folder(tmp_path, rows_of([0, 1, 0, 1, 1, 0], Fold=column, part=list("xyxyxy")))
    table = read(folder)
    assert "fold column Fold" in table.layout
    assert data.folds(table, 3).tolist() == [1, 2, 0, 1, 0, 2]  # numbers in their order
    with pytest.raises(BadInput, match="the fold column has 3 folds, not 5"):
        data.folds(table, 5)
    assert data.folds(read(folder, columns={"fold": "PART"}), 2).tolist() == [0, 1] * 3
    for values, said in (
        (["a"] * 6, "has 1 different values in 6 rows, but 2 to 3 folds"),
        (list("abcdef"), "has 6 different values in 6 rows"),
    ):
        with pytest.raises(BadInput, match=said):
            read(csv_folder(tmp_path, rows_of([0, 1, 0, 1, 1, 0], fold=values)))


def test_folds_that_cannot_be_are_an_error():
    with pytest.raises(BadInput, match="from 2 to 3, the number of groups, got 4; the smallest class is '0' with 2 im"):
        data.folds(table_of([0, 1, 0, 1], [0, 1, 2, 2]), 4)
    table = table_of([0, 1, 0, 1])
    table.is_val = np.array([True, False, False, True])
    with pytest.raises(BadInput, match="the validation images are given"):
        data.folds(table, 2)


def test_tied_rows_are_one_group():
    groups = ["a", "a", "b", "c", "d", "d"]
    tied = data.tied(groups, np.array([0, 1, 2, 0, 2, 5]))
    assert tied[0] == tied[1] == tied[3] and tied[2] == tied[4] == tied[5] and tied[0] != tied[2]
    assert data.tied(groups, np.arange(6)) == groups


# --- what a stranger's files look like -------------------------------------------------------------------------------


@pytest.mark.parametrize("loose", [(3,), (1, 4)])
def test_a_loose_quote_is_an_error_and_not_the_loss_of_the_rows_after_it(tmp_path, loose):
    lines = [f"{i}.png,{'ab'[i % 2]},{chr(34) if i in loose else ''}5 inch" for i in range(6)]
    csv_folder(tmp_path, rows_of("ababab"))
    (tmp_path / "train.csv").write_text("\n".join(["file,label,note", *lines]) + "\n")
    with pytest.raises(BadInput, match=f"train.csv: the row that begins in line {loose[0] + 2} cannot be read"):
        read(str(tmp_path))


def test_quotes_that_are_closed_may_hold_commas_and_lines(tmp_path):
    csv_folder(tmp_path, rows_of("abab"))
    lines = "".join(f'{i}.png,"a, ""big""",{i % 2},"two\nlines"\n' for i in range(4))
    (tmp_path / "train.csv").write_text("file,note,label,more\n" + lines)
    assert read(str(tmp_path)).targets.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    "header, said",
    [
        ("file,label,label", "has 2 columns called 'label'"),
        ("file,label,Label", "'label' and 'Label' differ only in"),
        ("file,label, label", "'label' and ' label' differ only in"),
    ],
)
def test_a_header_that_can_be_read_in_two_ways_is_refused(tmp_path, header, said):
    csv_folder(tmp_path, rows_of("abab"))
    (tmp_path / "train.csv").write_text(header + "\n" + "".join(f"{i}.png,a,b\n" for i in range(4)))
    with pytest.raises(BadInput, match=said):
        read(str(tmp_path))


def test_blanks_around_the_headers_names_do_not_matter(tmp_path):
    csv_folder(tmp_path, rows_of("abab"))
    (tmp_path / "train.csv").write_text("file , label , extra\n" + "".join(f"{i}.png,{i % 2},x\n" for i in range(4)))
    assert read(str(tmp_path)).layout.endswith("image column file , label column  label , group column none")


def test_backslashes_of_windows_are_found(tmp_path):
    csv_folder(tmp_path, [{"path": f"images/{i}.png", "label": "ab"[i % 2]} for i in range(4)], "path")
    (tmp_path / "train.csv").write_text("path,label\n" + "".join(f"images\\{i}.png,{i % 2}\n" for i in range(4)))
    assert [os.path.basename(path) for path in read(str(tmp_path)).paths] == ["0.png", "1.png", "2.png", "3.png"]


def test_blanks_do_not_part_a_group_and_an_image_without_one_is_its_own(tmp_path):
    groups = ["p", "p ", " p", "", "", "q"]
    table = read(csv_folder(tmp_path, rows_of("ababab", group=groups)))
    assert len(set(table.groups[:3])) == 1 and len(set(table.groups)) == 4


def test_class_numbers_are_written_back_as_they_were_and_not_in_two_ways(tmp_path):
    table = read(csv_folder(tmp_path / "a", rows_of(["00", "02", "00", "02"])))
    assert table.labels == ["00", "1", "02"] and table.classes == ["0", "1", "2"]
    with pytest.raises(BadInput, match="class 1 is written in two ways, '01' and '1'"):
        read(csv_folder(tmp_path / "b", rows_of(["0", "01", "0", "1"])))
    with pytest.raises(BadInput, match="train.csv: 9+ in column 'label' is not a valid class number: too large for 4"):
        read(csv_folder(tmp_path / "c", rows_of(["0", "1", "0", "9" * 5000])))


def test_names_of_classes_from_meta_are_stripped_told_apart_and_checked(tmp_path):
    folder = csv_folder(tmp_path, [{"file": f"{i}.png", "target": i % 4} for i in range(8)])
    (tmp_path / "meta.csv").write_text("target,class_name\n0,cat \n1,same\n2,same\n3,\n")
    assert read(folder).classes == ["cat", "same (1)", "same (2)", "3"]
    (tmp_path / "meta.csv").write_text("target,class_name\nx,cat\n")
    with pytest.raises(BadInput, match=r"meta.csv: target 'x' is not a valid class number"):
        read(folder)


@pytest.mark.parametrize("names", [("Train", "Val"), ("training", "validation"), ("TRAIN", "valid")])
def test_training_and_validation_folders_may_be_called_otherwise(tmp_path, names):
    for name in names:
        write_images(tmp_path / name, {"a": 2, "b": 2})
    table = read(str(tmp_path))
    assert table.classes == ["a", "b"] and table.is_val.sum() == 4


def test_two_validation_folders_are_an_error_and_others_a_note(tmp_path):
    for name in ("train", "val", "more"):
        write_images(tmp_path / name, {"a": 2, "b": 2})
    assert f"ignored folders beside {tmp_path / 'train'}" in read(str(tmp_path)).notes[0]
    write_images(tmp_path / "valid", {"a": 2, "b": 2})
    with pytest.raises(BadInput, match="contains both val and valid: rename or move one"):
        read(str(tmp_path))


def test_images_beside_the_classes_and_linked_folders_are_notes(tmp_path):
    write_images(tmp_path, {"a": 2, "b": 2})
    picture(3).save(tmp_path / "loose.png")
    (tmp_path / "a" / "more").symlink_to(tmp_path / "b")
    table = read(str(tmp_path))
    assert len(table) == 4 and any(
        "ignored images outside of the class folders: 1, such" in note for note in table.notes
    )
    assert any(str(tmp_path / "a" / "more") in note for note in table.notes)


# --- seams -----------------------------------------------------------------------------------------------------------


def test_more_than_20_missing_images_are_20_names_and_a_number(tmp_path):
    csv_folder(tmp_path, rows_of("ab" * 20))
    for i in range(1, 24):
        os.remove(tmp_path / f"{i}.png")
    with pytest.raises(BadInput, match="23 of 40 images cannot be found in") as error:
        read(str(tmp_path))
    assert str(error.value).count(".png") == 20 and str(error.value).endswith("\n  and 3 more")
    assert data.listed(["a", "b"], 2) == "\n  a\n  b" and data.listed([]) == ""


def test_the_digest_follows_names_sizes_labels_and_rows_and_names_a_file_that_is_missing(tmp_path):
    write_images(tmp_path, {"a": 2, "b": 2})
    table, rows = read(str(tmp_path)), np.arange(3)
    first = data.digest(table, rows)
    assert data.digest(read(str(tmp_path)), rows) == first != data.digest(table, rows[:2])
    os.remove(table.paths[1])
    with pytest.raises(BadInput, match=f"cannot read {table.paths[1]}: No such file"):
        data.digest(table, rows)


def test_a_table_knows_its_csv_and_a_joined_one_that_of_its_training_part(tmp_path):
    table = read(csv_folder(tmp_path / "t", rows_of("abab")))
    write_images(tmp_path / "v", {"a": 1, "b": 1})
    joined = join(table, read(str(tmp_path / "v"), train=False))
    assert joined.csv_file == table.csv_file == tmp_path / "t" / "train.csv"
    assert read(str(mask_layout(tmp_path / "mask"))).csv_file == tmp_path / "mask" / "train" / "train.csv"
    assert data.only(table, "0,1").csv_file == table.csv_file


@pytest.mark.parametrize(
    "folder, code, said, error",
    [
        ("d", 0, "12 in 2 classes", ""),
        ("nowhere", 2, "", "data.py: error: nowhere is neither a folder nor"),
        ("one", 2, "6 in 2 classes", "data.py: error: class 'b' has only 1 image"),
    ],
)
def test_alone_in_a_folder_it_prints_its_table_in_80_columns(tmp_path, folder, code, said, error):
    shutil.copy(data.__file__, tmp_path)
    write_images(tmp_path / "d", {"a" * 30: 8, "나비": 4})
    write_images(tmp_path / "one", {"a": 5, "b": 1})
    (tmp_path / "d" / "loose.png").write_bytes(b"")
    done = subprocess.run([sys.executable, "data.py", folder], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == code and said in done.stdout and error in done.stderr
    assert "Traceback" not in done.stderr and max(map(len, done.stdout.splitlines()), default=0) <= 80
    if not code:
        assert (
            done.stdout
            == f"""\
layout     image folder d
images     12 in 2 classes
imbalance  2.0 (largest class 8 images, smallest 4)
note       ignored images outside of the class folders: 1, such as d/loose.png
split      9 training, 3 validation images (random 20%, seed 0)
groups     12, of which 0 are on both sides

  images  training  validation  class
       8         6           2  {"a" * 30}
       4         3           1  나비
"""
        )


# --- nothing silent: labels and CSVs ---------------------------------------------------------------------------------


def test_B1_whole_numbers_written_as_floats_are_these_numbers_and_said_once(tmp_path):
    table = read(csv_folder(tmp_path / "a", rows_of(["0.0", "2.0", "1.0", "0.0", "2.", "1.0"][:4] + ["2.0", "1.0"])))
    assert table.classes == table.labels == ["0", "1", "2"] and table.targets.tolist() == [0, 2, 1, 0, 2, 1]
    assert table.notes == ["labels in column label are whole numbers written as floats: 0.0 is read as 0"]
    with pytest.raises(BadInput, match="class 3 is written in two ways, '3' and '3.0': use one"):
        read(csv_folder(tmp_path / "b", rows_of(["3", "3.0", "0", "0"])))
    assert read(csv_folder(tmp_path / "c", rows_of(["1.5", "2.0", "1.5"]))).classes == ["1.5", "2.0"]  # not whole


def test_B2_the_last_column_is_taken_with_a_warning_that_names_label_col(tmp_path):
    rows = [{"file": f"{i}.png", "artist": "ab"[i % 2], "fold": i % 2} for i in range(4)]
    table = read(csv_folder(tmp_path, rows))
    assert table.classes == ["a", "b"] and "label column artist" in table.layout  # a fold is not a label
    assert "the last one, artist, is used; --label-col names a different one" in table.warnings[0]
    assert read(str(tmp_path), columns={"label": "artist"}).notes == []


@pytest.mark.parametrize("column, different", [("height", 24), ("target", 60)])  # a known name needs 2 rows per value
def test_B2_a_column_of_measurements_is_refused_unless_it_is_named(tmp_path, column, different):
    rows = [{"file": f"{i}.png", column: 150 + i % different} for i in range(60)]
    folder = csv_folder(tmp_path / "numbers", rows)
    with pytest.raises(BadInput, match=f"column '{column}' has {different} different numbers in 60 rows.*--label-col"):
        read(folder)
    assert len(read(folder, columns={"label": column}).classes) == different
    assert len(read(folder, train=False).classes) == different
    rows = [row | {column: f"name {row[column]}"} for row in rows]
    assert len(read(csv_folder(tmp_path / "names", rows)).classes) == different


def test_B2_a_one_hot_table_is_read_as_its_columns_or_refused(tmp_path):
    hot = [2, 0, 2, 1]
    columns = ("NV", "MEL", "BCC", "AK")
    rows = [
        {"image": f"{i}.png", "group": f"p{i}"} | {c: float(k == h) for k, c in enumerate(columns)}
        for i, h in enumerate(hot)
    ]
    table = read(csv_folder(tmp_path / "a", rows, "image"))
    assert table.classes == table.labels == [*columns] and table.targets.tolist() == hot
    assert "the 4 columns NV, MEL, BCC, AK have one 1 per row" in table.notes[0] and "--label-col" in table.notes[0]
    assert "classes without images, whose F1 is 0: 1 of 4 (AK)" in table.notes
    rows[3]["NV"] = 1.0
    with pytest.raises(
        BadInput, match=r"NV, MEL, BCC, AK hold 0 and 1, .*: line 5 \(3.png\) has 2; name the label col"
    ):
        read(csv_folder(tmp_path / "b", rows, "image"))


def test_B6_a_class_without_a_file_that_skip_missing_leaves_out_is_a_warning(tmp_path):
    rows = rows_of([0, 1, 2, 0, 1, 2])
    csv_folder(tmp_path, rows)
    for row in (rows[2], rows[5]):
        (tmp_path / row["file"]).unlink()
    table = read(str(tmp_path), skip_missing=True)
    assert table.classes == ["0", "1"]
    assert table.warnings == ["labels whose images are all missing, so classes may be missing: 2"]
    csv_folder(tmp_path, rows)  # the control: one image of the class is left
    (tmp_path / rows[2]["file"]).unlink()
    assert read(str(tmp_path), skip_missing=True).warnings == []


def test_B2_columns_of_0_and_1_before_a_last_column_of_names_are_not_the_classes(tmp_path):
    rows = [{"image": f"{i}.png", "male": i % 2, "female": 1 - i % 2, "breed": "xyz"[i % 3]} for i in range(12)]
    table = read(csv_folder(tmp_path / "a", rows, "image"))
    assert table.classes == ["x", "y", "z"] and "the last one, breed, is used" in table.warnings[0]
    control = [{"image": row["image"], "breed": row["breed"], "m": row["male"], "f": row["female"]} for row in rows]
    assert read(csv_folder(tmp_path / "b", control, "image")).classes == ["m", "f"]


def test_B3_class_numbers_that_begin_with_1_have_no_class_0(tmp_path):
    table = read(csv_folder(tmp_path, rows_of([1, 2, 4, 1, 2, 4])))
    assert table.classes == table.labels == ["1", "2", "3", "4"] and table.targets.tolist() == [0, 1, 3, 0, 1, 3]
    assert "begin with 1, so the classes are 1, 2, 3, 4; --num-classes 5 makes them 0 to 4" in table.notes[0]
    assert read(str(tmp_path), num_classes=5).classes == ["0", "1", "2", "3", "4"]
    assert read(str(tmp_path), num_classes=4).classes == ["1", "2", "3", "4"]
    assert read(str(tmp_path), num_classes=3).classes == ["1", "2", "4"]
    write_csv(tmp_path / "meta.csv", [{"target": c, "class_name": "abcde"[c]} for c in range(5)])
    assert read(str(tmp_path)).classes == [*"abcde"] and "begin with" not in "".join(read(str(tmp_path)).notes)


def test_B3_wide_gaps_are_not_classes(tmp_path):
    table = read(csv_folder(tmp_path / "a", rows_of([0, 100, 200] * 2)))
    assert table.classes == table.labels == ["0", "100", "200"] and table.targets.tolist() == [0, 1, 2] * 2
    assert "have wide gaps, so the classes are 0, 100, 200; --num-classes 201 makes them 0 to 200" in table.notes[0]
    assert len(read(str(tmp_path / "a"), num_classes=201).classes) == 201
    with pytest.raises(BadInput, match="--num-classes 4: .* from 0 to 200, so it must be 3, or 201 or more"):
        read(str(tmp_path / "a"), num_classes=4)
    with pytest.raises(BadInput, match="--num-classes 9999 is too large for the 6 rows"):
        read(str(tmp_path / "a"), num_classes=9999)
    assert data.class_numbers({*range(17)} - {7} | {17}) == [*range(18)]  # a rare class stays a class
    with pytest.raises(BadInput, match="--num-classes is only for a CSV"):
        read(str(write_images(tmp_path / "d", {"a": 2, "b": 2})), num_classes=2)
    with pytest.raises(BadInput, match="--num-classes 3: .* has 2 classes with names: remove it"):
        read(csv_folder(tmp_path / "t", rows_of("abab")), num_classes=3)


@pytest.mark.parametrize("text", ["nan", "NaN", "None", "null"])
def test_B4_a_missing_label_as_text_is_an_error_that_names_the_lines(tmp_path, text):
    with pytest.raises(
        BadInput, match=f"without a label .*: 2; .*\n  line 3 .1.png.: '{text}'\n  line 5 .3.png.: '{text}'"
    ):
        read(csv_folder(tmp_path / "a", rows_of(["a", text, "b", text])))
    write_images(tmp_path / "d", {text: 2, "b": 2})  # a folder is a class
    assert text in read(str(tmp_path / "d")).classes


def test_B5_fold_case_reads_spellings_as_one_class_and_takes_the_most_frequent(tmp_path):
    labels = ["cat", "Cat", "Cat", "traffic  Light", "Traffic Light", "dog"]
    folder = csv_folder(tmp_path / "csv", rows_of(labels))
    assert len(read(folder).classes) == 5
    table = read(folder, fold_case=True)
    assert table.classes == ["Cat", "dog", "traffic  Light"] and table.targets.tolist() == [0, 0, 0, 2, 2, 1]
    assert "'cat' and 'Cat' are read as one class, 'Cat' (--fold-case)" in table.notes
    write_images(tmp_path / "d", {"Cat": 1, "cat": 3, "dog": 2})
    with pytest.raises(BadInput, match="class 'Cat' has only 1 image .*'Cat' and 'cat': --fold-case reads them as one"):
        split(read(str(tmp_path / "d")))
    table = read(str(tmp_path / "d"), fold_case=True)
    assert table.classes == ["cat", "dog"] and table.targets.tolist() == [0, 0, 0, 0, 1, 1]
    write_images(tmp_path / "v", {"CAT": 1, "dog": 2})
    val = read(str(tmp_path / "v"), train=False, fold_case=True)
    assert join(table, val, fold_case=True).targets[-3:].tolist() == [0, 1, 1]
    with pytest.raises(BadInput, match="class 'CAT' of .* is not among the training classes"):
        join(table, val)


def test_B5_several_groups_of_classes_are_merged():
    table = table_of([0, 1, 2, 3, 4, 4, 1])
    table.classes = [*"abcde"]
    merged = data.merge(table, "4,1; 2,3")
    assert merged.classes == ["a", "b+e", "c+d"] and merged.targets.tolist() == [0, 1, 2, 2, 1, 1, 1]
    assert merged.labels == ["0", "1+4", "2+3"] and merged.layout.endswith(", merged classes b+e, c+d")
    assert data.merge(table, "0,1;2,3,4").classes == ["a+b", "c+d+e"]
    with pytest.raises(BadInput, match="class 'b' is in two groups"):
        data.merge(table, "a,b;b,c")


def test_B6_rows_without_a_file_are_left_out_with_skip_missing_listed_and_counted(tmp_path):
    rows = rows_of("ababab", group=list("ppqqrr"), fold=[0, 1] * 3)
    folder = csv_folder(tmp_path, [*rows, rows[0] | {"file": "none.png", "label": ""}])
    os.remove(tmp_path / "0.png")
    os.remove(tmp_path / "none.png")
    with pytest.raises(BadInput, match=r"2 of 7 images .*--bad skip:\n  0.png \(line 2\)\n  none.png \(line 8\)$"):
        read(folder)
    table = read(folder, skip_missing=True)
    assert len(table) == 5 and table.targets.tolist() == [1, 0, 1, 0, 1] and table.groups == [*"pqqrr"]
    assert table.fold_of.tolist() == [1, 0, 1, 0, 1]
    assert f"rows without an image file in {tmp_path}, left out: 2 of 7\n  0.png (line 2)" in table.notes[0]
    joined = join(read(str(write_images(tmp_path / "d", {"a": 2, "b": 2}))), table)
    assert joined.notes[0].startswith("validation data: rows without an image file")


def test_B6_ids_are_stripped_and_a_file_in_a_different_case_or_folder_is_named(tmp_path):
    rows = rows_of("abab")
    folder = csv_folder(tmp_path, rows)
    write_csv(tmp_path / "train.csv", [row | {"file": f" {row['file']} "} for row in rows])
    assert [os.path.basename(path) for path in read(folder).paths] == ["0.png", "1.png", "2.png", "3.png"]
    write_csv(tmp_path / "train.csv", [rows[0], rows[1] | {"file": "1.PNG"}, rows[2] | {"file": "x\\y/2.png"}])
    there = rf"1.PNG \(line 3; there is {tmp_path}/1.png\)\n  x\\y/2.png \(line 4; there is {tmp_path}/2.png\)"
    with pytest.raises(BadInput, match=there):
        read(folder)
    write_csv(tmp_path / "train.csv", [row | {"file": f"/old/{row['file']}"} for row in rows])
    with pytest.raises(
        BadInput, match=f"no file /old/0.png in .*; there is {tmp_path}/0.png: correct the CSV, or --data"
    ):
        read(folder)


@pytest.mark.parametrize("mark", [";", "\t", "|"])
def test_B6_other_separators_are_read_and_said(tmp_path, mark):
    folder = csv_folder(tmp_path, rows_of("abab"))
    lines = [f'"{i}.png"{mark}{"ab"[i % 2]}{mark}"0,{i}, a{mark}b"' for i in range(4)]
    (tmp_path / "train.csv").write_text("\n".join([mark.join(("file", "label", "size, mm")), *lines]) + "\n")
    table = read(folder)
    assert table.classes == ["a", "b"] and table.notes == [f"the separator of {tmp_path / 'train.csv'} is {mark!r}"]
    (tmp_path / "train.csv").write_text("file,label\n" + "".join(f'{i}.png,"a{mark}{i % 2}"\n' for i in range(4)))
    assert read(folder).classes == [f"a{mark}0", f"a{mark}1"] and read(folder).notes == []


def test_B7_lines_are_those_of_the_file_with_blank_lines_and_breaks_in_quotes(tmp_path):
    folder = csv_folder(tmp_path, rows_of("abab"))
    (tmp_path / "train.csv").write_text('file,note,label\n\n0.png,"x\ny",a\n\n1.png,"x\n\ny",\n2.png,,\n')
    with pytest.raises(BadInput, match=r"\n  line 6 \(1.png\): ''\n  line 9 \(2.png\): ''$"):
        read(folder)
    write_csv(tmp_path / "train.csv", rows_of("abab", fold=["0", "1", "", "0"]))
    with pytest.raises(BadInput, match=r"line 4 \(2.png\) has no fold in column 'fold'"):
        read(folder)
    rows = rows_of("abab", fold=[0, 1, 1, 0])
    write_csv(tmp_path / "train.csv", [*rows, rows[0] | {"fold": 1}])
    with pytest.raises(BadInput, match=r"images with two folds: 1; .*\n.*0.png: 0 \(line 2\) and 1 \(line 6\)"):
        read(folder)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_B7_korean_headers_are_known_and_unknown_ones_name_the_options(tmp_path, form):
    rows = [{"파일명": f"{i}.png", "그룹": i // 2, "폴드": i % 2, "라벨": "가나"[i % 2], "메모": ""} for i in range(8)]
    rows = [{unicodedata.normalize(form, name): value for name, value in row.items()} for row in rows]
    folder = csv_folder(tmp_path, rows, next(iter(rows[0])))
    table = read(folder)
    assert table.classes == ["가", "나"] and len(set(table.groups)) == 4 and table.fold_of.tolist() == [0, 1] * 4
    write_csv(tmp_path / "train.csv", [{"사진파일": f"{i}.png", "종류": "가나"[i % 2]} for i in range(8)])
    with pytest.raises(
        BadInput, match="with --image-col, and the label column with --label-col .* the columns are 사진파일, 종류"
    ):
        read(folder)
    assert read(folder, columns={"image": "사진파일", "label": "종류"}).classes == ["가", "나"]


def test_B7_a_wrapping_folder_an_archive_and_a_csv_as_data_say_what_to_give(tmp_path):
    write_images(tmp_path / "wrap" / "dataset", {"a": 2, "b": 2})
    with pytest.raises(BadInput, match=f"only the folder dataset: give {tmp_path}/wrap/dataset, if its folders are"):
        read(str(tmp_path / "wrap"))
    for name, hint in (
        ("x.zip", "unzip it first"),
        ("x.tar.gz", "unzip it first"),
        ("x.csv", "use --csv .*x.csv, and"),
    ):
        (tmp_path / name).write_text("x")
        with pytest.raises(BadInput, match=f"{name} is a file, not a folder: {hint}"):
            read(str(tmp_path / name))


def test_B7_folders_that_systems_add_are_ignored(tmp_path):
    write_images(tmp_path, {"a": 2, "b": 2})
    for folder in ("__MACOSX/a", ".ipynb_checkpoints", "a/__MACOSX"):
        write_images(tmp_path / folder, {"": 1})
    (tmp_path / "b" / "Thumbs.db").write_bytes(b"x")
    table = read(str(tmp_path))
    assert table.classes == ["a", "b"] and len(table) == 4 and table.notes == []


def test_a_csv_with_a_column_per_feature_is_read_in_linear_time(tmp_path):
    def seconds(n):
        names = ",".join(f"f{i}" for i in range(n))
        (tmp_path / "wide.csv").write_text(f"{names}\n{','.join('1' * n)}\n")
        start = time.process_time()
        data.read_rows(tmp_path / "wide.csv")
        return time.process_time() - start

    assert seconds(100_000) < 40 * max(seconds(10_000), 0.01)  # 100 times, if it were quadratic
    with pytest.raises(BadInput, match=r"the columns are f0, f1, .*, f19, \.\.\. \(100,000 in all\)"):
        seconds(100_000)
        read(str(tmp_path), str(tmp_path / "wide.csv"))


def test_python_data_py_prints_warnings_too(tmp_path, capsys):
    csv_folder(tmp_path, [{"image": f"{i}.png", "kind": "ab"[i % 2]} for i in range(8)], "image")
    data.show(str(tmp_path))
    assert "warning    no column of" in capsys.readouterr().out


def test_python_data_py_prints_its_usage_and_names_that_are_not_text(tmp_path):
    done = subprocess.run([sys.executable, data.__file__, "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "python data.py FOLDER" in done.stdout and not done.stderr
    write_images(tmp_path, {os.fsdecode(b"\xb0\xa1"): 4, "ok": 4})
    done = subprocess.run([sys.executable, data.__file__, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0 and r"  \udcb0\udca1" in done.stdout


def test_a_csv_with_everything_at_once_is_read_after_one_message(tmp_path):
    """Floats, one-based, repeated rows, missing files, semicolons, Korean headers; or names in several spellings."""
    for labels in (["1.0", "2.0", "3.0"], ["Cat", "cat", "dog"]):
        rows = [(f"사진/{i:02d}.png", labels[i % 3]) for i in range(12)]
        folder = csv_folder(tmp_path / labels[0], [{"파일명": name} for name, _ in rows], "파일명")
        rows = [*rows, rows[3], ("사진/없음.png", labels[0]), ("사진/00.PNG", labels[0])]
        text = "\r\n".join(["파일명;라벨", *(";".join(row) for row in rows)])
        (tmp_path / labels[0] / "train.csv").write_bytes(text.encode("cp949"))
        with pytest.raises(BadInput, match="leave these rows out with --bad skip") as error:
            read(folder)
        fold_case = "add --fold-case to read 'Cat' and 'cat' as one class" in str(error.value)
        table = read(folder, skip_missing=True, fold_case=fold_case)
        assert len(table) == 12 and table.labels == (["Cat", "dog"] if fold_case else ["1", "2", "3"])
        split(table)
