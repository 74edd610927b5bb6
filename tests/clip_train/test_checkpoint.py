import json
import os
import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from clip_train.checkpoint import Checkpoints, _digest
from clip_train.errors import ClipTrainError
from clip_train.optim.build import make_optimizer
from clip_train.optim.config import OptimConfig
from clip_train.parallel import World

HERE = World(0, 1, torch.device("cpu"))
STREAM = {"step": 3, "manifest": "abc"}


class Run:
    """A model of two parameters that is trained on nothing."""

    def __init__(self, folder: Path, *, keep: int = 2, fingerprint: str = "one") -> None:
        torch.manual_seed(0)
        self.model = torch.nn.Linear(3, 2)
        self.optimizer = make_optimizer(self.model, OptimConfig(lr=0.1))
        self.checkpoints = Checkpoints(
            folder, HERE, keep=keep, fingerprint=fingerprint, save_weights=lambda path: save_file(self.weights(), path)
        )

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}

    def step(self) -> None:
        self.model(torch.rand(4, 3)).square().sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def save(self, step: int) -> None:
        self.checkpoints.save(step, self.model, self.optimizer, STREAM, {"loss": 0.1})

    def resume(self):
        return self.checkpoints.resume(self.model, self.optimizer)


def test_weights_optimizer_and_generator_come_back_to_the_bit(tmp_path):
    run = Run(tmp_path)
    for _ in range(3):
        run.step()
    run.save(3)
    run.step()
    wanted = run.weights()

    again = Run(tmp_path)
    resumed = again.resume()
    assert (resumed.step, resumed.stream, resumed.metrics) == (3, STREAM, {"loss": 0.1})
    again.step()  # draws its input from torch's generator
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in again.weights().items())


def test_there_is_nothing_to_resume_in_a_new_run(tmp_path):
    assert Run(tmp_path).resume() is None
    assert list(tmp_path.iterdir()) == []


def test_the_newest_are_kept_and_the_newest_of_them_is_resumed(tmp_path):
    run = Run(tmp_path, keep=2)
    for step in (1, 2, 10):
        run.step()
        run.save(step)
    assert sorted(path.name for path in run.checkpoints.folder.iterdir()) == ["step-00000002", "step-00000010"]
    assert Run(tmp_path).resume().step == 10


def test_a_save_that_was_killed_leaves_nothing_that_is_resumed_and_is_swept(tmp_path):
    run = Run(tmp_path)
    run.step()
    run.save(1)
    killed = run.checkpoints.folder / ".tmp-0123"
    killed.mkdir()
    (killed / "state.json").write_text("{")
    assert Run(tmp_path).resume().step == 1
    run.step()
    run.save(2)
    assert not killed.exists()


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[random.Random(0).randrange(len(data))] ^= 1
    path.write_bytes(data)


def edit_state(folder: Path, **values) -> None:
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**state, **values}))


def replace_by_a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_bytes(b"")


def copy_the_older_one(folder: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name("step-00000001"), folder)


DAMAGE = [
    lambda folder: flip_a_bit(folder / "model.safetensors"),
    lambda folder: flip_a_bit(folder / "optimizer.safetensors"),
    lambda folder: flip_a_bit(folder / "rng.safetensors"),
    lambda folder: (folder / "rng.safetensors").unlink(),
    lambda folder: (folder / "model.safetensors").write_bytes(b""),
    lambda folder: (folder / "state.json").write_text("{"),
    lambda folder: (folder / "state.json").write_text("{}"),
    lambda folder: (folder / "state.json").write_text("[]"),
    lambda folder: (folder / "state.json").write_bytes(b""),
    lambda folder: (folder / "state.json").unlink(),
    lambda folder: edit_state(folder, stream={"step": 4}),
    lambda folder: edit_state(folder, files={}),
    lambda folder: edit_state(folder, format=99),
    replace_by_a_file,
    copy_the_older_one,
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_set_aside_for_the_newest_intact_one(tmp_path, damage, capsys):
    run = Run(tmp_path)
    run.step()
    run.save(1)
    wanted = run.weights()
    run.step()
    run.save(2)
    damage(run.checkpoints.path(2))
    again = Run(tmp_path)
    resumed = again.resume()
    assert resumed.step == 1
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in again.weights().items())
    (moved,) = resumed.damaged
    assert moved["checkpoint"] == "step-00000002"
    assert Path(moved["folder"]).name.startswith("damaged-step-00000002-")
    assert Path(moved["folder"]).exists()
    assert again.checkpoints.steps() == [1]
    warning = capsys.readouterr().err
    assert warning.startswith(f"warning: the checkpoint {run.checkpoints.path(2)} is damaged: {moved['reason']}")
    assert warning.count("\n") == 1
    assert "continues from step 1" in warning
    again.save(2)
    assert Run(tmp_path).resume().step == 2


def test_without_an_intact_checkpoint_nothing_is_moved_and_the_newest_is_named(tmp_path):
    run = Run(tmp_path)
    for step in (1, 2):
        run.step()
        run.save(step)
        flip_a_bit(run.checkpoints.path(step) / "model.safetensors")
    with pytest.raises(ClipTrainError, match=r"no checkpoint in .* is intact; the newest, step-00000002.*model\.safe"):
        Run(tmp_path).resume()
    assert run.checkpoints.steps() == [1, 2]


def test_other_things_beside_and_inside_a_checkpoint_are_left_alone(tmp_path):
    run = Run(tmp_path)
    run.step()
    run.save(1)
    for name in ("step-5", "step-00000003.bak", "step-0000000x", "notes"):
        (run.checkpoints.folder / name).mkdir()
    (run.checkpoints.path(1) / "notes.txt").touch()
    assert Run(tmp_path).resume().step == 1


def test_files_have_the_mode_that_the_umask_gives(tmp_path):
    before = os.umask(0o027)
    try:
        run = Run(tmp_path)
        run.step()
        run.save(1)
    finally:
        os.umask(before)
    names = ["optimizer.safetensors", "rng.safetensors", "state.json"]  # the weights are written by the test's own code
    assert {(run.checkpoints.path(1) / name).stat().st_mode & 0o777 for name in names} == {0o640}


def test_a_checkpoint_of_another_config_or_format_is_refused(tmp_path):
    run = Run(tmp_path)
    run.step()
    run.save(1)
    with pytest.raises(ClipTrainError, match="another config"):
        Run(tmp_path, fingerprint="two").resume()
    state = json.loads((run.checkpoints.path(1) / "state.json").read_text())
    edit_state(run.checkpoints.path(1), format=99, sha256=_digest({**state, "format": 99}))
    with pytest.raises(ClipTrainError, match="format 99"):
        run.resume()


def test_a_place_that_cannot_be_written_is_an_error_and_leaves_nothing(tmp_path):
    (tmp_path / "checkpoints").write_text("in the way")
    run = Run(tmp_path)
    run.step()
    with pytest.raises(ClipTrainError, match="cannot save a checkpoint"):
        run.save(1)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]
