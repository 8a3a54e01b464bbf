"""One thin file per entry point: read the configuration, call one job, say where the result is."""
