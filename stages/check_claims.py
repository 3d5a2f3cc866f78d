"""Compare what is claimed of one experiment with its tables."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # this tree's own code

import typer

from toycircuits import config, layout


def main(experiment: str) -> None:
    """Write what became of the claims of EXPERIMENT, and its few most telling numbers."""
    with config.exit_on_bad_input():
        import pandas as pd

        from toycircuits import claims

        scale = str(config.read_params()["scale"])
        path = Path("claims") / f"{experiment}.yaml"
        card = claims.read_card(path)
        folder = layout.REPORTS / experiment
        tables = claims.tables_of(folder)
        rows, headline = [], {}
        for claim in card.claims:
            with config.at_key(f"{path}: {claim.id}"):
                rows.append(claims.judge(claim, tables, scale))
        for name, measured in card.headline.items():
            with config.at_key(f"{path}: headline.{name}"):
                mean = claims.mean_over_models(measured, tables)
            headline[name] = None if mean is None else float(f"{mean:.6g}")
        judged = pd.DataFrame(rows)
        counts = judged["outcome"].value_counts()
        told = {name.replace(" ", "_"): int(counts.get(name, 0)) for name in claims.OUTCOMES}
        judged.to_csv(folder / "claims.csv", index=False, float_format=layout.FLOAT_FORMAT)
        text = json.dumps({"claims": told, **headline}, indent=1)
        (folder / "metrics.json").write_text(text + "\n")


if __name__ == "__main__":
    typer.run(main)
