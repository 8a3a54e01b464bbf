"""Networks by name: torchvision's, timm's, two of this package, one's own.

`network` is the way in; each family of networks is a file, behind the class in `family`.
"""

from pipeline.models.builtin_models import SmallCNN
from pipeline.models.network import (
    Network,
    build,
    check,
    code_version,
    fetch,
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
    "names",
    "num_parameters",
    "origin",
    "source_files",
]
