"""Compact networks come back from files as they were, and answer the same elsewhere."""

import json

import pytest
import torch

from gsdist.compaction import cut_channels, plan_from_zeros, trace_channels
from gsdist.compaction.export import (
    MANIFEST,
    WEIGHTS,
    export_onnx,
    export_program,
    load_compact,
    save_compact,
)
from gsdist.errors import CheckpointError
from tests.workloads.pruning.networks import IMAGES, Residual, mask_half, randomise_norms

MORE_IMAGES = torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(8))


@pytest.fixture
def compacted():
    """Return a network with a sum whose width is restored, and the plan behind it."""
    torch.manual_seed(0)
    masked = Residual()
    randomise_norms(masked)
    graph = trace_channels(masked, (IMAGES,))
    mask_half(masked, graph.channel_groups())
    plan = plan_from_zeros(masked, graph, "scatter")
    return cut_channels(masked, graph, plan).model.eval(), plan


def build(architecture):
    assert architecture == {"model": "residual"}
    return Residual()


def test_weights_and_plan_come_back_bit_for_bit(compacted, tmp_path):
    pytest.importorskip("safetensors")
    model, plan = compacted
    save_compact(tmp_path, model, plan, architecture={"model": "residual"})
    again = load_compact(tmp_path, build, (IMAGES,)).eval()
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    with torch.no_grad():
        assert torch.equal(model(MORE_IMAGES), again(MORE_IMAGES))


def test_damaged_files_are_refused(compacted, tmp_path):
    pytest.importorskip("safetensors")
    model, plan = compacted
    save_compact(tmp_path, model, plan, architecture={"model": "residual"})
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    (tmp_path / WEIGHTS).write_bytes((tmp_path / WEIGHTS).read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="does not fit its manifest"):
        load_compact(tmp_path, build, (IMAGES,))
    (tmp_path / MANIFEST).write_text(json.dumps({**manifest, "format": 2}))
    with pytest.raises(CheckpointError, match="format 2, expected 1"):
        load_compact(tmp_path, build, (IMAGES,))
    with pytest.raises(CheckpointError, match="holds no compact network"):
        load_compact(tmp_path / "nowhere", build, (IMAGES,))


def test_torch_export_answers_the_same_for_any_batch(compacted, tmp_path):
    model, _ = compacted
    export_program(model, (IMAGES,), tmp_path / "model.pt2")
    program = torch.export.load(tmp_path / "model.pt2").module()
    with torch.no_grad():
        torch.testing.assert_close(program(MORE_IMAGES), model(MORE_IMAGES), rtol=0, atol=1e-6)


def test_onnx_runtime_answers_the_same_for_any_batch(compacted, tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    model, _ = compacted
    export_onnx(model, (IMAGES,), tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: MORE_IMAGES.numpy()})
    with torch.no_grad():
        expected = model(MORE_IMAGES)
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=1e-5)
