"""augment.py: right pixels, independent draws, the same draws whatever the batching."""

import csv
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import image_array
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms import v2

import augment
import data
import loop
import losses
import pixels
from augment import (
    AUGMENTS,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Augment,
    BadInput,
    Draws,
    affine,
    as_transform,
    blur,
    contact_sheet,
    crop_and_flip,
    erase,
    jpeg_like,
    noise,
    normalize,
    views,
    warp,
    write_copies,
)


def images(N=6, H=16, W=16, seed=0):
    g = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (N, H, W, 3), dtype=torch.uint8, generator=g)
    return pixels.permute(0, 3, 1, 2)  # channels_last, as data.Batches hands them out


def test_none_is_torchvisions_normalisation():
    x = images()
    expected = v2.functional.normalize(x.float() / 255, list(IMAGENET_MEAN), list(IMAGENET_STD))
    ours = Augment("none")(x, torch.arange(6), epoch=3)
    assert torch.allclose(ours, expected, atol=1e-5)
    assert ours.is_contiguous(memory_format=torch.channels_last) and ours.dtype == torch.float32


@pytest.mark.parametrize("foreign", [lambda a: a[::-1].copy()[::-1], lambda a: a.astype(">f4")])
def test_F3_mean_and_std_may_be_numpy_arrays_of_any_strides_and_byte_order(foreign):
    x, mean, std = images(), np.float32(IMAGENET_MEAN), np.float32(IMAGENET_STD)
    expected = normalize(x)
    assert torch.equal(normalize(x, foreign(mean), foreign(std)), expected)
    assert torch.equal(Augment("none", 0, foreign(mean), foreign(std))(x, torch.arange(6), 0), expected)


def test_E7_an_eps_file_is_not_opened(tmp_path):
    (tmp_path / "x.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\n%%EOF\n")
    with pytest.raises(BadInput, match="x.jpg cannot be decoded .UnidentifiedImageError"):
        augment._read(tmp_path / "x.jpg")


def test_contrast_turns_about_the_mean_and_brightness_adds_one_value_an_image():
    x = images(2)
    contrast, brightness = torch.tensor([[1.0], [0.5]]), torch.tensor([[0.1], [0.0]])
    ours = normalize(x, contrast=contrast, brightness=brightness)
    mean, std = torch.tensor(IMAGENET_MEAN).view(3, 1, 1), torch.tensor(IMAGENET_STD).view(3, 1, 1)
    assert torch.allclose(ours[0], (x[0] / 255 - mean + 0.1) / std, atol=1e-5)
    assert torch.allclose(ours[1], (x[1] / 255 - mean) * 0.5 / std, atol=1e-5)


@pytest.mark.parametrize("shape", [(16, 16), (12, 20)])
def test_crop_and_flip_moves_pixels_as_a_padded_crop_does(shape):
    H, W = shape
    x, draws = images(40, H, W), Draws(0, 0, torch.arange(40))
    ours = crop_and_flip(x, draws, pad=3)
    draws = Draws(0, 0, torch.arange(40))
    dy, dx, flip = draws.integer(7), draws.integer(7), draws.uniform() < 0.5
    padded = torch.nn.functional.pad(x.float(), (3, 3, 3, 3), mode="reflect").byte()
    for i in range(40):
        expected = padded[i, :, dy[i] : dy[i] + H, dx[i] : dx[i] + W]
        assert torch.equal(ours[i], expected.flip(-1) if flip[i] else expected)
    assert len(set(zip(dy.tolist(), dx.tolist(), flip.tolist(), strict=True))) > 20  # each image its own draw


def test_the_draws_of_an_image_depend_on_seed_epoch_and_index_alone():
    x, index = images(8), torch.tensor([5, 900, 17, 3, 44, 0, 12345678901, 7])
    augment = Augment("light", seed=3)
    whole = augment(x, index, epoch=2)
    parts = torch.cat([augment(x[i : i + 3], index[i : i + 3], epoch=2) for i in (0, 3, 6)])
    order = torch.tensor([3, 1, 0, 2, 7, 6, 5, 4])
    assert torch.equal(whole, parts)
    assert torch.equal(whole[order], augment(x[order], index[order], epoch=2))
    assert not torch.equal(whole, augment(x, index, epoch=3))
    assert not torch.equal(whole, Augment("light", seed=4)(x, index, epoch=2))
    assert not torch.equal(whole, augment(x, index + 1, epoch=2))


def test_no_global_random_state_is_used_or_moved():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = Augment("light")(images(), torch.arange(6), 0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(first, Augment("light")(images(), torch.arange(6), 0))


def test_draws_are_uniform_and_independent():
    index = torch.arange(100_000)
    columns = []
    for seed in (0, 1):
        for epoch in (0, 1, 2):
            draws = Draws(seed, epoch, index)
            columns += [draws.uniform() for _ in range(4)]
    u = torch.stack(columns).double().numpy()  # (24, 100000)
    assert u.min() >= 0 and u.max() < 1
    # standard error of a mean of 100,000 uniforms is 0.0009, of a correlation 0.0032: five of them
    assert np.abs(u.mean(1) - 0.5).max() < 0.0046
    correlation = np.corrcoef(u)
    assert np.abs(correlation - np.eye(len(u))).max() < 0.016
    assert max(abs(np.corrcoef(row[1:], row[:-1])[0, 1]) for row in u) < 0.016  # neighbouring images
    histogram = np.stack([np.histogram(row, 10, (0, 1))[0] for row in u])
    assert np.abs(histogram - 10_000).max() < 500  # five standard errors of a tenth


def test_integers_cover_their_range():
    drawn = Draws(0, 0, torch.arange(10_000)).integer(9)
    assert sorted(drawn.unique().tolist()) == list(range(9))
    assert drawn.bincount().min() > 950


def test_an_unknown_name_is_an_error():
    with pytest.raises(
        BadInput, match="unknown augmentation 'lots': choose from none, crop, light, strong, rand, cutout, document"
    ):
        Augment("lots")


# --- every augmentation ----------------------------------------------------------------------------------------------


def photo(size=(64, 48), seed=1):
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def batch_of(image, N):
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).expand(N, -1, -1, -1)


@pytest.mark.parametrize("name", AUGMENTS)
def test_every_augmentation_draws_by_image_whatever_the_batching(name):
    x, index = images(48, 24, 32), torch.randperm(1000, generator=torch.Generator().manual_seed(0))[:48]
    augment = Augment(name, seed=3)
    whole = augment(x, index, epoch=2)
    assert whole.shape == x.shape and whole.dtype == torch.float32 and whole.isfinite().all()
    assert whole.is_contiguous(memory_format=torch.channels_last)
    parts = torch.cat([augment(x[i : i + 5], index[i : i + 5], epoch=2) for i in range(0, 48, 5)])
    assert torch.allclose(whole, parts, atol=1e-4)
    order = torch.randperm(48, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(whole[order], augment(x[order], index[order], epoch=2), atol=1e-4)
    if name != "none":
        for other in (augment(x, index, epoch=3), Augment(name, seed=4)(x, index, epoch=2)):
            changed = (whole - other).abs().amax((1, 2, 3)) > 0.01
            assert changed.all() if name != "crop" else changed.float().mean() > 0.9  # crop: only 98 different draws


@pytest.mark.parametrize("name", ["light", "strong", "document"])
def test_each_image_has_its_own_draw(name):
    x = Augment(name)(batch_of(photo(), 64), torch.arange(64), 0)
    distance = (x[:, None] - x[None]).abs().mean((2, 3, 4)) + torch.eye(64)
    assert distance.min() > 0.001


@pytest.mark.parametrize("degrees", [0, 90, 180, 270, 17])
def test_a_turn_is_pillows(degrees):
    square = photo((64, 64))
    maps = affine(torch.tensor([float(degrees)]), 0.0, torch.ones(1), torch.ones(1), 1.0)
    ours = warp(batch_of(square, 1), maps, "reflection")[0].permute(1, 2, 0).numpy()
    expected = np.asarray(square.rotate(degrees, Image.Resampling.BILINEAR), float)
    middle = slice(14, 50)  # what both have
    assert np.abs(ours - expected)[middle, middle].max() < 3
    maps = affine(torch.tensor([90.0]), 0.0, torch.ones(1), torch.ones(1), 64 / 48)
    wide = warp(batch_of(photo(), 1), maps, "reflection")
    expected = np.asarray(photo().rotate(90, Image.Resampling.BILINEAR), float)
    assert np.abs(wide[0].permute(1, 2, 0).numpy() - expected)[:, 10:54].max() < 3  # a turn in pixels, not in shares


def test_a_window_is_torchvisions_resized_crop():
    x = batch_of(photo((64, 64)), 1)
    maps = affine(torch.zeros(1), 0.0, torch.tensor([0.5]), torch.tensor([0.25]), 1.0)
    maps[:, 0, 2], maps[:, 1, 2] = 0.5, -0.75  # the right half, the top quarter
    expected = v2.functional.resized_crop(x.float(), 0, 32, 16, 32, [64, 64], antialias=False)
    assert (warp(x, maps, "reflection") - expected)[:, :, 4:-4, 4:-4].abs().max() < 1


def test_what_comes_in_from_outside_is_white():
    maps = affine(torch.zeros(1), 0.0, torch.tensor([2.0]), torch.tensor([2.0]), 1.0)
    x = warp(batch_of(Image.new("RGB", (32, 32), (10, 20, 30)), 1), maps, "white")[0]
    assert (x[:, 0, 0] == 255).all() and x[:, 16, 16].tolist() == [10, 20, 30]
    assert (x[:, :7] == 255).all() and (x[:, 9:23, 9:23] < 31).all()


def test_blur_is_torchvisions():
    x, sigma = torch.rand(3, 3, 24, 30) * 255, torch.tensor([0.5, 1.0, 2.0])
    ours = blur(x, sigma, 2.0)
    for i in range(3):
        assert torch.allclose(ours[i], v2.functional.gaussian_blur(x[i], 13, float(sigma[i])), atol=0.01)
    assert torch.allclose(blur(x, torch.zeros(3), 2.0), x, atol=1e-3) and blur(x[:0], sigma[:0], 2.0).shape[0] == 0


def test_noise_is_gaussian_with_the_sigma_asked_for_and_another_for_each_image():
    x, rows = torch.full((5, 3, 40, 40), 100.0), torch.tensor([4, 0, 2, 1, 3])
    sigma = torch.tensor([1.0, 5.0, 10.0, 20.0, 0.0])
    added = noise(x, sigma, Draws(0, 0, torch.arange(5)), rows) - 100
    assert torch.allclose(added.std((1, 2, 3)), sigma, rtol=0.05)
    correlation = np.corrcoef(added[:4].flatten(1).numpy())
    assert np.abs(correlation - np.eye(4)).max() < 0.08


def test_an_erased_box_has_the_mean_colour_and_lies_inside():
    x = torch.zeros(5000, 3, 20, 30)
    erased = erase(x, Draws(0, 0, torch.arange(5000)), torch.arange(5000))
    share = (erased[:, 0] > 0).float().mean((1, 2))
    assert share.min() > 0.005 and share.max() <= 0.26
    colour = erased[0][:, erased[0][0] > 0][:, 0] / 255
    assert torch.allclose(colour, torch.tensor(IMAGENET_MEAN))
    assert (erased[:, 0].amax(0) > 0).all()  # every place is erased in some image


def test_jpeg_like_rounds_each_block_and_leaves_flat_ones():
    x = batch_of(photo((64, 48)), 2).float()
    result = jpeg_like(x, torch.tensor([0.001, 30.0]))
    assert (result[0] - x[0]).abs().max() < 0.1 and (result[1] - x[1]).abs().mean() > 1
    flat = torch.full((1, 3, 19, 22), 77.0)  # not a multiple of 8
    assert (jpeg_like(flat, torch.tensor([1.0])) - flat).abs().max() < 1


def one(image):
    return image * 0 + np.uint8(random.randrange(256) ^ np.random.randint(256))


def two(image, rng):
    return image * 0 + np.uint8(rng.integers(256))


@pytest.mark.parametrize("function", [one, two])
def test_a_function_of_yours_is_seeded_and_other_random_numbers_are_not(function):
    image, transform = np.zeros((4, 4, 3), np.uint8), as_transform(function)
    results = [int(transform(image, np.random.default_rng(i))[0, 0, 0]) for i in (0, 1, 2, 0)]
    assert results[0] == results[3] and len(set(results)) == 3
    if function is one:  # negative control: without as_transform nobody seeds it
        assert len({int(one(image)[0, 0, 0]) for _ in range(20)}) > 1
    else:
        assert transform is two


def test_a_function_of_the_image_alone_runs_in_one_thread_at_a_time():
    running, most = [], []

    def slow(image):
        running.append(1)
        most.append(len(running))
        time.sleep(0.01)
        running.pop()
        return image

    def most_at_once(transform):
        most.clear()
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(transform, [None] * 8, [np.random.default_rng(i) for i in range(8)]))
        return max(most)

    assert most_at_once(as_transform(slow)) == 1
    assert most_at_once(as_transform(lambda image, rng: slow(image))) > 1  # negative control: with rng it need not


class Object:
    def __call__(self, image, rng):
        return image


def three(a, b, c):
    return a


def keyword(*, image):
    return image


@pytest.mark.parametrize("function", [Object(), lambda image, *, p=0.5: image, lambda *arguments: arguments[0]])
def test_any_signature_that_takes_the_image_is_a_transform(function):
    image = np.zeros((2, 2, 3), np.uint8)
    assert as_transform(function)(image, np.random.default_rng(0)) is image


@pytest.mark.parametrize(
    "function, said",
    [
        (three, r"the transform three must take \(image, rng\) or \(image\), got \(a, b, c\)"),
        (keyword, r"got \(\*, image\)"),
        (lambda: None, r"got \(\)"),
        ("mine", "the transform str must take .*, got unknown parameters"),
    ],
)
def test_a_function_with_another_signature_is_refused(function, said):
    with pytest.raises(BadInput, match=said):
        as_transform(function)


# --- mixing ----------------------------------------------------------------------------------------------------------


def plain(N, C=5, size=16):
    """Images of one grey level each: what is mixed can be read off."""
    level = torch.arange(N) * 3 % 250
    targets = torch.arange(N) % C
    return level[:, None, None, None].expand(N, 3, size, size).byte(), targets


@pytest.mark.parametrize("mixup, cutmix", [(0.4, 0), (0, 1.0), (0.4, 1.0)])
def test_targets_are_mixed_by_the_share_that_each_image_has_of_the_pixels(mixup, cutmix):
    x, targets = plain(64)
    augment = Augment("none", 0, (0, 0, 0), (1, 1, 1), mixup, cutmix, num_classes=5)
    mixed = augment(x, torch.arange(64), 1)
    soft = augment.mix_targets(targets, torch.arange(64), 1, (16, 16))
    assert torch.allclose(soft.sum(1), torch.ones(64)) and soft.shape == (64, 5)
    own, other = x[:, 0, 0, 0].float() / 255, x[:, 0, 0, 0].roll(-1).float() / 255
    share = (mixed.mean((1, 2, 3)) - other) / (own - other)  # what the pixels say
    assert torch.allclose(soft.gather(1, targets[:, None])[:, 0], share, atol=1e-4)
    assert torch.allclose(soft.gather(1, targets.roll(-1)[:, None])[:, 0], 1 - share, atol=1e-4)
    assert share.min() < 0.5 < share.max() and len(share.unique()) > 30
    boxes = (mixed.flatten(1).std(1) > 1e-3).float().mean()
    assert boxes == 0 if not cutmix else boxes > 0.8 if not mixup else 0.2 < boxes < 0.7


def test_lambda_follows_its_beta_distribution():
    for alpha in (0.2, 1.0, 4.0):
        augment = Augment("none", mixup=alpha, num_classes=2)
        share = augment._keep(torch.arange(50_000), 0, 1, 1).flatten().double().numpy()
        assert abs(share.mean() - 0.5) < 0.01
        assert abs(share.var() - 1 / (4 * (2 * alpha + 1))) < 0.003  # the variance of Beta(alpha, alpha)


def test_without_mixing_targets_stay_class_numbers_and_a_batch_of_one_is_itself():
    x, targets = plain(6)
    assert Augment("none").mix_targets(targets, torch.arange(6), 0, (16, 16)) is targets
    augment = Augment("none", cutmix=1.0, mixup=1.0, num_classes=5)
    assert torch.allclose(augment(x[:1], torch.arange(1), 0), Augment("none")(x[:1], torch.arange(1), 0), atol=1e-6)
    assert augment.mix_targets(targets[:1], torch.arange(1), 0, (16, 16)).tolist() == [[1, 0, 0, 0, 0]]


@pytest.mark.parametrize(
    "options, said",
    [
        ({"mixup": -1}, "mixup must be a number >= 0, got -1"),
        ({"cutmix": float("nan")}, "cutmix must be a number >= 0"),
        ({"mixup": 1}, "mixup and cutmix need num_classes >= 2, got 0"),
    ],
)
def test_bad_mixing_is_an_error(options, said):
    with pytest.raises(ValueError, match=said) as error:
        Augment("none", **options)
    assert not isinstance(error.value, BadInput)  # the command line checks its own values


def epochs_gradients(batch_size, accum, mixing, start=0, overlap=1, N=70, sampler=None, transform=None, name="none"):
    """The gradient of each window of an epoch, from window `start` on, in a network without BatchNorm."""
    torch.manual_seed(0)
    images, size = image_array(60), batch_size
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 16), torch.nn.Tanh(), torch.nn.Linear(16, 5))
    model, criterion = model.double(), losses.build_loss("ce")
    rows = np.arange(N) % 60 if sampler else np.arange(N)
    augment = Augment(name, 3, num_classes=5, overlap=overlap, **mixing)
    batches = pixels.Batches(images, rows, size, True, 1, sampler=sampler, transform=transform, overlap=overlap)
    batches.epoch = 2

    def mixed():
        for numbers, x, targets in batches.indexed(range(start * accum, len(batches))):
            yield numbers, x, augment.mix_targets(targets, numbers, 2, (8, 8)).double()

    gradients = []
    for window in loop.windows(mixed(), accum):
        model.zero_grad()
        forward = lambda numbers, x: model(augment(x, numbers, 2).double())  # noqa: E731
        loop.backward_window(model, forward, criterion, window)
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    return torch.stack(gradients)


MIXINGS = [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}]


def with_noise(image, rng):
    return np.clip(image + rng.integers(-9, 10, image.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize(
    "more",
    [
        {"N": 52},  # the last window has 20 images
        {"N": 33},  # the last image joins the batch before it
        {"N": 1},
        {"N": 50, "transform": with_noise, "name": "light"},
        {"sampler": lambda rng: rng.integers(0, 70, 70)},  # images that are drawn several times
    ],
)
def test_F5_mixing_gives_the_same_gradients_for_every_batch_size_and_accumulation(mixing, more):
    big = epochs_gradients(32, 1, mixing, **more)
    for batch_size, accum in ((8, 4), (16, 2), (4, 8)):
        small = epochs_gradients(batch_size, accum, mixing, **more)
        assert small.shape == big.shape and (small - big).norm() <= 1e-10 * big.norm()
    if len(big) > 1:
        resumed = epochs_gradients(8, 4, mixing, start=1, **more)
        assert (resumed - big[1:]).norm() <= 1e-10 * big.norm()
        old = epochs_gradients(8, 4, mixing, overlap=0, **more)  # negative control: pairs inside a micro-batch
        assert (old - big).norm() > 1e-3 * big.norm()


def test_F5_without_mixing_an_overlap_changes_nothing_and_default_batches_have_none():
    images = image_array(20)
    batches = pixels.Batches(images, np.arange(20), 6, True)
    assert [len(numbers) for numbers, _, _ in batches.indexed()] == [6, 6, 6, 2]
    for numbers, x, targets in batches.indexed():
        assert torch.equal(Augment("light", overlap=1)(x, numbers, 1), Augment("light")(x, numbers, 1))
        assert Augment("light", overlap=1).mix_targets(targets, numbers, 1, (8, 8)) is targets
    more = pixels.Batches(images, np.arange(20), 6, True, overlap=1)
    numbers = [numbers.tolist() for numbers, _, _ in more.indexed()]
    order = batches.numbers().tolist()
    assert numbers == [order[:7], order[6:13], order[12:19], [*order[18:], order[0]]]


# --- views at test time ----------------------------------------------------------------------------------------------


def test_views_are_the_symmetries_that_their_names_say():
    x = torch.randn(2, 3, 16, 16)
    for name, n in (("none", 1), ("flip", 2), ("rot4", 4), ("d4", 8), ("crops", 6)):
        made = views(x, name)
        assert len(made) == n and all(view.shape == x.shape for view in made) and torch.equal(made[0], x)
        assert all(not torch.allclose(a, b) for i, a in enumerate(made) for b in made[:i])
    assert torch.equal(views(x, "flip")[1], x.flip(3)) and torch.equal(views(x, "rot4")[2], x.flip(2).flip(3))
    assert all(torch.allclose(view.sort(-1).values.sum(), x.sum(), atol=1e-3) for view in views(x, "d4"))
    with pytest.raises(BadInput, match="d4 needs square images, got 8 x 9"):
        views(torch.zeros(1, 3, 8, 9), "d4")
    with pytest.raises(BadInput, match="unknown views 'ten': choose from none, flip, rot4, d4, crops"):
        views(x, "ten")


# --- to look at, and as files ----------------------------------------------------------------------------------------


def test_a_contact_sheet_shows_every_image_and_any_label():
    x = torch.zeros(10, 3, 20, 30, dtype=torch.uint8)
    x[:, 0] = (torch.arange(10) * 20 + 20)[:, None, None]
    sheet = np.asarray(contact_sheet(x, ["cat", "고양이", "a very long label that does not fit", "", *"abcdef"]))
    reds = set(sheet[(sheet[:, :, 1] == 0) & (sheet[:, :, 0] > 0)][:, 0].tolist())
    assert {20 * i + 20 for i in range(10)} <= reds


def offline(tmp_path, **more):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    rows = [{"ID": name, "target": str(i)} | more for i, name in enumerate(("a.jpg", "sub/b.png"))]
    photo(seed=0).save(tmp_path / "in" / "a.jpg", quality=95)
    photo((30, 40), seed=1).save(tmp_path / "in" / "sub" / "b.png")
    with open(tmp_path / "train.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return tmp_path / "in", tmp_path / "train.csv", tmp_path / "out"


@pytest.mark.parametrize("more, groups", [({}, ["a.jpg", "sub/b.png"]), ({"Group": "p7"}, ["p7", "p7"])])
def test_D6_offline_copies_carry_their_source_as_group(tmp_path, more, groups):
    folder, csv_file, out = offline(tmp_path, **more)
    assert write_copies(folder, csv_file, 3, out) == 8
    with open(out / "train.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    column = "Group" if more else "group"
    names = ["a.jpg", "a_aug1.jpg", "a_aug2.jpg", "a_aug3.jpg"]
    names += ["sub/b.png", "sub/b_aug1.png", "sub/b_aug2.png", "sub/b_aug3.png"]
    assert [row["ID"] for row in rows] == names and [row["target"] for row in rows] == ["0"] * 4 + ["1"] * 4
    assert [row[column] for row in rows] == [groups[0]] * 4 + [groups[1]] * 4
    assert (out / "images" / "a.jpg").read_bytes() == (folder / "a.jpg").read_bytes()
    pictures = [np.asarray(Image.open(out / "images" / name)) for name in names]
    assert all(p.shape == pictures[4 * (i // 4)].shape for i, p in enumerate(pictures))
    assert all(np.abs(pictures[i].astype(int) - pictures[i - 1]).mean() > 1 for i in (1, 2, 3, 5, 6, 7))


def test_D6_the_kit_reads_them_and_keeps_them_together(tmp_path):
    folder, csv_file, out = offline(tmp_path)
    write_copies(folder, csv_file, 5, out)
    table = data.read(str(out / "images"), str(out / "train.csv"))
    assert "image column ID, label column target, group column group" in table.layout
    assert len(table) == 12 and table.groups == ["a.jpg"] * 6 + ["sub/b.png"] * 6


def test_bad_input_of_offline_copies_is_an_error(tmp_path):
    folder, csv_file, out = offline(tmp_path)
    out.mkdir()
    (out / "old.txt").write_text("")
    with pytest.raises(BadInput, match="is not empty"):
        write_copies(folder, csv_file, 1, out)
    with pytest.raises(BadInput, match="has no column whose values are files in"):
        write_copies(tmp_path / "train.csv", csv_file, 1, tmp_path / "new")
    (folder / "sub" / "b.png").unlink()
    with pytest.raises(BadInput, match="1 of 2 images cannot be found in .*, such as sub/b.png"):
        write_copies(folder, csv_file, 1, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_copies_have_the_pixels_that_training_would_see(tmp_path):
    ramp = np.linspace(2000, 60000, 400).reshape(20, 20).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "grey16.png")
    clear = np.zeros((20, 20, 4), np.uint8)
    clear[5:10, 5:10] = 255, 0, 0, 255
    Image.fromarray(clear).save(tmp_path / "clear.png")
    (tmp_path / "x.csv").write_text("image,label\ngrey16.png,a\nclear.png,b\n")
    augment.write_copies(tmp_path, tmp_path / "x.csv", 1, tmp_path / "out", "none")
    for name in ("grey16", "clear"):
        expected = pixels.decode_file(str(tmp_path / f"{name}.png"))
        assert torch.equal(pixels.decode_file(str(tmp_path / "out" / "images" / f"{name}_aug1.png")), expected)


def test_a_ragged_csv_of_copies_is_an_error(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "x.csv").write_text("label,image\na,a.png\nb\n")
    with pytest.raises(BadInput, match="x.csv: line 3 does not have the header's columns"):
        augment.write_copies(tmp_path, tmp_path / "x.csv", 1, tmp_path / "out")


@pytest.mark.parametrize(
    "words, message",
    [
        ("text.png", "text.png cannot be decoded (UnidentifiedImageError"),
        ("cut.png", "cut.png cannot be decoded ("),
        ("float.tif", "float.tif cannot be decoded (ValueError: pixels are floating-point numbers"),
        ("nowhere.png", "No such file or directory: 'nowhere.png'"),
        (
            "a.png --out sheet.abc",
            "cannot write sheet.abc (unknown file extension: .abc); use a name that ends in .png",
        ),
        (". --csv latin.csv --out new", "latin.csv is not a valid CSV in UTF-8: "),
        (". --csv quote.csv --out new", "quote.csv is not a valid CSV in UTF-8: "),
        (". --csv nowhere.csv --out new", "No such file or directory: 'nowhere.csv'"),
        (". --csv ragged.csv --out new", "ragged.csv: line 3 does not have the header's columns"),
    ],
)
def test_bad_input_of_the_command_line_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    photo().save("a.png")
    Path("cut.png").write_bytes(Path("a.png").read_bytes()[:-500])
    Path("text.png").write_text("no image")
    Image.fromarray(np.zeros((8, 8), np.float32)).save("float.tif")
    Path("latin.csv").write_bytes(b"image,label\na.png,\xff\n")
    Path("quote.csv").write_text('image,label\na.png,"b\n')
    Path("ragged.csv").write_text("image,label\na.png,b\na.png\n")
    monkeypatch.setattr(sys, "argv", ["augment.py", *words.split()])
    with pytest.raises(SystemExit) as stop:
        augment.main()
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("augment.py: error: ") and error.count("\n") == 1
    assert message in error


def test_a_bug_of_our_own_keeps_its_traceback(tmp_path, monkeypatch):
    def bug(*arguments):
        raise ValueError("a bug")

    monkeypatch.setattr(augment, "draw_sheet", bug)
    monkeypatch.setattr(sys, "argv", ["augment.py", "a.png"])
    with pytest.raises(ValueError, match="a bug"):
        augment.main()


# --- rand, cutout, several in turn, alternating flips ----------------------------------------------------------------


OPERATIONS = {
    "identity": "Identity",
    "shear x": "ShearX",
    "shear y": "ShearY",
    "translate x": "TranslateX",
    "translate y": "TranslateY",
    "rotate": "Rotate",
    "brightness": "Brightness",
    "saturation": "Color",
    "contrast": "Contrast",
    "sharpness": "Sharpness",
    "posterize": "Posterize",
    "solarize": "Solarize",
    "autocontrast": "AutoContrast",
    "equalize": "Equalize",
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_of_rand_are_those_of_torchvisions_randaugment(name):
    from torchvision.transforms import InterpolationMode, RandAugment
    from torchvision.transforms.autoaugment import _apply_op

    x, (change, is_signed) = images(3, 40, 32), augment.RAND_OPERATIONS[name]
    magnitudes, signed = RandAugment()._augmentation_space(31, (40, 32))[OPERATIONS[name]]
    assert is_signed == signed and list(OPERATIONS) == list(augment.RAND_OPERATIONS)
    for sign in (1, -1) if signed else (1,):
        magnitude = sign * float(magnitudes[9]) if magnitudes.ndim else 0.0
        expected = torch.stack([_apply_op(i, OPERATIONS[name], magnitude, InterpolationMode.NEAREST, None) for i in x])
        assert (change(x, sign).int() - expected.int()).abs().max() <= 1
        assert name in ("identity", "autocontrast") or not torch.equal(expected, x)


def test_rand_draws_two_operations_per_image_all_equally_often():
    x, draws = images(14_000, 8, 8), Draws(0, 1, torch.arange(14_000))
    drawn = {name: 0 for name in augment.RAND_OPERATIONS}
    original = dict(augment.RAND_OPERATIONS)

    def counted(name):
        def change(rows, sign):
            drawn[name] += len(rows)
            return rows

        return change

    try:
        augment.RAND_OPERATIONS.update({name: (counted(name), original[name][1]) for name in original})
        augment.rand(x, draws)
    finally:
        augment.RAND_OPERATIONS.update(original)
    assert sum(drawn.values()) == 2 * 14_000
    assert all(1800 < count < 2200 for count in drawn.values()), drawn


def test_cutout_greys_a_square_of_half_the_side_that_may_reach_over_the_border():
    x = torch.zeros(4000, 3, 32, 32, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    grey = (augment.cutout(x, Draws(0, 1, torch.arange(4000)))[0][:, 0] > 0).float()
    assert set(grey.sum((1, 2)).int().tolist()) <= {a * b for a in range(8, 17) for b in range(8, 17)}
    assert grey.sum((1, 2)).max() == 16 * 16 and grey.sum((1, 2)).min() < 100
    hit = grey.mean(0)  # how often each pixel is grey: a quarter of the time in the middle, less in the corners
    assert abs(hit[16, 16] - 0.25) < 0.03 and hit[0, 0] < 0.1


def test_several_augmentations_in_turn():
    x, index = images(50, 32, 32), torch.arange(50)
    both, draws = augment.build_augment("light+cutout")(x, Draws(0, 1, index)), Draws(0, 1, index)
    first, contrast, brightness = augment.light(x, draws)
    second, _, _ = augment.cutout(first, draws)
    assert torch.equal(both[0], second) and torch.equal(both[1], contrast) and torch.equal(both[2], brightness)
    assert not torch.equal(both[0], first)
    with pytest.raises(BadInput, match="unknown augmentation 'cutuot': choose from none, .*or several such as"):
        augment.Augment("crop+cutuot")


@pytest.mark.parametrize("name", ["crop", "light", "strong", "rand", "document"])
def test_alternating_flips_show_both_sides_in_two_epochs(name):
    index = torch.arange(2000)
    flipped = [Draws(3, epoch, index, flips="alternate").flip() for epoch in range(6)]
    assert 0.45 < flipped[0].float().mean() < 0.55
    for epoch in range(5):
        assert torch.equal(flipped[epoch], ~flipped[epoch + 1])
    free = [Draws(3, epoch, index).flip() for epoch in range(2)]
    assert 0.4 < (free[0] == free[1]).float().mean() < 0.6  # random flips: half of the images keep their side
    # images are equal exactly where the drawn sides are equal: nothing else of the augmentation changes
    x, drawn = images(64, 16, 16), {}
    for flips in ("random", "alternate"):
        sides, flip = [], Draws.flip
        Draws.flip = lambda self, sides=sides, flip=flip: sides.append(flip(self)) or sides[-1]
        try:
            drawn[flips] = AUGMENTS[name](x, Draws(3, 1, torch.arange(64), flips=flips))[0], sides[0]
        finally:
            Draws.flip = flip
    (a, side_a), (b, side_b) = drawn.values()
    equal = (a == b).flatten(1).all(1)
    assert torch.equal(equal, side_a == side_b) and 10 < int(equal.sum()) < 54


@pytest.mark.parametrize("name", ["crop+light", "light+crop+crop"])
def test_alternating_flips_flip_an_image_once_where_several_augmentations_flip(name, monkeypatch):
    sides, flip = [], Draws.flip
    monkeypatch.setattr(Draws, "flip", lambda self: sides.append(flip(self)) or sides[-1])
    once = Draws(3, 1, torch.arange(64), flips="alternate").flip()
    sides.clear()
    augment.Augment(name, seed=3, flips="alternate")(images(64, 16, 16), torch.arange(64), 1)
    assert len(sides) == name.count("+") + 1 and torch.equal(torch.stack(sides).sum(0) % 2 == 1, once)


@pytest.mark.parametrize("first", ["strong", "document"])
def test_rand_after_an_augmentation_that_gives_floats_takes_grey_levels(first):
    x, index = images(256, 16, 16), torch.arange(256)
    before, _, _ = AUGMENTS[first](x, Draws(0, 1, index))
    rounded = before.round().clamp(0, 255).to(torch.uint8)
    from_floats, from_levels = (AUGMENTS["rand"](each, Draws(1, 1, index))[0] for each in (before, rounded))
    assert before.is_floating_point() and torch.equal(from_floats, from_levels)
    assert torch.isfinite(augment.Augment(f"{first}+rand")(x, index, 1)).all()


def test_unknown_flips_are_refused():
    with pytest.raises(ValueError, match="unknown flips 'both': choose from random, alternate"):
        augment.Augment("light", flips="both")


class Operations(TorchDispatchMode):
    """Counts the operations that run code on the device. Views of tensors do not."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view:
            self.names.append(func.name())
        return func(*args, **(kwargs or {}))


MOST_OPERATIONS = {"none": 11, "crop": 90, "light": 90, "cutout": 70, "strong": 250, "rand": 1000}


@pytest.mark.parametrize("name", MOST_OPERATIONS)
def test_a_batch_needs_few_operations(name):
    """On a GPU each operation is a launch, which takes as long for a batch of 32 small images as for a large one."""
    images, index = torch.zeros(32, 3, 32, 32, dtype=torch.uint8), torch.arange(32)
    with Operations() as found:
        Augment(name)(images, index, 1)
    assert len(found.names) <= MOST_OPERATIONS[name]
    assert not {"aten::nonzero", "aten::_local_scalar_dense"} & set(found.names)  # each waits for the GPU


def test_the_draws_are_the_same_whether_they_are_drawn_alone_or_several_at_once(monkeypatch):
    def draw(at_once):
        monkeypatch.setattr(augment, "DRAWN_AT_ONCE", at_once)
        draws = Draws(3, 2, torch.arange(50))
        return torch.stack([draws.uniform(), draws.uniform(-1, 2), *(draws.uniform() for _ in range(20))])

    alone = draw(1)
    assert torch.equal(alone, draw(8)) and torch.equal(alone, draw(5))
    assert len({tuple(row.tolist()) for row in alone}) == len(alone)  # and no draw comes twice


def test_the_stream_of_draws_is_that_of_all_versions():
    """Another stream would change resumed runs and every table in results/."""
    draws = Draws(3, 2, torch.tensor([0, 1, 2**40 + 5]))
    found = torch.stack([(draws.uniform() * 2**24).long() for _ in range(17)])
    assert found[[0, 7, 8, 16]].tolist() == [
        [2898943, 4041772, 8971642],
        [3298711, 11436356, 15412159],
        [8882940, 3133009, 9714981],
        [12866249, 2372708, 2010714],
    ]


def test_each_operation_of_strong_changes_the_images_that_drew_it(monkeypatch):
    x, warped, warp_of = images(90, 80, 80), [], augment.warp
    monkeypatch.setattr(augment, "warp", lambda *args: warped.append(warp_of(*args)) or warped[0].clone())
    draws = Draws(0, 1, torch.arange(90))
    operation, strength = draws.integer(9), draws.uniform(-1, 1)
    found, contrast, brightness = AUGMENTS["strong"](x, Draws(0, 1, torch.arange(90)))
    blurred = blur(warped[0], strength.abs(), largest=1)
    for i, (number, base) in enumerate(zip(operation.tolist(), warped[0], strict=True)):
        grey = augment._grey(base[None])[0]
        expected = {3: torch.lerp(grey, base, 1 + 0.9 * strength[i]), 6: blurred[i]}.get(number, base)
        assert torch.allclose(found[i], expected, atol=1e-3) == (number < 7), number
        if abs(strength[i]) > 0.5:
            assert torch.allclose(found[i], base, atol=1e-3) == (number in (0, 1, 2, 4, 5)), number
        assert (contrast[i, 0] != 1) == (number == 4) and (brightness[i, 0] != 0) == (number == 5)
        box = found[i] == torch.tensor(IMAGENET_MEAN).view(3, 1, 1) * 255
        assert bool(box.all(0).any()) == (number == 8)
    assert set(operation.tolist()) == set(range(9))


def test_rand_changes_each_image_by_the_operations_and_signs_that_it_drew():
    x, draws = images(120), Draws(0, 1, torch.arange(120))
    expected = crop_and_flip(x, draws, 2)
    for _ in range(2):
        operation, is_negative = draws.integer(len(augment.RAND_OPERATIONS)), draws.uniform() < 0.5
        for i, (number, negative) in enumerate(zip(operation.tolist(), is_negative.tolist(), strict=True)):
            change, is_signed = list(augment.RAND_OPERATIONS.values())[number]
            expected[i : i + 1] = change(expected[i : i + 1], -1 if negative and is_signed else 1)
    assert torch.equal(AUGMENTS["rand"](x, Draws(0, 1, torch.arange(120)))[0], expected)
