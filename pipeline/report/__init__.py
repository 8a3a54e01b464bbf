"""Tables, figures and terminal output from plain data."""

import logging

# Matplotlib warns if it cannot write to its folder for caches, as in many containers, and while it
# looks for fonts.
logging.getLogger("matplotlib").setLevel(logging.ERROR)
