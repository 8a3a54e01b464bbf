"""The training engine: one `fit`, which knows neither MLflow nor Optuna and uses callbacks."""
