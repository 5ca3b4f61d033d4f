"""Losses against hand-worked values, the formula, and golden values of torch-em."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from vimunet.representations.boundaries import Boundaries
from vimunet.representations.distances import Distances
from vimunet.representations.losses import (
    bce_dice_loss,
    ce_dice_loss,
    dice_distance_loss,
    dice_loss,
)
from vimunet.representations.semantic import Semantic

GOLDEN = json.loads((Path(__file__).parent / "golden" / "targets.json").read_text())["losses"]
BOTH = (2, 2, 6, 7)
THREE = (2, 3, 6, 7)


def formula(shape):
    """Predictions and 0/1 targets from the formulas that the golden values were made with."""
    n = np.arange(np.prod(shape))
    prediction = 0.5 + 0.45 * np.sin(0.7 * n + 0.3)
    target = ((n * 7) % 11 < 4).astype(np.float64)
    return tuple(torch.from_numpy(array.reshape(shape)) for array in (prediction, target))


def formula_distances():
    prediction, target = formula(THREE)
    n = torch.arange(target.numel(), dtype=torch.float64).reshape(THREE)
    target[:, 1:] = (0.5 + 0.5 * torch.cos(0.31 * n))[:, 1:]
    return prediction, target


def empty_channel():
    prediction, target = formula(BOTH)
    target[:, 1] = 0
    return prediction, target


CASES = {
    "dice_loss": (dice_loss, lambda: formula(BOTH)),
    "dice_loss_channel1_target_empty": (dice_loss, empty_channel),
    "dice_based_distance_loss_mask_true": (dice_distance_loss, formula_distances),
    "dice_based_distance_loss_mask_false": (
        lambda p, t: dice_distance_loss(p, t, mask_distances=False),
        formula_distances,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_agree_with_golden_values(name):
    loss, inputs = CASES[name]
    prediction, target = inputs()
    prediction.requires_grad_()
    value = loss(prediction, target)
    assert value.item() == pytest.approx(GOLDEN[name]["float64"], rel=1e-10)
    value.backward()
    expected = dict(GOLDEN[name]["grad"])
    gradient = prediction.grad.flatten()
    assert gradient.abs().sum().item() == pytest.approx(expected.pop("abs_sum"), rel=1e-7)
    for place, number in expected.items():
        index = int(place.removeprefix("flat[").removesuffix("]"))
        assert gradient[index].item() == pytest.approx(number, rel=1e-6)
    assert loss(prediction.float(), target.float()).item() == pytest.approx(
        GOLDEN[name]["float64"], rel=1e-6
    )


def test_nothing_predicted_and_nothing_there_costs_one_per_map():
    nothing = torch.zeros(BOTH, dtype=torch.float64)
    expected = GOLDEN["dice_loss_all_zero_p_and_t"]["float64"]
    assert dice_loss(nothing, nothing).item() == expected == 2


def test_dice_of_a_hand_worked_pair():
    prediction = torch.tensor([[1.0, 0.5], [0.0, 0.0]]).reshape(1, 1, 2, 2)
    target = torch.tensor([[1.0, 0.0], [1.0, 0.0]]).reshape(1, 1, 2, 2)
    # overlap 1, squares 1 + 0.25 and 2: 1 - 2 / 3.25
    assert dice_loss(prediction, target).item() == pytest.approx(1 - 2 / 3.25)


def test_dice_sums_over_the_batch_before_it_divides():
    prediction, target = formula((2, 1, 6, 7))
    separate = sum(dice_loss(prediction[i : i + 1], target[i : i + 1]) for i in range(2)) / 2
    joined = dice_loss(torch.cat(list(prediction), 1)[None], torch.cat(list(target), 1)[None])
    assert dice_loss(prediction, target).item() == pytest.approx(joined.item())
    assert dice_loss(prediction, target).item() != pytest.approx(separate.item(), rel=1e-6)


def test_perfect_prediction_costs_nothing():
    target = torch.zeros(1, 3, 5, 5)
    target[:, :, 1:3, 1:4] = 1
    assert dice_loss(target, target).item() == pytest.approx(0, abs=1e-6)
    assert dice_distance_loss(target, target).item() == pytest.approx(0, abs=1e-6)


def test_masked_distances_ignore_what_is_predicted_outside():
    prediction, target = formula_distances()
    other = prediction.clone()
    other[:, 1:] = torch.where(target[:, :1] == 0, 0.123, other[:, 1:])
    assert dice_distance_loss(other, target) == dice_distance_loss(prediction, target)
    assert dice_distance_loss(other, target, mask_distances=False) != dice_distance_loss(
        prediction, target, mask_distances=False
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_are_float32_under_autocast(dtype):
    shape = (2, 1, 256, 256)  # 131072 ones do not fit into float16 or the digits of bfloat16
    logits = torch.full(shape, 20.0, dtype=dtype)
    target = torch.ones(shape)
    with torch.autocast("cpu", dtype):
        value = Boundaries(foreground=False).loss(logits, target)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(0, abs=1e-6)


def test_low_precision_is_left_before_the_sigmoid_and_before_the_sums():
    prediction, target = formula((2, 1, 64, 64))
    logits = torch.logit(prediction).bfloat16()
    loss = Boundaries(foreground=False).loss
    assert loss(logits, target).item() == loss(logits.float(), target).item()
    low = prediction.bfloat16()
    assert dice_loss(low, target).dtype == torch.float32
    assert dice_loss(low, target).item() == dice_loss(low.float(), target).item()


@pytest.mark.parametrize(
    ("representation", "loss", "inputs"),
    [
        (Boundaries(), dice_loss, lambda: formula(BOTH)),
        (Boundaries(foreground=False), dice_loss, lambda: formula((2, 1, 6, 7))),
        (Distances(), dice_distance_loss, formula_distances),
    ],
)
def test_the_loss_of_a_representation_applies_the_sigmoid(representation, loss, inputs):
    prediction, target = inputs()
    value = representation.loss(torch.logit(prediction), target)
    assert value.item() == pytest.approx(loss(prediction, target).item(), rel=1e-12)


def test_loss_of_extreme_logits_has_finite_gradients():
    logits = torch.tensor([-1e4, 1e4, 0.0, 50.0]).reshape(1, 1, 2, 2).requires_grad_()
    Boundaries(foreground=False).loss(logits, torch.ones(1, 1, 2, 2)).backward()
    assert torch.isfinite(logits.grad).all()


# Losses of classes


def check_golden(name, value, gradient):
    assert value.item() == pytest.approx(GOLDEN[name]["float64"], rel=1e-10)
    expected = dict(GOLDEN[name]["grad"])
    assert gradient.abs().sum().item() == pytest.approx(expected.pop("abs_sum"), rel=1e-7)
    for place, number in expected.items():
        index = int(place.removeprefix("flat[").removesuffix("]"))
        assert gradient.flatten()[index].item() == pytest.approx(number, rel=1e-6)


def test_bce_dice_agrees_with_golden_values():
    """The golden values are of probabilities p, the loss is of their logits."""
    prediction, target = formula((3, 1, 6, 7))
    prediction.requires_grad_()
    value = bce_dice_loss(prediction.logit(), target)
    value.backward()
    check_golden("vmunet_bce_dice", value, prediction.grad)
    single = bce_dice_loss(prediction.float().logit(), target.float())
    assert single.item() == pytest.approx(GOLDEN["vmunet_bce_dice"]["float64"], rel=1e-6)


def four_classes():
    """Logits and one-hot target of 4 classes, from the formulas of the golden values."""
    n = torch.arange(2 * 4 * 6 * 5, dtype=torch.float64).reshape(2, 4, 6, 5)
    y = torch.arange(2 * 6 * 5).reshape(2, 6, 5)
    classes = ((y * y + 3 * y) % 7) % 4
    target = torch.nn.functional.one_hot(classes, 4).permute(0, 3, 1, 2).double()
    return 2 * torch.sin(0.9 * n + 0.1), target


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("vmunet_ce_dice_default_weights_0.4_0.6", (0.4, 0.6)),
        ("vmunet_ce_dice_weights_1_1", (1.0, 1.0)),
    ],
)
def test_ce_dice_agrees_with_golden_values(name, weights):
    logits, target = four_classes()
    logits.requires_grad_()
    value = ce_dice_loss(logits, target, weights)
    value.backward()
    check_golden(name, value, logits.grad)
    single = ce_dice_loss(logits.float(), target.float(), weights)
    assert single.item() == pytest.approx(GOLDEN[name]["float64"], rel=1e-6)


def test_bce_dice_of_a_hand_worked_pair():
    # Logits of 0 are p = 1/2: ln 2 for each pixel. Image 1 has 2 of 4 pixels: overlap 1, sizes 2
    # and 2; image 2 has none: overlap 0, sizes 2 and 0.
    target = torch.zeros(2, 1, 2, 2)
    target[0, 0, 0] = 1
    expected = np.log(2) + 1 - ((2 * 1 + 1) / (2 + 2 + 1) + 1 / (2 + 0 + 1)) / 2
    assert bce_dice_loss(torch.zeros(2, 1, 2, 2), target).item() == pytest.approx(expected)


def test_ce_dice_of_a_hand_worked_pair():
    # Logits of 0 are p = 1/3 for each of 3 classes. Classes 0, 1 and 2 have 3, 1 and 0 of 4 pixels.
    target = torch.zeros(1, 3, 2, 2)
    target[0, 0] = torch.tensor([[1, 1], [1, 0]])
    target[0, 1, 1, 1] = 1
    dice = [1 - (2 * n / 3 + 1e-5) / (4 / 9 + n + 1e-5) for n in (3, 1, 0)]
    logits = torch.zeros(1, 3, 2, 2)
    assert ce_dice_loss(logits, target).item() == pytest.approx(np.log(3) + np.mean(dice))
    assert ce_dice_loss(logits, target, (0.0, 1.0)).item() == pytest.approx(np.mean(dice))


def test_extreme_logits_have_finite_losses_and_gradients():
    logits = torch.tensor([-1e4, 1e4, 0.0, 80.0]).reshape(1, 1, 2, 2).requires_grad_()
    for target in (torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)):
        loss = bce_dice_loss(logits, target)
        assert loss.item() > 1000  # cross-entropy of logits does not saturate
        (gradient,) = torch.autograd.grad(loss, logits)
        assert gradient.isfinite().all()
        assert gradient.abs().sum() > 0.25  # nor does its gradient vanish where p rounds to 0 or 1
    many = torch.tensor([[1e4, 0.0], [-1e4, 0.0], [0.0, 90.0]]).reshape(1, 3, 1, 2)
    many.requires_grad_()
    target = torch.zeros(1, 3, 1, 2)
    target[:, 1] = 1
    loss = ce_dice_loss(many, target)
    (gradient,) = torch.autograd.grad(loss, many)
    assert loss.isfinite()
    assert gradient.isfinite().all()


def test_losses_of_classes_are_float32_under_autocast():
    target = torch.ones(2, 1, 256, 256)
    logits = torch.full(target.shape, 20.0, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        binary = bce_dice_loss(logits, target)
        several = ce_dice_loss(logits.expand(2, 3, 256, 256), target.expand(2, 3, 256, 256) / 3)
    assert binary.dtype == several.dtype == torch.float32
    assert binary.item() == pytest.approx(0, abs=1e-5)


def test_nothing_there_and_nothing_predicted_costs_nothing():
    logits = torch.full((2, 1, 8, 8), -50.0)
    assert bce_dice_loss(logits, torch.zeros_like(logits)).item() == pytest.approx(0, abs=1e-6)


def test_the_representation_chooses():
    target = torch.tensor([1.0, 0.0, 1.0, 1.0]).reshape(1, 1, 2, 2)
    logits = torch.linspace(-2, 3, 4).reshape(1, 1, 2, 2)
    assert Semantic().loss(logits, target) == bce_dice_loss(logits, target)
    several, classes = logits.repeat(1, 4, 1, 1), torch.eye(4).reshape(1, 4, 2, 2)
    assert Semantic(4).loss(several, classes) == ce_dice_loss(several, classes)


def test_wrong_inputs_are_named():
    with pytest.raises(ValueError, match=r"`logits` and `target` must .*got \(1, 2, 4, 4\) and"):
        bce_dice_loss(torch.zeros(1, 2, 4, 4), torch.zeros(1, 1, 4, 4))
    with pytest.raises(ValueError, match="`logits` and `target` must have the same shape"):
        ce_dice_loss(torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 4))
    with pytest.raises(ValueError, match=r"\(b, m, \[z,\] y, x\), got \(2, 1, 4, 4\) and"):
        dice_loss(torch.zeros(2, 1, 4, 4), torch.zeros(2, 2, 4, 4))
    with pytest.raises(ValueError, match=r"got \(1, 4, 4\) and \(1, 4, 4\)"):
        dice_loss(torch.zeros(1, 4, 4), torch.zeros(1, 4, 4))
    with pytest.raises(ValueError, match="3 maps .* got 2"):
        dice_distance_loss(torch.zeros(2, 2, 4, 4), torch.zeros(2, 2, 4, 4))
