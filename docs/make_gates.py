"""The pictures of docs/concepts.md, an AND and an OR gate patched both ways: ``python
docs/make_gates.py``.
"""

from pathlib import Path

FOLDER = Path(__file__).parent / "figures"
CLEAN, CORRUPTED, INK = "#1f6fb2", "#c8620a", "#222222"
GATES = {"and": all, "or": any}


def main() -> None:
    for name, gate in GATES.items():
        (FOLDER / f"gate-{name}.svg").write_text(picture(name, gate))


def picture(name: str, gate) -> str:
    """Four runs side by side: clean, corrupted, and each patched with one input of the other."""
    runs = [
        ("clean run", (1, 1), None),
        ("corrupted run", (0, 0), None),
        ("denoising A", (1, 0), 0),
        ("noising A", (0, 1), 0),
    ]
    drawn = [_run(*run, name, gate, 20 + 165 * i) for i, run in enumerate(runs)]
    return "\n".join(
        [
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 680 190" width="680"'
            ' font-family="sans-serif" font-size="14">',
            f"<title>An {name.upper()} gate in four runs</title>",
            '<rect width="680" height="190" rx="8" fill="#ffffff"/>',
            *drawn,
            "</svg>\n",
        ]
    )


def _run(title: str, inputs: tuple[int, int], patched: int | None, name: str, gate, x: int) -> str:
    out = int(gate(inputs))
    parts = [f'<text x="{x + 70}" y="24" text-anchor="middle" fill="{INK}">{title}</text>']
    for i, (letter, value) in enumerate(zip("AB", inputs)):
        top, color = 44 + 62 * i, CLEAN if value else CORRUPTED
        frame = ' stroke-dasharray="4 3"' if i == patched else ""
        parts += [
            f'<rect x="{x}" y="{top}" width="42" height="36" rx="6" fill="none"'
            f' stroke="{color}" stroke-width="2.5"{frame}/>',
            f'<text x="{x + 21}" y="{top + 23}" text-anchor="middle" fill="{color}">'
            f"{letter} = {value}</text>",
            f'<line x1="{x + 42}" y1="{top + 18}" x2="{x + 62}" y2="93" stroke="{INK}"/>',
        ]
    color = CLEAN if out else CORRUPTED
    parts += [
        f'<rect x="{x + 62}" y="75" width="42" height="36" rx="18" fill="none" stroke="{INK}"'
        ' stroke-width="1.5"/>',
        f'<text x="{x + 83}" y="98" text-anchor="middle" fill="{INK}">{name.upper()}</text>',
        f'<line x1="{x + 104}" y1="93" x2="{x + 118}" y2="93" stroke="{INK}"/>',
        f'<text x="{x + 128}" y="98" text-anchor="middle" font-weight="bold" fill="{color}">'
        f"{out}</text>",
        f'<text x="{x + 70}" y="172" text-anchor="middle" fill="{color}">'
        f"{'right answer' if out else 'wrong answer'}</text>",
    ]
    return "\n".join(parts)


if __name__ == "__main__":
    main()
