"""The server as a process of its own: answers of the image alone, under load, at its limits, and when it ends."""

import re
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest

from conftest import wait_for
from inference import load
from options import parse_eval
from serving import CLASSES, Server, httpx, picture, save
from tools.serve.checkpoints import CheckpointModel
from tools.serve.shipped.answers import answer_of
from utils.errors import UserError

CLIENTS = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("serve")


@pytest.fixture(scope="module")
def server(folder):
    paths = [save(folder), save(folder, "other", seed=1)]
    paths += [save(folder, "many", "multilabel", seed=2), save(folder, "age", "regression", count=2, seed=3)]
    names = ["best", "other", "many", "age"]
    words = ["--gpu", -1, "--precision", "fp32", "--max_mb", 1, "--max_request_mb", 2, "--max_images", 4]
    server = Server("--load", *paths, "--names", *names, *words, "--max_pixels", 1_000_000, "--upload_seconds", 1)
    yield server
    server.stop(signal.SIGKILL)


@pytest.fixture(scope="module")
def alone(folder, server):
    """Returns the probabilities, float32 (C,), that inference.load gives for an image alone."""
    predictor = load(folder / "best.pt", gpu=-1, precision="fp32")
    return lambda data: predictor(data).probabilities[0]


def probabilities(answer, count=4):
    """Return the row of an answer, float32 (C,)."""
    row = np.zeros(count, np.float32)
    for one in answer["top"]:
        row[one["label"]] = one["probability"]
    return row


# ------------------------------------------------------------------------------------------------ answers


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_predict_one_image_gives_the_bits_of_the_predictor(form, server, alone):
    data = picture(1, form, side=150)
    (answer,) = server.predict(data).json()["answers"]
    assert np.array_equal(probabilities(answer), alone(data))
    assert [one["name"] for one in answer["top"]] == [CLASSES[k] for k in np.argsort(-alone(data))]


def test_predict_top_and_model_choose(server, folder):
    data = picture(2)
    answer = server.predict(data, top=2, model="other").json()
    assert answer["model"] == "other" and len(answer["answers"][0]["top"]) == 2
    expected = load(folder / "other.pt", gpu=-1, precision="fp32")(data)
    assert answer["answers"][0]["top"][0]["name"] == expected.names[0]


def test_predict_of_other_tasks_gives_labels_and_numbers(server):
    labels = server.predict(picture(3), model="many").json()["answers"][0]["top"]
    assert sum(one["probability"] for one in labels) != pytest.approx(1, abs=1e-3)
    assert [one["predicted"] for one in labels] == [one["probability"] >= 0.5 for one in labels]
    values = server.predict(picture(3), model="age").json()["answers"][0]["values"]
    assert [one["name"] for one in values] == CLASSES[:2]
    assert all(abs(one["value"] - 10) < 30 for one in values) and any(abs(one["value"]) > 1 for one in values)


def test_predict_fitted_thresholds_of_the_checkpoint_decide(tmp_path):
    values = [0.1, 0.7, 0.9, 0.3]
    fitted = {"rule": "per_label", "tta": "none", "values": values}
    path = save(tmp_path, "fitted", "multilabel", thresholds=fitted)
    model = CheckpointModel(parse_eval(["--load", str(path), "--gpu", "-1", "--precision", "fp32"]), "fitted", 10**6)
    assert model.thresholds == pytest.approx(values)
    model.thresholds = values
    row = np.array([0.2, 0.7, 0.8, 0.2], np.float32)  # 0.7 of float32 is below that of float64, as eval.py compares
    assert {one.label for one in answer_of(model, "a.png", row, 4).top if one.predicted} == {0}


@pytest.mark.parametrize("temperature", ["2", "ckpt"])
def test_checkpoint_model_temperature_of_numbers_is_refused(temperature, tmp_path):
    """The server answered 1.0 for every image."""
    path = save(tmp_path, "age", "regression", count=1)
    opt = parse_eval(["--load", str(path), "--gpu", "-1", "--temperature", temperature])
    with pytest.raises(UserError, match=f"--temperature is for probabilities; the task of {path} is regression"):
        CheckpointModel(opt, "age", 10**6)


def test_predict_64_clients_each_gets_the_answer_of_its_image_alone(server, alone):
    rounds = 4
    expected = [alone(picture(k)) for k in range(CLIENTS)]
    closest = min(np.abs(one - other).max() for k, one in enumerate(expected) for other in expected[:k])
    assert closest > 1e-4  # an answer that went to another client would be seen

    def client(k):
        found = []
        with httpx.Client() as session:
            for turn in range(rounds):
                mine = [(k + step) % CLIENTS for step in range(1 + (k + turn) % 3)]
                reply = server.predict(*[picture(one) for one in mine], client=session)
                assert reply.status_code == 200, reply.text
                found += list(zip(mine, reply.json()["answers"], strict=True))
        return found

    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = [pair for pairs in pool.map(client, range(CLIENTS)) for pair in pairs]
    assert len(answers) == sum(1 + (k + turn) % 3 for k in range(CLIENTS) for turn in range(rounds))
    for number, answer in answers:
        np.testing.assert_allclose(probabilities(answer), expected[number], rtol=1e-5, atol=1e-7)
    text = httpx.get(f"{server.url}/metrics").text
    images = float(re.search(r'serve_batch_images_sum{model="best"} (\S+)', text)[1])
    batches = float(re.search(r'serve_batch_images_count{model="best"} (\S+)', text)[1])
    assert images > 1.5 * batches  # requests shared batches
    assert "serve_queue_images 0.0" in text


def test_gradcam_is_a_picture_of_the_class(server):
    files = {"images": ("a.png", picture(5))}
    shown = [
        httpx.post(f"{server.url}/gradcam", files=files, params={"label": label}, timeout=None) for label in (0, 1)
    ]
    assert [one.headers["content-type"] for one in shown] == ["image/png"] * 2
    pixels = [cv2.imdecode(np.frombuffer(one.content, np.uint8), cv2.IMREAD_COLOR) for one in shown]
    assert pixels[0].shape == (224, 224, 3) and (pixels[0] != pixels[1]).any()
    first = httpx.post(f"{server.url}/gradcam", files=files, timeout=None)
    likeliest = server.predict(picture(5)).json()["answers"][0]["top"][0]["label"]
    again = httpx.post(f"{server.url}/gradcam", files=files, params={"label": likeliest}, timeout=None)
    assert first.content == again.content
    assert (
        httpx.post(f"{server.url}/gradcam", files=files, params={"label": 4}).json()["error"]["code"] == "no_such_label"
    )


# ------------------------------------------------------------------------------------------------ limits


def bomb():
    """Return a PNG whose header promises 60,000 x 60,000 pixels."""
    data = bytearray(picture(0))
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    return bytes(data)


def cut_tiff():
    """Return a TIFF that ends within its pixels."""
    return picture(0, "TIFF")[:-2000]


REFUSED = {
    "truncated png": ([picture(0)[:-60]], 422, "unreadable_image"),
    "truncated jpeg": ([picture(0, "JPEG", 300)[:-900]], 422, "unreadable_image"),
    "truncated tiff": ([cut_tiff()], 422, "unreadable_image"),
    "bomb": ([bomb()], 422, "unreadable_image"),
    "too many pixels": ([picture(0, "JPEG", 1001)], 422, "unreadable_image"),
    "text": ([b"hello"], 415, "not_an_image"),
    "empty": ([b""], 415, "not_an_image"),
    "no image": ([], 415, "not_multipart"),
    "postscript": ([b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"], 415, "not_an_image"),
    "second is bad": ([picture(0), b"\xff\xd8\xff"], 422, "unreadable_image"),
    "image too large": ([b"\xff\xd8\xff" + bytes(1_000_000)], 413, "image_too_large"),
    "request too large": ([picture(0) + bytes(900_000)] * 3, 413, "request_too_large"),
    "too many images": ([picture(0)] * 5, 413, "too_many_images"),
    "far too many images": ([picture(0)] * 50, 413, "too_many_images"),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_predict_refuses_by_name_what_it_cannot_answer(case, server):
    images, status, code = REFUSED[case]
    reply = server.predict(*images)
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code), reply.text
    assert reply.json()["error"]["message"]
    if case == "second is bad":
        assert reply.json()["error"]["image"] == 1


PART = b'--b\r\nContent-Disposition: form-data; name="images"; filename="a.png"\r\n\r\n'


def raw(server, body, kind="multipart/form-data; boundary=b", **headers):
    return httpx.post(f"{server.url}/predict", content=body, headers={"content-type": kind, **headers}, timeout=None)


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"--b\r\nrubbish", "multipart/form-data; boundary=b", 400),
        (b"x", "multipart/form-data", 400),
        (b"--b--\r\n", "multipart/form-data; boundary=b", 422),
        (
            b'--b\r\nContent-Disposition: form-data; name="other"\r\n\r\nx\r\n--b--\r\n',
            "multipart/form-data; boundary=b",
            422,
        ),
        (
            b'--b\r\nContent-Disposition: form-data; name="images"\r\n\r\nx\r\n--b--\r\n',
            "multipart/form-data; boundary=b",
            422,
        ),
        (
            b'--b\r\nContent-Disposition: form-data; name="\xff\xff"\r\n\r\nx\r\n--b--\r\n',
            "multipart/form-data; boundary=b; charset=punycode",
            400,
        ),
        (
            b'--b\r\nContent-Disposition: form-data; name="\\ud800"\r\n\r\nx\r\n--b--\r\n',
            "multipart/form-data; boundary=b; charset=raw_unicode_escape",
            422,
        ),
        (  # the second image is cut short
            PART + picture(0) + b"\r\n" + PART + picture(0)[:50],
            "multipart/form-data; boundary=b",
            400,
        ),
        (b"{}", "application/json", 415),
    ],
)
def test_predict_bodies_that_are_no_form_get_a_json_error(body, kind, status, server):
    reply = raw(server, body, kind)
    assert reply.status_code == status, reply.text
    assert set(reply.json()["error"]) >= {"code", "message"}


def test_predict_upload_that_stalls_is_ended(server):
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as place:
        place.sendall(
            b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
            b"Content-Length: 1000\r\n\r\n--b\r\n"
        )
        reply = place.makefile("rb").read()
    assert reply.startswith(b"HTTP/1.1 408") and b"slow_upload" in reply


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/predict?model=none", 404, "no_such_model"),
        ("/predict?top=0", 422, "bad_parameter"),
        ("/predict?top=x", 422, "bad_parameter"),
        ("/predict?tpo=3", 422, "bad_parameter"),
        ("/gradcam?top=3", 422, "bad_parameter"),
        ("/nothing", 404, "not_found"),
        ("/models", 405, "method_not_allowed"),
    ],
)
def test_server_wrong_addresses_and_parameters_get_a_json_error(path, status, code, server):
    reply = httpx.post(server.url + path, files={"images": ("a.png", picture(0))})
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)


def test_server_lists_models_and_health(server):
    about = httpx.get(f"{server.url}/models").json()
    assert [one["name"] for one in about["models"]] == ["best", "other", "many", "age"]
    assert about["models"][0]["classes"] == CLASSES and about["models"][0]["gradcam"]
    assert about["max_images"] == 4 and about["max_image_bytes"] == 1_000_000
    assert httpx.get(f"{server.url}/health/live").json() == {"status": "live"}
    assert httpx.get(f"{server.url}/health/ready").json() == {"status": "ready"}


# ------------------------------------------------------------------------------------------------ the description

schemathesis = pytest.importorskip("schemathesis")


@pytest.mark.slow
def test_openapi_description_holds_for_generated_requests(server):
    from hypothesis import HealthCheck, given, settings, strategies

    images = strategies.sampled_from([picture(0), picture(1, "JPEG")]) | strategies.binary(max_size=200)
    schemathesis.openapi.format("binary", images)
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    # a description cannot say which bytes are an image
    left_out = [one for one in schemathesis.checks.CHECKS.get_all() if "positive_data" in one.__name__]
    seen = set()
    for result in schema.get_all_operations():
        operation = result.ok()

        @settings(
            max_examples=25, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
        )
        @given(case=operation.as_strategy())
        def check(case):
            reply = case.call()
            seen.add((case.path, reply.status_code))
            case.validate_response(reply, excluded_checks=left_out)

        check()
    assert {path for path, _ in seen} == {
        "/predict",
        "/gradcam",
        "/models",
        "/health/live",
        "/health/ready",
        "/metrics",
    }
    assert ("/predict", 200) in seen and max(status for _, status in seen) < 500


# ------------------------------------------------------------------------------------------------ the end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_server_signal_under_load_answers_every_accepted_request(number, folder):
    server = Server("--load", save(folder, "one"), "--gpu", -1, "--precision", "fp32", "--max_batch", 8)
    answered, many = [], threading.Event()

    def client(k):
        """Send requests until the server refuses one."""
        with httpx.Client() as session:
            while True:
                try:
                    reply = server.predict(picture(k), picture(k + 1), client=session)
                except httpx.TransportError:
                    return "closed"
                if reply.status_code == 503:
                    return reply.json()["error"]["code"]
                assert reply.status_code == 200 and len(reply.json()["answers"]) == 2
                answered.append(k)
                if len(answered) >= 60:
                    many.set()

    with ThreadPoolExecutor(16) as pool:
        ends = [pool.submit(client, k) for k in range(16)]
        assert many.wait(600)
        code, out = server.stop(number)
        assert {one.result() for one in ends} <= {"closed", "shutting_down"}
    assert code == 0, out
    accepted, done = map(int, re.search(r"(\d+) requests accepted, (\d+) answered", out).groups())
    assert accepted == done == len(answered)


def test_server_upload_under_way_at_sigterm_is_answered_and_a_new_client_refused(folder):
    server = Server("--load", save(folder, "slow"), "--gpu", -1, "--precision", "fp32")
    body = PART + picture(1) + b"\r\n--b--\r\n"
    host, port = server.url.removeprefix("http://").split(":")
    head = "POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    head += f"Content-Length: {len(body)}"
    with socket.create_connection((host, int(port))) as place:
        place.sendall(head.encode() + b"\r\n\r\n" + body[:100])
        wait_for(lambda: "serve_queue_images 1.0" in httpx.get(f"{server.url}/metrics").text)
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: not takes_connections(host, int(port)))
        place.sendall(body[100:])
        reply = place.makefile("rb").read()
    assert reply.startswith(b"HTTP/1.1 200") and b"probability" in reply
    code, out = server.stop()
    assert code == 0 and "1 requests accepted, 1 answered" in out


def takes_connections(host, port):
    try:
        socket.create_connection((host, port)).close()
    except OSError:
        return False
    return True
