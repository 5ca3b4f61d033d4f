"""The napari plugin of vimunet: segment, tune, correct, retrain and measure in the viewer."""
