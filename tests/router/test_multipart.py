"""Forms: what clients write is read, what two parsers could read differently is refused, and the file is never touched."""

from __future__ import annotations

import httpx
import openai
import pytest

from router.wire.errors import ApiError
from router.wire.multipart import MAX_PARTS, parse_form
from tests.router.conftest import KEY, open_front_door

TYPE = b"multipart/form-data; boundary=xx"
SOUND = b"RIFF\x00\r\n--x\r\n\r\n--xy\xff" * 50


def part(disposition: bytes, content: bytes, *headers: bytes) -> bytes:
    head = b"\r\n".join((b"Content-Disposition: " + disposition, *headers))
    return b"--xx\r\n" + head + b"\r\n\r\n" + content + b"\r\n"


MODEL = part(b'form-data; name="model"', b"m")
FILE = part(b'form-data; name="file"; filename="a \\"b\\".wav"', SOUND, b"Content-Type: audio/wav")
END = b"--xx--\r\n"


def test_the_model_is_found_behind_the_file_and_only_its_bytes_change():
    body = FILE + part(b'form-data; name="prompt"', "Größe".encode()) + MODEL + END
    form = parse_form(body, TYPE)
    assert form.fields == {"model": "m", "prompt": "Größe"}
    assert form.with_model("m") is form.body
    assert form.with_model("whisper-large") == body.replace(b"\r\n\r\nm\r\n", b"\r\n\r\nwhisper-large\r\n")


def test_what_httpx_writes_is_read():
    request = httpx.Request("POST", "http://x", data={"model": "m", "language": "de"}, files={"file": ("ü.wav", SOUND)})
    form = parse_form(request.read(), request.headers["content-type"].encode())
    assert form.fields == {"model": "m"}


def test_what_dot_net_writes_is_read():
    """`MultipartFormDataContent`: quotes around the boundary, none around names that need none."""
    file = part(b"form-data; name=file; filename=a.wav; filename*=utf-8''a.wav", SOUND)
    form = parse_form(part(b"form-data; name=model", b"m") + file + END, b'multipart/form-data; boundary="xx"')
    assert form.fields == {"model": "m"} and form.with_model("w").count(SOUND) == 1
    assert b"name=model\r\n\r\nw\r\n--xx" in form.with_model("w")


@pytest.mark.parametrize(
    "kind",
    [
        b"multipart/form-data;charset=UTF-8;boundary=xx",
        b'multipart/form-data; boundary="xx"; charset=utf-8',
        b'multipart/form-data; charset="UTF-8"; boundary=xx',
    ],
)
def test_what_spring_and_apaches_client_write_is_read(kind: bytes):
    model = part(b'form-data; name="model"', b"m", b"Content-Type: text/plain;charset=UTF-8", b"Content-Length: 1")
    form = parse_form(model + FILE + END, kind)
    assert form.fields == {"model": "m"} and form.content_type == kind


def test_only_fields_of_lists_may_stand_there_twice():
    words, segments = (part(b'form-data; name="timestamp_granularities[]"', value) for value in (b"word", b"segment"))
    assert parse_form(MODEL + words + segments + END, TYPE).body.count(b"granularities[]") == 2
    with pytest.raises(ApiError, match="twice"):
        parse_form(MODEL + part(b'form-data; name="language"', b"de") * 2 + END, TYPE)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "begin"),
        (b"preamble\r\n" + MODEL + END, "begin"),
        (MODEL, "line end|end is missing"),
        (MODEL + b"--xx", "line end"),
        (MODEL[:-2], "end is missing"),
        (MODEL + END + b"epilogue", "follows"),
        (MODEL + MODEL + END, "twice"),
        (part(b'form-data; name=model"', b"m") + END, "no plain name"),
        (part(b"form-data; name=mo del", b"m") + END, "no plain name"),
        (part(b"form-data; name=model; name=file", b"m") + END, "no plain name"),
        (part(b"form-data; name=model; filename=a b", b"m") + END, "no plain name"),
        (part(b"form-data; name=", b"m") + END, "no plain name"),
        (part(b"form-data; name=model", b"m") + MODEL + END, "twice"),
        (part(b"form-data; name*=utf-8''model", b"m") + END, "no plain name"),
        (part(b'form-data; name="model"; name="file"', b"m") + END, "no plain name"),
        (part(b'attachment; name="model"', b"m") + END, "no plain name"),
        (part(b'form-data; name="model"', b"m", b'content-disposition: form-data; name="file"') + END, "two names"),
        (part(b'form-data; name="model"', b"bQ==", b"Content-Transfer-Encoding: base64") + END, "encoded"),
        (part(b'form-data;\r\n name="model"', b"m") + END, "malformed header"),
        (part(b'form-data; name="model"\n', b"m") + END, "malformed header"),
        (part(b'form-data; name="model"', b"\xff") + END, "UTF-8"),
        (part(b'form-data; name="model"', b"m" * 70_000) + END, "too long"),
        (part(b'form-data; name="model"', b"m", b"x: " + b"y" * 4000) + END, "no end"),
        (b"--xx \r\n" + MODEL[6:] + END, "line end"),
        (b"".join(part(b'form-data; name="a%d"' % i, b"") for i in range(MAX_PARTS)) + MODEL + END, "more than"),
        (FILE + END, "`model` is missing"),
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(body: bytes, why: str):
    with pytest.raises(ApiError, match=why) as caught:
        parse_form(body, TYPE)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "kind",
    [
        None,
        b"application/json",
        b"multipart/form-data",
        TYPE + b"; boundary=yy",
        b"multipart/form-data; boundary=a b",
        TYPE + b"; charset=utf-16",
    ],
)
def test_anything_but_a_form_is_refused(kind: bytes | None):
    with pytest.raises(ApiError) as caught:
        parse_form(MODEL + END, kind)
    assert caught.value.status == 415


async def test_a_transcription_goes_to_the_target_for_it_with_the_file_as_it_was():
    shared = {"kind": "server", "vouched": True, "zone": "eu"}
    ears = {**shared, "id": "w", "models": {"ears": "whisper-1"}, "task": "transcription"}
    text = {**shared, "id": "t", "models": {"m": "m"}, "url": "http://127.0.0.1:9"}
    async with open_front_door({"a": "eu"}) as engines:
        url = f"http://127.0.0.1:{engines.engines['a'].port}"
        async with open_front_door({"b": "eu"}, targets=[{**ears, "url": url}, text]) as door:
            client = openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{door.port}/v1", api_key=KEY, max_retries=0)
            await client.audio.transcriptions.create(model="ears", file=("a.wav", SOUND), prompt="names", language="de")
            options = {"response_format": "verbose_json", "timestamp_granularities": ["word", "segment"]}
            await client.audio.transcriptions.create(model="ears", file=('Größe "1".wav', SOUND), **options)
            assert engines.engines["a"].requests[-1]["raw"].count(b"granularities[]") == 2
            seen = engines.engines["a"].requests[-1]
            assert seen["line"] == "POST /v1/audio/transcriptions HTTP/1.1"
            assert seen["headers"]["content-type"].startswith("multipart/form-data; boundary=")
            assert SOUND in seen["raw"] and b"whisper-1" in seen["raw"] and b"ears" not in seen["raw"]
            with pytest.raises(openai.NotFoundError, match="does not offer"):
                await client.audio.transcriptions.create(model="m", file=("a.wav", SOUND))
            with pytest.raises(openai.NotFoundError, match="does not offer"):
                await client.chat.completions.create(model="ears", messages=[{"role": "user", "content": "hi"}])
