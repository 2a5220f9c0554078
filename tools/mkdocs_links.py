"""Let pages link to files of the repository: the site shows their paths; a missing one stops its build."""

import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\[([^\]]+)\]\(\.\./([^)#]+)[^)]*\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Replace links that leave docs/ by the path they lead to; called by mkdocs for every page."""

    def path(link: re.Match[str]) -> str:
        text, target = link.groups()
        if not (ROOT / target).exists():
            raise PluginError(f"{page.file.src_path} links to {target}, which does not exist")
        return f"`{target}`" if target in text else f"{text} (`{target}`)"

    return LINK.sub(path, markdown)
