"""data.py: layouts, splits without leaks, decoding, batches. Small files are made here; nothing is downloaded."""

import csv
import io
import multiprocessing
import os
import struct
import unicodedata

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import data
from data import Batches, ImageTable, decode, decode_file, join, read, split


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
    assert table.notes == [f"1 files without an image extension left alone, such as {tmp_path / 'cat' / 'notes.txt'}"]


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
    assert len(table) == 6 and table.is_val is None and "left alone" in table.notes[0]


def test_validation_data_is_matched_to_the_training_classes_by_name(tmp_path):
    write_images(tmp_path / "t", {"a": 2, "b": 2, "c": 2})
    write_images(tmp_path / "v", {"b": 1, "c": 2})
    table = join(read(str(tmp_path / "t")), read(str(tmp_path / "v"), train=False))
    train, val = split(table)
    assert table.targets[val].tolist() == [1, 2, 2] and len(train) == 6
    assert data.shared_groups(table, train, val) == 0
    write_images(tmp_path / "w", {"b": 1, "z": 2})
    with pytest.raises(ValueError, match="class 'z' of .* is not among the training classes"):
        join(read(str(tmp_path / "t")), read(str(tmp_path / "w"), train=False))
    with pytest.raises(ValueError, match="validation files are training files too"):
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
    assert "1 of 4 classes have no image: diploma" in table.notes
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
    table = read(str(tmp_path), group_regex=r"(s\d+)_aug")
    assert table.groups == [f"s{i // 4}" for i in range(16)] and "groups by" in table.layout
    for options, said in (
        ({"columns": {"label": "artist"}}, "has no column 'artist': it has path, y, style, Patient, copy"),
        ({"group_regex": "("}, "is no regular expression"),
        ({"group_regex": r"s0_"}, r"'s0_' names no group for 12 of 16 images, as .*s1_aug0.png"),
    ):
        with pytest.raises(ValueError, match=said):
            read(str(tmp_path), **options)
    write_images(tmp_path / "folder", {"a": 2, "b": 2})
    with pytest.raises(ValueError, match="there is no CSV that could have a column 'style'"):
        read(str(tmp_path / "folder"), columns={"label": "style"})


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
    with pytest.raises(ValueError, match="selfie.jpg: expected mask1"):
        read(str(tmp_path))


def test_a_torchvision_data_set_by_name(tmp_path):
    table = read("FakeData", cache=tmp_path)
    assert len(table) == 1000 and len(table.classes) == 10 and "torchvision data set FakeData" in table.layout
    names = table.paths[:5]
    table = ImageTable(names, table.targets[:5], names, table.classes, "made", source=table.source)
    images = decode(table, 32, tmp_path)
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
    images = decode(table, 28, tmp_path)
    assert (images[7][0] == torch.from_numpy(digits[7])).all() and (images[23][0] == torch.from_numpy(digits[3])).all()


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda p: None, "neither a folder nor the name of a torchvision data set"),
        (lambda p: p.mkdir(), "holds no class folders"),
        (lambda p: (p / "a").mkdir(parents=True), "class folder .*a holds no image"),
        (lambda p: write_images(p, {"a": 3}), "holds only one class, 'a'"),
        (lambda p: (p.mkdir(), (p / "train.csv").write_text("")), "train.csv has no rows"),
        (lambda p: (p.mkdir(), (p / "train.csv").write_text("a,b\n1,2\n")), "has no image column"),
        (lambda p: (p.mkdir(), (p / "train.csv").write_text("ID,target\nx.jpg,0\n")), "no file x.jpg in"),
        (lambda p: (write_images(p, {"": 1}), (p / "train.csv").write_text("ID\n00.png\n")), "no label column"),
        (
            lambda p: (write_images(p, {"": 2}), (p / "train.csv").write_text("ID,y\n00.png,0\nno.png,1\n")),
            "1 of 2 images are not in .*: no.png",
        ),
        (lambda p: (write_images(p, {"": 1}), (p / "train.csv").write_text("ID,y\n00.png,\n")), "has no label"),
    ],
)
def test_bad_data_is_an_error_that_names_it(tmp_path, make, said):
    make(tmp_path / "x")
    with pytest.raises((ValueError, FileNotFoundError), match=said):
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
    with pytest.raises(ValueError, match=r"class '2' has only 1 image \(4.jpg\)"):
        split(table_of([0, 0, 1, 1, 2]))
    with pytest.raises(ValueError, match="class '1' has only images of 1 group"):
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
    assert not {table.paths[i] for i in train} & {table.paths[i] for i in val} and len(val) == 9


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
    with pytest.raises(ValueError, match="no split found that has class '[012]' on both sides"):
        split(table_of([0, 1, 0, 2, 1, 2], [0, 0, 1, 1, 2, 2]))


# --- decoding --------------------------------------------------------------------------------------------------------


def jpeg(image, **options):
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def smooth(size=(40, 30)):
    """A colour ramp, which JPEG keeps to within a few grey levels."""
    y, x = np.mgrid[0 : size[1], 0 : size[0]]
    return Image.fromarray(np.stack([x * 5, y * 7, 200 - x * 2], 2).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_D11_exif_orientation_is_applied_in_jpeg_and_png(tmp_path, orientation):
    upright = smooth()
    exif = Image.Exif()
    exif[0x0112] = orientation
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transpose that EXIF's reader will turn back
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(undo[orientation]))
    (tmp_path / "x.jpg").write_bytes(jpeg(stored, exif=exif, quality=95, subsampling=0))
    stored.save(tmp_path / "x.png", exif=exif)
    expected = np.asarray(upright, dtype=int)
    for name in ("x.jpg", "x.png"):
        ours = decode_file(str(tmp_path / name)).permute(1, 2, 0).numpy()
        assert ours.shape == expected.shape and np.abs(ours - expected).max() < 12


def test_numbers_of_unknown_range_are_refused_and_small_integers_kept(tmp_path):
    Image.fromarray(np.linspace(0, 1, 120, dtype=np.float32).reshape(10, 12)).save(tmp_path / "x.tif")
    with pytest.raises(ValueError, match="floating-point numbers of unknown range"):
        decode_file(str(tmp_path / "x.tif"))
    Image.fromarray(np.arange(120, dtype=np.int32).reshape(10, 12)).save(tmp_path / "y.tif")
    assert decode_file(str(tmp_path / "y.tif"))[0].flatten().tolist() == list(range(120))


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "CMYK", "I;16"])
def test_D11_every_mode_becomes_rgb(tmp_path, mode):
    if mode == "I;16":
        image = Image.fromarray((np.arange(120, dtype=np.uint16) * 500).reshape(10, 12))
        expected = np.repeat((np.arange(120) * 500 / 257).round().reshape(10, 12, 1), 3, 2)
    else:
        image = picture(0).convert(mode)
        expected = np.asarray(image.convert("RGB"))
    name = "x.jpg" if mode == "CMYK" else "x.png"
    image.save(tmp_path / name, **({"quality": 100} if mode == "CMYK" else {}))
    ours = decode_file(str(tmp_path / name)).permute(1, 2, 0).numpy()
    tolerance = 60 if mode == "CMYK" else 0  # noise through JPEG
    assert np.abs(ours.astype(int) - expected).max() <= tolerance and ours.dtype == np.uint8


def test_alpha_is_laid_over_white(tmp_path):
    Image.new("RGBA", (4, 4), (200, 0, 0, 0)).save(tmp_path / "x.png")
    assert (decode_file(str(tmp_path / "x.png")) == 255).all()


def test_bad_files_are_all_listed_and_nothing_is_cached(tmp_path):
    folder = write_images(tmp_path / "d", {"a": 4, "b": 4}, ".jpg")
    whole = jpeg(smooth((200, 200)))
    (folder / "a" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "a" / "empty.jpg").write_bytes(b"")
    (folder / "b" / "page.jpg").write_text("<html>not an image</html>")
    table = read(str(folder))
    with pytest.raises(ValueError) as error:
        decode(table, 16, tmp_path / "cache")
    message = str(error.value)
    assert "3 of 11 images cannot be decoded" in message
    for said in ("cut.jpg: image file is truncated", "empty.jpg: the file is empty", "page.jpg: cannot identify"):
        assert said in message
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("part", [0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
def test_a_truncated_jpeg_is_refused_wherever_it_is_cut(tmp_path, part):
    whole = jpeg(smooth((300, 200)), quality=95)
    (tmp_path / "x.jpg").write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(OSError):
        decode_file(str(tmp_path / "x.jpg"))
    (tmp_path / "x.jpg").write_bytes(whole + b"\0\0")  # padding behind the end is common, and fine
    assert decode_file(str(tmp_path / "x.jpg")).shape == (3, 200, 300)


def test_the_cache_is_used_again_and_follows_the_files(tmp_path, monkeypatch):
    folder = write_images(tmp_path / "d", {"a": 3, "b": 3})
    first = decode(read(str(folder)), 12, tmp_path / "cache")
    monkeypatch.setattr(data, "decode_file", lambda path: pytest.fail("decoded again"))
    again = decode(read(str(folder)), 12, tmp_path / "cache")
    assert np.array_equal(first.pixels, again.pixels)
    monkeypatch.undo()
    decode(read(str(folder)), 8, tmp_path / "cache")  # another size is another cache
    picture(99).save(folder / "a" / "00.png")
    os.utime(folder / "a" / "00.png", ns=(1, 1))
    changed = decode(read(str(folder)), 12, tmp_path / "cache")
    assert not np.array_equal(first.pixels[0], changed.pixels[0])
    assert np.array_equal(first.pixels[1:], changed.pixels[1:])
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_decoding_keeps_order_over_blocks_and_threads(tmp_path):
    folder = write_images(tmp_path / "d", {"a": 150, "b": 150})
    table = read(str(folder))
    images = decode(table, 10, tmp_path / "cache", threads=4)
    for i in (0, 1, 149, 150, 255, 256, 299):
        expected = np.asarray(Image.open(table.paths[i]).resize((10, 10), Image.Resampling.BILINEAR), dtype=int)
        assert np.abs(images.pixels[i].astype(int) - expected).max() <= 1


def test_D10_the_cache_holds_decoded_pixels_only(tmp_path):
    folder = write_images(tmp_path / "d", {"a": 2, "b": 2})
    images = decode(read(str(folder)), 12, tmp_path / "cache")
    assert images.pixels.dtype == np.uint8 and images.pixels.shape == (4, 12, 12, 3)
    with pytest.raises(ValueError, match="read-only"):
        images.pixels[0] = 0


# --- batches ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def images(tmp_path):
    folder = write_images(tmp_path / "d", {"a": 11, "b": 10})
    return decode(read(str(folder)), 12, tmp_path / "cache")


@pytest.mark.parametrize("batch_size", [1, 2, 4, 5, 7, 10, 20, 21, 50])
@pytest.mark.parametrize("shuffle", [False, True])
def test_M2_every_row_comes_once_and_no_batch_of_one_is_left(images, batch_size, shuffle):
    rows = np.arange(3, 21)[::-1].copy()
    batches = Batches(images, rows, batch_size, shuffle)
    seen = list(batches.indexed())
    assert len(seen) == len(batches) == len(list(batches))
    index = torch.cat([i for i, _, _ in seen])
    assert sorted(index.tolist()) == sorted(rows.tolist()) and (shuffle or index.tolist() == rows.tolist())
    assert all(len(i) > 1 for i, _, _ in seen) or batch_size == 1
    for i, x, t in seen:
        assert torch.equal(t, images.targets[i]) and x.dtype == torch.uint8
        assert torch.equal(x.permute(0, 2, 3, 1), torch.from_numpy(images.pixels[i.numpy()]))
        assert x.is_contiguous(memory_format=torch.channels_last)


def test_the_order_depends_on_seed_and_epoch_alone(images):
    def order(seed, epoch, batch_size=4):
        batches = Batches(images, np.arange(21), batch_size, shuffle=True, seed=seed)
        batches.epoch = epoch
        return torch.cat(batches.index_batches()).tolist()

    assert order(1, 2) == order(1, 2) == order(1, 2, batch_size=7)
    assert order(1, 2) != order(1, 3) and order(1, 2) != order(2, 2)


def test_D12_labels_are_known_without_decoding(images):
    assert images.targets.tolist() == [0] * 11 + [1] * 10


def test_E6_the_decoded_set_works_in_a_foreign_loader(images):
    loader = DataLoader(images, batch_size=8, num_workers=0)
    x, t = next(iter(loader))
    assert x.shape == (8, 3, 12, 12) and torch.equal(x[3], images[3][0]) and torch.equal(t, images.targets[:8])


def test_a_set_that_lives_on_the_device_gives_the_same_batches(images):
    batches = Batches(images, np.arange(21), 4, shuffle=True)
    from_file = list(batches.indexed())
    assert not images.move_to(torch.device("cpu")) and images.resident is None
    images.resident = torch.from_numpy(np.array(images.pixels))  # as move_to does on a GPU
    for ours, theirs in zip(from_file, batches.indexed(), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert torch.equal(images[3][0], torch.from_numpy(images.pixels[3]).permute(2, 0, 1))


def test_batches_made_ahead_by_a_thread_are_the_same_and_its_errors_arrive():
    assert list(data._ahead(iter(range(100)))) == list(range(100))

    def broken():
        yield 1
        raise RuntimeError("in the thread")

    items = data._ahead(broken())
    assert next(items) == 1
    with pytest.raises(RuntimeError, match="in the thread"):
        next(items)
    early = data._ahead(iter(range(100)))
    next(early)
    early.close()  # a loop that is left early leaves no thread behind


def test_E7_no_worker_process_is_started(images):
    before = multiprocessing.active_children()
    next(iter(Batches(images, np.arange(21), 4, shuffle=True)))
    assert multiprocessing.active_children() == before
    assert "num_workers" not in open(data.__file__, encoding="utf-8").read()
