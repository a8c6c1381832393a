"""denoise.py as a user meets it: a file of the size of the input, or one sentence and no file."""

import errno
import os
import resource

import numpy as np
import pytest
import test_predictor
import tifffile
from PIL import Image

from ssdn_tf.commands import cli, denoise, train
from ssdn_tf.data import files, images
from ssdn_tf.denoisers.experiments import Experiment
from ssdn_tf.inference import pictures, predictor, ranges

TRAINED = Experiment(low=5.0, high=50.0, network="tiny")


pytestmark = pytest.mark.usefixtures("eager")


def write_run(folder, experiment):
    return test_predictor.write_run(folder, test_predictor.built(experiment), experiment)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "run", TRAINED)


def call(*arguments):
    """Exit code of denoise.py in this process."""
    return cli.execute(denoise.main, denoise.define, "TEXT", ["x.py", *map(str, arguments)])


@pytest.mark.parametrize("size", [(33, 47), (1, 2), (64, 32)])
def test_any_size_is_denoised(run_dir, size, tmp_path):
    source, target = tmp_path / "in.png", tmp_path / "out.png"
    Image.fromarray(np.full((*size, 3), 120, np.uint8)).save(source)
    assert call(f"--model={run_dir}", "--sigma=25", f"--input={source}", f"--output={target}") == 0
    with Image.open(target) as image:
        assert (image.height, image.width) == size and image.mode == "RGB"


def test_the_output_is_what_the_predictor_says(run_dir, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 65536, (20, 30, 3), np.uint16)
    images.write(tmp_path / "in.png", pixels)
    flags = [f"--model={run_dir}", f"--input={tmp_path / 'in.png'}", f"--output={tmp_path / 'out.png'}"]
    assert call(*flags, "--sigma=10") == 0
    expected = predictor.load(run_dir).denoise(images.to_float(pixels), 10 / 255).denoised
    found = images.read(tmp_path / "out.png")  # 16 bit in, 16 bit out
    assert np.array_equal(found, np.rint(np.clip(65535 * expected.astype(np.float64), 0, 65535)))
    assert call(*flags, "--sigma=40") == 0
    assert not np.array_equal(found, images.read(tmp_path / "out.png"))  # control: the level matters


def write_pictures(folder, count=3, side=24):
    rng = np.random.default_rng(0)
    for i in range(count):
        path = folder / ("sub" if i == 0 else "") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).save(path)
    return folder


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_folder_becomes_a_folder_and_the_same_command_goes_on(run_dir, tmp_path, capsys):
    source, target = write_pictures(tmp_path / "in"), tmp_path / "out"
    flags = [f"--model={run_dir}", f"--input={source}", f"--output={target}", "--sigma=25"]
    assert call(*flags) == 0
    assert names(target) == names(source) == ["1.png", "2.png", "sub/0.png"]
    before = {name: (target / name).read_bytes() for name in names(target)}
    (target / "1.png").unlink()
    stamp = (target / "2.png").stat().st_mtime_ns
    assert call(*flags) == 0
    assert {name: (target / name).read_bytes() for name in names(target)} == before
    assert (target / "2.png").stat().st_mtime_ns == stamp  # what was there is not made again
    capsys.readouterr()
    assert call(*flags) == 0 and "all 3 pictures are there already" in capsys.readouterr().out
    assert call(*flags, "--overwrite") == 0 and (target / "2.png").stat().st_mtime_ns > stamp


def test_what_a_picture_should_have_beside_it_is_made_later_too(run_dir, tmp_path, capsys):
    source, target = write_pictures(tmp_path / "in", 1), tmp_path / "out"
    flags = [f"--model={run_dir}", f"--input={source}", f"--output={target}", "--sigma=25"]
    assert call(*flags) == 0 and names(target) == ["sub/0.png"]
    assert call(*flags) == 0 and "all 1 pictures are there already" in capsys.readouterr().out
    assert call(*flags, "--report") == 0 and (tmp_path / "out-report.html").exists()
    assert call(*flags, "--uncertainty", "--preview") == 0
    assert names(target) == ["sub/0-preview.png", "sub/0-std.tif", "sub/0.png"]
    assert call(*flags, "--uncertainty", "--preview") == 0 and "are there already" in capsys.readouterr().out


def test_a_picture_that_is_there_has_all_that_belongs_to_it(run_dir, tmp_path, monkeypatch, capsys):
    """A stop, or a failure, between the files of a picture."""
    source, target = write_pictures(tmp_path / "in", 1), tmp_path / "out"
    flags = [f"--model={run_dir}", f"--input={source}", f"--output={target}", "--sigma=25", "--uncertainty"]

    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files, "write", stopped)
        assert call(*flags) == 130
    left = target / "sub" / f".0.png.{'a' * 32}"  # what SIGKILL leaves in the middle of a write
    left.touch()
    assert not (target / "sub" / "0.png").exists()
    assert call(*flags) == 0 and names(target) == ["sub/0-std.tif", "sub/0.png"] and not left.exists()


def test_no_file_is_written_over_another(run_dir, tmp_path, capsys):
    source = write_pictures(tmp_path / "in", 1)
    (source / "sub" / "0-std.tif").write_bytes(b"mine")
    before = (source / "sub" / "0.png").read_bytes()
    single = [f"--input={source / 'sub' / '0-std.tif'}", f"--output={source / 'sub' / '0.tif'}", "--uncertainty"]
    assert call(f"--model={run_dir}", "--sigma=25", *single) == 1
    assert "expected a file of its own for each result, received" in capsys.readouterr().err
    (source / "sub" / "0.bmp").write_bytes(before)
    both = [f"--model={run_dir}", f"--input={source}", f"--output={tmp_path / 'out'}", "--sigma=25"]
    assert call(*both, "--preview") == 1
    assert "0-preview.png' for " in capsys.readouterr().err
    assert (source / "sub" / "0-std.tif").read_bytes() == b"mine" and not (tmp_path / "out").exists()


@pytest.mark.skipif(os.name == "nt", reason="links")
def test_no_picture_is_written_over_one_of_the_input_by_way_of_a_link(run_dir, tmp_path, capsys):
    write_pictures(tmp_path / "data" / "noisy", 1)
    (tmp_path / "link").symlink_to(tmp_path / "data" / "noisy")
    before = (tmp_path / "data" / "noisy" / "sub" / "0.png").read_bytes()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sub").symlink_to(tmp_path / "data" / "noisy" / "sub")
    flags = [f"--model={run_dir}", f"--input={tmp_path / 'link'}", "--sigma=25", "--overwrite"]
    assert call(*flags, f"--output={tmp_path / 'out'}") == 1
    assert "expected a file of its own for each result" in capsys.readouterr().err
    assert (tmp_path / "data" / "noisy" / "sub" / "0.png").read_bytes() == before
    (tmp_path / "out" / "sub").unlink()
    assert call(*flags, f"--output={tmp_path / 'out'}") == 0 and (tmp_path / "out" / "sub" / "0.png").exists()


def test_what_a_start_that_was_killed_at_the_very_end_left_is_deleted(run_dir, tmp_path):
    source, target = write_pictures(tmp_path / "in", 1), tmp_path / "out"
    flags = [f"--model={run_dir}", f"--input={source}", f"--output={target}", "--sigma=25"]
    assert call(*flags) == 0
    (target / "sub" / ".0.png.partial").mkdir()
    assert call(*flags) == 0 and names(target) == ["sub/0.png"] and len(list((target / "sub").iterdir())) == 1


def test_one_pixel_has_no_surroundings(run_dir, tmp_path, capsys):
    Image.fromarray(np.full((1, 1, 3), 120, np.uint8)).save(tmp_path / "in.png")
    flags = [f"--model={run_dir}", f"--input={tmp_path / 'in.png'}", f"--output={tmp_path / 'out.png'}", "--sigma=25"]
    assert call(*flags) == 1
    assert f"{tmp_path / 'in.png'}: expected more than one pixel" in capsys.readouterr().err
    assert names(tmp_path) == ["in.png"]


def test_a_picture_of_another_scale_than_the_others_is_a_warning(run_dir, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for name, scale in (("unit", 1.0), ("counts", 9000.0)):
        values = scale * np.random.default_rng(0).random((24, 24), np.float32)
        tifffile.imwrite(tmp_path / "in" / f"{name}.tif", values)
    assert call(f"--model={run_dir}", f"--input={tmp_path / 'in'}", f"--output={tmp_path / 'out'}", "--sigma=25") == 0
    copies, *scales = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert "is for pictures in colour; in three copies of a gray picture the noise is alike" in copies
    assert len(scales) == 1 and "unit.tif: its picture uses 0.01% of the range" in scales[0]


def test_alpha_takes_the_network_for_impulse_noise(tmp_path, capsys):
    write_pictures(tmp_path / "in", 1)
    Image.fromarray(np.full((24, 24), 120, np.uint8)).save(tmp_path / "in" / "gray.png")
    assert call(f"--input={tmp_path / 'in'}", f"--output={tmp_path / 'out'}", "--alpha=0.3") == 0
    out, err = capsys.readouterr()
    assert "alpha 0.3" in out and "for pictures in colour" not in err  # there is no network for gray and impulses
    (tmp_path / "levels.csv").write_text("file,alpha\nsub/0.png,0.3\ngray.png,\n")
    assert call(f"--input={tmp_path / 'in'}", f"--output={tmp_path / 'b'}", f"--levels={tmp_path / 'levels.csv'}") == 0
    assert (tmp_path / "b" / "sub" / "0.png").read_bytes() == (tmp_path / "out" / "sub" / "0.png").read_bytes()


def test_a_table_of_levels_does_not_go_with_adapting(tmp_path, capsys):
    write_pictures(tmp_path / "in", 1)
    (tmp_path / "levels.csv").write_text("file,sigma\nsub/0.png,10\n")
    flags = [f"--input={tmp_path / 'in'}", f"--output={tmp_path / 'out'}", "--adapt=5min"]
    assert call(*flags, f"--levels={tmp_path / 'levels.csv'}") == 1
    assert "--levels: with --adapt, expected no level, or one of all pictures" in capsys.readouterr().err
    assert not (tmp_path / "out-network").exists()


def test_a_zarr_is_neither_written_around_the_input_nor_over_other_files(run_dir, tmp_path, capsys):
    zarr = pytest.importorskip("zarr")
    group = zarr.create_group(str(tmp_path / "a.zarr"))
    group.create_array("0", shape=(16, 16), dtype="u1")[:] = 100
    (tmp_path / "d.zarr").mkdir()
    (tmp_path / "d.zarr" / "thesis.txt").write_text("years")
    there, source = names(tmp_path), f"--input={tmp_path / 'a.zarr' / '0'}"
    assert call(f"--model={run_dir}", source, f"--output={tmp_path / 'a.zarr'}") == 1
    assert "--output: expected a name beside --input, received " in capsys.readouterr().err
    assert call(f"--model={run_dir}", source, f"--output={tmp_path / 'd.zarr'}") == 1
    # A folder as output is where a picture goes into, but for a Zarr.
    assert "d.zarr: expected the name of a picture, received that of a folder" in capsys.readouterr().err
    assert names(tmp_path) == there


def test_a_warning_is_said_once_and_again_by_the_next_command(capsys):
    def main(values):
        for _ in range(2):
            images.warn("careful.")
        return 0

    for _ in range(2):
        assert cli.execute(main, lambda values: None, "TEXT", ["x.py", "--nohelp"]) == 0
        assert capsys.readouterr().err == "warning: careful.\n"


def test_what_the_system_refuses_is_one_sentence(capsys):
    def main(values):
        raise PermissionError(errno.EACCES, "Permission denied", "/secret")

    assert cli.execute(main, lambda values: None, "TEXT", ["x.py", "--nohelp"]) == 1
    assert capsys.readouterr().err == "error: /secret: Permission denied.\n"


def test_one_bad_file_is_named_and_the_others_are_done(run_dir, tmp_path, capsys):
    source, target = write_pictures(tmp_path / "in"), tmp_path / "out"
    (source / "1.png").write_bytes((source / "1.png").read_bytes()[:300])
    (source / "empty.png").write_bytes(b"")
    assert call(f"--model={run_dir}", f"--input={source}", f"--output={target}", "--sigma=25") == 1
    error = capsys.readouterr().err
    assert "left out" in error and "1.png" in error and "empty.png" in error
    assert error.splitlines()[-1] == "error: 2 of 4 pictures could not be denoised; see above."
    assert names(target) == ["2.png", "sub/0.png"]


def test_a_stack_keeps_its_pages_and_gets_stds_and_a_preview(run_dir, tmp_path, capsys):
    stack = np.random.default_rng(1).normal(0.5, 0.2, (3, 20, 24)).astype(np.float32)
    tifffile.imwrite(tmp_path / "in.tif", stack, photometric="minisblack", description="mine")
    flags = [f"--input={tmp_path / 'in.tif'}", f"--output={tmp_path / 'out.tif'}", "--uncertainty", "--preview"]
    assert call(f"--model={run_dir}", "--sigma=25", *flags) == 0
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        assert file.asarray().shape == stack.shape and file.asarray().dtype == np.float32
        assert "mine" in file.pages[0].description
        assert not np.array_equal(file.asarray(), stack)
    stds = tifffile.imread(tmp_path / "out-std.tif")
    assert stds.shape == stack.shape and (stds > 0).all()
    with Image.open(tmp_path / "out-preview.png") as image:
        assert image.size == (3 * 24, 20)
    assert "3 planes of 24x20, sigma 25" in capsys.readouterr().out


def test_a_long_stack_needs_few_open_files(run_dir, tmp_path):
    """Of 60 pages, with a limit of 30 more files than are open now: those of another start, and those of this one."""
    stack = np.random.default_rng(1).integers(0, 256, (60, 8, 8), np.uint8)
    tifffile.imwrite(tmp_path / "in.tif", stack, photometric="minisblack")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    least = os.open(os.devnull, os.O_RDONLY)
    os.close(least)
    resource.setrlimit(resource.RLIMIT_NOFILE, (least + 30, limits[1]))
    try:
        flags = [f"--input={tmp_path / 'in.tif'}", f"--output={tmp_path / 'out.tif'}", "--uncertainty"]
        assert call(f"--model={run_dir}", "--sigma=25", *flags) == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert tifffile.imread(tmp_path / "out.tif").shape == tifffile.imread(tmp_path / "out-std.tif").shape == stack.shape


def test_a_folder_may_be_called_as_the_sample_photographs(tmp_path, monkeypatch):
    trained, source = [], write_pictures(tmp_path / "sample")
    monkeypatch.setattr(train, "main", lambda values, _: trained.append(values.train_data) or 1)
    monkeypatch.chdir(tmp_path)
    for name in ("sample", source):
        assert call(f"--input={name}", "--output=out", "--adapt=5min") == 1
    assert trained == ["./sample", str(source)]


def test_the_range_is_said_and_can_be_given(run_dir, tmp_path, capsys):
    pixels = np.random.default_rng(2).integers(100, 900, (24, 24), np.uint16)
    tifffile.imwrite(tmp_path / "in.tif", pixels)
    flags = [f"--model={run_dir}", f"--input={tmp_path / 'in.tif'}", f"--output={tmp_path / 'out.tif'}", "--sigma=25"]
    assert call(*flags) == 0 and "Range: black 10" in capsys.readouterr().out
    measured = tifffile.imread(tmp_path / "out.tif")
    assert call(*flags, "--range=0,65535") == 0
    assert not np.array_equal(measured, tifffile.imread(tmp_path / "out.tif"))
    for text in ("5", "9,5", "a,b", "0,inf"):
        assert call(*flags, f"--range={text}") == 1 and "--range: expected black,white" in capsys.readouterr().err


def test_the_range_is_that_of_all_pages(run_dir, tmp_path, capsys):
    rng = np.random.default_rng(0)
    stack = np.stack([rng.integers(100, most, (24, 24), np.uint16) for most in (300, 4000, 4000)])  # the first is dim
    tifffile.imwrite(tmp_path / "a.tif", stack, photometric="minisblack")
    flags = [f"--model={run_dir}", "--sigma=25", f"--input={tmp_path / 'a.tif'}", f"--output={tmp_path / 'b.tif'}"]
    assert call(*flags) == 0
    black, white = ranges.find(stack[..., None], {1: predictor.load(run_dir)}.get, True)[0]
    assert f"Range: black {black:.6g}, white {white:.6g}" in capsys.readouterr().out and white > 3900


@pytest.mark.parametrize("more", [[], ["--adapt=5s"]], ids=["", "adapt"])
def test_a_name_that_cannot_hold_the_picture_is_refused_before_any_work(tmp_path, capsys, monkeypatch, more):
    monkeypatch.setattr(denoise, "_worker", None)
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((3, 24, 24), np.uint16), photometric="minisblack")
    assert call(f"--input={tmp_path / 'a.tif'}", f"--output={tmp_path / 'b.png'}", *more) == 1
    assert "b.png: expected a name ending in .tif" in capsys.readouterr().err and names(tmp_path) == ["a.tif"]


def test_a_damaged_part_of_a_zarr_is_named_and_the_others_are_done(run_dir, tmp_path, capsys):
    zarr = pytest.importorskip("zarr")
    for name, value in (("a", 0.5), ("b", np.nan)):
        array = zarr.create_array(str(tmp_path / "in" / f"{name}.zarr"), shape=(24, 24), dtype="f4", chunks=(8, 8))
        array[:] = np.random.default_rng(0).random((24, 24))
        array[9, 9] = value
    flags = [f"--model={run_dir}", f"--input={tmp_path / 'in'}", f"--output={tmp_path / 'out'}"]
    for source in ("each", "set"):
        assert call(*flags, f"--noise_from={source}", "--overwrite") == 1
        assert "b.zarr" in capsys.readouterr().err and [p.name for p in (tmp_path / "out").iterdir()] == ["a.zarr"]


def test_one_level_for_the_set(run_dir, tmp_path, capsys):
    source = write_pictures(tmp_path / "in")
    flags = [f"--model={run_dir}", f"--input={source}", f"--output={tmp_path / 'out'}", "--noise_from=set"]
    assert call(*flags) == 0
    levels = {line.rsplit("sigma ", 1)[1] for line in capsys.readouterr().out.splitlines() if "sigma" in line}
    assert len(levels) == 1


def test_a_report_shows_all_pictures_also_those_of_an_earlier_start(run_dir, tmp_path, capsys):
    source, target = write_pictures(tmp_path / "in"), tmp_path / "out"
    flags = [f"--model={run_dir}", f"--input={source}", f"--output={target}", "--sigma=25", "--report"]
    assert call(*flags) == 0 and "out-report.html" in capsys.readouterr().out
    first = (tmp_path / "out-report.html").read_text()
    assert first.count("<tr data-shown") == 3 and first.count("sigma 25") == 3
    (target / "2.png").unlink()
    assert call(*flags) == 0
    again = (tmp_path / "out-report.html").read_text()
    assert again.count("<tr data-shown") == 3 and again.count("sigma 25") == 1
    assert again.count("(denoised before)") == 2
    assert f"{source}, denoised by {run_dir}" in again


@pytest.mark.parametrize("adapted", [False, True])
def test_a_report_on_finished_pictures_neither_trains_nor_names_a_network(run_dir, tmp_path, monkeypatch, adapted):
    source, target = write_pictures(tmp_path / "in"), tmp_path / "out"
    flags = [f"--model={run_dir}", f"--input={source}", f"--output={target}", "--report"]
    assert call(*flags) == 0
    if adapted:
        write_run(tmp_path / "out-network", TRAINED)
        (source / "bad.png").write_bytes(b"damaged")
    else:
        (tmp_path / "out-network").mkdir()  # of a training that did not begin
    monkeypatch.setattr(denoise, "_adapt", lambda *_: pytest.fail("trains"))
    assert call(*flags, "--adapt=5min") == adapted
    page = (tmp_path / "out-report.html").read_text()
    assert page.count("(denoised before)") == 3 and "denoised by" not in page


def test_levels_of_each_file_come_from_a_table(run_dir, tmp_path, capsys):
    source, table = write_pictures(tmp_path / "in"), tmp_path / "levels.csv"
    flags = [f"--model={run_dir}", f"--input={source}", f"--output={tmp_path / 'out'}", f"--levels={table}"]
    table.write_text("file,sigma\n1.png,10\n2.png,\nsub/0.png,40\n")
    assert call(*flags) == 0
    lines = {line.split(":")[0].rsplit("/", 1)[1]: line for line in capsys.readouterr().out.splitlines() if ":" in line}
    assert lines["1.png"].endswith("sigma 10") and lines["0.png"].endswith("sigma 40")
    assert not lines["2.png"].endswith(("sigma 10", "sigma 40"))  # an empty cell is found
    for text, words in {
        "file,sigma\n1.png,10\n": "expected a row for each picture in",
        "file,sigma\n1.png,-3\n": (
            "1.png: expected a number between 0 and 255 (std in 255ths of the range), received '-3'"
        ),
        "file,gamma\n1.png,10\n": "expected the columns file and sigma or lam or alpha, received file, gamma",
        "file,sigma\n1.png,1\n1.png,2\n": "expected each file once, received '1.png' twice",
        "file,sigma\n1.png,25\n2.png,25,5\n": "expected rows of 2 cells, received '2.png,25,5'",
        "sigma,file\n25,1.png\n25\n": "expected rows of 2 cells, received '25'",
        "": "expected the columns file and",
        "file,lam\n1.png,5\n2.png,\nsub/0.png,\n": "noise: expected sigma for",
    }.items():
        table.write_text(text)
        assert call(*flags, "--overwrite") == 1
        assert words in capsys.readouterr().err
    assert call(*flags, "--sigma=25") == 1
    assert "--levels and --sigma both say the noise level" in capsys.readouterr().err
    table.unlink()
    assert call(*flags) == 1 and "expected a CSV file, received" in capsys.readouterr().err


def test_a_second_start_takes_the_range_of_the_whole_set(run_dir, tmp_path):
    """And not that of what is left to do."""
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for name, most in (("a", 900), ("b", 30000)):
        tifffile.imwrite(source / f"{name}.tif", np.random.default_rng(0).integers(0, most, (24, 24), np.uint16))
    flags = [f"--model={run_dir}", f"--input={source}", f"--output={target}", "--sigma=25"]
    assert call(*flags) == 0
    before = (target / "a.tif").read_bytes()
    (target / "a.tif").unlink()
    assert call(*flags) == 0 and (target / "a.tif").read_bytes() == before


@pytest.mark.parametrize("stop_after", [1, 3, 4])
def test_a_large_picture_goes_on_where_it_was_stopped(run_dir, tmp_path, monkeypatch, stop_after):
    """A tile in the middle, and after the last one, before the file is written."""
    rng = np.random.default_rng(3)
    stack = rng.integers(0, 65536, (2, 48, 56), np.uint16)  # two tiles each
    tifffile.imwrite(tmp_path / "in.tif", stack, photometric="minisblack")
    flags = [f"--model={run_dir}", f"--input={tmp_path / 'in.tif'}", "--tile=48", "--uncertainty"]
    assert call(*flags, f"--output={tmp_path / 'whole.tif'}") == 0
    tiles, taken = pictures.PictureDenoiser.tiles, []

    def stopped(*arguments):
        for part in tiles(*arguments):
            if len(taken) == stop_after:
                raise KeyboardInterrupt
            yield part
            taken.append(part)
        if len(taken) == stop_after == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(pictures.PictureDenoiser, "tiles", stopped)
    target = tmp_path / "out.tif"
    assert call(*flags, f"--output={target}") == 130 and not target.exists()
    assert (tmp_path / ".out.tif.partial").is_dir()
    stop_after, before = 99, len(taken)
    assert call(*flags, f"--output={target}") == 0
    assert len(taken) == 4 and before < 5 and not (tmp_path / ".out.tif.partial").exists()
    for name in ("out.tif", "out-std.tif"):
        assert (tmp_path / name).read_bytes() == (tmp_path / name.replace("out", "whole")).read_bytes()


def test_a_full_disk_is_a_sentence_and_leaves_nothing(run_dir, tmp_path, capsys, monkeypatch):
    source = write_pictures(tmp_path / "in", 1) / "sub" / "0.png"

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert call(f"--model={run_dir}", f"--input={source}", f"--output={tmp_path / 'out.png'}", "--sigma=25") == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "No space left on device" in error and error.count("\n") == 1
    assert names(tmp_path) == ["in/sub/0.png"]


def test_wrong_flags_get_one_sentence_and_write_nothing(run_dir, tmp_path, capsys):
    source, folder = tmp_path / "in.png", tmp_path / "folder"
    Image.fromarray(np.full((32, 32, 3), 120, np.uint8)).save(source)
    write_pictures(folder, 1)
    before, there = source.read_bytes(), names(tmp_path)
    output = f"--output={tmp_path / 'x.png'}"
    for flags, words in {
        (
            f"--input={source}",
            f"--output={source}",
            "--sigma=25",
        ): "--output: expected another name than that of --input, received ",
        (f"--input={folder}", f"--output={folder}"): "--output: expected another name than that of --input, received ",
        (f"--input={folder}", f"--output={folder / 'out'}"): "--output: expected a folder outside of --input",
        (f"--input={folder}", f"--output={source}"): "--output: expected a folder for the pictures of a folder",
        (f"--input={source}",): "expected --output=FILE or FOLDER, received none",
        (output,): "expected --input=FILE or FOLDER, received none",
        (f"--input={source}", f"--output={tmp_path / 'x.doc'}", "--sigma=25"): "--output: expected a name ending in",
        (f"--input={tmp_path / 'no.png'}", output): "does not exist",
        (
            f"--input={source}",
            output,
            "--sigma=5,9",
        ): "--sigma: expected a number between 0 and 255 (std in 255ths of the range), received '5,9'",
        (f"--input={source}", output, "--tile=32"): "--tile: expected a tile side that is a multiple of 2 from 34",
        (f"--input={source}", output, "--lam=3"): "--lam: expected --sigma",
        (
            f"--input={source}",
            output,
            "--sigma=5",
            "--noise_from=set",
        ): "--sigma and --noise_from=set both say the noise level; give one of them",
    }.items():
        assert call(f"--model={run_dir}", *flags) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and words in error, error
    assert source.read_bytes() == before and names(tmp_path) == there


def test_a_level_for_a_model_that_needs_none_is_a_warning(tmp_path, capsys):
    experiment = Experiment(pipeline="n2c", parameter_source=None, channels=1, width=2)
    run = write_run(tmp_path / "run", experiment)
    images.write(tmp_path / "in.png", np.full((9, 9, 1), 100, np.uint8))
    flags = [f"--model={run}", f"--input={tmp_path / 'in.png'}", f"--output={tmp_path / 'out.png'}"]
    assert call(*flags, "--sigma=25") == 0
    assert "warning: --sigma has no effect: gauss25-n2c-mono is not told a noise level" in capsys.readouterr().err
    assert call(*flags) == 0
    assert capsys.readouterr().err == ""
    (tmp_path / "levels.csv").write_text("file,sigma\nin.png,10\n")
    assert call(*flags, f"--levels={tmp_path / 'levels.csv'}") == 0
    assert "warning: --levels has no effect" in capsys.readouterr().err
    assert call(*flags, "--noise_from=set") == 1
    assert "--noise_from=set: gauss25-n2c-mono is not told a noise level" in capsys.readouterr().err


def test_a_table_tells_a_model_that_cannot_fit(run_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(predictor.Predictor, "can_fit", False)
    source, table = write_pictures(tmp_path / "in"), tmp_path / "levels.csv"
    flags = [f"--model={run_dir}", f"--input={source}", f"--output={tmp_path / 'out'}", f"--levels={table}"]
    table.write_text("file,sigma\n1.png,10\n2.png,\nsub/0.png,40\n")
    assert call(*flags) == 1 and "the model must be told the noise level" in capsys.readouterr().err
    table.write_text("file,sigma\n1.png,10\n2.png,20\nsub/0.png,40\n")
    assert call(*flags) == 0


def test_the_networks_of_the_package_are_listed_and_the_default(tmp_path, capsys):
    assert call("--model=list") == 0 and "additive-rgb" in capsys.readouterr().out
    write_pictures(tmp_path / "in", 1)
    assert call(f"--input={tmp_path / 'in'}", f"--output={tmp_path / 'out'}") == 0
    assert names(tmp_path / "out") == ["sub/0.png"] and "sigma" in capsys.readouterr().out
