"""The works that flowmaps implements or measures with: `references.bib`, which the package carries along."""

import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import final

_ENTRY = re.compile(r"^@\w+\{([^,\s]+),.*?^\}", re.MULTILINE | re.DOTALL)
_FIELD = re.compile(r"^\s*(\w+)\s*=\s*\{(.*?)\},?\s*$", re.MULTILINE)


@final
@dataclass(frozen=True)
class Entry:
    """One work.

    Attributes:
        key: What docstrings and `Recipe.cite` call it.
        text: The BibTeX entry as it stands.
        fields: Its fields by name, in lower case.
    """

    key: str
    text: str
    fields: dict[str, str]

    @property
    def title(self) -> str:
        return self.fields["title"].replace("{", "").replace("}", "")

    @property
    def year(self) -> int:
        return int(self.fields["year"])

    @property
    def authors(self) -> str:
        """Family names as in running text.

        Example:
            >>> references()["geng2025meanflow"].authors
            'Geng et al.'
        """
        names = [name.split(",")[0].strip() for name in self.fields["author"].split(" and ")]
        names = [re.sub(r"[{}\\'\"`^~]", "", name) for name in names]
        return f"{names[0]} et al." if len(names) > 2 else " & ".join(names)

    @property
    def paper(self) -> str:
        """Where to read it: arXiv:..., else its address, else nothing."""
        if "eprint" in self.fields:
            return f"arXiv:{self.fields['eprint']}"
        return self.fields.get("url", self.fields.get("doi", ""))


@cache
def references() -> dict[str, Entry]:
    """Every entry by key, in the order of the file.

    Example:
        >>> references()["ho2020ddpm"].paper
        'arXiv:2006.11239'
    """
    text = (files("flowmaps") / "references.bib").read_text(encoding="utf-8")
    found = (
        Entry(match[1], match[0], {k.lower(): v for k, v in _FIELD.findall(match[0])})
        for match in _ENTRY.finditer(text)
    )
    return {entry.key: entry for entry in found}
