"""What a viewer needs to segment, tune and correct images step by step; no viewer, no window.

An image of any number of axes is read plane by plane, a prediction can be stopped at any time, and
what was found is remembered together with where it comes from. The plugin for napari is made of
it. PyTorch is loaded when it is needed, not with this room: a viewer shall open at once.
"""
