"""The works that flowmaps implements or measures with: `references.bib`, which the package carries along."""

import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import final

from .errors import RecipeError

_ENTRY = re.compile(r"^@\w+\{([^,\s]+),.*?^\}", re.MULTILINE | re.DOTALL)
_OWN = re.compile(r"\s*@\w+\s*\{\s*([^,\s]+)\s*,.*\}\s*", re.DOTALL)
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
    return {match[1]: _entry(match) for match in _ENTRY.finditer(text)}


def cited(source: str) -> Entry:
    """What an element of `Recipe.cite` stands for: a key of the bibliography, or a BibTeX entry as it stands.

    Raises:
        RecipeError: If it is neither.
    """
    if not source.lstrip().startswith("@"):
        known = references()
        if source not in known:
            raise RecipeError(
                f"the bibliography of flowmaps has no {source!r}; a recipe of another package puts the BibTeX entry itself "
                "into cite, in place of the key"
            )
        return known[source]
    match = _OWN.fullmatch(source)
    entry = _entry(match) if match else None
    if entry is None or not {"title", "author", "year"} <= set(entry.fields):
        raise RecipeError(
            "a BibTeX entry in cite is '@misc{key,' and then one line for each of 'title = {...},', author and year; "
            f"got {source!r}"
        )
    return entry


def _entry(match: re.Match[str]) -> Entry:
    fields = {key.lower(): value for key, value in _FIELD.findall(match[0])}
    return Entry(match[1], match[0].strip(), fields)
