"""pixels.py: decoding, the cache, batches, samplers. Small files are made here."""

import csv
import errno
import io
import multiprocessing
import os
import re
import shutil
import struct
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import pixels
from pixels import BadInput, Batches, decode, decode_file


def picture(seed=0, size=(12, 10), mode="RGB"):
    values = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def write_images(folder, n, extension=".png", **options):
    """Paths of n files, each of another content."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [str(folder / f"{i:03d}{extension}") for i in range(n)]
    for i, path in enumerate(paths):
        picture(i).save(path, **options)
    return paths


def targets(n):
    return np.arange(n) % 2


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


@pytest.mark.parametrize("part", [0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
def test_a_truncated_jpeg_is_refused_wherever_it_is_cut(tmp_path, part):
    whole = jpeg(smooth((300, 200)), quality=95)
    (tmp_path / "x.jpg").write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(OSError):
        decode_file(str(tmp_path / "x.jpg"))
    (tmp_path / "x.jpg").write_bytes(whole + b"\0\0")  # padding behind the end is common, and fine
    assert decode_file(str(tmp_path / "x.jpg")).shape == (3, 200, 300)


@pytest.mark.parametrize(
    "fit, expected",
    [
        ("squash", [[0, 0, 255, 255], [0, 0, 255, 255]]),
        ("crop", [[0, 0, 255, 255], [0, 0, 255, 255]]),
    ],
)
def test_a_wide_photo_is_squashed_or_cropped(fit, expected):
    half = torch.zeros(3, 20, 80, dtype=torch.uint8)
    half[:, :, 40:] = 255
    result = pixels.fitted(half, 20, 20, fit)[:, [0, 5, 15, 19], 0]
    assert result[[0, -1]].tolist() == expected
    edge = torch.zeros(3, 20, 80, dtype=torch.uint8)
    edge[:, :, :20] = 255  # outside of the middle
    assert (pixels.fitted(edge, 20, 20, fit).max() == 255) == (fit == "squash")
    tall = torch.zeros(3, 90, 30, dtype=torch.uint8)
    tall[:, :30] = 255
    assert (pixels.fitted(tall, 16, 16, fit).max() == 255) == (fit == "squash")


def test_a_padded_photo_keeps_its_shape_between_bars_of_the_mean_colour():
    wide = pixels.fitted(torch.full((3, 20, 80), 255, dtype=torch.uint8), 16, 16, "pad")
    assert (wide[6:10] == 255).all() and (wide[:6] == pixels.PADDING).all() and (wide[10:] == pixels.PADDING).all()
    tall = pixels.fitted(torch.full((3, 80, 20), 255, dtype=torch.uint8), 16, 32, "pad")
    assert (tall[:, 14:18] == 255).all() and (tall[:, :14] == pixels.PADDING).all()


# --- the cache -------------------------------------------------------------------------------------------------------


def test_the_cache_is_used_again_and_follows_the_files_and_the_options(tmp_path, monkeypatch):
    paths, cache = write_images(tmp_path / "d", 6), tmp_path / "cache"
    first = decode(paths, targets(6), 12, cache)
    with monkeypatch.context() as patch:
        patch.setattr(pixels, "decode_file", lambda path: pytest.fail("decoded again"))
        again = decode(paths, targets(6), 12, cache)
    assert np.array_equal(first.pixels, again.pixels)
    assert decode(paths, targets(6), 8, cache).pixels.shape == (6, 8, 8, 3)
    assert decode(paths, targets(6), (8, 16), cache).pixels.shape == (6, 8, 16, 3)
    assert not np.array_equal(decode(paths, targets(6), 12, cache, fit="crop").pixels, first.pixels)
    picture(99).save(paths[0])
    os.utime(paths[0], ns=(1, 1))
    changed = decode(paths, targets(6), 12, cache)
    assert not np.array_equal(first.pixels[0], changed.pixels[0])
    assert np.array_equal(first.pixels[1:], changed.pixels[1:])
    assert len(list(cache.iterdir())) == 5


def test_decoding_keeps_order_over_blocks_and_threads(tmp_path):
    paths = write_images(tmp_path / "d", 300)
    images = decode(paths, targets(300), 10, tmp_path / "cache", threads=4)
    for i in (0, 1, 149, 150, 255, 256, 299):
        expected = np.asarray(Image.open(paths[i]).resize((10, 10), Image.Resampling.BILINEAR), dtype=int)
        assert np.abs(images.pixels[i].astype(int) - expected).max() <= 1


def test_D10_the_cache_holds_decoded_pixels_only(tmp_path):
    images = decode(write_images(tmp_path / "d", 4), targets(4), 12, tmp_path / "cache")
    assert images.pixels.dtype == np.uint8 and images.pixels.shape == (4, 12, 12, 3)
    with pytest.raises(ValueError, match="read-only"):
        images.pixels[0] = 0


BUILD = """
import sys
import numpy as np
import pixels
slow = pixels.decode_file
def decode_file(path):
    import time
    time.sleep(0.02)
    return slow(path)
pixels.decode_file = decode_file
paths = sys.argv[2:]
images = pixels.decode(paths, np.zeros(len(paths), np.int64), 12, sys.argv[1], threads=1)
print(int(images.pixels.astype(np.int64).sum()))
"""


def build(cache, paths):
    words = [sys.executable, "-c", BUILD, str(cache), *paths]
    return subprocess.Popen(words, cwd=Path(pixels.__file__).parent, stdout=subprocess.PIPE, text=True)


def test_a_build_that_is_killed_is_redone_and_leaves_nothing(tmp_path):
    paths, cache = write_images(tmp_path / "d", 60), tmp_path / "cache"
    process = build(cache, paths)
    while not list(cache.glob(".*.tmp")) if cache.exists() else True:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    left = [path.name for path in cache.iterdir()]
    assert len(left) == 1 and left[0].endswith(".tmp")  # half a cache is not one
    images = decode(paths, targets(60), 12, cache)
    assert len(images) == 60 and [path.suffix for path in cache.iterdir()] == [".npy"]
    assert np.array_equal(images.pixels[59], np.asarray(pixels.fitted(decode_file(paths[59]), 12, 12, "squash")))


SEAMS = """
import os
import pickle
import random
import shutil
import signal
import sys
import time

import numpy as np

import pixels

folder, random_kills = sys.argv[1], int(sys.argv[2])
names = [f"{folder}/d/{i:03d}.png" for i in range(20)]
never = lambda: None


def build(cache, arm=never, seconds=60):
    \"\"\"Decodes in a process that `arm` prepares, killed after `seconds`. Returns what it got, or None.\"\"\"
    child = os.fork()
    if not child:
        arm()
        images = pixels.decode(names, np.arange(20), 8, f"{folder}/{cache}", bad="skip", threads=1, progress=False)
        got = images.pixels.tobytes(), images.kept.tolist(), images.paths, open(images.bad_csv, "rb").read()
        with open(f"{folder}/got", "wb") as file:
            pickle.dump(got, file)
        os._exit(0)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end and not (ended := os.waitpid(child, os.WNOHANG))[0]:
        time.sleep(1e-4)
    if not ended[0]:
        os.kill(child, signal.SIGKILL)
        ended = os.waitpid(child, 0)
    assert ended[1] in (0, signal.SIGKILL), ended
    return pickle.load(open(f"{folder}/got", "rb")) if ended[1] == 0 else None


def at_step(n):
    \"\"\"Dies before the n-th open, rename, removal or fsync in a cache folder, or at a bad image.\"\"\"
    left = [n]

    def step(event="", words=()):
        of_cache = event in ("os.rename", "os.remove", "open") and "cache-" in str(words[0])
        if not event or of_cache:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(step)
    fsync, describe = os.fsync, pixels.describe_error
    os.fsync = lambda file: (step(), fsync(file))
    pixels.describe_error = lambda error: (step(), describe(error))[1]


def put(content):
    \"\"\"Other content of a file, with the same name, size and time.\"\"\"
    status = os.stat(names[3])
    with open(names[3], "wb") as file:
        file.write(content.ljust(status.st_size))
    os.utime(names[3], ns=(status.st_atime_ns, status.st_mtime_ns))


expected = build("cache-undisturbed")
begin = time.perf_counter()
build("cache-timed")
duration, steps = time.perf_counter() - begin, 0
while build(f"cache-{steps}", lambda: at_step(steps)) is None:
    assert build(f"cache-{steps}") == expected, f"step {steps}"
    assert sorted(name[-4:] for name in os.listdir(f"{folder}/cache-{steps}")) == [".csv", ".npy"], f"step {steps}"
    steps += 1
for n in range(random_kills):
    build(f"cache-random{n}", never, random.Random(n).uniform(1e-4, duration))
    assert build(f"cache-random{n}") == expected, f"random kill {n}"

put(open(f"{folder}/good.png", "rb").read())  # a bad image is repaired: the cache is made again
repaired, again = build("cache-repaired"), 0
assert repaired[1] == sorted([3, *expected[1]])
while True:
    shutil.copytree(f"{folder}/cache-undisturbed", f"{folder}/cache-again{again}")
    killed = build(f"cache-again{again}", lambda: at_step(again)) is None
    assert build(f"cache-again{again}") == repaired, f"step {again} of the second build"
    if not killed:
        break
    again += 1
print(steps, again)
"""


def test_a_build_killed_at_any_seam_or_moment_is_the_undisturbed_one_after_the_next_run(tmp_path):
    paths = write_images(tmp_path / "d", 20)
    shutil.copy(paths[3], tmp_path / "good.png")
    for i in (3, 11):
        Path(paths[i]).write_bytes(b"not an image".ljust(2 * os.path.getsize(paths[i])))
    words = [sys.executable, "-c", SEAMS, str(tmp_path), "30"]
    done = subprocess.run(words, cwd=Path(pixels.__file__).parent, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    steps, again = map(int, done.stdout.split())
    assert steps >= 10 and again >= 10


def spoiled(content):
    """Damaged versions of a cache file of four images, 8 x 8."""
    end = 128 + 4 * 8 * 8 * 3
    shape = content.index(b"(4, 8, 8, 3)")
    yield from (content[:n] for n in (0, 5, 64, 127, 128, 300, end - 1, end, end + 1, len(content) - 1))
    yield from (content + b"x", b"\0" * len(content), b"PK\3\4" + content[4:], b"text")
    yield content[:shape] + b"(3, 8, 8, 3)" + content[shape + 12 :]
    yield content[:shape] + b"(4, 8, 8, 9)" + content[shape + 12 :]
    yield content[:shape] + b"(4, 8, 8, (((" + content[shape + 13 :]
    yield content[:end] + b'{"bad": {"1": "cut"}, "digest": "0"}'
    yield content[:end] + b'{"bad": [], "digest": "0"}'
    yield content[:end] + b"[]"


def test_a_cache_file_that_does_not_fit_is_made_again(tmp_path):
    paths, cache = write_images(tmp_path / "d", 4), tmp_path / "cache"
    first = decode(paths, targets(4), 8, cache)
    whole, values = first.file.read_bytes(), np.array(first.pixels)
    n = 0
    for n, content in enumerate(spoiled(whole), 1):
        first.file.unlink()
        first.file.write_bytes(content)
        again = decode(paths, targets(4), 8, cache)
        assert np.array_equal(again.pixels, values) and again.digest == first.digest, n
        assert first.file.read_bytes() == whole, n
    assert n == 20


def test_a_list_of_bad_images_that_is_gone_is_written_again(tmp_path):
    paths = write_images(tmp_path / "d", 4)
    Path(paths[1]).write_bytes(b"")
    images = decode(paths, targets(4), 8, tmp_path / "cache", bad="skip")
    listed = images.bad_csv.read_bytes()
    images.bad_csv.unlink()
    assert decode(paths, targets(4), 8, tmp_path / "cache", bad="skip").bad_csv.read_bytes() == listed
    assert images.bad == {1: "the file is empty"}


def test_a_cache_that_is_cut_while_it_is_used_is_an_error_and_no_bus_error(tmp_path):
    code = """
import os, sys
import numpy as np
import pixels
images = pixels.decode(sys.argv[2:], np.zeros(len(sys.argv) - 2, np.int64), 64, sys.argv[1], progress=False)
batches = iter(pixels.Batches(images, np.arange(len(images)), 2))
next(batches)
os.truncate(images.file, 4096)
try:
    next(batches)
except OSError as error:
    print(error)
"""
    words = [sys.executable, "-c", code, str(tmp_path / "cache"), *write_images(tmp_path / "d", 6)]
    done = subprocess.run(words, cwd=Path(pixels.__file__).parent, capture_output=True, text=True)
    assert done.returncode == 0 and re.search("npy has been cut while it was in use", done.stdout), done


def test_a_cache_file_that_is_deleted_while_it_is_used_changes_nothing(tmp_path):
    images = decode(write_images(tmp_path / "d", 6), targets(6), 8, tmp_path / "cache")
    before = np.array(images.pixels)
    images.file.unlink()
    assert np.array_equal(torch.cat([x for x, _ in Batches(images, np.arange(6), 2)]).permute(0, 2, 3, 1), before)


def test_a_planted_link_is_not_followed_and_a_strange_temporary_file_harms_nothing(tmp_path, monkeypatch):
    paths, cache, victim = write_images(tmp_path / "d", 4), tmp_path / "cache", tmp_path / "victim"
    first = decode(paths, targets(4), 8, cache)
    victim.write_text("precious")
    host = pixels.socket.gethostname()
    first.file.unlink()
    for process in ("x", "", "1" * 30, "\u0663", "-1"):
        (cache / f".a.npy.{host}-{process}.tmp").write_text("")
    again = decode(paths, targets(4), 8, cache)
    assert victim.read_text() == "precious" and not again.file.is_symlink()
    assert np.array_equal(again.pixels, first.pixels)
    planted = cache / f".{first.file.name}.00.{host}-{os.getpid()}.tmp"
    planted.symlink_to(victim)
    monkeypatch.setattr(pixels.secrets, "token_hex", lambda n: "00")  # as if its random name had been guessed
    os.remove(first.file)
    with pytest.raises(FileExistsError):
        decode(paths, targets(4), 8, cache)
    assert victim.read_text() == "precious" and planted.is_symlink()


def test_threads_that_build_the_same_cache_do_not_disturb_each_other(tmp_path):
    paths = write_images(tmp_path / "d", 40)
    for i in range(6):
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _, i=i: decode(paths, targets(40), 8, tmp_path / f"cache{i}"), range(4)))
        assert all(np.array_equal(images.pixels, found[0].pixels) for images in found)
        assert not list((tmp_path / f"cache{i}").glob(".*.tmp"))


def test_the_temporary_file_of_a_dead_process_is_removed_by_the_next_run_though_the_cache_is_there(tmp_path):
    paths, cache = write_images(tmp_path / "d", 4), tmp_path / "cache"
    decode(paths, targets(4), 8, cache)
    process = subprocess.Popen(["true"])
    process.wait()
    dead, alive = (cache / f".a.npz.{pixels.socket.gethostname()}-{n}.tmp" for n in (process.pid, os.getppid()))
    dead.write_text("")
    alive.write_text("")
    decode(paths, targets(4), 8, cache)
    assert list(cache.glob(".*")) == [alive]


def test_E4_the_digest_follows_the_pixels_and_their_order_and_nothing_else(tmp_path):
    paths = write_images(tmp_path / "d", 4)
    first = decode(paths, targets(4), 8, tmp_path / "cache")
    assert len(first.digest) == 64 and decode(paths, targets(4), 8, tmp_path / "cache").digest == first.digest
    assert decode(paths, targets(4), 8, tmp_path / "other", threads=3).digest == first.digest
    assert decode(paths[::-1], targets(4), 8, tmp_path / "cache").digest != first.digest
    assert decode(paths, targets(4), 10, tmp_path / "cache").digest != first.digest
    source = [(Image.open(path),) for path in paths]
    assert decode(list("abcd"), targets(4), 8, tmp_path / "cache", source).digest == first.digest
    values = np.array(Image.open(paths[2]))
    values[3:6, 3:6] ^= 128
    Image.fromarray(values).save(paths[2])
    os.utime(paths[2], ns=(1, 1))
    assert decode(paths, targets(4), 8, tmp_path / "cache").digest != first.digest


def test_two_builds_at_once_do_not_harm_each_other(tmp_path):
    paths, cache = write_images(tmp_path / "d", 40), tmp_path / "cache"
    processes = [build(cache, paths) for _ in range(2)]
    sums = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    expected = int(decode(paths, targets(40), 12, cache).pixels.astype(np.int64).sum())
    assert sums == [f"{expected}\n"] * 2 and len(list(cache.iterdir())) == 1


def test_a_full_disk_is_one_clear_line(tmp_path, monkeypatch):
    paths = write_images(tmp_path / "d", 4)
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
        with pytest.raises(OSError, match=r"cache has 0.00 GB free, but 4 decoded images need 0.00 GB"):
            decode(paths, targets(4), 32, tmp_path / "cache")

    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)  # another program took the space meanwhile
    with pytest.raises(OSError, match="GB free, but 4 decoded images need"):
        decode(paths, targets(4), 32, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_another_error_of_the_cache_folder_is_not_called_a_full_disk(tmp_path, monkeypatch):
    def broken(file):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output error") as error:
        decode(write_images(tmp_path / "d", 4), targets(4), 32, tmp_path / "cache")
    assert "GB" not in str(error.value) and list((tmp_path / "cache").iterdir()) == []


def test_an_array_knows_its_cache_file(tmp_path):
    images = decode(write_images(tmp_path / "d", 4), targets(4), (8, 16), tmp_path / "cache")
    assert [images.file] == list((tmp_path / "cache").iterdir())
    assert np.array_equal(np.load(images.file), images.pixels)
    assert pixels.ImageArray(np.array(images.pixels), targets(4), images.paths).file is None
    assert pixels.sides(12) == (12, 12) and pixels.sides((8, 16)) == pixels.sides([8, 16]) == (8, 16)


def test_memory_is_flat_in_the_number_of_images(tmp_path):
    script = """
import resource, sys
import numpy as np
import pixels
n = int(sys.argv[2])
noise = np.random.default_rng(0).integers(0, 256, (500, 500, 3), dtype=np.uint8)
class Source:
    def __getitem__(self, i):
        return (noise,)
pixels.decode([str(i) for i in range(n)], np.zeros(n, np.int64), 128, sys.argv[1], Source(), threads=1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    peak = []
    for n in (300, 3000):  # 15 MB and 147 MB of pixels
        words = [sys.executable, "-c", script, str(tmp_path / str(n)), str(n)]
        done = subprocess.run(words, cwd=Path(pixels.__file__).parent, capture_output=True, text=True, check=True)
        peak.append(int(done.stdout) / 1024)
    assert peak[1] - peak[0] < 60


# --- bad and unusual files -------------------------------------------------------------------------------------------


def webp(frames, **options):
    file = io.BytesIO()
    frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:], lossless=True, **options)
    return file.getvalue()


def png16(values):
    """A PNG with 16 bits a channel, (h, w, 3), which Pillow reads and cannot write."""
    h, w, _ = values.shape

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", w, h, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def without_adobe_marker(content):
    start = content.index(b"\xff\xee")
    return content[:start] + content[start + 2 + int.from_bytes(content[start + 2 : start + 4], "big") :]


def zoo(folder):
    """name -> ("pixels", array, tolerance) or ("refused", words), and the files in `folder`."""
    folder.mkdir()
    expected = {}

    def put(name, content, kind, value, tolerance=0):
        (folder / name).write_bytes(content)
        expected[name] = (kind, value, tolerance)

    def saved(image, kind, **options):
        file = io.BytesIO()
        image.save(file, kind, **options)
        return file.getvalue()

    ramp = smooth((64, 48))
    rgb = np.asarray(ramp)
    whole = jpeg(ramp, quality=95, subsampling=0)
    for tenth in range(10):
        cut = whole[: max(len(whole) * tenth // 10, 2)]
        put(f"cut{tenth}.jpg", cut, "refused", "[Tt]runcated|cannot identify|data stream")
    put("cut.png", saved(ramp, "PNG")[:-40], "refused", "truncated|broken PNG|unrecognized data stream")
    put("empty.jpg", b"", "refused", "the file is empty")
    put("text.jpg", b"not an image", "refused", "cannot identify")
    put("page.jpg", b"<!DOCTYPE html><html><body>404</body></html>", "refused", "cannot identify")
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    put("pointer.png", pointer, "refused", "cannot identify")
    put("float.tif", saved(Image.fromarray(np.zeros((8, 8), np.float32)), "TIFF"), "refused", "floating-point")
    bomb = saved(Image.new("1", (20_000, 10_000)), "PNG")
    put("bomb.png", bomb, "refused", "decompression bomb")
    put("bomb.jpg", jpeg(Image.new("L", (12_000, 9_000))), "refused", "decompression bomb")

    put("plain.jpg", whole, "pixels", rgb, 6)
    put("UPPER.JPG", whole, "pixels", rgb, 6)
    put("upper.JPEG", whole, "pixels", rgb, 6)
    put("padded.jpg", whole + b"\0\0\0", "pixels", rgb, 6)
    put("really_png.jpg", saved(ramp, "PNG"), "pixels", rgb)
    put("progressive.jpg", jpeg(ramp, quality=95, subsampling=0, progressive=True), "pixels", rgb, 6)
    grey = np.asarray(ramp.convert("L"))
    put("grey.jpg", jpeg(ramp.convert("L"), quality=95), "pixels", np.stack([grey] * 3, 2), 6)
    ink = 255 - rgb  # CMY without black
    cmyk = Image.fromarray(np.dstack([ink, np.zeros_like(ink[:, :, 0])]), "CMYK")
    adobe = jpeg(cmyk, quality=95, subsampling=0)
    put("cmyk.jpg", adobe, "pixels", rgb, 8)
    put("cmyk_no_marker.jpg", without_adobe_marker(adobe), "pixels", rgb, 8)
    put("cmyk.tif", saved(cmyk, "TIFF"), "pixels", rgb)
    for name, array in (("grey16", np.arange(0, 60000, 500, np.uint16).reshape(10, 12)),):
        value = np.stack([(array / 257).round()] * 3, 2)
        put(f"{name}.png", saved(Image.fromarray(array), "PNG"), "pixels", value)
        put(f"{name}.tif", saved(Image.fromarray(array), "TIFF"), "pixels", value)
    deep = np.arange(0, 64800, 180, np.uint16).reshape(10, 12, 3)
    put("rgb16.png", png16(deep), "pixels", deep / 257, 1)
    alpha = np.tile(np.arange(64, dtype=np.uint8) * 4, (48, 1))
    over_white = rgb * (alpha / 255)[:, :, None] + 255 * (1 - alpha / 255)[:, :, None]
    put("rgba.png", saved(Image.fromarray(np.dstack([rgb, alpha])), "PNG"), "pixels", over_white, 1)
    la = grey * (alpha / 255) + 255 * (1 - alpha / 255)
    put("la.png", saved(Image.fromarray(np.dstack([grey, alpha]), "LA"), "PNG"), "pixels", np.stack([la] * 3, 2), 1)
    palette = ramp.quantize(16)
    put("p.png", saved(palette, "PNG"), "pixels", np.asarray(palette.convert("RGB")))
    clear = np.where((np.asarray(palette) == 3)[:, :, None], 255, np.asarray(palette.convert("RGB")))
    put("p_clear.png", saved(palette, "PNG", transparency=3), "pixels", clear)
    bits = ramp.convert("1")
    put("bits.png", saved(bits, "PNG"), "pixels", np.asarray(bits.convert("RGB")))
    frames = [palette, palette.transpose(Image.Transpose.ROTATE_180)]
    gif = saved(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=100, loop=0)
    put("moving.gif", gif, "pixels", np.asarray(palette.convert("RGB")))
    put("moving.webp", webp([ramp, ramp.transpose(Image.Transpose.ROTATE_180)], duration=100), "pixels", rgb)
    put("plain.bmp", saved(ramp, "BMP"), "pixels", rgb)
    undo = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    for orientation, turn in undo.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored = ramp if turn is None else ramp.transpose(Image.Transpose(turn))
        put(f"exif{orientation}.jpg", jpeg(stored, exif=exif, quality=95, subsampling=0), "pixels", rgb, 6)
    return expected


def test_a_zoo_of_bad_and_unusual_images_each_has_its_pixels_or_is_refused_by_name(tmp_path, monkeypatch):
    expected = zoo(tmp_path / "zoo")
    assert len(expected) >= 40
    for name, (kind, value, tolerance) in expected.items():
        path = str(tmp_path / "zoo" / name)
        if kind == "pixels":
            ours = decode_file(path).permute(1, 2, 0).numpy().astype(float)
            assert ours.shape == value.shape and np.abs(ours - value).max() <= tolerance, name
        else:
            with pytest.raises((OSError, ValueError, Image.DecompressionBombError)) as error:
                decode_file(path)
            assert re.search(value, str(error.value)), (name, error.value)
    paths = [str(tmp_path / "zoo" / name) for name in expected]
    bad = [path for path in paths if expected[os.path.basename(path)][0] == "refused"]
    with pytest.raises(BadInput) as error:
        decode(paths, targets(len(paths)), 16, tmp_path / "cache")
    message = str(error.value)
    assert message.startswith(f"{len(bad)} of {len(paths)} images cannot be decoded") and bad[0] in message
    bad_csv = next((tmp_path / "cache").glob("*.bad.csv"))
    assert str(bad_csv) in message
    assert set((tmp_path / "cache").iterdir()) == {bad_csv, Path(str(bad_csv).replace(".bad.csv", ".npy"))}
    with open(bad_csv, newline="") as file:
        assert [row["path"] for row in csv.DictReader(file)] == bad
    decoded, decode_again = [], pixels.decode_file
    monkeypatch.setattr(pixels, "decode_file", lambda path: decoded.append(path) or decode_again(path))
    images = decode(paths, targets(len(paths)), 16, tmp_path / "cache", bad="skip")
    assert decoded == bad  # what was decoded before the error is used
    assert images.paths == [path for path in paths if path not in bad] == [paths[i] for i in images.kept]
    for i, path in enumerate(images.paths):  # none is replaced by another
        assert np.array_equal(images.pixels[i], pixels.fitted(decode_file(path), 16, 16, "squash"))


EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 20 20
%%EndComments
newpath 0 0 20 20 rectfill
%%EOF
"""


def test_E7_an_eps_file_with_the_name_of_a_photo_starts_no_ghostscript(tmp_path, monkeypatch):
    from PIL import EpsImagePlugin

    (tmp_path / "x.jpg").write_bytes(EPS)
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was started"))
    with Image.open(tmp_path / "x.jpg") as image:
        assert image.format == "EPS"  # Pillow alone would take it
    with pytest.raises(Image.UnidentifiedImageError) as error:
        decode_file(str(tmp_path / "x.jpg"))
    assert pixels.describe_error(error.value).startswith("not an image in one of the formats JPEG, PNG, ")


def test_E7_every_extension_of_the_kit_is_read_and_a_photo_of_several_pictures_too(tmp_path):
    import data

    for extension in data.IMAGE_EXTENSIONS:
        picture(0).convert("L" if extension == ".pgm" else "RGB").save(tmp_path / f"x{extension}")
        assert decode_file(str(tmp_path / f"x{extension}")).shape == (3, 10, 12), extension
    picture(0).save(tmp_path / "phone.jpg", "MPO", save_all=True, append_images=[picture(1)])
    with Image.open(tmp_path / "phone.jpg") as image:
        assert image.format == "MPO"
    assert decode_file(str(tmp_path / "phone.jpg")).shape == (3, 10, 12)


def test_a_directory_and_a_file_without_read_permission_are_refused_by_name(tmp_path):
    paths = write_images(tmp_path, 4)
    (tmp_path / "x.jpg").mkdir()
    with pytest.raises(BadInput, match=r"1 of 5 images.*\n.*x.jpg: .*directory"):
        decode([*paths, str(tmp_path / "x.jpg")], targets(5), 16, tmp_path / "cache")
    os.chmod(paths[1], 0)
    if os.access(paths[1], os.R_OK):
        pytest.skip("this user may read every file")
    with pytest.raises(BadInput, match="001.png: .*Permission denied"):
        decode(paths, targets(4), 16, tmp_path / "cache")


def test_bad_files_left_out_once_are_tried_again(tmp_path):
    paths, cache = write_images(tmp_path / "d", 6), tmp_path / "cache"
    good = open(paths[2], "rb").read()
    bad = good[: len(good) // 2] + b"\0" * (len(good) - len(good) // 2)
    state = os.stat(paths[2])
    open(paths[2], "wb").write(bad)
    os.utime(paths[2], ns=(state.st_atime_ns, state.st_mtime_ns))
    assert len(decode(paths, targets(6), 16, cache, bad="skip")) == 5
    assert len(decode(paths, targets(6), 16, cache, bad="skip")) == 5
    with pytest.raises(BadInput, match="1 of 6 images cannot be decoded"):
        decode(paths, targets(6), 16, cache)
    open(paths[2], "wb").write(good)  # the same size and time: a permission mended, a disk come back
    os.utime(paths[2], ns=(state.st_atime_ns, state.st_mtime_ns))
    assert len(decode(paths, targets(6), 16, cache)) == 6 and not list(cache.glob("*.bad.csv"))


def test_images_that_are_all_bad_are_an_error_even_with_skip(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"")
    with pytest.raises(BadInput, match="1 of 1 images cannot be decoded"):
        decode([str(tmp_path / "a.jpg")], targets(1), 16, tmp_path / "cache", bad="skip")


def test_an_image_that_vanishes_after_listing_is_bad_input_or_left_out(tmp_path):
    paths = write_images(tmp_path / "d", 6)
    content = Path(paths[2]).read_bytes()
    os.remove(paths[2])
    with pytest.raises(BadInput, match=r"1 of 6 images cannot be decoded:\n.*002.png: No such file or directory\n"):
        decode(paths, targets(6), 16, tmp_path / "cache")
    for _ in range(2):  # from the cache too
        images = decode(paths, targets(6), 16, tmp_path / "cache", bad="skip")
        assert images.kept.tolist() == [0, 1, 3, 4, 5]
    Path(paths[2]).write_bytes(content)
    assert len(decode(paths, targets(6), 16, tmp_path / "cache")) == 6


@pytest.mark.parametrize(
    "error, said",
    [
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x.png"), "No such file or directory"),
        (OSError("image file is truncated (3 bytes not processed)"), "image file is truncated (3 bytes not processed)"),
        (ValueError("first line\nsecond line"), "first line"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_an_error_is_described_in_one_line(error, said):
    assert pixels.describe_error(error) == said


def test_more_than_20_bad_images_are_20_and_a_number():
    message = pixels.describe_bad({i: "cut" for i in range(1, 24)}, [f"{i}.png" for i in range(1200)])
    assert message.startswith("23 of 1200 images cannot be decoded:\n  1.png: cut\n  2.png: cut\n")
    assert message.endswith("\n  20.png: cut\n  and 3 more")


@pytest.mark.parametrize("folder, code", [("d", 0), ("empty", 2)])
def test_alone_in_a_folder_it_lists_what_cannot_be_decoded(tmp_path, folder, code):
    shutil.copy(pixels.__file__, tmp_path)
    write_images(tmp_path / "d", 5)
    (tmp_path / "d" / "text.png").write_text("no image")
    (tmp_path / "empty").mkdir()
    done = subprocess.run([sys.executable, "pixels.py", folder], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == code and "Traceback" not in done.stderr
    if code:
        assert done.stderr == "pixels.py: error: empty contains no image\n"
    else:
        assert done.stdout.startswith("1 of 6 images cannot be decoded:\n  d/text.png: not an image")
        assert "\n5 of 6 images can be decoded (" in done.stdout


@pytest.mark.parametrize(
    "options, said",
    [
        ({"size": 7}, "at least 8 pixels, got 7"),
        ({"size": (32, 4)}, "at least 8 pixels, got 4"),
        ({"size": 16, "fit": "stretch"}, "unknown fit 'stretch': choose from squash, crop, pad"),
    ],
)
def test_a_bad_option_is_an_error_that_names_it(tmp_path, options, said):
    with pytest.raises(ValueError, match=said):
        decode(write_images(tmp_path / "d", 2), targets(2), cache=tmp_path / "cache", **options)


# --- batches ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def images(tmp_path):
    return decode(write_images(tmp_path / "d", 21), (np.arange(21) >= 11).astype(np.int64), 12, tmp_path / "cache")


@pytest.mark.parametrize("batch_size", [1, 2, 4, 5, 7, 10, 20, 21, 50, 2**70])
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
        return torch.cat(batches.number_batches()).tolist()

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
    assert list(pixels._ahead(iter(range(100)))) == list(range(100))

    def broken():
        yield 1
        raise RuntimeError("in the thread")

    items = pixels._ahead(broken())
    assert next(items) == 1
    with pytest.raises(RuntimeError, match="in the thread"):
        next(items)
    early = pixels._ahead(iter(range(100)))
    next(early)
    early.close()  # a loop that is left early leaves no thread behind


def test_E7_no_worker_process_is_started(images):
    before = multiprocessing.active_children()
    next(iter(Batches(images, np.arange(21), 4, shuffle=True)))
    assert multiprocessing.active_children() == before
    assert "num_workers" not in open(pixels.__file__, encoding="utf-8").read()


def test_an_image_drawn_twice_has_two_numbers_and_the_same_pixels(images):
    places = np.array([3, 0, 3, 3, 1, 0])
    batches = Batches(images, np.arange(5, 15), 4, seed=1, sampler=lambda rng: places)
    assert batches.numbers().tolist() == [8, 5, 8 + 21, 8 + 42, 6, 5 + 21]
    assert len(batches) == 2 and batches.images_per_epoch == 6
    numbers, x, t = (torch.cat(parts) for parts in zip(*batches.indexed(), strict=True))
    assert torch.equal(x[0], x[2]) and torch.equal(x[0], x[3]) and not torch.equal(x[0], x[1])
    assert torch.equal(t, images.targets[numbers % 21])


def test_a_transform_gets_each_image_with_a_generator_of_its_own(images):
    def transform(image, rng):
        assert image.shape == (12, 12, 3) and image.dtype == np.uint8
        image[:] = rng.integers(0, 256)  # its own copy
        return image[: 6 + rng.integers(3)]  # any size

    before = np.array(images.pixels)
    whole, parts = (Batches(images, np.arange(21), n, seed=3, transform=transform) for n in (21, 4))
    a, b = (torch.cat([x for _, x, _ in batches.indexed()]) for batches in (whole, parts))
    assert torch.equal(a, b) and a.shape == (21, 3, 12, 12) and a.is_contiguous(memory_format=torch.channels_last)
    assert len(set(a[:, 0, 0, 0].tolist())) > 15
    parts.epoch = 1
    assert not torch.equal(a, torch.cat([x for _, x, _ in parts.indexed()]))
    assert np.array_equal(images.pixels, before)


@pytest.mark.parametrize(
    "transform, said",
    [
        (lambda image, rng: 1 / 0, "ZeroDivisionError"),
        (lambda image, rng: image / 255, r"must return uint8 \(height, width, 3\), got float64 \(12, 12, 3\)"),
        (lambda image, rng: image[:, :, 0], r"got uint8 \(12, 12\)"),
        (lambda image, rng: None, "got NoneType"),
        (lambda image, rng: sys.exit(0), "SystemExit: 0"),
        (lambda image, rng: exit("done"), "SystemExit: done"),
    ],
)
def test_a_transform_that_fails_names_the_file(images, transform, said):
    with pytest.raises(BadInput, match=f"the transform failed for .*000.png: .*{said}"):
        next(iter(Batches(images, np.arange(21), 4, transform=transform)))


def test_a_batch_thread_ends_with_the_program_though_its_generator_is_left_open(tmp_path):
    code = (
        "import time, pixels\n"
        "def slow():\n    while True:\n        time.sleep(0.05); yield 1\n"
        "ahead = pixels._ahead(slow())\n"
        "print(next(ahead))\n"
    )
    root = Path(pixels.__file__).parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout == "1\n" and done.stderr == ""


@pytest.mark.parametrize(
    "foreign",
    [
        lambda array: array[::-1].copy()[::-1],
        lambda array: array.astype(array.dtype.newbyteorder()),
        lambda array: np.repeat(array, 2, 0)[::2],
        lambda array: np.asfortranarray(array),
    ],
)
def test_F3_numpy_arrays_of_any_strides_and_byte_order_are_taken(images, foreign, tmp_path):
    values, labels, rows = np.array(images.pixels), images.targets.numpy(), np.arange(21)[::-1].copy()
    array = pixels.ImageArray(foreign(values), foreign(labels), images.paths)
    assert torch.equal(array.targets, images.targets) and array.targets.dtype == torch.int64
    for shuffle in (False, True):
        ours, theirs = (Batches(a, r, 4, shuffle) for a, r in ((array, foreign(rows)), (images, rows)))
        for a, b in zip(ours.indexed(), theirs.indexed(), strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
            assert a[1].is_contiguous(memory_format=torch.channels_last)
    places = np.array([3, 0, 3, 1])
    assert Batches(images, rows, 4, sampler=lambda rng: foreign(places)).numbers().tolist() == [17, 20, 38, 19]
    for name, sampler in pixels.SAMPLERS.items():
        drawn = [sampler(t, np.random.default_rng(0)).tolist() for t in (labels, foreign(labels))]
        assert drawn[0] == drawn[1], name
    deep = (np.arange(120, dtype=np.int16) * 250).reshape(10, 12)
    for kind in (values[0], deep):
        from_source = [
            decode(["x"], foreign(labels)[:1], 12, tmp_path / f"{i}", [(a,)])
            for i, a in enumerate((kind, foreign(kind)))
        ]
        assert np.array_equal(from_source[0].pixels, from_source[1].pixels)
        shutil.rmtree(tmp_path / "0")
        shutil.rmtree(tmp_path / "1")
    transformed = Batches(images, rows, 4, transform=lambda image, rng: foreign(image))
    assert torch.equal(next(iter(transformed))[0], next(iter(Batches(images, rows, 4)))[0])


# --- samplers --------------------------------------------------------------------------------------------------------


TARGETS = np.repeat([0, 1, 3], [80, 15, 5])  # class 2 has no image


def drawn(name, seed=0, per_class=None):
    places = pixels.SAMPLERS[name](TARGETS, np.random.default_rng(seed), per_class)
    return places, np.bincount(TARGETS[places], minlength=4).tolist()


def test_shuffle_draws_every_image_once():
    places, _ = drawn("shuffle")
    assert sorted(places) == list(range(100)) and places.tolist() != list(range(100))


def test_weighted_has_the_semantics_of_torchs_weighted_random_sampler():
    draws = np.concatenate([drawn("weighted", seed)[0] for seed in range(200)])
    assert len(draws) == 20_000
    weights = 1 / np.bincount(TARGETS)[TARGETS]
    generator = torch.Generator().manual_seed(0)
    theirs = torch.utils.data.WeightedRandomSampler(weights, 20_000, generator=generator)
    ours, theirs = (np.bincount(list(places), minlength=100) / 20_000 for places in (draws, theirs))
    for share in (ours, theirs):  # a third for each class: standard error 0.0033, and 0.0018 for an image of class 3
        by_class = np.bincount(TARGETS, share, minlength=4)
        assert np.abs(by_class - [1 / 3, 1 / 3, 0, 1 / 3]).max() < 0.017
        assert np.abs(share - weights / 3).max() < 0.009


def test_balanced_takes_as_many_of_each_class_anew_each_epoch():
    assert drawn("balanced")[1] == [5, 5, 0, 5]
    places, n = drawn("balanced", per_class=20)
    assert n == [20, 15, 0, 5] and len(set(places)) == 40  # all of a smaller class, none twice
    assert set(places) != set(drawn("balanced", seed=1, per_class=20)[0])


def test_oversample_repeats_every_image_as_evenly_as_can_be():
    places, n = drawn("oversample")
    assert n == [80, 80, 0, 80]
    repeats = np.bincount(places, minlength=100)
    assert set(repeats[:80]) == {1} and set(repeats[80:95]) == {5, 6} and set(repeats[95:]) == {16}
