import json
import os
import random
import resource
import shutil
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from clip_train.checkpoints.layout import digest_of
from clip_train.checkpoints.saver import Checkpoints
from clip_train.checkpoints.state import RunState
from clip_train.errors import ClipTrainError
from clip_train.optim.build import make_optimizer
from clip_train.optim.config import OptimConfig
from clip_train.parallel import World

HERE = World(0, 1, torch.device("cpu"))
STREAM = {"step": 3, "manifest": "abc"}


class Run:
    """A model of two parameters that is trained on nothing."""

    def __init__(self, folder: Path, *, width: int = 3, **options) -> None:
        torch.manual_seed(0)
        self.width = width
        self.model = torch.nn.Linear(width, 2)
        self.optimizer = make_optimizer(self.model, OptimConfig(lr=0.1))
        state = RunState(model=self.model, optimizer=self.optimizer)
        self.checkpoints = Checkpoints(folder, HERE, state, **{"keep": 2, "fingerprint": "one", **options})

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}

    def step(self) -> None:
        self.model(torch.rand(4, self.width)).square().sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def save(self, step: int) -> None:
        self.checkpoints.save(step, STREAM, {"loss": 0.1})
        self.checkpoints.wait()

    def resume(self):
        return self.checkpoints.resume()

    def path(self, step: int) -> Path:
        return Path(self.checkpoints.folder.where(step))


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
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000002", "step-00000010"]
    assert Run(tmp_path).resume().step == 10


def test_checkpoints_at_multiples_of_keep_every_and_pinned_ones_stay(tmp_path):
    run = Run(tmp_path, keep=1, keep_every=4)
    for step in range(1, 8):
        run.step()
        run.checkpoints.save(step, STREAM, {}, pinned=step == 3)
    run.checkpoints.wait()
    assert run.checkpoints.folder.steps() == [3, 4, 7]


def test_a_save_that_was_killed_leaves_nothing_that_is_resumed_and_is_swept(tmp_path):
    run = Run(tmp_path)
    run.step()
    run.save(1)
    for killed in (run.path(2), run.path(3)):
        killed.mkdir()
        (killed / "00000-of-00001.0.safetensors").write_bytes(b"some")
        (killed / ".tmp-0123").write_bytes(b"some")
    assert Run(tmp_path).resume().step == 1
    run.step()
    run.save(2)
    assert run.checkpoints.folder.steps() == [1, 2]
    assert not run.path(3).exists()
    assert [path.suffix for path in run.path(2).iterdir()].count(".safetensors") == 1
    assert Run(tmp_path).resume().step == 2


def test_training_may_change_the_weights_while_they_are_written(tmp_path):
    run = Run(tmp_path, width=500_000)
    run.step()
    wanted = run.weights()
    run.checkpoints.save(1, STREAM, {})
    with torch.no_grad():
        for parameter in run.model.parameters():
            parameter.fill_(7)
    run.checkpoints.wait()
    again = Run(tmp_path, width=500_000)
    assert again.resume().step == 1
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in again.weights().items())


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[random.Random(0).randrange(len(data))] ^= 1
    path.write_bytes(data)


def edit_state(folder: Path, **values) -> None:
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**state, **values}))


def copy_the_older_one(folder: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name("step-00000001"), folder)


def tensors_of(folder: Path) -> Path:
    (file,) = folder.glob("*.safetensors")
    return file


DAMAGE = [
    lambda folder: flip_a_bit(tensors_of(folder)),
    lambda folder: flip_a_bit(folder / "tensors.json"),
    lambda folder: (folder / "tensors.json").unlink(),
    lambda folder: tensors_of(folder).unlink(),
    lambda folder: tensors_of(folder).write_bytes(b""),
    lambda folder: tensors_of(folder).write_bytes(tensors_of(folder).read_bytes() + b"0"),
    lambda folder: (folder / "state.json").write_text("{"),
    lambda folder: (folder / "state.json").write_text("{}"),
    lambda folder: (folder / "state.json").write_text("[]"),
    lambda folder: (folder / "state.json").write_bytes(b""),
    lambda folder: edit_state(folder, stream={"step": 4}),
    lambda folder: edit_state(folder, files={}),
    lambda folder: edit_state(folder, format=99),
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
    damage(run.path(2))
    again = Run(tmp_path)
    resumed = again.resume()
    assert resumed.step == 1
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in again.weights().items())
    (moved,) = resumed.damaged
    assert moved["checkpoint"] == "step-00000002"
    assert Path(moved["folder"]).name.startswith("damaged-step-00000002-")
    assert Path(moved["folder"]).exists()
    assert again.checkpoints.folder.steps() == [1]
    warning = capsys.readouterr().err
    assert warning.startswith(f"warning: the checkpoint {run.path(2)} is damaged: {moved['reason']}")
    assert warning.count("\n") == 1
    assert "continues from step 1" in warning
    again.save(2)
    assert Run(tmp_path).resume().step == 2


def test_without_an_intact_checkpoint_nothing_is_moved_and_the_newest_is_named(tmp_path):
    run = Run(tmp_path)
    for step in (1, 2):
        run.step()
        run.save(step)
        flip_a_bit(tensors_of(run.path(step)))
    with pytest.raises(ClipTrainError, match=r"no checkpoint in .* is intact; the newest, step-00000002.*changed"):
        Run(tmp_path).resume()
    assert run.checkpoints.folder.steps() == [1, 2]


def test_other_things_beside_and_inside_a_checkpoint_are_left_alone(tmp_path):
    run = Run(tmp_path)
    run.step()
    run.save(1)
    for name in ("step-5", "step-00000003.bak", "step-0000000x", "notes"):
        (tmp_path / "checkpoints" / name).mkdir()
    (run.path(1) / "notes.txt").touch()
    assert Run(tmp_path).resume().step == 1


def test_files_have_the_mode_that_the_umask_gives(tmp_path):
    before = os.umask(0o027)
    try:
        run = Run(tmp_path)
        run.step()
        run.save(1)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in run.path(1).iterdir()} == {0o640}


def test_a_checkpoint_of_another_config_or_model_is_refused(tmp_path):
    run = Run(tmp_path)
    run.step()
    run.save(1)
    with pytest.raises(ClipTrainError, match="another config"):
        Run(tmp_path, fingerprint="two").resume()
    with pytest.raises(ClipTrainError, match=r"another model: weight has the shape \(2, 3\) there and \(2, 4\) here"):
        Run(tmp_path, width=4).resume()


@pytest.mark.parametrize(("version", "advice"), [(99, "upgrade"), (2, "continue it with the clip-train that wrote it")])
def test_a_checkpoint_of_another_format_is_refused(tmp_path, version, advice):
    run = Run(tmp_path)
    run.step()
    run.save(1)
    state = json.loads((run.path(1) / "state.json").read_text())
    edit_state(run.path(1), format=version, sha256=digest_of({**state, "format": version}))
    with pytest.raises(ClipTrainError, match=rf"format {version}, and this version reads 3; .*{advice}"):
        run.resume()


def test_a_place_that_cannot_be_written_is_an_error_and_leaves_nothing(tmp_path):
    (tmp_path / "checkpoints").write_text("in the way")
    run = Run(tmp_path)
    run.step()
    with pytest.raises(ClipTrainError, match="cannot save a checkpoint"):
        run.save(1)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]


def test_a_full_disk_ends_in_one_line_and_leaves_the_checkpoint_before(tmp_path):
    run = Run(tmp_path, width=5_000)
    run.step()
    run.save(1)
    run.step()
    with limited_files(20_000):
        run.checkpoints.save(2, STREAM, {})
        with pytest.raises(ClipTrainError, match=r"^cannot save a checkpoint in .*: .*File too large") as error:
            run.checkpoints.wait()
        assert "\n" not in str(error.value)
        with pytest.raises(ClipTrainError, match="cannot save a checkpoint"):  # it is not forgotten
            run.checkpoints.save(3, STREAM, {})
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
    assert Run(tmp_path, width=5_000).resume().step == 1


@contextmanager
def limited_files(limit: int):
    """Lets no file of this process grow beyond `limit` bytes, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
