"""From image files to tensors: sources, splits, decoded store, transforms."""
