"""Make P hosts behind shaped links out of network namespaces, run one rank in each, count their bytes.

    with NetworkLab(ranks=4, rate="1gbit") as lab:
        lab.verify_rates()
        run = lab.run([sys.executable, "train.py"], timeout=60)

Every host is a namespace with one interface, `eth0`; all are joined by a bridge in a namespace of its own, so
nothing of the machine's own network changes. `tc tbf` shapes both directions of every link.

What to keep in mind: all hosts share this machine's cores, so a busy machine shapes by its CPU and not by the
asked rate, which is why `verify_rates` loads every link at once before each use; after a pause each link lets
one millisecond's worth of bytes (24 kB at least) through unshaped; there is no latency unless asked for, and
asking needs a kernel with netem.
"""

from benchmarks.netlab.counters import Counters, LabCounters, interface_counters
from benchmarks.netlab.errors import LabError, LabUnavailable, RateError
from benchmarks.netlab.lab import NetworkLab
from benchmarks.netlab.launch import LabRun, RankResult
from benchmarks.netlab.probe import RateMeasurement
from benchmarks.netlab.settings import LabSettings, parse_rate

__all__ = [
    "Counters",
    "LabCounters",
    "LabError",
    "LabRun",
    "LabSettings",
    "LabUnavailable",
    "NetworkLab",
    "RankResult",
    "RateError",
    "RateMeasurement",
    "interface_counters",
    "parse_rate",
]
