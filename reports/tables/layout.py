"""Views as plain text and as Markdown."""

import pandas as pd


def compact(view: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """Model, length, precision and rate where all rows agree, as words; the view without them."""
    words, rest = [], view
    for name, template in (
        ("model", "{}"),
        ("seq", "{} tokens"),
        ("precision", "{}"),
        ("lr", "lr {}"),
    ):
        if name in view and view[name].nunique() == 1:
            words.append(template.format(view[name].iloc[0]))
            rest = rest.drop(columns=name)
    return ", ".join(words), rest


def aligned(view: pd.DataFrame, left: tuple[str, ...] = ("optimizer", "model")) -> str:
    """A view as plain text columns: words to the left, numbers to the right."""
    if view.empty:
        return ""
    cells = [list(view.columns), *[[str(value) for value in row] for row in view.to_numpy()]]
    widths = [max(len(row[index]) for row in cells) for index in range(len(view.columns))]
    lines = []
    for row in cells:
        words = [
            text.ljust(width) if name in left else text.rjust(width)
            for text, width, name in zip(row, widths, view.columns, strict=True)
        ]
        lines.append("  ".join(words).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def markdown(view: pd.DataFrame) -> str:
    """A view as a Markdown table."""
    head = "| " + " | ".join(view.columns) + " |"
    rule = "|" + " --- |" * len(view.columns)
    body = ["| " + " | ".join(map(str, row)) + " |" for row in view.to_numpy()]
    return "\n".join([head, rule, *body])
