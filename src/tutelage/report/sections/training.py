"""How training went, epoch by epoch."""

from __future__ import annotations

from typing import Any

from tutelage.core.recipe_tree import flat
from tutelage.evaluation.quality import merit
from tutelage.report import plots, tables
from tutelage.report.page import Section, awaited, embed, render_section
from tutelage.report.run_records import RunRecords
from tutelage.report.style import accuracy_key, accuracy_name

FITS = ("teacher-fit", "head-fit")


def training_section(records: RunRecords) -> Section:
    """Show the curves of training with the findings of the diagnosis."""
    id, title = "training", "Training"
    trained = records.stage("control") + records.stage("distill")
    fits = [row for row in records.metrics if row["stage"].startswith(FITS)]
    if not trained and not fits:
        return awaited(id, title, f"No epoch has finished yet: {records.reached}.")
    levels = _levels(records) if trained else {}
    kept = _kept_at(records)
    figures = plots.curves(trained, records.findings, kept, levels) if trained else {}
    fitted = plots.curves(fits, records.findings)["accuracy"] if fits else None
    findings = [_finding(finding, records) for finding in records.findings]
    return render_section(
        id,
        title,
        "training.html.j2",
        records=records,
        accuracy=embed(figures["accuracy"]) if figures else None,
        measured=accuracy_name(trained[0]["val"]) if trained else "",
        panels={name: embed(figures[name].update_layout(showlegend=False)) for name in list(figures)[1:]},
        fitted=embed(fitted) if fitted else None,
        summary=_last_epoch(records),
        kept=kept,
        marked=any(finding["drawn"] for finding in findings),
        findings=findings,
        sheet=tables.epochs(fits + trained),
    )


def _levels(records: RunRecords) -> dict[str, float]:
    """Look up the validation accuracy of the teacher and the start in the pre-flight checks."""
    who = {"teacher": "teacher"} if records.random_start else {"teacher": "teacher", "start": "student"}
    preflight = records.preflight or {}
    val = {role: preflight[key]["val"] for role, key in who.items() if key in preflight}
    levels = {role: figures.get(accuracy_key(figures)) for role, figures in val.items()}
    return {role: level for role, level in levels.items() if level is not None}


def _kept_at(records: RunRecords) -> dict[str, Any] | None:
    """Add to the kept candidate the epoch that its weights come from; None for a soup of several."""
    kept, rows = records.kept, records.stage("distill")
    if not kept or not rows:
        return None
    last = rows[-1]["epoch"]
    epochs = {"start": 0, "best": _best_epoch(records), "last": last, "ema": last}
    return {**kept, "epoch": epochs.get(kept["source"])}


def _best_epoch(records: RunRecords) -> int:
    """Find the epoch whose weights are the candidate ``best``."""
    rows = records.stage("distill")
    # The candidate has the figures of its epoch. In some older runs that is the best by top-1, whatever the metric.
    options = (records.candidates or {}).get("candidates") or []
    best: dict[str, float] = next((c["val"] for c in options if c["name"] == "best"), {})
    figures = ("top1", "nll", "agreement", "fidelity")
    same = [r for r in rows if all(r["val"].get(key) == best.get(key) for key in figures)]
    chosen = same[0] if same else max(rows, key=lambda row: merit(row["val"], records.metric))
    return int(chosen["epoch"])


def _last_epoch(records: RunRecords) -> str:
    sentences = []
    for stage, name in (("distill", "The distilled student"), ("control", "The labels-only control")):
        rows = records.stage(stage)
        if rows:
            last = rows[-1]
            sentences.append(
                f"{name} finished epoch {last['epoch']} of {last['epochs']} "
                f"with a validation {accuracy_name(last['val'])} of {last['val'][accuracy_key(last['val'])]:.2f}%."
            )
    return " ".join(sentences)


def _finding(finding: dict[str, Any], records: RunRecords) -> dict[str, Any]:
    drawn = bool(finding.get("epoch") and records.stage(finding.get("stage") or ""))
    evidence = flat(finding.get("evidence") or {})
    shown = [f"{key.replace('_', ' ')} {_brief(value)}" for key, value in evidence.items()]
    return {**finding, "evidence": ", ".join(shown), "drawn": drawn}


def _brief(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(_brief(v) for v in value[:8]) + (", …" if len(value) > 8 else "")
    return str(value)
