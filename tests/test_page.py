"""A table as one HTML file: pictures inside, no markup from the text, nothing fetched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lungwave.page import write_page


def test_a_page_holds_its_tables_and_pictures(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((3, 4), np.uint8)).save(tmp_path / "one.png")
    (tmp_path / "name.md").write_text(
        "# Title <b>x</b>\n\n![one](one.png)\n\n| a | b |\n|---|---|\n| 1 | <script>2</script> |\n", encoding="utf-8"
    )
    page = write_page(tmp_path / "name.md")
    text = page.read_text(encoding="utf-8")
    assert page.name == "name.html" and "<title>Title &lt;b&gt;x&lt;/b&gt;</title>" in text
    assert "<td>1</td>" in text and "<script>" not in text and "default-src &#39;none&#39;" not in text
    assert 'src="data:image/png;base64,iVBOR' in text and "one.png" not in text


def test_a_page_without_its_picture_is_not_written(tmp_path: Path) -> None:
    (tmp_path / "name.md").write_text("![one](gone.png)\n", encoding="utf-8")
    with pytest.raises(FileNotFoundError):
        write_page(tmp_path / "name.md")
    assert not (tmp_path / "name.html").exists()
