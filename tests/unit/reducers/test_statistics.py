"""What a reducer counts, in words."""

from gsdist.reducers import ExchangeStatistics


def test_statistics_read_as_a_line() -> None:
    found = ExchangeStatistics(
        steps=3,
        skipped_steps=1,
        payload_bytes=2_500_000,
        payload_bytes_last_step=600_000,
        dense_bytes=10_000_000,
        seconds={"encode": 0.004, "apply": 0.02},
        residual_norm=1.5,
    )
    assert str(found) == (
        "3 steps and 1 skipped, 2.5 MB sent of 10 MB dense (4.0x), residual norm 1.5; ms per step: apply 5, "
        "encode 1"
    )
