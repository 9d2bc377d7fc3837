"""swap: ``loratory swap POLICY``, which puts a policy into a running server, or beside the one in force."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from loratory.cli.terminal import Json, dump, say
from loratory.errors import InputError, LoratoryError, PolicyError, shortened

TOKEN = "LORATORY_ADMIN_TOKEN"
"""The environment variable that has the admin token where no file is given."""

_PATIENCE_S = 120.0


def swap_command(
    policy: Annotated[str, typer.Argument(help="a policy: a name with parameters, or FILE.py:Class on the server")],
    url: Annotated[str, typer.Option(help="where the server is")] = "http://127.0.0.1:8000",
    token_file: Annotated[
        Path | None, typer.Option("--token-file", help=f"file with the admin token; by default ${TOKEN} has it")
    ] = None,
    shadow: Annotated[
        bool, typer.Option("--shadow", help="ask it beside the policy in force, and log what it would do")
    ] = False,
    as_json: Json = False,
) -> None:
    """Put a policy into a running server, without losing a request.

    The server tries it first: import, the checks of check-policy, a dry run over a copy of what waits and runs. If it
    fails there, nothing changes and the exit code is 1; a policy that does not exist is bad input, with exit code 2. If
    it fails later, the policy before it returns. A relative path is relative to the server's working folder.
    """
    try:
        import httpx
    except ImportError as error:
        raise InputError(f'swap needs {error.name}: pip install "loratory[serve]"') from error

    headers = {"authorization": f"Bearer {_token(token_file)}"}
    place = url.rstrip("/")
    try:
        answer = httpx.post(
            f"{place}/admin/policy", json={"policy": policy, "shadow": shadow}, headers=headers, timeout=_PATIENCE_S
        )
        said = answer.json()
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
        raise InputError(f"no server answers at {shortened(place, 100)} ({_reason(error)}): check --url") from error
    except ValueError:
        said = None
    if answer.status_code >= 400 or not isinstance(said, dict):
        _refuse(answer.status_code, said, place)
    if as_json:
        dump(said)
    elif shadow:
        say(f"{policy} is asked beside {said['policy']} from now on; loratory shadow report shows what it would do")
    else:
        say(
            f"{said['policy']} is in force, in place of {said['before']}, since second {said['at_s']:.3f} of the "
            f"server; its trial took {said['trial_s']:.1f} s"
        )


def _token(file: Path | None) -> str:
    token = os.environ.get(TOKEN, "").strip() if file is None else read_token(file, "--token-file")
    if not token:
        raise InputError(f"no admin token is given: give --token-file, or set {TOKEN}")
    if not _is_token(token):
        raise InputError(f"{TOKEN} holds no token: give what the server has in its --admin-token-file")
    return token


def read_token(file: Path | None, option: str) -> str:
    """The token in a file; empty without one. ``option`` names the file in errors."""
    if file is None:
        return ""
    try:
        token = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise InputError(f"{option} {file} cannot be read ({reason}): give a file with the admin token") from error
    if not _is_token(token):
        raise InputError(f"{option} {file} holds no token: write one line, of letters and digits")
    return token


def _is_token(text: str) -> bool:
    """Whether a header can hold it."""
    return bool(text) and text.isascii() and text.isprintable()


def _refuse(status: int, said: Any, place: str) -> None:
    """Raises the error that an answer stands for."""
    told = said.get("error") if isinstance(said, dict) else None
    message = str(told.get("message", "")) if isinstance(told, dict) else ""
    if status == 401:
        raise InputError(f"the server at {shortened(place, 100)} refuses the admin token: give that of the server")
    if status == 404:
        raise InputError(
            f"the server at {shortened(place, 100)} has no admin routes: start it with --admin-token-file, or check "
            "--url"
        )
    if message and isinstance(told, dict):
        if told.get("code") == "refused":
            raise PolicyError(shortened(message))
        raise (InputError if status < 500 else LoratoryError)(shortened(message))
    raise InputError(f"what answers at {shortened(place, 100)} is no loratory serve (HTTP {status}): check --url")


def _reason(error: Exception) -> str:
    return shortened(str(error) or type(error).__name__, 120)
