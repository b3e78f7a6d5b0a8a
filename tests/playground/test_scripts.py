"""The page's scripts in Node: the event parser on every cut, JSON, and quoting for the shell."""

import json
import shutil
import subprocess
from importlib.resources import files
from typing import Any

import pytest

from support.awkward import AWKWARD
from tiercel.api.playground.page import PlaygroundRoute

NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="Node is not installed")

STREAM = (
    "\ufeff: hello\n\ndata: one\n\ndata:two\r\ndata:  three\r\n\r\nevent: x\rdata\rdata: \r\r"
    ':\n\nid: 4\n\ndata: {"text":"a\u0085b\u2028c\u2029d 😀"}\n\ndata: cut off\n'
)
EVENTS = ["one", "two\n three", "\n", '{"text":"a\u0085b\u2028c\u2029d 😀"}']


def run(expression: str, **given: Any) -> Any:
    """The value of an expression in the scope of the scripts, with `given` as its variables."""
    folder = files("tiercel.api.playground")
    scripts = "\n".join(folder.joinpath(name).read_text() for name in ("sse.js", "requests.js"))
    program = (
        f"const document = {{ baseURI: 'http://host:1/x/playground' }};\n{scripts}\n"
        "const given = JSON.parse(require('fs').readFileSync(0, 'utf8'));\n"
        f"Promise.resolve({expression}).then((v) => console.log(JSON.stringify(v)));"
    )
    done = subprocess.run(
        [str(NODE), "-e", program],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return json.loads(done.stdout)


def test_the_script_is_a_program() -> None:
    html = PlaygroundRoute(5).document.decode()
    script = html.partition("<script>")[2].partition("</script>")[0]
    done = subprocess.run(
        [str(NODE), "--check", "-"], input=script, capture_output=True, text=True, timeout=60
    )
    assert done.stderr == ""


def test_events_are_whole_wherever_the_text_is_cut() -> None:
    texts = run(
        "[...given.text].map((_, first) => [...given.text].map((_, second) => {"
        "  const parser = new EventParser(); const cuts = [0, first, Math.max(first, second)];"
        "  return cuts.flatMap((cut, n) => parser.push(given.text.slice(cut, cuts[n + 1])));"
        "})).flat().map(JSON.stringify).filter((v, n, all) => all.indexOf(v) === n)",
        text=STREAM.removeprefix("\ufeff"),
    )
    assert [json.loads(text) for text in texts] == [EVENTS]


def test_events_are_whole_wherever_the_bytes_are_cut() -> None:
    lists = run(
        "Promise.all([1, 2, 3, 5, 64].map(async (size) => {"
        "  const bytes = new TextEncoder().encode(given.text); const found = [];"
        "  const body = new ReadableStream({ start(to) {"
        "    for (let i = 0; i < bytes.length; i += size) to.enqueue(bytes.slice(i, i + size));"
        "    to.close(); } });"
        "  for await (const data of eventsOf(body)) found.push(data);"
        "  return found; }))",
        text=STREAM,
    )
    assert lists == [EVENTS] * 5


def test_a_seed_of_64_bits_survives() -> None:
    body = run("toJson({ a: [1.5, 'x', true, null], seed: 18446744073709551615n, b: undefined })")
    assert body == '{"a":[1.5,"x",true,null],"seed":18446744073709551615}'


def test_escapes_in_stop_strings() -> None:
    typed = r"\nUser: \\n \t \u2028 \x"
    assert run("unescaped(given.typed)", typed=typed) == "\nUser: \\n \t \u2028 \\x"


@pytest.mark.parametrize("text", ['it\'s $HOME `id` "x" \\ !! *\n#', AWKWARD.replace("\0", "")])
def test_the_shell_reads_what_was_quoted(text: str) -> None:
    command = run("'printf %s ' + quoted(given.text)", text=text)
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, timeout=10, check=True)
    assert done.stdout.decode() == text


def test_a_key_stays_out_of_the_curl_command() -> None:
    command = run("curlCommand({ path: 'generate_stream', body: '{}' }, true)")
    assert '-H "Authorization: Bearer $TIERCEL_API_KEY"' in command
    assert "'http://host:1/x/generate_stream'" in command
