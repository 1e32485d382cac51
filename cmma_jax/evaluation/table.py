"""The table of an evaluation: figures by system, in a terminal, as Markdown and JSON."""

import json
import math
import pathlib

import numpy as np

from cmma_jax.data.files import write_whole

Figures = dict[str, tuple[float, float | None]]  # figure -> (value, its error or None)

COLUMNS = {  # figure: (heading, decimals)
    "bound": ("bound", 0), "iwae": ("importance-weighted", 0), "exact": ("exact log p", 0), "parzen": ("Parzen", 0),
    "parzen_sigma": ("sigma", 3), "kl": ("KL", 0), "reconstruction": ("reconstruction", 0),
    "bound_unconditional": ("bound of p(x)", 0), "bits_per_dim_unconditional": ("bits/dim of p(x)", 3),
    "bits_per_dim_dequantised_unconditional": ("bits/dim of p(x), dequantised", 3),
    "bits_per_dim": ("bits/dim", 3), "bits_per_dim_dequantised": ("bits/dim, dequantised", 3),
    "bits_per_dim_payload": ("bits/dim, payload", 3), "bits_per_dim_sheet": ("bits/dim, one sheet", 3),  # of formats
    "diversity": ("diversity", 2),
    "accuracy": ("accuracy", 3),  # of attributes: those asked for, by the classifier
    "fd_dlib": ("FD-dlib", 3), "identities": ("identity diversity", 2), "detected": ("detected", 3),
    "parameters": ("parameters", 0), "seeds": ("seeds", 0),
    # of edits (evaluation.editing)
    "flips": ("flips (effectiveness)", 3), "set": ("when set", 3), "reset": ("when reset", 3),
    "others": ("others moved", 4), "moved": ("pixels moved", 4), "back": ("after the reverse (reversibility)", 4),
    "identity": ("identity, cosine", 3), "kept": ("identity kept", 3),
    "empty": ("empty edit (composition)", 4), "empty_kept": ("empty edit, detail kept", 4),
    # of inferred attributes
    "auc": ("AUC", 3), "ece": ("calibration error", 3)}


def over_seeds(results: list[Figures]) -> Figures:
    """Returns the mean of each figure over runs that differ in the seed; its error is their standard deviation.

    One run keeps its own errors, which are over faces.
    """
    if len(results) == 1:
        return results[0]
    merged = {}
    for name in results[0]:
        values = [result[name][0] for result in results]
        merged[name] = (float(np.mean(values)), float(np.std(values, ddof=1)))
    return merged | {"seeds": (len(results), None)}


def to_rows(table: dict[str, Figures]) -> list[list[str]]:
    """Returns the table as cells: a row of headings, a row a system; columns nobody has are left out."""
    columns = [name for name in COLUMNS if any(name in figures for figures in table.values())]
    rows = [["", *(COLUMNS[name][0] for name in columns)]]
    for system, figures in table.items():
        rows.append([system, *(_cell(*figures[name], COLUMNS[name][1]) if name in figures else "" for name in columns)])
    return rows


def to_markdown(table: dict[str, Figures]) -> str:
    """Returns the table as Markdown, padded so that it reads as plain text too."""
    rows = to_rows(table)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
             for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines) + "\n"


def to_json(table: dict[str, Figures]) -> str:
    """Returns {system: {figure: [value, error]}}; what is not a number is null."""
    def plain(value: float | None) -> float | None:
        return None if value is None or not math.isfinite(value) else value

    return json.dumps({system: {name: [plain(value), plain(error)] for name, (value, error) in figures.items()}
                       for system, figures in table.items()}, indent=1) + "\n"


def from_json(text: str) -> dict[str, Figures]:
    """Returns the table of `to_json`'s text; a null value is no number again."""
    return {system: {name: (math.nan if value is None else value, error) for name, (value, error) in figures.items()}
            for system, figures in json.loads(text).items()}


def write(table: dict[str, Figures], stem: pathlib.Path, heading: str) -> list[pathlib.Path]:
    """Writes stem.json and .md, each whole or not at all, and returns their paths."""
    texts = {".json": to_json(table), ".md": f"{heading}\n\n{to_markdown(table)}"}
    paths = []
    for suffix, text in texts.items():
        path = stem.with_name(stem.name + suffix)
        write_whole(path, text.encode(), "runs_dir")
        paths.append(path)
    return paths


def _cell(value: float, error: float | None, decimals: int) -> str:
    if error is None or not math.isfinite(error):
        return f"{value:,.{decimals}f}"
    return f"{value:,.{decimals}f} +- {error:,.{decimals}f}"
