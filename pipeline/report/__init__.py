"""Tables, figures and terminal output from plain data."""

import logging

# It warns where its folder for caches cannot be written to, as in many containers, and while it looks for fonts.
logging.getLogger("matplotlib").setLevel(logging.ERROR)
