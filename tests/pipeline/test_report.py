"""The report on a made-up benchmark with known truth, in every shape a user may give it."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from ruamel.yaml import YAML

from pipeline.config import Claim, Published, load_params
from pipeline.errors import UserError
from pipeline.files import write_json
from pipeline.folders import CHECKPOINTS, DATA, PROBES, REPORTS, RESULTS
from pipeline.masking import Alarm
from pipeline.records import records
from pipeline.refinement import Refinement
from pipeline.report import published, refinement, tables, theory, trajectories, transfer, verdicts
from pipeline.report.cautions import cautions
from pipeline.report.deformations import alike, alike_attack, budget_families, common_strengths, success_at_cost
from pipeline.report.examples import FOOLED, examples
from pipeline.report.inputs import Benchmark, read_benchmark
from pipeline.report.page import page
from pipeline.report.pictures import draw
from pipeline.report.style import legend_columns, line_style, styled
from pipeline.report.summary import curves, metrics, summary
from pipeline.stages import report
from tests.pipeline import synthetic
from tests.pipeline.synthetic import (
    ATTACKS,
    N_EXAMPLES,
    STRANGER,
    fooling_sizes,
    refinements,
    write_benchmark,
    write_params,
)

MODELS, NAMES, SEEDS, N_IMAGES = ["cnn", "neural_ode"], ["gaussian", "fgsm", "pgd", "adef"], [0, 5], 30
Edit = Callable[[pd.DataFrame], pd.DataFrame]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A benchmark with its report."""
    root = tmp_path_factory.mktemp("finished")
    write_benchmark(root, models=MODELS, attacks=NAMES, seeds=SEEDS, n_images=N_IMAGES)
    run_stage(root)
    return root


EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """One architecture, one attack, one seed; no report yet."""
    write_benchmark(tmp_path, models=["cnn"], attacks=["fgsm"], seeds=[0], n_images=12)
    return tmp_path


def run_stage(root: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        report.main()


def read(root: Path) -> Benchmark:
    params = load_params(root / "params.yaml")
    return read_benchmark(params, root)


def edit(root: Path, model: str, attack: str, change: Edit) -> None:
    path = root / RESULTS / model / f"{attack}.parquet"
    change(pd.read_parquet(path)).to_parquet(path, index=False)


# --- what it says -----------------------------------------------------------------------------------------------------


def test_curves_are_the_truth(finished: Path) -> None:
    table = pd.read_csv(finished / REPORTS / "curves.csv")
    assert ",".join(table.columns) == "model,attack,norm,epsilon,robust_accuracy,low,high,n_images,n_seeds"
    worst = [(m, f"worst_case_{t}") for t in ("linf", "deformation") for m in MODELS]
    assert list(dict.fromkeys(zip(table["model"], table["attack"], strict=True))) == worst + [
        (m, a) for m in MODELS for a in NAMES
    ]
    table = table[~table["attack"].str.startswith("worst_case")]
    for (model, attack), curve in table.groupby(["model", "attack"]):
        sizes = fooling_sizes(str(model), str(attack), SEEDS, N_IMAGES)
        assert list(curve["epsilon"]) == [0.0, *ATTACKS[str(attack)]["epsilons"]]
        expected = [(sizes > epsilon).mean() for epsilon in curve["epsilon"]]
        assert list(curve["robust_accuracy"]) == pytest.approx(expected)
        assert (curve["low"] <= curve["robust_accuracy"]).all()
        assert (curve["robust_accuracy"] <= curve["high"]).all()
        assert set(curve["n_images"]) == {N_IMAGES}
        assert set(curve["n_seeds"]) == {len(SEEDS)}


def test_the_worst_case_is_the_strongest_attack_on_each_image(finished: Path) -> None:
    """Over those of the norm and the images of others, on the images that all of them attacked."""
    table = pd.read_csv(finished / REPORTS / "curves.csv")
    curve = table[(table["model"] == "cnn") & (table["attack"] == "worst_case_linf")]
    assert (curve["n_images"] == N_EXAMPLES).all()
    strengths = sorted({*ATTACKS["fgsm"]["epsilons"], *ATTACKS["pgd"]["epsilons"]})
    assert list(curve["epsilon"]) == [0, *strengths]
    expected = []
    for strength in [0, *strengths]:
        standing = np.ones((len(SEEDS), N_EXAMPLES), bool)
        for attack in ("fgsm", "pgd"):
            reached = max([0, *(e for e in ATTACKS[attack]["epsilons"] if e <= strength)])
            standing &= fooling_sizes("cnn", attack, SEEDS, N_IMAGES)[:, :N_EXAMPLES] > reached
        expected.append(standing.mean())
    assert list(curve["robust_accuracy"]) == pytest.approx(expected)


def test_the_transfer_matrix_is_the_truth(finished: Path) -> None:
    """Own attack on the diagonal; strangers' images need ``STRANGER`` times the size."""
    shares = transfer.matrix(read(finished), "pgd")
    largest = ATTACKS["pgd"]["epsilons"][-1]
    assert list(shares.columns) == [*MODELS, "neural_ode@euler"]
    for model in MODELS:
        sizes = fooling_sizes(model, "pgd", SEEDS, N_IMAGES)[:, :N_EXAMPLES]
        correct = sizes[sizes > 0]
        own, foreign = (correct <= largest).mean(), (STRANGER * correct <= largest).mean()
        assert shares.loc[model, model] == pytest.approx(own)
        assert shares.loc[transfer.ANOTHER_SEED, model] == pytest.approx(foreign)
        assert all(shares.loc[other, model] == pytest.approx(foreign) for other in MODELS if other != model)
    assert np.isnan(shares.loc["cnn"]["neural_ode@euler"])
    own = shares.loc["neural_ode"]
    assert own["neural_ode@euler"] == own["neural_ode"]


def test_metrics_are_finite_numbers(finished: Path) -> None:
    found = json.loads((finished / REPORTS / "metrics.json").read_text(), parse_constant=pytest.fail)
    assert list(found) == sorted([*MODELS, "claims"])
    assert found["neural_ode"]["nfe"] == 16
    assert found["cnn"]["generalization_gap"] == pytest.approx(
        found["cnn"]["train_accuracy"] - found["cnn"]["test_accuracy"]
    )
    sizes = fooling_sizes("cnn", "adef", SEEDS, N_IMAGES)
    assert found["cnn"]["adef"]["median_size"] == pytest.approx(
        np.quantile(sizes[sizes > 0], 0.5, method="inverted_cdf")
    )
    assert found["cnn"]["fgsm"]["robust_accuracy"]["0.1"] == pytest.approx(
        (fooling_sizes("cnn", "fgsm", SEEDS, N_IMAGES) > 0.1).mean()
    )
    assert found["cnn"]["gaussian"]["n_forwards"] == 2 * 4  # draws × strengths


def test_summary_has_a_table_for_every_attack(finished: Path) -> None:
    text = (finished / REPORTS / "summary.md").read_text()
    assert text.startswith("# Are Neural ODE")
    assert [line[4:] for line in text.splitlines() if line.startswith("### ")][2:] == NAMES
    assert (
        len(re.findall(r"^\| strength \| cnn \| neural_ode \|$", text, re.MULTILINE)) == len(NAMES) + 2
    )  # and two threats
    assert "2 architectures × 2 seeds × 4 attacks on 30 test images" in text


def test_examples_show_the_lowest_strength_that_fooled(finished: Path) -> None:
    benchmark = read(finished)
    sizes = fooling_sizes("cnn", "fgsm", [5], N_IMAGES)[0]
    grid = ATTACKS["fgsm"]["epsilons"]
    found = examples(benchmark.results["cnn"]["fgsm"], benchmark.images, seed=5)
    assert len(found) == len(benchmark.images)
    for example, size in zip(found, sizes, strict=False):
        strength = min((epsilon for epsilon in grid if epsilon >= size), default=grid[-1])
        assert np.abs(example.adversarial - example.original).max() == pytest.approx(strength, abs=1e-6)
        assert (example.frame == FOOLED) == (0 < size <= grid[-1])
        assert (example.after == "wrong before\nthe attack") == (size == 0)


def test_examples_that_inherit_show_the_image_of_their_fall(finished: Path) -> None:
    benchmark = read(finished)
    result = benchmark.results["cnn"]["pgd"]
    assert result.rows["inherited"].any()
    found = examples(result, benchmark.images, seed=0)
    assert len(found) == len(benchmark.images)
    sizes = fooling_sizes("cnn", "pgd", [0], N_IMAGES)[0]
    for example, size in zip(found, sizes, strict=False):
        strength = min((epsilon for epsilon in result.attack.epsilons if epsilon >= size > 0), default=None)
        assert strength is None or example.after.endswith(f"{strength:.2g}")


def test_fields_are_those_that_made_the_image(finished: Path) -> None:
    benchmark = read(finished)
    sizes = fooling_sizes("cnn", "adef", [0], N_IMAGES)[0]
    found = examples(benchmark.results["cnn"]["adef"], benchmark.images, seed=0)
    lengths = [np.linalg.norm(example.field, axis=-1).max() for example in found if example.field is not None]
    assert lengths == pytest.approx(sizes[: len(found)], rel=1e-5)


# --- the page ---------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """What a browser would load, and the ids and references of the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            elif name == "href" and tag == "a":
                self.links.append(value or "")
            elif name in ("src", "href", "xlink:href", "srcset", "poster", "data", "action"):
                self.loads.append(value or "")


def test_the_page_needs_nothing_else(finished: Path) -> None:
    text = (finished / REPORTS / "index.html").read_text()
    page = Page(text)
    assert all(target.startswith(("#", "data:image/png;base64,")) for target in page.loads)
    assert not {"link", "iframe", "object", "embed"} & set(page.tags)
    assert page.tags.count("script") == 2  # the curves' numbers and what draws them; neither has a src
    assert "@import" not in text
    assert not re.findall(r"url\((?!#)", text)


def test_every_link_and_reference_of_the_page_leads_somewhere(finished: Path) -> None:
    page = Page((finished / REPORTS / "index.html").read_text())
    assert len(set(page.ids)) == len(page.ids)
    for target in page.links + page.loads:
        if target.startswith("#"):
            assert target[1:] in page.ids
        elif not target.startswith("data:"):
            assert (finished / REPORTS / target).is_file()


def test_the_live_curves_are_those_of_the_table(finished: Path) -> None:
    text = (finished / REPORTS / "index.html").read_text()
    data = json.loads(re.search(r'id="curves-data">(.*?)</script>', text, re.DOTALL)[1])  # type: ignore[index]
    table = pd.read_csv(finished / REPORTS / "curves.csv")
    assert list(data["curves"].keys()) == sorted(set(table["attack"]))
    assert [model["name"] for model in data["models"]] == MODELS
    assert data["models"][1]["colour"] == line_style(1)["color"]
    for (attack, model), rows in table.groupby(["attack", "model"]):
        found = data["curves"][attack]["models"][model]
        for column in ("epsilon", "robust_accuracy", "low", "high"):
            assert found[column] == pytest.approx(list(rows[column]), abs=1e-6)
    assert set(re.findall(r'data-curves="([^"]*)"', text)) == {"worst_case_linf worst_case_deformation", *NAMES}


def test_the_latex_tables_are_the_curves(finished: Path) -> None:
    text = (finished / REPORTS / "curves.tex").read_text()
    assert text.count(r"\begin{table}") == text.count(r"\end{tabular}") == len(NAMES) + 2
    assert r"strength & cnn & neural\_ode \\" in text
    assert text.isascii(), "older engines know no other letters"
    table = pd.read_csv(finished / REPORTS / "curves.csv").set_index(["attack", "epsilon", "model"])
    (part,) = (part for part in text.split(r"\begin{table}") if r"\texttt{pgd}" in part)
    assert r"$\ell_\infty$ distance" in part
    cells = []
    for model in MODELS:
        value, low, high = table.loc[("pgd", 0.1, model), ["robust_accuracy", "low", "high"]]
        cells.append(rf"{value:.3f} {{\scriptsize[{low:.3f}, {high:.3f}]}}")
    assert f"    0.1 & {' & '.join(cells)} \\\\\n" in part


def test_curves_are_there_as_pdf_with_fonts_that_journals_take(finished: Path) -> None:
    found = {path.stem: path.read_bytes() for path in (finished / REPORTS / "figures").glob("*.pdf")}
    assert set(found) == {"worst-case", "robust_accuracy", "attacks-linf", *(f"curve-{attack}" for attack in NAMES)}
    assert all(content.startswith(b"%PDF") and b"/Type3" not in content for content in found.values())


def test_every_picture_is_there_as_svg_and_png(finished: Path) -> None:
    names = {"robust_accuracy", "attacks-linf", "alike", "refinement", *(f"curve-{attack}" for attack in NAMES)}
    names |= {"worst-case", "transfer", "sensitivity"}
    names |= {"trajectories", "theory-ordering", "theory-annuli", "theory-expansion"}
    names |= {f"examples-{attack}-{model}" for attack in NAMES for model in MODELS}
    files = {path.name for path in (finished / REPORTS / "figures").iterdir() if path.suffix != ".pdf"}
    assert files == {f"{name}.{suffix}" for name in names for suffix in ("svg", "png")}


def test_every_fooled_image_is_a_dot_of_the_picture_of_alike_images(finished: Path) -> None:
    benchmark = read(finished)
    assert alike_attack(benchmark) == "adef"
    by_l2, by_linf = alike(benchmark, "adef").axes
    for model, dots in zip(MODELS, by_l2.collections, strict=True):
        sizes = fooling_sizes(model, "adef", SEEDS, N_IMAGES)
        sizes = np.sort(sizes[sizes > 0])
        offsets = np.asarray(dots.get_offsets())
        np.testing.assert_allclose(np.sort(offsets[:, 0]), sizes)
        np.testing.assert_allclose(offsets[:, 1], 5 * offsets[:, 0])
    assert len(by_linf.lines) == 1  # the largest ball of fgsm and pgd
    assert not by_l2.lines


def test_the_verdict_on_tied_nets_is_in_the_report(finished: Path) -> None:
    text = (finished / REPORTS / "summary.md").read_text()
    assert "| neural_ode | euler, 6 steps | 0.930 | 0.956 | 0.960 | 0.994 | is an ODE |" in text
    benchmark = read(finished)
    accuracy, agreement, shift = refinement.picture(benchmark).axes
    assert np.asarray(accuracy.lines[0].get_ydata())[0] == pytest.approx(0.93)
    assert np.asarray(agreement.lines[0].get_xdata()).tolist() == [6, 12, 24, 48]
    assert np.asarray(shift.lines[0].get_ydata()).tolist() == pytest.approx([0.3, 0.15, 0.075, 0.0375])
    other = [Refinement(**one) for one in refinements("euler_net")]
    for seeds, verdict in (([other], "is not an ODE"), ([other, *benchmark.refinements["neural_ode"]], "2 of 3 seeds")):
        changed = replace(benchmark, refinements={"neural_ode": seeds})
        assert verdict in refinement.table(changed).rows[0][-1]


def test_the_verdict_stands_first_and_is_computed(finished: Path) -> None:
    text = (finished / REPORTS / "summary.md").read_text()
    assert text.index("## The verdict") < text.index("## Before believing it") < text.index("## The worst case")
    assert "**Not shown: of 1 claim about worst cases, 1 undecided (perturbations); fewer than 10 seeds (2) can" in text
    assert "Holm" in text
    benchmark = read(finished)
    rows = {row[0].partition(":")[0]: row for row in verdicts.table(benchmark).rows}
    assert list(rows) == ["perturbations", *(f"{name}_alone" for name in NAMES)]
    assert rows["perturbations"][0].endswith("under the worst case of pixels changed, ℓ∞ (area under the curve)")
    assert rows["adef_alone"][0].endswith("under adef alone, which is no worst case (area under the curve)")
    assert {row[1] for row in rows.values()} == {"undecided"}
    found = json.loads((finished / REPORTS / "metrics.json").read_text())["claims"]
    one, other = (benchmark.results[model]["adef"].area.value for model in ("neural_ode", "cnn"))
    assert found["adef_alone"]["difference"] == pytest.approx(one - other)
    assert f"{one - other:+.3f} [" in rows["adef_alone"][2]
    assert found["adef_alone"]["seeds_that_agree"] == 2
    assert {claim["verdict"] for claim in found.values()} == {"undecided"}
    page_text = (finished / REPORTS / "index.html").read_text()
    assert page_text.index('<h2 id="verdict">') < page_text.index('<h2 id="worst-case">')
    assert verdicts.sentence(benchmark) in page_text


def test_a_claim_at_a_strength_is_about_that_strength(finished: Path) -> None:
    benchmark = read(finished)
    claim = Claim(more_robust="neural_ode", than="cnn", at=0.1, attack="fgsm")
    benchmark = replace(benchmark, params=replace(benchmark.params, claims={"c": claim}))
    sizes = {model: fooling_sizes(model, "fgsm", SEEDS, N_IMAGES) for model in MODELS}
    expected = (sizes["neural_ode"] > 0.1).mean() - (sizes["cnn"] > 0.1).mean()
    assert verdicts.metrics(benchmark)["c"]["difference"] == pytest.approx(expected)
    assert "(at 0.1)" in verdicts.table(benchmark).rows[0][0]
    assert "no claim rests on a worst case" in verdicts.sentence(benchmark)


def test_a_legend_is_no_wider_than_its_figure() -> None:
    names = [f"neural_ode_{i}_noise" for i in range(8)]
    line = pd.DataFrame({"epsilon": [0.0, 1.0], "robust_accuracy": [1.0, 0.0], "low": [0.9, 0.0], "high": [1.0, 0.1]})
    assert legend_columns(["cnn"], 7.0) == 1
    assert legend_columns(["cnn"] * 4, 0.1) == 1
    with styled():
        figure = Figure(figsize=(7.0, 3.0), layout="constrained")
        axes = figure.subplots()
        for name in names:
            axes.plot(line["epsilon"], line["robust_accuracy"], label=name)
        legend = figure.legend(loc="outside upper center", ncols=legend_columns(names, 7.0))
        figure.draw_without_rendering()
    assert legend.get_window_extent().width <= figure.bbox.width


def test_published_figures_stand_beside_ours(finished: Path) -> None:
    benchmark = read(finished)
    sizes = fooling_sizes("cnn", "adef", SEEDS, N_IMAGES)
    sizes = sizes[sizes > 0]  # of the correctly classified
    figure = Published(
        model="cnn",
        attack="adef",
        measure="success",
        at=1.0,
        value=0.9985,
        mark="recalled",
        source="s",
        differences="d",
    )
    figures = {
        "success": figure,
        "size": replace(figure, measure="mean_size", mark="seen"),
        "none": replace(figure, measure="mean_size", at=0.0),
        "robust": replace(figure, attack="fgsm", measure="robust_accuracy", at=0.1),
        "clean": replace(figure, attack="fgsm", measure="robust_accuracy", at=0.0),
    }
    rows = published.table(replace(benchmark, params=replace(benchmark.params, published=figures))).rows
    assert [row[1] for row in rows] == ["0.999 (recalled)", "0.999"] + ["0.999 (recalled)"] * 3
    assert [row[2] for row in rows[:3]] == [f"{(sizes <= 1).mean():.3f}", f"{sizes[sizes <= 1].mean():.3f}", "–"]
    robust = (fooling_sizes("cnn", "fgsm", SEEDS, N_IMAGES) > 0.1).mean()
    assert rows[3][2].startswith(f"{robust:.3f} [")
    assert rows[4][0] == "cnn, fgsm: clean accuracy"


def test_ten_seeds_decide_unless_an_alarm_is_raised(tmp_path: Path) -> None:
    """The truth: neural_ode falls at about twice the strengths."""
    write_benchmark(tmp_path, models=MODELS, attacks=["fgsm", "adef"], seeds=range(10), n_images=60)
    benchmark = read(tmp_path)
    assert {claim["verdict"] for claim in verdicts.metrics(benchmark).values()} == {"supported"}
    assert verdicts.sentence(benchmark).startswith("Yes, as far as these attacks go: of 1 claim")
    swapped = {n: replace(c, more_robust="cnn", than="neural_ode") for n, c in benchmark.params.claims.items()}
    contrary = replace(benchmark, params=replace(benchmark.params, claims=swapped))
    assert {claim["verdict"] for claim in verdicts.metrics(contrary).values()} == {"contradicted"}
    hidden = Alarm("transfer wins", "neural_ode", 0.5, 0.02, "", "linf")
    vars(benchmark)["alarms"] = [hidden]  # cached_property
    found = {name: claim["verdict"] for name, claim in verdicts.metrics(benchmark).items()}
    assert found == {"perturbations": "unreliable", "fgsm_alone": "unreliable", "adef_alone": "supported"}
    assert [row[6] for row in verdicts.table(benchmark).rows] == ["transfer wins (neural_ode)"] * 2 + ["–"]


def test_unmatched_comparisons_are_named_and_judged_all_the_same(finished: Path) -> None:
    benchmark = read(finished)
    (warning,) = verdicts.warnings(benchmark)
    assert warning.startswith("neural_ode and cnn are not matched: parameters 41,000 and 131,000")
    assert warning in (finished / REPORTS / "summary.md").read_text()
    assert {row[7] for row in verdicts.table(benchmark).rows} == {"⚠ not matched"}
    row = dict(zip(verdicts.matched(benchmark).columns, verdicts.matched(benchmark).rows[0], strict=True))
    assert (row["architecture"], row["parameters"], row["logit scale"]) == ("cnn", "131,000", "4")
    assert row["gradient steps"] == "0"  # 60 training images, batches of 64
    for reports in benchmark.training.values():
        for seed in reports:
            seed |= {"parameters": 1000, "seconds": 20.0, "accuracy": {"train": 0.99, "test": 0.96, "validation": 0.96}}
    assert verdicts.warnings(benchmark) == []
    assert {row[7] for row in verdicts.table(benchmark).rows} == {"matched"}


def test_without_claims_nothing_is_decided(small: Path) -> None:
    run_stage(small)
    text = (small / REPORTS / "summary.md").read_text()
    assert "**Nothing is decided: no claim rests on a worst case.**" in text
    assert "| claim |" not in text


def test_what_becomes_of_attacked_trajectories_is_in_the_report(finished: Path) -> None:
    text = (finished / REPORTS / "summary.md").read_text()
    assert "| neural_ode | 4 | × 2.72 (0.100 → 0.165) | × 1 (0.100 → 0.061) | 3.00 |" in text
    assert "| architecture | steps | fgsm, ε = 0.1 | noise, ℓ2 size of fgsm | largest μ₂ |" in text
    assert "fgsm, ε = 0.1 changes by × 2.72 in cnn; measured in the state's own norm, it grows in 2 of 2" in text
    assert "fgsm changes by × 1 in cnn; measured in the state's own norm, it grows in 0 of 2" in text
    assert "As an ODE, neural_ode has trajectories that cannot cross, yet attacked ones end × 2.72 as far" in text
    assert "As an ODE, cnn" not in text
    benchmark = read(finished)
    distance, noise, _, _, rate, _ = trajectories.picture(benchmark).axes
    assert [line.get_label() for line in distance.lines] == MODELS
    assert np.asarray(distance.lines[1].get_ydata()).tolist() == pytest.approx([math.exp(k / 4) for k in range(5)])
    assert set(np.asarray(noise.lines[0].get_ydata())) == {1.0}
    slope, bound = (np.asarray(line.get_xydata()) for line in rate.lines[2:])
    assert slope.tolist() == [[k / 4 + 1 / 8, 1.0] for k in range(4)]
    assert bound.tolist() == [[k / 4, 3 - k / 4] for k in range(4)]


def test_a_flow_that_lets_nothing_grow_is_said_to(finished: Path) -> None:
    benchmark = read(finished)
    (first, *_), *_ = benchmark.trajectories.values()
    calm = [replace(trace, distance=tuple(0.5 for _ in trace.distance)) for trace in first.traces]
    seeds = [replace(first, log_norm=(-0.5, -0.25), traces=tuple(calm))]
    (*_, said) = trajectories.findings(replace(benchmark, trajectories={"neural_ode": seeds}))
    assert "no farther from the clean ones than they begin (× 0.5); its largest μ₂ is -0.25, which forbids" in said


def test_nets_without_steps_and_nets_without_attacked_images_have_no_trajectories(small: Path) -> None:
    benchmark = read(small)
    (first, *_), *_ = benchmark.trajectories.values()
    for found in ({}, {"cnn": [replace(first, traces=())]}):
        changed = replace(benchmark, trajectories=found)
        pictures = draw(changed)
        assert pictures.trajectories is None
        assert "## Trajectories" not in summary(changed)
        assert '<h2 id="trajectories">' not in page(changed, pictures)
    one = replace(benchmark, trajectories={"cnn": [replace(first, traces=()), first]})
    assert trajectories.table(one).rows[0][2] == "× 2.72 (0.100 → 0.165)"


def test_what_the_toys_show_is_said_in_their_numbers(finished: Path) -> None:
    text = (finished / REPORTS / "summary.md").read_text()
    assert "the order of 0\u00a0% of the pairs of starts, 1 Euler step that of 25\u00a0%, and 18 or more" in text
    assert "a flow ends at a mean squared error of 1 (nothing that keeps the order has less than 1)" in text
    assert "classifies 2\u00a0% of the points of a disk and the ring around it wrongly" in text
    assert "With one dimension more, 0\u00a0% are wrong" in text
    assert "none cross, and their distances become × 1 (a = 0) and × 20 (a = 3)" in text
    before, plane, augmented = theory.annuli_picture(read(finished).theory.annuli).axes
    assert np.asarray(before.lines[1].get_xydata()).tolist() == [[1.0, 0.0]]
    assert np.asarray(plane.lines[2].get_xydata()).tolist() == [[0.5, 0.0]]  # 1 - 0.5 beyond the readout's boundary
    assert np.asarray(augmented.lines[2].get_xdata()).tolist() == [-0.5]


def test_success_is_drawn_against_the_budgets(tmp_path: Path) -> None:
    names = ["fgsm", "adef", "adef_dear", "adef_cheap"]
    write_benchmark(tmp_path, models=MODELS, attacks=names, seeds=SEEDS, n_images=N_IMAGES)
    benchmark = read(tmp_path)
    assert budget_families(benchmark) == {"adef": ["adef_cheap", "adef_dear"]}
    cheap, dear = (benchmark.params.attacks[name] for name in ("adef_cheap", "adef_dear"))
    apart = [
        replace(attack, name=f"wide_{attack.name}", config=replace(attack.config, sigma=2)) for attack in (cheap, dear)
    ]
    attacks = {attack.name: attack for attack in (cheap, dear, *apart)}
    four = replace(benchmark, params=replace(benchmark.params, attacks=attacks))
    assert budget_families(four) == {
        "adef": ["adef_cheap", "adef_dear"],
        "wide_adef": ["wide_adef_cheap", "wide_adef_dear"],
    }
    unlike = replace(benchmark.params, attacks={"adef_cheap": cheap, "adef_dear": replace(dear, epsilons=(0.123,))})
    assert common_strengths(replace(benchmark, params=unlike)) == []
    strengths = ATTACKS["adef"]["epsilons"]
    panels = iter(success_at_cost(benchmark).axes)
    for strength in strengths:
        for model in MODELS:
            (line,) = next(panels).lines
            assert np.asarray(line.get_xdata()).tolist() == [34, 331]
            for name, share in zip(["adef_cheap", "adef_dear"], np.asarray(line.get_ydata()), strict=True):
                sizes = fooling_sizes(model, name, SEEDS, N_IMAGES)
                assert share == pytest.approx((sizes[sizes > 0] <= strength).mean())
    run_stage(tmp_path)
    assert (tmp_path / REPORTS / "figures/success-against-budget.png").is_file()


def test_a_variant_is_attacked_and_not_trained(tmp_path: Path) -> None:
    write_benchmark(tmp_path, models=["neural_ode"], attacks=["fgsm"], seeds=[0], n_images=12)
    yaml, path = YAML(), tmp_path / "params.yaml"
    params = yaml.load(path)
    params["variants"] = {"coarse": {"of": "neural_ode"}}
    yaml.dump(params, path)
    shutil.copytree(tmp_path / RESULTS / "neural_ode", tmp_path / RESULTS / "coarse")
    probes = json.loads((tmp_path / PROBES / "probes.json").read_text())
    probes["models"]["coarse"] = probes["models"]["neural_ode"]
    write_json(tmp_path / PROBES / "probes.json", probes)
    run_stage(tmp_path)
    benchmark = read(tmp_path)
    row = tables.architectures(benchmark).rows[1]
    assert row[0] == "coarse (of neural_ode)"
    assert row[1:6] == ("–",) * 5
    assert "1 architecture and 1 variant × 1 seed × 1 attack" in summary(benchmark)
    told = list(records(benchmark, tmp_path))
    stages = {r.tags["dvc_stage"] for r in told if r.tags.get("model") == "coarse"}
    assert stages == {"attack_variant@coarse"}
    levels = [(r.tags["level"], r.tags.get("model")) for r in told]
    assert ("training", "coarse") not in levels
    assert {("cell", "coarse"), ("aggregate", "coarse"), ("architecture", "coarse")} <= set(levels)


def test_texts_are_escaped(small: Path) -> None:
    card = json.loads((small / DATA / "card.json").read_text())
    write_json(small / DATA / "card.json", card | {"source": "<script>alert('x')</script>"})
    run_stage(small)
    text = (small / REPORTS / "index.html").read_text()
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert" in text


def test_names_are_escaped_in_tables_texts_and_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """params.yaml admits no such names; the page does not rely on it."""
    monkeypatch.setattr("pipeline.config._NAME", re.compile(".*"))
    for table, like in ((synthetic.MODELS, "cnn"), (synthetic.ATTACKS, "fgsm"), (synthetic.IMPROVEMENT, "cnn")):
        monkeypatch.setitem(table, EVIL, table[like])  # type: ignore[attr-defined]
    write_benchmark(tmp_path, models=[EVIL], attacks=[EVIL], seeds=[0], n_images=12)
    run_stage(tmp_path)
    for path in [tmp_path / REPORTS / "index.html", *(tmp_path / REPORTS / "figures").glob("*.svg")]:
        assert "<img" not in path.read_text(encoding="utf-8").replace('<img class="', ""), path
    assert EVIL.replace("<", "&lt;").replace(">", "&gt;") in (tmp_path / REPORTS / "index.html").read_text()


def test_equal_results_are_equal_files(small: Path) -> None:
    run_stage(small)
    first = {path: path.read_bytes() for path in sorted((small / REPORTS).rglob("*")) if path.is_file()}
    run_stage(small)
    assert {path: path.read_bytes() for path in sorted((small / REPORTS).rglob("*")) if path.is_file()} == first


# --- warnings ---------------------------------------------------------------------------------------------------------


def test_failed_rows_are_not_robust_and_are_said_loudly(small: Path) -> None:
    def crash(rows: pd.DataFrame) -> pd.DataFrame:
        hit = rows["index"] < 3
        return rows.assign(status=rows["status"].mask(hit, "crashed"), success=rows["success"] & ~hit)

    edit(small, "cnn", "fgsm", crash)
    benchmark = read(small)
    sizes = fooling_sizes("cnn", "fgsm", [0], 12)[0]
    table = curves(benchmark).set_index(["attack", "epsilon"])["robust_accuracy"]["fgsm"]
    assert table[0.02] == pytest.approx(((sizes > 0.02) & (np.arange(12) >= 3)).mean())
    warning = cautions(benchmark)[0]
    assert "18 of 72 rows failed (18 crashed)" in warning
    assert "not robust" in warning
    assert warning in summary(benchmark)
    run_stage(small)
    assert "18 of 72 rows failed (18 crashed)" in (small / REPORTS / "index.html").read_text()


def test_few_seeds_carry_no_verdict(small: Path, tmp_path: Path) -> None:
    assert any("Only 1 seed was trained" in caution for caution in cautions(read(small)))
    write_benchmark(tmp_path / "ten", models=["cnn"], attacks=["fgsm"], seeds=range(10), n_images=12)
    assert not any("trained" in caution for caution in cautions(read(tmp_path / "ten")))


def test_an_attack_that_fails_is_not_mistaken_for_robustness(tmp_path: Path) -> None:
    write_benchmark(tmp_path, models=["cnn"], attacks=["adef"], seeds=[0], n_images=12)
    assert not any("adef" in caution for caution in cautions(read(tmp_path)) if "fold" not in caution)
    edit(tmp_path, "cnn", "adef", lambda rows: rows.assign(success=rows["success"] & (rows["index"] < 2)))
    found = " ".join(cautions(read(tmp_path)))
    assert "adef found no example of any size for some correctly classified images (cnn 8" in found
    assert "adef leaves most images standing at its largest strength (cnn 0." in found


def test_folding_fields_are_named(tmp_path: Path) -> None:
    write_benchmark(tmp_path, models=["cnn"], attacks=["adef"], seeds=[0], n_images=12)
    edit(tmp_path, "cnn", "adef", lambda rows: rows.assign(folded_share=0.25))
    assert any("25.0\u00a0%" in caution for caution in cautions(read(tmp_path)))
    edit(tmp_path, "cnn", "adef", lambda rows: rows.assign(folded_share=0.0))
    assert not any("fold" in caution for caution in cautions(read(tmp_path)))


def test_unequal_clean_accuracies_are_named(finished: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(finished, tmp_path / "copy"))
    assert not any("Clean accuracies" in caution for caution in cautions(read(root)))
    for seed in SEEDS:
        path = root / CHECKPOINTS / "cnn" / f"seed-{seed}.json"
        training = json.loads(path.read_text())
        training["accuracy"]["test"] -= 0.1
        write_json(path, training)
    assert any("Clean accuracies differ: cnn" in caution for caution in cautions(read(root)))


# --- any shape --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("models", "attacks", "seeds"),
    [
        (["cnn"], ["adef", "pgd_l2"], [3]),
        (["neural_ode", "resnet", "cnn"], ["gaussian"], [0]),
        (["cnn"], ["pgd", "fgsm"], [1, 2, 3]),
    ],
)
def test_any_subset_works(tmp_path: Path, models: Sequence[str], attacks: Sequence[str], seeds: Sequence[int]) -> None:
    write_benchmark(tmp_path, models=models, attacks=attacks, seeds=seeds, n_images=5)
    run_stage(tmp_path)
    table = pd.read_csv(tmp_path / REPORTS / "curves.csv")
    single = table[~table["attack"].str.startswith("worst_case")]
    assert len(single.groupby(["model", "attack"])) == len(models) * len(attacks)


@pytest.mark.parametrize("attack", ["fgsm", "adef"])
def test_models_that_nothing_or_everything_fools_work(tmp_path: Path, attack: str) -> None:
    write_benchmark(tmp_path, models=["cnn", "resnet"], attacks=[attack], seeds=[0, 1], n_images=5)
    edit(tmp_path, "cnn", attack, lambda rows: rows.assign(success=False, size_linf=math.nan))
    edit(tmp_path, "resnet", attack, lambda rows: rows.assign(clean_correct=False, success=False))
    run_stage(tmp_path)
    found = metrics(read(tmp_path))
    assert "median_size" not in found["cnn"][attack]
    assert found["resnet"][attack]["area"] == 0


def test_without_examples_the_page_has_no_pictures_of_them(small: Path) -> None:
    text = (small / "params.yaml").read_text()
    (small / "params.yaml").write_text(text.replace("n_examples: 4", "n_examples: 0"))
    run_stage(small)
    assert not list((small / REPORTS / "figures").glob("examples-*"))


def test_what_left_params_leaves_the_report(finished: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(finished, tmp_path / "copy"))
    write_params(root, models=["cnn"], attacks=["adef"], seeds=[5], n_images=20)
    run_stage(root)
    table = pd.read_csv(root / REPORTS / "curves.csv")
    assert set(table["model"]) == {"cnn"}
    assert set(table["attack"]) == {"adef", "worst_case_deformation"}
    assert set(table["n_images"]) == {20}
    assert not any("fgsm" in path.name or "neural" in path.name for path in (root / REPORTS).rglob("*"))


# --- errors -----------------------------------------------------------------------------------------------------------

FILES = ["checkpoints/cnn/seed-0.json", "results/cnn/fgsm.parquet", "results/cnn/fgsm.examples.safetensors"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"no such format")])
def test_a_missing_or_damaged_file_is_named_with_the_remedy(
    small: Path, name: str, damage: Callable[[Path], None]
) -> None:
    damage(small / name)
    (small / REPORTS).mkdir()
    (small / REPORTS / "index.html").write_text("the last good report")
    with pytest.raises(UserError, match=rf"{re.escape(name)}: .*dvc repro") as caught:
        run_stage(small)
    assert "\n" not in str(caught.value)
    assert [path.name for path in (small / REPORTS).iterdir()] == ["index.html"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda rows: rows[rows["seed"] != 5], "no rows of seed 5"),
        (lambda rows: rows[rows["index"] != 7], "29 images, not 30"),
        (lambda rows: rows[rows["epsilon"] != 0.1], "strengths"),
        (lambda rows: rows.drop(3), "rows, not"),
        (lambda rows: rows.drop(columns="status"), "missing columns"),
    ],
)
def test_rows_that_are_not_those_of_params_are_refused(
    finished: Path, tmp_path: Path, change: Edit, reason: str
) -> None:
    root = Path(shutil.copytree(finished, tmp_path / "copy", ignore=shutil.ignore_patterns("reports")))
    edit(root, "cnn", "fgsm", change)
    with pytest.raises(UserError, match=rf"fgsm\.parquet: .*{reason}.*dvc repro"):
        read(root)
