"""From an image to maps and labels: model files, normalisation, tiles, devices, stitching."""
