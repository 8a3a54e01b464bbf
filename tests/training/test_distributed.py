"""What the processes of a group share, over gloo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.training.build_context import dropout_seed
from tests.conftest import PROJECT


def in_two_processes(script: str, folder: Path, *arguments: str) -> list[str]:
    """Run a script in a group of two; return what each has written to its file in `folder`."""
    file = folder / "script.py"
    file.write_text(script)
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        str(file),
        str(folder),
        *arguments,
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=folder, check=False
    )
    assert done.returncode == 0, done.stderr
    return [(folder / f"rank{rank}").read_text() for rank in (0, 1)]


STATE = """
import sys
from pathlib import Path
import torch
from pipeline.training.distributed import join_group

weight = torch.arange(24.0).view(2, 3, 2, 2).contiguous(memory_format=torch.channels_last)
tensors = [torch.zeros(0), torch.tensor([True, False]), torch.arange(3).bfloat16()]
state = {
    "network": {0: weight, "step": torch.tensor(3.5)},
    "rest": [*tensors, "text", 7, None, {"pair": [1.5, 2]}],
}
group = join_group()
got = group.share_state(state if group.is_first else None)
assert got["network"][0].is_contiguous(memory_format=torch.channels_last)
assert group.share_state(None) is None
Path(sys.argv[1], f"rank{group.rank}").write_text(repr(got))
group.close()
"""


@pytest.mark.thorough
def test_a_state_is_the_same_in_every_process(tmp_path: Path) -> None:
    first, second = in_two_processes(STATE, tmp_path)
    assert first == second
    assert "11." in first and "bfloat16" in first and "'pair': [1.5, 2]" in first


MASKS = """
import json, sys
from pathlib import Path
import torch
from pipeline.config import Configuration, merge
from pipeline.data.prepare_data import prepare
from pipeline.training.build_context import open_context
from pipeline.training.distributed import join_group
from pipeline.training.fit import fit
from pipeline.training.fit_result import FitResult
from tests.training.small_training import BASE


class Masks:
    # Which parts of the last hidden layer dropout leaves, at every step.
    def __init__(self, module):
        self.seen = []
        dropout = next(part for part in module.modules() if isinstance(part, torch.nn.Dropout))
        dropout.register_forward_hook(self.see)

    def see(self, part, inputs, output):
        if part.training:
            self.seen.append((output != 0).int().tolist())


if __name__ == "__main__":
    folder, group = Path(sys.argv[1]), join_group()
    raw = {"model": {"dropout": 0.5}, "training": {"epochs": 1, "seed": int(sys.argv[2])}}
    configuration = Configuration.model_validate(merge(BASE, raw))
    prepared = prepare(configuration.data, folder / f"prepared{group.rank}")
    told = []
    for _ in range(2):
        best = folder / f"best{group.rank}.safetensors"
        with open_context(configuration, prepared, best, group) as setting:
            drawn = torch.rand(8).tolist()
            masks = Masks(setting.network.module)
            fitted = fit(configuration, setting)
        told.append([drawn, masks.seen, fitted.history[0]["train/loss"]])
    (folder / f"rank{group.rank}").write_text(json.dumps(told))
    group.close()
"""


@pytest.mark.thorough
def test_each_process_draws_a_dropout_mask_of_its_own_and_the_same_one_again(
    tmp_path: Path,
) -> None:
    first, second = (json.loads(text) for text in in_two_processes(MASKS, tmp_path, "5"))
    for one, again in (first, second):
        assert one == again
    (drawn, masks, loss), (other_drawn, other_masks, other_loss) = first[0], second[0]
    assert loss == other_loss
    assert len(masks) == len(other_masks) > 1
    assert drawn != other_drawn
    assert all(mask != other for mask, other in zip(masks, other_masks, strict=True))


def test_seeds_of_the_processes_differ_in_what_the_generator_takes() -> None:
    seeds = [dropout_seed(seed, rank) for seed in range(50) for rank in range(20)]
    assert len({seed % 2**32 for seed in seeds}) == len(seeds)
    # The first process draws as one alone does.
    assert [dropout_seed(seed, 0) for seed in (0, 7)] == [0, 7]
