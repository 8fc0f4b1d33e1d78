"""The report of an evaluation as a Markdown page."""

from __future__ import annotations

from collections.abc import Mapping

from medr1_ray.evaluation.passes import SHUFFLED_OPTIONS
from medr1_ray.evaluation.report import Against, Comparison, Report, Share

_COLUMNS = "| | questions | images | accuracy | 95 % | format | parse failures | truncated |"


def report_page(report: Report) -> str:
    """Return the page: the verdict, then tables of all questions and of subsets."""
    baselines = list(report.overall.baselines)
    lines = [
        f"# {report.model}, {report.mode}, {report.split}",
        "",
        *(f"- {sentence}" for sentence in report.verdict),
        "",
        "Intervals are 95 % intervals by bootstrap over images. `not better` marks a baseline that the model is not "
        "shown to exceed: the interval of the paired difference does not lie above zero. `order matters` marks options "
        "in another order that the model does worse with.",
        "",
        *_table("all", {"all": report.overall}, baselines),
    ]
    for title, shares in (
        ("modality", report.modality),
        ("question type", report.question_type),
        ("source dataset", report.dataset),
    ):
        lines += ["", f"## By {title}", "", *_table(title, shares, baselines)]
    if report.scorings:
        lines += ["", "## OmniMedVQA's scores (arXiv 2402.09181)", "", *_table("score", report.scorings, [])]
    if report.samples:
        lines += ["", f"{report.samples} sampled answers per question: mean pass rate {report.pass_rate:.3f}."]
    if report.against:
        lines += ["", describe_against(report.against)]
    lines += ["", f"Questions left out: {_counts(report.left_out)}."]
    lines += [f"Data rows that are not valid questions: {_counts(report.rows_dropped)}.", ""]
    return "\n".join(lines)


def describe_against(against: Against) -> str:
    """Return the comparison with another model in a sentence."""
    return (
        f"Against {against.other} on {against.n} questions: {against.accuracy:.3f} vs {against.other_accuracy:.3f},"
        f" difference {against.difference:+.3f} [{against.interval[0]:+.3f}, {against.interval[1]:+.3f}]; "
        f"{against.only_this} right only here, {against.only_other} right only there, McNemar's exact "
        f"p = {against.p:.2g}."
    )


def _mark(name: str, other: Comparison) -> str:
    # Shuffled options are no blind baseline: there, as good as the model is the good case.
    if name == SHUFFLED_OPTIONS:
        return " (order matters)" if other.better else ""
    return "" if other.better else " (not better)"


def _table(title: str, shares: Mapping[str, Share], baselines: list[str]) -> list[str]:
    head = _COLUMNS.replace("| |", f"| {title} |", 1) + "".join(f" {name.replace('_', ' ')} |" for name in baselines)
    rows = [head, "|---" * (head.count("|") - 1) + "|"]
    for name, share in shares.items():
        cells = [
            name.replace("|", r"\|"),
            str(share.n),
            str(share.images),
            f"{share.accuracy:.3f}",
            f"{share.interval[0]:.3f} to {share.interval[1]:.3f}",
            *(f"{value:.3f}" for value in (share.format, share.parse_failures, share.truncated)),
        ]
        for baseline in baselines:
            other = share.baselines[baseline]
            cells.append(f"{other.accuracy:.3f}{_mark(baseline, other)}")
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in sorted(counts.items())) or "nothing"
