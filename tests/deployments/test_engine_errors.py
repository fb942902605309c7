from pathlib import Path

import pytest

from deployments.engine_errors import explain_start_failure, find_cause, meaningful_lines


@pytest.mark.parametrize(
    ("log", "advice"),
    [
        ("api_server.py: error: unrecognized arguments: --foo 1", "does not accept: --foo 1"),
        ("api_server.py: error: argument --max-model-len: invalid int", "argument --max-model-len: invalid int"),
        ("api_server.py: error: ambiguous option: --enable could match", "ambiguous option: --enable"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", "nvidia-smi"),
        (
            "ValueError: Free memory on device (1/8 GiB) on startup is less than desired GPU memory utilization",
            "nvidia",
        ),
        ("ValueError: No available memory for the cache blocks.", "KV cache"),
        ("RuntimeError: [enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory", "fewer engines"),
        ("OSError: [Errno 12] Cannot allocate memory", "fewer engines"),
        (
            "RuntimeError: Insufficient space in /dev/shm for shared-memory allocation: 160 MiB required.",
            "--shm-size",
        ),
        ("OSError: [Errno 28] No space left on device: '/srv/x'", "df -h"),
        ("OSError: [Errno 98] Address already in use", "TIDEGATE_ENGINE_PORTS"),
        ("ModuleNotFoundError: No module named 'router'", "guard"),
        ("/usr/bin/python: Error while finding module (ModuleNotFoundError: No module named 'vllm')", "not installed"),
        ("huggingface_hub.errors.RepositoryNotFoundError: 404", "`source`"),
    ],
)
def test_failures_known_from_experience_name_the_next_step(log, advice):
    assert advice in str(find_cause(log))


def test_the_lines_that_matter():
    log = "\n".join(
        [
            "usage: api_server.py [-h] [--headless]",
            "                     [--model MODEL]",
            "(APIServer pid=7) INFO 11-22 loading",
            "(EngineCore pid=9) (Worker pid=10) Traceback (most recent call last):",
            '(EngineCore pid=9)   File "/x/y.py", line 3, in run',
            "(EngineCore pid=9)     ^^^^^^^",
            "",
            "ValueError: too big",
            "ValueError: too big",
        ]
    )
    assert meaningful_lines(log) == ["INFO 11-22 loading", "Traceback (most recent call last):", "ValueError: too big"]
    assert len(meaningful_lines("\n".join(f"line {i}" for i in range(100)))) == 15
    assert max(map(len, meaningful_lines("x" * 5000))) == 300


def test_the_error_names_log_and_step(tmp_path):
    log = tmp_path / "engine.log"
    log.write_text("something odd\n")
    text = str(explain_start_failure("m", log, 3, 12.0))
    assert "`m` ended with exit code 3 after 12 s" in text and str(log) in text and "something odd" in text
    assert "dmesg" in str(explain_start_failure("m", Path("/nowhere"), -9, 1.0))
    assert "startup_timeout_s" in str(explain_start_failure("m", log, None, 1.0))
