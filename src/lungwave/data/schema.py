"""The one place that names what a lungwave file holds: the zea 0.1 layout and our additions to it, format version 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Integer, Shaped

from lungwave.phantom.aeration import Truth
from lungwave.types import UsageError

FORMAT = 1  # of our additions; a reader for each older number stays
ZEA_VERSION = "0.1.8"  # layout that we write

ATTR_ZEA = "zea_version"
ATTR_DESCRIPTION = "description"
ATTR_FORMAT = "lungwave_format"
ATTR_PROVENANCE = "provenance"
ATTR_SNR = "snr_db"
ATTR_MANIFEST = "manifest"

TRACK = "tracks/track_0"
DATA = f"{TRACK}/data"
SCAN = f"{TRACK}/scan"
PROBE = "probe"
OURS = "lungwave"
SUBJECT = "metadata/subject"
SUBJECT_FIELDS = {  # of zea, who was scanned; written only when asked for
    "id": "text",
    "type": "text",
    "age": "uint8",
    "sex": "text",
    "weight": "float32",
    "genetic_strain": "text",
    "fat_percentage": "float32",
    "bmi": "float32",
}
METADATA = "metadata"  # zea: subject, free text, voice, annotations; nothing of it but the subject is ever copied


@dataclass(frozen=True)
class Field:
    """One dataset of the file."""

    path: str
    shape: tuple[str, ...]  # names of the axes; () = scalar
    unit: str
    dtype: str
    description: str
    required: bool = False  # RF cannot be read without it

    @property
    def name(self) -> str:
        """Last part of the path."""
        return self.path.rsplit("/", 1)[-1]


RAW = Field(f"{DATA}/raw_data", ("frame", "tx", "time", "el", "1"), "any", "float32", "RF channel data", True)

SAMPLING = Field(f"{SCAN}/sampling_frequency", (), "Hz", "float32", "sampling frequency", True)
CENTER = Field(f"{SCAN}/center_frequency", (), "Hz", "float32", "centre frequency of the transmit pulse", True)
DEMODULATION = Field(f"{SCAN}/demodulation_frequency", (), "Hz", "float32", "0 = RF (I/Q is not read)")
INITIAL_TIMES = Field(f"{SCAN}/initial_times", ("tx",), "s", "float32", "first sample after the first firing", True)
DELAYS = Field(f"{SCAN}/t0_delays", ("tx", "element"), "s", "float32", "firing times, the first element at 0", True)
APODIZATION = Field(f"{SCAN}/tx_apodizations", ("tx", "element"), "1", "float32", "transmit weights, 0 = silent", True)
FOCUS = Field(
    f"{SCAN}/focus_distances",
    ("tx",),
    "m",
    "float32",
    "inf = plane wave, > 0 = focus, < 0 = virtual source behind; 0 with one firing element = single element",
    True,
)
ORIGINS = Field(f"{SCAN}/transmit_origins", ("tx", "3"), "m", "float32", "where each beam starts (x, y, z)", True)
ANGLES = Field(f"{SCAN}/polar_angles", ("tx",), "rad", "float32", "steering, positive towards +x", True)
SOUND_SPEED = Field(f"{SCAN}/sound_speed", (), "m/s", "float32", "assumed by the beamformer")
APERTURE = Field(f"{SCAN}/rx_aperture_indices", ("tx", "el"), "1", "int32", "element of each channel, walking aperture")

PROBE_NAME = Field(f"{PROBE}/name", (), "-", "text", "name of the probe")
PROBE_TYPE = Field(f"{PROBE}/type", (), "-", "text", "linear, curved or other")
GEOMETRY = Field(f"{PROBE}/probe_geometry", ("element", "3"), "m", "float32", "element centres (x, y, z), z down", True)
ELEMENT_WIDTH = Field(f"{PROBE}/element_width", (), "m", "float32", "width of one element")

PULSE_DELAY = Field(
    f"{OURS}/scan/pulse_delay", (), "s", "float64", "time zero to the envelope peak of the two-way pulse"
)
BANDWIDTH = Field(f"{OURS}/scan/bandwidth", (), "1", "float64", "-6 dB bandwidth over the centre frequency")
REVERSED = Field(f"{OURS}/scan/spectrum_reversed", (), "1", "uint8", "1 = band-pass sampled, spectrum mirrored")
TIME_ORIGIN = Field(f"{OURS}/scan/time_origin", ("tx",), "s", "float32", "first firing on the clock of the scan")

SHARP = Field(f"{DATA}/aeration/values", ("frame", "z", "x"), "1", "float32", "air fraction at sigma 0.15 mm")
SMOOTH = Field(f"{DATA}/aeration_smooth/values", ("frame", "z", "x"), "1", "float32", "air fraction at sigma 0.5 mm")
LUNG = Field(f"{DATA}/lung/values", ("frame", "z", "x"), "1", "uint8", "1 = lung, 0 = something else below the pleura")

BASE_ID = Field(f"{OURS}/cases/base_id", ("frame",), "1", "int64", "base anatomy; data sets are split by it")
CATEGORY = Field(f"{OURS}/cases/category", ("frame",), "-", "text", "healthy, interstitial, consolidation, ...")
INDEX = Field(f"{OURS}/cases/index", ("frame",), "1", "int64", "seed index: which item of the random streams")
PARAMETERS = Field(f"{OURS}/cases/parameters", ("frame",), "-", "text", "all drawn parameters, JSON")
PLEURA = Field(f"{OURS}/cases/pleura_depth", ("frame", "x"), "m", "float64", "depth of the lung surface")
VALID = Field(f"{OURS}/cases/valid", ("frame", "x"), "1", "uint8", "1 = the column is quantifiable")
BANDS = Field(f"{OURS}/cases/bands", ("frame", "band"), "1", "float64", "air fraction of each depth band")
WHOLE = Field(f"{OURS}/cases/whole", ("frame",), "1", "float64", "air fraction from the first to the last band edge")
PROFILE = Field(f"{OURS}/cases/profile", ("frame", "x"), "1", "float64", "air fraction of each column, NaN = not valid")
BAND_EDGES = Field(f"{OURS}/cases/band_edges", ("edge",), "m", "float64", "depth below the pleura")
PIXEL = Field(f"{OURS}/cases/pixel", (), "m", "float64", "pixel of the maps, both axes")
X = Field(f"{OURS}/cases/x", ("x",), "m", "float64", "lateral position of the columns")

FIELDS: tuple[Field, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Field))
CASE_FIELDS = tuple(field for field in FIELDS if field.path.startswith(f"{OURS}/cases/"))

POSTERIOR_FORMAT = 1  # of the files below
_P = "posterior"
# What posterior.h5 and posterior.npz hold. "out" is every depth band, then the whole depth.
POSTERIOR_FIELDS = (
    Field(f"{_P}/samples", ("frame", "sample", "z", "x"), "1", "float16", "samples of the aeration map, air fraction"),
    Field(f"{_P}/mean", ("frame", "z", "x"), "1", "float32", "mean of the samples"),
    Field(f"{_P}/std", ("frame", "z", "x"), "1", "float32", "standard deviation of the samples"),
    Field(f"{_P}/lower", ("frame", "z", "x"), "1", "float32", "lower bound of the central interval of each pixel"),
    Field(f"{_P}/upper", ("frame", "z", "x"), "1", "float32", "upper bound"),
    Field(f"{_P}/information", ("frame", "z", "x"), "1", "float32", "1 - posterior variance / prior variance, 0-1"),
    Field(f"{_P}/information_depth", ("frame", "x"), "m", "float32", "from the pleura on, information is above 0.25"),
    Field(f"{_P}/bands", ("frame", "sample", "out"), "1", "float32", "samples of percent aeration, fraction"),
    Field(f"{_P}/categories", ("frame", "sample", "category"), "1", "float32", "category probabilities of each sample"),
    Field(f"{_P}/category_names", ("category",), "-", "text", "healthy, interstitial, consolidation, ..."),
    Field(f"{_P}/valid", ("frame", "x"), "1", "uint8", "1 = the column is quantifiable"),
    Field(f"{_P}/pleura_depth", ("frame", "x"), "m", "float32", "detected depth of the lung surface, NaN = not known"),
    Field(f"{_P}/x", ("x",), "m", "float64", "lateral position of the columns"),
    Field(f"{_P}/z", ("z",), "m", "float64", "depth of the rows' centres below the pleura"),
    Field(f"{_P}/band_edges", ("edge",), "m", "float64", "depth below the pleura"),
    Field(f"{_P}/level", (), "1", "float64", "of the intervals"),
    Field(f"{_P}/frame", ("frame",), "1", "int64", "number of the frame among all of the run, withheld ones included"),
    Field(f"{_P}/name", ("frame",), "-", "text", "name of the frame"),
)


def map_field(name: str) -> Field:
    """Values of any further map of the file, in the zea layout."""
    if not name.isidentifier():
        raise UsageError(f"map name '{name}' is not a plain word; use letters, digits and '_'")
    return Field(f"{DATA}/{name}/values", ("frame", "z", "x"), "1", "float32", "map")


def companion(field: Field, name: str) -> str:
    """Path of what lies beside a map's values: 'coordinates' (z, x, 3) [m], 'unit' or 'description'."""
    return f"{field.path.rsplit('/', 1)[0]}/{name}"


@dataclass(frozen=True)
class MapStack:
    """One map per frame, with the position of every pixel."""

    values: Shaped[np.ndarray, "frame z x"]
    coordinates: Float[np.ndarray, "z x 3"]  # [m] (x, y, z)
    unit: str = "1"
    description: str = ""


@dataclass(frozen=True)
class CaseTable:
    """What the phantoms of a file really are: one row per frame. Maps are pleura-flattened, air is a fraction 0-1."""

    base_id: Integer[np.ndarray, " frame"]
    category: tuple[str, ...]
    index: Integer[np.ndarray, " frame"]
    parameters: tuple[str, ...]  # JSON
    sharp: Float[np.ndarray, "frame z x"]
    smooth: Float[np.ndarray, "frame z x"]
    lung: Bool[np.ndarray, "frame z x"]
    valid: Bool[np.ndarray, "frame x"]
    pleura_depth: Float[np.ndarray, "frame x"]  # [m]
    bands: Float[np.ndarray, "frame band"]
    whole: Float[np.ndarray, " frame"]
    profile: Float[np.ndarray, "frame x"]  # NaN where not valid
    band_edges: tuple[float, ...]  # [m]
    pixel: float  # [m]
    x: Float[np.ndarray, " x"]  # [m]

    @classmethod
    def of(
        cls,
        truths: Sequence[Truth],
        base_id: Sequence[int],
        category: Sequence[str],
        index: Sequence[int],
        parameters: Sequence[str],
    ) -> CaseTable:
        """Table of phantoms that share grid and depth bands; maps are kept as float32."""
        counts = {len(truths), len(base_id), len(category), len(index), len(parameters)}
        if counts == {0} or len(counts) != 1:
            raise UsageError(
                f"cases have {sorted(counts)} truths, ids, categories, indices and parameters; give one each"
            )
        first = truths[0]
        for truth in truths:
            same = (
                truth.sharp.shape == first.sharp.shape
                and truth.pixel == first.pixel
                and np.array_equal(truth.x, first.x)
            )
            if not same or truth.band_edges != first.band_edges:
                raise UsageError("cases differ in map grid or depth bands; write them to separate files")
        return cls(
            base_id=np.asarray(base_id, np.int64),
            category=tuple(category),
            index=np.asarray(index, np.int64),
            parameters=tuple(parameters),
            sharp=np.stack([t.sharp for t in truths]).astype(np.float32),
            smooth=np.stack([t.smooth for t in truths]).astype(np.float32),
            lung=np.stack([t.lung for t in truths]).astype(bool),
            valid=np.stack([t.valid for t in truths]).astype(bool),
            pleura_depth=np.stack([t.pleura_depth for t in truths]).astype(float),
            bands=np.stack([t.bands for t in truths]).astype(float),
            whole=np.array([t.whole for t in truths], float),
            profile=np.stack([t.profile for t in truths]).astype(float),
            band_edges=tuple(float(e) for e in first.band_edges),
            pixel=float(first.pixel),
            x=np.asarray(first.x, float),
        )

    def __len__(self) -> int:
        return len(self.base_id)

    def truth(self, i: int) -> Truth:
        """Truth of case ``i``."""
        return Truth(
            sharp=self.sharp[i],
            smooth=self.smooth[i],
            lung=self.lung[i],
            valid=self.valid[i],
            pleura_depth=self.pleura_depth[i],
            pixel=self.pixel,
            x=self.x,
            bands=self.bands[i],
            band_edges=self.band_edges,
            whole=float(self.whole[i]),
            profile=self.profile[i],
        )

    def take(self, frames: Sequence[int] | Integer[np.ndarray, " frame"]) -> CaseTable:
        """Some of the cases, in the order asked for."""
        order = np.asarray(frames, int)
        rows: dict[str, Any] = {name: getattr(self, name)[order] for name in _ROWS}
        texts: dict[str, Any] = {n: tuple(getattr(self, n)[i] for i in order) for n in ("category", "parameters")}
        return replace(self, **rows, **texts)

    @staticmethod
    def join(tables: Sequence[CaseTable]) -> CaseTable:
        """Cases of several tables, one after the other."""
        truths = [table.truth(i) for table in tables for i in range(len(table))]
        return CaseTable.of(
            truths,
            base_id=[int(v) for table in tables for v in table.base_id],
            category=[v for table in tables for v in table.category],
            index=[int(v) for table in tables for v in table.index],
            parameters=[v for table in tables for v in table.parameters],
        )

    def map_coordinates(self) -> Float[np.ndarray, "z x 3"]:
        """Position (x, 0, depth below the pleura) of every pixel centre [m]."""
        rows = self.sharp.shape[1]
        z, x = np.meshgrid((np.arange(rows) + 0.5) * self.pixel, self.x, indexing="ij")
        return np.stack([x, np.zeros_like(x), z], -1)


_ROWS = tuple(f.name for f in fields(CaseTable) if f.name not in ("category", "parameters", "band_edges", "pixel", "x"))


def table(listed: Sequence[Field] = FIELDS) -> str:
    """Fields as a Markdown table; docs/reference/file-format.md holds exactly this text of both lists."""
    lines = ["| path | shape | unit | type | content | needed |", "|---|---|---|---|---|---|"]
    for field in listed:
        shape = f"({', '.join(field.shape)})" if field.shape else "scalar"
        needed = "yes" if field.required else ""
        lines.append(f"| `{field.path}` | {shape} | {field.unit} | {field.dtype} | {field.description} | {needed} |")
    return "\n".join(lines) + "\n"
