"""One tracked piece of work each; steps, search and main share them."""
