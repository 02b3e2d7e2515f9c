"""The settings of the feedback service: the table [feedback] of the configuration."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.feedback.kpis import DIMENSIONS, KPIS, MEASURES, Kpi, measures_with_spread, per_mille
from services.kernel.errors import InvalidInputError
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
        """Read the table [feedback].

        Raises:
            InvalidInputError: a setting is wrong or unknown; the message names it.
        """
        defaults = cls()
        known = [*cls.__dataclass_fields__]
        if unknown := sorted(set(table) - set(known)):
            raise InvalidInputError(f"feedback: unknown setting {unknown[0]!r}; known are {', '.join(sorted(known))}")
        classifier = table.get("classifier", defaults.classifier)
        if classifier not in CLASSIFIERS:
            raise InvalidInputError(f"feedback.classifier must be one of {', '.join(CLASSIFIERS)}, not {classifier!r}")
        learn = table.get("learn", defaults.learn)
        if not isinstance(learn, bool):
            raise InvalidInputError(f"feedback.learn must be true or false, not {learn!r}")
        root = table.get("export_root", "")
        if not isinstance(root, str):
            raise InvalidInputError(f"feedback.export_root must be a folder's name, not {root!r}")
        return cls(
            windows=_windows(table["windows"]) if "windows" in table else defaults.windows,
            dimensions=_dimensions(table["dimensions"]) if "dimensions" in table else defaults.dimensions,
            kpis=(*KPIS, *map(_kpi, _list("kpis", table.get("kpis", ())))),
            out_of_order_s=_seconds("out_of_order_s", table, defaults.out_of_order_s),
            idle_after_s=_seconds("idle_after_s", table, defaults.idle_after_s),
            allowed_lateness_s=_seconds("allowed_lateness_s", table, defaults.allowed_lateness_s),
            classifier=classifier,
            learn=learn,
            export_root=Path(root).resolve() if root else None,
        )


def _list(name: str, value: Any) -> Sequence[Any]:
    if not isinstance(value, list | tuple):
        raise InvalidInputError(f"feedback.{name} must be a list, not {value!r}")
    return value


def _texts(name: str, value: Any) -> tuple[str, ...]:
    texts = tuple(_list(name, value))
    if not all(isinstance(text, str) for text in texts):
        raise InvalidInputError(f"feedback.{name} must be a list of texts, not {value!r}")
    return texts


def _windows(value: Any) -> tuple[WindowSpec, ...]:
    try:
        return tuple(dict.fromkeys(map(parse, _texts("windows", value))))
    except ValueError as error:
        raise InvalidInputError(f"feedback.windows: {error}") from None


def _dimensions(value: Any) -> tuple[tuple[str, ...], ...]:
    sets = dict.fromkeys(tuple(sorted(_texts("dimensions", names))) for names in _list("dimensions", value))
    for name in (name for names in sets for name in names):
        if name not in DIMENSIONS:
            raise InvalidInputError(f"feedback.dimensions: there is no {name!r}; there are {', '.join(DIMENSIONS)}")
    return tuple(sets)


def _kpi(value: Any) -> Kpi:
    where = f"feedback.kpis: {value!r}"
    if not isinstance(value, Mapping) or set(value) != {"name", "measure", "statistic"}:
        raise InvalidInputError(f"{where} must have a name, a measure and a statistic")
    kpi = Kpi(*(str(value[field]) for field in Kpi._fields))
    if kpi.measure not in MEASURES:
        raise InvalidInputError(f"{where}: there is no measure {kpi.measure!r}; there are {', '.join(MEASURES)}")
    if kpi.name in {builtin.name for builtin in KPIS}:
        raise InvalidInputError(f"{where}: {kpi.name} is built in: choose another name")
    try:
        per_mille(kpi.statistic)
    except ValueError as error:
        raise InvalidInputError(f"{where}: {error}") from None
    return kpi


def _seconds(name: str, table: Mapping[str, Any], default: float) -> float:
    value = table.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value) or value < 0:
        raise InvalidInputError(f"feedback.{name} must be a number of seconds, at least 0, not {value!r}")
    if math.isinf(value) and name != "allowed_lateness_s":
        raise InvalidInputError(f"feedback.{name} must be finite")
    return float(value)
