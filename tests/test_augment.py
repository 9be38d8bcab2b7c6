"""augment.py: right pixels, independent draws, the same draws whatever the batching."""

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from augment import IMAGENET_MEAN, IMAGENET_STD, Augment, Draws, crop_and_flip, normalize


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
    with pytest.raises(ValueError, match="unknown augmentation 'lots': choose from none, light, strong, document"):
        Augment("lots")
