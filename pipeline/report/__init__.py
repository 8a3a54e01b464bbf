"""Tables, figures and terminal output from plain data."""
