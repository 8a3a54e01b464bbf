"""The Optuna study that this store works on: found among others' studies, or made."""

from __future__ import annotations

import os
import socket
import time
import warnings
import zlib
from dataclasses import replace
from typing import get_args

import numpy as np
import optuna
from optuna.exceptions import DuplicatedStudyError
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy

from pipeline.config import Study
from pipeline.errors import InUse
from pipeline.experiment import Experiment
from pipeline.identity import names_beside
from pipeline.report.console import say
from pipeline.search.pruning import build_pruner, build_sampler, first_rung
from pipeline.search.space import holds_lists
from pipeline.search.trials import num_drawn
from pipeline.tracking import find_runs
from pipeline.tracking.workspace import Workspace

PARENT = "parent_run_id"
"""User attribute of an Optuna study: the run of its parent."""
IDENTITY = "identity"
"""User attribute of an Optuna study: its identity."""
FIRST_RUNG = "first_rung"
"""User attribute of an Optuna study: the epoch after which hyperband first judges in it."""


def find_own_study(
    workspace: Workspace, storage: BaseStorage, wanted: str
) -> tuple[str, FrozenStudy | None]:
    """Return the name of the study that this store works on, and the study if it exists already.

    The name is the wanted one, or the first beside it whose study is not another store's. Studies
    of other stores are left untouched.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    existing = {study.study_name: study for study in storage.get_all_studies()}
    first_refusal = ""
    for name in names_beside(wanted):
        study = existing.get(name)
        reason = _find_hindrance(workspace, storage, study) if study else ""
        if not reason:
            if first_refusal:
                say(f"{first_refusal}; study {name} is used")
            return name, study
        first_refusal = first_refusal or f"study {name} {reason}"
    raise AssertionError("names never end")


def _find_hindrance(workspace: Workspace, storage: BaseStorage, study: FrozenStudy) -> str:
    """Return why this store cannot go on with a study, or an empty string if it can."""
    parent = study.user_attrs.get(PARENT)
    if parent:
        lifecycle = find_runs.get_lifecycle(workspace, parent)
        if not lifecycle:
            return "belongs to another MLflow store"
        if lifecycle != "active":
            return (
                "has its runs deleted from MLflow "
                f"(`mlflow runs restore --run-id {parent}` brings it back)"
            )
    with warnings.catch_warnings():
        # Optuna warns of lists among choices, although it reads them.
        warnings.simplefilter("ignore", UserWarning)
        trials = storage.get_all_trials(study._study_id, deepcopy=False)
    if any(map(holds_lists, trials)):
        return "is of release 0.1.0, which could not search lists"
    return ""


def keep_pruner(workspace: Workspace, experiment: Experiment, name: str, parent: str) -> Experiment:
    """Return the experiment with the pruner that its study was begun with.

    If the user asks for another pruner, that one is taken. A message says so in both cases.
    """
    if not parent:
        return experiment
    begun = find_runs.get_run(workspace, parent).data.params.get("study.pruner", "")
    now = experiment.study.pruner
    if begun == now or begun not in get_args(Study.model_fields["pruner"].annotation):
        return experiment
    if "pruner" in experiment.study.model_fields_set:
        say(f"study {name} was begun with study.pruner {begun}, and goes on with {now}")
        return experiment
    say(
        f"study {name} goes on with study.pruner {begun}, with which it was begun; "
        f"--study.pruner {now} changes that"
    )
    return replace(experiment, study=experiment.study.model_copy(update={"pruner": begun}))


def make_study(storage: BaseStorage, experiment: Experiment, name: str) -> None:
    """Make a study.

    Raises:
        InUse: Another process has made the study since it was looked for.
    """
    try:
        storage.create_new_study([StudyDirection.MAXIMIZE], name)
    except DuplicatedStudyError:
        raise InUse(f"study {name!r} has just been begun by another process; start again") from None
    study = optuna.load_study(storage=storage, study_name=name)
    study.set_user_attr(FIRST_RUNG, first_rung(experiment.base.training.epochs))


def load_study(
    storage: BaseStorage, experiment: Experiment, name: str, is_alone: bool = True
) -> optuna.Study:
    """Load a study with its sampler and its pruner.

    Args:
        storage: Optuna's storage.
        experiment: The study's settings.
        name: Name of the study.
        is_alone: Whether no other process draws from the space at the same time.
    """
    study = optuna.load_study(storage=storage, study_name=name)
    # The seed depends on what is done, so that a study that goes on does not draw the same points.
    seed = experiment.base.training.seed + num_drawn(study)
    if not is_alone:
        # Workers of one seed would draw the same points.
        own = zlib.crc32(f"{socket.gethostname()} {os.getpid()} {time.time_ns()}".encode())
        seed = int(np.random.SeedSequence((seed, own)).generate_state(1)[0])
    study.sampler = build_sampler(experiment.study, seed)
    epochs = experiment.base.training.epochs
    # A study keeps its rule: scores at the rungs of another one would be compared with scores of
    # other epochs. Release 0.1.0 judged after the first epoch.
    study.pruner = build_pruner(experiment.study, epochs, study.user_attrs.get(FIRST_RUNG, 1))
    return study
