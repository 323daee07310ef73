"""The real Kafka and the real Valkey that the demo, the tests and the benchmarks run against."""

import threading
from pathlib import Path
from typing import Self

from sandbox.children import SandboxError
from sandbox.kafka_server import KafkaServer
from sandbox.valkey_server import ValkeyServer

__all__ = ["DEFAULT_FOLDER", "KafkaServer", "Sandbox", "SandboxError", "ValkeyServer"]

DEFAULT_FOLDER = ".nearline"
"""Below the working directory; `rm -r` of it is a fresh start."""


class Sandbox:
    """Both servers in one folder, each replaced by a given address if there is one."""

    def __init__(self, data_dir: Path | None = None, *, bootstrap: str | None = None, url: str | None = None) -> None:
        self.data_dir = Path(data_dir if data_dir is not None else DEFAULT_FOLDER).absolute()
        self.kafka = KafkaServer(self.data_dir / "kafka", bootstrap=bootstrap)
        self.valkey = ValkeyServer(self.data_dir / "valkey", url=url)

    def start(self) -> None:
        """Start both at once and return when both serve; when one cannot, stop the other and raise."""
        failures: list[BaseException] = []

        def start_valkey() -> None:
            try:
                self.valkey.start()
            except BaseException as error:  # noqa: BLE001 - carried to the caller's thread
                failures.append(error)

        beside = threading.Thread(target=start_valkey, name="start-valkey")
        beside.start()
        try:
            self.kafka.start()
        except BaseException:
            beside.join()
            self.stop(kill=True)
            raise
        beside.join()
        if failures:
            self.stop(kill=True)
            raise failures[0]

    def stop(self, *, kill: bool = False) -> None:
        """Stop both; the second is stopped even when the first cannot be."""
        try:
            self.kafka.stop(kill=kill)
        finally:
            self.valkey.stop(kill=kill)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<Sandbox {self.data_dir} {self.kafka!r} {self.valkey!r}>"
