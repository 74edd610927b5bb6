import dataclasses
import json
from pathlib import Path

import pytest

from clip_core.config import ConfigError
from clip_train.config import FitConfig, ModelConfig
from clip_train.errors import ClipTrainError
from clip_train.runfolder import RunFolder, RunLog


def config_in(folder, name: str = "ViT-Ti-4-24") -> FitConfig:
    return FitConfig(run=str(folder), model=ModelConfig(name=name))


def test_looking_at_a_folder_makes_nothing(tmp_path):
    folder = RunFolder(config_in(tmp_path / "new"))
    assert folder.finished() is None
    assert list(tmp_path.iterdir()) == []


def test_a_run_of_another_config_is_refused_by_the_key_that_differs(tmp_path):
    RunFolder(config_in(tmp_path)).write_config()
    RunFolder(config_in(tmp_path))
    with pytest.raises(ClipTrainError, match=r"model\.name is 'ViT-Ti-4-24' there and 'ViT-B-32' now"):
        RunFolder(config_in(tmp_path, "ViT-B-32"))


def test_a_moved_run_is_still_the_same_run(tmp_path):
    RunFolder(config_in(tmp_path / "old")).write_config()
    (tmp_path / "old").rename(tmp_path / "new")
    RunFolder(config_in(tmp_path / "new"))


def test_a_folder_of_other_things_is_refused(tmp_path):
    (tmp_path / "dataset.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"holds no training run \(it has 'dataset\.json', no config\.json\)"):
        RunFolder(config_in(tmp_path))
    with pytest.raises(ClipTrainError, match="is a file"):
        RunFolder(config_in(tmp_path / "dataset.json"))


def test_two_processes_cannot_train_in_one_folder(tmp_path):
    folder = RunFolder(config_in(tmp_path))
    with folder.locked(), pytest.raises(ClipTrainError, match="another process"), folder.locked():
        pass
    with folder.locked():
        pass


def test_a_finished_run_gives_its_result_to_the_bit_and_notices_other_weights(tmp_path):
    folder = RunFolder(config_in(tmp_path))
    Path(folder.model()).write_bytes(b"weights")
    loss = 0.1 + 0.2
    result = folder.finish(steps=5, loss=loss, val_loss=None)
    assert folder.finished() == result
    assert result.loss == loss
    Path(folder.model()).write_bytes(b"others")
    with pytest.raises(ClipTrainError, match=r"done\.json"):
        folder.finished()


def test_a_run_whose_checkpoints_are_gone_is_not_started_over(tmp_path):
    folder = RunFolder(config_in(tmp_path))
    folder.check_new()
    with RunLog(tmp_path, 0) as log:
        log.write({"step": 0, "event": "start"})
        log.write({"step": 1, "loss": 1.0})
    folder.check_new()  # killed before the first checkpoint
    with RunLog(tmp_path, 1) as log:
        log.write({"step": 4, "event": "checkpoint"})
    with pytest.raises(ClipTrainError, match=r"log.jsonl says that step 4 was saved, but .*checkpoints.* put it back"):
        folder.check_new()


@pytest.mark.parametrize("text", ["", '{"run": "x', "[]", "null", "{}", '{"tasks": []}'])
def test_a_damaged_config_has_a_way_out(tmp_path, text):
    RunFolder(config_in(tmp_path)).write_config()
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ClipTrainError, match=r"config\.json is not the config of a training run: .*delete that file"):
        RunFolder(config_in(tmp_path))
    saved = tmp_path / "checkpoints" / "step-00000002"
    saved.mkdir(parents=True)
    (saved / "state.json").touch()
    (tmp_path / "config.json").unlink()
    RunFolder(config_in(tmp_path))  # its checkpoints are compared with the config when they are read


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"step": 3'])
def test_a_damaged_done_json_has_a_way_out(tmp_path, text):
    folder = RunFolder(config_in(tmp_path))
    folder.write_config()
    (tmp_path / "done.json").write_text(text)
    with pytest.raises(ClipTrainError, match=r"done\.json is damaged .*: delete .*done\.json to export again"):
        folder.finished()


def test_a_resumed_log_has_each_step_once(tmp_path):
    with RunLog(tmp_path, 0) as log:
        for step in range(1, 6):
            log.write({"step": step, "loss": step / 10})
            log.scalars({"train/loss": step / 10}, step)
        log.write({"step": 5, "event": "validation", "val_loss": 1.0})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')  # the line that a kill cut short
    with RunLog(tmp_path, 3) as log:
        log.write({"step": 4, "loss": 0.5})
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert lines[-1]["loss"] == 0.5


def test_the_config_of_a_run_can_be_run_again(tmp_path):
    from clip_core.cli import parse

    config = dataclasses.replace(config_in(tmp_path), model=ModelConfig(name="ViT-B-32"))
    RunFolder(config).write_config()
    assert parse(FitConfig, [str(tmp_path / "config.json")], prog="x", description="x") == config
