"""Everything that touches MLflow: the store, run lifecycle, queries, the served model, the registry."""
