"""benchmarks/results.py: the table of results.json files."""

import json
import pathlib
import subprocess
import sys

SCRIPT = pathlib.Path(__file__).parents[2] / "benchmarks" / "results.py"


def write(path, kind, name, source, noise, level, seed=1, **numbers):
    experiment = {"noise": "additive", "parameter_source": source}
    tested = {"noise": noise, "low": level, "high": level, "channels": 3}
    result = {"name": "trained-blindspot", "dataset": "kodak", "experiment": experiment, "tested": tested}
    result |= {"psnr_noisy": 20.0, "inside_1_std": 0.7, "inside_2_std": 0.95, "standard_error_images": 0.25} | numbers
    summary = {"model": {"kind": kind, "name": name}, "seed": seed, "pad": "image", "results": [result]}
    path.write_text(json.dumps(summary))
    return path


def rows(*arguments):
    done = subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines() if "|" in line]


def test_rows_are_grouped_by_noise_and_stand_beside_the_papers(tmp_path):
    network = "pretrained", "additive-rgb"
    found = {"psnr": 31.41, "estimated_level": [None, 24.8]}
    files = (
        write(tmp_path / "a.json", *network, "known", "additive", [None, 25.0], psnr=31.44),
        write(tmp_path / "b.json", "run", "runs/mine", "known", "gaussian", 25.0, psnr=30.0),
        write(tmp_path / "c.json", *network, "known", "additive", [50.0, 10.0], psnr=30.5),
        write(tmp_path / "d.json", *network, "fitted", "additive", [None, 25.0], **found),
    )
    table = rows(*files)
    assert table[:1] + table[2:7] == [
        ["noise", "denoiser", "kodak"],
        ["sigma 25", "noisy", "20.00"],
        ["sigma 25", "additive-rgb, level told", "31.44 (0.25)"],
        ["sigma 25", "mine: blindspot", "30.00 (0.25)"],
        ["sigma 25", "additive-rgb, level found", "31.41 (0.25)"],
        ["sigma 25", "paper: blindspot-sigma_known", "32.45"],
    ]
    assert rows("--paper=n2c", *files)[6] == ["sigma 25", "paper: n2c", "32.46"]
    files += (write(tmp_path / "e.json", *network, "known", "additive", [None, 25.0], psnr=31.5),)
    text = files[-1].read_text().replace("trained-blindspot", "trained-blindspot-x8")
    files[-1].write_text(text)
    write(tmp_path / "f.json", *network, "known", "impulse", 0.0, psnr=None)  # no picture has an error
    table = rows(*files, tmp_path / "f.json")
    assert ["sigma 25", "additive-rgb-x8, level told", "31.50 (0.25)"] in table
    assert ["sigma 25", "additive-rgb, level told", "31.44 (0.25)"] in table
    # The paper has nothing for Poisson-Gaussian noise.
    assert [row[1] for row in table if row[0] == "lam 50, sigma 10"] == ["noisy", "additive-rgb, level told"]
    assert rows("--show=found", *files)[2:] == [["sigma 25", "additive-rgb, level found", "sigma 24.8"]]
    assert rows("--show=inside", files[2])[2:] == [["lam 50, sigma 10", "additive-rgb, level told", "70.0%, 95.0%"]]


def test_differences_are_those_of_the_pictures(tmp_path):
    """Two draws of noise of the first picture; the last one has no finite PSNR."""
    runs = {"n2c": [30.0, 32.0, 20.0, 40.0], "ours": [30.5, 32.5, 19.9, None], "mean": [29.0, 31.0, 19.0, 39.0]}
    files = []
    for name, psnrs in runs.items():
        pictures = [{"image": i, "repeat": n, "psnr": psnr} for n, (i, psnr) in enumerate(zip("aabc", psnrs))]
        files.append(write(tmp_path / f"{name}.json", "run", name, "known", "gaussian", 25.0, psnr=25.0, rows=pictures))
    other = write(tmp_path / "x.json", "run", "x", "known", "gaussian", 25.0, psnr=25.0, rows=pictures, seed=2)
    # of ours: 0.5 and -0.1, mean 0.2, standard deviation 0.6 / sqrt(2)
    assert rows("--against=n2c", *files, other)[2:] == [
        ["sigma 25", "ours: blindspot", "+0.200 (0.300)"],
        ["sigma 25", "mean: blindspot", "-1.000 (0.000)"],
    ]
    done = subprocess.run([sys.executable, SCRIPT, "--against=n2v", *files], capture_output=True, text=True, timeout=60)
    assert (
        done.returncode == 1 and done.stderr == "expected a part of a denoiser's name for --against, received 'n2v'.\n"
    )
