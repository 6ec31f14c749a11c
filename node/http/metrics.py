"""The status as Prometheus reads it. A pure core: a status in, families of metrics out; nothing is counted twice.

Names: `murmura_<what>_<unit>`, and `murmura_<mode>_...` for what one mode alone knows (`swarm.mode_info.Metric`). What is
not known has no sample: a zero would be a lie on a curve.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from node.modes import MODES
from protocols.life import LifeState
from swarm.mode_info import Metric

Status = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Figure:
    """One number of the status that every node has: its path in it, and what it is called."""

    name: str
    path: tuple[str, ...]
    help: str
    counts: bool = False
    scale: float = 1.0


_NODE: Final = (
    _Figure("healthy", ("healthy",), "1 while the node does what it should."),
    _Figure("uptime_seconds", ("node", "uptime_seconds"), "Since the node started."),
    _Figure("state_seconds", ("life", "since_seconds"), "In the present state."),
    _Figure("connected_peers", ("network", "peers"), "Peers with a live connection."),
    _Figure("clock_skew_seconds", ("network", "clock_skew_seconds"), "Against peers' clocks."),
    _Figure("streams_served", ("network", "streams_served"), "Streams of peers that are open."),
    _Figure("streams_refused", ("network", "streams_refused"), "Streams turned away.", True),
    _Figure("faults", ("network", "faults"), "Broken rules that peers still known are blamed for."),
    _Figure("held_bytes", ("network", "bytes_held"), "Held for peers' calls."),
    _Figure("transport_restarts", ("network", "transport", "restarts"), "Restarts of p2pd.", True),
    _Figure("memory_bytes", ("resources", "memory_bytes"), "Resident, with the children."),
    _Figure("memory_limit_bytes", ("limits", "memory_max_bytes"), "No work above it."),
    _Figure("cpu_seconds", ("resources", "cpu_seconds"), "With the children.", True),
    _Figure("processes", ("resources", "processes"), "This one and its children."),
    _Figure("open_files", ("resources", "descriptors"), "Descriptors in use."),
    _Figure("open_files_limit", ("limits", "descriptors_max"), "Descriptors there may be."),
    _Figure(
        "task_seconds",
        ("resources", "task_seconds"),
        "How long the threads that compute have been at one task.",
    ),
    _Figure("checkpoints", ("services", "checkpoints", "count"), "Checkpoints on disk."),
    _Figure(
        "checkpoint_age_seconds", ("services", "checkpoints", "age_seconds"), "Of the newest one."
    ),
    _Figure("checkpoint_bytes", ("services", "checkpoints", "size_bytes"), "Of all on disk."),
)

_TRAINING: Final = (
    _Figure("in_run", ("in_run",), "1 while others count on this node."),
    _Figure("step", ("step",), "Optimizer steps: of the run where peers share them."),
    _Figure("steps", ("steps",), "Steps that the run wants."),
    _Figure("loss", ("loss",), "Of training, lately."),
    _Figure("held_out_loss", ("held_out_loss",), "Of the last evaluation."),
    _Figure("samples_per_second", ("samples_per_second",), "Samples trained on."),
    _Figure("peers", ("peers",), "That take part as far as this node knows, itself included."),
    _Figure("resting", ("resting",), "1 while no step is due, and nothing is wrong."),
)
"""Of `swarm.mode.Progress`, which every mode fills."""


def families(status: Status) -> Iterator[Family]:
    """Yield every family of metrics of a node with this status (node.status.build_status)."""
    yield _labelled(
        "node_info",
        "Who this node is; always 1.",
        {
            "peer_id": status["node"]["peer_id"],
            "version": status["node"]["version"],
            "run": status["run"]["name"] or "",
            "run_id": status["run"]["run_id"],
            "mode": status["run"]["mode"] or "",
        },
    )
    state = GaugeMetricFamily("murmura_state", "1 for the state that it is in.", labels=["state"])
    for name in LifeState:
        state.add_metric([name.value], float(status["life"]["state"] == name.value))
    yield state
    yield from _figures(_NODE, status)
    yield from _loop_lag(status)
    yield from _services(status["services"])
    mode = status["run"]["mode"]
    section = status["services"].get(mode)
    if section is not None and mode in MODES:
        yield from _figures(_TRAINING, section)
        yield from _of_mode(mode, MODES[mode].metrics, section)


def metric_names() -> set[str]:
    """Return the name of every sample that a node may have, of any mode: what a dashboard may ask for."""
    names = {"murmura_node_info", "murmura_state", "murmura_loop_lag_seconds"}
    names |= {"murmura_service_up", "murmura_service_restarts_total"}
    names |= {_sample_name(figure.name, figure.counts) for figure in (*_NODE, *_TRAINING)}
    for mode, info in MODES.items():
        names |= {
            _sample_name(f"{mode}_{metric.full_name}", metric.counts) for metric in info.metrics
        }
    return names


class Metrics:
    """A registry of its own: no other library's metrics get in, and two nodes in one process do not meet."""

    def __init__(self, status: Callable[[], Status]) -> None:
        """
        Args:
          status: returns the present one; called once for each scrape.
        """
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_StatusCollector(status))

    def text(self, accept: str) -> tuple[bytes, str]:
        """Return the metrics in the format that `accept` asks for, and its content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type


class _StatusCollector(Collector):
    def __init__(self, status: Callable[[], Status]) -> None:
        self._status = status

    def describe(self) -> Iterable[Family]:
        return ()  # names are known, and differ; nobody else registers here

    def collect(self) -> Iterator[Family]:
        return families(self._status())


def _figures(figures: Iterable[_Figure], data: Status) -> Iterator[Family]:
    for figure in figures:
        value: Any = data
        for key in figure.path:
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is not None:
            yield _single(figure.name, figure.help, value * figure.scale, counts=figure.counts)


def _loop_lag(status: Status) -> Iterator[Family]:
    family = GaugeMetricFamily(
        "murmura_loop_lag_seconds", "How late the event loop is.", labels=["percentile"]
    )
    # Not `quantile`: Prometheus keeps that word for its own summaries.
    for percentile, key in (("50", "p50"), ("99", "p99"), ("100", "max")):
        family.add_metric([percentile], status["resources"][f"loop_lag_{key}_ms"] / 1000)
    yield family


def _services(services: Status) -> Iterator[Family]:
    up = GaugeMetricFamily("murmura_service_up", "1 while it runs.", labels=["service"])
    restarts = CounterMetricFamily(
        "murmura_service_restarts", "After failures.", labels=["service"]
    )
    for name, section in services.items():
        up.add_metric([name], float(section["up"]))
        restarts.add_metric([name], section["restarts"])
    yield up
    yield restarts


def _of_mode(mode: str, metrics: Iterable[Metric], section: Status) -> Iterator[Family]:
    """Yield a mode's own. Metrics of one name, with several values of a label, make one family."""
    found: dict[str, GaugeMetricFamily | CounterMetricFamily] = {}
    for metric in metrics:
        label, value = metric.label
        name = f"murmura_{mode}_{metric.full_name}"
        family = found.get(name)
        if family is None:
            kind = CounterMetricFamily if metric.counts else GaugeMetricFamily
            family = found[name] = kind(name, metric.help, labels=[label] if label else [])
        data = section.get(metric.key)
        if isinstance(data, list | tuple):
            for index, item in enumerate(data):
                family.add_metric([str(index)], item * metric.scale)
        elif data is not None:
            family.add_metric([value] if label else [], data * metric.scale)
    yield from (family for family in found.values() if family.samples)


def _single(name: str, text: str, value: float, *, counts: bool = False) -> Family:
    kind = CounterMetricFamily if counts else GaugeMetricFamily
    return kind(f"murmura_{name}", text, value=float(value))


def _labelled(name: str, text: str, labels: Mapping[str, str]) -> Family:
    family = GaugeMetricFamily(f"murmura_{name}", text, labels=list(labels))
    family.add_metric(list(labels.values()), 1)
    return family


def _sample_name(name: str, counts: bool) -> str:
    return f"murmura_{name}_total" if counts else f"murmura_{name}"
