"""Losses of the papers, for maps of images and of volumes; each representation names its own.

Those for objects take probabilities, those for classes take logits.

All sums are taken in float32 or better, also under autocast, because a sum over the pixels of a
batch does not fit the range of float16 or the digits of bfloat16. Axis letters: b images, m maps,
z sections, y rows, x columns.
"""

import torch
from torch import Tensor
from torch.nn import functional

_EMPTY = 1e-7  # smallest denominator: an empty channel gives a loss of 1, not NaN
_SMOOTH = 1e-5  # of VM-UNet: a class that is neither there nor predicted costs nothing


def dice_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Sum over the maps of one minus the soft Dice overlap.

    For each map, over all images and pixels of the batch,

        loss = 1 - 2 * sum(p * t) / max(sum(p^2) + sum(t^2), 1e-7)

    A map whose target is empty gives the constant 1 and no gradient.

    Args:
        prediction: (b, m, [z,] y, x) probabilities in [0, 1], after the sigmoid.
        target: (b, m, [z,] y, x) targets in [0, 1].

    Returns:
        () loss, between 0 and m, float32 (float64 for float64 predictions).

    Raises:
        ValueError: If the shapes differ or are not (b, m, [z,] y, x).

    Source:
        Archit & Pape 2024, "ViM-UNet", https://arxiv.org/abs/2404.07705; denominator with squares
        as in torch-em's Dice loss.
    """
    prediction, target = _checked(prediction, target)
    with torch.autocast(prediction.device.type, enabled=False):
        axes = _all_but_maps(prediction)
        overlap = (prediction * target).sum(dim=axes)
        size = prediction.square().sum(dim=axes) + target.square().sum(dim=axes)
        return (1 - 2 * overlap / size.clamp(min=_EMPTY)).sum()


def dice_distance_loss(prediction: Tensor, target: Tensor, mask_distances: bool = True) -> Tensor:
    """Dice loss of foreground and two distance maps.

    Args:
        prediction: (b, 3, [z,] y, x) foreground and two distances in [0, 1], after the sigmoid.
        target: (b, 3, [z,] y, x) targets in [0, 1]; the first is 0 or 1.
        mask_distances: Judge the distances only where the target is foreground.

    Returns:
        () loss, between 0 and 3, float32 (float64 for float64 predictions).

    Raises:
        ValueError: If the shapes differ or are not (b, 3, [z,] y, x).

    Source:
        Archit & Pape 2024, "ViM-UNet", https://arxiv.org/abs/2404.07705, with
        `mask_distances=True`.
    """
    prediction, target = _checked(prediction, target)
    if target.shape[1] != 3:
        raise ValueError(
            f"`target` must have 3 maps (foreground and two distances), got {target.shape[1]}."
        )
    if mask_distances:
        inside = target[:, :1]
        inside = torch.cat([torch.ones_like(inside), inside, inside], dim=1)
        prediction, target = prediction * inside, target * inside
    return dice_loss(prediction, target)


def bce_dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy plus one minus the soft Dice overlap of each image.

    With p = sigmoid(logits) and the sums over the maps and pixels of one image,

        loss = mean(bce(p, t)) + 1 - mean over images of (2 sum(p t) + 1) / (sum(p) + sum(t) + 1)

    An image without foreground costs nothing if none is predicted.

    Args:
        logits: (b, m, [z,] y, x) before the sigmoid.
        target: (b, m, [z,] y, x) targets in [0, 1].

    Returns:
        () loss >= 0, float32 (float64 for float64 logits).

    Raises:
        ValueError: If the shapes differ or are not (b, m, [z,] y, x).

    Source:
        Ruan & Xiang 2024, "VM-UNet", https://arxiv.org/abs/2402.02491. The cross-entropy is taken
        from logits, not from probabilities: the same number, also where those round to 0 or 1.
    """
    logits, target = _checked(logits, target, "logits")
    with torch.autocast(logits.device.type, enabled=False):
        cross_entropy = functional.binary_cross_entropy_with_logits(logits, target)
        prediction = logits.sigmoid()
        axes = tuple(range(1, logits.ndim))
        overlap = (prediction * target).sum(dim=axes)
        size = prediction.sum(dim=axes) + target.sum(dim=axes)
        return cross_entropy + 1 - ((2 * overlap + 1) / (size + 1)).mean()


def ce_dice_loss(
    logits: Tensor, target: Tensor, weights: tuple[float, float] = (1.0, 1.0)
) -> Tensor:
    """Cross-entropy and one minus the soft Dice overlap of each class, weighted.

    With p = softmax(logits), and the sums over all images and pixels of the batch,

        dice = mean over classes of 1 - (2 sum(p t) + 1e-5) / (sum(p^2) + sum(t^2) + 1e-5)
        loss = weights[0] * mean(-log p of the true class) + weights[1] * dice

    Args:
        logits: (b, m, [z,] y, x) before the softmax, one map for each class, background included.
        target: (b, m, [z,] y, x) 1 for the true class of a pixel, 0 for the others.
        weights: Of cross-entropy and Dice.

    Returns:
        () loss >= 0, float32 (float64 for float64 logits).

    Raises:
        ValueError: If the shapes differ or are not (b, m, [z,] y, x).

    Source:
        Ruan & Xiang 2024, "VM-UNet", https://arxiv.org/abs/2402.02491: weights 1 and 1; those that
        its code has as default are 0.4 and 0.6.
    """
    logits, target = _checked(logits, target, "logits")
    with torch.autocast(logits.device.type, enabled=False):
        log_prediction = logits.log_softmax(dim=1)
        cross_entropy = -(target * log_prediction).sum(dim=1).mean()
        prediction = log_prediction.exp()
        axes = _all_but_maps(prediction)
        overlap = (prediction * target).sum(dim=axes)
        size = prediction.square().sum(dim=axes) + target.square().sum(dim=axes)
        dice = 1 - (2 * overlap + _SMOOTH) / (size + _SMOOTH)
        return weights[0] * cross_entropy + weights[1] * dice.mean()


def at_least_float32(tensor: Tensor) -> Tensor:
    """Widen what is narrower than float32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _all_but_maps(tensor: Tensor) -> tuple[int, ...]:
    return (0, *range(2, tensor.ndim))


def _checked(prediction: Tensor, target: Tensor, name: str = "prediction") -> tuple[Tensor, Tensor]:
    if prediction.ndim not in (4, 5) or prediction.shape != target.shape:
        raise ValueError(
            f"`{name}` and `target` must have the same shape (b, m, [z,] y, x), "
            f"got {tuple(prediction.shape)} and {tuple(target.shape)}."
        )
    prediction = at_least_float32(prediction)
    return prediction, target.to(prediction.dtype)
