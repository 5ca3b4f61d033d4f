"""CREMI: split along z, labels of single slices, and files that are not as they should be."""

import pickle

import h5py
import numpy as np
import pytest
from scipy.ndimage import label as scipy_label
from torch.utils.data import DataLoader

from vimunet.datasets.cremi import cremi_samples, slice_labels


def write(path, raw=None, ids=None):
    with h5py.File(path, "w") as file:
        if raw is not None:
            file["volumes/raw"] = raw
        if ids is not None:
            file.create_dataset("volumes/labels/neuron_ids", data=ids, compression="gzip")


@pytest.fixture
def volumes(tmp_path, rng):
    ids = rng.integers(0, 4, (10, 6, 8)).astype(np.uint64)
    raws = {}
    for name in ("sample_A_20160501", "sample_B_20160501"):
        raws[name] = rng.integers(0, 255, (10, 6, 8), np.uint8)
        write(tmp_path / f"{name}.hdf", raws[name], ids)
    return tmp_path, raws, ids


def pieces(ids):
    """Connected components of each id, one id at a time."""
    result, count = np.zeros(ids.shape, int), 0
    for number in np.unique(ids[ids > 0]):
        part, found = scipy_label(ids == number, structure=np.ones((3, 3)))
        result[part > 0] = part[part > 0] + count
        count += found
    return result


def same_partition(one, two):
    pairs = len(np.unique(np.stack([one.ravel(), two.ravel()]), axis=1).T)
    return pairs == len(np.unique(one)) == len(np.unique(two)) and ((one > 0) == (two > 0)).all()


def test_slices_by_hand():
    ids = np.array(
        [
            [5, 5, 0, 5],
            [5, 0, 5, 0],  # diagonal neighbours belong together
            [0, 7, 7, 0],
            [9, 9, 0, 7],
        ],
        np.uint64,
    )
    labels = slice_labels(ids)
    assert labels.dtype == np.int32
    expected = [[1, 1, 0, 1], [1, 0, 1, 0], [0, 2, 2, 0], [3, 3, 0, 2]]
    np.testing.assert_array_equal(labels, expected)


def test_labels_are_the_pieces_of_each_id(rng):
    for _ in range(20):
        ids = rng.integers(0, 4, (12, 15)).astype(np.uint64) * np.uint64(2**40)
        labels = slice_labels(ids)
        assert same_partition(labels, pieces(ids))
        assert sorted(set(labels[labels > 0])) == list(range(1, labels.max() + 1))


def test_numbers_for_outside_are_background():
    ids = np.array([[3, 2**64 - 1, 2**64 - 3]], np.uint64)
    assert slice_labels(ids).tolist() == [[1, 0, 0]]


@pytest.mark.parametrize(("depth", "bounds"), [(125, (75, 100)), (10, (6, 8)), (250, (150, 200))])
def test_split_along_z(tmp_path, depth, bounds):
    ids = np.zeros((depth, 2, 2), np.uint64)
    ids[:, 0] = 1
    write(tmp_path / "v.h5", np.zeros((depth, 2, 2), np.uint8), ids)
    names = {
        split: [s.name for s in cremi_samples(tmp_path, split)]
        for split in ("train", "val", "test")
    }
    expected = [f"v_z{z:03d}" for z in range(depth)]
    assert names["train"] == expected[: bounds[0]]
    assert names["val"] == expected[bounds[0] : bounds[1]]
    assert names["test"] == expected[bounds[1] :]


def test_samples_hold_their_slice(volumes):
    folder, raws, ids = volumes
    for split, slices in (("train", range(6)), ("val", range(6, 8)), ("test", range(8, 10))):
        samples = cremi_samples(folder, split)
        assert [s.name for s in samples] == [f"{name}_z{z:03d}" for name in raws for z in slices]
        for sample in pickle.loads(pickle.dumps(samples)):
            name, z = sample.name[:-5], int(sample.name[-3:])
            image, labels = sample.read()
            np.testing.assert_array_equal(image, raws[name][z])
            assert same_partition(labels, pieces(ids[z]))


def test_one_file_instead_of_a_folder(volumes):
    folder, _, _ = volumes
    assert len(cremi_samples(folder / "sample_B_20160501.hdf", "train")) == 6


@pytest.mark.parametrize("chunks", [None, (1, 4, 4), (7, 4, 4)])
def test_slices_with_one_label_are_no_test(tmp_path, chunks):
    ids = np.ones((20, 4, 4), np.int64)
    ids[17, 1, 1] = 0
    ids[19, 0, 0] = 5
    ids[2] = 0
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file["volumes/raw"] = np.zeros((20, 4, 4), np.uint8)
        file.create_dataset("volumes/labels/neuron_ids", data=ids, chunks=chunks)
    assert [s.name for s in cremi_samples(tmp_path, "test")] == ["v_z017", "v_z019"]
    assert len(cremi_samples(tmp_path, "train")) == 12


def test_workers_read_the_same_file(volumes):
    folder, raws, _ = volumes
    samples = cremi_samples(folder, "train")
    samples[0].read()
    loader = DataLoader(
        range(len(samples)),
        batch_size=None,
        num_workers=2,
        collate_fn=lambda i: samples[i].read()[0],
    )
    for number, image in enumerate(loader):
        np.testing.assert_array_equal(image, samples[number].read()[0])


def test_all_bad_files_are_listed(volumes):
    folder, _, ids = volumes
    write(folder / "unlabelled.hdf", np.zeros((10, 6, 8), np.uint8))
    write(folder / "padded.hdf", np.zeros((12, 9, 9), np.uint8), ids)
    write(folder / "floats.h5", np.zeros((10, 6, 8), np.uint8), ids.astype(np.float32))
    (folder / "broken.hdf5").write_bytes(b"no HDF5")
    with pytest.raises(ValueError, match="not as CREMI's") as caught:
        cremi_samples(folder, "train")
    message = str(caught.value)
    assert "broken.hdf5: " in message
    assert "floats.h5: volumes/labels/neuron_ids must be whole numbers, got float32" in message
    assert "padded.hdf: volumes/raw (12, 9, 9) and" in message
    assert "cropped files" in message
    expected = "unlabelled.hdf: no volumes/labels/neuron_ids, but volumes/raw (10, 6, 8)"
    assert expected in message
    assert "sample_A" not in message


def test_nothing_to_read(tmp_path):
    with pytest.raises(FileNotFoundError, match="No CREMI volumes .* `vimunet data cremi"):
        cremi_samples(tmp_path, "train")
    with pytest.raises(ValueError, match="Unknown split 'all'. Known: train, val, test"):
        cremi_samples(tmp_path, "all")
    write(tmp_path / "thin.hdf", np.zeros((1, 4, 4), np.uint8), np.ones((1, 4, 4), np.uint64))
    with pytest.raises(ValueError, match="too small to have slices for 'val'"):
        cremi_samples(tmp_path, "val")


def test_real_neurites(shared_data):
    folder = shared_data / "fib25_sample" / "derived"
    sizes = {split: len(cremi_samples(folder, split)) for split in ("train", "val", "test")}
    assert sizes == {"train": 150, "val": 50, "test": 50}
    sample = cremi_samples(folder, "test")[0]
    image, labels = sample.read()
    assert image.dtype == np.uint8
    with h5py.File(next(folder.glob("*.hdf"))) as file:
        ids = file["volumes/labels/neuron_ids"][200]
        np.testing.assert_array_equal(image, file["volumes/raw"][200])
    assert same_partition(labels, pieces(ids))
    assert 53 <= labels.max() <= 144  # the README of the data set: pieces in a section


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.int8])
def test_outside_is_background_in_signed_types_too(dtype):
    ids = np.array([[7, 7, -1, 9], [7, 0, -3, 9]])
    expected = slice_labels(ids.astype(np.uint64))
    np.testing.assert_array_equal(expected, [[1, 1, 0, 2], [1, 0, 0, 2]])
    np.testing.assert_array_equal(slice_labels(ids.astype(dtype)), expected)
