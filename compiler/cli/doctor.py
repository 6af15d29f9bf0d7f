"""`tilewright doctor`: what this machine has, what is missing, and how to install it."""

from __future__ import annotations

import click

from tilewright.cli.common import json_option


@click.command("doctor")
@json_option
def doctor_command(as_json: bool) -> None:
    """CPU features, compilers, versions of torch and triton, the cache folder; what is missing and how to get
    it."""
    from tilewright.tools import doctor

    click.echo(doctor.render(as_json=as_json))
