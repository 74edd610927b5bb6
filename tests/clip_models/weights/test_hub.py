"""The hub and plain URLs, against a stand-in on loopback."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import pytest

from clip_core.files import sha256_of
from clip_models import ClipModelsError
from clip_models.weights import download, hub
from clip_models.weights.download import download_pretrained_from_url, partial_of
from clip_models.weights.registry import find_tag
from tests.support.hub import Hub

BODY = bytes(range(256)) * 2048
"""512 KiB: more than one piece of every buffer on the way."""
REPO = "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"


@pytest.fixture
def server(monkeypatch):
    with Hub().running() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
        monkeypatch.setattr(download, "_CHUNK", 1 << 14)
        server.put(REPO, open_clip_model__safetensors=BODY, open_clip_config__json=b'{"model_cfg": {}}')
        yield server


def finished_files(root: Path) -> list[Path]:
    """What stands under a final name and has content, the hub's notes on branches apart."""
    found = [path for path in root.rglob("*") if path.is_file() and path.stat().st_size and path.parent.name != "refs"]
    return [path for path in found if path.suffix not in (".incomplete", ".lock")]


def refusal(call) -> str:
    with pytest.raises(ClipModelsError) as caught:
        call()
    return str(caught.value)


def test_a_file_comes_once_and_is_then_used_without_a_request(server, tmp_path):
    path = hub.download_file(REPO, "open_clip_model.safetensors", cache_dir=tmp_path)
    assert path.read_bytes() == BODY
    assert server.paths("GET")[-1:] == [f"/storage/{sha256_of(path)}"]
    server.requests.clear()
    assert hub.download_file(REPO, "open_clip_model.safetensors", cache_dir=tmp_path) == path
    assert hub.download_pretrained(find_tag("ViT-B-32", "laion2b_s34b_b79k"), cache_dir=tmp_path) == path
    assert server.requests == []


def test_the_cache_is_the_hubs_own(server, tmp_path):
    """What we fetched its library finds, and the other way round."""
    import huggingface_hub

    config = hub.download_file(REPO, "open_clip_config.json", cache_dir=tmp_path)
    theirs = huggingface_hub.hf_hub_download(
        REPO, "open_clip_config.json", cache_dir=tmp_path, local_files_only=True, endpoint=server.url
    )
    assert Path(theirs) == config
    server.put("org/other", weights__json=b"{}")
    theirs = huggingface_hub.hf_hub_download("org/other", "weights.json", cache_dir=tmp_path, endpoint=server.url)
    server.requests.clear()
    assert hub.download_file("org/other", "weights.json", cache_dir=tmp_path) == Path(theirs)
    assert server.requests == []


def test_safetensors_come_first_and_the_pickle_only_where_the_hub_says_there_are_none(server, tmp_path):
    server.put(REPO, open_clip_pytorch_model__bin=b"pickle")
    tag = find_tag("ViT-B-32", "laion2b_s34b_b79k")
    server.fail("open_clip_model.safetensors", status=503)
    message = refusal(lambda: hub.download_pretrained(tag, cache_dir=tmp_path))
    assert "does not serve open_clip_model.safetensors" in message
    assert "HTTP 503" in message
    assert not any("pytorch_model.bin" in request.path for request in server.requests)
    server.faults.clear()
    assert hub.download_pretrained(tag, cache_dir=tmp_path).suffix == ".safetensors"
    del server.repos[REPO].files["open_clip_model.safetensors"]
    assert hub.download_pretrained(tag, cache_dir=tmp_path / "new").read_bytes() == b"pickle"


def test_a_named_file_has_its_safetensors_twin_tried_first(server, tmp_path):
    server.put("jienengchen/ViTamin-S", pytorch_model__bin=b"pickle")
    tag = find_tag("ViTamin-S", "datacomp1b")
    assert hub.download_pretrained(tag, cache_dir=tmp_path / "a").name == "pytorch_model.bin"
    server.put("jienengchen/ViTamin-S", pytorch_model__safetensors=BODY)
    assert hub.download_pretrained(tag.to_cfg(), cache_dir=tmp_path / "b").name == "pytorch_model.safetensors"


def test_weights_in_several_parts_come_whole(server, tmp_path):
    index = b'{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}'
    parts = {"model-1.safetensors": b"one", "model-2.safetensors": b"two", "model.safetensors.index.json": index}
    server.add("org/parts", parts)
    path = hub.download_weights("org/parts", cache_dir=tmp_path)
    assert [path.with_name(name).read_bytes() for name in list(parts)[:2]] == [b"one", b"two"]


@pytest.mark.parametrize("part", ["../../../evil.safetensors", "/tmp/evil.safetensors", "a\\..\\evil.safetensors"])
def test_nothing_is_written_outside_the_cache(server, tmp_path, part):
    index = json.dumps({"weight_map": {"a": part}}).encode()
    server.add("org/evil", {"model.safetensors.index.json": index, part: b"evil"})
    assert "would be outside the cache" in refusal(lambda: hub.download_weights("org/evil", cache_dir=tmp_path / "c"))
    assert not list(tmp_path.rglob("*evil.safetensors"))
    server.add("org/evil", {"model.safetensors.index.json": b"[]"})
    assert "is not an index" in refusal(lambda: hub.download_weights("org/evil", cache_dir=tmp_path / "d"))


def test_a_revision_is_taken_at_its_word(server, tmp_path):
    commit = server.repos[REPO].commit
    path = hub.download_file(REPO, "open_clip_config.json", commit, tmp_path)
    assert hub.commit_of(path) == commit
    assert not list(tmp_path.rglob("refs/*"))
    assert "no revision 'v9'" in refusal(lambda: hub.download_file(REPO, "open_clip_config.json", "v9", tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda repo: setattr(repo, "gated", True), "requires that you accept its conditions"),
        (lambda repo: setattr(repo, "private", True), f"there is no repository {REPO} at http://127.0.0.1"),
        (lambda repo: repo.files.clear(), f"{REPO} on the hub has none of open_clip_model.safetensors"),
    ],
    ids=["gated", "private", "empty"],
)
def test_what_the_hub_refuses_is_one_clear_error(server, tmp_path, monkeypatch, change, message):
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    change(server.repos[REPO])
    assert message in refusal(lambda: hub.download_weights(REPO, cache_dir=tmp_path))
    assert finished_files(tmp_path) == []


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"where": "/resolve/", "status": 500}, "HTTP 500"),
        ({"where": "/resolve/", "status": 403}, "HTTP 403"),
        ({"where": "/resolve/", "hang": -1}, "does not answer"),
        ({"where": "/storage/", "status": 500}, "is not served now (HTTP 500)"),
        ({"where": "/storage/", "status": 404}, "there is nothing at"),
        ({"where": "/storage/", "hang": -1}, "does not answer"),
        ({"where": "/storage/", "cut": 0}, "broke off after 0 of"),
        ({"where": "/storage/", "hang": 0}, "does not answer"),
        ({"where": "/storage/", "corrupt": True}, "does not have the hash"),
    ],
    ids=["500", "403", "silent", "body 500", "body 404", "body silent", "body empty", "body hangs", "body corrupt"],
)
def test_a_hub_that_fails_is_one_clear_error_and_leaves_nothing_under_a_final_name(
    server, tmp_path, monkeypatch, fault, message
):
    monkeypatch.setattr(download, "TIMEOUT_S", 0.5 if "hang" in fault else 10)
    server.fail(**fault)
    assert message in refusal(lambda: hub.download_file(REPO, "open_clip_model.safetensors", cache_dir=tmp_path))
    assert finished_files(tmp_path) == []
    server.faults.clear()
    monkeypatch.setattr(download, "TIMEOUT_S", 10)
    assert hub.download_file(REPO, "open_clip_model.safetensors", cache_dir=tmp_path).read_bytes() == BODY


def test_no_server_at_all(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    message = refusal(lambda: hub.download_file(REPO, "config.json", cache_dir=tmp_path))
    assert message.startswith("http://127.0.0.1:9 does not answer for config.json of " + REPO)
    assert "is not a repository of the hub" in refusal(lambda: hub.download_file("a b/c/d", "config.json"))


def test_offline_is_an_error_only_for_what_is_not_there(server, tmp_path, monkeypatch):
    here = hub.download_file(REPO, "open_clip_config.json", cache_dir=tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert hub.download_file(REPO, "open_clip_config.json", cache_dir=tmp_path) == here
    assert "HF_HUB_OFFLINE is set" in refusal(lambda: hub.download_weights(REPO, cache_dir=tmp_path))


def test_a_connection_that_breaks_is_taken_up_where_it_broke(server, tmp_path):
    server.fail("/storage/", cut=100_000, times=2)
    assert hub.download_file(REPO, "open_clip_model.safetensors", cache_dir=tmp_path).read_bytes() == BODY
    asked = [request.headers.get("range") for request in server.requests if "/storage/" in request.path]
    assert asked == [None, "bytes=100000-", "bytes=200000-"]


def test_a_server_without_ranges_sends_it_again_from_the_start(server, tmp_path):
    server.ranges = False
    server.fail("/storage/", cut=100_000, times=1)
    assert hub.download_file(REPO, "open_clip_model.safetensors", cache_dir=tmp_path).read_bytes() == BODY


def test_the_login_goes_to_the_hub_and_not_to_where_it_sends_us(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    server.repos[REPO].private = True
    hub.download_file(REPO, "open_clip_model.safetensors", cache_dir=tmp_path)
    hub.download_file(REPO, "open_clip_config.json", cache_dir=tmp_path)
    for request in server.requests:
        assert ("authorization" in request.headers) == ("/resolve/" in request.path)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["hub", "url"])
def test_a_killed_download_leaves_no_final_name_and_goes_on(server, tmp_path, way):
    url = f"{server.url}/plain/{'0' * 56}/ViT-B-32.pt"
    server.bodies[f"{'0' * 56}/ViT-B-32.pt"] = BODY
    slow = server.fail("/storage/" if way == "hub" else "/plain/", pause=0.05, methods=("GET",))
    call = {
        "hub": f"from clip_models.weights.hub import download_file as d; d({REPO!r}, 'open_clip_model.safetensors')",
        "url": f"from clip_models.weights import download as d; d.download_pretrained_from_url({url!r})",
    }[way]
    code = f"from clip_models.weights import download; download._CHUNK = 4096\n{call}"
    environment = {**os.environ, "HF_HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 30
    while not any(path.stat().st_size > 50_000 for path in tmp_path.rglob("*.incomplete")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert finished_files(tmp_path) == []
    [partial] = tmp_path.rglob("*.incomplete")
    arrived = partial.stat().st_size
    assert 50_000 < arrived < len(BODY)
    server.faults.remove(slow)
    server.requests.clear()
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert [request.headers["range"] for request in server.requests if "range" in request.headers] == [
        f"bytes={arrived}-"
    ]
    assert any(path.read_bytes() == BODY for path in finished_files(tmp_path))
    assert not list(tmp_path.rglob("*.incomplete"))


def test_a_url_with_a_hash_is_fetched_once_and_checked(server, tmp_path):
    server.bodies["w-1234.pt"] = BODY
    url = f"{server.url}/plain/w-1234.pt"
    message = refusal(lambda: download_pretrained_from_url(url, tmp_path, "1234"))
    assert f"what {url} sent does not have the hash 1234" in message
    assert list(tmp_path.rglob("*.pt*")) == [*tmp_path.rglob("*.lock")]
    path = download_pretrained_from_url(url, tmp_path, sha256_of_bytes(BODY)[:8])
    server.requests.clear()
    assert download_pretrained_from_url(url, tmp_path, sha256_of_bytes(BODY)[:8]) == path
    assert server.requests == []


def sha256_of_bytes(body: bytes) -> str:
    import hashlib

    return hashlib.sha256(body).hexdigest()


def test_a_url_without_a_hash_is_fetched_again_when_it_changes(server, tmp_path):
    server.bodies["epoch_latest.pt"] = b"\1\0one"
    url = f"{server.url}/plain/epoch_latest.pt"
    first = download_pretrained_from_url(url, tmp_path)
    assert download_pretrained_from_url(url, tmp_path) == first
    server.bodies["epoch_latest.pt"] = b"\1\0two"
    assert download_pretrained_from_url(url, tmp_path).read_bytes() == b"\1\0two"
    assert first.name == "epoch_latest.pt"
    assert "there is nothing at" in refusal(lambda: download_pretrained_from_url(url + "x", tmp_path))


def test_two_urls_with_one_name_do_not_meet(server, tmp_path):
    server.bodies |= {"a/model.pt": b"\1\0a", "b/model.pt": b"\1\0b"}
    paths = [download_pretrained_from_url(f"{server.url}/plain/{name}/model.pt", tmp_path) for name in "ab"]
    assert [path.read_bytes() for path in paths] == [b"\1\0a", b"\1\0b"]


def test_a_page_in_place_of_the_weights_is_not_kept(server, tmp_path):
    server.bodies["model.pt"] = b"<!DOCTYPE html><html><title>Sign in</title></html>"
    message = refusal(lambda: download_pretrained_from_url(f"{server.url}/plain/model.pt", tmp_path))
    assert "/plain/model.pt sends no weights: its content is an HTML page (Sign in)" in message
    server.bodies["model.pt"] = b""
    message = refusal(lambda: download_pretrained_from_url(f"{server.url}/plain/model.pt", tmp_path))
    assert "its content is empty (0 bytes)" in message
    assert finished_files(tmp_path) == []


def test_any_fsspec_url_is_a_source_and_goes_on_too(tmp_path):
    url = "memory://weights/model.safetensors"
    fsspec.filesystem("memory").pipe("/weights/model.safetensors", BODY)
    path = download_pretrained_from_url(url, tmp_path, sha256_of_bytes(BODY))
    assert path.read_bytes() == BODY
    partial = partial_of(path)
    path.rename(partial)
    os.truncate(partial, 1000)
    assert download_pretrained_from_url(url, tmp_path, sha256_of_bytes(BODY)).read_bytes() == BODY
    assert "there is no file memory://weights/no" in refusal(
        lambda: download_pretrained_from_url("memory://weights/no")
    )
    assert "nope://x/y.pt cannot be read" in refusal(lambda: download_pretrained_from_url("nope://x/y.pt"))
    assert "is not the URL of a file" in refusal(lambda: download_pretrained_from_url("https://host/"))


def test_a_cache_that_cannot_be_written_is_one_error(server, tmp_path):
    (tmp_path / "file").write_text("in the way")
    server.bodies["w.pt"] = BODY
    message = refusal(lambda: download_pretrained_from_url(f"{server.url}/plain/w.pt", tmp_path / "file", "ab"))
    assert "cannot write" in message
    assert "choose another cache_dir" in message


def test_what_is_not_there_is_remembered(server, tmp_path):
    for _ in range(2):
        assert hub.find_optional(REPO, "config.json", cache_dir=tmp_path) is None
    assert server.paths("HEAD") == [f"/{REPO}/resolve/main/config.json"]
    server.put("org/pickles", open_clip_pytorch_model__bin=b"x")
    path = hub.download_weights("org/pickles", cache_dir=tmp_path)
    server.requests.clear()
    assert hub.download_weights("org/pickles", cache_dir=tmp_path) == path
    assert server.requests == []


def test_a_bar_shows_what_has_arrived(server, tmp_path, monkeypatch):
    bars = []

    class Bar:
        def __init__(self, total, initial, desc, **_):
            self.total, self.n, self.desc = total, initial, desc
            bars.append(self)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def update(self, n):
            self.n += n

    monkeypatch.setattr("tqdm.tqdm", Bar)
    server.bodies["w.pt"] = BODY
    server.fail("/plain/", cut=100_000, times=1)
    download_pretrained_from_url(f"{server.url}/plain/w.pt", tmp_path, sha256_of_bytes(BODY))
    assert [(bar.total, bar.n, bar.desc) for bar in bars] == [(len(BODY), n, "w.pt") for n in (100_000, len(BODY))]
