"""The way from image files to tensors: sources, splits, the store of decoded images, transforms."""
