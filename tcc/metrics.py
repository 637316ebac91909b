"""What Prometheus is told. One registry per process, made by the composition root and handed down."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class Metrics:
    """Counters and histograms of this process, and gauges that are read from the databases at each scrape."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.tries = Counter(
            "tcc_tries_total",
            "Tries by resource and outcome.",
            ["resource", "outcome"],
            registry=self.registry,
        )
        self.ended = Counter(
            "tcc_transactions_ended_total", "Transactions by final state.", ["state"], registry=self.registry
        )
        self.batch_size = Histogram(
            "tcc_batch_groups",
            "Groups of commands that shared a commit.",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
            registry=self.registry,
        )
        self.batch_seconds = Histogram(
            "tcc_batch_seconds",
            "Time from the start of a batch to its commit.",
            buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5),
            registry=self.registry,
        )
        self.batch_failures = Counter(
            "tcc_batch_failures_total",
            "Batches that failed, by what it meant.",
            ["failure"],
            registry=self.registry,
        )
        self.external_calls = Counter(
            "tcc_gateway_calls_total",
            "Calls to the outside by resource, operation and outcome.",
            ["resource", "operation", "outcome"],
            registry=self.registry,
        )
        self.expiry_lag = Histogram(
            "tcc_expiry_lag_seconds",
            "How long after its expiry an abandoned try was given back.",
            buckets=(0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 300),
            registry=self.registry,
        )
        self.swept = Counter("tcc_swept_total", "Rows that sweeps took up.", ["sweep"], registry=self.registry)
        self.open_transactions = Gauge(
            "tcc_transactions",
            "Transactions that are not at their end, by state.",
            ["state"],
            registry=self.registry,
        )
        self.attention = Gauge("tcc_attention", "What waits for a person.", ["kind"], registry=self.registry)
        self.oldest_undecided = Gauge(
            "tcc_oldest_undecided_seconds",
            "Age of the oldest transaction without a decision.",
            registry=self.registry,
        )
        self.oldest_undriven = Gauge(
            "tcc_oldest_undriven_seconds",
            "Age of the oldest decision that not all branches have followed.",
            registry=self.registry,
        )
        self.overdue = Gauge(
            "tcc_oldest_due_seconds",
            "How long the most overdue row has waited for a sweep.",
            registry=self.registry,
        )
        self.scrape_failures = Counter(
            "tcc_scrape_failures_total", "Scrapes that could not read the databases.", registry=self.registry
        )
