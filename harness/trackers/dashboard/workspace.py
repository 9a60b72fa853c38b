"""The spec in the terms of wandb-workspaces: built without a network, saved with a key."""

import json
import math
from pathlib import Path
from typing import Any

import yaml

from harness.cells import store
from harness.trackers import require
from harness.trackers.dashboard.spec import Panel, Spec, claims_text
from harness.trackers.wandb import import_wandb

GROUP_KEY = "setting"  # in the configuration of every run, by RunInfo
COLUMNS = 3
READABLE, SERIALISED, SAVED = "workspace.yaml", "workspace.json", "saved.json"


def build(spec: Spec, entity: str, project: str) -> Any:
    """The `wandb_workspaces.workspaces.Workspace` of a spec; UserError without the package."""
    require("wandb_workspaces", "dashboards", "gefen-dashboard wandb")
    import_wandb()
    import wandb_workspaces.workspaces as workspaces

    sections = [
        workspaces.Section(
            name=section.name,
            is_open=True,
            panels=[_panel(panel, spec) for panel in section.panels],
            # All of them at once: W&B shows two rows and puts the rest on further pages.
            layout_settings=workspaces.SectionLayoutSettings(
                columns=COLUMNS, rows=math.ceil(len(section.panels) / COLUMNS)
            ),
        )
        for section in spec.sections
    ]
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=spec.name,
        sections=sections,
        settings=workspaces.WorkspaceSettings(x_axis="tokens", max_runs=spec.max_runs),
    )


def write(workspace: Any, spec: Spec, folder: Path) -> list[Path]:
    """The spec for people and in the library's own serialisation; returns both files."""
    readable, serialised = folder / READABLE, folder / SERIALISED
    header = {"entity": workspace.entity or None, "project": workspace.project}
    text = yaml.safe_dump({**header, **spec.to_dict()}, sort_keys=False, allow_unicode=True)
    store.write_bytes_atomic(readable, text.encode())
    model = workspace._to_model().spec.model_dump_json(by_alias=True, exclude_none=True)
    store.write_json_atomic(serialised, json.loads(model))
    return [readable, serialised]


def save(workspace: Any, folder: Path) -> str:
    """Save to W&B and return the address; the view that `folder` remembers is replaced."""
    remembered = folder / SAVED
    place = {"entity": workspace.entity, "project": workspace.project}
    if remembered.is_file():
        known = store.read_json(remembered)
        if {key: known.get(key) for key in place} == place:
            workspace._internal_name, workspace._internal_id = known["name"], known["id"]
    workspace.save()
    names = {"name": workspace._internal_name, "id": workspace._internal_id}
    store.write_json_atomic(remembered, {**place, **names})
    return str(workspace.url)


def _panel(panel: Panel, spec: Spec) -> Any:
    import wandb_workspaces.reports.v2 as reports

    if panel.kind == "claims":
        return reports.MarkdownPanel(markdown=claims_text(spec.claims))
    if panel.kind == "scatter":
        return reports.ScatterPlot(
            title=panel.title,
            x=_point(reports, panel.x or ""),
            y=_point(reports, panel.y[0]),
            log_x=panel.log_x or None,
            log_y=panel.log_y or None,
        )
    grouping = {
        "groupby": reports.Config(GROUP_KEY),
        "groupby_aggfunc": "mean",
        "groupby_rangefunc": "stderr",
    }
    if panel.kind == "bars":
        return reports.BarPlot(
            title=panel.title,
            metrics=list(panel.y),
            max_runs_to_show=spec.max_runs,
            max_bars_to_show=spec.max_runs,
            **grouping,
        )
    return reports.LinePlot(
        title=panel.title,
        x=panel.x,
        y=list(panel.y),
        log_x=panel.log_x or None,
        log_y=panel.log_y or None,
        max_runs_to_show=spec.max_runs,
        **(grouping if panel.group else {}),
    )


def _point(reports: Any, key: str) -> Any:
    kind, _, name = key.partition(":")
    return {"summary": reports.SummaryMetric, "config": reports.Config}[kind](name)
