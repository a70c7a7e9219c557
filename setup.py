"""Everything is in pyproject.toml but the description for a package index, which shows it without its folder."""

import re
from pathlib import Path


def description() -> str:
    """README.md without what would lead nowhere there: relative images, and links as their text."""
    text = (Path(__file__).parent / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"!\[[^]]*\]\((?!https?:)[^)]*\)\n*", "", text)
    text = re.sub(r"\[([^]]*)\]\((?!https?:|#)[^)]*\)", r"\1", text)
    return re.sub(r"<details>.*?</details>\n*", "", text, flags=re.DOTALL)  # it had pictures only


if __name__ == "__main__":
    from setuptools import setup

    setup(long_description=description(), long_description_content_type="text/markdown")
