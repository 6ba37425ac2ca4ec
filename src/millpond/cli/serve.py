"""`millpond serve`: run a node until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
import resource
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from millpond import config, logs
from millpond.base.errors import MillpondError
from millpond.config import ListenAddress, Settings
from millpond.server import ready_file
from millpond.server.event_loop import new_event_loop

if TYPE_CHECKING:
    from millpond.server.node import Node

logger = logging.getLogger(__name__)

# The contract: SIGTERM shuts down cleanly within this long.
STOP_DEADLINE_S: Final = 5.0
# A broker makes few cycles and many objects that live: the collector's default of 700 new objects has it at work all
# the time.
GC_THRESHOLDS: Final = (100_000, 20, 50)


class StopTookTooLong(MillpondError):
    """The node was not down within `STOP_DEADLINE_S`; what was confirmed is safe all the same."""


def register(application: typer.Typer) -> None:
    application.command("serve", help=_serve.__doc__)(_with_an_option_for_each_setting(_serve))


def _with_an_option_for_each_setting(command: Callable[..., None]) -> Callable[..., None]:
    """Give `command` the options of its signature, and one for each setting, which arrives by its name as a keyword.

    The texts go to `config.load` as they were typed, None where an option was not given: there is one place
    that knows what is valid. A secret has no option, as every user of a machine sees all command lines.
    """
    own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.kind is not p.VAR_KEYWORD]
    options = []
    for name, field in Settings.model_fields.items():
        if name in config.SECRETS:
            continue
        flag = config.flag_of(name)
        is_switch = field.annotation is bool
        default = "off" if field.default is None and field.metadata else field.default
        shown = "" if default is None or is_switch else f" ({default})"
        option = typer.Option(
            f"{flag}/--no-{flag[2:]}" if is_switch else flag,
            help=f"{field.description}{shown}",
            show_default=False,
            metavar=None if is_switch else "VALUE",
        )
        annotation: Any = Annotated[bool | None if is_switch else str | None, option]
        options.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation))

    def with_options(**given: Any) -> None:
        command(**given)

    with_options.__signature__ = inspect.Signature([*own, *options])  # type: ignore[attr-defined]
    return with_options


def _serve(
    *,
    config_file: Annotated[
        Path | None, typer.Option("--config", help="A TOML file with settings.", metavar="FILE", show_default=False)
    ] = None,
    check_config: Annotated[bool, typer.Option("--check-config", help="Only check the settings.")] = False,
    welcome: Annotated[bool, typer.Option("--welcome", help="Say how to try it, once it is ready.")] = False,
    **flags: object,
) -> None:
    """Run a broker.

    Every setting may also stand in the environment (MILLPOND_AMQP) or in the TOML file (amqp = "...").
    """
    started_at = time.perf_counter()
    settings = config.load({name: value for name, value in flags.items() if value is not None}, config_file)
    if settings.amqps is not None:
        from millpond.server.listeners import tls_context

        tls_context(settings)
    if check_config:
        print("The settings are valid.")
        return
    logs.configure(settings.log_format, settings.log_level)
    _allow_many_connections()
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(_run(settings, started_at, welcome))


async def _run(settings: Settings, started_at: float, welcome: bool) -> None:
    from millpond.server.node import Node

    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    if settings.ready_file is not None:
        # One that a killed broker left behind would send those who wait for it to a dead port.
        ready_file.remove(settings.ready_file)
    node = Node(settings)
    await node.start()
    listeners = {name: str(ListenAddress(*address)) for name, address in node.addresses.items()}
    try:
        if settings.ready_file is not None:
            ready_file.write(settings.ready_file, listeners, None if settings.memory else settings.data)
        # What lives now lives as long as the process: the collector need never look at it again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        took_s = time.perf_counter() - started_at
        logger.info("ready", extra={"listeners": listeners, "took_ms": round(took_s * 1000)})
        if welcome:
            print(_welcome(settings, listeners, took_s), flush=True)
        await stop.wait()
        logger.info("stopping")
    finally:
        if settings.ready_file is not None:
            ready_file.remove(settings.ready_file)
        await _stop(node)
    logger.info("stopped")


async def _stop(node: Node) -> None:
    try:
        async with asyncio.timeout(STOP_DEADLINE_S):
            await node.stop()
    except TimeoutError:
        raise StopTookTooLong(f"the broker did not stop within {STOP_DEADLINE_S:g} s") from None


def _allow_many_connections() -> None:
    """A connection is a file descriptor, and the usual soft limit of 1024 is for programs that use select()."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _welcome(settings: Settings, listeners: dict[str, str], took_s: float) -> str:
    where = "in memory only" if settings.memory else f"in {settings.data.absolute()}"
    lines = [f"Millpond is ready after {took_s:.2f} s. Its data is {where}."]
    lines += [f"  {name:6} {address}" for name, address in listeners.items()]
    if "amqp" in listeners:
        url = f"amqp://{settings.default_user}@{listeners['amqp']}/%2F"
        if settings.default_user == "guest":
            url = url.replace("guest@", "guest:guest@")
        lines += [
            "Try it, in another terminal, with .venv/bin/python or any Python that has pika:",
            f'  import pika; channel = pika.BlockingConnection(pika.URLParameters("{url}")).channel()',
            '  channel.queue_declare("hello"); channel.basic_publish("", "hello", b"Hello, pond")',
            '  print(channel.basic_get("hello", auto_ack=True))',
        ]
    if "kafka" in listeners:
        lines += [
            "Or as a Kafka broker, with any Python that has confluent-kafka:",
            f'  from confluent_kafka import Producer; pond = Producer({{"bootstrap.servers": "{listeners["kafka"]}"}})',
            '  pond.produce("hello", b"Hello, pond"); pond.flush()',
        ]
    return "\n".join([*lines, "Stop it with Ctrl-C."])
