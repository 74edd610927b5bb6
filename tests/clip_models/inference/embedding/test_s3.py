"""Sources in an object store: what is found, and what is said when it does not answer."""

import pytest

from clip_models import ClipModelsError
from clip_models.cli import main
from clip_models.inference.embedding.config import EmbedConfig
from clip_models.inference.embedding.inputs import open_source, storage_reason
from clip_models.inference.embedding.samples import Unused
from tests.support import embeddings
from tests.support.embeddings import image_bytes
from tests.support.pipeline import free_port
from tests.support.s3 import s3_server

s3fs = pytest.importorskip("s3fs")


@pytest.fixture(scope="module")
def server():
    """The address of a server that holds nothing."""
    with s3_server() as settings:
        yield settings["AWS_ENDPOINT_URL"]


@pytest.fixture
def settings(monkeypatch, tmp_path):
    """Sets the AWS variables; those that are not named are absent."""

    def use(**values):
        for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "ENDPOINT_URL", "PROFILE", "SESSION_TOKEN"):
            monkeypatch.delenv(f"AWS_{name}", raising=False)
        fixed = {"EC2_METADATA_DISABLED": "true", "DEFAULT_REGION": "us-east-1", "MAX_ATTEMPTS": "1"}
        files = {"SHARED_CREDENTIALS_FILE": str(tmp_path / "none"), "CONFIG_FILE": str(tmp_path / "none")}
        for name, value in {**fixed, **files, **values}.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        s3fs.S3FileSystem.clear_instance_cache()

    yield use
    s3fs.S3FileSystem.clear_instance_cache()


LOGIN = {"ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret"}


@pytest.mark.slow
def test_folders_tars_and_lists_of_a_bucket(server, settings, tmp_path):
    settings(ENDPOINT_URL=server, **LOGIN)
    store = s3fs.S3FileSystem()
    store.mkdir("shelf")
    for number in range(2):
        store.pipe(f"shelf/images/{number}.png", image_bytes(number))
    store.put(str(embeddings.tar(tmp_path / "a.tar", range(2))), "shelf/tars/a.tar")
    store.pipe("shelf/list.txt", b"images/0.png\nimages/1.png\n")
    for source in ("images", "tars", "tars/*.tar", "list.txt"):
        items = open_source(f"s3://shelf/{source}", EmbedConfig(), lambda first, stop: True)
        found = [item.image() for item in items if not isinstance(item, Unused)]
        assert found == [image_bytes(0), image_bytes(1)], source


@pytest.mark.slow
def test_what_goes_wrong_is_one_line(server, settings, capsys, tmp_path):
    (tmp_path / "process").write_text("[default]\ncredential_process = /bin/false\n")
    (tmp_path / "broken").write_text("no table\n")
    alive, dead = {"ENDPOINT_URL": server}, {"ENDPOINT_URL": f"http://127.0.0.1:{free_port()}"}
    flags = ["--model", "ViT-Ti-4-24", "--pretrained", "x", "--output", str(tmp_path / "out")]
    for values, source, message in (
        (
            {**alive, **LOGIN},
            "s3://nowhere/x.tar",
            "s3://nowhere/x.tar does not exist, or cannot be reached; check",
        ),
        (
            {**alive, **LOGIN},
            "s3://nowhere/*.tar",
            "s3://nowhere/*.tar matches no file, or cannot be reached; check",
        ),
        (alive, "s3://shelf/x.tar", "Unable to locate credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        ({**dead, **LOGIN}, "s3://shelf/x.tar", "Could not connect to the endpoint"),
        ({"ENDPOINT_URL": "nonsense", **LOGIN}, "s3://shelf/x.tar", "Invalid endpoint: nonsense"),
        ({**alive, "PROFILE": "ghost"}, "s3://shelf/x.tar", "(ghost) could not be found; set AWS_ACCESS_KEY_ID"),
        (
            {**alive, "CONFIG_FILE": str(tmp_path / "process")},
            "s3://shelf/x.tar",
            "process:; set AWS_ACCESS_KEY",
        ),
        ({**alive, **LOGIN, "CONFIG_FILE": str(tmp_path / "broken")}, "s3://shelf/x", "check the file of AWS_CONFIG_"),
        ({**alive, **LOGIN}, "s3://A B/x.tar", "Invalid bucket name"),
    ):
        settings(**values)
        with pytest.raises(SystemExit) as caught:
            main(["embed", source, *flags])
        out, err = capsys.readouterr()
        assert (caught.value.code, out, err.count("\n")) == (2, "", 1), err
        assert err.startswith("error: ")
        assert message in err
    assert not (tmp_path / "out").exists()


def test_a_store_that_leaves_during_the_run(settings, monkeypatch):
    """Its files are known, but it answers no more."""
    from fsspec.implementations.memory import MemoryFileSystem

    store = MemoryFileSystem()
    store.pipe("/gone/a.tar", b"x")

    class EndpointConnectionError(Exception):
        __module__ = "botocore.exceptions"

    def leave(*args, **options):
        raise EndpointConnectionError("Could not connect")

    monkeypatch.setattr(MemoryFileSystem, "open", leave)
    with pytest.raises(ClipModelsError, match=r"memory://gone/a.tar cannot be read: Could not connect; check AWS_END"):
        list(open_source("memory://gone/a.tar", EmbedConfig(), lambda first, stop: True))
    assert storage_reason(KeyError("a bug")) is None
