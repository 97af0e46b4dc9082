"""What `rlpipe data check` prints."""

from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from rlpipe.data.check.content import good_labels
from rlpipe.data.check.inspect import Checked, Report
from rlpipe.data.check.part import Finding
from rlpipe.data.records import FIELDS, Format

FEW = 3
COLOURS = {"error": "red", "warning": "yellow"}


def show(console: Console, report: Report, every: bool) -> None:
    """Files, findings, and how many there are. Of a finding's places the first few, or `every` one."""
    for checked in filter(None, (report.train, report.heldout)):
        console.print(_headline(checked))
        if checked.characters:
            console.print(Padding(_lengths(checked), (0, 0, 0, 2), expand=False))
        _print_all(console, checked.findings, every)
    if report.between:
        _print_all(console, report.between, every)
    console.print(_conclusion(report))


def _print_all(console: Console, findings: list[Finding], every: bool) -> None:
    for found in findings:
        console.print(_finding(found, every))
    console.print()


def _headline(checked: Checked) -> Text:
    part = checked.part
    kind = part.format or "no known format"
    style = "" if part.style == "trl" else f" (from data.format={part.style})"
    line = Text.assemble((part.path, "bold"), f"  {checked.rows} rows: {kind}{style}")
    if part.format is Format.LABELLED and checked.good:
        line.append(f", {good_labels(checked.good) / len(checked.good):.0%} of them good")
    return line


def _lengths(checked: Checked) -> Table:
    """One row per field, then one per whole sequence."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    units = ["characters", *(["tokens"] if checked.tokens else [])]
    for unit in units:
        for heading in ("\nmedian", "\n95 %", f"{unit}\nlongest"):
            table.add_column(heading, justify="right")
    for name in dict.fromkeys([*checked.characters, *checked.tokens]):
        found = [(checked.tokens if unit == "tokens" else checked.characters).get(name) for unit in units]
        if name in FIELDS[checked.part.format] or found[-1]:
            cells = [(one.median, one.most, one.longest) if one else ("", "", "") for one in found]
            table.add_row(name, *(str(cell) for three in cells for cell in three))
    return table


def _finding(found: Finding, every: bool) -> Group:
    count = f" ({len(found.places)})" if found.places else ""
    lines = [Text.assemble((f"{found.severity}: ", f"bold {COLOURS[found.severity]}"), found.title + count)]
    shown = found.places if every else found.places[:FEW]
    lines += [Text(f"  {_printable(place)}") for place in shown]
    if len(found.places) > len(shown):
        lines.append(Text(f"  and {len(found.places) - len(shown)} more (--all shows them)", "dim"))
    if found.fix:
        lines.append(Text(f"  {found.fix}", "italic"))
    return Group(*lines)


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "·" for c in text)


def _conclusion(report: Report) -> Text:
    errors, warnings = report.count("error"), report.count("warning")
    if errors:
        return Text(f"{_many(errors, 'error')}, {_many(warnings, 'warning')}", "bold red")
    return Text(f"no errors, {_many(warnings, 'warning')}", "bold green" if not warnings else "bold")


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
