"""What test answers say: scores with intervals, calibration, and which differences are real."""
