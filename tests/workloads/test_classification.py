"""Classification: hand-computed loss, exact metric sums, repeatable batches, and that it learns."""

import dataclasses
import math
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from gsdist.errors import ConfigError, DataError
from gsdist.workloads import ClassificationConfig, ClassificationWorkload


def _digits(**options):
    return ClassificationWorkload(ClassificationConfig(model="mlp", data="digits", **options))


class _Fixed(nn.Module):
    """Answers with its input, so that a test chooses the logits; counts in a buffer when training."""

    def __init__(self):
        super().__init__()
        self.register_buffer("training_calls", torch.zeros(()))

    def forward(self, images):
        self.training_calls += self.training
        return images


def test_loss_is_the_mean_cross_entropy():
    logits = torch.tensor([[0.0, math.log(3)], [math.log(7), 0.0]])
    labels = torch.tensor([1, 1])
    parts = _digits().loss(_Fixed(), (logits, labels))
    assert list(parts) == ["cross_entropy"]
    # Probabilities of the label: 3/4 and 1/8.
    assert parts.total.item() == pytest.approx((math.log(4 / 3) + math.log(8)) / 2, rel=1e-6)


def test_label_smoothing_moves_that_share_to_all_classes_evenly():
    logits = torch.tensor([[0.0, math.log(3)]])
    parts = _digits(label_smoothing=0.2).loss(_Fixed(), (logits, torch.tensor([1])))
    expected = -0.9 * math.log(3 / 4) - 0.1 * math.log(1 / 4)
    assert parts.total.item() == pytest.approx(expected, rel=1e-6)


def test_evaluate_gives_sums_and_counts_over_uneven_batches():
    torch.manual_seed(0)
    logits = torch.randn(23, 10)
    labels = torch.randint(10, (23,))
    model = _Fixed().train()
    batches = zip(logits.split(9), labels.split(9), strict=True)
    metrics = _digits(label_smoothing=0.3).evaluate(model, batches)

    probabilities = logits.double().exp() / logits.double().exp().sum(1, keepdim=True)
    hits = sum(int(row.argmax()) == int(label) for row, label in zip(logits, labels, strict=True))
    loss = -sum(math.log(probabilities[i, labels[i]]) for i in range(23))
    assert metrics["accuracy"] == (hits, 23)
    assert metrics["loss"] == (pytest.approx(loss, rel=1e-5), 23)
    assert model.training
    assert model.training_calls == 0


def test_evaluate_without_batches_still_names_its_metrics():
    model = _Fixed().eval()
    assert _digits().evaluate(model, []) == {"accuracy": (0.0, 0.0), "loss": (0.0, 0.0)}
    assert not model.training


def test_evaluation_batches_are_only_normalised():
    workload = _digits()
    images = torch.stack([workload.evaluation_dataset()[i][0] for i in range(5)])
    labels = torch.arange(5)
    prepared, kept = workload.prepare_batch((images, labels), training=False)
    image_format = workload.evaluation_dataset().format
    expected = (images.numpy() / 255.0 - image_format.mean[0]) / image_format.std[0]
    torch.testing.assert_close(prepared, torch.from_numpy(expected).float(), rtol=1e-5, atol=1e-6)
    assert kept is labels


@pytest.mark.parametrize("augment", [True, False])
def test_training_batches_repeat_with_the_generator(augment):
    workload = _digits(augment=augment)
    images = workload.training_dataset().images[:64]
    labels = workload.training_dataset().labels[:64]

    def prepared(seed, training=True):
        generator = torch.Generator().manual_seed(seed)
        batch = workload.prepare_batch((images, labels), training=training, generator=generator)
        return batch[0]

    assert torch.equal(prepared(1), prepared(1))
    assert prepared(1).shape == images.shape
    # Another seed gives other crops, and only if there are any.
    assert torch.equal(prepared(1), prepared(2)) is not augment
    assert torch.equal(prepared(1), prepared(1, training=False)) is not augment


def test_augmentation_follows_the_data_set():
    """Digits are moved but never mirrored: every prepared image is a shift of its original."""
    workload = _digits()
    images = workload.training_dataset().images[:32]
    generator = torch.Generator().manual_seed(0)
    prepared, _ = workload.prepare_batch((images, None), training=True, generator=generator)
    mean, std = (
        workload.training_dataset().format.mean[0],
        workload.training_dataset().format.std[0],
    )
    pixels = (prepared * std + mean).mul(255).round().to(torch.uint8)
    padded = nn.functional.pad(images, (1, 1, 1, 1))
    for index in range(32):
        shifts = [padded[index, :, y : y + 8, x : x + 8] for y in range(3) for x in range(3)]
        assert any(torch.equal(pixels[index], shift) for shift in shifts)


def test_it_learns_the_digits():
    torch.manual_seed(0)
    workload = _digits()
    model = workload.build_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    loader = DataLoader(
        workload.training_dataset(), batch_size=64, shuffle=True, generator=generator
    )
    for _ in range(10):
        for batch in loader:
            prepared = workload.prepare_batch(batch, training=True, generator=generator)
            optimizer.zero_grad()
            workload.loss(model, prepared).total.backward()
            optimizer.step()
    batches = (
        workload.prepare_batch(batch, training=False)
        for batch in DataLoader(workload.evaluation_dataset(), batch_size=100)
    )
    hits, count = workload.evaluate(model, batches)["accuracy"]
    assert count == 360
    assert hits / count > 0.8  # chance is 0.1


def test_model_follows_data_and_configuration():
    workload = _digits(train_subset=50)
    assert len(workload.training_dataset()) == 50
    assert len(workload.evaluation_dataset()) == 360
    assert workload.build_model()(torch.zeros(3, 1, 8, 8)).shape == (3, 10)
    residual = ClassificationWorkload(
        ClassificationConfig(model="resnet8", data="digits", norm="group", shortcut="padding")
    )
    model = residual.build_model()
    assert not [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert model(torch.zeros(3, 1, 8, 8)).shape == (3, 10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "resnet21"}, "'resnet21'.*resnet20"),
        ({"data": "cifar-10"}, "'cifar-10': did you mean 'cifar10'"),
        ({"label_smoothing": 1.0}, "label_smoothing.*1.0"),
        ({"label_smoothing": -0.1}, "label_smoothing.*-0.1"),
        ({"label_smoothing": math.nan}, "label_smoothing.*nan"),
        ({"train_subset": 0}, "train_subset must be at least 1.*0"),
        ({"image_size": -3}, "image_size must be at least 1.*-3"),
        ({"norm": "layer"}, "norm must be"),
        ({"shortcut": "bypass"}, "shortcut must be"),
    ],
)
def test_bad_configurations_are_refused_at_once(options, message):
    with pytest.raises(ConfigError, match=message):
        ClassificationConfig(**options)


def test_configuration_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ClassificationConfig().model = "resnet8"


def test_missing_data_names_the_command(tmp_path):
    workload = ClassificationWorkload(ClassificationConfig(data_root=str(tmp_path)))
    with pytest.raises(DataError, match="gsdist data cifar10"):
        workload.build_model()


def test_import_leaves_heavy_libraries_alone():
    program = (
        "import sys, gsdist.workloads; gsdist.workloads.ClassificationConfig(); "
        "assert not {'torchvision', 'sklearn', 'matplotlib'} & set(sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
