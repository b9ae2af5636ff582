"""Files of posterior samples: one HDF5 and one NPZ with the same fields, and maps as PNG on the fixed 0-100 % scale."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lungwave.data import hdf5, maps, reading, schema
from lungwave.types import RESEARCH_USE, UsageError

PICTURES = ("mean", "std", "lower", "upper", "information")  # a PNG each, 0-255 is 0-1


def write_posteriors(folder: str | Path, fields: Mapping[str, Any], manifest: Mapping[str, Any]) -> tuple[Path, ...]:
    """Write posterior.h5, posterior.npz and maps/<frame>_<field>.png into ``folder``; return the paths.

    ``fields`` has every name of ``schema.POSTERIOR_FIELDS``, frames first. Samples are kept as float16, which moves an
    air fraction by 0.00025 at most. Raises UsageError for fields that are missing or of another number of axes.
    """
    folder = Path(folder)
    names = {field.name for field in schema.POSTERIOR_FIELDS}
    if set(fields) != names:
        raise UsageError(f"posterior fields differ from the schema in {sorted(set(fields) ^ names)}; give each once")
    about = hdf5.json_attribute(manifest, "manifest")
    with hdf5.new_file(folder / "posterior.h5") as file:
        file.attrs[schema.ATTR_DESCRIPTION] = f"posterior samples of lung aeration maps. {RESEARCH_USE}"
        file.attrs[schema.ATTR_FORMAT] = schema.POSTERIOR_FORMAT
        file.attrs[schema.ATTR_MANIFEST] = about
        for field in schema.POSTERIOR_FIELDS:
            hdf5.put(file, field, fields[field.name])
    arrays = {
        f.name: np.asarray(fields[f.name], None if f.dtype == "text" else f.dtype) for f in schema.POSTERIOR_FIELDS
    }
    for field in schema.POSTERIOR_FIELDS:
        if field.dtype == "text" and not arrays[field.name].size:
            arrays[field.name] = np.empty(0, "U1")  # an empty list would be stored as numbers
    maps.save_npz(folder / "posterior.npz", **arrays)
    pictures = []
    for i, frame in enumerate(arrays["frame"]):
        for name in PICTURES:
            pictures.append(folder / "maps" / f"{frame}_{name}.png")
            maps.save_png(pictures[-1], arrays[name][i])
    return (folder / "posterior.h5", folder / "posterior.npz", *pictures)


def read_posteriors(path: str | Path) -> dict[str, Any]:
    """Fields of a posterior.h5 by name: arrays, and lists of text.

    Raises:
        UsageError: the file is none, is newer than this lungwave, or lacks a field.
    """
    with reading.open_hdf5(path) as file:
        version = reading.attribute(file, schema.ATTR_FORMAT)
        if version is None or version > schema.POSTERIOR_FORMAT:
            raise UsageError(
                f"{path}: has format {version}, this reads up to {schema.POSTERIOR_FORMAT}; update lungwave"
            )
        found: dict[str, Any] = {}
        for field in schema.POSTERIOR_FIELDS:
            value = (reading.texts if field.dtype == "text" else reading.array)(file, field.path)
            if value is None or np.ndim(value) != len(field.shape):
                raise UsageError(f"{path}: '{field.path}' is missing or misshapen; is this a posterior.h5 of lungwave?")
            found[field.name] = value
    return found
