"""Random crops: where they start, how they are turned, what they are a function of."""

import pickle
from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.utils.data import DataLoader

from vimunet.io.pairs import Sample, find_pairs
from vimunet.models import build_model
from vimunet.representations import Boundaries, Representation, Semantic
from vimunet.segmentation.normalization import to_channels
from vimunet.training.crops import RandomCrops, rotate


class Copy(Representation):
    """Shows the labels it was given."""

    name = title = "labels"
    channels = ("labels",)
    decode = loss = None

    def encode(self, labels, spacing=None):
        return labels[None].astype(np.float32)


READS: Counter = Counter()


def give(name, image, labels):
    READS[name] += 1
    return image, labels


def sample(image, labels, name="sample"):
    return Sample(name, partial(give, name, image, labels))


def numbered(height, width):
    """A sample in which each pixel has its own number, as grey value and as label."""
    labels = np.arange(1, height * width + 1, dtype=np.int32).reshape(height, width)
    return sample(labels.astype(np.uint16), labels)


def standardised(image):
    image = image.astype(np.float64)
    return (image - image.mean()) / image.std()


def test_item_depends_on_seed_and_number_alone(rng):
    samples = [sample(rng.random((20, 30)), rng.integers(0, 5, (20, 30)), f"{i}") for i in range(3)]
    crops = RandomCrops(samples, 8, Copy(), seed=3, length=50, rotations=True)
    forward = [crops[i] for i in range(50)]
    fresh = RandomCrops(samples, 8, Copy(), seed=3, length=1000, rotations=True, cache_bytes=0)
    for i in reversed(range(50)):
        for one, two in zip(forward[i], fresh[i], strict=True):
            assert torch.equal(one, two)
    other = RandomCrops(samples, 8, Copy(), seed=4, length=50, rotations=True)
    assert sum(torch.equal(other[i][0], forward[i][0]) for i in range(50)) == 0
    assert sum(torch.equal(forward[i][0], forward[j][0]) for i in range(50) for j in range(i)) < 5


def test_every_start_is_equally_likely_and_the_last_is_one():
    crops = RandomCrops([numbered(6, 9)], (4, 5), Copy(), length=3000)
    starts = Counter(int(crops.crop(i)[1].min()) - 1 for i in range(len(crops)))
    expected = {y * 9 + x for y in range(3) for x in range(5)}
    assert set(starts) == expected
    mean, spread = 3000 / 15, np.sqrt(3000 / 15 * 14 / 15)
    assert max(abs(count - mean) for count in starts.values()) < 4 * spread


@pytest.mark.parametrize(("rotations", "kinds"), [(False, 4), (True, 8)])
def test_flips_and_turns_are_equally_likely(rotations, kinds):
    """Two flips give 4 pictures, with rotations all 8 of the square, twice each."""
    crops = RandomCrops([numbered(3, 3)], 3, Copy(), length=1600, rotations=rotations)
    seen = Counter(crops.crop(i)[1].tobytes() for i in range(len(crops)))
    square = np.arange(1, 10, dtype=np.int32).reshape(3, 3)
    turned = [np.rot90(square, k) for k in (range(4) if rotations else (0, 2))]
    allowed = {a.tobytes() for t in turned for a in (t.copy(), np.fliplr(t).copy())}
    assert set(seen) == allowed
    assert len(allowed) == kinds
    mean = 1600 / kinds
    assert max(abs(count - mean) for count in seen.values()) < 4 * np.sqrt(mean)


@pytest.mark.parametrize("rotations", [False, True])
def test_image_and_target_are_cut_and_turned_alike(rotations):
    crops = RandomCrops([numbered(20, 31)], 7, Copy(), length=40, rotations=rotations)
    for i in range(40):
        image, target = crops[i]
        assert image.shape == target.shape == (1, 7, 7)
        assert image.dtype == target.dtype == torch.float32
        np.testing.assert_allclose(image, standardised(target.numpy()), atol=1e-5)


def test_channels_share_mean_and_spread(rng):
    image = rng.normal([10, 500, -3], [1, 40, 0.01], (16, 16, 3))
    crops = RandomCrops([sample(image, np.zeros((16, 16), int))], 16, Copy(), in_channels=3)
    crop, _ = crops[0]
    assert crop.mean().item() == pytest.approx(0, abs=1e-4)
    assert crop.std(correction=0).item() == pytest.approx(1, abs=1e-4)
    means = (image.mean(axis=(0, 1)) - image.mean()) / image.std()
    np.testing.assert_allclose(crop.mean(dim=(1, 2)), means, atol=1e-4)


def test_errors_name_the_sample(rng):
    grey = np.zeros((16, 16), np.uint8)
    two_channels = Sample("bad", lambda: (np.zeros((16, 16, 2)), grey))
    with pytest.raises(ValueError, match="bad: `image` must have one channel"):
        RandomCrops([two_channels], 16, Boundaries())[0]
    class_three = Sample("bad", lambda: (rng.normal(size=(16, 16)), grey + 3))
    with pytest.raises(ValueError, match="bad: .*classes"):
        RandomCrops([class_three], 16, Semantic(num_classes=2))[0]


def test_constant_crops_become_noise():
    black = np.zeros((64, 64), np.uint8)
    crops = RandomCrops([sample(black, black)], 64, Boundaries(), length=3)
    image, target = crops[0]
    assert abs(image.mean()) < 0.1
    assert image.std() == pytest.approx(1, abs=0.05)
    assert not target.any()
    assert torch.equal(crops[0][0], image)
    assert not torch.equal(crops[1][0], image)


def test_gradient_of_a_constant_crop_is_finite():
    """A norm divides by the spread: one after the other, they multiply what rounding left."""
    torch.manual_seed(0)
    network = build_model("vim_n")
    black = np.zeros((64, 64), np.uint8)
    image, target = RandomCrops([sample(black, black)], 64, Boundaries())[0]
    for pixels in (image, torch.zeros_like(image)):
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(pixels[None])
        functional.binary_cross_entropy_with_logits(logits.float(), target[None]).backward()
        largest = max(float(p.grad.abs().max()) for p in network.parameters() if p.grad is not None)
        assert (largest < 1e3) == (pixels is image)


def test_small_image_is_padded_with_its_mean_and_background():
    crops = RandomCrops([numbered(5, 9)], 8, Copy(), length=20)
    for i in range(20):
        image, target = crops[i]
        assert image.shape == target.shape == (1, 8, 8)
        inside = target[0] > 0
        assert int(inside.sum()) == 5 * 8
        assert not image[0][~inside].any()
        rows = torch.nonzero(inside.any(dim=1)).flatten().tolist()
        assert rows in ([0, 1, 2, 3, 4], [3, 4, 5, 6, 7])
        np.testing.assert_allclose(
            image[0][inside], standardised(target[0][inside].numpy()), atol=1e-5
        )


def test_each_pass_visits_every_sample_once():
    samples = [sample(np.full((4, 4), i), np.full((4, 4), i + 1), f"{i}") for i in range(7)]
    crops = RandomCrops(samples, 2, Copy(), length=21)
    assert len(crops) == 21
    visits = [int(crops.crop(i)[1][0, 0]) for i in range(21)]
    passes = [visits[:7], visits[7:14], visits[14:]]
    assert all(sorted(turn) == list(range(1, 8)) for turn in passes)
    assert passes[0] != passes[1] != passes[2]
    assert len(RandomCrops(samples, 2, Copy())) == 7


def test_crops_with_one_label_are_drawn_again():
    labels = np.zeros((64, 64), int)
    labels[30:33, 30:33] = 5
    crops = RandomCrops([sample(labels * 1.0, labels)], 8, Copy(), length=50, min_objects=2)
    assert all(set(np.unique(crops.crop(i)[1])) == {0, 5} for i in range(50))
    hopeless = RandomCrops([sample(labels * 1.0, labels, "set01")], 8, Copy(), min_objects=3)
    with pytest.raises(ValueError, match=r"set01: no crop of .8, 8. with 3 different labels"):
        hopeless[0]


def test_samples_are_decoded_once_if_memory_allows(rng):
    images = [(rng.random((10, 10)), rng.integers(0, 3, (10, 10), np.uint8)) for _ in range(4)]
    samples = [sample(*pair, f"cached{i}") for i, pair in enumerate(images)]
    size = 10 * 10 * (8 + 1)
    READS.clear()
    crops = RandomCrops(samples, 4, Copy(), length=20, cache_bytes=2 * size + 1)
    for i in range(20):
        crops.crop(i)
    assert sorted(READS.values()) == [1, 1, 5, 5]
    again = pickle.loads(pickle.dumps(crops))
    assert again._cache == {}
    assert torch.equal(again[3][0], crops[3][0])


def test_nothing_is_written_into_the_samples(rng):
    image, labels = rng.random((9, 9)), rng.integers(0, 3, (9, 9))
    image.setflags(write=False)
    labels.setflags(write=False)
    crop, target = RandomCrops([sample(image, labels)], 4, Copy())[0]
    crop += 1
    target += 1


def test_large_ids_stay_different_and_background_stays_background():
    ids = np.array([[0, 2**40], [2**63 + 5, 2**40]], np.uint64)
    labels = RandomCrops([sample(ids.astype(float), ids)], 2, Copy()).crop(0)[1]
    assert labels.dtype == np.int32
    assert sorted(np.unique(labels, return_counts=True)[1]) == [1, 1, 2]
    assert 0 in labels
    labels = RandomCrops([sample(ids[1:] * 1.0, ids[1:])], (1, 2), Copy()).crop(0)[1]
    assert 0 not in labels
    small = np.array([[0, 70_000], [3, 70_000]], np.int64)
    labels = RandomCrops([sample(small * 1.0, small)], 2, Copy()).crop(0)[1]
    assert sorted(labels.ravel()) == [0, 3, 70_000, 70_000]


@pytest.mark.parametrize(
    ("image", "labels", "message"),
    [
        (np.array([[1.0, np.nan]]), np.zeros((1, 2), int), "bad: the image contains NaN"),
        (np.array([[1.0, np.inf]]), np.zeros((1, 2), int), "bad: the image contains NaN or inf"),
        (np.zeros((2, 2)), None, "bad: training needs labels"),
        (np.zeros((2, 2)), np.zeros((2, 3), int), r"bad: image \(2, 2\) and labels \(2, 3\)"),
        (np.zeros((2, 2)), np.zeros((2, 2)), "bad: labels must be whole numbers >= 0, got float"),
        (np.zeros((2, 2)), np.full((2, 2), -1), "bad: labels .* got int64 from -1"),
        (np.zeros((2, 2, 2)), np.zeros((2, 2), int), r"must have one channel .* \(2, 2, 2\)"),
    ],
)
def test_samples_that_cannot_be_used(image, labels, message):
    with pytest.raises(ValueError, match=message):
        RandomCrops([sample(image, labels, "bad")], 2, Copy())[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": []}, "at least one sample"),
        ({"crop_size": 0}, "`crop_size` must be numbers > 0, got 0"),
        ({"crop_size": (1, 2, 3)}, "`crop_size` must be one number or one for each axis of yx"),
        ({"crop_size": (4, 5), "rotations": True}, r"must be square for rotations, got \(4, 5\)"),
        ({"length": 0}, "`length` must be at least 1, got 0"),
    ],
)
def test_arguments_out_of_range(changes, message):
    arguments = {"samples": [numbered(9, 9)], "crop_size": 4, "representation": Copy()} | changes
    with pytest.raises(ValueError, match=message):
        RandomCrops(**arguments)


def test_numbers_beyond_the_end():
    crops = RandomCrops([numbered(9, 9)], 4, Copy(), length=3)
    assert len(list(crops)) == 3
    for index in (3, -1):
        with pytest.raises(IndexError, match=f"0 ... 2, got {index}"):
            crops[index]


def test_channels():
    grey = np.array([[1, 2], [3, 4]], np.uint16)
    colour = np.stack([grey, grey * 2, grey * 3], axis=-1)
    assert to_channels(grey, 1).dtype == np.float32
    np.testing.assert_array_equal(to_channels(grey, 1), [grey])
    np.testing.assert_array_equal(to_channels(grey, 2), [grey, grey])
    np.testing.assert_array_equal(to_channels(grey[..., None], 2), [grey, grey])
    np.testing.assert_array_equal(to_channels(colour, 3), [grey, grey * 2, grey * 3])
    np.testing.assert_array_equal(to_channels(colour, 1), [grey * 2])
    for image, wanted in ((colour, 2), (np.zeros((2, 2, 4)), 3)):
        with pytest.raises(ValueError, match=rf"must have {wanted} channels .or one., got shape"):
            to_channels(image, wanted)
    with pytest.raises(ValueError, match="must have one channel .* Choose a channel"):
        to_channels(colour[..., :2], 1)
    with pytest.raises(ValueError, match="got shape .2, 2, 30.. The last axis must hold channels"):
        to_channels(np.zeros((2, 2, 30)), 1)
    with pytest.raises(ValueError, match=r"must have axes .y, x. or .y, x, c., got .3,."):
        to_channels(np.zeros(3), 1)


def test_worker_processes_give_the_same_crops(rng):
    samples = [sample(rng.random((20, 20)), rng.integers(0, 5, (20, 20)), f"{i}") for i in range(3)]
    crops = RandomCrops(samples, 8, Copy(), length=8)
    loader = DataLoader(crops, batch_size=2, num_workers=2)
    for number, (images, targets) in enumerate(loader):
        for place in range(2):
            image, target = crops[2 * number + place]
            assert torch.equal(images[place], image)
            assert torch.equal(targets[place], target)


def test_crops_of_real_cells(shared_data):
    cells = shared_data / "usiigaci"
    pairs = find_pairs(cells / "images" / "val", cells / "labels" / "val")
    crops = RandomCrops(pairs, 256, Copy(), length=6)
    for i in range(6):
        image, labels = crops.crop(i)
        assert image.shape == (1, 256, 256)
        assert labels.shape == (256, 256)
        assert abs(float(image.mean())) < 1e-3
        assert abs(float(image.std()) - 1) < 1e-3


# Free rotation, and labels that are classes


def test_rotation_by_quarter_turns_is_exact(rng):
    image, labels = rng.normal(size=(3, 9, 9)), rng.integers(0, 9, (9, 9))
    for turns in range(4):
        turned, turned_labels = rotate(image, labels, 90 * turns)
        np.testing.assert_allclose(turned, np.rot90(image, turns, (-2, -1)), atol=1e-9)
        np.testing.assert_array_equal(turned_labels, np.rot90(labels, turns))


def test_rotation_by_half_a_right_angle_of_a_hand_worked_image():
    """The pixel above the centre goes to the upper left; the corners come from outside."""
    labels = np.zeros((5, 5), int)
    labels[:3, 2] = 1
    image = np.ones((1, 5, 5))
    turned, turned_labels = rotate(image, labels, 45)
    np.testing.assert_array_equal(np.diag(turned_labels), [0, 1, 1, 0, 0])
    assert turned[0, 2, 2] == pytest.approx(1)
    assert turned[0, 0, 0] == pytest.approx(0, abs=0.2)  # 2.83 pixels from the centre, 2 exist


def test_free_rotation_turns_image_and_labels_alike(rng):
    blocks = np.kron(rng.integers(1, 4, (4, 4)), np.ones((16, 16), int))
    crops = RandomCrops(
        [sample(blocks * 100.0, blocks)], 64, Copy(), length=40, free_rotation=0.5, seed=1
    )
    turned = 0
    for i in range(40):
        image, labels = crops.crop(i)
        assert set(np.unique(labels)) <= {0, 1, 2, 3}
        if (labels == 0).any():
            turned += 1
            means = [image[0][labels == value].mean() for value in (1, 2, 3)]
            original = (np.array([100, 200, 300]) - 100 * blocks.mean()) / (100 * blocks.std())
            np.testing.assert_allclose(means, original, atol=0.12)  # blurred at the borders
    assert 10 < turned < 30
    plain = RandomCrops([sample(blocks * 100.0, blocks)], 64, Copy(), length=40, seed=1)
    assert all((plain.crop(i)[1] > 0).all() for i in range(40))


def test_free_rotation_has_a_new_angle_each_time():
    line = np.zeros((41, 41), int)
    line[:21, 20] = 1
    crops = RandomCrops([sample(line, line)], 41, Copy(), length=60, free_rotation=1.0)
    rows, columns = np.mgrid[:41, :41] - 20.0
    angles = []
    for i in range(60):
        _, labels = crops.crop(i)
        inside = labels > 0
        angles.append(np.degrees(np.arctan2(rows[inside].mean(), columns[inside].mean())) % 360)
    assert np.histogram(angles, bins=6, range=(0, 360))[0].min() >= 3


def test_classes_are_never_renumbered():
    huge = np.array([[1, 2**40]])
    assert RandomCrops([sample(np.ones((1, 2)), huge)], 1, Copy()).crop(0)[1].max() <= 2
    crops = RandomCrops([sample(np.ones((1, 2)), huge)], 1, Semantic())
    with pytest.raises(ValueError, match="sample: labels must be classes, got 1099511627776"):
        crops.crop(0)
    gaps = np.array([[0, 3], [7, 7]])
    crops = RandomCrops([sample(np.ones((2, 2)), gaps)], 2, Semantic(9), length=20)
    assert {tuple(np.unique(crops.crop(i)[1])) for i in range(20)} == {(0, 3, 7)}


def test_settings_that_do_not_fit_classes_are_named():
    samples = [sample(np.ones((4, 4)), np.zeros((4, 4), int))]
    with pytest.raises(ValueError, match="`min_objects` must be 0 for labels that are classes"):
        RandomCrops(samples, 4, Semantic(), min_objects=2)
    with pytest.raises(ValueError, match=r"`free_rotation` must lie in \[0, 1\], got 1.5"):
        RandomCrops(samples, 4, Semantic(), free_rotation=1.5)
