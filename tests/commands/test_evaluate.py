"""evaluate.py as a user meets it: a table, results.json and pictures, or one sentence."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import support
import test_predictor
import test_published
from PIL import Image

from ssdn_tf.commands import cli, evaluate
from ssdn_tf.denoisers.experiments import Experiment
from ssdn_tf.evaluation import page, protocol
from ssdn_tf.inference import predictor

TRAINED = Experiment(low=5.0, high=50.0, network="tiny")


pytestmark = pytest.mark.usefixtures("eager")


@pytest.fixture(autouse=True)
def no_data_dir(monkeypatch):
    monkeypatch.delenv("SSDN_DATA_DIR", raising=False)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    return test_predictor.write_run(folder, test_predictor.built(TRAINED), TRAINED)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return support.write_pictures(tmp_path_factory.mktemp("pictures"), 3, 5, 6)


def call(*arguments):
    """Exit code of evaluate.py in this process."""
    return cli.execute(evaluate.main, evaluate.define, "TEXT", ["x.py", *map(str, arguments)])


def results(folder):
    """What results.json holds; only strict JSON is read."""

    def refuse(constant):
        raise AssertionError(constant)

    return json.loads((folder / "results.json").read_text(), parse_constant=refuse)


def test_a_table_results_and_pictures(run_dir, pictures, tmp_path, capsys):
    out = tmp_path / "out"
    assert call(f"--model={run_dir}", f"--dataset={pictures}", "--repeats=2", f"--output={out}") == 0
    text = capsys.readouterr().out
    assert "| denoiser | set |" in text and "gauss5_50-blindspot-sigma_known" in text and "| sigma 5 to 50 |" in text
    assert results(out)["model"] == {"kind": "run", "name": str(run_dir)}
    (result,) = results(out)["results"]
    assert len(result["rows"]) == 6 and result["standard_error_noise"] > 0
    assert result["psnr"] == pytest.approx(np.mean([row["psnr"] for row in result["rows"]]))
    assert len({row["level"] for row in result["rows"]}) == 6  # drawn anew for each
    assert "estimated_level" not in result
    left = sorted(out.glob("*.png"))
    assert len(left) == 2
    with Image.open(left[0]) as strip:
        assert strip.size == (5 * (48 + 4), 40 + 24)


def test_a_network_of_the_package_is_named_without_its_path():
    package = predictor.from_pretrained("additive-rgb")
    assert evaluate._named(package) == {"kind": "pretrained", "name": "additive-rgb"}


def test_another_level_does_not_change_what_the_model_was_trained_for(run_dir, pictures, tmp_path, capsys):
    flags = [f"--model={run_dir}", f"--dataset={pictures}", f"--output={tmp_path}", "--pictures=0"]
    assert call(*flags, "--sigma=25") == 0
    (result,) = results(tmp_path)["results"]
    assert result["experiment"] == TRAINED.to_dict() and result["name"] == TRAINED.name
    assert {row["level"] for row in result["rows"]} == {25.0}
    assert (result["tested"]["low"], result["tested"]["high"]) == (25.0, 25.0)
    assert f"| {TRAINED.name} | {pictures.name} | sigma 25 |" in capsys.readouterr().out


def test_a_published_file_with_an_unknown_level_needs_the_flag(pictures, tmp_path, capsys):
    path = test_published.write(tmp_path, test_published.small_state(), "network-00010000.pickle")
    flags = [f"--model={path}", f"--dataset={pictures}", f"--output={tmp_path / 'out'}", "--pictures=0"]
    assert call(*flags) == 1
    assert "expected --sigma, as the model does not say what noise level" in capsys.readouterr().err
    assert call(*flags, "--sigma=25") == 0
    (result,) = results(tmp_path / "out")["results"]
    assert result["name"] == "gauss-blindspot-sigma_known" and result["experiment"]["low"] is None


def test_the_noise_of_a_picture_depends_on_seed_set_name_and_repeat():
    keys = [(1, "kodak", "a.png", 0), (2, "kodak", "a.png", 0), (1, "set14", "a.png", 0)]
    keys += [(1, "kodak", "b.png", 0), (1, "kodak", "sub/a.png", 0), (1, "kodak", "a.png", 1)]
    draws = {key: protocol.rng(*key).random() for key in keys}
    assert len(set(draws.values())) == len(keys)
    assert protocol.rng(1, "kodak", "a.png", 0).random() == draws[1, "kodak", "a.png", 0]


def test_the_noise_depends_on_the_padding(tmp_path):
    """As README says: the noise is drawn for the padded picture, and rows of another length take other draws."""
    found = []
    for name, size in (("a.png", (30, 20)), ("b.png", (30, 50))):
        Image.new("RGB", size).save(tmp_path / name)
    for pad in ("image", "set_square"):
        cases = protocol.Protocol(Experiment(), protocol.image_set(str(tmp_path)), 1, 1, pad)
        found.append(next(iter(cases))[2].noisy)
    assert found[0].shape == found[1].shape
    assert np.array_equal(found[0][0], found[1][0]) and not np.array_equal(found[0], found[1])


def test_a_report_shows_the_pictures_and_the_curve_of_the_run(run_dir, pictures, tmp_path):
    history = run_dir / "history.jsonl"
    history.write_text("".join(json.dumps({"images": i, "psnr": 20.0 + i, "loss": -i}) + "\n" for i in range(3)))
    flags = [f"--model={run_dir}", "--sigma=25", f"--dataset={pictures}", f"--output={tmp_path}", "--repeats=2"]
    assert call(*flags, "--report") == 0
    history.unlink()
    text = (tmp_path / "report.html").read_text()
    rows = results(tmp_path)["results"][0]["rows"]
    assert text.count("<tr data-shown") == len(rows) / 2 and text.count("<polyline") == 2
    assert all(f"<td>{row['psnr']:.2f}</td>" in text for row in rows if row["repeat"] == 0)


def test_baselines_get_the_same_noise_and_its_level(run_dir, pictures, tmp_path):
    flags = ["--model=none", "--baseline=nlm,wavelet,median", "--sigma=25", f"--dataset={pictures}", "--pictures=0"]
    assert call(*flags, f"--output={tmp_path / 'told'}") == 0
    told = results(tmp_path / "told")["results"]
    assert results(tmp_path / "told")["model"] is None and [r["name"] for r in told] == ["nlm", "wavelet", "median"]
    flags[0] = f"--model={run_dir}"
    assert call(*flags, "--parameter_source=fitted", f"--output={tmp_path / 'fitted'}") == 0
    fitted = results(tmp_path / "fitted")["results"][1:]
    for a, b in zip(told, fitted, strict=True):
        assert a["psnr_noisy"] == b["psnr_noisy"] and (a["psnr"] == b["psnr"]) == (a["name"] == "median")


def test_what_is_done_is_kept_where_the_rest_fails(run_dir, pictures, tmp_path, monkeypatch):
    evaluate_one, done = protocol.evaluate, []

    def stopped(*arguments):
        if done:
            raise KeyboardInterrupt
        done.append(evaluate_one(*arguments))
        return done[0]

    monkeypatch.setattr(protocol, "evaluate", stopped)
    flags = [f"--model={run_dir}", f"--dataset={pictures}", "--sigma=25", "--baseline=median", f"--output={tmp_path}"]
    assert call(*flags) == 130
    assert [result["name"] for result in results(tmp_path)["results"]] == [done[0]["name"]]


def test_a_baseline_alone_in_gray(pictures, tmp_path):
    flags = ["--model=none", "--baseline=median", "--channels=1", "--sigma=25", f"--dataset={pictures}"]
    assert call(*flags, f"--output={tmp_path}") == 0
    (result,) = results(tmp_path)["results"]
    assert result["tested"]["channels"] == 1 and result["psnr"] > result["psnr_noisy"]


def test_a_baseline_alone_on_other_noise(pictures, tmp_path):
    flags = ["--model=none", "--baseline=median", "--lam=30", f"--dataset={pictures}", f"--output={tmp_path}"]
    assert call(*flags) == 0
    (result,) = results(tmp_path)["results"]
    assert result["tested"]["noise"] == "poisson" and result["tested"]["low"] == 30


def test_a_report_of_many_pictures_shows_some_of_each_denoiser(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(page, "SHOWN", 2)
    flags = ["--model=none", "--baseline=median,nlm", f"--dataset={pictures}", f"--output={tmp_path}", "--report"]
    assert call(*flags) == 0
    rows = re.findall("<tr(.*?)</tr>", (tmp_path / "report.html").read_text(), re.DOTALL)
    shown = ["nlm" in row for row in rows if "data-shown" in row]
    assert shown == [False, True] and len([row for row in rows if "nlm" in row]) > 1


def test_wrong_flags_get_one_sentence(run_dir, pictures, tmp_path, capsys):
    twin = tmp_path / "other" / pictures.name
    twin.mkdir(parents=True)
    support.write_pictures(twin, 1, 2, 2)
    small = tmp_path / "small"
    small.mkdir()
    support.write_pictures(small, 1, 1, 2)
    for flags, words in {
        ("--dataset=kodak",): "--dataset: expected a data_dir with the folder 'kodak'",
        ("--dataset=kodak", f"--data_dir={tmp_path}"): "--dataset: expected \\*.png in",
        ("--dataset=nothing",): "--dataset: expected one of kodak, bsd300, set14, sample or a folder",
        (f"--dataset={pictures},{twin}",): f"--dataset: expected each name once, received '{pictures.name}' 2 times",
        (f"--dataset={small}",): "--dataset: .*small/.*: expected at least 11x11 pixels for SSIM, received",
        ("--alpha=0.5",): "--alpha: expected --sigma",
        ("--model=none",): "expected --baseline with --model=none",
        ("--model=none", "--baseline=nlm", "--parameter_source=fitted"): "expected a model that finds the level",
        ("--dataset=",): "--dataset: expected at least one set of pictures, received none",
        ("--baseline=bm4d",): "--baseline: expected some of cbm3d, nlm, wavelet, median, received 'bm4d'",
        (f"--model={tmp_path}",): "expected the folder of a run",
        (f"--model={tmp_path / 'missing'}",): "does not exist",
    }.items():
        assert call(f"--model={run_dir}", *flags) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and re.search(words, error), error


def test_help_shows_the_flags_in_groups_with_their_defaults(capsys):
    assert call("--help") == 0
    text = capsys.readouterr().out
    titles = [line for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert titles == ["Model:", "Data:", "Noise:", "Output:", "Other:"]
    assert "--seed: seed of the noise (default: 1)" in text and "--[no]help" in text
    assert text.index("Noise:") < text.index("--sigma") < text.index("Output:")


def test_the_script_does_not_import_keras_for_help():
    program = "import sys; from ssdn_tf.commands import denoise, evaluate; print('keras' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
