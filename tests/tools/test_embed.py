"""Features are what the classifier reads, neighbours are the nearest there are, votes are their formula."""

import csv
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from inference import features, saved_probs
from tools import embed
from utils import checkpoint
from utils.errors import UserError


@pytest.fixture(scope="module")
def points():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(60, 16)).astype(np.float32)
    rows[7] = rows[3]
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_neighbours_equal_all_pairs(points):
    pool, queries = points[:40], points[40:]
    near, cosine = embed.neighbours(queries, pool, 5, np.ones(40, bool))
    every = queries @ pool.T
    assert near.tolist() == np.argsort(-every, axis=1)[:, :5].tolist()
    assert cosine == pytest.approx(np.take_along_axis(every, near, 1), abs=1e-6)


def test_neighbours_exclude_self_and_unreadable(points):
    readable = np.ones(60, bool)
    readable[[0, 11]] = False
    near, _ = embed.neighbours(points, points, 58 - 1, readable, np.arange(60))
    assert all(k not in near[k] for k in range(60))
    assert not {0, 11} & set(near.ravel().tolist())
    assert near[3, 0] == 7 and near[7, 0] == 3
    with pytest.raises(UserError, match="allowed: 1 to 57"):
        embed.neighbours(points, points, 58, readable, np.arange(60))


def test_neighbours_of_images_listed_again_are_other_images(points):
    """Rows 3, 20 and 41 are one image: in a list that is doubled, its label would vote for itself."""
    image = np.arange(60)
    image[[20, 41]] = 3
    rows = points[np.where(image == 3, 3, np.arange(60))]
    readable = np.ones(60, bool)
    near, cosine = embed.neighbours(rows, rows, 57, readable, image)
    every = rows @ rows.T
    for k in range(60):
        others = [place for place in np.argsort(-every[k], kind="stable") if image[place] != image[k]][:57]
        assert cosine[k] == pytest.approx(every[k, others], abs=1e-6)
        assert not (image[near[k]] == image[k]).any() and len(set(near[k].tolist())) == 57
    with pytest.raises(UserError, match="allowed: 1 to 57"):
        embed.neighbours(rows, rows, 58, readable, image)


def test_knn_vote_weighs_by_cosine():
    votes = embed.knn_vote(np.array([[2, 0, 2]], np.int32), np.array([[0.9, 0.8, 0.7]], np.float32), 4)
    weight = np.exp(np.array([0.9, 0.8, 0.7]) / 0.07)
    assert votes[0] == pytest.approx(np.array([weight[1], 0, weight[0] + weight[2], 0]) / weight.sum(), rel=1e-4)


def test_embed_without_faiss_names_the_package(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert embed.main(["--load", "x.pt", "--list", "none.txt", "--neighbours", "3"]) == 2
    assert "Try: python -m pip install faiss-cpu" in capsys.readouterr().err


def test_embed_neighbours_of_an_unlabelled_list_alone_are_refused_before_the_work(capsys):
    pytest.importorskip("faiss")
    assert embed.main(["--load", "x.pt", "--list", "none.txt", "--unlabelled", "--neighbours", "3"]) == 2
    assert "needs --among LIST" in capsys.readouterr().err


class Reading(torch.nn.Module):
    """A network of one layer, as timm's are asked for it."""

    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(6, 3)

    def get_classifier(self):
        return self.fc


@pytest.mark.parametrize("block", [7, 1000])
def test_features_neighbours_in_blocks_equal_all_pairs(points, monkeypatch, block):
    monkeypatch.setattr(features, "BLOCK_ROWS", block)
    count, net = len(points), Reading()
    net.fc = torch.nn.Linear(points.shape[1], 3)
    predictor = SimpleNamespace(members=[SimpleNamespace(model=SimpleNamespace(net=net))])
    readable = np.arange(count) % 5 > 0
    with features.Features(predictor, count, np.float32) as found:
        for part in torch.from_numpy(points * np.linspace(1, 9, count, dtype=np.float32)[:, None]).split(11):
            net.fc(part)
            net.fc(part.flip(0))  # a second view, which does not count
            found.add(found.take(len(part)))
    net.fc(torch.from_numpy(points))  # outside of the `with` nothing is kept
    assert np.allclose(found.rows, points, atol=1e-6)
    places = np.array([0, 3, 20, count - 1])
    near = found.nearest_neighbours(places, readable, np.arange(count), 4)
    cosine = points @ points.T
    for place in places.tolist():
        others = [k for k in np.argsort(-cosine[place]) if readable[k] and k != place][:4]
        assert [other for other, _ in near[place]] == others
        assert [value for _, value in near[place]] == pytest.approx(cosine[place, others], abs=1e-5)


@pytest.mark.parametrize("block", [7, 1000])
def test_nearest_of_images_listed_again_are_distinct_and_never_the_image_itself(points, monkeypatch, block):
    monkeypatch.setattr(features, "BLOCK_ROWS", block)
    image = np.concatenate([np.arange(len(points)), np.arange(len(points))[::-1]])
    readable = np.ones(len(image), bool)
    readable[1] = False  # its other line is readable
    found = features.nearest(points[image], np.array([0, 5, len(image) - 1]), readable, image, 6)
    cosine = points @ points.T
    for place, near in found.items():
        others = [k for k in np.argsort(-cosine[image[place]]) if k != image[place]][:6]
        assert [image[other] for other, _ in near] == others and all(readable[other] for other, _ in near)


def test_features_without_one_linear_layer_are_absent(monkeypatch):
    monkeypatch.setattr(features, "MAX_BYTES", 100)
    for net, rows in ((Reading(), None), (torch.nn.Sequential(), None)):
        with features.Features(SimpleNamespace(members=[SimpleNamespace(model=SimpleNamespace(net=net))]), 50) as found:
            if isinstance(net, Reading):
                net.fc(torch.zeros(4, 6))
            assert found.take(4) is None
        assert found.rows is rows
        assert found.nearest_neighbours(np.array([1]), np.ones(4, bool), np.arange(4), 2) == {}
    with features.Features(SimpleNamespace(members=[]), 50) as found:  # saved probabilities alone
        assert found.take(4) is None
    assert found.rows is None


def test_embed_command_writes_features_and_neighbours(script, photo_set, small, tmp_path, capfd):
    done = script("train.py", "--tag", "run", "--data_root", photo_set, "--epochs", 1, *small, "--model", "ResNet18")
    assert done.code == 0
    load, out = "checkpoints/run/last.pt", tmp_path / "out"
    lists = ["--list", photo_set / "val.txt", "--among", photo_set / "train.txt"]
    words = [*lists, "--load", load, *"--gpu -1 -w 0 -b 5".split()]
    assert embed.main([str(word) for word in [*words, "--neighbours", 4, "--out", out]]) == 0
    features = np.load(out / "features.npy")
    assert features.shape == (12, 512)
    assert np.linalg.norm(features, axis=1) == pytest.approx(1, abs=1e-5)

    # the classifier over these features, up to each row's length, gives the network's own classes
    content = checkpoint.load(tmp_path / load)
    done = script(
        "eval.py", "--tag", "e", "--load", load, "--data_root", photo_set, "--gpu", -1, "-w", 0, "--save_probs"
    )
    assert done.code == 0
    own = saved_probs.read(str(tmp_path / "results/e/run_1/probs.npz")).values.astype(np.float32)
    weight, bias = content["weights"]["fc.weight"], content["weights"]["fc.bias"]
    log_p = torch.from_numpy(own) - bias
    logits = torch.from_numpy(features) @ weight.T
    angle = [torch.atan2(z[:, 0] - z[:, 1], z[:, 0] - z[:, 2]) for z in (log_p, logits)]
    assert (angle[0] - angle[1]).abs().max() < 0.05  # float16

    with open(out / "neighbours.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 48 and {row["rank"] for row in rows} == {"1", "2", "3", "4"}
    assert all("train_" in row["neighbour"] for row in rows)
    assert (out / "neighbours.png").read_bytes()[:4] == b"\x89PNG"
    blended = script(
        "eval.py", "--tag", "b", "--load", load, out / "knn.npz", "--data_root", photo_set, "--gpu", -1, "-w", 0
    )
    assert blended.code == 0, blended.err

    capfd.readouterr()  # another list, without neighbours: those of the first would pass as belonging to it
    alone = [*words[4:], "--list", photo_set / "train.txt", "--out", out]
    assert embed.main([str(word) for word in alone]) == 0
    said = capfd.readouterr().out
    assert {path.name for path in out.iterdir()} == {"features.npy", "features.csv"}
    assert all(f"{out}/{name}" in said.partition("Removed, of an earlier run: ")[2] for name in embed.OUTPUTS[2:])

    again = tmp_path / "again.txt"
    again.write_text(2 * (photo_set / "val.txt").read_text())
    top1 = {}
    for twice, path in ((False, photo_set / "val.txt"), (True, again)):
        capfd.readouterr()
        own = ["--list", path, "--neighbours", 2 if twice else 1, "--out", tmp_path / path.stem, *words[-8:]]
        assert embed.main([str(word) for word in own]) == 0
        said = capfd.readouterr()
        assert (f"12 image(s) of {path} are listed again; no line of an image" in said.out + said.err) == twice
        assert (said.out + said.err).count(
            f"12 of 24 lines of {path} name an image that an earlier line names"
        ) == twice
        top1[twice] = re.search(r"kNN top1 (\S+)", said.out)[1]
    assert top1[True] == top1[False]  # each neighbour twice; an image that voted for itself scored 1.0

    both = tmp_path / "both.txt"
    both.write_text("".join((photo_set / f"{name}.txt").read_text() for name in ("train", "val")))
    capfd.readouterr()
    words[words.index("--among") + 1] = both
    assert embed.main([str(word) for word in [*words, "--neighbours", 4, "--out", tmp_path / "no"]]) == 2
    assert f"12 of 12 images of {photo_set}/val.txt are in --among {both} too" in capfd.readouterr().err

    (tmp_path / "bad.jpg").write_text("no image")
    (tmp_path / "some.txt").write_text("bad.jpg 0\n" + (photo_set / "val.txt").read_text())
    for among in ([], ["--among", photo_set / "train.txt"]):  # an unreadable image had the neighbours of a blank one
        some = ["--load", load, "--list", tmp_path / "some.txt", "--neighbours", 2, "--out", tmp_path / "some", *among]
        assert embed.main([str(word) for word in [*some, *words[-6:]]]) == 0
        assert "so it has no features and no neighbours: " in "".join(capfd.readouterr())
        rows = np.load(tmp_path / "some/features.npy")
        assert np.isnan(rows[0]).all() and np.linalg.norm(rows[1:], axis=1) == pytest.approx(1, abs=1e-5)
        with open(tmp_path / "some/neighbours.csv") as file:
            found = [(Path(row["path"]).name, Path(row["neighbour"]).name) for row in csv.DictReader(file)]
        assert len(found) == 24 and "bad.jpg" not in {name for pair in found for name in pair}
        assert all(name != other for name, other in found)
    (tmp_path / "bad.txt").write_text("bad.jpg 0\n")
    before = (out / "features.npy").stat().st_mtime_ns
    capfd.readouterr()
    words = ["--load", load, "--list", tmp_path / "bad.txt", "--out", out, *words[-6:]]
    assert embed.main([str(word) for word in words]) == 2
    assert "None of the 1 images" in capfd.readouterr().err and (out / "features.npy").stat().st_mtime_ns == before


def test_features_and_their_table_are_replaced_together(tmp_path, monkeypatch):
    """A disk that was full after the features left them beside the paths of an earlier list."""
    from dataloader.file_list import FileList

    first, second = (FileList.of_paths([f"/x/{name}{k}.png" for k in range(3)], "list") for name in "ab")
    rows = np.arange(6, dtype=np.float32).reshape(3, 2)
    embed.write_features(tmp_path, rows, first)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert before["features.csv"].splitlines()[:2] == [b"row,path,label", b"0,/x/a0.png,-1"]

    def full(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(embed.tables, "writer", full)
        with pytest.raises(OSError, match="No space left"):
            embed.write_features(tmp_path, rows + 1, second)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    embed.write_features(tmp_path, rows + 1, second)
    assert np.array_equal(np.load(tmp_path / "features.npy"), rows + 1)
    assert b"b0.png" in (tmp_path / "features.csv").read_bytes()
