"""Prometheus metrics, read from the rooms' own counters when asked for: nothing on the way of a record knows of them."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import confluent_kafka
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from forwarder.agent import Agent
from forwarder.flight import BUCKETS
from forwarder.status import connections, dropped
from forwarder.version import __version__


def of(agent: Agent) -> Callable[[], bytes]:
    """What makes the text that Prometheus reads of the agent and its process, each time anew."""
    registry = CollectorRegistry()
    registry.register(_AgentCollector(agent))
    ProcessCollector(registry=registry)
    return lambda: generate_latest(registry)


class _AgentCollector(Collector):
    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        agent, shipper, listener = self._agent, self._agent.shipper, self._agent.listener

        def counter(name: str, text: str, labels: list[str], values: dict[Any, float]) -> Metric:
            family = CounterMetricFamily(f"forwarder_{name}", text, labels=labels)
            for key, value in values.items():
                family.add_metric([str(part) for part in key] if isinstance(key, tuple) else [str(key)], value)
            return family

        def gauge(name: str, text: str, value: float) -> Metric:
            return GaugeMetricFamily(f"forwarder_{name}", text, value=value)

        records: Counter[tuple[str, str]] = Counter({("socket", app): count for app, count in listener.received.items()})
        size: Counter[tuple[str, str]] = Counter({("socket", app): count for app, count in listener.received_bytes.items()})
        lag: Counter[tuple[str, str]] = Counter()
        for lane in shipper.lanes():
            kind = "tail" if lane.tailed else "socket"
            lag[kind, lane.source.app] += lane.lag()
        for app, count in shipper.tailed.items():
            records["tail", app] += count
        for app, count in shipper.tailed_bytes.items():
            size["tail", app] += count

        yield counter("records_received", "Records taken from apps, stored or read from files.", ["source", "app"], dict(records))
        yield counter("bytes_received", "Bytes taken from apps, stored or read from files.", ["source", "app"], dict(size))
        yield counter("records_delivered", "Records that Kafka has acknowledged.", ["topic"], dict(shipper.delivered))
        yield counter("records_dropped", "Records given up, by reason.", ["app", "reason"], dict(dropped(agent)))
        yield counter("records_dead", "Records Kafka refused for good, set aside.", ["reason"], dict(shipper.dead))
        yield counter(
            "records_cut", "Records above max_record, cut and marked.", ["app"], dict(listener.cut + agent.tails.counts.cut)
        )
        yield counter(
            "tail_undecodable",
            "Records with bytes that their encoding does not know.",
            ["app"],
            dict(agent.tails.counts.undecodable),
        )
        yield counter(
            "tail_abandoned_bytes",
            "Bytes of files that were there and could not be read.",
            ["app"],
            dict(agent.tails.counts.abandoned),
        )
        yield counter(
            "connections_rejected", "Connections closed for what they sent or who they are.", ["reason"], dict(listener.rejected)
        )
        yield counter(
            "client_dropped", "Records that handlers dropped because their ring was full.", ["app"], dict(listener.client_dropped)
        )
        yield counter(
            "topics_refused",
            "Greetings that asked for a topic allow_topics does not allow.",
            ["app"],
            dict(listener.topics_refused),
        )
        yield CounterMetricFamily(
            "forwarder_producers_replaced", "Producers replaced after a fatal error.", value=shipper.replaced
        )
        yield counter("exactly_once_broken", "Times that exactly-once could not be kept.", ["reason"], dict(shipper.broken))
        yield CounterMetricFamily(
            "forwarder_spool_disk_errors", "Writes or syncs that the disk refused.", value=agent.spools.disk_errors
        )
        yield CounterMetricFamily(
            "forwarder_spool_damaged_bytes",
            "Bytes of the spool found damaged and set aside.",
            value=sum(s.damaged_bytes for s in agent.spools),
        )
        yield CounterMetricFamily(
            "forwarder_spool_missing_bytes",
            "Bytes of the spool that were gone before they were read.",
            value=sum(s.missing_bytes for s in agent.spools),
        )
        yield self._gauges("source_lag_bytes", "Bytes that are there and not yet read.", ["source", "app"], lag)
        yield self._gauges("spool_bytes", "Bytes of the spool on disk.", ["app"], {(s.app,): s.bytes for s in agent.spools})
        yield self._gauges("connections", "Open connections.", ["app"], {(app,): n for app, n in connections(agent).items()})
        yield gauge("in_flight_bytes", "Bytes sent and not yet acknowledged by Kafka.", shipper.in_flight)
        yield gauge("oldest_unacked_seconds", "Age of the oldest record that is not in Kafka yet.", shipper.oldest_unacked())
        yield gauge("kafka_connected", "Whether Kafka answers.", shipper.connected)
        yield self._latency()
        family = GaugeMetricFamily("forwarder_build_info", "Versions.", labels=["version", "python", "librdkafka"])
        family.add_metric([__version__, platform.python_version(), confluent_kafka.libversion()[0]], 1)
        yield family

    @staticmethod
    def _gauges(name: str, text: str, labels: list[str], values: Any) -> Metric:
        family = GaugeMetricFamily(f"forwarder_{name}", text, labels=labels)
        for key, value in values.items():
            family.add_metric(list(key), value)
        return family

    def _latency(self) -> Metric:
        histogram, total, buckets = self._agent.shipper.latency, 0, []
        for bound, count in zip((*(f"{bound:g}" for bound in BUCKETS), "+Inf"), histogram.counts, strict=True):
            total += count
            buckets.append((bound, total))
        family = HistogramMetricFamily("forwarder_delivery_seconds", "From receipt to Kafka's acknowledgement.")
        family.add_metric([], buckets, histogram.sum)
        return family
