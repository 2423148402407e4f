"""Run folders of strangers: nothing in them is executed, nothing outside them is read or written."""

import hashlib
import io
import os
import pickle
import shutil
import sys
import warnings
from html.parser import HTMLParser
from pathlib import Path

import pytest
import tomli_w
import torch

import ppl_vae as pv
from ppl_vae import archive, cli, jobs, recording, reporting, runs, zoo

EVALUATION = "evaluation_K30_seed0"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run as the command line leaves it, but for pictures."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    settings = jobs.Settings(epochs=1, hidden=4, z_dim=2, compile="false", batch_size=1000)
    job = jobs.Job(settings, device="cpu")
    job.train(folder)
    job.evaluate(folder, 30, 0)
    return folder


@pytest.fixture
def folder(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "run"))


def command(monkeypatch, *arguments):
    """Run the command line in this process; return its exit status."""
    monkeypatch.setattr(sys, "argv", ["ppl-vae", *map(str, arguments)])
    try:
        with warnings.catch_warnings(action="ignore"):
            cli.main()
    except SystemExit as stop:
        return stop.code or 0
    return 0


def refused(monkeypatch, capfd, *arguments):
    """Run the command line, which is to end with an error in one line; return the line."""
    assert command(monkeypatch, *arguments) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("Error: ")
    assert line.isprintable()
    return line


class Evil:
    """What leaves a file behind when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def saved(content, **options):
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def claiming(payload, kind, version):
    """Return bytes with a correct checksum, as anybody can compute it."""
    facts = archive.FACTS.format(kind=kind, version=version).encode()
    return archive.MAGIC + hashlib.sha256(facts + payload).hexdigest().encode() + facts + payload


OLD = {"_use_new_zipfile_serialization": False}
KINDS = {"best.pt": "best_state", "last.pt": "run", "previous.pt": "run"}  # all else is of an evaluation
FORMS = {
    "pickled": lambda content, kind: pickle.dumps(content),
    "saved by torch": lambda content, kind: saved(content),
    "saved by torch of old": lambda content, kind: saved(content, **OLD),
    "with a checksum": lambda content, kind: claiming(saved(content), kind, 1),
    "by names on the stack, with a checksum": lambda content, kind: claiming(
        saved(content, pickle_protocol=4), kind, 1
    ),
    "of old, with a checksum": lambda content, kind: claiming(saved(content, **OLD), kind, 1),
    "pickled, with a checksum": lambda content, kind: claiming(pickle.dumps(content), kind, 1),
}


def evil(name, form, mark):
    """Return a file that leaves a mark if it is executed."""
    content = {"best": {"bound": 0.0}, "state": {"programs": Evil(mark)}, "settings": Evil(mark)}
    return FORMS[form](content, KINDS.get(name, recording.KIND))


def test_what_is_tried_would_do_harm(tmp_path):
    pickle.loads(pickle.dumps(Evil(tmp_path / "mark")))
    assert (tmp_path / "mark").exists()
    os.rmdir(tmp_path / "mark")
    torch.load(io.BytesIO(saved({"state": Evil(tmp_path / "mark")})), weights_only=False)
    assert (tmp_path / "mark").exists()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["best.pt", f"{EVALUATION}.pt", "config.toml", "metrics.csv"])
def test_no_file_of_a_run_is_ever_executed(name, form, folder, tmp_path, monkeypatch, capfd):
    (folder / name).write_bytes(evil(name, form, tmp_path / "mark"))
    message = refused(monkeypatch, capfd, "report", folder)
    assert str(folder / name) in message
    if name != "metrics.csv":
        verb = "compare" if "evaluation" in name else "sample"
        assert str(folder / name) in refused(monkeypatch, capfd, verb, folder)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("form", FORMS)
def test_nothing_that_a_run_goes_on_from_is_ever_executed(form, folder, tmp_path):
    for name in ("last.pt", "previous.pt"):
        (folder / name).write_bytes(evil(name, form, tmp_path / "mark"))
    with pytest.raises(archive.UnreadableFile, match=r"last\.pt: not "):
        runs.read_last(folder)
    assert not (tmp_path / "mark").exists()


def test_a_best_state_of_another_shape_is_refused(folder):
    content = runs.read_best(folder)
    for wrong in (
        3,
        {},
        [],
        {**content, "state": {"programs": {"a": 1}}},
        {**content, "best": 1},
    ):
        archive.write(folder / "best.pt", "best_state", runs.FORMAT, wrong)
        with pytest.raises(archive.UnreadableFile, match=r"best\.pt: not made by this library"):
            runs.read_best(folder)


def test_an_evaluation_of_another_shape_is_refused(folder):
    path = folder / f"{EVALUATION}.pt"
    content = archive.read(path, recording.KIND, recording.VERSION)
    short = content["columns"] | {"log_px": torch.zeros(3)}
    for wrong in (3, {}, content | {"settings": []}, content | {"columns": short}, content | {"more": 1}):
        archive.write(path, recording.KIND, recording.VERSION, wrong)
        with pytest.raises(archive.UnreadableFile, match=r"\.pt: not made by this library"):
            pv.Evaluation.load(path)


NAMES = ["../../evil", "os:system", "/etc/passwd", "vae.py", "__init__", "ppl_vae.models.vae", "", "\x1b[2J"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "setting", ["model", "guide", "data", "objective", "likelihood", "prior", "compile", "binarize"]
)
def test_names_in_settings_lead_nowhere(setting, name, folder, monkeypatch, capfd):
    runs.write_config(folder, runs.read_config(folder) | {setting: name})
    modules = {*sys.modules}
    message = refused(monkeypatch, capfd, "sample", folder)
    assert message.startswith((f"Error: {setting}: ", "Error: data set: "))
    assert "os" not in {*sys.modules} - modules


def test_a_file_of_programs_is_executed_only_when_it_is_named_again(folder, tmp_path, monkeypatch, capfd):
    program = tmp_path / "evil.py"
    program.write_text(f"import os\nos.mkdir({str(tmp_path / 'mark')!r})\nfrom ppl_vae.models.vae import VAE\n")
    for setting in ("model", "guide"):
        runs.write_config(folder, runs.read_config(folder) | {setting: f"{program}:VAE"})
        for verb in ("sample", "draw", "evaluate", "report"):
            assert f"name it again with --{setting} FILE:Name" in refused(monkeypatch, capfd, verb, folder)
        assert not (tmp_path / "mark").exists()
        runs.write_config(folder, runs.read_config(folder) | {setting: "normal" if setting == "guide" else "vae"})
    runs.write_config(folder, runs.read_config(folder) | {"model": f"{program}:VAE"})
    assert command(monkeypatch, "sample", folder, "--n=1", f"--model={program}:VAE") == 0
    assert (tmp_path / "mark").exists()


def test_the_zoo_imports_by_names_that_it_has():
    for name in NAMES:
        if ":" not in name:
            with pytest.raises(ValueError, match="model: unknown name"):
                zoo.find("models", name)
    with pytest.raises(FileNotFoundError, match="os: no such file"):  # a file, never a module
        zoo.find("models", "os:system")


def test_names_of_pictures_lead_nowhere(folder, monkeypatch, capfd):
    assert "unknown name '../../samples'" in refused(monkeypatch, capfd, "draw", folder, "../../samples")


ABSURD = {
    "epochs": 10**30,
    "particles": 10**30,
    "batch_size": -(10**30),
    "eval_particles": 10**30,
    "seed": 10**30,
    "z_dim": 10**9,
    "hidden": 10**9,
    "learning_rate": float("nan"),
}
OTHER_KINDS = {
    **dict.fromkeys(("epochs", "z_dim", "seed", "learning_rate", "clip_norm"), "1"),
    **{name: [1] for name in ("model", "objective", "prior", "data", "z_dim")},
    "hidden": 0.5,
    "accumulate": True,
    "guide": {"name": 1},
}


@pytest.mark.parametrize(("name", "value"), [*ABSURD.items(), *OTHER_KINDS.items()])
def test_settings_that_cannot_be_meant_are_an_error_and_no_end_of_memory(name, value, folder, monkeypatch, capfd):
    runs.write_config(folder, runs.read_config(folder) | {name: value})
    assert name in refused(monkeypatch, capfd, "sample", folder)


TEXTS = {
    "config.toml": {
        "no TOML": b"model = ",
        "no text": b"\xff\xfe\0",
        "deep": b"a = " + b"[" * 100_000,
        "digits": b"epochs = " + b"1" * 100_000,
        "hexadecimal": b"epochs = 0x" + b"f" * 100_000 + b'\ndata = "digits"',
        "large": b"#" * 10**8,
    },
    "metrics.csv": {
        "no numbers": b"epoch,seconds\n1,now\n",
        "too few": b"epoch,seconds\n1\n",
        "no text": b"epoch\n\xff\n",
        "a long cell": b"epoch\n" + b"1" * 200_000,
        "a quote": b'epoch\n"1',
    },
}


@pytest.mark.parametrize(("name", "case"), [(name, case) for name, cases in TEXTS.items() for case in cases])
def test_texts_that_are_something_else_are_an_error(name, case, folder, monkeypatch, capfd):
    (folder / name).write_bytes(TEXTS[name][case])
    message = refused(monkeypatch, capfd, "report", folder)
    assert str(folder / name) in message or "epochs: expected a number of at most" in message
    assert len(message) < 1000


@pytest.mark.parametrize("name", ["config.toml", "metrics.csv", "best.pt", f"{EVALUATION}.pt"])
def test_folders_and_pipes_for_files_are_an_error(name, folder, monkeypatch, capfd):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert str(folder / name) in refused(monkeypatch, capfd, "report", folder)


def test_nothing_is_written_through_links_or_read_of_what_is_only_written(folder, tmp_path, monkeypatch):
    mine, mark = tmp_path / "mine", tmp_path / "mark"
    mine.write_bytes(before := pickle.dumps(Evil(mark)))
    names = ["report.html", f"{EVALUATION}.json", f"{EVALUATION}.nc", "samples_n1_seed0.png", "samples_n1_seed0.npz"]
    for name in names:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(mine)
    assert command(monkeypatch, "evaluate", folder, "--particles=30", "--overwrite") == 0
    assert command(monkeypatch, "report", folder, "--overwrite") == 0
    assert command(monkeypatch, "sample", folder, "--n=1", "--overwrite") == 0
    assert mine.read_bytes() == before
    assert not mark.exists()
    assert not any((folder / name).is_symlink() for name in names)
    (folder / "metrics.csv").unlink()
    (folder / "metrics.csv").symlink_to(mine)
    with pytest.raises(ValueError, match=r"metrics\.csv: a link, to which nothing is appended"):
        runs.append_metrics(folder, {"epoch": 1})
    (folder / ".lock").unlink(missing_ok=True)
    (folder / ".lock").symlink_to(mine)
    with pytest.raises(OSError, match=r"\.lock: a link"), runs.taken(folder, None, resume=True):
        pass
    assert mine.read_bytes() == before


class Elements(HTMLParser):
    """Tags with the names of their attributes, in order."""

    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, *(name for name, _ in attributes)))


SCRIPT = """'"><script>alert(1)</script><img src=x onerror=alert(1)>{{ 7 * 7 }}</style></title>&"""


def test_a_report_holds_the_words_of_a_run_as_words(folder):
    plain, marked = folder, folder.with_name("other")
    shutil.copytree(plain, marked)
    for at, word in ((plain, "word"), (marked, SCRIPT)):
        config = {"data": word, "model": f"{word}:x", word: word, "versions": {word: [word]}, f"{word}2": {word: word}}
        (at / "config.toml").write_text(tomli_w.dumps(config))
        (at / "metrics.csv").write_text(f"epoch,train_bound,seconds,{word.replace(',', '')}\n1,-1.0,1.0,2.0\n")
        (at / word.replace("/", "")).touch()
        path = at / f"{EVALUATION}.pt"
        content = archive.read(path, recording.KIND, recording.VERSION)
        content["facts"]["subject"] = word
        archive.write(path, recording.KIND, recording.VERSION, content)
        reporting.report_run(at, pv.Evaluation.load(path), title=word)
    pages = [(at / "report.html").read_text() for at in (plain, marked)]
    found = [Elements(page).found for page in pages]
    # Words of a command are elements of their own, so that there are more of these.
    without_spans = [[element for element in elements if element != ("span",)] for elements in found]
    assert without_spans[0] == without_spans[1]
    assert "49" not in pages[1].split("<main>")[0].split("<body>")[1]
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in pages[1]
    assert '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:;' in pages[1]


def test_lines_to_copy_from_a_report_are_one_command_each():
    zeros = torch.zeros(2)
    evaluation = pv.Evaluation(zeros, zeros, zeros, zeros, zeros, particles=3, seed=0)
    config = {"data": "digits; rm -rf ~", "$(reboot)": "`reboot`", "model": "a\nreboot"}
    line = reporting.commands(config, Path("run; reboot"), evaluation)[0]
    assert line == "ppl-vae fit --data 'digits; rm -rf ~' '--$(reboot)' '`reboot`' --model 'a\nreboot'"


def test_settings_of_the_command_line_pass():
    assert jobs.Settings(learning_rate=1, clip_norm=1, epochs=10**6, eval_particles=10**7).clip_norm == 1
