"""The search page: one file, nothing from outside."""

from pathlib import Path

PAGE = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
"""The page's HTML."""
