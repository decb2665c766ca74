"""`kvmeta serve`: the server, from the command line."""

from __future__ import annotations

import os
from pathlib import Path

import click

_EPILOG = (
    "Settings: docs/operating.md. Later ones win: the file, KVMETA_SERVE_… variables, --set, the other flags."
)


@click.command(short_help="Serve a store to clients over gRPC.", epilog=_EPILOG)
@click.option("--data", metavar="DIR", help="The store's directory; made if missing.")
@click.option(
    "--listen", metavar="HOST:PORT", help="Where to listen; port 0 takes a free one.  [127.0.0.1:7400]"
)
@click.option(
    "--config",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Settings, such as kvmeta.toml.",
)
@click.option("--insecure", is_flag=True, default=None, help="Listen where others reach it, without TLS.")
@click.option("--log-format", type=click.Choice(["text", "json"]), help="The log on stderr.  [text]")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="[info]")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any setting, such as limits.calls_max=512."
)
def serve(
    data: str | None,
    listen: str | None,
    file: Path | None,
    insecure: bool | None,
    log_format: str | None,
    log_level: str | None,
    settings: tuple[str, ...],
) -> None:
    """Serve the store in DIR until SIGTERM, then let calls under way end.

    \b
    kvmeta serve --data catalog
    kvmeta lookup --store kvmeta://localhost:7400 --ids ids.bin

    Ready when the log says so, and when the gRPC health service says SERVING.
    """  # noqa: D301 - click looks for the backspace itself
    from kvmeta_server import config, serving

    flags = {
        "data": data,
        "listen": listen,
        "insecure": insecure,
        "log.format": log_format,
        "log.level": log_level,
    }
    serving.serve(config.load(file, os.environ, flags, settings))
