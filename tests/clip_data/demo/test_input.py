import pytest

from clip_data.config import from_dict
from clip_data.demo import InputConfig, serve, write_input
from clip_data.errors import ClipDataError
from clip_data.store import Store


def test_scenes_are_written_once(tmp_path):
    config = InputConfig(kind="scenes", rows=200)
    write_input(config, str(tmp_path))
    first = (tmp_path / "urls.parquet").read_bytes()
    write_input(config, str(tmp_path))
    assert (tmp_path / "urls.parquet").read_bytes() == first


def test_the_table_lies_where_the_url_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = InputConfig(kind="scenes", rows=200)
    write_input(config, str(tmp_path / "local"))
    write_input(config, "memory://bucket/input")
    assert Store("memory://bucket/input").read_bytes("urls.parquet") == (tmp_path / "local/urls.parquet").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["local"]


def test_a_folder_of_another_seed_is_refused(tmp_path):
    write_input(InputConfig(kind="scenes", rows=200, seed=1), str(tmp_path))
    with pytest.raises(ClipDataError, match="another run: seed is 1 there and 2 now"):
        write_input(InputConfig(kind="scenes", rows=200, seed=2), str(tmp_path))


def test_a_table_that_is_there_needs_nothing(tmp_path):
    config = InputConfig(kind="table")
    write_input(config, str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    with serve(config):
        pass


@pytest.mark.parametrize(("key", "value"), [("port", 70000), ("kind", "scene"), ("kind", "folder")])
def test_bad_values_are_named(key, value):
    with pytest.raises(ClipDataError, match=key if key == "port" else f"{value}|input.folder"):
        from_dict(InputConfig, {key: value})
