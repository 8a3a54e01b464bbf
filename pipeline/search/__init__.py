"""Studies: a fixed list, then a search space, as Optuna trials of one parent run."""
