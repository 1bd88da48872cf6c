"""Formats whose groups are lists of columns (GPTQ's act-order), seen as if they were neighbours: what a rule takes.

Decides from declarations alone.
"""

from __future__ import annotations

from dataclasses import replace

from qformat.scheme import Grid, Indexed, Scheme, Table


def index_of(scheme: Scheme) -> str:
    """Name the parameter that lists the columns of groups; empty without one."""
    return next((param.group.index for param in scheme.params if isinstance(param.group, Indexed)), "")


def neighbours(scheme: Scheme) -> Scheme:
    """Give a scheme without index, its groups as many as before and of neighbouring columns; itself where it has none."""
    index = index_of(scheme)
    if not index:
        return scheme
    table = scheme.param(index).group
    n_cols = table.n_entries if isinstance(table, Table) else 0
    params = []
    for param in scheme.params:
        if isinstance(param.group, Indexed):
            params.append(replace(param, group=Grid(1, -(-n_cols // param.group.n_groups))))
        elif param.name != index:
            params.append(param)
    return replace(scheme, params=tuple(params))
