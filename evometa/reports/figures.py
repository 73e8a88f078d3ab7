"""Figures by altair, written by vl-convert (the extra `reports`): SVG, PNG, or the Vega-Lite JSON."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evometa.archives.write import storage
from evometa.errors import EvometaError, UsageError

FORMATS = (".svg", ".png", ".json")
INSTALL = "a figure needs altair and vl-convert. Type: pip install 'evometa[reports]'"


def comparison_figure(data: Mapping[str, Any], path: Path) -> Path:
    """Draw `evometa.compare.results`: per arm the difference from the rival with its interval, and every domain.

    Raises `UsageError` for another ending than .svg, .png, .json, or without the extra `reports`.
    """
    check_format(path)
    alt = altair()
    points = [
        {"arm": found["arm"], "domain": one["domain"], "difference": one["difference"]}
        for found in data["differences"]
        for one in found["per_domain"]
        if one["difference"] is not None
    ]
    means = [
        {key: found[key] for key in ("arm", "difference", "low", "high")}
        for found in data["differences"]
        if found["difference"] is not None
    ]
    if not means:
        raise EvometaError("nothing to draw: every difference failed, or there is only one arm")
    order = [found["arm"] for found in data["differences"]]
    title = f"loss on {data['query']}: arm - {data['rival']} (below zero is better)"
    x = alt.X("difference:Q", title=title, scale=alt.Scale(zero=False))
    y = alt.Y("arm:N", sort=order, title=None)
    zero = alt.Chart(alt.Data(values=[{"zero": 0.0}])).mark_rule(strokeDash=[4, 3], color="#777").encode(x="zero:Q")
    domains = (
        alt.Chart(alt.Data(values=points))
        .mark_circle(size=36, opacity=0.45, color="#4c78a8")
        .encode(x=x, y=y, tooltip=["domain:N", "difference:Q"])
    )
    whole = [row for row in means if row["low"] is not None]
    bars = alt.Chart(alt.Data(values=whole)).mark_rule(size=2, color="#222").encode(x="low:Q", x2="high:Q", y=y)
    centres = alt.Chart(alt.Data(values=means)).mark_tick(thickness=3, size=16, color="#222").encode(x=x, y=y)
    level = f"{data['level']:.0%}".replace("%", " %")
    about = data["differences"][0]
    subtitle = [f"bar: {level} interval, {about['estimand']}", f"(unit: {about['unit']}); points: test domains"]
    head = alt.TitleParams(f"Difference from {data['rival']}", subtitle=subtitle, anchor="start", subtitleColor="#555")
    chart = alt.layer(zero, bars, centres, domains).properties(width=460, height=alt.Step(34), title=head)
    with storage(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        chart.save(str(path), **({"scale_factor": 2} if path.suffix == ".png" else {}))
    return path


def check_format(path: Path) -> None:
    """Raise `UsageError` where a figure cannot be written to a file of that name, before anything is computed."""
    if path.suffix not in FORMATS:
        raise UsageError(f"expected a figure's file to end in {', '.join(FORMATS)}, got {str(path)!r}")
    altair()


def altair() -> Any:
    """The library; `UsageError` where the extra `reports` is not installed."""
    try:
        import altair as library
        import vl_convert  # noqa: F401
    except ImportError:
        raise UsageError(INSTALL) from None
    return library
