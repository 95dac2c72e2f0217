"""The rate options of `generate` and `run`, named and counted as tcpreplay's are: one of them at most."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from netssmd.errors import UsageError

if TYPE_CHECKING:
    from netssmd.output.rate import Rate

Command = TypeVar("Command", bound=Callable[..., object])
KINDS = ("pps", "mbps", "multiplier", "topspeed")


class Above(click.FloatRange):
    """A number above 0 that can be."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a number that can be.", param, ctx)
        return number


def rate_options(command: Command) -> Command:
    """Adds --pps, --mbps, --multiplier and --topspeed."""
    number = Above(0, min_open=True)
    options = (
        click.option("--pps", type=number, metavar="N", help="So many packets a second, steadily."),
        click.option("--mbps", type=number, metavar="N", help="So many 10^6 bits a second, steadily."),
        click.option("--multiplier", type=number, metavar="X", help="X times as fast as drawn."),
        click.option("--topspeed", is_flag=True, help="As fast as it goes."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def chosen_rate(pps: float | None, mbps: float | None, multiplier: float | None, topspeed: bool) -> Rate | None:
    """What was asked for; None: as drawn. Raises UsageError for two of them."""
    from netssmd.output.rate import Rate

    values = (pps, mbps, multiplier, topspeed or None)
    given = [(name, value) for name, value in zip(KINDS, values) if value is not None]
    if len(given) > 1:
        raise UsageError(f"--{given[0][0]} and --{given[1][0]} exclude each other; keep one")
    return Rate.of(given[0][0], float(given[0][1])) if given else None  # type: ignore[arg-type]
