"""The report of a run: one HTML page that needs no network, of a finished or running run.

What was drawn and measured when the run was published is kept in `<run>/report/`, so that the page can be
written again without the data. For a run that is not published, the pictures are drawn from its best
checkpoint and the validation images; test stays untouched.
"""

import base64
import contextlib
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from training.config import ConfigError, TrainConfig
from training.data.download import DownloadError
from training.data.images import DataError, Images, ImageTarget, Say, Subset
from training.data.load import load
from training.evaluation.evaluate import Evaluation
from training.evaluation.parts import Parts
from training.fit import checkpoint as checkpoints
from training.publishing import figures as pictures
from training.publishing.card import CAPTIONS, figure_table, fit_command, sample_table, splits, stem
from training.publishing.export import export
from vaeserve.bundle.atomic import write_atomically
from vaeserve.bundle.batched import encode
from vaeserve.bundle.cpus import usable_cpus
from vaeserve.bundle.engine import Engine
from vaeserve.bundle.manifest import Metric

HEADS = {"kl": "What each dimension says", "neighbours": "Nearest training images"}
KEPT, RECORD, PAGE = "report", "evaluation.json", "report.html"

PICTURES = {".png": "image/png", ".webp": "image/webp"}
STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1f; --soft: #5c5f66; --paper: #fdfdfc; --line: #d9d9d6; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e7e6e3; --soft: #a3a29d; --paper: #17181a; --line: #3a3b3e; }
}
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       max-width: 62rem; margin: 2.5rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.7rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; }
p.lead { color: var(--soft); margin: .2rem 0 0; }
td:not(:first-child), th { white-space: nowrap; } td.text { white-space: normal; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { text-align: left; padding: .25rem 1.1rem .25rem 0; border-bottom: 1px solid var(--line); }
th { font-weight: 600; }
.wide { overflow-x: auto; }
figure { margin: 0; } figcaption { color: var(--soft); font-size: .92rem; margin-bottom: .4rem; }
img { max-width: 100%; height: auto; }
pre { background: color-mix(in srgb, var(--ink) 6%, transparent); padding: .7rem .9rem; overflow-x: auto; }
ul { padding-left: 1.2rem; }
"""


def keep(run: Path, bundle: Path, step: int, data: Images, evaluation: Evaluation) -> None:
    """Keep in `<run>/report/` what was published: the bundle's pictures and figures."""
    folder = run / KEPT
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for picture in bundle.iterdir():
        if picture.suffix in PICTURES:
            shutil.copyfile(picture, folder / picture.name)
    record = {
        "model": f"{bundle.parent.name}@{bundle.name}",
        "step": step,
        "data": about(data),
        "metrics": {name: m.model_dump(exclude_none=True) for name, m in evaluation.metrics.items()},
        "kl": evaluation.kl.round(6).tolist(),
    }
    write_atomically(folder / RECORD, json.dumps(record, indent=2) + "\n")


def about(data: Images) -> dict[str, str]:
    """What the page says about the data."""
    return {
        "name": data.name,
        "images": f"{len(data.pixels):,} of {'×'.join(map(str, data.shape))} ({splits(data)})",
        "classes": ", ".join(data.label_names[:20]) + (" …" if len(data.label_names) > 20 else "")
        if data.label_names
        else "none",
        "skipped files": f"{len(data.skipped):,}",
        "licence": data.licence,
        "digest": data.digest,
    }


def write(run: Path, say: Say = lambda text: None) -> Path:
    """Write `<run>/report.html` and return its path. Raises ConfigError if there is no run."""
    path = run / "config.json"
    if not path.is_file():
        raise ConfigError(f"{path} does not exist, so {run} is not a run: give the folder that --run named")
    config = TrainConfig.from_json(path.read_text())
    history = _history(run)
    chosen = checkpoints.best(run) or checkpoints.latest(run)
    record, images = _kept(run, chosen)
    notes: list[str] = []
    if record is None and chosen is not None:
        record, images, notes = _drawn(config, chosen, say)
    if history:
        images["curves.png"] = pictures.curves(history)
    newest = checkpoints.latest(run)
    state = checkpoints.read_state(newest) if newest else {}
    skipped = run / "skipped.txt"
    text = page(
        config,
        run.name,
        state,
        history,
        record or {},
        images,
        notes,
        skipped.read_text(encoding="utf-8", errors="replace").splitlines() if skipped.is_file() else [],
    )
    write_atomically(run / PAGE, text)
    return run / PAGE


def _history(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; the last may just be being written."""
    path = run / "metrics.jsonl"
    lines = []
    for text in path.read_text().splitlines() if path.is_file() else []:
        with contextlib.suppress(json.JSONDecodeError):
            lines.append(json.loads(text))
    return lines


def _kept(run: Path, chosen: Path | None) -> tuple[dict[str, Any] | None, dict[str, bytes]]:
    """What `keep` left of the checkpoint that now is the best, or nothing."""
    path = run / KEPT / RECORD
    if chosen is None or not path.is_file():
        return None, {}
    record: dict[str, Any] = json.loads(path.read_text())
    if record["step"] != checkpoints.read_state(chosen)["step"]:
        return None, {}
    kept = [path for path in (run / KEPT).iterdir() if path.suffix in PICTURES]
    return record, {picture.name: picture.read_bytes() for picture in kept}


def _drawn(config: TrainConfig, chosen: Path, say: Say) -> tuple[dict[str, Any], dict[str, bytes], list[str]]:
    """Pictures of a checkpoint that is not published, from validation images."""
    try:
        data = load(config.data, ImageTarget.of(config), say)
    except (DataError, DownloadError) as error:
        return {}, {}, [f"No pictures: the images of {config.data} cannot be read ({error})."]
    with tempfile.TemporaryDirectory() as work:
        say(f"exporting {chosen.name} to draw its pictures …")
        engine = Engine(export(chosen, data, Path(work)).bundle(), threads=usable_cpus())
    rows = data.split.validation[: pictures.MOST_POINTS]
    posterior = encode(engine, Subset(data.pixels, rows))
    parts = Parts(say)
    drawn = pictures.draw_all(engine, data, rows, posterior.mean, posterior.kl().mean(axis=0), parts)
    note = f"Not published yet: the pictures show {chosen.name} on validation images, test is untouched."
    return {"data": about(data)}, drawn, [note]


def page(
    config: TrainConfig,
    run: str,
    state: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    record: Mapping[str, Any],
    images: Mapping[str, bytes],
    notes: Sequence[str],
    skipped: Sequence[str],
) -> str:
    """The whole page. `images`: PNG and WebP files by name; they become part of it as data URIs."""
    heading = record.get("model") or config.name or run
    metrics = {name: Metric.model_validate(value) for name, value in record.get("metrics", {}).items()}
    parts = [f"<h1>{escape(heading)}</h1>", f'<p class="lead">{escape(_progress(state, record))}</p>']
    parts += [f"<p>{escape(note)}</p>" for note in notes]
    if metrics:
        fitted = f"{metrics['fitted'].n:,} " if "fitted" in metrics else ""
        parts += [
            "<h2>Figures</h2>",
            _table(*figure_table(metrics)),
            f"<p>On test images, through the exported graphs, ± standard error. PCA, probes and neighbours "
            f"were fitted on {fitted}training images, the probes' penalty chosen on validation.</p>",
        ]
        if "classifier" in metrics:
            parts += ["<h2>Samples</h2>", _table(*sample_table(metrics))]
    elif history:
        last = history[-1]["validation"]
        rows = [[name, f"{last[name]:.5g}"] for name in ("elbo", "distortion", "rate", "mse") if name in last]
        parts += ["<h2>Newest figures, on validation</h2>", _table(["", ""], rows)]
    else:
        parts.append("<p>Nothing has been evaluated yet.</p>")
    found = {stem(name): name for name in images}
    for shown, caption in CAPTIONS.items():
        if shown in found and shown != "overview":
            name, caption = found[shown], escape(caption)
            data, kind = base64.b64encode(images[name]).decode(), PICTURES[Path(name).suffix]
            title = HEADS.get(shown, shown.capitalize())
            parts.append(
                f"<h2>{title}</h2><figure><figcaption>{caption}</figcaption>"
                f'<img alt="{shown}" src="data:{kind};base64,{data}"></figure>'
            )
    if "data" in record:
        parts += ["<h2>Data</h2>", _table(["", ""], [[key, value] for key, value in record["data"].items()])]
    if skipped:
        lines = "".join(f"<li>{escape(line)}</li>" for line in skipped[:50])
        more = f"<p>… and {len(skipped) - 50:,} more, in skipped.txt</p>" if len(skipped) > 50 else ""
        parts.append(f"<h2>Skipped files</h2><ul>{lines}</ul>{more}")
    parts.append("<h2>Training</h2>")
    parts.append(f"<pre>{escape(fit_command(config.to_dict(), config.data))}</pre>")
    parts.append(_table(["setting", ""], [[key, str(value)] for key, value in config.to_dict().items()]))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(heading)} – vaeserve</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _progress(state: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    if not state:
        return "No checkpoint yet."
    text = f"Step {state['step']:,}"
    if total := state.get("total_steps"):
        text += f" of {total:,}"
    if best := state.get("best"):
        text += f", best at step {best['step']:,} with a validation ELBO of {best['elbo']:.2f} nats per image"
    return f"{text}. {'Published as ' + record['model'] if 'model' in record else 'Not published'}."


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        texts = (f"<{tag}{' class=text' * (len(cell) > 40)}>{escape(cell)}</{tag}>" for cell in cells)
        return f"<tr>{''.join(texts)}</tr>"

    head = line(heads, "th") if any(heads) else ""
    return f'<div class="wide"><table>{head}{"".join(line(row, "td") for row in rows)}</table></div>'
