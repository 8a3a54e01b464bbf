"""An MLflow Project that trains, compares, registers and serves image classifiers."""

__version__ = "0.2.0"
