"""The command line: a contract that scripts depend on.

An error is one line on standard error, and the exit code tells its kind, after BSD's sysexits.h:

    0   done                             69  no broker is running there
    64  the command line is not valid    70  a bug, or a stop that took too long
    65  the broker refused the request   71  an address cannot be bound
    66  the file or queue is not there   75  the data directory is in use
    74  a file cannot be read or written 76  the data was written by a newer version
    77  not permitted                    78  a setting is unknown or wrong
    130 interrupted

Each group of commands is a file of this package and a line in `_application`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Final, NoReturn

import typer

from millpond import __version__
from millpond.base.errors import AccessRefused, MillpondError, NotAllowed, NotFound, OperatorError, PeerError

EX_USAGE: Final = 64
EX_DATA: Final = 65
EX_NO_INPUT: Final = 66
EX_SOFTWARE: Final = 70
EX_IO: Final = 74
EX_NO_PERMISSION: Final = 77
INTERRUPTED: Final = 130


def main() -> NoReturn:
    code = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has gone, as `head` does: Python must not complain about it once more on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code."""
    try:
        result = _application()(args=list(arguments), prog_name="millpond", standalone_mode=False)
    except typer.TyperException as error:
        return _fail(error.format_message().replace("\n", " "), EX_USAGE)
    except OperatorError as error:
        return _fail(str(error), error.exit_code)
    except NotFound as error:
        return _fail(str(error), EX_NO_INPUT)
    except (AccessRefused, NotAllowed) as error:
        return _fail(str(error), EX_NO_PERMISSION)
    except PeerError as error:
        return _fail(str(error), EX_DATA)
    except MillpondError as error:
        return _fail(str(error), EX_SOFTWARE)
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        return _fail(f"{where}{(error.strerror or str(error)).lower()}", EX_IO)
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    return result if isinstance(result, int) else 0


def _fail(text: str, code: int) -> int:
    print(f"millpond: {text}", file=sys.stderr)
    return code


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"millpond {__version__}")
        raise typer.Exit


def _application() -> typer.Typer:
    from millpond.cli import (
        definitions,
        group,
        messages,
        permission,
        policy,
        quota,
        redrive,
        rewind,
        serve,
        status,
        topic,
        transaction,
        user,
    )

    application = typer.Typer(
        help="Millpond: one broker for queues and streams.",
        add_completion=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        pretty_exceptions_enable=False,
    )

    @application.callback()
    def options(
        version: Annotated[
            bool, typer.Option("--version", help="Show the version.", is_eager=True, callback=_show_version)
        ] = False,
    ) -> None:
        del version

    serve.register(application)
    messages.register(application)
    status.register(application)
    redrive.register(application)
    rewind.register(application)
    definitions.register(application)
    application.add_typer(user.commands, name="user")
    application.add_typer(permission.commands, name="permission")
    application.add_typer(policy.commands, name="policy")
    application.add_typer(quota.commands, name="quota")
    application.add_typer(topic.commands, name="topic")
    application.add_typer(group.commands, name="group")
    application.add_typer(transaction.commands, name="transaction")
    return application
