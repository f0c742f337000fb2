"""`wanspec certs`: an authority and the certificates that it signs, now and later."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wanspec.cli.application import new_app
from wanspec.cli.running import exit_statuses
from wanspec.errors import ConfigError

app = new_app()


@app.command()
def certs(
    folder: Annotated[str, typer.Argument(help="Where to write them; made if need be.")],
    host: Annotated[list[str] | None, typer.Option(help="Name or address by which workers dial the controller; repeatable.")] = None,
    worker: Annotated[
        str | None, typer.Option(help="Add a worker's certificate of this name, signed by the authority that is in the folder.")
    ] = None,
    controller: Annotated[
        str | None, typer.Option(help="Add a controller's certificate of this name, for --host, signed by the authority in the folder.")
    ] = None,
) -> None:
    """Make an authority and certificates, or add to one.

    Without --worker and --controller: an authority with a certificate for one controller and one worker.

    \b
        wanspec certs certs --host controller.example.org
        wanspec certs certs --worker campus-2                                   # certs/campus-2.pem, certs/campus-2-key.pem
        wanspec certs certs --controller controller-2 --host controller.example.org

    Certificates last a year, the authority five. Give a worker's site ca.pem, worker.pem and worker-key.pem, and keep ca-key.pem to
    yourself. Nothing is overwritten.
    """  # the backspace keeps the lines of the examples apart
    with exit_statuses():
        for path in _made(folder, host or [], worker, controller):
            typer.echo(path)


def _made(folder: str, hosts: list[str], worker: str | None, controller: str | None) -> tuple[Path, ...]:
    """The files that were written. Raises ConfigError."""
    from wanspec.transport.certificates import add_controller_certificate, add_worker_certificate, create_trial_certificates

    if not folder:
        raise ConfigError("the folder's name is empty; write . for this one")
    if worker is not None:
        if controller is not None or hosts:
            raise ConfigError(f"--worker {worker} is one certificate, without --host; make a controller's by a command of its own")
        return add_worker_certificate(Path(folder), worker)
    if controller is not None:
        return add_controller_certificate(Path(folder), controller, hosts)
    return create_trial_certificates(Path(folder), hosts).all()
