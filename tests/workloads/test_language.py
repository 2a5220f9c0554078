"""Language: hand-computed loss, exact sums, windows that keep to their part, and that it learns."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader

from gsdist.data import TextWindows
from gsdist.errors import ConfigError, DataError
from gsdist.workloads import LanguageConfig, LanguageWorkload


class _Fixed(nn.Module):
    """Answers with logits that a test chose; counts in a buffer when training."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits
        self.register_buffer("training_calls", torch.zeros(()))

    def forward(self, inputs):
        self.training_calls += self.training
        return self.logits.expand(*inputs.shape, 256)


def _favouring(byte, times):
    """Logits that make one byte `times` as likely as each of the others."""
    logits = torch.zeros(256)
    logits[byte] = math.log(times)
    return logits


def _workload(**options):
    return LanguageWorkload(LanguageConfig(data="python-source", **options))


def _of_folder(folder, content, **options):
    (folder / "text.txt").write_bytes(content)
    return LanguageWorkload(LanguageConfig(data="text-folder", data_root=str(folder), **options))


# ---- loss and metrics -----------------------------------------------------------------------------


def test_loss_is_the_mean_cross_entropy_per_byte():
    model = _Fixed(_favouring(7, 257))
    inputs = torch.zeros(2, 2, dtype=torch.int64)
    targets = torch.tensor([[7, 7], [7, 8]])
    parts = _workload().loss(model, (inputs, targets))
    assert list(parts) == ["cross_entropy"]
    # Probabilities 257/512 for three bytes and 1/512 for one.
    expected = (3 * math.log(512 / 257) + math.log(512)) / 4
    assert parts.total.item() == pytest.approx(expected, rel=1e-6)


def test_evaluate_gives_sums_and_counts_over_uneven_batches():
    model = _Fixed(_favouring(7, 257)).train()
    targets = torch.tensor([[7, 7, 1], [7, 8, 2], [3, 3, 3], [3, 3, 7], [9, 9, 9]])
    batches = zip(torch.zeros_like(targets).split(2), targets.split(2), strict=True)
    metrics = _workload().evaluate(model, batches)
    nats = 4 * math.log(512 / 257) + 11 * math.log(512)
    bits = 4 * math.log2(512 / 257) + 11 * 9
    assert metrics["accuracy"] == (4, 15)
    assert metrics["loss"] == (pytest.approx(nats, rel=1e-6), 15)
    assert metrics["bits_per_byte"] == (pytest.approx(bits, rel=1e-6), 15)
    assert model.training
    assert model.training_calls == 0


def test_evaluate_without_batches_still_names_its_metrics():
    model = _Fixed(torch.zeros(256)).eval()
    nothing = (0.0, 0.0)
    metrics = _workload().evaluate(model, [])
    assert metrics == {"accuracy": nothing, "loss": nothing, "bits_per_byte": nothing}
    assert not model.training
    assert _workload().primary_metric in metrics


# ---- windows --------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(context=st.integers(1, 12), size=st.integers(60, 400), seed=st.integers(0, 2**32 - 1))
def test_training_windows_begin_once_in_every_block(context, size, seed):
    """Run on positions in place of bytes, so that every window says where it was cut."""
    workload = _workload(context=context)
    blocks = TextWindows(torch.arange(size), stride=context, length=2 * context)
    generator = torch.Generator().manual_seed(seed)
    inputs, targets = workload.prepare_batch(
        torch.stack([blocks[i] for i in range(len(blocks))]), training=True, generator=generator
    )
    starts = inputs[:, 0]
    assert torch.equal(starts // context, torch.arange(len(blocks)))
    assert torch.equal(inputs, starts[:, None] + torch.arange(context))
    assert torch.equal(targets, inputs + 1)
    # Not even a whole context at the end is out of reach.
    assert 0 <= size - (len(blocks) + 1) * context < context


def test_all_beginnings_are_drawn():
    workload = _workload(context=5)
    block = torch.arange(10, dtype=torch.uint8).expand(200, 10)
    generator = torch.Generator().manual_seed(0)
    inputs, _ = workload.prepare_batch(block, training=True, generator=generator)
    assert inputs.dtype == torch.int64
    assert sorted(set(inputs[:, 0].tolist())) == [0, 1, 2, 3, 4]


def test_training_and_evaluation_keep_to_their_parts(tmp_path):
    # 1,900 training bytes are below 128, 100 evaluation bytes above.
    content = bytes(i % 128 for i in range(1900)) + bytes(range(128, 228))
    workload = _of_folder(tmp_path, content, context=8)
    blocks = workload.training_dataset()
    assert (
        bytes(blocks[0][:8].tolist()) + b"".join(bytes(b[8:].tolist()) for b in blocks)
        == (content[:1896])
    )
    windows = list(workload.evaluation_dataset())
    inputs, targets = workload.prepare_batch(torch.stack(windows), training=False)
    # Every byte but the very first is predicted once, up to less than a context at the end.
    assert targets.flatten().tolist() == list(range(129, 129 + 96))
    assert torch.equal(inputs, targets - 1)
    assert all(later[0] == earlier[-1] for earlier, later in pairwise(windows))


def test_evaluation_can_be_shortened(tmp_path):
    content = bytes(i % 256 for i in range(2000))
    whole = _of_folder(tmp_path, content, context=8).evaluation_dataset()
    part = _of_folder(tmp_path, content, context=8, evaluation_windows=5).evaluation_dataset()
    assert (len(whole), len(part)) == (12, 5)
    assert all(torch.equal(part[i], whole[i]) for i in range(5))
    more = _of_folder(tmp_path, content, context=8, evaluation_windows=50).evaluation_dataset()
    assert len(more) == 12


def test_training_batches_go_on_from_a_saved_generator(python_source):
    block = torch.stack([python_source.training_dataset()[i] for i in range(8)])

    def cut(generator):
        return python_source.prepare_batch(block, training=True, generator=generator)[0]

    generator = torch.Generator().manual_seed(3)
    first = cut(generator)
    state = generator.get_state()
    second = cut(generator)
    generator.set_state(state)
    assert torch.equal(cut(generator), second)
    assert not torch.equal(first, second)


# ---- training -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def python_source():
    return _workload(context=64, evaluation_windows=16)


def _train(workload, steps):
    torch.manual_seed(0)
    model = workload.build_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    generator = torch.Generator().manual_seed(0)
    loader = DataLoader(
        workload.training_dataset(), batch_size=8, shuffle=True, generator=generator
    )
    losses = []
    for _, blocks in zip(range(steps), loader, strict=False):
        batch = workload.prepare_batch(blocks, training=True, generator=generator)
        parts = workload.loss(model, batch)
        optimizer.zero_grad()
        parts.total.backward()
        optimizer.step()
        losses.append(parts.total.item())
    windows = DataLoader(workload.evaluation_dataset(), batch_size=8)
    metrics = workload.evaluate(
        model, (workload.prepare_batch(batch, training=False) for batch in windows)
    )
    return losses, {name: total / count for name, (total, count) in metrics.items()}


def test_it_learns_python(python_source):
    losses, metrics = _train(python_source, 40)
    # A little below a blind guess: indentation repeats bytes, and the output is the embedding.
    assert losses[0] == pytest.approx(math.log(256), abs=0.15)
    # Knowing how often each byte occurs gives about 3.3 nats, a blind guess 5.5.
    assert metrics["loss"] < 3.4
    assert metrics["bits_per_byte"] == pytest.approx(metrics["loss"] / math.log(2))
    assert metrics["accuracy"] > 0.15


def test_the_same_seeds_give_the_same_bits(python_source):
    assert _train(python_source, 3) == _train(python_source, 3)


# ---- configuration --------------------------------------------------------------------------------


def test_model_follows_the_configuration():
    model = _workload(context=32, dropout=0.25).build_model()
    assert sum(p.numel() for p in model.parameters()) == 1_049_984 - (256 - 32) * 128
    assert {module.p for module in model.modules() if isinstance(module, nn.Dropout)} == {0.25}
    assert LanguageConfig().dropout == 0.0
    assert model(torch.zeros(2, 32, dtype=torch.int64)).shape == (2, 32, 256)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "gpt-2m"}, "unknown language model 'gpt-2m': did you mean 'gpt-"),
        ({"data": "cifar10"}, "unknown data set 'cifar10': known are shakespeare"),
        ({"files": "*.md"}, r"files='\*.md' is for data='text-folder', not 'shakespeare'"),
        ({"context": 0}, "context must be at least 1 byte, got 0"),
        ({"dropout": 1.0}, "dropout.*1.0"),
        ({"dropout": math.nan}, "dropout.*nan"),
        ({"evaluation_windows": 0}, "evaluation_windows must be at least 1.*0"),
    ],
)
def test_bad_configurations_are_refused_at_once(options, message):
    with pytest.raises(ConfigError, match=message):
        LanguageConfig(**options)


def test_text_shorter_than_a_window_is_refused(tmp_path):
    workload = _of_folder(tmp_path, b"a" * 1000, context=256)
    workload.training_dataset()
    with pytest.raises(DataError, match="takes 257 bytes.*has 50; use a shorter context"):
        workload.evaluation_dataset()


def test_missing_shakespeare_names_the_command(tmp_path):
    workload = LanguageWorkload(LanguageConfig(data_root=str(tmp_path)))
    with pytest.raises(DataError, match="gsdist data shakespeare"):
        workload.training_dataset()
