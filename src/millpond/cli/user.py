"""`millpond user`: who may log in."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from millpond.base.errors import NotFound, PreconditionFailed
from millpond.cli.administration import DataOption, UrlOption, administration
from millpond.cli.table import print_table

commands = typer.Typer(help="Who may log in.", no_args_is_help=False)

Name = Annotated[str, typer.Argument(help="The user's name.")]


@commands.command("add")
def add(
    name: Name,
    tag: Annotated[list[str] | None, typer.Option("--tag", help="A tag, such as administrator.")] = None,
    no_password: Annotated[
        bool, typer.Option("--no-password", help="Nobody logs in by a password: for who has a certificate.")
    ] = False,
    data: DataOption = None,
    url: UrlOption = None,
) -> None:
    """Add a user. The password is asked for, or is the first line of standard input."""
    with administration(data, url) as broker:
        try:
            broker.user(name)
        except NotFound:
            broker.put_user(name, None if no_password else _new_password(name), tag or [])
        else:
            raise PreconditionFailed(f"user '{name}' exists already")


@commands.command("list")
def list_users(
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    data: DataOption = None,
    url: UrlOption = None,
) -> None:
    """List the users and their tags."""
    with administration(data, url) as broker:
        users = [{"name": user["name"], "tags": user["tags"]} for user in broker.users()]
    print_table(users, ["name", "tags"], json)


@commands.command("passwd")
def passwd(name: Name, data: DataOption = None, url: UrlOption = None) -> None:
    """Change a user's password. It is asked for, or is the first line of standard input."""
    with administration(data, url) as broker:
        user = broker.user(name)
        broker.put_user(name, _new_password(name), user["tags"])


@commands.command("delete")
def delete(name: Name, data: DataOption = None, url: UrlOption = None) -> None:
    """Delete a user with all its permissions."""
    with administration(data, url) as broker:
        broker.delete_user(name)


def _new_password(name: str) -> str:
    if sys.stdin.isatty():
        password: str = typer.prompt(
            f"New password of {name}", hide_input=True, confirmation_prompt="Once more", err=True
        )
    else:
        password = sys.stdin.readline().removesuffix("\n")
    if not password:
        raise PreconditionFailed("the password is empty")
    return password
