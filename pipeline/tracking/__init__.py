"""Everything that uses MLflow: the store, runs, searches, the served model, the registry."""
