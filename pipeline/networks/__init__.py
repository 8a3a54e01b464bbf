"""Networks by where they come from, beside torchvision's and ours in `pipeline.models`."""
