"""Where a process has its codec from: the registry's folder, or its server; and what a codec that met an unknown schema learns.

A long-lived process holds one `Schemas` and begins with `begin`, which does not wait for a server that is away: what is to be decoded then
pauses, as for any schema that is not known. A verb asks `open_codec`, which fails instead.
"""

from __future__ import annotations

import threading

import structlog

from contracts.codec import Codec
from contracts.errors import ContractError, RegistryUnavailable, UnknownSchema
from contracts.registry import Registry
from runtime.settings import Settings

log = structlog.get_logger()


class Schemas:
    """The configured registry. Its methods block; threads may share it."""

    def __init__(self, settings: Settings) -> None:
        self._path = settings.registry_path
        self._server = None
        self._told = ""
        self._one_at_a_time = threading.Lock()
        if settings.schemas.registry_url:
            from runtime.schema_server import SchemaServer  # a tenth of a second, which most processes need not spend

            self._server = SchemaServer(settings)
            self._rows = Registry.load()

    @property
    def is_far(self) -> bool:
        """Whether it is asked over the network."""
        return self._server is not None

    def open(self) -> Codec:
        """A codec over what is registered now. Errors: `ContractError`, `RegistryUnavailable`."""
        if self._server is None:
            return Codec(Registry.load(self._path))
        with self._one_at_a_time:
            return self._codec(self._server.read())

    def begin(self) -> Codec:
        """The same; with a server that is away, a codec that knows nothing but rows until it has learnt. Errors: `ContractError`."""
        try:
            return self.open()
        except RegistryUnavailable as error:
            assert self._server is not None
            self._tell(str(error))
            return self._codec(self._server.unread())

    def learn(self, known: Codec, unknown: UnknownSchema | None = None) -> Codec:
        """A codec that knows more, or `known`: nothing was learnt, the registry is half written, or it is away."""
        try:
            if self._server is None:
                registry = Registry.load(self._path)
            else:
                with self._one_at_a_time:
                    registry = self._server.learn(None if unknown is None else unknown.schema)
            codec = known if registry == known.registry else self._codec(registry)
        except (ContractError, RegistryUnavailable) as error:
            self._tell(str(error))
            return known
        if codec is not known:
            self._told = ""
            log.info("registry_reloaded", registry=registry.place)
        return codec

    def _codec(self, registry: Registry) -> Codec:
        return Codec(registry) if self._server is None else Codec(registry, rows=self._rows)

    def _tell(self, problem: str) -> None:
        """Once: it is tried again and again."""
        if problem != self._told:
            self._told = problem
            log.warning("registry_not_read", problem=problem)


def open_codec(settings: Settings) -> Codec:
    """A codec over the configured registry. Errors: `ContractError`, `RegistryUnavailable`."""
    return Schemas(settings).open()
