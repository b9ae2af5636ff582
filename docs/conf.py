"""How Sphinx builds the documentation: ``make docs``. Nothing here or in the pages needs the network."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "_ext"))

import lungwave  # noqa: E402  after the path, as everything below

project = "lungwave"
author = copyright = "The lungwave authors"
version = release = lungwave.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_gallery.gen_gallery",
    "generated",  # commands, settings and shapes, taken from the program
    "offline",  # fails the build where a page would fetch something
]
exclude_patterns = ["_build", "_ext", "tutorials/*.ipynb", "tutorials/*.py", "tutorials/*.md5", "tutorials/*.zip"]
nitpicky = False  # types of other packages have no page here, and nothing is fetched to find them

# Pages are Markdown that a code host shows as well.
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

# API: what a function takes stands in its signature, with the shape of every array.
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 90
napoleon_numpy_docstring = False
add_module_names = False

# Tutorials are scripts that the build runs; a script that fails, fails the build.
os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads that wait for a busy core cost more than they bring
warnings.filterwarnings("error", module=r"lungwave(\..*)?")
sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "tutorials",
    "filename_pattern": r"/\d\d_",
    "within_subsection_order": "FileNameSortKey",
    "abort_on_example_error": True,
    "capture_repr": (),
    "image_srcset": ["2x"],
    "download_all_examples": False,
    "show_signature": False,
    "show_memory": False,
    "write_computation_times": False,
    "remove_config_comments": True,
    "min_reported_time": 1e9,
    "plot_gallery": os.environ.get("LUNGWAVE_TUTORIALS", "1") != "0",
}

html_theme = "furo"
html_title = "lungwave"
html_static_path = ["_static"]
html_css_files = ["lungwave.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0a6aa6", "color-brand-content": "#0a6aa6"},
    "dark_css_variables": {"color-brand-primary": "#6cb8ea", "color-brand-content": "#6cb8ea"},
    "announcement": "Research use only. Not a medical device.",
}
