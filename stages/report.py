"""Join the parts of all experiments to one page."""

import json

import typer

from toycircuits.core import config, paths


def main() -> None:
    """Write reports/index.html."""
    with config.exit_on_bad_input():
        from plotly.offline import get_plotlyjs

        from toycircuits.core.plotting import TEMPLATE
        from toycircuits.report.page import page, read_records
        from toycircuits.report.section import folder

        params = config.read_params()
        sections, titles, counts = {}, {}, {}
        for name in params["experiments"]:
            sections[name] = (folder(name) / "section.html").read_text()
            summed = json.loads((folder(name) / "summary.json").read_text())
            titles[name], counts[name] = summed["title"], summed["counts"]
        records = read_records(paths.REPORTS / "stages.json")
        template = TEMPLATE.to_plotly_json()
        text = page(sections, titles, counts, records, params, get_plotlyjs(), template)
        (paths.REPORTS / "index.html").write_text(text)


if __name__ == "__main__":
    typer.run(main)
