"""Class names as Matplotlib can draw them: any script that an installed font has, and never mathematics."""

from collections.abc import Iterable, Sequence

LONGEST = 24  # characters


def font_families(names: Iterable[str]) -> list[str]:
    """Font families that together draw the names, as far as any installed font does; the first is the
    default."""
    from matplotlib import font_manager

    default = font_manager.FontProperties().get_family()
    lacking = _lacking(font_manager.findfont(font_manager.FontProperties()), "".join(names))
    families: list[str] = [*default]
    for font in font_manager.fontManager.ttflist:
        if not lacking:
            break
        if len(left := _lacking(font.fname, lacking)) < len(lacking):
            families.append(font.name)
            lacking = left
    return families


def drawable(names: Sequence[str], families: Sequence[str]) -> tuple[str, ...]:
    """The names cut to 24 characters; `class 3` in place of one with a character that no font has."""
    from matplotlib import font_manager

    lacking = "".join(names)
    for family in families:
        lacking = _lacking(font_manager.findfont(font_manager.FontProperties(family=[family])), lacking)
    return tuple(
        f"class {number}" if set(name[:LONGEST]) & set(lacking) else name[:LONGEST].replace("$", r"\$")
        for number, name in enumerate(names)
    )


def _lacking(font: str, text: str) -> str:
    """The characters that the font file has no glyph for."""
    from matplotlib import font_manager

    known = font_manager.get_font(font)
    return "".join(sorted(each for each in set(text) if not known.get_char_index(ord(each))))
