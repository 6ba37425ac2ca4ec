"""Debian's RabbitMQ, with its defaults, apart from any other node on the machine.

It has its own epmd, node name, cookie, ports, data and logs: nothing of a system-wide RabbitMQ is read or touched.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from bench.peers.server import PeerError, RunningPeer, free_port, is_open, running, speaks_amqp

# The package's own script: the one in /usr/sbin changes to the user rabbitmq and to the system's data folder.
_SERVER: Final = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
_INSTALL: Final = ["apt-get", "install", "--yes", "--no-install-recommends", "rabbitmq-server"]
# A policy-rc.d-like refusal: a broker that apt starts by itself would take part in the measurement.
_INSTALL_ENVIRONMENT: Final = {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}


def _ensure_installed() -> None:
    """Install the Debian package if it is missing; a comparison without the peer would be none."""
    if _SERVER.exists():
        return
    hint = f"install it with `{' '.join(_INSTALL)}`"
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise PeerError(f"rabbitmq-server is not installed; {hint}")
    result = subprocess.run(
        _INSTALL, env={**os.environ, **_INSTALL_ENVIRONMENT}, capture_output=True, text=True, check=False
    )
    if result.returncode != 0 or not _SERVER.exists():
        raise PeerError(f"rabbitmq-server could not be installed; {hint}\n{result.stderr.strip()}")


def _version() -> str:
    """The version from the folder of the server's own application: asking the node would take seconds."""
    for folder in _SERVER.parent.parent.glob("**/plugins/rabbit-*"):
        if found := re.fullmatch(r"rabbit-(\d[\d.]*)", folder.name):
            return found.group(1)
    return "unknown"


def _environment(folder: Path, port: int, epmd_port: int, distribution_port: int) -> Mapping[str, str]:
    home = folder / "home"
    home.mkdir()
    settings = folder / "rabbitmq.conf"
    settings.write_text(f"listeners.tcp.1 = 127.0.0.1:{port}\n")
    empty = folder / "rabbitmq-env.conf"
    empty.touch()
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RABBITMQ_", "ERL_"))}
    return {
        **inherited,
        "HOME": str(home),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "ERL_EPMD_PORT": str(epmd_port),
        "RABBITMQ_NODENAME": f"bench-{os.getpid()}-{port}@localhost",
        "RABBITMQ_DIST_PORT": str(distribution_port),
        "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_CONFIG_FILE": str(settings),
        "RABBITMQ_CONF_ENV_FILE": str(empty),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
        "RABBITMQ_PID_FILE": str(folder / "pid"),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
    }


@contextmanager
def start(folder: Path, _options: Sequence[str] = ()) -> Iterator[RunningPeer]:
    """Run a RabbitMQ node with its data in `folder`, an empty folder."""
    _ensure_installed()
    port, epmd_port, distribution_port = free_port(), free_port(), free_port()
    environment = _environment(folder, port, epmd_port, distribution_port)
    with ExitStack() as stack:
        # In the foreground, so that it is ours to end; a node that found no epmd would leave a daemon behind.
        epmd = [shutil.which("epmd") or "epmd", "-address", "127.0.0.1", "-port", str(epmd_port)]
        stack.enter_context(running("epmd", epmd, environment, folder / "epmd.log", lambda: is_open(epmd_port)))
        process = stack.enter_context(
            running("rabbitmq", [str(_SERVER)], environment, folder / "server.log", lambda: speaks_amqp(port))
        )
        yield RunningPeer("rabbitmq", _version(), "127.0.0.1", port, process.pid, folder / "mnesia")
