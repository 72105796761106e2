"""An item's text, as the LLM and the text encoder made from it read it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any


def prompt_of(row: Mapping[str, Any], template: str) -> str:
    """Fill `{field}`s of the template from an item's row; brackets and separators around empty fields vanish."""

    def value(match: re.Match[str]) -> str:
        field = row.get(match[1])
        return ", ".join(map(str, field)) if isinstance(field, list) else "" if field is None else str(field)

    text = re.sub(r"\{(\w+)\}", value, template)
    text = re.sub(r"\(\s*\)", "", text)
    text = re.sub(r"\s+([.,])", r"\1", re.sub(r"\s+", " ", text)).strip(" .,")
    return re.sub(r"([.,])(\s*[.,])+", r"\1", text) or "unknown"
