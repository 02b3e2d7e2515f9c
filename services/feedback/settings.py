"""The settings of the feedback service: the table [feedback] of the configuration."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.feedback.kpis import DIMENSIONS, KPIS, MEASURES, Kpi, measures_with_spread, per_mille
from services.kernel.settings import Section
from services.kernel.windows import EventTime, WindowSpec, parse

CLASSIFIERS = ("vader", "off")


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings. KPIs of your own are statistics of the built-in measures; KPIs in SQL are not there yet.

    When windows, dimensions or KPIs change, all KPIs are computed anew at the next start. When out_of_order_s or
    allowed_lateness_s change, what was too late stays so until `headwater rebuild feedback`.

    Attributes:
        windows: the windows of event time: 60s (tumbling), 300s/60s (hopping: size/hop), session 1800s (gap).
        dimensions: the sets of dimensions that KPIs are kept by; the empty set is the total. There are model and
            conversation.
        kpis: the KPIs, the built-in ones first.
        out_of_order_s: how much older than the newest turn of its partition a turn usually may be, in seconds: a window
            counts as closed only after that time.
        idle_after_s: a partition so far behind the newest of all does not keep windows open, in seconds of event time.
        allowed_lateness_s: turns that are later than this, in seconds, are counted as too late and are in no window;
            inf (the default) lets every turn into its window, and corrects that. Ratings are never too late.
        classifier: vader (a lexicon of English, in process, corrected by what was learnt from ratings) or off.
        learn: whether to learn from ratings which questions leave people dissatisfied.
        export_root: exports go only to folders in here; empty means any folder that the process may write.
    """

    windows: tuple[WindowSpec, ...] = (parse("60s"), parse("3600s"), parse("300s/60s"))
    dimensions: tuple[tuple[str, ...], ...] = ((), ("model",))
    kpis: tuple[Kpi, ...] = KPIS
    out_of_order_s: float = 60.0
    idle_after_s: float = 300.0
    allowed_lateness_s: float = math.inf
    classifier: str = "vader"
    learn: bool = True
    export_root: Path | None = None

    @property
    def event_time(self) -> EventTime:
        """How time is told from turns."""
        lateness = None if math.isinf(self.allowed_lateness_s) else int(self.allowed_lateness_s * 1000)
        return EventTime(int(self.out_of_order_s * 1000), int(self.idle_after_s * 1000), lateness)

    @property
    def with_spread(self) -> frozenset[str]:
        """The measures whose percentiles are wanted."""
        return measures_with_spread(self.kpis)

    @classmethod
    def from_config(cls, table: Mapping[str, Any]) -> "Settings":
        """Read the table [feedback]; raises InvalidInputError that names the setting which is wrong."""
        defaults = cls()
        read = Section("feedback", table, defaults)
        root = read.text("export_root") if "export_root" in table else ""
        return cls(
            windows=_windows(read) if "windows" in table else defaults.windows,
            dimensions=_dimensions(read) if "dimensions" in table else defaults.dimensions,
            kpis=(*KPIS, *map(_kpi, read.sections("kpis", names=Kpi._fields))),
            out_of_order_s=read.number("out_of_order_s"),
            idle_after_s=read.number("idle_after_s"),
            allowed_lateness_s=read.number("allowed_lateness_s", 0, math.inf),
            classifier=read.choice("classifier", CLASSIFIERS),
            learn=read.flag("learn"),
            export_root=Path(root).expanduser().resolve() if root else None,
        )


def _windows(read: Section) -> tuple[WindowSpec, ...]:
    try:
        return tuple(dict.fromkeys(map(parse, read.texts("windows"))))
    except ValueError as error:
        raise read.refusal("windows", f"is wrong: {error}") from None


def _dimensions(read: Section) -> tuple[tuple[str, ...], ...]:
    value = read.values["dimensions"]
    if not isinstance(value, list) or not all(_are_texts(names) for names in value):
        raise read.refusal("dimensions", f"must be a list of lists of texts, not {value!r}")
    sets = dict.fromkeys(tuple(sorted(names)) for names in value)
    for name in (name for names in sets for name in names):
        if name not in DIMENSIONS:
            raise read.refusal("dimensions", f"holds {name!r}; there are {', '.join(DIMENSIONS)}")
    return tuple(sets)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _kpi(read: Section) -> Kpi:
    kpi = Kpi(*(read.text(name, required=True) for name in Kpi._fields))
    if kpi.name in {builtin.name for builtin in KPIS}:
        raise read.refusal("name", f"is {kpi.name!r}, which is built in: choose another")
    read.choice("measure", MEASURES)
    try:
        per_mille(kpi.statistic)
    except ValueError as error:
        raise read.refusal("statistic", f"is wrong: {error}") from None
    return kpi
