"""Metrics in Prometheus' text format. The one file that knows prometheus_client."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from edgecosine.metrics.families import Family
from edgecosine.metrics.histogram import Histogram

_PLAIN: dict[str, Callable[..., Any]] = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily}


class _Families(Collector):
    def __init__(self, families: Iterable[Family]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        return map(_metric, self._families)


def render(families: Iterable[Family], accept: str = "") -> tuple[bytes, str]:
    """The text of all metrics, and its content type: OpenMetrics where `accept` asks for it."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(families))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


def _metric(family: Family) -> Metric:
    names = list(family.values[0][0]) if family.values else []
    if family.kind == "histogram":
        histogram = HistogramMetricFamily(family.name, family.help, labels=names)
        for labels, value in family.values:
            assert isinstance(value, Histogram)
            buckets = [
                ("+Inf" if math.isinf(bound) else str(float(bound)), count)
                for bound, count in value.buckets()
            ]
            histogram.add_metric(list(labels.values()), buckets, value.total)
        return histogram
    plain: CounterMetricFamily | GaugeMetricFamily = _PLAIN[family.kind](
        family.name, family.help, labels=names
    )
    for labels, value in family.values:
        assert not isinstance(value, Histogram)
        plain.add_metric(list(labels.values()), value)
    return plain
