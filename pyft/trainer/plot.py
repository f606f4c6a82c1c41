"""training_loss.png: training and validation loss over the steps. Its failure is a warning, not an end."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

from pyft.disk import replace_file


def plot_loss(path: Path, rows: list[dict[str, Any]]) -> str | None:
    """Draw the rows of trainer_log.jsonl, skipped steps as gaps; return what went wrong, if anything."""
    try:
        with warnings.catch_warnings():
            # A stage may be named in letters that matplotlib's own font lacks.
            warnings.simplefilter("ignore")
            content = _draw(rows)
        replace_file(path, content)
    except Exception as error:
        return f"{path.name} could not be drawn: {error}"
    return None


def _draw(rows: list[dict[str, Any]]) -> bytes:
    # Imported here, since it takes half a second; without pyplot, so that no window system is looked for.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=120)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for key, name, mark in (("loss", "training", "-"), ("eval_loss", "validation", "o-")):
        steps = [row["step"] for row in rows if key in row]
        losses = [float("nan") if row[key] is None else row[key] for row in rows if key in row]
        if steps:
            axes.plot(steps, losses, mark, label=name)
            axes.legend()
    axes.set(xlabel="optimizer step", ylabel="loss (mean over target tokens, nats)")
    axes.set_title(rows[0]["stage"] if rows else "")
    axes.grid(alpha=0.3)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()
