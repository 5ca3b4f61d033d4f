"""Prediction: every pixel at its place, with its context, whatever the tiles."""

import itertools
import tracemalloc
from dataclasses import dataclass
from typing import ClassVar

import h5py
import numpy as np
import pytest
import torch
import zarr
from PIL import Image
from torch import nn

from vimunet.io.formats import read_image
from vimunet.io.pairs import Sample
from vimunet.models import Network, build_model
from vimunet.representations import Representation
from vimunet.representations.boundaries import Boundaries
from vimunet.representations.distances import Distances
from vimunet.representations.semantic import Semantic
from vimunet.segmentation import devices, normalization
from vimunet.segmentation.model_file import TrainedModel
from vimunet.segmentation.normalization import NormalizedImage as Pixels
from vimunet.segmentation.normalization import normalize
from vimunet.segmentation.predict import predict
from vimunet.segmentation.segment import segment
from vimunet.segmentation.tiling import tile_slices
from vimunet.training.crops import RandomCrops


class Fake(Network):
    """What `predict` asks of a network; remembers the shapes it saw."""

    def __init__(self, in_channels=1, out_channels=1, stride=1, max_size=None):
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.stride = (stride, stride)
        self.max_size = None if max_size is None else (max_size, max_size)
        self.seen = []

    def forward(self, image):
        assert not self.training
        assert tuple(image.shape[2:]) == self.padded(image.shape[2:])
        self.seen.append(tuple(image.shape))
        return self.logits(image)

    def logits(self, image):
        return image


class Local(Fake):
    """Two levels, zero padding, a receptive field of 3 + 4 * (1 + 1) pixels to each side."""

    def __init__(self):
        super().__init__(out_channels=2, stride=4)
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.coarse = nn.Conv2d(4, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 2, 3, padding=1)

    def logits(self, image):
        fine = torch.relu(self.first(image))
        coarse = torch.relu(self.coarse(nn.functional.max_pool2d(fine, 4)))
        return self.last(nn.functional.interpolate(coarse, scale_factor=4))


@dataclass(frozen=True)
class AllMaps(Representation):
    """A representation for networks with any number of maps."""

    min_size: int = 0
    title: ClassVar[str] = "any maps"
    channels: ClassVar[tuple[str, ...]] = ("foreground",)

    def encode(self, labels, spacing=None):
        return np.zeros((1, *labels.shape), np.float32)

    def decode(self, maps, spacing=None):
        return (maps[0] > 0.5).astype(np.int32)

    def loss(self, logits, target):
        return (logits - target).square().mean()


def wrap(network) -> TrainedModel:
    return TrainedModel(network, AllMaps())


def sigmoid(values):
    return 1 / (1 + np.exp(-values))


@pytest.fixture
def image(rng):
    return rng.integers(0, 60_000, (203, 157)).astype(np.uint16)


# --- normalisation ---------------------------------------------------------------------------


def test_normalize_subtracts_mean_and_divides_by_spread():
    image = np.array([[1, 3], [5, 7]], dtype=np.uint8)  # mean 4, variance (9 + 1 + 1 + 9) / 4 = 5
    expected = np.array([[[-3, -1], [1, 3]]]) / np.sqrt(5)
    result = normalize(image)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, atol=1e-6)


def test_channels_come_first_and_share_mean_and_spread(rng):
    image = rng.normal(size=(8, 5, 3)) * [1, 2, 3] + [4, 5, 6]
    expected = (image - image.mean()) / image.std()
    np.testing.assert_allclose(normalize(image), expected.transpose(2, 0, 1), atol=1e-5)


@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize("shape", [(24, 24), (24, 24, 3)])
def test_training_and_prediction_prepare_an_image_alike(rng, shape, in_channels):
    image = rng.integers(0, 255, shape).astype(np.uint8)
    image.reshape(24, 24, -1)[..., 0] //= 2  # channels of different brightness
    sample = Sample("a", lambda: (image, np.ones(shape[:2], np.int32)))
    crop, _ = RandomCrops([sample], 24, Boundaries(), in_channels=in_channels).crop(0)
    own = normalize(image, in_channels=in_channels)
    flips = [own, own[:, ::-1], own[:, :, ::-1], own[:, ::-1, ::-1]]
    assert min(np.abs(crop - flipped).max() for flipped in flips) < 1e-5


@pytest.mark.parametrize("value", [0, 7.3, 1e9 + 0.1, -3e30])
def test_constant_image_becomes_zeros(value):
    assert not normalize(np.full((31, 17), value)).any()


def test_large_offset_does_not_spoil_the_spread(rng, monkeypatch):
    monkeypatch.setattr(normalization, "_READ_SIZE", {"yx": (16, 16)})  # several blocks
    image = 16_000_000 + rng.integers(0, 3, (50, 40))  # float32 holds whole numbers up to 2**24
    expected = (image - image.mean()) / image.std()
    np.testing.assert_allclose(normalize(image)[0], expected, atol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_missing_pixels_are_refused(bad):
    image = np.ones((40, 40))
    image[39, 3] = bad
    with pytest.raises(ValueError, match="Image contains NaN or infinity"):
        predict(image, wrap(Fake()))


@pytest.mark.parametrize("shape", [(5,), (2, 3, 4, 5), (0, 7), (4, 4, 0)])
def test_wrong_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"must have shape \(y, x\) or \(y, x, c\)"):
        predict(np.zeros(shape), wrap(Fake()))


def test_complex_pixels_are_refused():
    with pytest.raises(TypeError, match="real numbers, got dtype complex"):
        predict(np.zeros((4, 4), dtype=complex), wrap(Fake()))


@pytest.mark.parametrize(
    "dtype", ["bool", "uint8", "int16", ">u2", "uint32", "int64", "float16", "float64"]
)
def test_any_real_dtype_gives_float32_maps(rng, dtype):
    image = rng.integers(0, 2, (20, 30)).astype(dtype)
    maps = predict(image, wrap(Fake()))
    assert maps.dtype == np.float32
    expected = image.astype(float)
    expected = sigmoid((expected - expected.mean()) / expected.std())
    np.testing.assert_allclose(maps[0], expected, atol=1e-5)


# --- tiles -----------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [1, 2, 16])
def test_tiles_cover_each_pixel_once_with_its_halo(stride):
    lengths, sizes, halos = [1, 2, 17, 63, 64, 65, 100, 333], [16, 17, 50], [0, 1, 8, 40]
    for length, tile_size, halo in itertools.product(lengths, sizes, halos):
        padded = -(-length // stride) * stride
        tiles = tile_slices((length, 3), tile_size, halo, stride)
        covered = np.zeros(length, dtype=int)
        windows = {tile.window[0].stop - tile.window[0].start for tile in tiles}
        assert len(windows) == 1
        assert len(tiles) == 1 or windows.pop() <= tile_size + 2 * (halo + stride - 1)
        for (window, _), (inner, _) in tiles:
            covered[inner] += 1
            assert window.start % stride == 0
            assert 0 <= window.start <= inner.start < inner.stop <= window.stop <= padded
            assert window.start == 0 or inner.start - window.start >= halo
            assert window.stop == padded or window.stop - inner.stop >= halo
        assert (covered == 1).all()


def test_no_more_tiles_than_needed():
    # 1250 = 250 + 2 * 512 - 24: two windows of at most 512 + 2 * 128 reach, where blocks of 512
    # that start at 0, 512, 1024 would need three.
    assert len(tile_slices((1250, 1250), 512, 128, 16)) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((0, 5), 8), "at least one pixel"),
        (((5, 5), 8, 2, 16), "`tile_size` must be at least 16"),
        (((5, 5), 8, -1), "`halo` must not be negative, got -1"),
    ],
)
def test_impossible_tiles_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        tile_slices(*arguments)


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize(("tile_size", "halo"), [(16, 0), (32, 16), (50, 7), (150, 64), (None, 64)])
def test_identity_network_returns_each_pixel_at_its_place(image, tile_size, halo, batch_size):
    network = Fake(stride=8)
    maps = predict(image, wrap(network), tile_size=tile_size, halo=halo, batch_size=batch_size)
    np.testing.assert_allclose(maps[0], sigmoid(normalize(image)[0]), atol=1e-6)


@pytest.mark.parametrize(("scale", "seen"), [(2, (200, 146)), (0.5, (50, 36)), (1.3, (130, 95))])
def test_network_sees_the_magnified_image_and_maps_have_the_size_of_the_image(scale, seen):
    y, x = np.mgrid[:100, :73]
    image = np.sin(y / 12) + np.cos(x / 9)
    network = Fake()
    maps = predict(image, wrap(network), scale=scale)
    assert network.seen == [(1, 1, *seen)]
    assert maps.shape == (1, 100, 73)
    expected = sigmoid(normalize(image)[0])
    inner = (slice(5, -5), slice(5, -5))  # where it ends, a line has no neighbour to interpolate to
    np.testing.assert_allclose(maps[0][inner], expected[inner], atol=0.02)


def test_magnified_image_is_that_of_pillow():
    rng = np.random.default_rng(0)
    image = rng.normal(size=(40, 30)).astype(np.float32)
    for scale in (0.4, 2.5):
        seen = []
        network = Fake()
        network.logits = lambda image, seen=seen: seen.append(image) or image
        predict(image, wrap(network), scale=scale)
        size = (round(30 * scale), round(40 * scale))
        resized = Image.fromarray(normalize(image)[0]).resize(size, Image.Resampling.BILINEAR)
        np.testing.assert_allclose(seen[0][0, 0], np.asarray(resized), atol=1e-5)


def test_magnified_maps_stay_maps():
    network = Fake()
    network.logits = lambda image: 100 * image.sign()
    maps = predict(np.random.default_rng(0).normal(size=(97, 101)), wrap(network), scale=1.7)
    assert maps.min() >= 0
    assert maps.max() <= 1  # also where rounding leads past it


def test_magnified_lazy_image_in_colour_and_in_tiles():
    image = np.random.default_rng(0).integers(0, 255, (90, 70, 3), dtype=np.uint8)
    model = wrap(Fake(3, 3))
    whole = predict(image, model, scale=2)
    options = {"scale": 2, "tile_size": 64, "halo": 8}
    np.testing.assert_allclose(predict(zarr.array(image), model, **options), whole, atol=1e-6)


def test_region_has_the_statistics_of_the_whole_image(image):
    model = wrap(Fake(stride=8))
    whole = predict(image, model)
    pixels = Pixels(zarr.array(image), 1, "image")
    for y, x in ((slice(0, 11), slice(3, 4)), (slice(17, 60), slice(20, 61))):
        maps = predict(image, model, region=(y, x))
        np.testing.assert_allclose(maps, whole[:, y, x], atol=1e-6)
        tiled = predict(pixels, model, region=(y, x), tile_size=16, halo=8)
        np.testing.assert_allclose(tiled, whole[:, y, x], atol=1e-6)
    model = wrap(Fake())
    magnified = predict(image, model, region=(y, x), scale=2)
    assert model.network.seen == [(1, 1, 86, 82)]
    assert magnified.shape == (1, 43, 41)


@pytest.mark.parametrize("rows", [slice(-1, 5), slice(5, 5), slice(0, 1000)])
def test_region_outside_of_the_image(image, rows):
    with pytest.raises(ValueError, match="`region` must lie in the image of"):
        predict(image, wrap(Fake()), region=(rows, slice(0, 5)))


def test_symmetries_are_the_eight_of_the_square_and_are_undone(image):
    network = Fake()
    seen = []
    network.logits = lambda image: seen.append(image[0, 0].numpy()) or image
    maps = predict(image, wrap(network), test_time_augmentation=8)
    first = normalize(image)[0]
    expected = [np.rot90(side, turns) for side in (first, first.T) for turns in range(4)]
    for one in expected:
        assert sum(one.shape == other.shape and np.allclose(one, other) for other in seen) == 1
    assert len(seen) == 8
    np.testing.assert_allclose(maps[0], sigmoid(first), atol=1e-6)


def test_maps_are_the_mean_over_symmetries(image):
    """A network that sees the row of a pixel: its mean over all turns knows no direction."""
    network = Fake(stride=4)
    network.logits = lambda image: torch.linspace(-1, 1, image.shape[2])[:, None] + 0 * image
    square = image[:100, :100]
    once, mean = (
        predict(square, wrap(network), test_time_augmentation=count)[0] for count in (1, 8)
    )
    assert once[0, 0] < 0.3 < 0.7 < once[-1, 0]
    turned = [np.rot90(side, turns) for side in (once, once.T) for turns in range(4)]
    np.testing.assert_allclose(mean, np.mean(turned, axis=0), atol=1e-6)


@pytest.mark.parametrize("symmetries", [0, 9])
def test_symmetries_out_of_range(image, symmetries):
    with pytest.raises(
        ValueError, match=f"`test_time_augmentation` must be from 1 to 8, got {symmetries}"
    ):
        predict(image, wrap(Fake()), test_time_augmentation=symmetries)


@pytest.mark.parametrize("scale", [0, -1, 17, np.nan])
def test_scale_out_of_range(image, scale):
    with pytest.raises(ValueError, match=f"`scale` must be from 1/16 to 16, got {scale}"):
        predict(image, wrap(Fake()), scale=scale)


@pytest.mark.parametrize(
    ("tile_size", "halo", "batch_size"), [(32, 16, 1), (64, 13, 3), (100, 16, 2), (20, 12, 7)]
)
def test_local_network_gives_the_same_maps_tiled_and_whole(image, tile_size, halo, batch_size):
    model = wrap(Local())
    whole = predict(image, model)
    tiled = predict(image, model, tile_size=tile_size, halo=halo, batch_size=batch_size)
    assert len(set(model.network.seen)) >= 2
    np.testing.assert_allclose(tiled, whole, atol=1e-6)  # at the border of the image too


def test_too_small_a_halo_is_seen(image):
    model = wrap(Local())
    difference = predict(image, model) - predict(image, model, tile_size=32, halo=0)
    assert np.abs(difference).max() > 1e-4


def test_image_that_fits_into_one_tile_is_not_cut(image):
    model = wrap(build_model("unet", features=4, depth=2))  # instance norm: nothing is local
    assert (predict(image, model) == predict(image, model, tile_size=256)).all()
    assert (predict(image, model) == predict(image, model, tile_size=80, halo=64)).all()


def test_padding_reflects_the_lower_and_right_end():
    network = Fake(stride=8)
    seen = []
    network.logits = lambda image: seen.append(image) or image
    image = np.array([[1.0, 2, 3]])
    predict(image, wrap(network))
    row = (np.array([1, 2, 3, 2, 1, 2, 3, 2]) - 2) / np.sqrt(2 / 3)  # to and fro
    np.testing.assert_allclose(seen[0][0, 0], np.tile(row, (8, 1)), atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (17, 2), (5, 5, 3)])
@pytest.mark.parametrize("tile_size", [None, 16])
def test_tiny_images(rng, shape, tile_size):
    model = wrap(build_model("unet", features=4, depth=4))
    maps = predict(rng.normal(size=shape), model, tile_size=tile_size, halo=3)
    assert maps.shape == (2, *shape[:2])
    assert np.isfinite(maps).all()


def test_every_published_size_is_chosen_to_fit():
    network = Fake(max_size=96)
    predict(np.eye(90), wrap(network))  # fits whole
    predict(np.indices((96, 200))[1], wrap(network), halo=16)
    predict(np.indices((500, 20))[0], wrap(network), halo=16, batch_size=4)
    assert network.seen[0] == (1, 1, 90, 90)
    assert max(max(shape[2:]) for shape in network.seen) == 96


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile_size": 64, "halo": 32}, r"at most 96 for this network, got 64 \+ 2 \* 32"),
        ({"halo": 48}, "`halo` must leave room for a tile: .* at most 96"),
    ],
)
def test_tiles_too_large_for_the_network_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        predict(np.eye(200), wrap(Fake(max_size=96)), **options)


def test_large_images_are_cut_by_themselves():
    network = Fake(stride=16)
    predict(np.eye(1024), wrap(network))
    assert network.seen == [(1, 1, 1024, 1024)]
    predict(np.eye(1025, 1024), wrap(network))
    assert max(side for shape in network.seen[1:] for side in shape[2:]) <= 1024
    predict(np.eye(1400), wrap(network), halo=500)
    assert max(side for shape in network.seen for side in shape[2:]) <= 256 + 2 * 512


def test_batches_are_of_equal_windows_and_progress_is_told():
    network, told = Fake(), []
    predict(
        np.indices((100, 100)).sum(axis=0),
        wrap(network),
        tile_size=40,
        halo=4,
        batch_size=4,
        progress=lambda done, total: told.append((done, total)),
    )
    assert [shape[0] for shape in network.seen] == [4, 4, 1]
    assert len({shape[1:] for shape in network.seen}) == 1
    assert told == [(4, 9), (8, 9), (9, 9)]


def test_memory_does_not_grow_with_the_number_of_tiles():
    class Lazy:
        """A large image that is computed where it is read."""

        dtype = np.dtype(np.float32)

        def __init__(self, height):
            self.shape = (height, 256)

        def __getitem__(self, box):
            rows, columns = box
            return np.add.outer(
                np.arange(rows.start, rows.stop), np.arange(columns.start, columns.stop)
            ).astype(np.float32)

    def beyond_the_maps(height):
        tracemalloc.start()
        predict(Lazy(height), wrap(Fake()), tile_size=128, halo=16)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak - height * 256 * 4

    assert beyond_the_maps(16_384) < 1.2 * beyond_the_maps(2048)


def test_hdf5_and_zarr_give_the_maps_of_the_array(tmp_path, image):
    model = wrap(Local())
    options = {"tile_size": 64, "halo": 16}
    expected = predict(image, model, **options)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["image"] = image
        assert (predict(file["image"], model, **options) == expected).all()
    assert (predict(zarr.array(image), model, **options) == expected).all()


# --- network, device, precision --------------------------------------------------------------


def test_channels_are_adapted_to_the_network(rng):
    colour = rng.normal(size=(20, 30, 3))
    grey = predict(colour, wrap(Fake(in_channels=1)))
    np.testing.assert_allclose(grey, predict(colour.mean(axis=2), wrap(Fake())), atol=1e-5)
    assert predict(colour[:, :, 0], wrap(Fake(3, 3))).shape == (3, 20, 30)
    with pytest.raises(ValueError, match="must have 2 channels"):
        predict(colour, wrap(Fake(in_channels=2)))


def test_network_comes_back_as_it_was_given():
    network = Local().train()
    network.coarse.eval()
    predict(np.eye(30), wrap(network))
    assert network.training
    assert network.first.training
    assert not network.coarse.training
    network.logits = lambda image: 1 / 0
    with pytest.raises(ZeroDivisionError):
        predict(np.eye(30), wrap(network))
    assert network.training


def test_nothing_is_recorded_for_a_gradient():
    network = Local()
    seen = []
    network.logits = lambda image: (
        seen.append(torch.is_inference_mode_enabled()) or image[:, [0, 0]]
    )
    predict(np.eye(30), wrap(network))
    assert seen == [True]


@pytest.mark.parametrize("fast", [False, True])
def test_bfloat16_is_near_float32_and_the_default_where_the_processor_has_it(
    image, fast, monkeypatch
):
    monkeypatch.setattr(devices, "bfloat16_is_fast", lambda: fast)
    model = wrap(Local())
    exact = predict(image, model, precision="float32")
    rough = predict(image, model, precision="bfloat16")
    assert rough.dtype == np.float32
    assert 0 < np.abs(rough - exact).max() < 0.05
    assert (predict(image, model, device="cpu") == (rough if fast else exact)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "half"}, "Unknown precision 'half'. Known: auto, float32"),
        ({"device": "gpu"}, "`device` 'gpu' cannot be used"),
        ({"batch_size": 0}, "`batch_size` must be at least 1, got 0"),
        ({"halo": -1}, "`halo` must not be negative"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        predict(np.eye(30), wrap(Fake()), **options)


class Faint(Fake):
    """Returns what it is given, so small that the maps tell how the image was prepared."""

    def logits(self, image):
        return image / 64


def test_normalizations_of_other_tools(rng):
    image = rng.normal(200, 40, (2100, 30, 3)) * [1, 2, 0.5]
    image[3, 4, 1], image[2090, 2, 2] = 1000, -500  # in different blocks of reading
    by_channel = (image - image.mean(axis=(0, 1))) / image.std(axis=(0, 1))
    by_range = (image + 500) / 1500 * 255
    for choice, expected in (("channel", by_channel), ("range", by_range)):
        model = TrainedModel(Faint(3, 3), AllMaps(), normalization=choice)
        maps = predict(image, model, precision="float32")
        wanted = 1 / (1 + np.exp(-expected.transpose(2, 0, 1) / 64))
        np.testing.assert_allclose(maps, wanted, atol=1e-6)
        constant = Pixels(np.full((5, 6, 3), 7.0), 3, normalization)
        assert not constant.read((slice(0, 5), slice(0, 6))).any()


@pytest.mark.parametrize("batch_size", [1, 4])
def test_windows_without_contrast_have_nothing_in_them(rng, batch_size):
    image = np.full((100, 100), 7.0)
    image[60:, 60:] = rng.normal(size=(40, 40))
    for representation in (Boundaries(), Boundaries(foreground=False), Distances(), Semantic(3)):
        network = Fake(out_channels=len(representation.channels))
        network.logits = lambda image, count=network.out_channels: (
            image.expand(-1, count, -1, -1) * 0 + 3
        )  # finds something everywhere
        model = TrainedModel(network, representation)
        maps = predict(image, model, tile_size=50, halo=0, batch_size=batch_size)
        assert sum(shape[0] for shape in network.seen) == 1
        assert (maps[:, 50:, 50:] > 0.3).all()
        maps[:, 50:, 50:] = predict(image[:50, :50], model)
        assert len(network.seen) == 1
        assert not representation.decode(maps).any()


def test_unknown_normalization_is_refused():
    with pytest.raises(
        ValueError, match="Unknown normalization 'percentile'. Known: image, channel, range"
    ):
        predict(np.eye(9), TrainedModel(Fake(), AllMaps(), normalization="percentile"))


def test_a_network_that_returns_nan_is_reported():
    network = Fake()
    network.logits = lambda image: image * float("nan")
    with pytest.raises(ValueError, match="returned NaN in float32"):
        predict(np.eye(9), wrap(network), precision="float32")


def test_segment_reads_labels_from_the_maps(rng):
    class Perfect(Fake):
        """Foreground where the image is bright, boundary nowhere."""

        def logits(self, image):
            return torch.cat([20 * image, torch.full_like(image, -20)], dim=1)

    image = np.zeros((60, 80), np.uint8)
    image[5:25, 5:25] = 200
    image[30:50, 40:75] = 200
    labels = segment(
        image, TrainedModel(Perfect(out_channels=2), Boundaries()), tile_size=32, halo=4
    )
    assert labels.dtype == np.int32
    assert set(np.unique(labels)) == {0, 1, 2}
    assert ((labels > 0) == (image > 0)).all()


def test_real_network_on_a_real_image(samples):
    model = TrainedModel(build_model("unet", features=4, depth=2), Boundaries())
    image = read_image(next(samples.glob("phase/*/images/*")))
    maps = predict(image, model, tile_size=128, halo=32)
    assert maps.shape == (2, *image.shape)
    assert 0 <= maps.min() < maps.max() <= 1


@pytest.mark.gpu
def test_network_travels_to_the_gpu_and_back(image):
    model = wrap(Local())
    on_gpu = predict(image, model, device="cuda", precision="float32")
    assert next(model.network.parameters()).device.type == "cpu"
    np.testing.assert_allclose(on_gpu, predict(image, model, device="cpu"), atol=1e-3)


# --- classes ---------------------------------------------------------------------------------


class GivenLogits(Network):
    """Returns the channels of the image, as they are, as logits."""

    in_channels = out_channels = 3
    stride, max_size = (1, 1), None

    def forward(self, image):
        return 4 * image


@pytest.mark.parametrize("tile_size", [None, 16])
def test_maps_of_classes_are_a_softmax_and_labels_are_classes(rng, tile_size):
    image = rng.normal(size=(40, 50, 3))
    model = TrainedModel(GivenLogits(), Semantic(3))
    maps = predict(image, model, tile_size=tile_size, halo=2, device="cpu")
    logits = 4 * normalize(image)
    expected = np.exp(logits) / np.exp(logits).sum(axis=0)
    np.testing.assert_allclose(maps, expected, rtol=1e-4)
    found = segment(image, model, tile_size=tile_size, halo=2, device="cpu")
    np.testing.assert_array_equal(found, image.argmax(axis=2))
