"""Join the parts about all experiments to one page."""

import typer

from toycircuits.core import config, report_paths
from toycircuits.core.stage import stage


def main() -> None:
    """Write reports/index.html."""
    with stage():
        from plotly.offline import get_plotlyjs

        from toycircuits.core.plotting import TEMPLATE
        from toycircuits.report.page import page_html
        from toycircuits.report.provenance import read_records
        from toycircuits.report.section import read_part

        params = config.read_params()
        sections, titles, counts = {}, {}, {}
        for name in params["experiments"]:
            part = read_part(report_paths.section(name))
            sections[name], titles[name] = part.html, part.title
            counts[name] = part.counts
        records = read_records(report_paths.RECORDS)
        template = TEMPLATE.to_plotly_json()
        html = page_html(sections, titles, counts, records, params, get_plotlyjs(), template)
        report_paths.PAGE.write_text(html, encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
