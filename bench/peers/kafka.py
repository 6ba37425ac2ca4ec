"""Apache Kafka from Maven Central: one node that is broker and controller, with its defaults.

What differs from its defaults does so because there is one node: replication factors. The virtual machine has the
options of Kafka's own start script. The jars are kept in the user's cache folder from one run to the next.
"""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bench.peers.server import PeerError, RunningPeer, free_port, is_open, running

_POM: Final = Path(__file__).parent.parent / "kafka" / "pom.xml"
_FETCH_SECONDS_MAX: Final = 600.0
_FORMAT_SECONDS_MAX: Final = 60.0
# Those of kafka-server-start.sh and kafka-run-class.sh.
_JVM_OPTIONS: Final = (
    "-Xms1G",
    "-Xmx1G",
    "-server",
    "-XX:+UseG1GC",
    "-XX:MaxGCPauseMillis=20",
    "-XX:InitiatingHeapOccupancyPercent=35",
    "-XX:+ExplicitGCInvokesConcurrent",
    "-Djava.awt.headless=true",
)
_LOGGING: Final = """\
appender.console.type=Console
appender.console.name=console
appender.console.layout.type=PatternLayout
appender.console.layout.pattern=[%d] %p %m (%c)%n
rootLogger.level=INFO
rootLogger.appenderRef.console.ref=console
"""


def _settings(port: int, controller_port: int, data: Path) -> str:
    return f"""\
process.roles=broker,controller
node.id=1
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.quorum.bootstrap.servers=127.0.0.1:{controller_port}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={data}
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
"""


def jars() -> Path:
    """The folder of Kafka's jars, fetched by Maven if it is not there. A PeerError says what is missing for that."""
    for tool in ("java", "mvn"):
        if shutil.which(tool) is None:
            raise PeerError(f"{tool} is not on the PATH; install Java 17 or newer, and Maven")
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "millpond" / "bench-kafka"
    stamp = folder / "pom.xml"
    wanted = _POM.read_text()
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        maven = ["mvn", "--batch-mode", "--quiet", "--file", str(_POM), "dependency:copy-dependencies"]
        maven += ["-DincludeScope=runtime", f"-DoutputDirectory={folder / 'jars'}"]
        try:
            done = subprocess.run(maven, capture_output=True, text=True, timeout=_FETCH_SECONDS_MAX, check=False)
        except subprocess.TimeoutExpired as error:
            raise PeerError("Maven took too long to fetch it") from error
        if done.returncode != 0:
            raise PeerError(f"Maven could not fetch it: {' '.join(done.stdout.strip().splitlines()[:1])}")
        stamp.write_text(wanted)
    return folder / "jars"


def _version(folder: Path) -> str:
    for jar in folder.glob("kafka_*.jar"):
        return jar.stem.rpartition("-")[2]
    return "unknown"


@contextmanager
def start(folder: Path, _options: Sequence[str] = ()) -> Iterator[RunningPeer]:
    """Run an Apache Kafka node with its data in `folder`, an empty folder."""
    libraries = jars()
    port, controller_port = free_port(), free_port()
    settings, logging = folder / "server.properties", folder / "log4j2.properties"
    settings.write_text(_settings(port, controller_port, folder / "data"))
    logging.write_text(_LOGGING)
    java = ["java", "-cp", str(libraries / "*"), f"-Dlog4j2.configurationFile={logging}"]
    cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    storage = ["kafka.tools.StorageTool", "format", "--standalone", f"--cluster-id={cluster_id}", "-c", str(settings)]
    formatted = subprocess.run(
        [*java, *storage], capture_output=True, text=True, timeout=_FORMAT_SECONDS_MAX, check=False
    )
    if formatted.returncode != 0:
        raise PeerError(f"Apache Kafka could not lay out its folder:\n{formatted.stdout}{formatted.stderr}")
    command = [*java, *_JVM_OPTIONS, "kafka.Kafka", str(settings)]
    with running("kafka", command, os.environ, folder / "server.log", lambda: is_open(port)) as process:
        yield RunningPeer("kafka", _version(libraries), "127.0.0.1", port, process.pid, folder / "data")
