"""report.py: the page shows the numbers of the run's files, for any run, in every browser."""

import base64
import csv
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import Stream
from PIL import Image
from test_page import NASTY, checked
from torch.optim.optimizer import register_optimizer_step_pre_hook

import metrics
import page
import report
import runs
import train

ROOT = Path(__file__).resolve().parent.parent


def predictions(C, N, hit=0.6, seed=0):
    """probs (N, C) that are right in `hit` of the cases, and targets with every class."""
    rng = np.random.default_rng(seed)
    targets = np.concatenate([np.arange(C), rng.choice(C, N - C, p=np.arange(C, 0, -1) / (C * (C + 1) / 2))])
    preds = np.where(rng.random(N) < hit, targets, rng.integers(C, size=N))
    probs = rng.random((N, C)).astype(np.float32)
    probs[np.arange(N), preds] += rng.random(N) * C
    return probs / probs.sum(1, keepdims=True), targets


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    file = tmp_path_factory.mktemp("photos") / "a photo.png"
    Image.effect_noise((300, 200), 90).convert("RGB").save(file)
    return file


@pytest.fixture
def run17(tmp_path, make_run, photo):
    """17 classes and 3,140 images, as in the document competition; the misclassified images are large noisy photos."""
    probs, targets = predictions(17, 3140)
    paths = [str(photo)] * len(targets)
    return make_run(tmp_path / "run17", probs, targets, paths, epochs=30)


@pytest.fixture
def run1000(tmp_path, make_run, photo):
    probs, targets = predictions(1000, 5000)
    names = [f"n{c:08d} a class with a rather long name, {c}" for c in range(1000)]
    return make_run(tmp_path / "run1000", probs, targets, [str(photo)] * 5000, epochs=90, classes=names)


def words(text):
    return "\n".join(checked(text).words)


def test_the_page_has_the_figures_of_the_log_and_of_the_matrix(run17):
    text = report.write([run17]).read_text("utf-8")
    run, shown = runs.read(run17), words(text)
    matrix = run.predictions.matrix
    for figure in (matrix.f1(), matrix.accuracy(), matrix.worst_class()[1]):
        assert f"{figure:.4f}" in shown
    low, high = matrix.f1_interval()
    assert f"95 % interval {low:.4f} to {high:.4f}" in shown
    for row in matrix.per_class():
        assert re.search(rf"{row['class']} \nclass {row['class']}\n{row['f1']:.4f}\n{row['precision']:.4f}", shown)
    counts = matrix.matrix
    for target, pred, count in matrix.most_confused(report.PAIRS):
        assert f"{count} × \nclass {target}\n → \nclass {pred}" in shown
        assert f'title="true class class {target}, predicted class {pred}: {counts[target, pred]}"' in text
    headings = (
        "Curves",
        "Classes",
        "Confusion matrix",
        "Most confused classes",
        "Calibration",
        "Settings",
        "All options",
    )
    assert all(heading in shown for heading in headings)
    assert all(f"--{name.replace('_', '-')}" in shown for name in run.options)
    assert "resnet8" in shown and run.config["versions"]["torch"] in shown and run.config["command"] in shown


def test_the_heat_table_counts_every_image_once(run17):
    text = report.write([run17]).read_text("utf-8")
    heat = re.search(r'<table class="heat">.*?</table>', text, re.S).group(0)
    assert sum(map(int, re.findall(r"<td[^>]*>(\d+)</td>", heat))) == 3140


def test_the_worst_mistakes_are_the_surest_ones_and_shown_small(run17):
    text = report.write([run17]).read_text("utf-8")
    run_predictions = runs.read(run17).predictions
    target, pred, _ = run_predictions.matrix.most_confused(1)[0]
    rows = (run_predictions.targets == target) & (run_predictions.probs.argmax(1) == pred)
    surest = sorted(run_predictions.probs[rows].max(1), reverse=True)[: report.SHOTS]
    first = text[text.index("Most confused classes</h2>") :]
    assert re.findall(r">confidence ([\d.]+%)</span>", first)[: report.SHOTS] == [f"{p:.1%}" for p in surest]
    sizes = re.findall(r'<img src="data:image/png;base64,[^"]+" alt="[^"]+" width="(\d+)" height="(\d+)"', first)
    assert sizes and set(sizes) == {("112", "75")}


@pytest.mark.parametrize("which", ["run17", "run1000"])
def test_the_page_is_under_3_MB_and_well_formed(which, request):
    out = report.write([request.getfixturevalue(which)])
    assert out.stat().st_size < 3_000_000
    checked(out.read_text("utf-8"))


def test_a_thousand_classes_are_a_picture_a_short_table_and_a_folded_one(run1000):
    text = report.write([run1000]).read_text("utf-8")
    source = re.search(r'<image href="data:image/png;base64,([^"]+)"', text).group(1)
    image = Image.open(io.BytesIO(base64.b64decode(source)))
    assert image.size == (1000, 1000)
    alpha, counts = np.asarray(image.convert("RGBA"))[..., 3], runs.read(run1000).predictions.matrix.matrix.numpy()
    assert ((alpha > 0) == (counts > 0)).all()
    shown, folded = text.split("<summary>All 1000 classes")
    assert len(re.findall(r'class="n bar"', shown)) == 2 * report.MANY // 2
    assert len(re.findall(r'class="n bar"', folded.split("</details>")[0])) == 2 * 1000


def test_names_of_classes_and_files_stay_text(tmp_path, make_run):
    probs, targets = predictions(3, 60)
    paths = [f"{NASTY}/{i}.jpg" for i in range(60)]
    folder = make_run(tmp_path / "<b>run", probs, targets, paths, classes=[NASTY, "b", "c"])
    checker = checked(report.write([folder]).read_text("utf-8"))
    assert "script" not in {name for name, _ in checker.tags}
    assert any("<script>alert('x')</script>" in word for word in checker.words)


def test_notes_of_the_run_are_on_its_page(tmp_path, make_run):
    note = "--sampler weighted and --class-weights sqrt both favour rare classes"
    folder = make_run(tmp_path / "run", *predictions(3, 60), notes=[note])
    assert note in words(report.write([folder]).read_text("utf-8"))
    other = make_run(tmp_path / "other", *predictions(3, 60))
    assert note not in words(report.write([other]).read_text("utf-8"))


def test_warnings_are_under_the_head_of_the_page_once_each(tmp_path, make_run):
    a, b = "the names of the files look like groups", "63% of the validation images are identical <to> a training image"
    one = make_run(tmp_path / "one", *predictions(3, 60), warnings=[a, b])
    two = make_run(tmp_path / "two", *predictions(3, 60), warnings=[a])
    for folders, texts in (([one], [a, b]), ([one, two], [a, b]), ([two], [a])):
        page_text = report.write(folders, tmp_path / "page.html").read_text("utf-8")
        checked(page_text)
        head = re.search(r"</h1><div class=\"warning\" role=\"note\"><b>Warning</b>(.*?)</div>", page_text)[1]
        assert head == "".join(f"<p>{page.escaped(text)}</p>" for text in texts)
    plain = make_run(tmp_path / "plain", *predictions(3, 60), warnings=[])
    assert 'class="warning"' not in report.write([plain]).read_text("utf-8")


def test_warnings_of_folds_are_those_of_the_first_fold_that_has_some(tmp_path, make_run):
    def part(name, texts):
        return runs.Run(tmp_path / name, {"warnings": texts}, [], [])

    whole = runs.Run(tmp_path, {}, [], [part("fold0", []), part("fold1", ["b"]), part("fold2", ["c"])])
    assert re.findall("<p>(.*?)</p>", report.warnings([whole])) == ["b"]


def test_images_sampled_per_epoch_are_shown_if_they_differ_from_the_training_set(tmp_path, make_run):
    folder = make_run(tmp_path / "run", *predictions(3, 60), drawn_counts=[611, 611, 611])
    text = report.write([folder]).read_text("utf-8")
    shown = words(text)
    assert "Images of each class in the training set" in shown and ">sampled per epoch</th>" in text
    assert "sampled per epoch, 2: 611" in shown and "in the training set, 2: 500" in shown
    assert "Largest class: 1,000 images. Smallest class: 333 images." in shown
    plain = make_run(tmp_path / "plain", *predictions(3, 60))
    assert "sampled per epoch" not in words(report.write([plain]).read_text("utf-8"))


def test_an_image_that_is_gone_is_said_to_be(tmp_path, make_run):
    folder = make_run(tmp_path / "run", *predictions(3, 60))
    assert "cannot read the image: No such file" in report.write([folder]).read_text("utf-8")


def test_the_worst_class_stands_first_and_the_losses_are_not_swapped(run17):
    text = report.write([run17]).read_text("utf-8")
    table = text[text.index("All classes, lowest F1 first") :].split("</table>")[0]
    f1 = [float(value) for value in re.findall(r'<td class="n bar"[^>]*>([\d.]+)</td><td class="n">0', table)]
    assert len(f1) == 17 and f1 == sorted(f1) and f1[0] < f1[-1]
    loss = text[text.index("Loss (ce)") :].split("</figure>")[0]
    run = runs.read(run17)
    for name, key in (("training", "train_loss"), ("validation", "val_loss")):
        assert f">{name}, 3: {run.log[2][key]:.4g}</text></g>" in loss


def test_the_classes_in_which_runs_differ_most_are_shown(tmp_path, make_run):
    C, targets = 60, np.repeat(np.arange(60), 4)
    same, other = targets.copy(), targets.copy()
    same[targets < 10] = 0  # wrong in both runs
    other[targets < 10] = 0
    other[targets >= 55] = 20  # wrong in one run only
    eye = np.eye(C, dtype=np.float32)
    folders = [make_run(tmp_path / name, eye[preds], targets) for name, preds in (("a", same), ("b", other))]
    text = report.write(folders, tmp_path / "both.html").read_text("utf-8")
    assert "The 40 classes whose F1 differs most between the runs" in text
    assert all(f"<bdi>class {c}</bdi>" in text for c in (20, 55, 59)) and "<bdi>class 54</bdi>" not in text


@pytest.mark.parametrize("sure, word", [(0.9, "overconfident"), (0.5, "underconfident")])
def test_calibration_says_on_which_side_it_errs(tmp_path, make_run, sure, word):
    targets = np.zeros(100, np.int64)
    targets[:2] = 1
    probs = np.tile(np.float32([sure, 1 - sure, 0]), (100, 1))
    probs[:30] = probs[:30, [1, 0, 2]] if sure > 0.5 else probs[:30]  # right in 70 % or less, and in 98 %
    shown = words(report.write([make_run(tmp_path / "run", probs, targets)]).read_text("utf-8"))
    assert word in shown and ("under" if word.startswith("over") else "over") + "confident" not in shown


def test_names_from_right_to_left_do_not_turn_the_arrow_around(tmp_path, make_run):
    folder = make_run(tmp_path / "run", *predictions(3, 60), classes=["חתול", "كلب", "c"])
    assert re.search(r"<bdi>[^<]+</bdi> → <bdi>[^<]+</bdi></h3>", report.write([folder]).read_text("utf-8"))


def test_a_run_started_elsewhere_still_shows_its_images(tmp_path, make_run, photo, monkeypatch):
    monkeypatch.chdir(photo.parent)
    folder = make_run(tmp_path / "run", *predictions(3, 60), [photo.name] * 60)
    monkeypatch.chdir("/")
    assert "cannot read the image" not in report.write([folder]).read_text("utf-8")


@pytest.mark.parametrize("content", ['{"architectures": ["x"]}', "[]", "{"])
def test_a_config_of_something_else_is_one_line(tmp_path, capsys, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(SystemExit) as stop:
        report.main([str(tmp_path)])
    assert stop.value.code == 2 and "config.json is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("length", [0, 300])
def test_damaged_probabilities_are_one_line(tmp_path, make_run, capsys, length):
    folder = make_run(tmp_path / "run", *predictions(3, 60))
    (folder / "val_probs.npz").write_bytes((folder / "val_probs.npz").read_bytes()[:length])
    with pytest.raises(SystemExit) as stop:
        report.main([str(folder)])
    assert stop.value.code == 2 and "val_probs.npz is damaged" in capsys.readouterr().err


def test_a_perfect_run_a_class_without_images_and_a_run_without_an_epoch(tmp_path, make_run):
    targets = np.array([0, 0, 1, 1])
    folder = make_run(tmp_path / "perfect", np.eye(3, dtype=np.float32)[targets], targets, epochs=1)
    shown = words(report.write([folder]).read_text("utf-8"))
    assert "No image is misclassified." in shown and "0.6667" in shown
    for name in ("log.csv", "val_probs.npz"):
        (folder / name).unlink()
    assert "No epoch has been validated yet." in report.write([folder]).read_text("utf-8")


def test_a_run_of_an_older_kit_without_counts_still_gets_its_page(tmp_path, make_run):
    folder = make_run(tmp_path / "old", *predictions(3, 60))
    config = json.loads((folder / "config.json").read_text())
    for key in ("train_counts", "drawn_counts", "val_counts", "updates_an_epoch", "notes", "started"):  # nor "warnings"
        del config[key]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "updates.csv").unlink()
    shown = words(report.write([folder]).read_text("utf-8"))
    assert "Learning rate at the start of each epoch" in shown and "Images of each class" not in shown


def test_several_runs_are_a_table_with_what_differs_and_curves(tmp_path, make_run):
    first = make_run(tmp_path / "a", *predictions(5, 300), argv=["--loss", "ce"])
    second = make_run(tmp_path / "b", *predictions(5, 300, 0.8), argv=["--loss", "focal", "--gamma", "1"])
    text = report.write([first, second], tmp_path / "both.html").read_text("utf-8")
    table = text[text.index("Best epoch of each run") : text.index("</table>")]
    assert "--loss" in table and "--gamma" in table and "--epochs" not in table and "--out" not in table
    for folder in (first, second):
        assert f"{runs.read(folder).predictions.matrix.f1():.4f}" in table
    assert text.count('role="img"') == 7 and text.count('class="legend"') == 1


def test_runs_that_cannot_be_compared_are_named(tmp_path, make_run, capsys):
    first = make_run(tmp_path / "a", *predictions(5, 300))
    second = make_run(tmp_path / "b", *predictions(4, 300))
    for folders, message in (([first, second], "different classes"), ([tmp_path], str(tmp_path))):
        with pytest.raises(SystemExit) as stop:
            report.main([*map(str, folders), "--out", str(tmp_path / "x.html")])
        assert stop.value.code == 2 and message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        report.main([str(first), str(second)])
    assert "--out is missing" in capsys.readouterr().err and not (tmp_path / "x.html").exists()


# --- learning rates --------------------------------------------------------------------------------------------------


def small_run(tmp_path, *more):
    rng = np.random.default_rng(0)
    for i in range(60):
        file = tmp_path / "data" / "abc"[i % 3] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8) // 3 + 80 * (i % 3)).save(file)
    out = tmp_path / "run"
    flags = "--size 16 --model resnet8 --batch-size 8 --epochs 4".split()
    train.main(["--data", str(tmp_path / "data"), *flags, "--cache", str(tmp_path / "cache"), "--out", str(out), *more])
    return out


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["--scheduler", "none"],
        ["--scheduler", "step", "--step-epochs", "1"],
        ["--scheduler", "plateau", "--plateau-patience", "1", "--monitor", "loss"],
        ["--scheduler", "onecycle"],
        ["--scheduler", "restarts", "--t0", "1", "--accum", "2", "--warmup", "1", "--optimizer", "sgd"],
    ],
)
def test_the_learning_rates_drawn_are_those_of_every_update(tmp_path, more):
    seen = []

    def record(optimizer, *_):
        seen.append(optimizer.param_groups[0]["lr"])

    hook = register_optimizer_step_pre_hook(record)
    try:
        folder = small_run(tmp_path, *more)
    finally:
        hook.remove()
    x, y = report.of_updates(runs.read(folder), "lr")
    assert seen and x == list(range(1, len(seen) + 1)) and y == pytest.approx(seen)
    assert "Learning rate of each update" in (folder / "report.html").read_text("utf-8")


def test_the_learning_rates_are_those_of_updates_csv(tmp_path, make_run):
    folder = make_run(tmp_path / "run", *predictions(3, 60))
    lines = list(csv.DictReader(open(folder / "updates.csv")))
    x, y = report.of_updates(runs.read(folder), "lr")
    assert len(lines) == 50 and x == list(range(1, 51)) and y == [float(line["lr"]) for line in lines]
    lines[30]["lr"] = 0.25  # no schedule gives this
    runs.write_csv(folder / "updates.csv", runs.UPDATE_COLUMNS, [list(line.values()) for line in lines])
    assert report.of_updates(runs.read(folder), "lr")[1][30] == 0.25
    assert "learning rate, 31: 0.25<" in report.write([folder]).read_text("utf-8")


def test_many_learning_rates_are_thinned_and_stay_those_of_their_updates(tmp_path, make_run):
    folder = make_run(tmp_path / "run", *predictions(3, 60))
    runs.write_csv(folder / "updates.csv", runs.UPDATE_COLUMNS, ([1, i, i / 7, 1, 1] for i in range(1, 5001)))
    x, y = report.of_updates(runs.read(folder), "lr")
    assert 500 <= len(x) <= report.POINTS and x[0] == 1 and x[-1] > 4980
    assert y == [i / 7 for i in x]


def test_a_line_that_a_kill_cut_is_ignored_and_a_damaged_file_is_one_line(tmp_path, make_run, capsys):
    folder = make_run(tmp_path / "run", *predictions(3, 60))
    file = folder / "updates.csv"
    whole = file.read_text()
    for cut in (1, 20):
        file.write_text(whole[:-cut])
        assert runs.read(folder).updates["update"] == list(range(1, 50))
    file.write_text("epoch,upd")  # not even the header is complete
    assert "Learning rate at the start of each epoch" in report.write([folder]).read_text("utf-8")
    lines = whole.splitlines(keepends=True)
    for damaged in (lines[:5] + ["1,5\n"] + lines[6:], lines[:5] + ["1,5,x,1,1\n"] + lines[6:], ["a,b\n"] + lines[1:]):
        file.write_text("".join(damaged))
        with pytest.raises(SystemExit) as stop:
            report.main([str(folder)])
        assert stop.value.code == 2 and "updates.csv is damaged" in capsys.readouterr().err


def test_one_run_without_updates_csv_draws_all_runs_per_epoch(tmp_path, make_run):
    folders = [make_run(tmp_path / name, *predictions(3, 60)) for name in "ab"]
    assert "Learning rate of each update" in report.write(folders, tmp_path / "x.html").read_text("utf-8")
    (folders[1] / "updates.csv").unlink()
    text = report.write(folders, tmp_path / "x.html").read_text("utf-8")
    assert "Learning rate at the start of each epoch" in text and "Learning rate of each update" not in text


def test_several_folds_have_a_page_of_all_images(tmp_path):
    out = small_run(tmp_path, "--folds", "3", "--epochs", "2")
    shown = words((out / "report.html").read_text("utf-8"))
    assert f"{runs.read(out).predictions.matrix.f1():.4f}" in shown and "60 images" in shown
    assert "fold0" in shown and "fold2" in shown and (out / "fold1" / "report.html").exists()
    (out / "oof.npz").unlink()  # as if it had been cut in the last fold
    for name in ("log.csv", "val_probs.npz"):
        (out / "fold2" / name).unlink()
    shown = words(report.write([out]).read_text("utf-8"))
    assert "Folds with results: 2." in shown and "fold1" in shown
    report.write([out, out / "fold0"], tmp_path / "both.html")


def test_a_run_of_folds_beside_others_is_one_row_with_its_out_of_fold_score(tmp_path):
    out = small_run(tmp_path, "--folds", "3", "--epochs", "1")
    run, text = runs.read(out), report.write([out, out / "fold0"], tmp_path / "both.html").read_text("utf-8")
    rows = re.findall(r'<th scope="row">(.*?)</th><td class="n bar"[^>]*>([\d.]+)</td>', text)
    name = out.name
    assert rows == [
        (f"{name} (3 folds)", f"{run.predictions.matrix.f1():.4f}"),
        (f"{name}/fold0", f"{run.folds[0].predictions.matrix.f1():.4f}"),
    ]
    mean = sum(fold.log[0]["val_ce"] for fold in run.folds) / 3
    chart = text[text.index("Validation cross-entropy</figcaption>") :].split("</figure>")[0]
    assert f"{name} (3 folds), 1: {mean:.4g}</text>" in chart


def test_a_run_that_is_not_finished_is_called_so_with_the_command_that_continues_it(tmp_path, make_run):
    probs, targets = predictions(3, 30)
    cut = make_run(tmp_path / "cut", probs, targets, planned=9)
    done = make_run(tmp_path / "done", probs, targets)
    early = make_run(tmp_path / "early", probs, targets, planned=9, argv=["--patience", "2"])
    log = runs.read(early).log
    runs.write_log(early, log + [log[-1] | {"epoch": epoch} for epoch in (6, 7)])
    texts = {folder.name: report.write([folder]).read_text("utf-8") for folder in (cut, done, early)}
    assert {name: "Not finished" in text for name, text in texts.items()} == {
        "cut": True,
        "done": False,
        "early": False,
    }
    assert "Not finished, epochs: 5 of 9" in texts["cut"] and f"train.py --resume {cut}</code>" in texts["cut"]
    runs.write_log(early, log + [log[-1] | {"epoch": 6}])  # one epoch without improvement: --patience has not ended it
    assert "Not finished" in report.write([early]).read_text("utf-8")


def test_notes_are_above_the_scores_and_an_option_that_is_not_set_is_called_so(tmp_path, make_run):
    probs, targets = predictions(3, 30)
    a = make_run(tmp_path / "a", probs, targets, notes=["near-duplicates: 4"])
    b = make_run(tmp_path / "b", probs, targets, argv=["--clip", "5"])
    text = report.write([a]).read_text("utf-8")
    assert text.index("near-duplicates: 4") < text.index('class="cards"') and ">None<" not in text
    both = report.write([a, b], tmp_path / "both.html").read_text("utf-8")
    assert "<td>not set</td>" in both and "<td>5.0</td>" in both


def test_gradient_norm_and_gpu_memory_are_drawn_if_the_run_has_them(tmp_path, make_run):
    probs, targets = predictions(3, 30)
    folder = make_run(tmp_path / "a", probs, targets)
    text = report.write([folder]).read_text("utf-8")
    assert "Gradient norm of each update" in text and "GPU memory" not in text
    runs.write_log(folder, [row | {"gpu_memory": 3.25} for row in runs.read(folder).log])
    assert "Largest: 3.25 GiB allocated." in report.write([folder]).read_text("utf-8")
    (folder / "updates.csv").unlink()
    assert "Gradient norm" not in report.write([folder]).read_text("utf-8")


def test_a_report_that_cannot_be_written_is_a_line_and_the_run_stays(tmp_path, monkeypatch, capsys):
    def full(*arguments):
        raise OSError("the disk is full")

    monkeypatch.setattr(report, "write", full)
    out = small_run(tmp_path, "--epochs", "1")
    assert "report.html was not written: the disk is full" in capsys.readouterr().err
    assert len(list(csv.DictReader(open(out / "log.csv")))) == 1


# --- calibration -----------------------------------------------------------------------------------------------------


def test_calibration_against_the_definition_bin_by_bin():
    probs, targets = predictions(5, 500)
    parts = metrics.calibration(probs, targets, bins=15)
    confidence, right = probs.max(1).astype(float), probs.argmax(1) == targets
    expected = []
    for b in range(15):
        inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        if inside.any():
            expected.append((inside.sum(), confidence[inside].mean(), right[inside].mean()))
    assert [n for n, _, _ in parts] == [n for n, _, _ in expected] and sum(n for n, _, _ in parts) == 500
    assert np.allclose(parts, expected)
    error = sum(n / 500 * abs(c - a) for n, c, a in expected)
    assert metrics.expected_calibration_error(probs, targets) == pytest.approx(error) and error > 0.01


def test_calibration_refuses_logits():
    with pytest.raises(ValueError, match="sum to 1"):
        metrics.calibration([[2.0, -1.0]], [0])


# --- a browser -------------------------------------------------------------------------------------------------------

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="needs Chromium")
OWN = ("google.com", "googleapis.com", "gstatic.com")  # the browser's own requests


def opened(file, folder):
    """(the page's elements, the console's messages, the hosts that were sent a request) in headless Chromium."""
    log = folder / "net.json"
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync"
    flags += " --enable-logging=stderr --dump-dom"
    command = [CHROMIUM, *flags.split(), f"--log-net-log={log}", f"--user-data-dir={folder / 'profile'}", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    console = re.findall(r"CONSOLE.*", done.stderr)
    urls = set(re.findall(r'"url":"(https?://[^"/]+)', log.read_text("utf-8")))
    return done.stdout, console, {url for url in urls if not url.endswith(OWN)}


@needs_chromium
@pytest.mark.parametrize("which", ["run17", "run1000"])
def test_a_browser_shows_the_page_without_an_error_or_a_request(which, request, tmp_path):
    file = report.write([request.getfixturevalue(which)])
    dom, console, requests = opened(file, tmp_path)
    assert "Settings</h2>" in dom and console == [] and requests == set()


@needs_chromium
def test_an_image_from_elsewhere_is_an_error_and_without_the_policy_a_request(tmp_path):
    """The control."""
    outside = page.tag("img", src="http://f1kit.invalid/x.png", alt="x")
    text = page.document("x", [("y", outside)])
    (tmp_path / "with.html").write_text(text)
    assert len(opened(tmp_path / "with.html", tmp_path)[1]) == 1
    (tmp_path / "without.html").write_text(text.replace("Content-Security-Policy", "nothing"))
    _, _, requests = opened(tmp_path / "without.html", tmp_path)
    assert "http://f1kit.invalid" in requests


@needs_chromium
@pytest.mark.parametrize("which", ["run17", "run1000"])
def test_a_narrow_screen_scrolls_its_tables_not_the_page(which, request, tmp_path):
    """In an iframe of 390 pixels, because a window of headless Chromium is never narrower than 500."""
    file = report.write([request.getfixturevalue(which)])
    (file.parent / "frame.html").write_text(
        f"<iframe src='{file.name}' style='width:390px;height:800px'></iframe><script>onload = () => {{"
        "const d = document.querySelector('iframe').contentDocument.documentElement;"
        "document.title = `${d.scrollWidth} of ${d.clientWidth}` }</script>"
    )
    flags = "--headless --no-sandbox --disable-gpu --allow-file-access-from-files --dump-dom"
    command = [CHROMIUM, *flags.split(), f"--user-data-dir={tmp_path}/p", (file.parent / "frame.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    inner, outer = re.search(r"<title>(\d+) of (\d+)</title>", done.stdout).groups()
    assert int(outer) > 300 and int(inner) <= int(outer)


def test_the_command_line(tmp_path, make_run):
    folder = make_run(tmp_path / "run", *predictions(3, 60))
    done = subprocess.run([sys.executable, ROOT / "report.py", folder], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.strip() == str(folder / "report.html"), done.stderr


def test_a_notebook_cell_gets_the_path(tmp_path, make_run, monkeypatch):
    folder = make_run(tmp_path / "run", *predictions(3, 60))
    stream = Stream()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", Stream())
    assert report.main([str(folder)]) == folder / "report.html"
    assert stream.text == f"{folder / 'report.html'}\n"


def test_a_bug_keeps_its_traceback(tmp_path, make_run, monkeypatch):
    folder = make_run(tmp_path / "run", *predictions(3, 60))

    def bug(*arguments):
        raise ValueError("a bug")

    monkeypatch.setattr(report, "of_one", bug)
    with pytest.raises(ValueError, match="a bug"):
        report.main([str(folder)])


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes only on Linux")
def test_a_folder_whose_name_is_not_valid_text_has_a_page_too(tmp_path, make_run):
    folder = make_run(tmp_path / "run", *predictions(3, 60)).rename(tmp_path / "run\udcff")
    done = subprocess.run([sys.executable, ROOT / "report.py", folder], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.endswith("run\\udcff/report.html\n"), done.stderr
