"""The curves as LaTeX tables for papers: ``\\input{curves.tex}`` with the package booktabs."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pandas as pd

from pipeline.report.inputs import Benchmark
from pipeline.statistics import curve

_UNITS = {
    "sigma": r"standard deviation $\sigma$ of the noise",
    "linf": r"$\ell_\infty$ distance",
    "l2": r"$\ell_2$ distance",
    "deformation": r"largest displacement $\Vert\tau\Vert_T$ in pixels",
}
_THREATS = {
    "linf": r"changes of pixels in $\ell_\infty$",
    "l2": r"changes of pixels in $\ell_2$",
    "deformation": "deformations",
    "deformation_fold_free": "deformations without folds",
}


def latex(benchmark: Benchmark) -> str:
    """A table for each worst case, then for each attack: strength × architecture, with 95 % intervals."""
    tables = [
        _table(
            f"worst-case-{threat}",
            f"under the strongest attack on each image, {_THREATS[threat]}",
            _UNITS[next(iter(by_model.values())).norm],
            {model: curve(found.worst) for model, found in by_model.items()},
        )
        for threat, by_model in benchmark.evidence.items()
    ]
    for name, attack in benchmark.params.attacks.items():
        curves = {result.model: result.curve for result in benchmark.of_attack(name)}
        tables.append(_table(name, rf"under \texttt{{{_escape(name)}}}", _UNITS[attack.norm], curves))
    return "% Needs \\usepackage{booktabs}. Made from the rows, as curves.csv is.\n\n" + "\n\n".join(tables) + "\n"


def _table(label: str, under: str, unit: str, by_model: Mapping[str, pd.DataFrame]) -> str:
    first = next(iter(by_model.values()))
    n_images, n_seeds = int(first["n_images"].iloc[0]), int(first["n_seeds"].iloc[0])
    models = list(by_model.values())
    body = [
        " & ".join([f"{epsilon:g}", *(_cell(points.iloc[i]) for points in models)]) + r" \\"
        for i, epsilon in enumerate(first["epsilon"])
    ]
    return "\n".join(
        [
            r"\begin{table}",
            r"  \centering",
            rf"  \caption{{Robust accuracy {under}, by strength ({unit}); 95\,\% intervals over "
            rf"{n_seeds} training seed{'s' * (n_seeds != 1)} and {n_images} images.}}",
            rf"  \label{{tab:{label.replace('_', '-')}}}",
            rf"  \begin{{tabular}}{{r{'l' * len(by_model)}}}",
            r"    \toprule",
            "    " + " & ".join(["strength", *map(_escape, by_model)]) + r" \\",
            r"    \midrule",
            *(f"    {line}" for line in body),
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
        ]
    )


def _cell(point: pd.Series) -> str:
    return f"{point['robust_accuracy']:.3f} {{\\scriptsize[{point['low']:.3f}, {point['high']:.3f}]}}"


def _escape(name: str) -> str:
    return re.sub(r"([_%&#$])", r"\\\1", name)
