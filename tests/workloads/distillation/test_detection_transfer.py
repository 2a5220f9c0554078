"""Transfer to object detection, on a small folder of Pascal VOC's layout."""

import json

import pytest
import torch
from PIL import Image, ImageDraw
from torch import nn

from gsdist.cli.main import main
from gsdist.data.voc import voc_images
from gsdist.errors import CheckpointError, ConfigError, DataError
from gsdist.models import build_staged_model
from gsdist.models.detector import build_detector
from gsdist.workloads.distillation import DetectionTransferConfig, DetectionTransferWorkload

OBJECT = """<object><name>{name}</name><difficult>{difficult}</difficult>
<bndbox><xmin>{0}</xmin><ymin>{1}</ymin><xmax>{2}</xmax><ymax>{3}</ymax></bndbox></object>"""
SCENES = {
    "000001": [("dog", 0, (5, 9, 36, 40)), ("car", 0, (41, 3, 60, 50))],
    "000002": [("dog", 0, (11, 21, 50, 60)), ("dog", 1, (1, 1, 9, 9))],
    "000003": [("car", 0, (1, 31, 40, 48))],
}
COLOURS = {"dog": (250, 40, 40), "car": (40, 40, 250)}


def _write(root, name, objects, size=(72, 64)):
    folder = root / "VOCdevkit" / "VOC2007"
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, (120, 120, 120))
    for kind, _, box in objects:
        ImageDraw.Draw(image).rectangle([edge - 1 for edge in box], fill=COLOURS[kind])
    image.save(folder / "JPEGImages" / f"{name}.jpg")
    listed = "".join(OBJECT.format(*b, name=k, difficult=d) for k, d, b in objects)
    (folder / "Annotations" / f"{name}.xml").write_text(f"<annotation>{listed}</annotation>")


@pytest.fixture(scope="session")
def voc(tmp_path_factory):
    root = tmp_path_factory.mktemp("voc")
    for name, objects in SCENES.items():
        _write(root, name, objects)
    _write(root, "000004", SCENES["000003"], size=(64, 90))
    lists = root / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main"
    (lists / "trainval.txt").write_text("".join(f"{name}\n" for name in (*SCENES, "000004")))
    (lists / "test.txt").write_text("".join(f"{name}\n" for name in SCENES))
    return root


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    network = build_staged_model("resnet8-narrow", num_classes=7)
    path = tmp_path_factory.mktemp("network") / "network.pt"
    torch.save(network.state_dict(), path)
    return path


def _workload(voc, weights, **options):
    config = DetectionTransferConfig(
        model="resnet8-narrow",
        weights=weights,
        data_root=str(voc),
        train_years=(2007,),
        **{"image_size": 64, "max_image_size": 96} | options,
    )
    return DetectionTransferWorkload(config)


def _batch(workload, data, *, training, seed=0):
    items = workload.collate_function()([data[index] for index in range(len(data))])
    generator = torch.Generator().manual_seed(seed)
    return workload.prepare_batch(items, training=training, generator=generator)


def test_boxes_cover_the_pixels_of_their_objects(voc):
    data = voc_images(voc, [2007], "trainval")
    assert len(data) == 4
    image, target = data[0]
    assert (image.shape, image.dtype) == ((3, 64, 72), torch.uint8)
    assert target["labels"].tolist() == [12, 7]
    assert target["boxes"].tolist() == [[4, 8, 36, 40], [40, 2, 60, 50]]
    for (left, top, right, bottom), strongest in zip(target["boxes"].int(), (0, 2), strict=True):
        inside = image[:, top:bottom, left:right].float().mean((1, 2))
        assert inside.argmax() == strongest
    assert data[1][1]["difficult"].tolist() == [False, True]
    with pytest.raises(DataError, match=r"cannot read 'trainval' of Pascal VOC 2012.*VOC2012/JPEG"):
        voc_images(voc, [2012], "trainval")


def test_training_mirrors_boxes_with_their_images_and_leaves_difficult_objects_out(voc, weights):
    workload = _workload(voc, weights)
    data = workload.training_dataset()
    mirrored = 0
    for seed in range(4):
        images, targets = _batch(workload, data, training=True, seed=seed)
        assert [len(target["boxes"]) for target in targets] == [2, 1, 1, 1]
        for number, (image, target) in enumerate(zip(images, targets, strict=True)):
            left, top, right, bottom = target["boxes"][0].int().tolist()
            colour = image[:, top:bottom, left:right].mean((1, 2))
            assert colour.argmax() == (0 if target["labels"][0] == 12 else 2)
            assert colour.max() > 0.9
            mirrored += left != int(data[number][1]["boxes"][0, 0])
    assert 0 < mirrored < 16
    assert [len(target["boxes"]) for target in _batch(workload, data, training=False)[1]] == [
        2, 2, 1, 1,
    ]  # fmt: skip


class _Oracle(nn.Module):
    """Answer with the true boxes of the first `known` images, and with nothing for the others."""

    def __init__(self, answers, known):
        super().__init__()
        self.answers = iter(
            [
                {k: v[: len(v) * (n < known)] for k, v in answer.items()}
                for n, answer in enumerate(answers)
            ]
        )

    def forward(self, images):
        return [next(self.answers) for _ in images]


def _truth(workload):
    _, targets = _batch(workload, workload.evaluation_dataset(), training=False)
    kept = [~target["difficult"] for target in targets]
    return [
        {k: v[keep] for k, v in (target | {"scores": torch.ones(len(keep))}).items()}
        for target, keep in zip(targets, kept, strict=True)
    ]


@pytest.mark.parametrize(("known", "expected"), [(3, 1.0), (0, 0.0)])
def test_precision_is_that_of_the_boxes_that_count(voc, weights, known, expected):
    workload = _workload(voc, weights)
    images, targets = _batch(workload, workload.evaluation_dataset(), training=False)
    oracle = _Oracle(_truth(workload), known)
    found = workload.evaluate(oracle, [(images[:2], targets[:2]), (images[2:], targets[2:])])
    assert found["map_50"] == (pytest.approx(expected), 1.0)
    assert found["map"] == (pytest.approx(expected), 1.0)


def test_half_of_the_objects_of_each_class_give_half_the_precision(voc, weights):
    workload = _workload(voc, weights)
    images, targets = _batch(workload, workload.evaluation_dataset(), training=False)
    found = workload.evaluate(_Oracle(_truth(workload), known=1), [(images, targets)])
    # One of two dogs and one of two cars: COCO counts the 51 of 101 levels of recall up to a half.
    assert found["map_50"][0] == pytest.approx(51 / 101)


def test_early_layers_and_normalisation_stay_as_trained(voc, weights):
    workload = _workload(voc, weights)
    model = workload.build_model().train()
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    loaded = torch.load(weights, weights_only=True)
    shared = [name for name in before if name in loaded]
    assert len(shared) == len([name for name in loaded if not name.startswith("classifier")])
    assert all(torch.equal(before[name], loaded[name]) for name in shared)
    one = [workload.training_dataset()[0]]
    parts = workload.loss(model, _batch(workload, one, training=True))
    parts.total.backward()
    after = model.backbone.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    reached = {name for name, p in model.backbone.named_parameters() if p.grad is not None}
    assert not any(name.startswith(("stem", "stages.0")) for name in reached)
    assert {"stages.1", "stages.2"} == {name[:8] for name in reached if name.startswith("stages")}


def test_a_network_of_four_stages_gets_the_published_pyramid():
    with torch.device("meta"):
        network = build_staged_model("resnet18", num_classes=1)
    network = network.to_empty(device="cpu")
    detector = build_detector(network, 21, image_size=64, max_image_size=96).eval()
    maps = detector.backbone(torch.zeros(1, 3, 64, 64))
    assert [maps[name].shape[1:] for name in ("0", "1", "2", "3", "pool")] == [
        (256, size, size) for size in (16, 8, 4, 2, 1)
    ]


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_detector_trains_from_the_command_line(voc, weights, tmp_path, monkeypatch, capsys):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    arguments = ["--model", "resnet8-narrow", "--weights", str(weights), "--data-root", str(voc)]
    arguments += ["--train-years", "2007", "--image-size", "64", "--max-image-size", "96"]
    arguments += ["--batch-size", "2", "--steps", "8", "--learning-rate", "0.01", "--no-progress"]
    arguments += ["--reducer", "dense", "--log-every", "1", "--evaluate-every", "8", "--json", "-"]
    assert main(["train", "detection-transfer", *arguments, "--run-dir", str(tmp_path)]) == 0
    summary = json.loads(capsys.readouterr().out)
    losses = summary["curves"]["train"]["loss"]
    assert len(losses) == 8
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    assert 0 <= summary["map_50"] <= 1
    assert len(summary["config"]["workload"]["sha256"]) == 64


def test_what_cannot_be_is_refused(voc, weights, tmp_path):
    with pytest.raises(ConfigError, match="max_image_size must be at least image_size=600, got 96"):
        DetectionTransferConfig(max_image_size=96)
    with pytest.raises(ConfigError, match="train_years is empty"):
        DetectionTransferConfig(train_years=())
    with pytest.raises(ConfigError, match="weights is not set"):
        DetectionTransferWorkload(DetectionTransferConfig())
    torch.save({"stem": torch.ones(1)}, tmp_path / "wrong.pt")
    with pytest.raises(CheckpointError, match=r"(?s)wrong.pt does not hold.*CifarResNet.*--strip"):
        _workload(voc, tmp_path / "wrong.pt").build_model()
