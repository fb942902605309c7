from hypothesis import given
from hypothesis import strategies as st

from cluster.vllm_metrics import parse_signals

PAGE = b"""# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a"} 3.0
vllm:num_requests_running{engine="1",model_name="a} 9"} 2.0 1700000000000
vllm:num_requests_waiting{engine="0",model_name="a"} 1.0
vllm:num_requests_waiting{engine="1",model_name="a"} 0.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="a",reason="capacity"} 70.0
vllm:kv_cache_usage_perc{engine="0",model_name="a"} 0.125
vllm:kv_cache_usage_perc{engine="1",model_name="a"} 5e-1
vllm:prefix_cache_hits_total{engine="0",model_name="a"} 10.0
"""


def test_engines_are_summed_and_the_fullest_cache_counts():
    signals = parse_signals(PAGE, 12.5)
    assert (signals.sampled_at, signals.running, signals.waiting, signals.kv_usage) == (12.5, 5, 1, 0.5)


def test_names_that_are_missing_leave_their_default():
    assert (parse_signals(b"", 1.0).running, parse_signals(b"", 1.0).kv_usage) == (0, -1.0)
    only_usage = parse_signals(b"vllm:kv_cache_usage_perc 0.5", 1.0)
    assert (only_usage.running, only_usage.kv_usage) == (0, 0.5)


def test_values_that_are_no_numbers_are_left_out():
    page = b"vllm:kv_cache_usage_perc NaN\nvllm:num_requests_running +Inf\nvllm:num_requests_waiting{} \n"
    signals = parse_signals(page, 1.0)
    assert (signals.running, signals.waiting, signals.kv_usage) == (0, 0, -1.0)


@given(st.binary(max_size=200), st.sampled_from([b"vllm:num_requests_running", b"vllm:kv_cache_usage_perc"]))
def test_no_page_is_too_broken(noise, name):
    signals = parse_signals(noise + name + noise, 1.0)
    assert signals.running >= 0


def test_only_the_latest_word_on_adapters_counts():
    """vLLM keeps a series for every set of adapters that ever ran; the value is when it did."""
    page = b"""# HELP vllm:lora_requests_info Running stats on lora requests.
vllm:lora_requests_info{max_lora="2",running_lora_adapters="",waiting_lora_adapters=""} 1.7e+09
vllm:lora_requests_info{max_lora="2",running_lora_adapters="law,med",waiting_lora_adapters="law,tax"} 1.7000001e+09
vllm:lora_requests_info{max_lora="2",running_lora_adapters="old",waiting_lora_adapters=""} 1.6e+09
"""
    signals = parse_signals(page, 1.0)
    assert (signals.adapters, signals.adapter_slots) == (("law", "med", "tax"), 2)
    idle = parse_signals(page.replace(b"1.7e+09", b"1.8e+09"), 1.0)
    assert (idle.adapters, idle.adapter_slots) == ((), 2)
    assert parse_signals(PAGE, 1.0).adapters == ()


def test_what_cache_there_is_is_told():
    page = b'vllm:cache_config_info{block_size="16",enable_prefix_caching="True",num_gpu_blocks="100",engine="0"} 1.0\n'
    signals = parse_signals(page, 1.0)
    assert (signals.keeps_prefixes, signals.cache_tokens) == (True, 1600)
    off = page.replace(b"True", b"False").replace(b"{", b'{kv_cache_size_tokens="900",')
    signals = parse_signals(page + off, 1.0)
    assert (signals.keeps_prefixes, signals.cache_tokens) == (False, 2500), "two engines of one server"
    for odd in (
        page.replace(b"100", b"None"),
        page.replace(b"16", b"9" * 5000),
        page.replace(b"{", b'{kv_offloading_size="8.0",'),
    ):
        assert parse_signals(odd, 1.0).cache_tokens == 0
    assert (parse_signals(PAGE, 1.0).keeps_prefixes, parse_signals(PAGE, 1.0).cache_tokens) == (True, 0)


def test_preemptions_are_summed():
    lines = (b'preemptions_total{engine="0"} 3.0', b'preemptions_total{engine="1"} 4.0', b"preemptions_created 9.0")
    assert parse_signals(b"".join(b"vllm:num_%b\n" % line for line in lines), 1.0).preemptions == 7


def test_those_that_wait_for_other_than_room_are_summed_over_engines():
    name = b"vllm:num_requests_waiting_by_reason"
    rows = ((b"0", b"capacity", b"4.0"), (b"0", b"deferred", b"2.0"), (b"1", b"capacity", b"0.0"), (b"1", b"deferred", b"1.0"))
    page = b"".join(b'%b{engine="%b",model_name="a",reason="%b"} %b\n' % (name, *row) for row in rows)
    signals = parse_signals(page + b"vllm:num_requests_waiting 7.0\n", 1.0)
    assert (signals.waiting, signals.deferred) == (7, 3)
    assert parse_signals(PAGE, 1.0).deferred == 0, "that page defers nothing"
