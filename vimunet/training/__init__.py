"""From images with labels to a trained model: settings, crops, loop, run folder, thresholds."""

from vimunet.deprecation import moved

__getattr__ = moved(
    __name__,
    {
        "Progress": "vimunet.training.loop",
        "TrainConfig": "vimunet.training.config",
        "cosine_learning_rate": "vimunet.training.config",
        "train": "vimunet.training.loop",
    },
)
