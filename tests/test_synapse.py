"""Synapse: slices and volumes as TransUNet prepares them, lists, sizes."""

import h5py
import numpy as np
import pytest

from vimunet.datasets.synapse import resize, synapse_slices, synapse_volumes


@pytest.fixture
def data(tmp_path, rng):
    """Three cases of slices, two volumes; numbers are floats, as in the original files."""
    (tmp_path / "train_npz").mkdir()
    (tmp_path / "test_vol_h5").mkdir()
    labels = np.zeros((20, 24))
    labels[4:12, 6:12] = 8
    labels[14:18, 2:10] = 3
    for case in ("case0005", "case0006", "case0031"):
        for z in (0, 10, 9):
            np.savez(
                tmp_path / "train_npz" / f"{case}_slice{z:03d}.npz",
                image=rng.random((20, 24)),
                label=labels,
            )
    for case in ("case0008", "case0001"):
        with h5py.File(tmp_path / "test_vol_h5" / f"{case}.npy.h5", "w") as file:
            file["image"] = rng.random((3, 20, 24)).astype(np.float32)
            file["label"] = np.stack([labels] * 3).astype(np.float32)
    return tmp_path


def test_slices_of_all_cases(data):
    samples = synapse_slices(data, size=None)
    assert len(samples) == 9
    assert [s.name for s in samples[:3]] == [f"case0005_slice{z}" for z in ("000", "009", "010")]
    image, labels = samples[0].read()
    assert (image.dtype, labels.dtype) == (np.float32, np.uint8)
    assert image.shape == labels.shape == (20, 24)
    assert set(np.unique(labels)) == {0, 3, 8}


def test_slices_are_resized_and_classes_stay_classes(data):
    image, labels = synapse_slices(data, size=40)[0].read()
    assert image.shape == labels.shape == (40, 40)
    assert set(np.unique(labels)) == {0, 3, 8}
    assert (labels == 8).mean() == pytest.approx(8 * 6 / 480, abs=0.02)


def test_volumes(data):
    samples = synapse_volumes(data)
    assert [sample.name for sample in samples] == ["case0001", "case0008"]
    image, labels = samples[1].read()
    assert image.shape == labels.shape == (3, 20, 24)
    assert labels.dtype == np.uint8


@pytest.mark.parametrize("folder", ["lists/lists_Synapse", "lists_Synapse", "."])
def test_a_list_says_which_slices_are_used(data, folder):
    (data / folder).mkdir(parents=True, exist_ok=True)
    (data / folder / "train.txt").write_text("case0031_slice009\ncase0005_slice000\n")
    names = [sample.name for sample in synapse_slices(data)]
    assert names == ["case0005_slice000", "case0031_slice009"]


def test_missing_files_are_listed(data):
    (data / "lists_Synapse").mkdir()
    (data / "lists_Synapse" / "test_vol.txt").write_text("case0001\ncase0002\ncase0003\n")
    with pytest.raises(FileNotFoundError) as caught:
        synapse_volumes(data)
    assert "2 of 3 files of test_vol.txt are not in" in str(caught.value)
    assert str(caught.value).endswith("\n  case0002.npy.h5\n  case0003.npy.h5")
    for file in (data / "train_npz").iterdir():
        file.unlink()
    with pytest.raises(FileNotFoundError, match=r"No files \*.npz in"):
        synapse_slices(data)
    with pytest.raises(FileNotFoundError, match="No Synapse data in .*nowhere"):
        synapse_slices(data / "nowhere")


def test_damaged_files_are_named(data):
    file = data / "train_npz" / "case0005_slice000.npz"
    good, labels = np.zeros((4, 5)), np.zeros((4, 5))
    for arrays, message in (
        ({"image": good}, "must hold `image` and `label`, got image"),
        ({"image": good, "label": labels[1:]}, r"\(4, 5\) and label \(3, 5\) must have the same 2"),
        ({"image": good, "label": labels + 9}, r"must be classes in 0 \.\.\. 8, got 9.0 to 9.0"),
        ({"image": good, "label": labels + 0.5}, "must be classes"),
    ):
        np.savez(file, **arrays)
        with pytest.raises(ValueError, match=f"case0005_slice000.npz.*{message}"):
            synapse_slices(data, size=None)[0].read()


def test_resizing_keeps_the_corners(rng):
    image = rng.random((7, 9))
    large = resize(image, (13, 17), order=3)
    assert large.shape == (13, 17)
    np.testing.assert_allclose(large[::12, ::16], image[::6, ::8], atol=1e-6)
    np.testing.assert_allclose(large[::2, ::2], image, atol=1e-6)  # every other pixel is an old one
    labels = rng.integers(0, 9, (7, 9))
    np.testing.assert_array_equal(resize(labels, (13, 17), order=0)[::2, ::2], labels)
    assert resize(image, (7, 9), order=3) is image
