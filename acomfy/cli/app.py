"""The commands, put together."""

from __future__ import annotations

import typer

from . import check, convert, doctor, fleet, inspect, nodes, run, serve, watch, worker

app = typer.Typer(
    name="acomfy",
    help="Run ComfyUI workflows: many prompts at once, their pictures on your disk.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command(epilog=run.EXIT_CODES)(run.run)
app.command(epilog=inspect.EXIT_CODES)(inspect.inspect)
app.command(epilog=check.EXIT_CODES)(check.check)
app.command(epilog=convert.EXIT_CODES)(convert.convert)
app.command(epilog=nodes.EXIT_CODES)(nodes.nodes)
app.command(epilog=watch.EXIT_CODES)(watch.watch)
app.command(epilog=doctor.EXIT_CODES)(doctor.doctor)
app.command()(serve.serve)
app.command(epilog=worker.EXIT_CODES)(worker.worker)
app.add_typer(fleet.app, name="fleet")
