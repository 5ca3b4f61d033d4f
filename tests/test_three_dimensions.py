"""Volumes take the same way as images: every step along it, and all of it on a real block."""

import csv
import json

import numpy as np
import pytest
import tifffile
import torch
import zarr
from PIL import Image
from scipy import ndimage
from torch import nn

from vimunet.axes import turns
from vimunet.blockwise import BlockwiseSegmentation
from vimunet.cli import main
from vimunet.datasets import SAMPLES, samples
from vimunet.io.formats import read_labels
from vimunet.io.label_files import read_label_tiff
from vimunet.io.ome_zarr import read_ome_zarr
from vimunet.io.pairs import Sample
from vimunet.models import Network, build_model
from vimunet.objects.measurement import measure
from vimunet.representations import Boundaries, Distances, Semantic
from vimunet.representations.losses import dice_loss
from vimunet.scores.folders import evaluate
from vimunet.segmentation.model_file import TrainedModel, load_model, save_model
from vimunet.segmentation.normalization import NORMALIZATIONS, NormalizedImage, normalize
from vimunet.segmentation.predict import predict
from vimunet.segmentation.segment import segment
from vimunet.training.crops import RandomCrops

THIN = (4.0, 1.0, 1.0)
"""Sections four times as far apart as pixels."""


def balls(spacing=(1.0, 1.0, 1.0), radius=9.0, count=(2, 3, 3)):
    """Balls that touch their neighbours, some of them cut by the border."""
    pitch = 2 * radius
    shape = [round(n * pitch / step) for n, step in zip(count, spacing, strict=True)]
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1) * spacing
    labels = np.zeros(shape, np.int32)
    places = np.stack(np.meshgrid(*map(np.arange, count), indexing="ij"), axis=-1)
    for number, place in enumerate(places.reshape(-1, 3), start=1):
        center = (place + (0.5, 0.5, 0.35)) * pitch
        labels[np.linalg.norm(grid - center, axis=-1) < radius] = number
    return labels


def ious(found, labels):
    """Best overlap of each object with one that was found."""
    best = []
    for number in np.unique(labels[labels > 0]):
        mask = labels == number
        partner = np.bincount(found[mask]).argmax()
        best.append((mask & (found == partner)).sum() / (mask | (found == partner)).sum())
    return np.array(best)


# --- what maps mean ------------------------------------------------------------------------------


@pytest.mark.parametrize("spacing", [None, THIN])
@pytest.mark.parametrize("representation", [Boundaries(), Distances()], ids=["boundaries", "dist"])
def test_round_trip_of_volumes(representation, spacing):
    labels = balls(spacing or (1, 1, 1), radius=12 if spacing else 9)
    maps = representation.encode(labels, spacing)
    assert maps.shape == (len(representation.channels), *labels.shape)
    found = representation.decode(maps, spacing)
    assert found.max() == labels.max()
    assert ious(found, labels).min() > 0.9


def test_round_trip_without_background():
    rng = np.random.default_rng(0)
    starts = np.zeros((24, 60, 60), np.int32)
    starts[tuple(rng.integers(0, n, 12) for n in starts.shape)] = np.arange(1, 13)
    nearest = ndimage.distance_transform_edt(starts == 0, return_indices=True)[1]
    labels = starts[tuple(nearest)]
    representation = Boundaries(foreground=False)
    assert ious(representation.decode(representation.encode(labels)), labels).min() > 0.9


def test_classes_of_volumes():
    labels = np.random.default_rng(0).integers(0, 3, (3, 5, 7))
    np.testing.assert_array_equal(Semantic(3).decode(Semantic(3).encode(labels)), labels)


def test_boundary_of_a_volume_runs_through_all_three_axes():
    labels = np.ones((4, 4, 4), int)
    labels[2:, :, :] = 2
    expected = np.zeros((4, 4, 4))
    expected[1:3] = 1
    for axes in ((0, 1, 2), (1, 0, 2), (2, 1, 0)):
        boundary = Boundaries(foreground=False).encode(labels.transpose(axes))[0]
        np.testing.assert_array_equal(boundary, expected.transpose(axes))


def test_distances_count_voxels_by_their_size():
    labels = np.zeros((7, 21, 21), int)
    labels[1:6, 2:19, 2:19] = 1
    maps = Distances().encode(labels, (0.2, 0.05, 0.05))
    inside = labels > 0
    z, y, x = np.nonzero(inside)
    to_center = np.sqrt((4.0 * (z - 3)) ** 2 + (y - 10) ** 2 + (x - 10) ** 2)
    np.testing.assert_allclose(maps[1][inside], to_center / to_center.max(), atol=1e-5)
    outline = inside & ~ndimage.binary_erosion(inside)
    depth = ndimage.distance_transform_edt(~outline, sampling=THIN)[inside]
    np.testing.assert_allclose(maps[2][inside], 1 - depth / depth.max(), atol=1e-5)
    assert not np.allclose(maps, Distances().encode(labels))


def test_sizes_and_radii_are_of_cubes_as_wide_as_a_pixel():
    """A piece of one section of 30 pixels is as large as 120 cubes, but no ball of 3 fits in it."""
    boundary = np.ones((1, 5, 30, 30), np.float32)
    boundary[0, 2, 5:10, 5:11] = 0
    boundary[0, 1:4, 15:25, 15:25] = 0
    representation = Boundaries(foreground=False, max_elongation=0, seed_radius=0, min_size=100)
    found = representation.decode(boundary, THIN)
    assert found[2, 7, 7] != found[2, 20, 20] > 0
    assert representation.smallest(THIN, 3) == 25
    assert representation.smallest(None, 3) == 100
    thick = Boundaries(foreground=False, max_elongation=0, seed_radius=3.5)
    assert thick.decode(boundary, THIN).max() == 1  # 3 pixels to the side, 4 to the next section
    assert thick.decode(boundary).max() == 0  # of cubes, none is as thick


def test_smoothing_is_of_one_width_along_all_axes():
    maps = np.zeros((3, 9, 33, 33), np.float32)
    maps[1:, 4, 16, 16] = 1
    maps[0] = 1
    seen = []
    representation = Distances(smoothing=2.0)
    original = ndimage.gaussian_filter(maps[1], [0.5, 2, 2], mode="mirror", truncate=3)
    for threshold in original.ravel()[[original.argmax()]] * (0.999, 1.001):
        # 1 - map: an object starts where the distance is small
        turned = maps.copy()
        turned[1:] = 1 - maps[1:]
        tuned = representation.tuned(
            center_threshold=float(1 - threshold), boundary_threshold=float(1 - threshold)
        ).tuned(seed_radius=0, min_size=0)
        seen.append(tuned.decode(turned, THIN).max())
    assert seen == [1, 0]


@pytest.mark.parametrize("kind", [Boundaries, Distances, Semantic])
def test_other_numbers_of_axes_are_refused(kind):
    with pytest.raises(ValueError, match=r"must have the axes \(y, x\) or \(z, y, x\), got shape"):
        kind().encode(np.zeros((2, 2, 2, 2), int))


def test_loss_of_volumes_is_that_of_their_voxels():
    generator = torch.Generator().manual_seed(0)
    maps, target = torch.rand(2, 2, 4, 6, 5, generator=generator), torch.zeros(2, 2, 4, 6, 5)
    target[:, :, 1:3] = 1
    flat = dice_loss(maps.reshape(2, 2, 24, 5), target.reshape(2, 2, 24, 5))
    torch.testing.assert_close(dice_loss(maps, target), flat)


# --- from a volume to maps -----------------------------------------------------------------------


class Local(Network):
    """Sees three voxels along each axis, and differently along each."""

    def __init__(self, stride=(1, 2, 2), in_channels=1):
        super().__init__()
        self.in_channels, self.out_channels = in_channels, 2
        self.axes, self.stride = "zyx", stride
        torch.manual_seed(0)
        self.layer = nn.Conv3d(in_channels, 2, 3, padding=1)

    def forward(self, image):
        self.check_image(image)
        return self.layer(image)


@pytest.fixture
def volume(rng):
    return rng.normal(100, 20, (21, 37, 30)).astype(np.float32)


def wrap(network=None, representation=None, **options):
    return TrainedModel(network or Local(), representation or Boundaries(), **options)


def test_tiles_of_volumes_give_what_the_whole_gives(volume):
    whole = predict(volume, wrap())
    assert whole.shape == (2, *volume.shape)
    for tile_size, halo in (((8, 16, 16), (1, 2, 2)), (10, 2), ((5, 64, 12), (2, 2, 4))):
        tiled = predict(volume, wrap(), tile_size=tile_size, halo=halo, batch_size=3)
        np.testing.assert_allclose(tiled, whole, atol=1e-5)
    wrong = predict(volume, wrap(), tile_size=8, halo=0)
    assert np.abs(wrong - whole).max() > 1e-3


def test_all_sixteen_positions_of_a_volume_are_undone(volume):
    """The mean of maps that were turned, predicted and turned back, one by one."""
    square = volume[:, :30, :30]
    known = turns("zyx")
    assert len({turn(np.arange(27).reshape(3, 3, 3)).tobytes() for turn in known}) == 16
    model = wrap(Local(stride=(1, 1, 1)))
    expected = np.mean(
        [[turn.inverse(map_) for map_ in predict(turn(square), model)] for turn in known], axis=0
    )
    found = predict(square, model, test_time_augmentation=16)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(found - predict(square, model)).max() > 1e-3
    with pytest.raises(ValueError, match="must be from 1 to 16, got 17"):
        predict(square, model, test_time_augmentation=17)


def test_scale_may_differ_along_each_axis(volume):
    seen = []

    class Watching(Local):
        def forward(self, image):
            seen.append(tuple(image.shape))
            return super().forward(image)

    maps = predict(volume, wrap(Watching()), scale=(2, 1, 0.5))
    assert maps.shape == (2, *volume.shape)
    assert seen == [(1, 1, 42, 38, 16)]  # 37 and 15, padded to even numbers


@pytest.mark.parametrize("kind", NORMALIZATIONS)
def test_training_and_prediction_prepare_a_volume_alike(rng, kind):
    image = rng.normal(50, 9, (6, 8, 10, 2)).astype(np.float32) * (1, 3)
    labels = np.zeros((6, 8, 10), int)
    sample = Sample("s", lambda: (image, labels))
    crops = RandomCrops(
        [sample], (6, 8, 10), Boundaries(), in_channels=2, axes="zyx", normalization=kind
    )
    cropped = crops.crop(0)[0]
    whole = normalize(image, 2, kind, "zyx")
    assert whole.shape == (2, 6, 8, 10)
    np.testing.assert_allclose(np.sort(cropped.ravel()), np.sort(whole.ravel()), atol=1e-5)
    by_hand = np.moveaxis(image, -1, 0).astype(float)
    if kind == "range":
        expected = (by_hand - by_hand.min()) / np.ptp(by_hand) * 255
    else:
        axes = None if kind == "image" else (1, 2, 3)
        mean, std = by_hand.mean(axes, keepdims=True), by_hand.std(axes, keepdims=True)
        expected = (by_hand - mean) / std
    np.testing.assert_allclose(whole, expected, atol=1e-4)


def test_volumes_are_read_window_by_window(volume, monkeypatch):
    largest = []

    class Lazy:
        shape, dtype = volume.shape, volume.dtype

        def __getitem__(self, box):
            part = volume[box]
            largest.append(part.size)
            return part

    monkeypatch.setattr(
        "vimunet.segmentation.normalization._READ_SIZE", {"yx": (8, 8), "zyx": (4, 16, 16)}
    )
    options = {"tile_size": (4, 8, 8), "halo": (1, 2, 2)}
    np.testing.assert_array_equal(
        predict(Lazy(), wrap(), **options), predict(volume, wrap(), **options)
    )
    assert max(largest) < volume.size / 20


def test_channels_of_volumes_come_last(rng):
    colour = rng.normal(size=(4, 6, 8, 3)).astype(np.float32)
    model = wrap(Local(in_channels=3))
    assert predict(colour, model).shape == (2, 4, 6, 8)
    with pytest.raises(ValueError, match=r"shape \(z, y, x\) or \(z, y, x, c\) .* got \(8, 3\)"):
        predict(colour[0, 0], model)
    assert NormalizedImage(colour, 3, "image", "zyx").shape == (4, 6, 8)


# --- crops ---------------------------------------------------------------------------------------


def numbered(*shape):
    labels = np.arange(1, np.prod(shape) + 1, dtype=np.int32).reshape(shape)
    return Sample("numbered", lambda: (labels.astype(np.uint16), labels), spacing=THIN)


def test_crops_of_volumes_are_cut_and_turned_alike():
    options = {"axes": "zyx", "length": 200, "rotations": True}
    crops = RandomCrops([numbered(5, 12, 14)], (3, 6, 6), Boundaries(), **options)
    steps = set()
    for i in range(200):
        image, labels = crops.crop(i)
        assert image.shape == (1, 3, 6, 6)
        expected = (labels - labels.mean()) / labels.std()
        np.testing.assert_allclose(image[0], expected, atol=1e-4)
        along = [int(np.diff(labels, axis=axis).flat[0]) for axis in range(3)]
        steps.add(tuple(along))
    # each axis runs either way, y and x also swapped, z never
    assert steps == {
        (z * 168, *(step[::order] if order else step))
        for z in (1, -1)
        for step in ((a * 14, b) for a in (1, -1) for b in (1, -1))
        for order in (1, -1)
    }


def test_targets_of_crops_know_the_spacing_of_their_sample():
    crops = RandomCrops([numbered(5, 12, 14)], (5, 12, 14), Seen(), axes="zyx", spacing=9.0)
    crops[0]
    assert Seen.spacings == [THIN]


class Seen(Boundaries):
    """Keeps the spacing with which it was asked."""

    spacings: list = []

    def encode(self, labels, spacing=None):
        self.spacings.append(spacing)
        return super().encode(labels, spacing)


def test_crops_of_volumes_are_changed_and_stay_in_register(rng):
    """A bright object stays bright under its label, whatever is done to the crop."""
    labels = balls(radius=6.0, count=(3, 4, 4))
    image = 100.0 * (labels > 0) + rng.normal(0, 5, labels.shape)
    crops = RandomCrops(
        [Sample("balls", lambda: (image, labels))],
        (16, 32, 32),
        Boundaries(),
        axes="zyx",
        length=40,
        augment=True,
        free_rotation=0.5,
        rotations=True,
    )
    contrasts = []
    for i in range(40):
        pixels, marks = crops.crop(i)
        assert pixels.shape == (1, 16, 32, 32)
        assert np.isfinite(pixels).all()
        if 0.05 < (marks > 0).mean() < 0.95:
            contrasts.append(abs(pixels[0][marks > 0].mean() - pixels[0][marks == 0].mean()))
    assert len(contrasts) > 25
    assert np.median(contrasts) > 0.8


# --- scores and measures -------------------------------------------------------------------------


def test_scores_of_volumes_are_those_of_their_voxels(rng):
    labels = balls()
    prediction = np.roll(labels, (1, 2, 1), (0, 1, 2))
    scores = evaluate(prediction, labels)
    flat = evaluate(prediction.reshape(len(prediction), -1), labels.reshape(len(labels), -1))
    assert scores == flat
    assert 0.2 < scores["mSA"] < 1


def test_measures_of_a_box_by_hand():
    labels = np.zeros((6, 12, 12), np.uint16)
    labels[1:4, 2:8, 3:11] = 7
    image = np.arange(labels.size, dtype=float).reshape(labels.shape)
    table = measure(labels, image, spacing=(0.5, 0.1, 0.1))
    assert table["label"].tolist() == [7]
    assert table["volume_um3"][0] == pytest.approx(3 * 6 * 8 * 0.5 * 0.1 * 0.1)
    assert [table[f"{axis}_um"][0] for axis in "zyx"] == pytest.approx([1.0, 0.45, 0.65])
    assert [table[f"{axis}_px"][0] for axis in "zyx"] == pytest.approx([2, 4.5, 6.5])
    sides = 1.5, 0.6, 0.8
    surface = 2 * (sides[0] * sides[1] + sides[1] * sides[2] + sides[0] * sides[2])
    assert table["surface_um2"][0] == pytest.approx(surface, rel=0.15)
    inside = image[labels > 0]
    for name in ("mean", "std", "min", "max"):
        assert table[f"{name}_intensity"][0] == pytest.approx(getattr(inside, name)())
    assert not table["touches_border"][0]
    assert "area_um2" not in table


@pytest.mark.parametrize("spacing", [(1, 1, 1), (2, 1, 1)])
def test_a_ball_is_round(spacing):
    radius = 12.0
    grid = np.stack(np.meshgrid(*[np.arange(-15, 16)] * 3, indexing="ij"), axis=-1) * spacing
    table = measure((np.linalg.norm(grid, axis=-1) < radius).astype(int), spacing=spacing)
    assert table["volume_um3"][0] == pytest.approx(4 / 3 * np.pi * radius**3, rel=0.02)
    assert table["diameter_um"][0] == pytest.approx(2 * radius, rel=0.01)
    assert table["surface_um2"][0] == pytest.approx(4 * np.pi * radius**2, rel=0.12)
    assert 0.88 < table["sphericity"][0] < 1
    flat = np.zeros((5, 30, 30), int)
    flat[2, 5:25, 5:25] = 1
    assert measure(flat)["sphericity"][0] < 0.5


# --- all of it, on a real block of electron microscopy -------------------------------------------


@pytest.fixture(scope="module")
def anisotropic(tmp_path_factory):
    """Folders of real blocks of which every second section is left: 20 x 10 x 10 nm."""
    root = tmp_path_factory.mktemp("blocks")
    for split in ("train", "test"):
        (sample,) = samples("neurites_3d", split)
        image, labels = sample.read()
        assert sample.spacing == pytest.approx((0.01, 0.01, 0.01))
        for kind, pixels in (("images", image), ("labels", labels)):
            folder = root / split / kind
            folder.mkdir(parents=True)
            size = {"PhysicalSizeZ": 0.02, "PhysicalSizeY": 0.01, "PhysicalSizeX": 0.01}
            tifffile.imwrite(
                folder / f"{sample.name}.ome.tif", pixels[::2], metadata={"axes": "ZYX", **size}
            )
    return root


@pytest.fixture(scope="module")
def trained(anisotropic):
    """Train a small UNet of volumes with the command that users type."""
    output = anisotropic / "run"
    data = ["--images", "train/images", "--labels", "train/labels"]
    data += ["--val-images", "test/images", "--val-labels", "test/labels"]
    command = ["train", *(str(anisotropic / item) if "/" in item else item for item in data)]
    command += ["--axes", "zyx", "--model", "unet", "--representation", "boundary"]
    command += ["--option", "features=8", "--option", "strides=[[1,2,2],[2,2,2]]"]
    command += ["--crop-size", "8", "48", "48", "--batch-size", "1", "--iterations", "120"]
    command += ["--validation-interval", "60", "--lr", "0.003", "--rotations", "--val-crops", "2"]
    command += ["--workers", "0", "--device", "cpu", "--output", str(output)]
    assert main(command) == 0
    return output


def test_training_on_volumes(trained, anisotropic):
    with (trained / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    losses = [float(row["loss"]) for row in rows]
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:5])
    assert all(0 <= float(row["val_mSA"]) <= 1 for row in rows if row["val_mSA"])
    picture = Image.open(trained / "preview" / "0000120.png")
    assert min(picture.size) > 100
    settings = json.loads((trained / "config.json").read_text())
    assert settings["crop_size"] == [8, 48, 48]
    model = load_model(trained / "tuned.safetensors")
    assert (model.axes, model.network.stride) == ("zyx", (2, 4, 4))
    assert model.spacing == pytest.approx((0.02, 0.01, 0.01))
    assert "tuned" in model.info


def test_segmentation_of_volumes(trained, anisotropic, capsys):
    found, again = anisotropic / "found", anisotropic / "again"
    model = str(trained / "tuned.safetensors")
    image = anisotropic / "test" / "images" / "z170.ome.tif"
    command = ["segment", str(image), "--model", model, "--device", "cpu"]
    assert main([*command, "--output", str(found)]) == 0
    labels, place = read_label_tiff(found / "z170.tif")
    assert labels.shape == (12, 96, 96)
    assert place.axes == tuple("zyx")
    assert place.scale == pytest.approx((0.02, 0.01, 0.01))
    truth = read_labels(anisotropic / "test" / "labels" / "z170.ome.tif")
    scores = evaluate(labels, truth, labelled_pixels_only=True)
    nothing = evaluate(np.ones_like(truth), truth, labelled_pixels_only=True)
    assert scores["VI_merge"] < nothing["VI_merge"]
    assert scores["SA50"] > 0
    np.testing.assert_array_equal(labels, segment(image, model, device="cpu"))

    options = ["--test-time-augmentation", "4", "--tile-size", "8", "48", "48", "--halo", "4"]
    assert main([*command, "--output", str(again), *options, "--overlay"]) == 0
    assert len(list(again.iterdir())) == 2
    capsys.readouterr()

    folders = ["--predictions", str(found), "--labels", str(anisotropic / "test" / "labels")]
    assert main(["evaluate", *folders, "--json", "--labelled-pixels-only"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["mean"]["mSA"] == pytest.approx(scores["mSA"])

    table = anisotropic / "objects.csv"
    command = ["measure", "--labels", str(found), "--csv", str(table)]
    assert main([*command, "--images", str(anisotropic / "test" / "images")]) == 0
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == labels.max()
    volumes = np.bincount(labels.ravel())[1:] * 0.02 * 0.01 * 0.01
    assert [float(row["volume_um3"]) for row in rows] == pytest.approx(volumes.tolist())
    assert "mean_intensity" in rows[0]


def test_images_are_refused_by_a_model_of_volumes(trained, samples):
    image = samples / "neurites" / "test" / "images" / "z212.png"
    with pytest.raises(ValueError, match="z212.png must have the axes z, y, x|must have 3 to 5"):
        segment(image, trained / "best.safetensors")


def test_series_of_volumes(volume):
    model = wrap(representation=Boundaries(seed_radius=0, min_size=0))
    series = np.stack([volume, volume[::-1]])
    labels = segment(series, model, axes="tzyx")
    assert labels.shape == series.shape
    first, second = segment(volume, model), segment(volume[::-1], model)
    np.testing.assert_array_equal(labels[0], first)
    np.testing.assert_array_equal(labels[1] > 0, second > 0)
    assert not set(np.unique(labels[0])) & set(np.unique(labels[1])) - {0}
    moved = segment(np.moveaxis(series, 1, -1), model, axes="tyxz")
    np.testing.assert_array_equal(moved, labels)


class Bright(Local):
    """Foreground where the volume is bright: what it sees does not depend on the block."""

    def forward(self, image):
        return torch.cat([4 * image, torch.full_like(image, -20)], dim=1)


def test_blocks_of_a_volume_give_what_the_whole_gives(tmp_path):
    labels = balls(radius=7.0, count=(3, 5, 5))
    gaps = Boundaries(foreground=False).encode(labels)[0] > 0
    image = (200 * ((labels > 0) & ~gaps)).astype(np.uint8)
    group = zarr.open_group(str(tmp_path / "image.zarr"), mode="w")
    group.create_array("0", data=image, chunks=(16, 32, 32))
    scale = {"type": "scale", "scale": [4.0, 1.0, 1.0]}
    axes = [{"name": a, "type": "space", "unit": "micrometer"} for a in "zyx"]
    level = {"path": "0", "coordinateTransformations": [scale]}
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": [level]}]}
    model = wrap(Bright(), Boundaries(seed_radius=0, min_size=0))
    whole = segment(image, model)
    assert whole.max() == 75
    for block_size, margin in (((16, 32, 32), 8), (24, (8, 10, 10))):
        output = tmp_path / f"found_{np.min(block_size)}.zarr"
        job = BlockwiseSegmentation(
            tmp_path / "image.zarr", model, output, block_size=block_size, margin=margin
        )
        assert len(job.blocks) > 8
        job.run()
        assert job.finish() == 75
        written = read_ome_zarr(output)
        assert written.scale == (4.0, 1.0, 1.0)
        found = np.asarray(written.levels[0][...])
        pairs = np.unique(np.stack([found.ravel(), whole.ravel()]).astype(np.int64), axis=1)
        assert pairs.shape[1] == 76


def test_model_file_of_volumes(tmp_path):
    network = build_model("unet", axes="zyx", features=4, depth=1, strides=[[1, 2, 2]])
    save_model(tmp_path / "a.safetensors", wrap(network, spacing=(0.04, 0.01, 0.01)))
    model = load_model(tmp_path / "a.safetensors")
    assert (model.axes, model.spacing) == ("zyx", (0.04, 0.01, 0.01))
    image = torch.randn(1, 1, 3, 4, 6)
    with torch.no_grad():
        assert torch.equal(model.network(image), network.eval()(image))
    with pytest.raises(ValueError, match=r"divisible by \(1, 2, 2\). Pad it to \(3, 4, 6\)"):
        model.network(torch.zeros(1, 1, 3, 3, 5))


def test_samples_of_volumes_are_where_the_notice_says():
    assert "neurites_3d" in (SAMPLES / "NOTICE.md").read_text()
    for split in ("train", "test"):
        (sample,) = samples("neurites_3d", split)
        image, labels = sample.read()
        assert image.shape == labels.shape == (24, 96, 96)
