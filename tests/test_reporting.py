"""The report: HTML that stands alone, tells the evaluation's numbers, and takes nobody's words for markup."""

import base64
import os
import re
import shlex
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import pairs
import pytest
import torch
import typer
from matplotlib.figure import Figure

import ppl_vae as pv
from ppl_vae import cli, jobs, reporting, runs, tabulating

ROOT = Path(__file__).parents[1]
VOID = {"meta", "img", "br", "hr", "link", "input"}
LOADING = {"src", "href", "srcset", "data", "poster", "action", "background", "xlink:href"}
EVIL = "<script>alert(\"x\")</script> & 'quoted'"


class Page(HTMLParser):
    """A page, taken apart; fails where its tags are not balanced.

    Attributes:
        tags: name and attributes of each.
        rows: cells of each row of a table.
        texts: name of a tag to the texts in each of its kind.
    """

    def __init__(self, html):
        super().__init__()
        self.html, self.tags, self.rows, self.texts, self._open = html, [], [], {}, []
        self.feed(html)
        self.close()
        assert not self._open, self._open

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs)
        self.tags.append((tag, dict(attrs)))
        self.texts.setdefault(tag, []).append("")
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self._open.append((tag, len(self.texts[tag]) - 1))

    def handle_endtag(self, tag):
        opened, _ = self._open.pop()
        assert opened == tag, f"<{opened}> is closed by </{tag}>"

    def handle_data(self, data):
        for tag, i in self._open:
            self.texts[tag][i] += data
        if self._open and self._open[-1][0] in ("td", "th", "code") and self.rows and self.rows[-1]:
            self.rows[-1][-1] += data

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]

    def row(self, name):
        (row,) = [row for row in self.rows if row and row[0] == name]
        return row


def made(n=12, **columns):
    torch.manual_seed(0)
    log_px = torch.randn(n).double() - 50
    facts = {
        "log_px": log_px,
        "elbo": log_px - 0.5,
        "ess": torch.full((n,), 30.0),
        "khat": torch.rand(n) * 0.4,
        "log_px_error": torch.full((n,), 0.02),
        "subject": "a model",
    }
    return pv.Evaluation(**(facts | columns), particles=50, seed=3)


def full(**columns):
    evaluation = made()
    return made(
        **{
            "debiased": evaluation.log_px + 0.01,
            "distortion": -evaluation.log_px - 3,
            "rise": torch.full((12,), 0.001),
            "curve": {k: evaluation.log_px - 1 / k + 0.02 for k in (1, 10, 50)},
            "dims": 5,
            "mass": True,
        }
        | columns
    )


def figure():
    drawn = Figure(figsize=(2, 1))
    drawn.subplots().plot([0, 1])
    return drawn


def written(folder, evaluation, pictures=None, **details):
    return Page(reporting.write_report(folder, evaluation, pictures, details).read_text())


def hold_to_standards(page):
    """Hold a page to what each report is: alone, accessible, without script."""
    assert page.html.startswith("<!DOCTYPE html>\n<html lang=")
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object", "embed", "base", "form"}
    assert "url(" not in page.texts["style"][0]
    assert "@import" not in page.texts["style"][0]
    for tag, attrs in page.tags:
        assert not [name for name in attrs if name.startswith("on")]
        for name in LOADING & attrs.keys():
            reference = tag == "a" and attrs[name].startswith("https://")
            assert reference or attrs[name].startswith("data:image/png;base64,"), attrs[name][:50]
    for image in page.all("img"):
        assert len(image["alt"]) > 2
        content = base64.b64decode(image["src"].removeprefix("data:image/png;base64,"), validate=True)
        assert content.startswith(b"\x89PNG")
        width, height = (int.from_bytes(content[at : at + 4], "big") for at in (16, 20))
        assert int(image["width"]) / int(image["height"]) == pytest.approx(width / height, rel=0.02)
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {attrs["aria-labelledby"] for _, attrs in page.tags if "aria-labelledby" in attrs} <= set(ids)
    assert len(page.all("h1")) == 1
    # A section is more than its heading.
    for heading, section in zip(page.texts["h2"], page.texts["section"], strict=True):
        assert heading.strip()
        assert section.strip().startswith(heading.strip())
    for table in re.findall(r"<table>.*?</table>", page.html, re.DOTALL):
        widths = {len(re.findall(r"<t[hd]\b", row)) for row in re.findall(r"<tr>.*?</tr>", table, re.DOTALL)}
        assert len(widths) == 1
        assert "<td" in table


NAMES = ("learning_curve", "samples", "reconstructions", "bound_curve", "khat", "log_px", "rate_distortion", "worst")
DETAILS = {
    "title": "A title",
    "settings": {"model": "vae", "seed": 3, "versions": {"torch": "2.9"}},
    "history": {
        "epoch": [1, 2, 3],
        "train_bound": [-5.0, -4.0, -3.0],
        "valid_bound": [-5.0, -3.5, -4.0],
        "seconds": [1, 2, 3],
    },
    "commands": ["ppl-vae list"],
}


def test_a_page_with_everything_stands_alone(tmp_path):
    page = written(tmp_path, full(), dict.fromkeys((*NAMES, "of my own"), figure()), **DETAILS)
    hold_to_standards(page)
    assert len(page.all("img")) == len(NAMES) + 1
    assert (
        sum("class" in image for image in page.all("img")) == 5
    )  # what the dark scheme turns round: no images of data
    assert page.texts["h1"] == page.texts["title"] == ["A title"]
    assert page.texts["h2"] == [
        *(
            "Numbers",
            "Training",
            "Samples",
            "Reconstructions",
            "Has the bound settled?",
            "Can the estimates be trusted?",
        ),
        *("How data differ", "The data of lowest log p(x)", "of my own", "Make it again", "Settings", "Terms"),
    ]
    assert "3 epochs in 3.0 s; kept epoch 2, with a bound of -3.50 nats per datum on the validation data." in page.html
    assert ["model", "vae"] in page.rows
    assert ["torch", "2.9"] in page.rows


def test_a_page_with_nothing_has_no_empty_headings(tmp_path):
    page = written(tmp_path, made())
    hold_to_standards(page)
    assert page.texts["h2"] == ["Numbers", "The data of lowest log p(x)", "Terms"]
    assert page.texts["h1"] == ["a model"]
    assert not page.all("img")


@pytest.mark.parametrize(
    ("part", "heading"),
    [
        ({"learning_curve": figure()}, "Training"),
        ({"samples": figure()}, "Samples"),
        ({"reconstructions": figure()}, "Reconstructions"),
        ({"bound_curve": figure()}, "Has the bound settled?"),
        ({"khat": figure()}, "Can the estimates be trusted?"),
        ({"log_px": figure()}, "How data differ"),
        ({"rate_distortion": figure()}, "How data differ"),
        ({"mine": figure()}, "mine"),
    ],
)
def test_each_part_comes_alone(tmp_path, part, heading):
    page = written(tmp_path, made(), part)
    hold_to_standards(page)
    assert len(page.texts["h2"]) == 4
    assert heading in page.texts["h2"]


def test_numbers_are_those_of_the_evaluation(tmp_path):
    evaluation = full()
    page = written(tmp_path, evaluation)
    headline = next(text for text, attrs in zip(page.texts["p"], page.all("p"), strict=True) if attrs)
    assert headline == str(evaluation)
    for number in tabulating.numbers(evaluation):
        _, mean, se, mc_se = page.row(number.name)
        assert float(mean) == pytest.approx(number.mean, abs=0.6 * 10**-number.digits)
        assert float(se) == pytest.approx(number.se, abs=0.6 * 10**-number.digits)
        assert not mc_se or float(mc_se) == pytest.approx(number.mc_se, abs=0.6 * 10**-number.digits)
    assert page.row("log p(x), the bound on K = 50")[1:] == [
        f"{value:.4f}" for value in (evaluation.mean, evaluation.se, evaluation.mc_se)
    ]
    _, low, _, high, told = page.row("Pareto k-hat")
    assert (low, high, told) == (f"{evaluation.khat.min():.2f}", f"{evaluation.khat.max():.2f}", "0.0% above 0.7")
    for gap in tabulating.gaps(evaluation):
        row = [f"{value:.4f}" for value in (gap.bound, gap.difference, gap.se)]
        assert [str(gap.particles), *row] in page.rows
    for row in tabulating.lowest(evaluation, 10):
        numbers = [
            f"{evaluation.log_px[row]:.2f}",
            f"{evaluation.log_px_error[row]:.3f}",
            f"{evaluation.elbo[row]:.2f}",
        ]
        assert [str(row), *numbers, f"{evaluation.ess[row]:.1f}", f"{evaluation.khat[row]:.2f}"] in page.rows
    # A spreadsheet takes a hyphen for a minus, and nothing else.
    assert "\N{MINUS SIGN}" not in page.html


def test_warnings_stand_in_a_box_with_what_to_try(tmp_path):
    evaluation = made(khat=torch.full((12,), 0.9), ess=torch.full((12,), 2.0))
    page = written(tmp_path, evaluation)
    hold_to_standards(page)
    assert page.texts["li"] == [f"{warning}." for warning in evaluation.warnings]
    assert len(page.texts["li"]) == 2
    assert all("train a richer guide" in item for item in page.texts["li"])
    headline = next(text for text, attrs in zip(page.texts["p"], page.all("p"), strict=True) if attrs)
    assert headline + "".join(f"\nWarning: {item}" for item in page.texts["li"]) == str(evaluation)
    assert "li" not in written(tmp_path, made()).texts


def test_nobodys_words_are_markup(tmp_path):
    (tmp_path / "a <b>bold<b> name & co").write_text("x")
    evaluation = made(subject=EVIL)
    page = written(
        tmp_path,
        evaluation,
        {EVIL: figure()},
        title=EVIL,
        settings={EVIL: EVIL, "inner": {EVIL: EVIL}},
        commands=[f"ppl-vae fit --model {shlex.quote(EVIL)}"],
    )
    hold_to_standards(page)
    assert page.texts["h1"] == [EVIL]
    assert EVIL in page.texts["h2"]
    assert page.all("img")[0]["alt"] == EVIL
    assert page.rows.count([EVIL, EVIL]) == 2
    assert any(EVIL in text for text in page.texts["p"])
    assert shlex.split(page.texts["pre"][0]) == ["ppl-vae", "fit", "--model", EVIL]
    assert any(row[0] == "a <b>bold<b> name & co" for row in page.rows)


def test_unknown_numbers_are_called_so(tmp_path):
    nan, inf = torch.tensor([float("nan")]), torch.tensor([float("inf")])
    page = written(tmp_path, made(1, log_px_error=nan, khat=inf, elbo=-inf))
    hold_to_standards(page)
    assert page.row("log p(x), the bound on K = 50")[2:] == ["unknown", ""]
    assert page.row("ELBO")[1:] == ["-inf", "unknown", ""]
    assert page.row("Pareto k-hat")[1:] == ["inf", "inf", "inf", "100.0% above 0.7"]


def test_files_are_listed_with_sizes(tmp_path):
    (tmp_path / "config.toml").write_text("x" * 100)
    (tmp_path / "best.pt").write_bytes(b"x" * 1_234_567)
    (tmp_path / "folder").mkdir()
    (tmp_path / ".hidden").write_text("x")
    (tmp_path / "lost").symlink_to("nowhere")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/no text \xff")).write_text("")
    written(tmp_path, made())
    page = written(tmp_path, made())
    assert ["config.toml", "100 B", "settings and versions"] in page.rows
    assert page.row("best.pt")[1] == "1,235 kB"
    assert ["folder/", "", ""] in page.rows
    assert ["no text ?", "0 B", ""] in page.rows
    assert not [row for row in page.rows if row[0] in ("report.html", ".hidden")]


def test_a_picture_from_a_file_is_in_the_page_byte_by_byte(tmp_path):
    figure().savefig(tmp_path / "samples.png")
    page = written(tmp_path, made(), {"samples": tmp_path / "samples.png"})
    (image,) = page.all("img")
    assert base64.b64decode(image["src"].split(",")[1]) == (tmp_path / "samples.png").read_bytes()


def test_what_cannot_be_written_is_named_and_leaves_the_old_page(tmp_path):
    path = reporting.write_report(tmp_path, made())
    before = path.read_bytes()
    (tmp_path / "picture.svg").write_text("<svg/>")
    with pytest.raises(ValueError, match=r"'mine' is .*picture.svg, which is no PNG"):
        reporting.write_report(tmp_path, full(), {"mine": tmp_path / "picture.svg"})
    with pytest.raises(FileNotFoundError, match=r"missing\.png"):
        reporting.write_report(tmp_path, full(), {"mine": tmp_path / "missing.png"})
    with pytest.raises(ValueError, match="unknown name tilte; there are commands, history, settings, title"):
        reporting.write_report(tmp_path, full(), details={"tilte": "a"})
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        reporting.write_report(tmp_path / "none", full())
    assert path.read_bytes() == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["picture.svg", "report.html"]


def test_the_same_gives_the_same_bytes(tmp_path):
    pages = [reporting.write_report(tmp_path, full(), {"khat": figure()}, DETAILS).read_bytes() for _ in range(2)]
    assert pages[0] == pages[1]


def test_commands_are_ones_that_the_command_line_takes():
    settings = {
        name: value for name, value in vars(jobs.Settings(hidden=7, clip_norm=2.5)).items() if value is not None
    }
    settings |= {"device": "cpu", "versions": {"torch": "2"}}
    fit, evaluate, sample = reporting.commands(settings, Path("my runs/a"), made())
    app = typer.main.get_command(cli.app)
    taken = {}
    for line in (fit, evaluate, sample):
        program, verb, *words = shlex.split(line)
        assert program == "ppl-vae"
        command = app.commands[verb]
        taken[verb] = command.make_context(verb, words).params
    assert {name: taken["fit"][name] for name in settings if name != "versions"} == {
        name: value for name, value in settings.items() if name != "versions"
    }
    assert taken["fit"]["out"] is None
    assert (taken["evaluate"]["run"], taken["evaluate"]["particles"], taken["evaluate"]["seed"]) == (
        Path("my runs/a"),
        50,
        3,
    )
    assert taken["sample"]["run"] == Path("my runs/a")


def test_programs_of_ones_own_are_named_again():
    settings = {"model": "my file.py:Name", "guide": "normal", "data": "digits"}
    fit, evaluate, sample = map(shlex.split, reporting.commands(settings, Path("run"), made()))
    for words in (fit, evaluate, sample):
        assert words[words.index("--model") + 1] == "my file.py:Name"
    assert "--guide" in fit
    assert "--guide" not in evaluate + sample
    assert reporting.commands({"objective": "elbo"}, Path("run"), made()) == []


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of the command line's, with its evaluation."""
    folder = tmp_path_factory.mktemp("run") / "run"
    job = jobs.Job(jobs.Settings(hidden=8, z_dim=2, epochs=3, compile="false"), device="cpu")
    fit = job.train(folder)
    evaluation = pv.evaluate(job.model, job.guide, job.splits, particles=30, curve=True)
    job.draw_samples(folder / "samples.png", 4, 0)
    job.draw(["reconstructions"], folder)
    return job, folder, fit, evaluation


def test_a_run_is_reported_in_one_call(finished):
    job, folder, fit, evaluation = finished
    before = {name: tensor.clone() for name, tensor in job.programs().tensors().items()}
    path = reporting.report_run(folder, evaluation, job.model, job.guide, job.splits, title=job.title())
    assert path == folder / "report.html"
    page = Page(path.read_text())
    hold_to_standards(page)
    assert page.texts["h1"] == [job.title()]
    assert len(page.all("img")) == len(NAMES)
    assert f"kept epoch {fit.best['epoch']}, with a bound of {fit.best['bound']:.2f} nats" in page.html
    assert ["hidden", "8"] in page.rows
    assert [
        "best.pt",
        reporting._size(folder / "best.pt"),
        reporting.CONTENTS["best.pt"],
    ] in page.rows
    assert page.texts["pre"] == reporting.commands(runs.read_config(folder), folder, evaluation)
    assert all(torch.equal(before[name], tensor) for name, tensor in job.programs().tensors().items())
    with pytest.raises(ValueError, match="it is of 12 data, and the test set has 360"):
        reporting.report_run(folder, made(), data=job.splits)


def test_the_worst_are_drawn_beside_their_reconstructions(finished):
    job, _, _, evaluation = finished
    (drawn,) = reporting._worst(evaluation, job.model, job.guide, job.splits).values()
    rows = tabulating.lowest(evaluation, 10)
    means = pv.reconstruct(job.model, job.guide, job.splits.test[rows], seed=evaluation.seed)["x"]
    for axes, row, mean in zip(drawn.axes, rows, means, strict=True):
        image = torch.tensor(axes.images[0].get_array().data)
        torch.testing.assert_close(image[:8], job.splits.test[row].reshape(8, 8))
        torch.testing.assert_close(image[-8:], mean.reshape(8, 8))
    (alone,) = reporting._worst(evaluation, None, None, job.splits).values()
    assert alone.axes[0].images[0].get_array().shape == (8, 8)
    flat = job.splits._replace(test=job.splits.test[:, :7])
    assert reporting._worst(evaluation, job.model, job.guide, flat) == {}


def test_a_run_of_fits_own_is_reported_too(tmp_path):
    pair = pairs.make("linear_gaussian", "normal")
    x = pair.data(20)
    fit = pv.fit(pair.model, pair.guide, x, epochs=2, out=tmp_path / "run")
    evaluation = pv.evaluate(pair.model, pair.guide, x, particles=1)
    page = Page(reporting.report_run(fit.out, evaluation).read_text())
    hold_to_standards(page)
    assert "Make it again" not in page.texts["h2"]
    assert "Has the bound settled?" not in page.texts["h2"]
    assert "on the training data" in page.html
    with pytest.raises(FileNotFoundError, match="not a finished run"):
        reporting.report_run(tmp_path, evaluation)


def test_templates_are_installed():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    setuptools = settings["tool"]["setuptools"]
    assert "ppl_vae.templates" in setuptools["packages"]
    folder = ROOT / "ppl_vae" / "templates"
    installed = {path for pattern in setuptools["package-data"]["ppl_vae.templates"] for path in folder.glob(pattern)}
    assert {path for path in folder.iterdir() if path.is_file()} == installed
    assert any(name.startswith("jinja2") for name in settings["project"]["dependencies"])
