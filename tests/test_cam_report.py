"""report.py --cam: where the network looked, by the network that was not trained on the image, only if asked."""

import base64
import io
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import image_folder
from PIL import Image
from test_page import checked
from test_report import CHROMIUM, needs_chromium, opened

import augment
import cam
import pixels
import predictors
import report
import runs
import train

FLAGS = "--size 16 --batch-size 8 --epochs 1 --lr 1e-4 --augment none --threads 1".split()


def trained(folder, *more):
    """A run that has hardly learned, so that it makes mistakes."""
    image_folder(folder / "d")
    out = folder / "run"
    train.main(["--data", str(folder / "d"), "--cache", str(folder / "c"), "--out", str(out), *FLAGS, *more])
    return out


@pytest.fixture(scope="module")
def folds(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("folds"), "--model", "resnet8", "--folds", "2")


def copied(run, folder):
    return Path(shutil.copytree(run, folder / "copy"))


def pictures(text):
    """The pictures of the page in order: (alt, pixels)."""
    found = re.findall(r'<img src="data:image/png;base64,([^"]+)" alt="([^"]+)"', text)
    return [(alt, np.asarray(Image.open(io.BytesIO(base64.b64decode(source))))) for source, alt in found]


def test_beside_each_mistake_is_the_map_of_the_network_of_its_own_fold(folds, tmp_path):
    out = report.main([str(folds), "--cam", "--out", str(tmp_path / "x.html")])
    text = out.read_text("utf-8")
    checked(text)
    found = pictures(text)
    run, shown, different = runs.read(folds), 0, 0
    fold_of = {path: f for f, part in enumerate(run.folds) for path in part.predictions.paths.tolist()}
    nets = [predictors.load_predictor(part.folder / "best_f1.pt", torch.device("cpu")) for part in run.folds]
    titles = re.findall(r'class="pair".*?<span title="([^"]+)"', text)
    maps = [picture for alt, picture in found if alt.startswith("evidence for ")]
    assert len(titles) == len(maps) > 2 and len(set(map(fold_of.get, titles))) == 2
    for path, picture in zip(titles, maps, strict=True):
        pred = int(run.predictions.probs[run.predictions.paths == path].argmax())
        drawn = []
        for own in (nets[fold_of[path]], nets[1 - fold_of[path]]):
            image = pixels.fitted(pixels.decode_file(path), *own.shape)
            x = augment.normalize(torch.from_numpy(image).permute(2, 0, 1)[None], own.saved["mean"], own.saved["std"])
            heat = cam.enlarged(cam.grad_cam(own.net, x, torch.tensor([pred])), (16, 16))[0]
            drawn.append(np.asarray(report.tinted(image, heat)))
        shown += np.array_equal(picture, drawn[0])
        different += not np.array_equal(picture, drawn[1])
    assert shown == len(maps) and different > 0
    assert "Grad-CAM" in text and "best_f1.pt" in report.__doc__


def test_the_map_is_of_the_predicted_class_and_says_so(folds, tmp_path):
    text = report.main([str(folds), "--cam", "--out", str(tmp_path / "x.html")]).read_text("utf-8")
    pairs = re.findall(r'alt="true class (\w+), predicted (\w+),[^>]*><img [^>]*alt="evidence for (\w+)"', text)
    assert len(pairs) > 2 and all(shown == predicted != true for true, predicted, shown in pairs)
    assert "raise the logit of the predicted class" in text


def test_without_cam_no_network_is_loaded(folds, tmp_path, monkeypatch):
    monkeypatch.setattr(predictors, "load_predictor", None)
    text = report.main([str(folds), "--out", str(tmp_path / "x.html")]).read_text("utf-8")
    assert "evidence for" not in text and "Grad-CAM" not in text and "pairs" not in text.split("</style>")[1]


def test_a_vision_transformer_is_one_note_without_pictures(tmp_path):
    run = trained(tmp_path, "--model", "vit_tiny", "--lr", "1e-9")
    text = report.main([str(run), "--cam"]).read_text("utf-8")
    assert text.count("vit_tiny has no feature map with height and width") == 1 and "evidence for" not in text


def test_a_network_in_a_file_is_executed_only_if_typed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(
        "open('executed', 'w')\nfrom torch import nn\n\ndef make(n):\n"
        "    features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())\n"
        "    return nn.Sequential(features, nn.Linear(4, n))\n"
    )
    run = trained(tmp_path, "--model", "nets.py:make")
    Path("executed").unlink()
    with pytest.raises(SystemExit) as stop:
        report.main([str(run), "--cam"])
    assert stop.value.code == 2 and "add: --model nets.py:make" in capsys.readouterr().err
    assert not Path("executed").exists()
    assert "evidence for" in report.main([str(run), "--cam", "--model", "nets.py:make"]).read_text("utf-8")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a", "b", "--out", "x.html", "--cam"], "--cam needs one run, got 2"),
        (["a", "--model", "nets.py:make"], "--model must be FILE.py:FUNCTION together with --cam"),
        (["a", "--cam", "--model", "resnet18"], "--model must be FILE.py:FUNCTION together with --cam"),
    ],
)
def test_options_without_effect_are_refused(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        report.main(words)
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_a_missing_or_damaged_checkpoint_is_one_line(folds, tmp_path, capsys):
    run = copied(folds, tmp_path)
    (run / "fold0" / "best_f1.pt").write_bytes(b"x")
    with pytest.raises(SystemExit) as stop:
        report.main([str(run), "--cam"])
    assert stop.value.code == 2 and "best_f1.pt is damaged" in capsys.readouterr().err
    (run / "fold0" / "best_f1.pt").unlink()
    with pytest.raises(SystemExit) as stop:
        report.main([str(run), "--cam"])
    assert stop.value.code == 2 and "best_f1.pt does not exist" in capsys.readouterr().err


def test_an_image_that_cannot_be_read_has_its_reason_and_no_map(folds, tmp_path):
    run = copied(folds, tmp_path)
    read = runs.read(run)
    wrong = read.predictions.paths[read.predictions.probs.argmax(1) != read.predictions.targets]
    for file in (run / "oof.npz", run / "fold0" / "val_probs.npz", run / "fold1" / "val_probs.npz"):
        found = dict(np.load(file))
        found["paths"] = np.array([p.replace(".png", ".gone") if p in set(wrong) else p for p in found["paths"]])
        np.savez(file, **found)
    text = report.main([str(run), "--cam"]).read_text("utf-8")
    assert "cannot read the image" in text and "evidence for" not in text


@needs_chromium
@pytest.mark.parametrize("width", [390, 1400])
def test_the_page_with_maps_does_not_scroll_sideways_and_has_no_error(folds, tmp_path, width):
    file = report.main([str(folds), "--cam", "--out", str(tmp_path / "x.html")])
    dom, console, requests = opened(file, tmp_path)
    assert "evidence for" in dom and console == [] and requests == set()
    (tmp_path / "frame.html").write_text(
        f"<iframe src='x.html' style='width:{width}px;height:800px'></iframe><script>onload = () => {{"
        "const d = document.querySelector('iframe').contentDocument.documentElement;"
        "const p = [...d.querySelectorAll('.pair')].map(e => [...e.children].map(i => i.getBoundingClientRect()));"
        "const beside = p.every(([a, b]) => Math.abs(a.top - b.top) < 1 && b.left >= a.right);"
        "document.title = `${d.scrollWidth} of ${d.clientWidth} ${beside}` }</script>"
    )
    flags = "--headless --no-sandbox --disable-gpu --allow-file-access-from-files --dump-dom --window-size=1600,900"
    command = [CHROMIUM, *flags.split(), f"--user-data-dir={tmp_path}/p", (tmp_path / "frame.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    inner, outer, beside = re.search(r"<title>(\d+) of (\d+) (\w+)</title>", done.stdout).groups()
    assert int(outer) > width - 40 and int(inner) <= int(outer) and beside == "true"


def test_the_largest_page_with_maps_stays_under_3_MB(tmp_path, make_run, monkeypatch):
    """9 pairs with 3 photos of pure noise each, and as many maps over them: nothing is harder to compress."""
    Image.effect_noise((300, 200), 90).convert("RGB").save(tmp_path / "photo.png")
    rng = np.random.default_rng(0)
    probs = rng.random((3000, 17)).astype(np.float32)
    files = [str(tmp_path / f"{i}.png") for i in range(3000)]
    run = make_run(tmp_path / "run", probs / probs.sum(1, keepdims=True), rng.integers(0, 17, 3000), files)
    decoded = pixels.decode_file(str(tmp_path / "photo.png"))
    monkeypatch.setattr(pixels, "decode_file", lambda path: decoded)

    def look(run, wrong):
        image = pixels.fitted(decoded, 224, 224, "squash")
        heat = cam.enlarged(torch.rand(1, 7, 7), (224, 224))[0]
        return {path: report.small_picture(report.tinted(image, heat), "x") for path in wrong}, "about"

    file = report.write([run], None, look)
    assert file.read_text("utf-8").count('class="pair"') == 27 and file.stat().st_size < 3_000_000
