"""OME-Zarr in, OME-Zarr out: blocks, interruptions and jobs change nothing."""

import re
import shutil
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
import torch
import zarr
from scipy import ndimage

from vimunet.blockwise import blocks as blockwise
from vimunet.blockwise.blocks import BlockwiseSegmentation
from vimunet.cli import main
from vimunet.io.formats import read_image
from vimunet.io.ome_zarr import read_ome_zarr
from vimunet.models.network import Network
from vimunet.representations import Representation, Semantic
from vimunet.scores.folders import evaluate
from vimunet.segmentation.model_file import TrainedModel, load_model
from vimunet.segmentation.segment import segment
from vimunet.segmentation.stitching import stitch_slices


@dataclass(frozen=True)
class BrightParts(Representation):
    """Objects are connected bright pixels: what they are does not depend on the block."""

    name = "bright parts"
    title = "foreground map"
    channels = ("foreground",)
    threshold: float = 0.5
    min_size: int = 0

    def encode(self, labels, spacing=None):
        return (labels > 0)[None].astype(np.float32)

    def decode(self, maps, spacing=None):
        return ndimage.label(maps[0] > self.threshold)[0].astype(np.int32)

    def loss(self, logits, target):
        return (logits - target).square().mean()


class Same(Network):
    """Logits are the standardised pixels."""

    def __init__(self, in_channels=1, axes="yx"):
        super().__init__()
        self.in_channels, self.out_channels = in_channels, 1
        self.axes, self.stride = axes, (1,) * len(axes)
        self.factor = torch.nn.Parameter(torch.ones(1))

    def forward(self, image):
        return self.factor * image[:, :1]


def wrap(network=None):
    return TrainedModel(network or Same(), BrightParts())


def write_image(path, pixels, axes, scale=None, levels=1):
    group = zarr.open_group(str(path), mode="w", zarr_format=3)
    scale = scale or [1.0] * pixels.ndim
    datasets = []
    for level in range(levels):
        step = tuple(slice(None, None, 2**level if axis in "yx" else 1) for axis in axes)
        part = pixels[step]
        array = group.create_array(str(level), shape=part.shape, dtype=part.dtype)
        array[...] = part
        size = [s * (2**level if a in "yx" else 1) for s, a in zip(scale, axes, strict=True)]
        transformations = [{"type": "scale", "scale": size}]
        datasets.append({"path": str(level), "coordinateTransformations": transformations})
    group.attrs["ome"] = {
        "version": "0.5",
        "multiscales": [
            {
                "axes": [
                    {"name": a, "type": "space", "unit": "micrometer"}
                    if a in "zyx"
                    else {"name": a}
                    for a in axes
                ],
                "datasets": datasets,
            }
        ],
    }
    return path


@pytest.fixture
def disks(rng):
    """(4, 100, 130) sections with disks that go through all of them, some of them touching none."""
    plane = np.zeros((100, 130), np.uint8)
    y, x = np.mgrid[:100, :130]
    for row in range(8, 100, 14):
        for column in range(8, 130, 14):
            radius = rng.uniform(3, 6)
            plane[np.hypot(y - row, x - column) < radius] = 200
    return np.stack([np.roll(plane, z, axis=1) for z in range(4)])


def same_objects(one, other):
    pairs = np.unique(np.stack([one.ravel(), other.ravel()]).astype(np.int64), axis=1)
    return pairs.shape[1] == np.unique(one).size == np.unique(other).size


@pytest.mark.parametrize("threshold", [None, 0.3])
@pytest.mark.parametrize(("block_size", "margin"), [(32, 16), (48, 12), (200, 1)])
def test_blocks_give_what_the_whole_gives(disks, tmp_path, block_size, margin, threshold):
    image = write_image(tmp_path / "image.zarr", disks, "zyx", [3, 0.5, 0.25])
    volume = BlockwiseSegmentation(
        image,
        wrap(),
        tmp_path / "found.ome.zarr",
        stitch_threshold=threshold,
        block_size=block_size,
        margin=margin,
    )
    volume.run()
    count = volume.finish()
    found = read_ome_zarr(tmp_path / "found.ome.zarr")
    expected = stitch_slices(np.stack([segment(plane, wrap()) for plane in disks]), threshold)
    assert same_objects(found.levels[0][...], expected)
    assert count == expected.max()
    assert found.is_labels
    assert (found.axes, found.scale) == (("z", "y", "x"), (3, 0.5, 0.25))
    assert found.units == ("micrometer",) * 3
    assert sorted(item.name for item in tmp_path.iterdir()) == ["found.ome.zarr", "image.zarr"]


def test_without_stitching_borders_would_cut(disks, tmp_path, monkeypatch):
    monkeypatch.setattr("vimunet.blockwise.joining.partners", lambda *_: np.empty((0, 2), int))
    image = write_image(tmp_path / "image.zarr", disks, "zyx")
    volume = BlockwiseSegmentation(image, wrap(), tmp_path / "found", block_size=32, margin=16)
    volume.run()
    assert volume.finish() > segment(disks[0], wrap()).max() * len(disks) + 20


def test_section_is_standardised_as_a_whole(tmp_path):
    pixels = np.zeros((64, 64), np.float32)
    pixels[:, 32:] = 10
    pixels[5:9, 5:9] = 1  # bright in its block, dark in the section
    volume = BlockwiseSegmentation(
        write_image(tmp_path / "image.zarr", pixels, "yx"),
        wrap(),
        tmp_path / "found",
        block_size=32,
        margin=1,
    )
    volume.run()
    assert volume.finish() == 1
    assert not read_ome_zarr(tmp_path / "found").levels[0][:, :32].any()


def test_interrupted_and_shared_work_gives_the_same(disks, tmp_path):
    image = write_image(tmp_path / "image.zarr", disks, "zyx")
    options = {"block_size": 64, "margin": 16, "stitch_threshold": 0.3}
    whole = BlockwiseSegmentation(image, wrap(), tmp_path / "whole", **options)
    whole.run()
    whole.finish()

    def stop(done, total):
        assert total == len(whole.blocks)
        if done == 5:
            raise KeyboardInterrupt

    first = BlockwiseSegmentation(image, wrap(), tmp_path / "parts", **options)
    with pytest.raises(KeyboardInterrupt):
        first.run(progress=stop)
    with pytest.raises(RuntimeError, match=r"All 24 blocks must be done, 19 are missing"):
        first.finish()
    jobs = [BlockwiseSegmentation(image, wrap(), tmp_path / "parts", **options) for _ in range(2)]
    todo = jobs[0].missing()
    assert todo == list(range(5, 24))
    jobs[1].run(todo[1::2])
    jobs[0].run(todo[::2])
    assert jobs[1].missing() == []
    jobs[1].finish()
    labels = [read_ome_zarr(tmp_path / name).levels[0][...] for name in ("whole", "parts")]
    np.testing.assert_array_equal(*labels)


def test_parts_of_other_settings_are_refused_and_kept(disks, tmp_path):
    image = write_image(tmp_path / "image.zarr", disks, "zyx", levels=2)
    BlockwiseSegmentation(image, wrap(), tmp_path / "found").run([0])
    other = Same()
    other.factor.data *= 2
    for model, options, name in (
        (wrap(other), {}, "weights"),
        (replace(wrap(), representation=BrightParts(0.6)), {}, "representation"),
        (wrap(), {"scale": 2.0}, "block_size, margin, prediction"),
        (wrap(), {"halo": 32}, "prediction"),
        (wrap(), {"block_size": 512, "margin": 5}, "block_size, margin"),
        (wrap(), {"level": 1}, "level, spacing"),
    ):
        with pytest.raises(
            ValueError, match=f"differs in (image written, )?{name}\\. Use those of"
        ):
            BlockwiseSegmentation(image, model, tmp_path / "found", **options)
    assert len(BlockwiseSegmentation(image, wrap(), tmp_path / "found").missing()) == 3


def test_precision_is_the_same_on_every_machine(disks, tmp_path, monkeypatch):
    image = write_image(tmp_path / "image.zarr", disks, "zyx")
    monkeypatch.setattr("vimunet.segmentation.devices.bfloat16_is_fast", lambda: False)
    BlockwiseSegmentation(image, wrap(), tmp_path / "found").run([0])
    monkeypatch.setattr("vimunet.segmentation.devices.bfloat16_is_fast", lambda: True)
    with pytest.raises(ValueError, match="differs in precision. Use those of settings.json"):
        BlockwiseSegmentation(image, wrap(), tmp_path / "found", precision="auto")
    same = BlockwiseSegmentation(image, wrap(), tmp_path / "found", precision="float32")
    assert same.missing() == [1, 2, 3]


def test_image_that_was_written_anew_is_segmented_anew(disks, tmp_path):
    image = write_image(tmp_path / "image.zarr", disks, "zyx")
    BlockwiseSegmentation(image, wrap(), tmp_path / "found").run([0])
    shutil.rmtree(image)
    write_image(image, disks[:, ::-1], "zyx")
    with pytest.raises(ValueError, match="differs in image written"):
        BlockwiseSegmentation(image, wrap(), tmp_path / "found")


def test_options_that_fail_leave_nothing_behind(disks, tmp_path):
    image = write_image(tmp_path / "image.zarr", disks, "zyx")
    with pytest.raises(ValueError, match="z = 0: `tile_size` must be at least"):
        BlockwiseSegmentation(image, wrap(), tmp_path / "found", tile_size=0).run()
    with pytest.raises(ValueError, match="`scale` must be from 1/16 to 16, got 0"):
        BlockwiseSegmentation(image, wrap(), tmp_path / "found", scale=0)
    assert [item.name for item in tmp_path.iterdir()] == ["image.zarr"]


def prepared(disks, tmp_path):
    image = write_image(tmp_path / "image.zarr", disks, "zyx")
    volume = BlockwiseSegmentation(image, wrap(), tmp_path / "found", block_size=64, margin=16)
    volume.run()
    return image, volume


def test_only_one_process_joins(disks, tmp_path, monkeypatch):
    image, volume = prepared(disks, tmp_path)
    late = BlockwiseSegmentation(image, wrap(), tmp_path / "found", block_size=64, margin=16)
    write = blockwise.write_ome_zarr_labels

    def meanwhile(*args, **kwargs):
        with pytest.raises(RuntimeError, match="vanished: another process joined the blocks"):
            late.finish()
        with pytest.raises(ValueError, match="either the blocks are being joined now, or that was"):
            BlockwiseSegmentation(image, wrap(), tmp_path / "found")
        with pytest.raises(RuntimeError, match="vanished: another process joined the blocks"):
            late.run([3])
        write(*args, **kwargs)

    monkeypatch.setattr(blockwise, "write_ome_zarr_labels", meanwhile)
    assert volume.finish() > 50
    assert read_ome_zarr(tmp_path / "found").levels[0][...].any()
    assert sorted(item.name for item in tmp_path.iterdir()) == ["found", "image.zarr"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_job_that_is_too_late_leaves_nothing_behind(disks, tmp_path, monkeypatch, overwrite):
    image = write_image(tmp_path / "image.zarr", disks, "zyx")

    def job():
        return BlockwiseSegmentation(image, wrap(), tmp_path / "found", overwrite=overwrite)

    if overwrite:  # labels of an earlier day
        job().run()
        job().finish()
    volume, during, after = job(), job(), job()
    volume.run()
    write = blockwise.write_ome_zarr_labels

    def meanwhile(*args, **kwargs):
        with pytest.raises(RuntimeError, match="another process joined the blocks"):
            during.run([0])
        write(*args, **kwargs)

    monkeypatch.setattr(blockwise, "write_ome_zarr_labels", meanwhile)
    volume.finish()
    with pytest.raises(RuntimeError, match="another process joined the blocks"):
        after.run([0])
    assert sorted(item.name for item in tmp_path.iterdir()) == ["found", "image.zarr"]


def test_blocks_that_a_crash_left_incomplete_are_missing(disks, tmp_path):
    image, volume = prepared(disks, tmp_path)
    whole = [volume._read(number, "labels") for number in range(len(volume.blocks))]
    empty, half = (tmp_path / "found.parts" / f"{number}.npz" for number in (1, 3))
    empty.write_bytes(b"")
    half.write_bytes(half.read_bytes()[:100])
    assert volume.missing() == [1, 3]
    with pytest.raises(RuntimeError, match=r"All 24 blocks must be done, 2 are missing"):
        volume.finish()
    volume.run()
    for number, labels in enumerate(whole):
        np.testing.assert_array_equal(volume._read(number, "labels"), labels)
    assert volume.finish() > 50


def test_join_that_fails_loses_no_block(disks, tmp_path, monkeypatch):
    image, volume = prepared(disks, tmp_path)
    write = blockwise.write_ome_zarr_labels

    def unplugged(*_, **__):
        raise OSError("unplugged")

    monkeypatch.setattr(blockwise, "write_ome_zarr_labels", unplugged)
    with pytest.raises(OSError, match="unplugged"):
        volume.finish()
    assert volume.missing() == []
    monkeypatch.setattr(blockwise, "write_ome_zarr_labels", write)
    assert volume.finish() > 50


def test_join_that_was_killed_while_it_deleted_parts(disks, tmp_path, monkeypatch):
    image, volume = prepared(disks, tmp_path)
    killed = SimpleNamespace(rmtree=lambda folder: (folder / "3.npz").unlink())
    monkeypatch.setattr(blockwise, "shutil", killed)
    volume.finish()
    whole = read_ome_zarr(tmp_path / "found").levels[0][...]
    (tmp_path / "found.joining").rename(tmp_path / "found.parts")
    options = {"block_size": 64, "margin": 16, "overwrite": True}
    again = BlockwiseSegmentation(image, wrap(), tmp_path / "found", **options)
    assert again.missing() == [3]
    monkeypatch.undo()
    again.run()
    again.finish()
    np.testing.assert_array_equal(read_ome_zarr(tmp_path / "found").levels[0][...], whole)


def test_places_that_would_lose_data_are_refused(disks, tmp_path):
    image = write_image(tmp_path / "image.zarr", disks, "zyx")
    for output in (image, image / "0", tmp_path):
        with pytest.raises(ValueError, match="`output` must lie outside of the image"):
            BlockwiseSegmentation(image, wrap(), output, overwrite=True)
    (tmp_path / "there").mkdir()
    with pytest.raises(FileExistsError, match="there exists already"):
        BlockwiseSegmentation(image, wrap(), tmp_path / "there")


def test_sections_are_stitched_over_all_blocks_together(tmp_path):
    """One wide object over two: it goes on as the larger one, wherever borders are."""
    planes = np.zeros((2, 40, 90), np.uint8)
    planes[0, 10:30, 5:85] = 200
    planes[1, 10:30, 5:40] = planes[1, 10:30, 42:85] = 200
    image = write_image(tmp_path / "image.zarr", planes, "zyx")
    for block_size in (41, 100):
        volume = BlockwiseSegmentation(
            image,
            wrap(),
            tmp_path / "found",
            stitch_threshold=0.3,
            overwrite=True,
            block_size=block_size,
            margin=90,
        )
        volume.run()
        assert volume.finish() == 2
        found = read_ome_zarr(tmp_path / "found").levels[0][:, 20]
        assert found[0, 5] == found[0, 84] == found[1, 84] != found[1, 5] > 0


def test_a_piece_at_a_border_may_be_small_but_an_object_may_not(tmp_path):
    plane = np.zeros((30, 80), np.uint8)
    plane[5:15, 20:41] = 200  # one column of it lies in the second block
    plane[20:22, 60:63] = 200
    image = write_image(tmp_path / "image.zarr", plane, "yx")
    model = replace(wrap(), representation=BrightParts(min_size=20))
    volume = BlockwiseSegmentation(image, model, tmp_path / "found", block_size=40, margin=10)
    volume.run()
    assert volume.finish() == 1
    found = read_ome_zarr(tmp_path / "found").levels[0][...]
    np.testing.assert_array_equal(found[:18] > 0, plane[:18] > 0)
    assert not found[18:].any()


def test_blocks_grow_where_the_network_sees_less(disks, tmp_path):
    image = write_image(tmp_path / "image.zarr", disks, "zyx")
    options = {"block_size": 30, "margin": 8}
    for scale, first in ((1, (30, 38)), (0.5, (60, 76)), (2, (15, 19))):
        volume = BlockwiseSegmentation(image, wrap(), tmp_path / "o", scale=scale, **options)
        assert (volume.blocks[0].inner[1].stop, volume.blocks[0].window[1].stop) == first


@pytest.mark.parametrize(
    ("scale", "margin", "block", "window"),
    [
        (1, 128, 2048, 2304),
        (1 / 2, 128, 4096, 4608),
        (1 / 8, 128, 6144, 8192),
        (1 / 16, 128, 4096, 8192),
        (1 / 8, 512, 4096, 12288),
    ],
)
def test_blocks_of_much_reduced_images_fit_into_memory(tmp_path, scale, margin, block, window):
    image = write_image(tmp_path / "image.zarr", np.zeros((8, 20_000), np.uint8), "yx")
    options = {"scale": scale, "margin": margin}
    second = BlockwiseSegmentation(image, wrap(), tmp_path / "found", **options).blocks[1]
    assert second.inner[1] == slice(block, 2 * block)
    assert second.window[1] == slice((3 * block - window) // 2, (3 * block + window) // 2)


def test_missing_pixels_are_reported_with_their_section(disks, tmp_path):
    pixels = disks.astype(np.float32)
    pixels[2, 3, 3] = np.nan
    image = write_image(tmp_path / "image.zarr", pixels, "zyx")
    volume = BlockwiseSegmentation(image, wrap(), tmp_path / "found")
    with pytest.raises(ValueError, match="z = 2: Image contains NaN"):
        volume.run()
    assert volume.missing() == [2, 3]


def test_level_has_the_geometry_that_it_declares(disks, tmp_path):
    image = write_image(tmp_path / "image.zarr", disks[:, :65, :67], "zyx", [3, 0.5, 0.5])
    group = zarr.open_group(str(image), mode="a")
    half = group.create_array("half", shape=(4, 32, 33), dtype="uint8")
    half[...] = disks[:, :64:2, :66:2]
    described = group.attrs["ome"]
    moved = {"type": "translation", "translation": [0, 0.25, 0.25]}
    described["multiscales"][0]["datasets"].append(
        {
            "path": "half",
            "coordinateTransformations": [{"type": "scale", "scale": [3, 1, 1]}, moved],
        }
    )
    group.attrs["ome"] = described
    volume = BlockwiseSegmentation(image, wrap(), tmp_path / "found", level=1)
    volume.run()
    volume.finish()
    found = read_ome_zarr(tmp_path / "found")
    assert found.levels[0].shape == (4, 32, 33)
    assert found.scale == (3, 1, 1)
    assert found.translate == (0, 0.25, 0.25)


def test_sections_of_time_alone_are_stitched_like_those_of_depth(disks, tmp_path):
    found = []
    for axes in ("zyx", "tyx"):
        image = write_image(tmp_path / f"{axes}.zarr", disks, axes)
        volume = BlockwiseSegmentation(image, wrap(), tmp_path / axes, stitch_threshold=0.3)
        volume.run()
        volume.finish()
        found.append(read_ome_zarr(tmp_path / axes).levels[0][...])
    np.testing.assert_array_equal(*found)


def test_stitching_needs_sections(disks, tmp_path):
    image = write_image(tmp_path / "image.zarr", disks[0], "yx")
    with pytest.raises(ValueError, match="`stitch_threshold` is for images with sections"):
        BlockwiseSegmentation(image, wrap(), tmp_path / "found", stitch_threshold=0.5)


def test_level_time_and_channels(disks, tmp_path):
    other = np.random.default_rng(0).integers(0, 255, disks.shape, dtype=np.uint8)
    pixels = np.stack([other, disks], axis=1)[:, :, None]  # t c z y x
    image = write_image(tmp_path / "image.zarr", pixels, "tczyx", [2, 1, 3, 0.5, 0.5], levels=2)
    with pytest.raises(ValueError, match="`channel` must be chosen, from 0 to 1: the model"):
        BlockwiseSegmentation(image, wrap(), tmp_path / "found")
    for wrong in ({"channel": 2}, {"channel": 1, "level": 2}, {"channel": 1, "level": -1}):
        with pytest.raises(ValueError, match="must be from 0 to 1( for .*image.zarr)?, got"):
            BlockwiseSegmentation(image, wrap(), tmp_path / "found", **wrong)
    volume = BlockwiseSegmentation(
        image, wrap(), tmp_path / "found", channel=1, level=1, stitch_threshold=0.3
    )
    volume.run()
    volume.finish()
    found = read_ome_zarr(tmp_path / "found")
    assert found.axes == ("t", "z", "y", "x")
    assert found.scale == (2, 3, 1, 1)
    expected = np.stack([segment(plane[::2, ::2], wrap()) for plane in disks])
    assert same_objects(found.levels[0][:, 0], stitch_slices(expected, None))  # t is not stitched


def test_all_channels_for_a_network_that_takes_them(disks, tmp_path):
    pixels = np.stack([disks[0], disks[1], disks[2]])
    image = write_image(tmp_path / "image.zarr", pixels, "cyx")
    volume = BlockwiseSegmentation(image, wrap(Same(3)), tmp_path / "found", block_size=64)
    volume.run()
    volume.finish()
    expected = segment(np.moveaxis(pixels, 0, -1), wrap(Same(3)))
    assert same_objects(read_ome_zarr(tmp_path / "found").levels[0][...], expected)


def test_classes_are_refused(disks, tmp_path):
    image = write_image(tmp_path / "image.zarr", disks, "zyx")
    with pytest.raises(ValueError, match="`model` must find objects"):
        BlockwiseSegmentation(image, TrainedModel(Same(), Semantic()), tmp_path / "found")


# --- the command, with an embedded model on a real volume ---------------------------------------


@pytest.fixture
def sections(samples):
    files = sorted((samples / "neurites" / "test" / "images").iterdir())
    return np.stack([read_image(file) for file in files])


@pytest.mark.parametrize(("name", "file"), [("nuclei", "28d33efef218"), ("phase", "set12")])
def test_real_image_in_blocks_is_nearly_that_in_one_piece(samples, tmp_path, name, file):
    """Nearly, because the network sees the whole of what it is given."""
    pixels = read_image(samples / name / "test" / "images" / f"{file}.png")
    image = write_image(tmp_path / "image.zarr", pixels, "yx")
    model = load_model(name)
    volume = BlockwiseSegmentation(image, model, tmp_path / "found", block_size=128, margin=64)
    volume.run()
    whole = segment(pixels, model)
    assert volume.finish() == pytest.approx(whole.max(), abs=1)
    found = read_ome_zarr(tmp_path / "found").levels[0][...].astype(np.int64)
    assert evaluate(found, whole)["SA50"] > 0.9


def test_series_of_bioformats2raw(sections, tmp_path, capsys):
    root = tmp_path / "slide.zarr"
    zarr.open_group(str(root), mode="w").attrs["ome"] = {"bioformats2raw.layout": 3}
    write_image(root / "0", sections[:1, :64, :64], "zyx")
    command = ["segment", "--model", "neurites", "--output", str(tmp_path / "found")]
    assert main([*command, str(root)]) == 0
    write_image(root / "1", sections[:1, :64, :64], "zyx")
    with pytest.raises(ValueError, match="must be an image with `multiscales`, but holds 0, 1"):
        read_ome_zarr(root)
    assert main([*command, str(root / "0"), str(root / "1")]) == 0
    written = sorted(item.name for item in (tmp_path / "found").iterdir())
    assert written == ["slide.ome.zarr", "slide_0.ome.zarr", "slide_1.ome.zarr"]
    found = [read_ome_zarr(tmp_path / "found" / name).levels[0][...] for name in written]
    assert found[0].max() > 3
    np.testing.assert_array_equal(found[0], found[2])


def test_command_in_one_go_and_in_shares(sections, tmp_path, capsys):
    image = str(write_image(tmp_path / "em.ome.zarr", sections[:, :96, :96], "zyx", [10, 5, 5]))
    command = ["segment", image, "--model", "neurites", "--output"]
    stitched = [str(tmp_path / "once"), "--stitch-threshold", "0.1"]
    assert main([*command, *stitched]) == 0
    written = tmp_path / "once" / "em.ome.zarr"
    found = read_ome_zarr(written)
    labels = found.levels[0][...]
    assert found.scale == (10, 5, 5)
    model = load_model("neurites")
    planes = np.stack([segment(plane, model) for plane in sections[:, :96, :96]])
    np.testing.assert_array_equal(labels, stitch_slices(planes, 0.1))
    assert f"{image}: {labels.max()} objects" in capsys.readouterr().out

    shares = [*command, str(tmp_path / "shares"), "--stitch-threshold", "0.1"]
    assert main([*shares, "--part", "2/2"]) == 0
    assert "2 of 3 blocks done\nOnce all blocks are done" in capsys.readouterr().out
    assert main([*shares, "--part", "1/2"]) == 0
    assert "3 of 3 blocks done" in capsys.readouterr().out
    assert not (tmp_path / "shares" / "em.ome.zarr").exists()
    assert main(shares) == 0
    again = read_ome_zarr(tmp_path / "shares" / "em.ome.zarr").levels[0][...]
    np.testing.assert_array_equal(again, labels)
    assert main(shares) == 2
    assert "exist already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--overlay"], "`--overlay` is for images other than OME-Zarr .*, got .*em.zarr"),
        (["--save-maps"], "`--save-maps` is for images other than OME-Zarr"),
        (["--part", "3/2"], "must be K/N with 1 <= K <= N, e.g. 3/16, got '3/2'"),
        (["--part", "x"], "must be K/N"),
        (["--stitch-threshold", "1.5"], "must be above 0 and at most 1, got 1.5"),
        (["--stitch-threshold", "a"], "invalid"),
        (["--level", "1"], "`level` must be from 0 to 0, got 1"),
    ],
)
def test_wrong_options_of_the_command(sections, tmp_path, capsys, options, message):
    image = write_image(tmp_path / "em.zarr", sections[:, :32, :32], "zyx")
    command = ["segment", str(image), "--model", "neurites", "--output", str(tmp_path / "out")]
    try:
        assert main([*command, *options]) != 0
    except SystemExit as exit:
        assert exit.code == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out" / "em.ome.zarr").exists()


def test_options_of_volumes_with_another_image(samples, tmp_path, capsys):
    image = samples / "neurites" / "test" / "images" / "z212.png"
    for options in (["--level", "0"], ["--part", "1/2"]):
        assert main(["segment", str(image), "--model", "neurites", *options]) == 2
        assert "is for OME-Zarr images, got" in capsys.readouterr().err


def test_stack_of_a_tiff_is_stitched(sections, tmp_path):
    tifffile.imwrite(tmp_path / "em.tif", sections[:, :96, :96], metadata={"axes": "ZYX"})
    command = ["segment", str(tmp_path / "em.tif"), "--model", "neurites"]
    for name, options in (("apart", []), ("joined", ["--stitch-threshold", "0.1"])):
        assert main([*command, "--output", str(tmp_path / name), *options]) == 0
    apart, joined = (tifffile.imread(tmp_path / name / "em.tif") for name in ("apart", "joined"))
    assert all(np.unique(plane).size > 5 for plane in apart)
    assert not set(np.unique(apart[0])) & set(np.unique(apart[1])) - {0}
    assert same_objects(joined, stitch_slices(apart, 0.1))
    assert joined.max() < apart.max()
