"""GPT: exact sizes, causality, initialisation, and agreement with the formula written out."""

import math

import pytest
import torch
import torch.nn.functional as F

from gsdist.errors import ConfigError
from gsdist.models.gpt import GPT_PRESETS, Gpt, GptSize, build_gpt, check_gpt

SMALL = GptSize(layers=2, width=32, heads=4)


def _count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def _bytes(*shape, seed=0):
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(seed))


def _explicit_logits(model, tokens, heads):
    """The network from its weights by plain float64 arithmetic, with an explicit mask."""
    weights = {name: tensor.double() for name, tensor in model.state_dict().items()}
    length = tokens.shape[1]
    future = torch.ones(length, length, dtype=torch.bool).triu(1)

    def norm(x, name):
        centred = x - x.mean(-1, keepdim=True)
        variance = centred.square().mean(-1, keepdim=True)
        return centred / (variance + 1e-5).sqrt() * weights[f"{name}.weight"]

    x = weights["token_embedding.weight"][tokens] + weights["position_embedding"][:length]
    for block in range(len(model.blocks)):
        name = f"blocks.{block}"
        inner = norm(x, f"{name}.norm1")
        mixed = inner @ weights[f"{name}.attention.query_key_value.weight"].T
        attended = []
        for query, key, value in zip(
            *(p.chunk(heads, -1) for p in mixed.chunk(3, -1)), strict=True
        ):
            scores = query @ key.transpose(1, 2) / math.sqrt(query.shape[-1])
            attended.append(scores.masked_fill(future, -math.inf).softmax(-1) @ value)
        x = x + torch.cat(attended, -1) @ weights[f"{name}.attention.output.weight"].T
        inner = norm(x, f"{name}.norm2") @ weights[f"{name}.expand.weight"].T
        inner = inner * (1 + torch.erf(inner / math.sqrt(2))) / 2
        x = x + inner @ weights[f"{name}.contract.weight"].T
    return norm(x, "norm") @ weights["token_embedding.weight"].T


@pytest.mark.parametrize(
    ("name", "expected"),
    [("gpt-1m", 1_049_984), ("gpt-10m", 9_999_680), ("gpt-25m", 25_436_672)],
)
def test_parameter_counts_are_exact(name, expected):
    with torch.device("meta"):
        model = build_gpt(name, context=256)
    size = GPT_PRESETS[name]
    per_block = 12 * size.width**2 + 2 * size.width
    # Bytes, positions, blocks, last norm; the output layer adds nothing.
    assert 512 * size.width + size.layers * per_block + size.width == expected
    assert _count(model) == expected


def test_every_preset_has_a_tested_count():
    assert list(GPT_PRESETS) == ["gpt-1m", "gpt-10m", "gpt-25m"]


def test_a_later_byte_changes_no_earlier_logit():
    torch.manual_seed(0)
    model = Gpt(SMALL, context=24).eval()
    tokens = _bytes(3, 24)
    before = model(tokens)
    for position in range(24):
        changed = tokens.clone()
        changed[:, position] = (changed[:, position] + 1) % 256
        after = model(changed)
        assert torch.equal(after[:, :position], before[:, :position])
        # And every logit from there on does look at it.
        assert (after[:, position:] != before[:, position:]).any(-1).all()


def test_logits_are_those_of_the_formula():
    torch.manual_seed(0)
    model = Gpt(SMALL, context=20)
    with torch.no_grad():
        for parameter in model.parameters():  # away from a start where attention is nearly uniform
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    tokens = _bytes(2, 17)
    torch.testing.assert_close(
        model(tokens).double(), _explicit_logits(model, tokens, SMALL.heads), rtol=1e-4, atol=1e-4
    )


def test_short_input_is_the_beginning_of_a_long_one():
    torch.manual_seed(0)
    model = Gpt(SMALL, context=16).eval()
    tokens = _bytes(2, 16)
    torch.testing.assert_close(model(tokens[:, :5]), model(tokens)[:, :5])


@pytest.mark.parametrize("name", ["gpt-1m", "gpt-10m"])
def test_untrained_loss_is_that_of_a_blind_guess(name):
    torch.manual_seed(0)
    model = build_gpt(name, context=64)
    tokens = _bytes(4, 65)
    logits = model(tokens[:, :-1])
    loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).item()
    assert loss == pytest.approx(math.log(256), abs=0.12)


def test_output_layer_is_the_embedding():
    model = Gpt(SMALL, context=8)
    names = dict(model.named_parameters())
    assert [name for name, p in names.items() if p.shape[0] == 256] == ["token_embedding.weight"]
    assert list(model.buffers()) == []  # DDP would send buffers around in every step
    model(_bytes(1, 8)).sum().backward()
    assert all(parameter.grad is not None for parameter in names.values())


def test_initial_spread_shrinks_where_the_residual_stream_is_fed():
    torch.manual_seed(0)
    size = GptSize(layers=8, width=128, heads=4)
    for block in Gpt(size, context=8).blocks:
        for weight in (block.attention.query_key_value.weight, block.expand.weight):
            assert weight.std().item() == pytest.approx(0.02, rel=0.05)
        for weight in (block.attention.output.weight, block.contract.weight):
            assert weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)


def test_dropout_acts_only_in_training_and_only_when_asked_for():
    tokens = _bytes(2, 8)
    torch.manual_seed(0)
    plain, dropping = Gpt(SMALL, context=8), Gpt(SMALL, context=8, dropout=0.5)
    dropping.load_state_dict(plain.state_dict())
    assert torch.equal(plain(tokens), plain.eval()(tokens))
    assert not torch.equal(dropping(tokens), dropping(tokens))
    assert torch.equal(dropping.eval()(tokens), plain(tokens))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: check_gpt("gpt-1M"), "unknown language model 'gpt-1M': did you mean 'gpt-1m'"),
        (lambda: GptSize(layers=0, width=8, heads=1), "layers.*at least 1, got 0"),
        (lambda: GptSize(layers=1, width=8, heads=3), "heads.*divide its width 8, got 3"),
        (lambda: Gpt(SMALL, context=0), "context.*got 0"),
        (lambda: Gpt(SMALL, context=8, dropout=1.0), "dropout.*got 1.0"),
        (lambda: Gpt(SMALL, context=8)(_bytes(1, 9)), "9 bytes.*context 8"),
    ],
)
def test_what_cannot_be_built_or_read_is_refused(build, message):
    with pytest.raises(ConfigError, match=message):
        build()
