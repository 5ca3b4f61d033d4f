"""ISIC: the layouts of the challenges and of VM-UNet, sizes, and what does not pair."""

import pickle

import numpy as np
import pytest
from PIL import Image

from vimunet.datasets.isic import isic_samples, lesion_samples, prepared_samples

ORIGINAL = {
    (2017, "training"): ("ISIC-2017_Training_Data", "ISIC-2017_Training_Part1_GroundTruth"),
    (2017, "test"): ("ISIC-2017_Test_v2_Data", "ISIC-2017_Test_v2_Part1_GroundTruth"),
    (2018, "validation"): (
        "ISIC2018_Task1-2_Validation_Input",
        "ISIC2018_Task1_Validation_GroundTruth",
    ),
}


def write(folder, name, pixels):
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(folder / name)


def lesion(shape, rng):
    """A colour image whose left half is red, and the mask of that half."""
    image = rng.integers(100, 120, (*shape, 3)).astype(np.uint8)
    mask = np.zeros(shape, np.uint8)
    mask[:, : shape[1] // 2] = 255
    image[mask > 0, 0] = 240
    return image, mask


@pytest.mark.parametrize(("key", "folders"), ORIGINAL.items())
def test_original_layout(tmp_path, rng, key, folders):
    for name, shape in (("ISIC_0000010", (40, 60)), ("ISIC_0000002", (33, 20))):
        image, mask = lesion(shape, rng)
        write(tmp_path / folders[0], f"{name}.jpg", image)
        write(tmp_path / folders[0], f"{name}_superpixels.png", image)
        write(tmp_path / folders[1], f"{name}_segmentation.png", mask)
    (tmp_path / folders[0] / "ISIC-2017_metadata.csv").write_text("no image")
    year, part = key
    samples = isic_samples(tmp_path, part, year, size=16)
    assert [sample.name for sample in samples] == ["ISIC_0000002", "ISIC_0000010"]
    for sample in pickle.loads(pickle.dumps(samples)):
        image, labels = sample.read()
        assert (image.shape, image.dtype) == ((16, 16, 3), np.uint8)
        assert (labels.shape, labels.dtype) == ((16, 16), np.uint8)
        expected = np.zeros((16, 16))
        expected[:, :8] = 1
        np.testing.assert_array_equal(labels, expected)
        assert image[:, :6, 0].min() > 200 > 150 > image[:, 10:, 0].max()


def test_prepared_layout(tmp_path, rng):
    for split in ("train", "val"):
        for i in range(3):
            image, mask = lesion((8, 8), rng)
            write(tmp_path / split / "images", f"{i}.png", image)
            write(tmp_path / split / "masks", f"{i}.png", mask)
    samples = prepared_samples(tmp_path, "val", size=8)
    assert [sample.name for sample in samples] == ["0", "1", "2"]
    image, labels = samples[2].read()
    np.testing.assert_array_equal(image, np.asarray(Image.open(tmp_path / "val/images/2.png")))
    np.testing.assert_array_equal(labels, np.repeat([[1] * 4 + [0] * 4], 8, axis=0))


def test_images_are_interpolated_and_masks_are_not(tmp_path):
    ramp = np.repeat(np.array([[0, 100]], np.uint8), 2, axis=0)
    write(tmp_path / "images", "a.png", np.stack([ramp] * 3, axis=-1))
    write(tmp_path / "masks", "a.png", np.uint8([[0, 255], [0, 255]]))
    (sample,) = lesion_samples(tmp_path / "images", tmp_path / "masks", size=8)
    image, labels = sample.read()
    # Pixel centres of 8 in 2: 1/8, 3/8 ... of the way between the two values, the ends flat.
    np.testing.assert_array_equal(image[0, :, 0], [0, 0, 13, 38, 63, 88, 100, 100])
    np.testing.assert_array_equal(labels[0], [0, 0, 0, 0, 1, 1, 1, 1])
    thin = np.zeros((8, 8), np.uint8)
    thin[:, [2, 5]] = 255  # pixels 2 and 6 are the nearest to those of an image of 2
    write(tmp_path / "masks", "a.png", thin)
    write(tmp_path / "images", "a.png", np.stack([thin] * 3, axis=-1))
    (sample,) = lesion_samples(tmp_path / "images", tmp_path / "masks", size=2)
    np.testing.assert_array_equal(sample.read()[1], [[1, 0], [1, 0]])


def test_what_does_not_pair_is_listed(tmp_path, rng):
    image, mask = lesion((8, 8), rng)
    for name in ("ISIC_1", "ISIC_2", "ISIC_3"):
        write(tmp_path / "images", f"{name}.jpg", image)
    for name in ("ISIC_2", "ISIC_4"):
        write(tmp_path / "masks", f"{name}_segmentation.png", mask)
    with pytest.raises(ValueError) as caught:
        lesion_samples(tmp_path / "images", tmp_path / "masks")
    lines = str(caught.value).splitlines()
    assert lines[1:4] == [f"Images without mask in {tmp_path / 'masks'}:", "  ISIC_1.jpg"] + [
        "  ISIC_3.jpg"
    ]
    assert lines[4:] == [
        f"Masks without image in {tmp_path / 'images'}:",
        "  ISIC_4_segmentation.png",
    ]


def test_long_lists_are_cut(tmp_path, rng):
    image, mask = lesion((4, 4), rng)
    for i in range(23):
        write(tmp_path / "images", f"{i}.png", image)
    write(tmp_path / "masks", "0.png", mask)
    with pytest.raises(ValueError, match=r"20\.png\n  \.\.\. and 2 more"):
        lesion_samples(tmp_path / "images", tmp_path / "masks")


def test_sizes_must_agree(tmp_path, rng):
    write(tmp_path / "images", "a.png", lesion((8, 9), rng)[0])
    write(tmp_path / "masks", "a.png", lesion((8, 8), rng)[1])
    (sample,) = lesion_samples(tmp_path / "images", tmp_path / "masks")
    with pytest.raises(ValueError, match=r"must have the same size, got \(9, 8\) and \(8, 8\)"):
        sample.read()


def test_wrong_arguments_are_named(tmp_path, rng):
    with pytest.raises(ValueError, match="Unknown part 'train'. Known: training, validation, test"):
        isic_samples(tmp_path, "train")
    with pytest.raises(ValueError, match="Unknown year 2016. Known: 2017, 2018"):
        isic_samples(tmp_path, "test", 2016)
    with pytest.raises(ValueError, match="Unknown split 'test'. Known: train, val"):
        prepared_samples(tmp_path, "test")
    with pytest.raises(FileNotFoundError, match="No such folder: .*ISIC2018_Task1-2_Test_Input"):
        isic_samples(tmp_path, "test")
    (tmp_path / "images").mkdir()
    with pytest.raises(FileNotFoundError, match="No files of type .jpg, .jpeg, .png in"):
        lesion_samples(tmp_path / "images", tmp_path / "images")
    with pytest.raises(ValueError, match="`size` must be at least 1, got 0"):
        lesion_samples(tmp_path, tmp_path, size=0)
    image, mask = lesion((4, 4), rng)
    for name in ("a.png", "a_segmentation.png"):
        write(tmp_path / "masks", name, mask)
    write(tmp_path / "images", "a.png", image)
    with pytest.raises(ValueError, match="one file for a, got a.png and a_segmentation.png"):
        lesion_samples(tmp_path / "images", tmp_path / "masks")


def test_real_images(shared_data):
    folder = shared_data / "isic2018_256"
    samples = lesion_samples(folder / "images" / "val", folder / "labels" / "val")
    assert len(samples) == 150
    shares = []
    for sample in samples[::15]:
        image, labels = sample.read()
        assert image.shape == (256, 256, 3)
        assert set(np.unique(labels)) <= {0, 1}
        shares.append(labels.mean())
        assert image[labels == 1].mean() < image[labels == 0].mean()  # lesions are darker
    assert 0.01 < min(shares) < max(shares) < 0.9
