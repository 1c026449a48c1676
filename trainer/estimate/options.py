"""How an estimate of speed is made: a leaf, so that a command line is read without loading what computes."""

from __future__ import annotations

from dataclasses import dataclass

# GB/s that a rank sends, and as many that it receives: one 400 Gb/s network adapter for each GPU. An assumption.
BANDWIDTH = 50.0

# Share of a data sheet's peak which a whole step is taken to reach. An assumption, not a measurement: the sum of an
# estimate by kernels for a compiled bf16 step of the base model on an H100 (docs/performance.md, GPU).
ASSUMED_SHARE = 0.34


@dataclass(frozen=True)
class Options:
    """How to predict.

    Args:
        device: `this`, or one of `peaks.PEAKS`.
        share: of a data sheet's peak, that a whole step reaches; None = `ASSUMED_SHARE`.
        bandwidth: GB/s that a rank sends, and receives, in collectives that are not timed.
        measure: ranks to time on this machine; None = `prediction.ranks_to_time`.
        price: of one GPU for one hour, in any currency; None = it is not known.
    """

    device: str
    share: float | None = None
    bandwidth: float = BANDWIDTH
    measure: int | None = None
    price: float | None = None

    def __post_init__(self) -> None:
        if self.share is not None and (self.device == "this" or self.share <= 0):
            raise ValueError(
                "--share is a positive share of a data sheet's peak; --device this measures and needs none"
            )
        if self.bandwidth <= 0:
            raise ValueError(f"--bandwidth {self.bandwidth:g} must be positive (GB/s); inf leaves communication out")
        if self.measure is not None and self.device != "this":
            raise ValueError(f"--measure needs --device this; the speed of {self.device} is from its data sheet")
