"""OME-Zarr labels: what is written is what others read, block by block, or not at all."""

import json
from pathlib import Path

import numpy as np
import pytest
import zarr
from yaozarrs import v05, validate_zarr_store

from vimunet.io import ome_zarr as volumes
from vimunet.io.ome_zarr import (
    add_ome_zarr_labels,
    is_ome_zarr,
    read_ome_zarr,
    write_ome_zarr_labels,
)


@pytest.fixture
def labels(rng):
    return rng.integers(0, 70_000, (3, 30, 41), dtype=np.int32)


@pytest.fixture
def small_levels(monkeypatch):
    """Blocks of 8 x 8 pixels and levels down to 16 pixels, so that small arrays have many."""
    monkeypatch.setattr(volumes, "_CHUNK", 8)
    monkeypatch.setattr(volumes, "_SMALLEST_LEVEL", 16)


def test_round_trip(labels, tmp_path):
    path = tmp_path / "new" / "cells.ome.zarr"
    write_ome_zarr_labels(path, labels, scale=(2, 0.5, 0.25), translate=(0, 5, 6), units="µm")
    volume = read_ome_zarr(path)
    np.testing.assert_array_equal(volume.levels[0][:], labels)
    assert volume.levels[0].dtype == np.int32
    assert volume.axes == ("z", "y", "x")
    assert volume.scale == (2, 0.5, 0.25)
    assert volume.translate == (0, 5, 6)
    assert volume.units == ("micrometer",) * 3
    assert volume.is_labels
    assert [item.name for item in path.parent.iterdir()] == ["cells.ome.zarr"]


def test_metadata_as_ngff_05_wants_them(labels, tmp_path):
    path = tmp_path / "cells.zarr"
    write_ome_zarr_labels(path, labels, axes="tyx", scale=(0.5, 0.25), units="nm")
    written = json.loads((path / "zarr.json").read_text())
    assert written["zarr_format"] == 3
    assert written["attributes"]["ome"] == {
        "version": "0.5",
        "multiscales": [
            {
                "name": "cells",
                "axes": [
                    {"name": "t", "type": "time"},
                    {"name": "y", "type": "space", "unit": "nanometer"},
                    {"name": "x", "type": "space", "unit": "nanometer"},
                ],
                "datasets": [
                    {
                        "path": "0",
                        "coordinateTransformations": [{"type": "scale", "scale": [1, 0.5, 0.25]}],
                    }
                ],
            }
        ],
        "image-label": {},
    }
    array = json.loads((path / "0" / "zarr.json").read_text())
    assert array["dimension_names"] == ["t", "y", "x"]
    assert array["chunk_grid"]["configuration"]["chunk_shape"] == [1, 30, 41]


def test_pyramid(labels, tmp_path, small_levels):
    path = tmp_path / "cells.zarr"
    write_ome_zarr_labels(path, labels, scale=(3, 0.5, 0.25), translate=(0, 7, 7))
    levels = read_ome_zarr(path).levels
    assert [level.shape for level in levels] == [(3, 30, 41), (3, 15, 21), (3, 8, 11)]
    for step, level in zip((1, 2, 4), levels, strict=True):
        np.testing.assert_array_equal(level[:], labels[:, ::step, ::step])
        assert level.chunks == (1, 8, 8)
    (multiscale,) = zarr.open_group(str(path)).attrs["ome"]["multiscales"]
    scales = [d["coordinateTransformations"][0]["scale"] for d in multiscale["datasets"]]
    assert scales == [[3, 0.5, 0.25], [3, 1, 0.5], [3, 2, 1]]
    moved = [d["coordinateTransformations"][1]["translation"] for d in multiscale["datasets"]]
    assert moved == [[0, 7, 7]] * 3


def test_large_arrays_are_read_block_by_block(labels, tmp_path, small_levels):
    class Lazy:
        shape, dtype = labels.shape, labels.dtype
        largest = 0

        def __getitem__(self, block):
            part = labels[block]
            Lazy.largest = max(Lazy.largest, part.size)
            return part

    write_ome_zarr_labels(tmp_path / "cells.zarr", Lazy())
    np.testing.assert_array_equal(read_ome_zarr(tmp_path / "cells.zarr").levels[0][:], labels)
    assert Lazy.largest == 64


@pytest.mark.parametrize("dtype", ["uint8", "int16", ">u2", "uint32", "int64", "uint64"])
@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (2, 5, 7), (2, 3, 5, 7)])
def test_types_and_shapes(tmp_path, rng, dtype, shape):
    labels = rng.integers(0, 100, shape).astype(dtype)
    write_ome_zarr_labels(tmp_path / "x.zarr", labels)
    volume = read_ome_zarr(tmp_path / "x.zarr")
    np.testing.assert_array_equal(volume.levels[0][:], labels)
    assert "".join(volume.axes) == "tzyx"[-len(shape) :]
    assert volume.scale == (1,) * len(shape)
    assert volume.units == (None,) * len(shape)


def test_labels_inside_an_image(labels, tmp_path, small_levels):
    image = tmp_path / "image.zarr"
    group = zarr.open_group(str(image), mode="w", zarr_format=3)
    axes = [{"name": name} for name in "czyx"]
    axes[3]["unit"] = "micrometer"
    transformations = [{"type": "scale", "scale": [1, 4, 0.5, 0.5]}]
    datasets = [{"path": "a", "coordinateTransformations": transformations}]
    group.attrs["ome"] = {
        "version": "0.5",
        "multiscales": [{"axes": axes, "datasets": datasets}],
        "omero": {"kept": True},
    }
    group.create_array("a", shape=(2, *labels.shape), dtype="uint8")
    path = add_ome_zarr_labels(image, "cells", labels)
    assert path == image / "labels" / "cells"
    volume = read_ome_zarr(path)
    np.testing.assert_array_equal(volume.levels[0][:], labels)
    assert len(volume.levels) == 1  # as many as the image
    assert volume.axes == ("z", "y", "x")
    assert volume.scale == (4, 0.5, 0.5)
    assert volume.units == (None, None, "micrometer")
    assert group.attrs["ome"]["omero"] == {"kept": True}
    with pytest.raises(FileExistsError, match="cells exists already"):
        add_ome_zarr_labels(image, "cells", labels)
    add_ome_zarr_labels(image, "nuclei", labels)
    add_ome_zarr_labels(image, "cells", labels * 0, overwrite=True)
    listed = zarr.open_group(str(image / "labels")).attrs["ome"]
    assert listed == {"version": "0.5", "labels": ["nuclei", "cells"]}
    assert not read_ome_zarr(path).levels[0][:].any()
    written = zarr.open_group(str(path)).attrs["ome"]["image-label"]
    assert written == {"source": {"image": "../../"}}

    with pytest.raises(ValueError, match=r"size \(3, 30, 41\) of the image along zyx, got \(3, 30"):
        add_ome_zarr_labels(image, "other", labels[:, :, :-1])
    with pytest.raises(ValueError, match="`name` must be the name of a folder, got '../x'"):
        add_ome_zarr_labels(image, "../x", labels)


def test_agrees_with_the_models_of_the_format(labels, tmp_path, small_levels):
    path = tmp_path / "a.zarr"
    write_ome_zarr_labels(path, labels, scale=(2, 0.5, 0.5), units="um")
    assert isinstance(validate_zarr_store(path).ome_metadata(), v05.LabelImage)
    add_ome_zarr_labels(path, "cells", labels)
    validate_zarr_store(path)
    inner = validate_zarr_store(path / "labels" / "cells")
    assert isinstance(inner.ome_metadata(), v05.LabelImage)
    assert validate_zarr_store(path / "labels").ome_metadata().labels == ["cells"]
    description = json.loads((path / "zarr.json").read_text())
    description["attributes"]["ome"]["multiscales"][0]["axes"] = [{"name": "y"}]
    (path / "zarr.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match="axes"):
        validate_zarr_store(path)


def test_reads_version_04_and_both_kinds_of_transformations(tmp_path):
    group = zarr.open_group(str(tmp_path / "old.zarr"), mode="w", zarr_format=2)
    group.create_array("s0", shape=(4, 6), dtype="uint16")
    group.attrs["multiscales"] = [
        {
            "version": "0.4",
            "axes": [{"name": "y", "unit": "nanometer"}, {"name": "x", "unit": "nanometer"}],
            "datasets": [
                {
                    "path": "s0",
                    "coordinateTransformations": [
                        {"type": "scale", "scale": [2, 3]},
                        {"type": "translation", "translation": [10, 20]},
                    ],
                }
            ],
            "coordinateTransformations": [{"type": "scale", "scale": [5, 7]}],
        }
    ]
    volume = read_ome_zarr(tmp_path / "old.zarr")
    assert volume.scale == (10, 21)
    assert volume.translate == (50, 140)
    assert volume.units == ("nanometer", "nanometer")
    assert not volume.is_labels
    with pytest.raises(ValueError, match=r"old.zarr must be of OME-Zarr version 0.5"):
        add_ome_zarr_labels(tmp_path / "old.zarr", "cells", np.zeros((4, 6), int))


@pytest.mark.parametrize("axes", [["z", "y", "x"], None])
def test_reads_versions_before_04(tmp_path, axes):
    group = zarr.open_group(str(tmp_path / "old.zarr"), mode="w", zarr_format=2)
    group.create_array("0", shape=(2, 4, 6) if axes else (1, 1, 2, 4, 6), dtype="uint16")
    multiscale = {"datasets": [{"path": "0"}]} | ({} if axes is None else {"axes": axes})
    group.attrs["multiscales"] = [multiscale]
    volume = read_ome_zarr(tmp_path / "old.zarr")
    assert volume.axes == tuple(axes or "tczyx")
    assert set(volume.scale) == {1}
    assert set(volume.units) == {None}


@pytest.mark.parametrize("multiscale", ["text", {}, {"datasets": [{}]}, {"datasets": 3}])
def test_nonsense_is_no_ome_zarr(tmp_path, multiscale):
    zarr.open_group(str(tmp_path / "x.zarr"), mode="w").attrs["multiscales"] = [multiscale]
    with pytest.raises(ValueError, match=r"The description of .*x.zarr must be as NGFF wants it"):
        read_ome_zarr(tmp_path / "x.zarr")
    assert not is_ome_zarr(tmp_path / "x.zarr")


def test_nothing_is_replaced_by_half_a_file(labels, tmp_path):
    path = tmp_path / "cells.zarr"
    write_ome_zarr_labels(path, labels)
    with pytest.raises(FileExistsError, match="cells.zarr exists already"):
        write_ome_zarr_labels(path, labels * 0)

    class Broken:
        shape, dtype = labels.shape, labels.dtype

        def __getitem__(self, block):
            if block[0].start == 2:
                raise OSError("unplugged")
            return np.zeros(labels.shape, labels.dtype)[block]

    for name in ("cells.zarr", "others.zarr"):
        with pytest.raises(OSError, match="unplugged"):
            write_ome_zarr_labels(tmp_path / name, Broken(), overwrite=True)
    assert [item.name for item in tmp_path.iterdir()] == ["cells.zarr"]
    np.testing.assert_array_equal(read_ome_zarr(path).levels[0][:], labels)
    write_ome_zarr_labels(path, labels * 0, overwrite=True)
    assert not read_ome_zarr(path).levels[0][:].any()
    assert [item.name for item in tmp_path.iterdir()] == ["cells.zarr"]


def test_what_was_there_comes_back_if_the_new_file_cannot_take_its_place(
    labels, tmp_path, monkeypatch
):
    path = tmp_path / "cells.zarr"
    write_ome_zarr_labels(path, labels)
    rename = Path.rename

    def failing(source, target):
        if source.suffix == ".new":
            raise OSError("busy")
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="busy"):
        write_ome_zarr_labels(path, labels * 0, overwrite=True)
    np.testing.assert_array_equal(read_ome_zarr(path).levels[0][:], labels)
    assert [item.name for item in tmp_path.iterdir()] == ["cells.zarr"]


def test_a_folder_that_is_no_zarr_file_is_never_replaced(labels, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="thesis is no Zarr file and is not replaced"):
        write_ome_zarr_labels(tmp_path / "thesis", labels, overwrite=True)
    assert (tmp_path / "thesis" / "chapter.txt").exists()


def test_unknown_units_are_left_out_with_a_warning(labels, tmp_path):
    with pytest.warns(UserWarning, match="The unit 'ell' is not known to OME-Zarr"):
        write_ome_zarr_labels(tmp_path / "a.zarr", labels, units="ell")
    assert read_ome_zarr(tmp_path / "a.zarr").units == (None, None, None)
    units = ["min", "nm", "NM"]
    write_ome_zarr_labels(tmp_path / "b.zarr", labels, axes="tyx", units=[*units[:2], None])
    assert read_ome_zarr(tmp_path / "b.zarr").units == ("minute", "nanometer", None)


def test_wrong_arguments(labels, tmp_path):
    path = tmp_path / "a.zarr"
    with pytest.raises(TypeError, match="`labels` must be integers, got float64"):
        write_ome_zarr_labels(path, labels * 1.0)
    with pytest.raises(ValueError, match=r"with z or t or both in front, got shape \(0, 4\)"):
        write_ome_zarr_labels(path, np.zeros((0, 4), int))
    with pytest.raises(ValueError, match=r"fit shape \(3, 30, 41\), got 'yxz'"):
        write_ome_zarr_labels(path, labels, axes="yxz")
    with pytest.raises(ValueError, match=r"`scale` must have 2 or 3 numbers, got \(1.0,\)"):
        write_ome_zarr_labels(path, labels, scale=[1])
    with pytest.raises(ValueError, match=r"`scale` must be positive, got \(1.0, 0.0, 1.0\)"):
        write_ome_zarr_labels(path, labels, scale=(1, 0, 1))
    with pytest.raises(ValueError, match="`units` must be one word or 3"):
        write_ome_zarr_labels(path, labels, units=["um"])
    with pytest.raises(FileNotFoundError, match="No OME-Zarr file .*a.zarr"):
        read_ome_zarr(path)
    with pytest.raises(FileNotFoundError, match="No OME-Zarr file .*a.zarr"):
        add_ome_zarr_labels(path, "cells", labels)
    assert not list(tmp_path.iterdir())
    zarr.open_group(str(path), mode="w").create_array("other", shape=(2,), dtype="u1")
    with pytest.raises(ValueError, match="must be an image with `multiscales`, but holds other"):
        read_ome_zarr(path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="folder must be an OME-Zarr file"):
        read_ome_zarr(tmp_path / "folder")
