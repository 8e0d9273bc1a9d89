"""Which device, and what is said of it: torch.cuda is a fake here, with as many GPUs as a test wants."""

import sys
import types

import pytest
import torch

from evaluation.report.page import provenance
from network.precision import resolve_precision
from utils import run
from utils.errors import UserError
from utils.run import get_device, seed_everything


class Cuda:
    """GPUs by name; those of the "A" kind have bf16. What is asked of the current device is answered for it."""

    def __init__(self, monkeypatch, *names, reason="Found no NVIDIA driver on your system. Please check"):
        self.names, self.current, self.reason = names, 0, reason
        for name in ("is_available", "init", "device_count", "set_device", "get_device_name", "is_bf16_supported"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: self.current > 0)
        monkeypatch.setattr("utils.logger.log.propagate", True)
        monkeypatch.setattr(run, "GPU_FILES", "/no/such/file")

    def is_available(self):
        return bool(self.names)

    def init(self):
        raise RuntimeError(self.reason)

    def device_count(self):
        return len(self.names)

    def set_device(self, gpu):
        self.current = gpu

    def get_device_name(self, device=None):
        return self.names[self.current if device is None else torch.device(device).index]

    def is_bf16_supported(self, including_emulation=True):
        return including_emulation or self.names[self.current].startswith("A")


def test_get_device_of_second_gpu_reports_that_gpu(monkeypatch):
    """Its precisions, and its name in the report: of GPU 0 both were."""
    Cuda(monkeypatch, "V100", "A100")
    model = types.SimpleNamespace(device=get_device(1))
    assert model.device == torch.device("cuda", 1)
    assert resolve_precision(model, "auto") == ("bf16", "the GPU has it")
    assert provenance()["torch"].endswith("A100")
    assert get_device(None) == torch.device("cuda", 0)
    with pytest.raises(UserError, match="--gpu is 2; allowed: 0 to 1"):
        get_device(2)


def test_provenance_on_cpu_names_no_gpu(monkeypatch):
    Cuda(monkeypatch, "V100")
    assert get_device(-1).type == "cpu"
    assert provenance()["torch"].endswith("CPU")


@pytest.mark.parametrize(
    ("files", "visible", "level"),
    [("/dev/null", None, "WARNING"), ("/no/such/file", None, "INFO"), ("/dev/null", "", "INFO")],
)
def test_get_device_of_unusable_gpu_warns_with_reason(monkeypatch, caplog, files, visible, level):
    Cuda(monkeypatch, reason="The NVIDIA driver on your system is too old (found version 9010). Please\nupdate")
    monkeypatch.setattr(run, "GPU_FILES", files)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)  # `make test` sets it
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    caplog.set_level("INFO")
    assert get_device(None).type == "cpu"
    assert [record.levelname for record in caplog.records] == [level]
    assert ("driver on your system is too old" in caplog.text) == (level == "WARNING")
    for gpu in (0, 1):  # and who asks for one by its number does not get the CPU
        with pytest.raises(UserError, match=rf"--gpu is {gpu}.*too old"):
            get_device(gpu)


def test_get_device_under_torchrun_gives_each_process_a_gpu(monkeypatch, caplog):
    cuda = Cuda(monkeypatch, "A100", "A100")
    monkeypatch.setattr("sys.argv", ["train.py", "--tag", "x y"])
    for name, value in (("WORLD_SIZE", "3"), ("LOCAL_WORLD_SIZE", "3"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert get_device(None) == torch.device("cuda", 1) and cuda.current == 1
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(
        UserError, match=r"3 processes on a machine with 2 GPUs.\nTry: torchrun --nproc_per_node=2 train.py --tag 'x y'"
    ):
        get_device(None)
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert get_device(1) == torch.device("cuda", 0)
    assert "--gpu 1 is ignored" in caplog.text


def test_resolve_precision_on_resume_keeps_it_unless_emulated(monkeypatch, caplog):
    """On the same kind of machine it is exact."""
    Cuda(monkeypatch, "V100", "A100")
    caplog.set_level("INFO")
    kept = {}
    for device in ("V100", "A100", "cpu"):
        model = types.SimpleNamespace(device=get_device({"V100": 0, "A100": 1, "cpu": -1}[device]), net=None)
        model.settings = types.SimpleNamespace(scale=32, batch_size=4)
        monkeypatch.setattr("network.precision.fastest_for_training", lambda *_: ("fp32", "timed"))
        kept[device] = [resolve_precision(model, precision, kept=True)[0] for precision in ("fp32", "bf16", "fp16")]
    assert kept == {"V100": ["fp32", "fp16", "fp16"], "A100": ["fp32", "bf16", "fp16"], "cpu": ["fp32", "bf16", "fp32"]}
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    resumes = "it resumes in another precision, no longer equal to the uninterrupted run."
    assert said == [
        f"The run used bf16, which V100 emulates: {resumes}",
        f"The run used fp16, which the CPU emulates: {resumes}",
    ]
    caplog.clear()
    get_device(0)
    model.device = torch.device("cuda", 0)
    assert resolve_precision(model, "bf16")[0] == "bf16"  # as it was asked for, and said to be slow
    assert "V100 emulates bf16" in caplog.text


@pytest.mark.parametrize(("gpu", "deterministic", "wanted"), [(0, False, True), (0, True, False), (-1, False, False)])
def test_tf32_on_gpu_is_on_unless_deterministic(monkeypatch, gpu, deterministic, wanted):
    """Whichever is called first."""
    Cuda(monkeypatch, "A100")
    calls = [lambda: get_device(gpu), lambda: seed_everything(1, deterministic)]
    convolutions = torch.backends.cudnn.allow_tf32
    assert convolutions
    try:
        for order in (calls, calls[::-1]):
            for call in order:
                call()
            assert torch.backends.cuda.matmul.allow_tf32 is wanted
            assert torch.backends.cudnn.allow_tf32 is not deterministic
            torch.backends.cuda.matmul.allow_tf32 = False
            torch.backends.cudnn.allow_tf32 = convolutions
            torch.use_deterministic_algorithms(False)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = convolutions
        torch.use_deterministic_algorithms(False)


@pytest.fixture
def mallopt(monkeypatch):
    """What is set of malloc: (parameter, value)."""
    calls = []
    libc = types.SimpleNamespace(mallopt=lambda *words: calls.append(words))
    monkeypatch.setattr(run.ctypes, "CDLL", lambda name: libc)
    return calls


def test_get_device_leaves_malloc_unchanged(mallopt):
    assert get_device(-1).type == "cpu"
    assert mallopt == []


def test_run_command_tunes_malloc_before_the_work(mallopt, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    seen = []
    code = run.run_command(lambda _: types.SimpleNamespace(tag="t"), lambda opt: seen.extend(mallopt))
    assert code == 0 and {parameter for parameter, _ in seen} == {run.M_MMAP_THRESHOLD, run.M_TRIM_THRESHOLD}


def test_too_few_gpus_of_a_module_name_the_module(monkeypatch):
    """torchrun -m tools.embed: the path of the file cannot be run by itself."""
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr("sys.argv", ["/x/tools/embed.py", "--load", "a.pt"])
    spec = types.SimpleNamespace(name="tools.embed")
    module, script = types.SimpleNamespace(__spec__=spec, __file__="/x/tools/embed.py"), types.SimpleNamespace()
    for main, wanted in ((module, "-m tools.embed"), (script, "/x/tools/embed.py")):
        monkeypatch.setitem(sys.modules, "__main__", main)
        with pytest.raises(UserError, match=rf"Try: torchrun --nproc_per_node=1 {wanted} --load a\.pt"):
            run._own_gpu(0, 1)
