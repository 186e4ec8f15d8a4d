"""The model card of a deployed directory: its ``README.md``, which the Hugging Face Hub shows as the model's page."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from tutelage.core.files import write_text
from tutelage.deploy.manifest import LABELS, PREPROCESS, Manifest
from tutelage.deploy.qad.words import WORDS
from tutelage.deploy.runtimes.registry import RUNTIMES, VARIANTS, preferred, runtime_of
from tutelage.evaluation.intervals import exact_interval

CARD = "README.md"
MARK = "<!-- Made by tutelage from preprocess.json and deploy.json. Remove this line to keep your own changes. -->"
LISTED = 60  # classes that the card lists; labels.txt has all
INTERVAL = "95% interval"
ROLES = {
    "start": "the student before training",
    "control": "the labels-only control",
    "teacher": "the teacher",
}


def write_card(directory: Path, manifest: Manifest, record: Mapping[str, Any]) -> None:
    """Write the card of a deployed directory; a README of another origin is kept.

    Args:
        directory: the deployed directory.
        manifest: of the model.
        record: the content of ``deploy.json``.
    """
    if not is_foreign(directory / CARD):
        write_text(directory / CARD, str(card(manifest, record)))


def is_foreign(path: Path) -> bool:
    """Whether a README is there that is not, or no longer, to be written by tutelage."""
    return path.exists() and MARK not in path.read_text(encoding="utf-8", errors="replace")


def card(manifest: Manifest, record: Mapping[str, Any]) -> ModelCard:
    """Make the card from the records of an export. No figure is measured here.

    Args:
        manifest: of the model.
        record: the content of ``deploy.json``.
    """
    default = _default_row(record)
    parts = [
        _introduction(manifest),
        _how_to_run(runtime_of(_file_of(record, default)).extra) if default else [],
        _files(record),
        _qad(record),
        _evaluation(record),
        _calibration(manifest, record),
        _cascade(manifest),
        _classes(manifest),
        _preprocessing(manifest),
        _licences(manifest),
        _origin(manifest),
    ]
    body = "\n\n".join("\n".join(part) for part in parts if part)
    metadata = _metadata(manifest, record, default)
    return ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{MARK}\n\n{body}\n")


def _metadata(manifest: Manifest, record: Mapping[str, Any], row: Mapping[str, Any] | None) -> ModelCardData:
    origin = manifest.provenance
    results = None
    if row and row.get("top1") is not None:
        images = _public(record["checks"][0]["images"])
        results = [
            EvalResult(
                task_type="image-classification",
                task_name="Image classification",
                dataset_type=images,
                dataset_name=f"{images} ({row['n']:,} test images)",
                metric_type="accuracy",
                metric_name=f"top-1 of {_file_of(record, row)}",
                metric_value=round(row["top1"] / 100, 6),
            )
        ]
    return ModelCardData(
        library_name="tutelage",
        pipeline_tag="image-classification",
        # A student is made from two sets of weights, and what their licences mean for it is not for a program to say.
        license=None if _distilled(manifest) else origin.get("licence"),
        model_name=_name(manifest) if results else None,
        eval_results=results,
        tags=[*(["knowledge-distillation"] if _distilled(manifest) else []), *_formats(record)],
    )


def _introduction(manifest: Manifest) -> list[str]:
    origin, count = manifest.provenance, len(manifest.labels)
    lines = [f"# {_text(_name(manifest))}", ""]
    size = f"{manifest.input_spec.width} × {manifest.input_spec.height} pixels"
    if _distilled(manifest):
        lines.append(
            f"An image classifier of {count:,} classes for images of {size}: {_code(origin['student'])}, which was "
            f"trained by knowledge distillation from the teacher {_code(origin['teacher'])} with tutelage."
        )
    else:
        lines.append(
            f"The image classifier {_code(manifest.model)} of {count:,} classes, for images of {size}, exported "
            "with tutelage."
        )
    return lines


def _how_to_run(extra: str) -> list[str]:
    return [
        "## How to run it",
        "",
        "```",
        f"pip install 'tutelage[{extra}]'",
        "tutelage predict . cat.jpg holiday/    # in a copy of this folder",
        "```",
        "",
        "```python",
        "from tutelage import Predictor  # imports no torch",
        "",
        'predictor = Predictor(".")',
        'print(predictor("cat.jpg")[0].label)',
        "```",
        "",
        f"Without tutelage, any runtime for the files works: `{PREPROCESS}` says how an image becomes the input, and "
        f"`{LABELS}` has a class in each line, in the order of the logits.",
        "",
        "`hf upload USER/NAME .` publishes this folder on the Hugging Face Hub, with this page as its card.",
    ]


def _files(record: Mapping[str, Any]) -> list[str]:
    rows = list(_good_rows(record))
    unrun = [
        f"`{one['file']}` ({_number(one['size_mb'], 2)} MiB) was not run, since the machine that made it cannot: "
        "its input, output and weights were checked, not its logits, and its accuracy and latency are not known."
        for one in record.get("not_run", [])
        if not one["complaint"]
    ]
    if not rows:
        none = "No file passed the checks; `deploy.json` has the reasons."
        return ["## Files", "", *(unrun or [none])]
    measured = [row for _, row in rows if row["top1"] is not None]
    reference = "the teacher" if record["rows"][0]["role"] == "teacher" else "the model"
    header = ["file", "size, MiB", "latency, ms", *(["top-1, %", INTERVAL] if measured else [])]
    change = any(row.get("paired") for row in measured)
    header += [f"change against {reference} in PyTorch, points ({INTERVAL})"] if change else []
    header += ["same class as PyTorch, %"]
    lines = ["## Files", "", *_table_head(header)]
    for check, row in rows:
        cells = [f"`{_shown(check['role'])}`", _number(row["size_mb"], 2), _number(row["latency_ms"], 2)]
        cells += [_number(row["top1"], 2), _share_interval(row)] if measured else []
        cells += [_paired(row.get("paired"))] if change else []
        lines.append(_line([*cells, _number(check["agreement"], 2)]))
    check, row = rows[0]
    conditions = row.get("conditions") or {}
    threads = conditions.get("threads")
    where = f"on the CPU with {threads} thread{'s' if threads != 1 else ''}" if threads else "on the CPU"
    lines += ["", f"Latency is the median of one image {where}, with all files measured in turns."]
    lines.append(
        f"Top-1 is over {row['n']:,} test images of {_code(_public(check['images']))}; its interval is exact "
        "(Clopper and Pearson), and that of a change is of the difference on the same images."
        if measured
        else f"Files and PyTorch were compared on {check['n']:,} images ({_text(_public(check['images']))}); "
        "no accuracy was measured."
    )
    return [*lines, *("\n" + line for line in unrun)]


def _qad(record: Mapping[str, Any]) -> list[str]:
    """What fine-tuning for int8 gave, of the files that can be compared."""
    found = record.get("qad") or {}
    if not found.get("rows"):
        return []
    lines = ["## int8 with the teacher's help", ""]
    lines.append(
        "Besides quantisation after training (PTQ), the student was fine-tuned in simulated int8: by its teacher, its "
        "own float32 form and the labels (QAD), and, for comparison, for as many steps by the labels alone (QAT). Of "
        "PTQ and QAD, the file that is better on the validation images is the one in this folder."
    )
    header = ["file", "", "size, MiB", "latency, ms", "top-1, %", f"against plain PTQ, points ({INTERVAL})"]
    lines += ["", *_table_head(header)]
    for row in found["rows"]:
        here = found["chosen"].get(row["file"]) == row["candidate"]
        cells = [_code(row["file"]), WORDS[row["candidate"]] + (", in this folder" if here else "")]
        cells += [_number(row["size_mb"], 2), _number(row["latency_ms"], 2), _number(row["top1"], 2)]
        lines.append(_line([*cells, _paired(row["against_plain"])]))
    return lines


def _evaluation(record: Mapping[str, Any]) -> list[str]:
    found = record.get("run") or {}
    if not found.get("verdict"):
        return []
    lines = ["## What distillation gained", "", _text(found["verdict"]), ""]
    pairs = [pair for pair in found.get("pairs") or [] if pair["old"] in ROLES]
    if pairs:
        lines += _table_head(["the student against", f"top-1, points ({INTERVAL})", "images"])
        lines += [_line([ROLES[pair["old"]], _paired(pair), f"{pair['n']:,}"]) for pair in pairs]
        lines += ["", "Measured in PyTorch on test images that neither training nor selection used."]
    return lines


def _calibration(manifest: Manifest, record: Mapping[str, Any]) -> list[str]:
    lines = ["## Calibration", ""]
    if manifest.temperature == 1:
        return [*lines, "The logits are not calibrated: no temperature was fitted (it is 1)."]
    lines.append(
        f"Divide the logits by the temperature {manifest.temperature:.4g} before the softmax; `tutelage predict` does. "
        "It was fitted on the validation images (Guo et al. 2017)."
    )
    found = (record.get("run") or {}).get("calibration") or {}
    if "before" in found and "after" in found:
        lines += ["", *_table_head(["on the test images", "ECE, %", "NLL"])]
        for title, key in (("without the temperature", "before"), ("with it", "after")):
            lines.append(_line([title, _number(found[key]["ece"], 2), _number(found[key]["nll"], 3)]))
    return lines


def _cascade(manifest: Manifest) -> list[str]:
    found = manifest.cascade
    if not found:
        return []
    val, test = found["val"], found["test"]
    lines = ["## In a cascade with the teacher", ""]
    lines.append(
        f"Where its calibrated confidence is at least {found['threshold']:g}, the model answers alone; other images "
        f"are for the teacher ({_code(found['teacher'])}). The threshold was chosen on {val['n']:,} validation "
        f"images, so that with {100 * found['level']:g}% confidence the model gives the teacher's class on at least "
        f"{100 * found['agreement']:g}% of the images that it answers alone."
    )
    if test["agreement"] is not None:
        lines.append(
            f"On {test['n']:,} test images it answers {100 * test['coverage']:.1f}% alone and agrees with the teacher "
            f"on {100 * test['agreement']:.1f}% of these ({INTERVAL} {100 * test['agreement_low']:.1f} to "
            f"{100 * test['agreement_high']:.1f})."
        )
    if test["top1"]:
        top1 = {name: f"{value:.2f}%" for name, value in test["top1"].items()}
        lines.append(
            f"Top-1: {top1['cascade']} both together, {top1['student']} the model, {top1['teacher']} the teacher."
        )
    return [*lines, "", '`Predictor(".", defer_to=teacher)` works in this way. Figures are those of PyTorch.']


def _classes(manifest: Manifest) -> list[str]:
    shown = ", ".join(map(_text, manifest.labels[:LISTED]))
    rest = len(manifest.labels) - LISTED
    more = f", and {rest:,} more in `{LABELS}`" if rest > 0 else ""
    return ["## Classes", "", f"{len(manifest.labels):,} classes: {shown}{more}."]


def _preprocessing(manifest: Manifest) -> list[str]:
    spec = manifest.input_spec
    return [
        "## Preprocessing",
        "",
        "The input `image` is float32 `(batch, 3, height, width)`: upright RGB, `(pixels / 255 - mean) / std`.",
        "",
        *_table_head(["", ""]),
        *(_line([_text(key), _code(_value(value))]) for key, value in spec.to_dict().items()),
    ]


def _licences(manifest: Manifest) -> list[str]:
    origin = manifest.provenance
    lines = ["## Licences of the weights", ""]
    if not _distilled(manifest):
        return [*lines, f"{_code(manifest.model)}: {_licence(manifest.model, origin.get('licence'))}."]
    student, teacher = origin["student"], origin["teacher"]
    lines.append(f"- The student started from {_code(student)}: {_licence(student, origin.get('licence'))}.")
    lines.append(
        f"- The teacher was {_code(teacher)}: {_licence(teacher, origin.get('teacher_licence'))}. "
        "Its licence may restrict what a student that learned from it may be used for."
    )
    return [*lines, "", "State the licence of this model as `license:` in the first lines of this file."]


def _licence(spec: str, stated: str | None) -> str:
    if stated:
        return _text(stated)
    return "random weights" if spec.endswith("@none") else "not known; look it up where the weights are from"


def _origin(manifest: Manifest) -> list[str]:
    shown = {key: value for key, value in manifest.provenance.items() if "licence" not in key}
    rows = [_line([_text(key), _code(_public(value))]) for key, value in shown.items()]
    return ["## Origin", "", *_table_head(["", ""]), *rows]


def _good_rows(record: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Yield the check and the row of each file that is not rejected, in the order in which `Predictor` prefers them."""
    rows = {row["role"]: row for row in record["rows"]}
    names = [variant.file for variant in preferred()]
    checks = [check for check in record["checks"] if check["file"] not in record["rejected"]]
    for check in sorted(checks, key=lambda one: names.index(one["file"])):
        yield check, rows[check["role"]]


def _formats(record: Mapping[str, Any]) -> list[str]:
    """The formats of all files, in the order of the table."""
    files = [one["file"] for one in (*record["checks"], *record.get("not_run", []))]
    found = {runtime_of(file).format for file in files}
    return [runtime.format for runtime in RUNTIMES if runtime.format in found]


def _default_row(record: Mapping[str, Any]) -> Mapping[str, Any] | None:
    return next((row for _, row in _good_rows(record)), None)


def _file_of(record: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    return next(str(check["file"]) for check in record["checks"] if check["role"] == row["role"])


def _shown(role: str) -> str:
    return next(variant.shown for variant in VARIANTS if variant.role == role)


def _distilled(manifest: Manifest) -> bool:
    return {"teacher", "student"} <= manifest.provenance.keys()


def _name(manifest: Manifest) -> str:
    return manifest.provenance.get("run", manifest.model)


def _public(name: str) -> str:
    """The name of a file or of data without the folders above it, which are of this machine."""
    return re.sub(r"(?<![\w.~-])[~/][^\s#,]*/(?=[^\s/])", "", name)


def _share_interval(row: Mapping[str, Any]) -> str:
    if row["top1"] is None:
        return "–"
    low, high = exact_interval(round(row["top1"] * row["n"] / 100), row["n"])
    return f"{100 * low:.2f} to {100 * high:.2f}"


def _paired(pair: Mapping[str, Any] | None) -> str:
    if not pair:
        return "–"
    return f"{pair['difference']:+.2f} ({pair['low']:+.2f} to {pair['high']:+.2f})"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _value(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _table_head(header: Sequence[str]) -> list[str]:
    return [_line(header), _line(["---", *["---:"] * (len(header) - 1)])]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _text(words: str) -> str:
    """Text in Markdown, in which no character is markup."""
    return re.sub(r"([\\`*_\[\]<>|#&~$])", r"\\\1", " ".join(words.split()))


def _code(words: str) -> str:
    """Inline code in Markdown, in a table, too."""
    return f"`{' '.join(words.replace('`', chr(39)).replace('|', '/').split())}`"
