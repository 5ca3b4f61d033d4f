"""From an OME-Zarr image to OME-Zarr labels that need not fit into memory."""

from vimunet.blockwise.blocks import BlockwiseSegmentation

__all__ = ["BlockwiseSegmentation"]
