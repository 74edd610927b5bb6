"""Uploads to a stand-in of the hub: what arrives can be loaded again, by its own name."""

import base64
import hashlib
import json
import re
import socket
from dataclasses import replace

import pytest
import torch

import clip_models
from clip_models import ClipModelsError, cli
from clip_models.export.push import push_to_hub
from tests.support.hub import Handler, Hub, Request
from tests.support.tokenizers import CAPTIONS, make_byte_bpe

REPO = "someone/tiny-clip"


class Uploads:
    """The hub's side of an upload: files small and large, and the commit that makes them visible."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.created: list[dict] = []
        self.commits: list[dict] = []
        self.objects: dict[str, bytes] = {}
        hub.routes |= {
            ("POST", "/api/repos/create"): self.create,
            ("POST", r"/api/models/.+/preupload/main"): self.preupload,
            ("POST", r"/.+\.git/info/lfs/objects/batch"): self.batch,
            ("PUT", r"/lfs/\w{64}"): self.put,
            ("POST", r"/api/models/.+/commit/main"): self.commit,
            ("POST", "/api/validate-yaml"): lambda handler, request: handler.reply_json({"errors": [], "warnings": []}),
        }

    def create(self, handler: Handler, request: Request) -> None:
        self.created.append(json.loads(request.body))
        handler.reply_json({"url": f"{self.hub.url}/{REPO}", "id": REPO})

    def preupload(self, handler: Handler, request: Request) -> None:
        files = json.loads(request.body)["files"]
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
            }
            for file in files
        ]
        handler.reply_json({"files": modes})

    def batch(self, handler: Handler, request: Request) -> None:
        objects = [
            {**wanted, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{wanted['oid']}"}}}
            for wanted in json.loads(request.body)["objects"]
        ]
        handler.reply_json({"transfer": "basic", "objects": objects})

    def put(self, handler: Handler, request: Request) -> None:
        self.objects[request.path.rsplit("/", 1)[-1]] = request.body
        handler.reply(200, b"")

    def commit(self, handler: Handler, request: Request) -> None:
        head, *entries = (json.loads(line) for line in request.body.splitlines())
        name = re.fullmatch("/api/models/(.+)/commit/main", request.path)[1]
        for entry in entries:
            value = entry["value"]
            body = self.objects[value["oid"]] if entry["key"] == "lfsFile" else base64.b64decode(value["content"])
            if entry["key"] == "lfsFile":
                assert hashlib.sha256(body).hexdigest() == value["oid"]
            self.hub.add(name, {value["path"]: body})
        self.commits.append(head["value"])
        handler.reply_json({"success": True, "commitOid": "a" * 40, "commitUrl": f"{self.hub.url}/{name}/commit/1"})


@pytest.fixture
def uploads(monkeypatch, tmp_path):
    with Hub().running() as hub:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)  # the stand-in speaks LFS
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
        yield Uploads(hub)


@pytest.fixture(scope="module")
def model():
    return clip_models.create_model("ViT-Ti-4-24", seed=5).eval()


@pytest.mark.slow
def test_what_was_pushed_loads_under_its_name(uploads, model, tmp_path):
    url = push_to_hub(
        model, REPO, licence="mit", training_data="made-up scenes", metrics={"ImageNet top-1": 0.25}, token="t"
    )
    assert url.endswith("/commit/1")
    assert uploads.created[0]["name"] == "tiny-clip"
    assert len(uploads.commits) == 1
    files = uploads.hub.repos[REPO].files
    assert {"open_clip_config.json", "open_clip_model.safetensors", "README.md", "tokenizer.json"} <= set(files)
    again, preprocess = clip_models.create_model_from_pretrained(f"hf-hub:{REPO}", cache_dir=tmp_path)
    assert preprocess.config == model.spec.preprocess
    image = torch.randn(2, 3, 24, 24)
    with torch.no_grad():
        torch.testing.assert_close(again.encode_image(image), model.encode_image(image), rtol=0, atol=0)


@pytest.mark.slow
def test_a_tokenizer_of_this_machine_is_loaded_from_the_repository(uploads, tmp_path):
    own = clip_models.TokenizerConfig(kind="hf", name=str(make_byte_bpe(tmp_path / "own")))
    plain = clip_models.get_model_spec("ViT-Ti-4-24")
    spec = replace(plain, text=replace(plain.text, pool_type="eos", eos_id=2), tokenizer=own)
    expected = clip_models.get_tokenizer(spec)(CAPTIONS)
    push_to_hub(clip_models.create_model(spec, seed=0), REPO, token="t")
    (tmp_path / "own").rename(tmp_path / "gone")
    again = clip_models.create_model(f"hf-hub:{REPO}", cache_dir=tmp_path)
    assert again.spec.tokenizer.name == REPO
    assert torch.equal(clip_models.get_tokenizer(again.spec, cache_dir=tmp_path)(CAPTIONS), expected)
    assert str(tmp_path) not in uploads.hub.repos[REPO].files["README.md"].decode()


def test_the_card_says_what_the_model_is(uploads, model):
    push_to_hub(model, REPO, licence="mit", training_data="made-up scenes", metrics={"ImageNet top-1": 0.25}, token="t")
    card = uploads.hub.repos[REPO].files["README.md"].decode()
    front, body = card.removeprefix("---\n").split("\n---\n", 1)
    assert front.splitlines()[:2] == ["license: mit", "library_name: open_clip"]
    for part in ("ViT-Ti-4-24", "24 × 24", "made-up scenes", "| ImageNet top-1 | 0.25 |", f'"hf-hub:{REPO}"'):
        assert part in body


def test_a_refusal_and_a_silent_hub_are_named(uploads, model, monkeypatch):
    fault = uploads.hub.fail("/api/repos/create", status=403, methods=("POST",))
    with pytest.raises(ClipModelsError, match=r"the hub refused 'someone/tiny-clip' with status 403; log in"):
        push_to_hub(model, REPO, token="t")
    fault.times = 0
    uploads.hub.fail("/commit/main", status=400, methods=("POST",))
    with pytest.raises(ClipModelsError, match="with status 400"):
        push_to_hub(model, REPO, token="t")
    assert REPO not in uploads.hub.repos
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")
        with pytest.raises(ClipModelsError, match="does not answer"):
            push_to_hub(model, REPO, token="t")


def test_a_name_without_an_owner_is_refused_before_anything_is_sent(uploads, model):
    with pytest.raises(ClipModelsError, match="'tiny' must be 'organisation/name'"):
        push_to_hub(model, "tiny")
    assert uploads.hub.requests == []


def test_the_command_needs_weights(uploads, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["push", "--model", "ViT-Ti-4-24", "--repo-id", REPO])
    assert capsys.readouterr().err.startswith("error: ")
    assert uploads.hub.requests == []
