"""Published folders as members: never rewritten, hashed by their file, and kept by an ensemble.yaml."""

import pytest
import torch

from inference.ensemble_file import EnsembleMember, apply_ensemble_file, ensemble_content
from inference.loading import load_predictor
from inference.rewriting import announce_rewriting
from inference.session import open_inference
from made import make
from options import parse_eval
from utils import checkpoint
from utils.errors import UserError
from utils.files import file_hash, write_yaml

CPU = ["--gpu", "-1", "-w", "0", "-b", "6"]


@pytest.fixture
def published(photo_set, tmp_path, monkeypatch):
    """A folder `out` with a checkpoint of ours as safetensors; the working directory is the one above."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    content = checkpoint.load(make(tmp_path / "best.pt", photo_set))
    checkpoint.save_published(tmp_path / "out/model.safetensors", content, {})
    return tmp_path / "out/model.safetensors"


@pytest.mark.parametrize("source", ["out", "local-dir:out", "out/model.safetensors"])
def test_announce_rewriting_of_published_weights_is_refused(published, photo_set, source):
    before = published.read_bytes()
    run = open_inference(parse_eval(["--load", source, "--data_root", str(photo_set), "--calibrate", *CPU]), "val")
    with pytest.raises(UserError, match=rf"--calibrate .*{source} holds published weights[\s\S]*tools\.publish"):
        announce_rewriting(run)
    assert published.read_bytes() == before


@pytest.mark.parametrize("source", ["out", "local-dir:out"])
def test_load_predictor_of_a_folder_hashes_its_file_of_weights(published, source):
    loaded = load_predictor(parse_eval(["--load", source, *CPU]), torch.device("cpu"))
    assert loaded.hashes == (file_hash(published),)


def test_ensemble_of_folders_and_repositories_names_them_again(published, tmp_path):
    sources = ["out", "local-dir:out", "best.pt", "hf-hub:owner/name@main"]
    members = [EnsembleMember(source, "0", 0.25) for source in sources]
    folder = tmp_path / "results"
    folder.mkdir()
    content = ensemble_content(folder, members, "none")
    assert content["load"] == ["../out", "../out", "../best.pt", "hf-hub:owner/name@main"]
    write_yaml(folder / "ensemble.yaml", {**content, "load": ["local-dir:../out", *content["load"][1:]]})
    asked = parse_eval(["--ensemble", "results/ensemble.yaml", *CPU])
    opt, found = apply_ensemble_file(asked)
    assert opt.load == ["out", "out", "best.pt", "hf-hub:owner/name@main"]
    assert found is not None and found.identities == dict.fromkeys(opt.load, "0") and found.thresholds is None
    assert vars(opt).keys() == vars(asked).keys()  # no option that no parser knows
    published.unlink()
    with pytest.raises(UserError, match="there is no out"):
        apply_ensemble_file(parse_eval(["--ensemble", "results/ensemble.yaml", *CPU]))
