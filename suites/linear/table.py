"""The tables a linear run ends with: a line a product and size, and which product is the best of each."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from ..core.report import main_launch, new_table, number, print_untimed, share
from ..core.rows import Row

COLUMNS = ("projection", "rows", "product", "us", "GB/s", "of floor", "times the best's", "used of error bound")


def print_report(rows: Sequence[Row], console: Console) -> None:
    """A table a model and kind of weight, then the sum of a layer's projections, then what did not run."""
    timed = [row for row in rows if row.timed]
    for model, kind in dict.fromkeys((r.model, r.weight_dtype) for r in timed):
        group = [r for r in timed if (r.model, r.weight_dtype) == (model, kind)]
        table = new_table(f"{model}, {kind} weights (cold, {main_launch(group)})", COLUMNS, ("projection", "product"))
        for case in dict.fromkeys(r.case for r in group):
            own = sorted((r for r in group if r.case == case), key=lambda r: r.median_us or 0.0)
            for row in own:
                ratio = (row.median_us or 0.0) / (own[0].median_us or 1.0)
                table.add_row(
                    projection(row), str(row.batch), row.method, number(row.median_us, ".1f"),
                    number(row.gbps, ".3g"), share(row.floor_fraction), f"{ratio:.2f}x",
                    number(row.error_budget_used, ".2f"),
                )  # fmt: skip
        console.print(table)
    print_layers(timed, console)
    print_untimed(rows, console)


def projection(row: Row) -> str:
    """Of a row's case: `gate_up`."""
    return row.case.rsplit("-", 2)[1]


def print_layers(rows: Sequence[Row], console: Console) -> None:
    """All projections of a layer one after another, of each product that has them all, and of the best of each."""
    table = new_table(
        "a layer's projections, us", ("model", "weights", "rows", "product", "sum", "floor"), ("product",)
    )
    for model, kind, count in dict.fromkeys((r.model, r.weight_dtype, r.batch) for r in rows):
        group = [r for r in rows if (r.model, r.weight_dtype, r.batch) == (model, kind, count)]
        names = {projection(r) for r in group}
        if len(names) < 2:
            continue
        sums = {}
        for product in dict.fromkeys(r.method for r in group):
            own = {projection(r): r for r in group if r.method == product}
            if own.keys() == names:
                sums[product] = list(own.values())
        best = {
            name: min((r for r in group if projection(r) == name), key=lambda r: r.median_us or 0.0) for name in names
        }
        sums |= {"the best of each": list(best.values())} if len(sums) > 1 else {}
        for product, layer in sums.items():
            total = sum(r.median_us or 0.0 for r in layer)
            floors = [r.floor_us for r in layer if r.floor_us is not None]
            floor = sum(floors) if len(floors) == len(layer) else None
            table.add_row(model, str(kind), str(count), product, f"{total:.1f}", number(floor, ".1f"))
    if table.row_count:
        console.print(table)
