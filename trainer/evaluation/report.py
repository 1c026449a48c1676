"""What is said of measured windows: a report that JSON can hold, and the same as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from data_pipeline.store.counted import counted
from model.config import VidTwinConfig
from model.vidtwin import VidTwin
from trainer.evaluation.catalogue import FeatureNetwork, tokens
from trainer.evaluation.frechet_protocol import FrechetProtocol
from trainer.evaluation.measures import METRICS, Measures, distance
from trainer.evaluation.run import measure
from trainer.evaluation.sources import WindowSource
from trainer.evaluation.windows import Windows, deviation, mean


@dataclass(frozen=True)
class Shape:
    """What a report says of a model's windows and latents.

    Attributes:
        config: of the model, for windows of the frames that were measured.
        parameters: of the model.
    """

    config: VidTwinConfig
    parameters: int

    @staticmethod
    def of(model: VidTwin, frames: int) -> Shape:
        """The shape of a model for windows of `frames` frames."""
        parameters = sum(parameter.numel() for parameter in model.parameters())
        return Shape(replace(model.config, frames=frames, min_frames=0), parameters)


def report(
    source: WindowSource, windows: Windows, measures: Measures, shape: Shape, incomplete: str | None
) -> dict[str, Any]:
    """Everything that was found of a source; `docs/evaluation.md` lists the keys.

    Args:
        incomplete: why the measurement was cut short; None where it was not.
    """
    config, totals = shape.config, windows.totals
    metrics, missing = _metrics(windows), measures.not_computed()
    remarks = list(totals.remarks)
    for network in measures.sets:
        entry, remark = _of_set(network, source, windows, measures, config)
        if entry is None:
            missing[network.name] = remark
        else:
            metrics[network.name] = entry
            remarks += [f"{shown(network.name)}: {remark}"] if remark else []
    return {
        "source": source.describe(),
        "frames_per_window": config.frames,
        "image_size": config.image_size,
        "windows": len(windows),
        "sources": totals.sources,
        "left_out_frames": totals.left_out_frames,
        "failed": [{"source": name, "reason": reason} for name, reason in totals.failed],
        "incomplete": incomplete,
        "metrics": metrics,
        "not_computed": missing,
        "remarks": remarks,
        "per_source": dict(_per_source(windows)),
        "compression_rate": config.compression_rate,
        "tokens": tokens(config),
        "latents": {"structure": list(config.structure_shape), "dynamics": list(config.dynamics_shape)},
        "parameters": shape.parameters,
    }


def _of_set(
    network: FeatureNetwork, source: WindowSource, windows: Windows, measures: Measures, config: VidTwinConfig
) -> tuple[dict[str, Any] | None, str]:
    """The Frechet distance of one network with its protocol, and a remark; None with the reason where there is none."""
    fvd = network is measures.fvd
    preset = measures.preset if fvd else None
    intervals = set(windows.intervals)
    protocol = FrechetProtocol(
        metric=network.name,
        real=len(windows),
        fake=len(windows),
        frames=config.frames,
        stride=intervals.pop() if len(intervals) == 1 else None,
        size=config.image_size,
        split=str(source.settings.get("split", "")),
        seed=source.settings["draw"]["seed"] if "draw" in source.settings else None,
        extractor=network.digest,
        preset=preset.name if preset else "",
    )
    if preset is not None:
        try:
            protocol.check(preset, allow_few=measures.allow_few)
        except ValueError as error:
            return None, str(error)
    value, remark = distance(
        windows.features.get(network.name, []),
        "clips" if fvd else "frames or differences of frames",
        allow_few=measures.allow_few or not fvd,
        population=preset is not None and preset.population,
    )
    if value is None:
        return None, remark
    entry = {"value": value, "unit": "", "better": "lower", "protocol": protocol.to_json()}
    return entry, "; ".join([protocol.line(), remark] if remark else [protocol.line()])


def _metrics(windows: Windows) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in METRICS:
        if name in windows.values:
            unit, better, _ = METRICS[name]
            values = windows.values[name].tolist()
            found[name] = {"value": mean(values), "deviation": deviation(values), "unit": unit, "better": better}
    return found


def _per_source(windows: Windows) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, places in windows.by_source():
        means = {metric: mean(values[places].tolist()) for metric, values in windows.values.items()}
        yield name, {"windows": places.stop - places.start, **means}


def evaluate(
    model: VidTwin, source: WindowSource, measures: Measures | None = None, *, batch: int = 4
) -> dict[str, Any]:
    """Measure a source in this process and report it.

    Raises:
        ValueError, CutShort: see `trainer.evaluation.run.measure`.
    """
    chosen = measures or Measures()
    windows = measure(model, source, chosen, batch=batch)
    return report(source, windows, chosen, Shape.of(model, source.settings["frames"]), None)


def shown(metric: str) -> str:
    """The name of a metric as tables have it."""
    return metric.upper().replace("_", "-")


def text_of(found: Mapping[str, Any]) -> str:
    """A report as text for a terminal."""
    lines = [
        f"{found['source']}",
        f"{counted(found['windows'], 'window')} of {found['frames_per_window']} x {found['image_size']} x "
        f"{found['image_size']} from {counted(found['sources'], 'source')}, "
        f"{counted(found['left_out_frames'], 'frame')} left over",
        "",
    ]
    for name, (unit, better, _) in METRICS.items():
        if name in found["metrics"]:
            entry = found["metrics"][name]
            spread = f" ± {entry['deviation']:.3f} between windows" if "deviation" in entry else ""
            lines.append(f"  {shown(name):<17}{entry['value']:>10.3f} {unit:<8} ({better} is better){spread}")
        elif name in found["not_computed"]:
            lines.append(f"  {shown(name)} not computed: {found['not_computed'][name]}")
    lines.append(
        f"  RATE             {100 * found['compression_rate']:>10.3f} %  of the clip's numbers are in the latents"
    )
    if found["tokens"] is not None:
        lines.append(
            f"  TOKENS           {found['tokens']:>6}        of a clip, for a transformer with default patches"
        )
    lines += [f"  note: {remark}" for remark in found["remarks"]]
    lines += [f"  cut short: {found['incomplete']}"] if found["incomplete"] else []
    lines += [f"  not measured: {item['source']}: {item['reason']}" for item in found["failed"]]
    return "\n".join(lines)


def table_of(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table for a terminal: the first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = []
    for row in (head, *rows):
        cells = [cell.ljust(widths[0]) if not place else cell.rjust(widths[place]) for place, cell in enumerate(row)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
