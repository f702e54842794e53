"""Columns that several tables of stored results share."""

from __future__ import annotations

from riebench.paper.artefact import Column
from riebench.scoring.profiles import metric_format


def gain_column(name: str, title: str, *, interval: bool = True) -> Column:
    """An area or a gain on the scale of CLIP: x100, two decimals, signed."""
    return Column(name=name, title=title, decimals=2, scale=100, signed=True, interval=interval)


def percent_column(name: str, title: str, *, signed: bool = False, interval: bool = True) -> Column:
    """A share in whole per cents."""
    return Column(name=name, title=title, decimals=0, scale=100, signed=signed, interval=interval)


def metric_column(metric: str) -> Column:
    """A metric, printed as all tables print it."""
    form = metric_format(metric)
    title = metric if form.scale == 1 else f"{metric} x{form.scale:g}"
    return Column(name=metric, title=title, decimals=form.decimals, scale=form.scale, signed=form.signed, interval=True)
