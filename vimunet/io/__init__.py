"""Files: images, labels and tables, read lazily and written completely or not at all."""
