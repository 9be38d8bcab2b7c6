"""Classes that combine factors, such as mask x gender x age: the table, the factored head, each factor's scores."""

import copy
import csv
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import data
import demo
import loop
import losses
import metrics
import models

IDS = [*itertools.product(range(3), range(2), range(3))]  # (18, 3), as in the mask competition
SIZES = (3, 2, 3)


# --- the head --------------------------------------------------------------------------------------------------------


def parts_of(head, x):
    """The outputs of each factor: (N, 3), (N, 2), (N, 3)."""
    return F.linear(x, head.weight, head.bias).split(SIZES, dim=1)


def sum_of_losses(head, x, targets, ids=IDS):
    values = torch.tensor(ids)[targets].T
    return sum(F.cross_entropy(part, value) for part, value in zip(parts_of(head, x), values, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_factored_cross_entropy_is_the_sum_of_the_factors_cross_entropies_gradients_too(dtype):
    torch.manual_seed(0)
    head = models.FactoredHead(10, IDS).to(dtype)
    x, targets = torch.randn(64, 10, dtype=dtype, requires_grad=True), torch.randint(0, 18, (64,))
    assert head(x).shape == (64, 18) and head.weight.shape == (8, 10)
    weights = [head.weight, head.bias, x]
    whole, parts = F.cross_entropy(head(x), targets), sum_of_losses(head, x, targets)
    assert abs(whole - parts) < 1e-6
    of_whole, of_parts = (torch.autograd.grad(loss, weights) for loss in (whole, parts))
    assert all(torch.allclose(a, b, rtol=0, atol=1e-6) for a, b in zip(of_whole, of_parts, strict=True))


def test_the_losses_differ_if_combinations_are_missing_or_factors_are_swapped():  # negative control
    torch.manual_seed(0)
    x, targets = torch.randn(64, 10), torch.randint(0, 12, (64,))
    head = models.FactoredHead(10, IDS)
    assert abs(F.cross_entropy(head(x)[:, :12], targets) - sum_of_losses(head, x, targets)) > 1e-3
    swapped = [(a, b, 2 - c) for a, b, c in IDS]
    assert abs(F.cross_entropy(head(x), targets) - sum_of_losses(head, x, targets, swapped)) > 1e-3


def test_the_predicted_class_has_the_most_likely_value_of_each_factor():
    torch.manual_seed(0)
    head, x = models.FactoredHead(10, IDS), torch.randn(500, 10)
    predicted = torch.tensor(IDS)[head(x).argmax(1)]
    own = torch.stack([part.argmax(1) for part in parts_of(head, x)], 1)
    assert torch.equal(predicted, own)
    free = torch.tensor(IDS)[nn.Linear(10, 18)(x).argmax(1)]
    assert not torch.equal(free, own)


@pytest.mark.parametrize("name", ["resnet8", "resnet18", "efficientnet_b0", "vit_tiny"])
def test_a_network_takes_a_factored_head_that_is_its_last_stage(name):
    size = 32 if name in ("resnet8", "vit_tiny") else 64
    model, other = (models.build_model(name, 18, size, "factored", IDS) for _ in range(2))
    head = models.find_head(model)
    assert isinstance(model.get_submodule(head), models.FactoredHead)
    assert models.stages(model)[-1] == [head + ".weight", head + ".bias"]  # what --freeze and --head-lr use
    assert models.load_weights(other, model.state_dict()) == []
    x = torch.randn(2, 3, size, size)
    assert torch.equal(model.eval()(x), other.eval()(x))


def test_a_head_of_the_same_shape_but_another_kind_or_other_factors_starts_fresh():
    """2 x 2 values have 4 outputs, as many as a linear head for the 4 classes."""
    square, other = [(0, 0), (0, 1), (1, 0), (1, 1)], [(0, 0), (1, 0), (0, 1), (1, 1)]
    linear = models.build_model("resnet8", 4, 32)
    model = models.build_model("resnet8", 4, 32, "factored", square)
    assert linear.linear.weight.shape == model.linear.weight.shape
    everything = ["linear.weight", "linear.bias", "linear.parts"]
    before = copy.deepcopy(model.state_dict())
    assert models.load_weights(model, linear.state_dict()) == everything
    assert models.load_weights(linear, before) == everything[:2]
    assert (
        models.load_weights(model, models.build_model("resnet8", 4, 32, "factored", other).state_dict()) == everything
    )
    assert all(torch.equal(model.state_dict()[key], before[key]) for key in everything)
    assert models.load_weights(model, before) == []  # negative control


def test_a_factored_head_without_factors_is_refused():
    for ids in ((), [[], [], []]):
        with pytest.raises(models.BadInput, match="head factored needs classes that combine factors"):
            models.build_model("resnet8", 3, 32, "factored", ids)
    for ids in ([0, 1], [(0, -1)]):
        with pytest.raises(ValueError, match="factor_ids must be integers"):
            models.FactoredHead(3, ids)


@pytest.mark.parametrize("loss", ["ce", "focal", "ldam", "f1", "balanced_softmax"])
def test_accumulation_is_exact_with_a_factored_head(loss):
    torch.manual_seed(0)
    counts = (torch.arange(18) * 7 + 3).tolist()
    criterion = losses.build_loss(loss, counts).double()
    model = nn.Sequential(nn.Linear(12, 10), nn.Tanh(), models.FactoredHead(10, IDS)).double()
    x, y = torch.randn(27, 12).double(), torch.randint(0, 18, (27,))

    def gradients(window, divisor=1):
        model.zero_grad()
        for batch in window if divisor > 1 else ():
            (criterion(model(batch[0]), batch[1]) / divisor).backward()
        if divisor == 1:
            loop.backward_window(model, model, criterion, window)
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    big, window = gradients([(x, y)]), [*zip(x.split(8), y.split(8), strict=True)]
    assert torch.allclose(gradients(window), big, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(gradients(window, 4), big, rtol=1e-3)  # negative control: loss / accum


# --- the table -------------------------------------------------------------------------------------------------------


def write_csv(folder, rows, columns=("file", "mask", "gender", "age"), name="train.csv"):
    """A CSV and one picture per row."""
    rng = np.random.default_rng(len(rows))
    folder.mkdir(exist_ok=True)
    with open(folder / name, "w", newline="") as file:
        csv.writer(file).writerows([columns, *([f"{i:03d}.png", *row] for i, row in enumerate(rows))])
    for i, row in enumerate(rows):
        pixels = rng.integers(0, 120, (16, 16, 3))
        for channel, value in enumerate(row[:3]):
            pixels[:, :, channel] += 100 * (value in ("no", "male", "60", "2"))
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i:03d}.png")
    return str(folder)


ROWS = [(m, g, a) for m in ("wear", "no") for g in ("male", "female") for a in ("9", "60", "30")]
NAMES = {"label": "mask,gender,age"}


def test_a_csv_with_three_label_columns_has_the_combinations_as_classes_in_the_stated_order(tmp_path):
    rows = [row for row in ROWS if row != ("no", "male", "60")] * 2
    table = data.read(write_csv(tmp_path, rows), columns=NAMES)
    assert table.factors == {"mask": ["no", "wear"], "gender": ["female", "male"], "age": ["9", "30", "60"]}
    assert table.classes == table.labels and len(table.classes) == 12
    assert table.classes[:4] == ["no, female, age 9", "no, female, age 30", "no, female, age 60", "no, male, age 9"]
    assert table.factor_ids.tolist() == [[*ids] for ids in itertools.product(range(2), range(2), range(3))]
    values = [*table.factors.values()]
    for row, target in zip(rows, table.targets, strict=True):
        assert tuple(values[f][i] for f, i in enumerate(table.factor_ids[target])) == row
    assert "classes without images, whose F1 is 0: 1 of 12 (no, male, age 60)" in table.notes
    other = data.read(str(tmp_path), columns={"label": " AGE, mask"})  # any order and case
    assert list(other.factors) == ["age", "mask"] and other.classes[1] == "age 9, wear"
    assert data.read(str(tmp_path), columns={"label": "mask"}).factors == {}


def test_the_mask_layout_knows_its_factors(tmp_path):
    table = data.read(str(demo.draw(tmp_path / "demo", people=12)))
    assert table.factor_ids.tolist() == [[*ids] for ids in IDS] and [*map(len, table.factors.values())] == [*SIZES]
    for name, ids in zip(table.classes, IDS, strict=True):
        assert name == ", ".join(values[i] for values, i in zip(table.factors.values(), ids, strict=True))


def test_take_only_and_join_keep_factors_and_merge_has_none(tmp_path):
    table = data.read(write_csv(tmp_path / "a", ROWS), columns=NAMES)
    taken = data.take(table, np.arange(3))
    assert taken.factors == table.factors and np.array_equal(taken.factor_ids, table.factor_ids)
    val = data.read(write_csv(tmp_path / "b", ROWS[:2]), columns=NAMES, train=False)  # one mask, one gender, two ages
    joined = data.join(table, val)
    assert joined.factors == table.factors and np.array_equal(joined.factor_ids, table.factor_ids)
    assert [joined.classes[c] for c in joined.targets[-2:]] == ["wear, male, age 9", "wear, male, age 60"]
    some = data.only(table, "6,8")  # wear, female, 9 and 60: only the age tells them apart
    assert some.factors == {"age": ["9", "60"]} and some.factor_ids.tolist() == [[0], [1]]
    merged = data.merge(table, "0,1")
    assert merged.factors == {} and merged.factor_ids.shape == (11, 0)


@pytest.mark.parametrize(
    "label, message",
    [
        ("mask,sex", "has no column 'sex': it has file, mask, gender, age"),
        ("mask,", "has no column '': it has"),
        ("mask,mask", "column 'mask' is listed twice"),
        ("mask,same", "column same of .* has only the value 'x': leave it out"),
        ("mask,hole", "rows without a label in column 'hole': 1"),
        ("mask,digits", "is written in two ways, '1' and '1.0'"),
        ("a,b", "2 combinations of a, b have the name 'x, y, z': rename a value"),
        ("file,mask", "no label column with a known name"),
        ("many,more", "60 .many. x 60 .more. values are too many classes for 120 rows"),
    ],
)
def test_label_columns_that_make_no_classes_are_refused(tmp_path, label, message):
    columns = ("file", "mask", "gender", "age", "same", "hole", "digits", "a", "b", "many", "more")
    more = [
        ("x", "h" * (i > 0), ("1", "1.0", "2")[i % 3], ("x", "x, y")[i % 2], ("y, z", "z")[i % 2]) for i in range(120)
    ]
    rows = [(*ROWS[i % 12], *more[i], str(i % 60), str(i // 2)) for i in range(120)]
    folder = write_csv(tmp_path, rows, columns)
    with pytest.raises(data.BadInput, match=message):
        data.read(folder, columns={"label": label})
    with pytest.raises(data.BadInput, match="--num-classes 4"):
        data.read(folder, columns={"label": "mask,gender"}, num_classes=4)


def test_a_column_whose_name_has_a_comma_is_one_column(tmp_path):
    folder = write_csv(tmp_path, ROWS, ("file", "mask, worn", "gender", "age"))
    assert data.read(folder, columns={"label": "mask, worn"}).classes == ["no", "wear"]
    with pytest.raises(data.NoColumn, match="no column 'mask'"):
        data.read(folder, columns={"label": "mask, worn,gender"})


# --- the scores of a factor ------------------------------------------------------------------------------------------


def test_regroup_gives_the_matrix_of_the_coarser_classes():
    rng = np.random.default_rng(0)
    preds, targets, ids = rng.integers(0, 18, 500), rng.integers(0, 18, 500), np.array(IDS)
    matrix = metrics.ConfusionMatrix(18).update(preds, targets)
    for factor, size in enumerate(SIZES):
        column = ids[:, factor]
        expected = metrics.confusion_matrix(column[preds], column[targets], size)
        assert torch.equal(matrix.regroup(column).matrix, expected)
        assert not torch.equal(matrix.regroup(np.roll(column, 1)).matrix, expected)  # negative control
    assert matrix.regroup(range(18)).f1() == matrix.f1()


def test_regroup_keeps_values_out_of_range_as_an_error_and_checks_its_ids():
    matrix = metrics.ConfusionMatrix(4).update([0, 1, -1, 9], [0, 1, 2, 3])
    with pytest.raises(ValueError, match="Of 4 samples.* 1 preds are < 0 and 1 are >= 2"):
        matrix.regroup([0, 0, 1, 1]).f1()
    for ids in ([0, 1], [0, 0, -1, 1]):
        with pytest.raises(ValueError, match="ids must be 4 class ids >= 0"):
            matrix.regroup(ids)
    with pytest.raises(ValueError, match="num_classes must be >= 2"):
        matrix.regroup([0, 0, 0, 0])
