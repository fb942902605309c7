"""Traces as they are published: each format gives requests with the lengths, times and shared beginnings that it tells."""

from __future__ import annotations

import gzip
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.simulation.trace import TraceError, link_turns, read_trace

MOONCAKE = [
    {"timestamp": 0, "input_length": 1100, "output_length": 52, "hash_ids": [46, 47, 48]},
    {"timestamp": 3000, "input_length": 1700, "output_length": 8, "hash_ids": [46, 47, 9, 10]},
    {"timestamp": 6000, "input_length": 600, "output_length": 1, "hash_ids": [90, 47]},
]
AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,4808,10
2023-11-16 18:17:04.0319600,3180,8
2023-11-16 18:17:05.0781490,110,27
"""
AZURE_2024 = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 00:00:00.009930+00:00,2162,5\n2024-05-10 00:00:01.017335+00:00,2399,6\n"
)
BURST = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,ChatGPT,1087,230,1317,Conversation log
118,GPT-4,417,0,417,"API log, failed"
"""
BURST_2 = (
    "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n5.5,a,1.2,GPT-4,472,18,490,x\n"
)


def written(folder, text, name="trace"):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize("packed", [False, True])
def test_mooncakes_blocks_are_shared_from_the_beginning_or_not_at_all(tmp_path, packed):
    text = lines(MOONCAKE).encode()
    first, second, third = read_trace(written(tmp_path, gzip.compress(text) if packed else text))
    assert [row[:3] for row in (first, second, third)] == [(0.0, 1100, 52), (3.0, 1700, 8), (6.0, 600, 1)]
    assert first[3][:2] == second[3][:2] and first[3][2] not in second[3]
    assert not set(third[3]) & set(first[3]), "47 stands behind another beginning there"
    assert [len(row[3]) for row in (first, second, third)] == [3, 4, 2]


def test_blocks_of_16_tokens_become_ours_and_times_with_a_point_are_seconds(tmp_path):
    ids = list(range(130))
    rows = [
        {
            "chat_id": 1,
            "parent_chat_id": -1,
            "timestamp": 0.0,
            "input_length": 2070,
            "output_length": 9,
            "type": "text",
            "hash_ids": ids,
        },
        {
            "chat_id": 2,
            "timestamp": 61.114,
            "input_length": 2170,
            "output_length": 5,
            "hash_ids": [*ids[:129], 700, *range(800, 806)],
        },
        {"chat_id": 3, "timestamp": 70.5, "input_length": 530, "output_length": 5, "hash_ids": [*ids[:31], 999, 1000, 1001]},
    ]
    first, second, third = read_trace(written(tmp_path, lines(rows)))
    assert (first[0], second[0], third[0]) == (0.0, 61.114, 70.5)
    assert [len(row[3]) for row in (first, second, third)] == [5, 5, 2]
    assert first[3][:4] == second[3][:4] and first[3][4] != second[3][4]
    assert not set(third[3]) & set(first[3]), "one token in the first block differs"


def test_objects_without_hashes_share_nothing(tmp_path):
    rows = [{"timestamp": 10 * i, "input_length": 600, "output_length": 3} for i in range(3)]
    blocks = [block for row in read_trace(written(tmp_path, lines(rows))) for block in row[3]]
    assert len(blocks) == len(set(blocks)) == 6


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (AZURE, [(0.0, 4808, 10), (0.052, 3180, 8), (1.098189, 110, 27)]),
        (AZURE_2024, [(0.0, 2162, 5), (1.007405, 2399, 6)]),
        (BURST, [(0.0, 472, 18), (40.0, 1087, 230)]),
        (BURST_2, [(0.0, 472, 18)]),
        ("\ufeff" + BURST.replace("\n", "\r\n"), [(0.0, 472, 18), (40.0, 1087, 230)]),
        ("timestamp_ms,prompt_tokens,output_tokens\n100,512,128\n350.5,20,1\n", [(0.0, 512, 128), (0.2505, 20, 1)]),
        ("arrived_at,num_prefill_tokens,num_decode_tokens\n0.5,374.0,44.0\n2,396,109\n", [(0.0, 374, 44), (1.5, 396, 109)]),
    ],
)
def test_tables_as_azure_burstgpt_and_vidur_publish_them(tmp_path, text, expected):
    rows = read_trace(written(tmp_path, text, "trace.csv"))
    assert [(round(row[0], 6), *row[1:3]) for row in rows] == expected
    assert all(len(row[3]) == -(-row[1] // 512) for row in rows) and not any(request.children for request in link_turns(rows))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "nothing in it"),
        ("\n \n", "nothing in it"),
        ("a,b,c\n1,2,3\n", ":1: neither JSON nor"),
        (AZURE + "2023-11-16 18:17:06,12\n", ":5: not a row"),
        (AZURE + "yesterday,12,3\n", ":5: not a row"),
        (AZURE + "2023-11-16 18:17:06,nan,3\n", ":5: not a row"),
        (AZURE + "2023-11-16 18:17:06,99999999999,3\n", ":5: not a row"),
        (BURST + "1e999,ChatGPT,1,2,3,x\n", ":5: not a row"),
        (lines(MOONCAKE) + "[1]\n", ":4: not {"),
        (lines(MOONCAKE) + '{"timestamp": 1, "input_length": -5, "output_length": 1}\n', ":4: not {"),
        (lines([{**MOONCAKE[0], "hash_ids": [1]}]), "fit no blocks"),
        ("[0,1,2,[0,1]]\n[0,1,2,[0,99999999999]]\n", ":2: not \\[time"),
        (b"[0,1,2,[0,1]]\n\xff\n", ":2: this line is not UTF-8"),
        (gzip.compress(lines(MOONCAKE).encode())[:-20], "damaged"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, text, said):
    with pytest.raises(TraceError, match=said):
        read_trace(written(tmp_path, text))


@given(st.text(max_size=200) | st.binary(max_size=200))
def test_any_other_file_is_refused_or_read_and_never_breaks(tmp_path_factory, content):
    path = written(tmp_path_factory.mktemp("any"), content)
    try:
        rows = read_trace(path)
    except TraceError:
        return
    assert all(len(row) == 4 for row in rows)


def test_a_shuffled_file_is_read_in_order_of_arrival(tmp_path):
    rows = [{"timestamp": 100 * i, "input_length": 600 + i, "output_length": 3} for i in range(60)]
    random.Random(1).shuffle(rows)
    assert [row[1] for row in read_trace(written(tmp_path, lines(rows)))] == list(range(600, 660))
