"""Exported graphs: what another runtime computes, what stands beside them, and that a bad one is not left behind."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F

import clip_models
from clip_models import ClipModelsError
from clip_models.export import graphs
from clip_models.export.exporting import export_model
from clip_models.export.formats import FORMATS, Exported, ExportFormat


@pytest.fixture(scope="module")
def model():
    return clip_models.create_model("ViT-Ti-4-24", seed=0).eval()


@pytest.fixture(scope="module")
def onnx_folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "onnx"
    export_model(model, "onnx", folder, pixels_inside=True, l2_inside=True)
    return folder


def run_onnx(path, name, value):
    return onnxruntime.InferenceSession(path).run(None, {name: value})[0]


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_onnx_gives_the_models_features_for_every_batch(model, onnx_folder, batch):
    pixels = torch.rand(batch, 3, 24, 24)
    captions = clip_models.get_tokenizer("ViT-Ti-4-24")(["a red cat", "two dogs at night", ""] * batch)[:batch]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (model.spec.preprocess.mean, model.spec.preprocess.std))
    with torch.no_grad():
        image = model.encode_image((pixels - mean) / std, normalize=True).numpy()
        text = model.encode_text(captions, normalize=True).numpy()
    np.testing.assert_allclose(run_onnx(onnx_folder / "image.onnx", "image", pixels.numpy()), image, atol=1e-5)
    np.testing.assert_allclose(run_onnx(onnx_folder / "text.onnx", "text", captions.numpy()), text, atol=1e-5)


@pytest.mark.slow
def test_the_self_check_is_in_the_folder_and_in_the_graphs(model, onnx_folder):
    description = json.loads((onnx_folder / "export.json").read_text())
    check = description["self_check"]
    assert check["pairs"] == 256
    assert 0 <= check["max_cosine_difference"] <= check["tolerance"] == 1e-4
    assert check["runtime"] == f"onnxruntime {onnxruntime.__version__}"
    for name in ("image", "text"):
        graph = onnx.load(onnx_folder / f"{name}.onnx")
        metadata = {entry.key: json.loads(entry.value) for entry in graph.metadata_props}
        assert metadata["clip_models.self_check"] == check
        assert clip_models.ModelSpec.from_dict(metadata["clip_models.spec"]) == model.spec


@pytest.mark.slow
def test_preprocessing_and_tokenizer_stand_beside(model, onnx_folder):
    preprocess = json.loads((onnx_folder / "preprocess.json").read_text())
    assert clip_models.PreprocessConfig.from_dict(preprocess) == model.spec.preprocess
    assert (onnx_folder / "tokenizer.json").is_file()


@pytest.mark.slow
def test_a_tower_holds_its_own_weights_only(model, onnx_folder):
    bytes_of_image = sum(p.numel() * 4 for p in model.visual.parameters())
    assert (onnx_folder / "image.onnx").stat().st_size < 1.5 * bytes_of_image


@pytest.mark.slow
def test_torch_export_runs_without_this_package(model, tmp_path):
    check = export_model(model, "torch-export", tmp_path / "out", pairs=20)
    assert check.max_cosine_difference < 1e-6
    extra = {"clip_models.json": ""}
    program = torch.export.load(tmp_path / "out" / "image.pt2", extra_files=extra)
    assert json.loads(json.loads(extra["clip_models.json"])["clip_models.self_check"])["pairs"] == 20
    image = torch.randn(5, 3, 24, 24)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(image), model.encode_image(image), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_wrong_graph_is_refused_and_nothing_is_left(model, tmp_path, monkeypatch):
    export = graphs.export_program

    def broken(tower, example, path):
        program, run = export(tower, example, path)
        return program, lambda batch: F.dropout(run(batch), 0.5, training=True)

    monkeypatch.setattr(graphs, "export_program", broken)
    with pytest.raises(ClipModelsError, match=r"not the model: torch .* nothing was written"):
        export_model(model, "torch-export", tmp_path / "out", pairs=20)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": "tensorrt"}, "there is no export format 'tensorrt'; there are onnx"),
        ({"to": "onnx", "precision": "int3"}, "'int3' is not exported"),
        ({"to": "onnx", "precision": "bf16"}, "no bf16 on the CPU.* choose fp32 or fp16"),
        ({"to": "open-clip", "l2_inside": True}, "not into 'open-clip'"),
        ({"to": "onnx", "pairs": 0}, "pairs 0"),
        ({"to": "onnx", "output": "."}, "exists; name a new folder"),
    ],
)
def test_bad_requests_are_named(model, tmp_path, options, message):
    with pytest.raises(ClipModelsError, match=message):
        export_model(model, **{"output": tmp_path / "out", **options})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("to", ["torch-export", "open-clip"])
def test_low_precision_is_checked_against_the_model_which_stays_as_it_was(model, tmp_path, to):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    check = export_model(model, to, tmp_path / "out", pairs=20, precision="fp16")
    assert 1e-6 < check.max_cosine_difference < 1e-2
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, before[name])


@pytest.mark.slow
def test_exporting_is_quiet(onnx_folder, model, tmp_path, caplog):
    export_model(model, "onnx", tmp_path / "out", pairs=2)
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == []


@pytest.mark.slow
def test_text_graphs_are_right_for_captions_of_every_length(model, onnx_folder):
    tokenizer = clip_models.get_tokenizer(model.spec)
    for count in (0, 1, 7, 200):  # one by one: the tower itself cuts each to its own length
        ids = tokenizer(["word " * count])
        with torch.no_grad():
            expected = model.encode_text(ids, normalize=True).numpy()
        np.testing.assert_allclose(run_onnx(onnx_folder / "text.onnx", "text", ids.numpy()), expected, atol=1e-5)


class StateDict(ExportFormat):
    def write(self, folder, source):
        torch.save(source.model.state_dict(), folder / "weights.pt")
        return Exported(run_image=source.image_tower, run_text=source.text_tower, runtime="this process")

    def add_metadata(self, folder, metadata):
        (folder / "metadata.txt").write_text("\n".join(sorted(metadata)))


@pytest.mark.slow
def test_a_user_defined_format_is_one_class(model, tmp_path, monkeypatch):
    monkeypatch.setattr(FORMATS, "_known", dict(FORMATS._known))
    FORMATS.add("state-dict")(StateDict)
    check = export_model(model, "state-dict", tmp_path / "out", pairs=4)
    assert check.runtime == "this process"
    assert torch.load(tmp_path / "out" / "weights.pt").keys() == model.state_dict().keys()
    assert "clip_models.self_check" in (tmp_path / "out" / "metadata.txt").read_text()
    assert json.loads((tmp_path / "out" / "export.json").read_text())["format"] == "state-dict"
    with pytest.raises(ClipModelsError, match="not into 'state-dict'"):
        export_model(model, "state-dict", tmp_path / "inside", l2_inside=True)
