"""Read and write the files of other tools: one module per tool.

`checkpoints` chooses the reader of a file of weights, `predictions` that of segmented images.
Nothing in a file is ever executed.
"""
