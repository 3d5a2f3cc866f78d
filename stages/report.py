"""Join the parts about all experiments to one page."""

import json

import typer

from toycircuits.core import config, paths


def main() -> None:
    """Write reports/index.html."""
    with config.exit_on_bad_input():
        from plotly.offline import get_plotlyjs

        from toycircuits.core.plotting import TEMPLATE
        from toycircuits.report.page import page_html
        from toycircuits.report.provenance import read_records

        params = config.read_params()
        sections, titles, counts = {}, {}, {}
        for name in params["experiments"]:
            folder = paths.section(name)
            sections[name] = (folder / "section.html").read_text()
            summary = json.loads((folder / "summary.json").read_text())
            titles[name], counts[name] = summary["title"], summary["counts"]
        records = read_records(paths.RECORDS)
        template = TEMPLATE.to_plotly_json()
        html = page_html(sections, titles, counts, records, params, get_plotlyjs(), template)
        paths.PAGE.write_text(html)


if __name__ == "__main__":
    typer.run(main)
