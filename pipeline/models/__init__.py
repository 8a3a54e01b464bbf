"""Networks by name: those of torchvision and timm, two of this package, and the user's own.

`network` is the way in. Each family of networks is a file, behind the class in `family`.
"""

from pipeline.models.builtin_models import SmallCNN
from pipeline.models.network import (
    Network,
    build,
    check,
    code_version,
    fetch,
    find_size,
    names,
    num_parameters,
    origin,
    source_files,
)

__all__ = [
    "Network",
    "SmallCNN",
    "build",
    "check",
    "code_version",
    "fetch",
    "find_size",
    "names",
    "num_parameters",
    "origin",
    "source_files",
]
