"""SECURITY.md: every test that it names exists, and guarantees that no other file tests."""

import ast
import asyncio
import builtins
import datetime
import http.server
import json
import re
import ssl
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from clip_data.acquire import AcquireConfig, Code, Fetcher
from clip_models import ClipModelsError, HFTextConfig, TokenizerConfig, create_model, get_model_spec, get_tokenizer
from tests.support.hostile_server import HostileServer

ROOT = Path(__file__).parent.parent
POLICY = (ROOT / "SECURITY.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_every_guarantee_names_tests_that_exist():
    guarantees = POLICY.partition("## Guarantees")[2].partition("## What is not")[0]
    rows = [line for line in guarantees.splitlines() if re.match(r"\| (?!guarantee)", line)]
    assert len(rows) > 20
    assert [row for row in rows if not re.search(r"`test_\w+`", row)] == []
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "tests").rglob("test_*.py")]
    known = {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert set(re.findall(r"`(test_\w+)`", POLICY)) <= known


def fetch(*urls):
    """The results of URLs on loopback, one after another in one session."""

    async def run():
        results = []
        async with Fetcher(AcquireConfig(retries=0, allow_private=True)) as fetcher:
            for url in urls:
                async with fetcher.fetch(url) as result:
                    results.append(result)
        return results

    return asyncio.run(run())


def test_cookies_and_logins_are_neither_kept_nor_sent(monkeypatch, tmp_path):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with HostileServer().running() as server:
        url = server.put("a", b"image", Set_Cookie="name=value; Path=/")
        assert [result.body for result in fetch(url, url)] == [b"image", b"image"]
        assert [{"cookie", "authorization"} & set(request.headers) for request in server.requests] == [set(), set()]


def test_a_certificate_that_nobody_vouches_for_is_refused(tmp_path):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(self_signed(tmp_path / "server.pem"))
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        [result] = fetch(f"https://localhost:{server.server_port}/")
        server.shutdown()
    assert result.code == Code.TLS


def self_signed(path: Path) -> Path:
    """A key and a certificate for localhost."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    certificate = builder.sign(key, hashes.SHA256())
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(private + certificate.public_bytes(pem))
    return path


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """A folder as from a hub, whose settings name Python code beside them, and a user who agrees to everything."""
    folder, fuse = tmp_path / "model", tmp_path / "exploded"
    folder.mkdir()
    settings = {
        "tokenizer_class": "Mine",
        "model_type": "mine",
        "auto_map": {"AutoConfig": "mine.Mine", "AutoModel": "mine.Mine", "AutoTokenizer": ["mine.Mine", "mine.Mine"]},
    }
    for name in ("config.json", "tokenizer_config.json"):
        (folder / name).write_text(json.dumps(settings))
    (folder / "mine.py").write_text(f"open({str(fuse)!r}, 'w')\nclass Mine: pass\n")
    asked = []
    monkeypatch.setattr(builtins, "input", lambda prompt="": asked.append(prompt) or "y")
    yield folder
    assert not fuse.exists()
    assert asked == []


def test_python_files_beside_a_tokenizer_are_never_run(trap):
    spec = replace(get_model_spec("ViT-Ti-4-24"), tokenizer=TokenizerConfig(kind="hf", name=str(trap)))
    with pytest.raises(ClipModelsError, match="no tokenizer can be read"):
        get_tokenizer(spec)


def test_python_files_beside_a_text_encoder_are_never_run(trap):
    transformers = pytest.importorskip("transformers")
    config = transformers.RobertaConfig(
        vocab_size=49408, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    text = HFTextConfig(model_name=str(trap), config=config.to_dict())
    spec = replace(get_model_spec("ViT-Ti-4-24"), name="trap", text=text)
    with pytest.raises(ClipModelsError, match="the default weights of"):
        create_model(spec, pretrained_text=True)
