"""A private PostgreSQL server on loopback: ``python postgres.py start FOLDER`` prints its URL, ``stop FOLDER`` ends it.

Needs nothing but the server's programs, in PATH or where distributions put them, and the standard library.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import socket
import subprocess
import sys
from pathlib import Path


class NoServerError(Exception):
    """The server's programs are not here, or did not start; the text says which and why."""


def start(folder: Path) -> str:
    """Makes a cluster in ``folder/cluster``, starts it on a free port of 127.0.0.1, and returns its URL."""
    programs = _programs()
    cluster, password = folder / "cluster", secrets.token_hex(16)
    cluster.mkdir(parents=True)
    secret = folder / "password"
    secret.write_text(password, encoding="ascii")
    if os.getuid() == 0:
        account = _account()
        for path in (folder, cluster, secret):
            os.chown(path, account.pw_uid, account.pw_gid)
    secret.chmod(0o600)
    initdb = [str(programs / "initdb"), "-D", str(cluster), "-U", "loratory", f"--pwfile={secret}", "--no-sync"]
    _run([*initdb, "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C"], folder)
    port = _free_port()
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
    log = cluster / "server.log"
    _run(
        [str(programs / "pg_ctl"), "-D", str(cluster), "-w", "-t", "60", "-l", str(log), "-o", options, "start"], folder
    )
    return f"postgresql://loratory:{password}@127.0.0.1:{port}/postgres"


def stop(folder: Path) -> None:
    """Stops the server of `start` and deletes the folder."""
    if (folder / "cluster" / "postmaster.pid").exists():
        _run([str(_programs() / "pg_ctl"), "-D", str(folder / "cluster"), "-m", "immediate", "-w", "stop"], folder)
    shutil.rmtree(folder, ignore_errors=True)


def _programs() -> Path:
    places = [Path(found).resolve().parent] if (found := shutil.which("initdb")) else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for place in places:
        if (place / "initdb").exists() and (place / "pg_ctl").exists():
            return place
    raise NoServerError(
        "no PostgreSQL server is installed (initdb and pg_ctl are neither in PATH nor in /usr/lib/postgresql)"
    )


def _account() -> pwd.struct_passwd:
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise NoServerError("PostgreSQL refuses to run as root, and there is no user postgres or nobody")


def _run(command: list[str], folder: Path) -> None:
    who = {}
    if os.getuid() == 0:
        account = _account()
        who = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    # The server inherits what pg_ctl writes to: a pipe would stay open as long as the server runs.
    with (folder / "output").open("w+", encoding="utf-8") as output:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=folder, **who)
        output.seek(0)
        if done.returncode:
            raise NoServerError(f"{Path(command[0]).name} failed: {output.read()[-2000:]}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    verb, where = sys.argv[1:]
    try:
        if verb == "start":
            print(start(Path(where)))
        else:
            stop(Path(where))
    except NoServerError as error:
        sys.exit(str(error))
