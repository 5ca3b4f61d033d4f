"""What several commands print."""


def known_models() -> str:
    """List the models that `--model` may name, over several lines."""
    from vimunet.segmentation.model_file import embedded_models

    lines = [f"  {name:<10} {purpose}" for name, purpose in embedded_models().items()]
    return "\n".join(["Models that come with vimunet:", *lines, "or the path of a model file."])
