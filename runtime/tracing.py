"""Spans by OpenTelemetry: the one place that imports it, and only where tracing is on.

Whoever has something to tell does so afterwards, with the times as they were: no span is open while work is done, so that a process that
does not trace has nothing to skip. Spans hold no viewer, no item and no address.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import structlog

from contracts.errors import SettingsError
from contracts.traceparent import TraceParent
from runtime.sections import TracingSettings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

EXPORT_TIMEOUT_S = 5
"""Also how long a stop waits at most for the last spans."""

log = structlog.get_logger()

Attributes = Mapping[str, str | int | float | bool]


class Tracer:
    """Records spans of one service. Thread-safe; never waits for the collector."""

    def __init__(self, settings: TracingSettings, service: str) -> None:
        """Raises `SettingsError` if OpenTelemetry is not installed."""
        try:
            from opentelemetry import trace
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError:
            raise SettingsError(
                "NEARLINE_TRACING__ENDPOINT is set, and OpenTelemetry is not installed: pip install 'nearline[tracing]', or unset it"
            ) from None
        self._trace = trace
        self._share = settings.page_share
        self._provider = TracerProvider(resource=Resource.create({"service.name": service}), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(_exporter(settings)))
        self._tracer = self._provider.get_tracer("nearline")

    def draw(self) -> bool:
        """Whether a request that nobody asked to trace is traced all the same."""
        return self._share > 0 and random.random() < self._share

    def tell(
        self,
        name: str,
        start_ms: float,
        end_ms: float,
        attributes: Attributes,
        *,
        parent: TraceParent | None = None,
        link: TraceParent | None = None,
        kind: str = "INTERNAL",
        failed: bool = False,
    ) -> TraceParent:
        """Record a span that is over; returns its name. `parent` None: it begins a trace."""
        trace = self._trace
        context = trace.set_span_in_context(trace.NonRecordingSpan(self._named(parent))) if parent else None
        span = self._tracer.start_span(
            name,
            context=context if context is not None else _empty(),
            kind=trace.SpanKind[kind],
            attributes=dict(attributes),
            links=[trace.Link(self._named(link))] if link else [],
            start_time=int(start_ms * 1e6),
        )
        if failed:
            span.set_status(trace.StatusCode.ERROR)
        span.end(int(max(start_ms, end_ms) * 1e6))
        told = span.get_span_context()
        return TraceParent(told.trace_id, told.span_id)

    def close(self) -> None:
        """Send what is left; blocks for a few seconds at most."""
        self._provider.force_flush(EXPORT_TIMEOUT_S * 1000)
        self._provider.shutdown()

    def _named(self, span: TraceParent) -> Any:
        flags = self._trace.TraceFlags(self._trace.TraceFlags.SAMPLED)
        return self._trace.SpanContext(span.trace_id, span.span_id, is_remote=True, trace_flags=flags)


def open_tracer(settings: TracingSettings, service: str) -> Tracer | None:
    """None unless an endpoint is set. Errors: `SettingsError`."""
    return Tracer(settings, service) if settings.endpoint else None


def _empty() -> Any:
    """No span is the parent, whatever the caller's context holds."""
    from opentelemetry.context import Context

    return Context()


def _exporter(settings: TracingSettings) -> SpanExporter:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import SpanExportResult

    # Its lines quote answers and addresses, one for each try; ours says once that spans are lost.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)

    class Telling(OTLPSpanExporter):
        """Says when spans do not get through."""

        def export(self, spans: Any) -> SpanExportResult:
            result = super().export(spans)
            if result is not SpanExportResult.SUCCESS:
                log.warning(
                    "spans_not_sent", endpoint=settings.endpoint, remedy="look at the collector and NEARLINE_TRACING__…"
                )
            return result

    text = settings.headers.get_secret_value() if settings.headers else ""
    headers = dict(part.strip().split("=", 1) for part in text.split(",") if "=" in part)
    return Telling(
        endpoint=f"{settings.endpoint}/v1/traces",
        headers=headers,
        timeout=EXPORT_TIMEOUT_S,
        certificate_file=None if settings.ssl_ca_file is None else str(settings.ssl_ca_file),
    )
