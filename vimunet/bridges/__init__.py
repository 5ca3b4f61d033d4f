"""Read the files of other tools: one module per tool, each imported by its own name."""
