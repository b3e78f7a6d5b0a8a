// A client as people write it in Node: fetch, a stream reader, lines. Prints one JSON document:
// {status, type, events, chunks} or {failure}. `stopAfter` events it aborts.

const { url, body, headers, stopAfter } = JSON.parse(process.argv[2]);
const abort = new AbortController();
const events = [];
let chunks = 0;
let answer = {};

try {
  const response = await fetch(url, {
    method: "POST",
    headers: { "content-type": "application/json", ...headers },
    body: JSON.stringify(body),
    signal: abort.signal,
  });
  answer = { status: response.status, type: response.headers.get("content-type") };
  if (!answer.type.startsWith("text/event-stream")) {
    answer.text = await response.text();
  } else {
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      chunks += 1;
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        if (part.startsWith("data: ")) events.push(part.slice(6));
      }
      if (stopAfter && events.length >= stopAfter) abort.abort();
    }
    answer.rest = rest;
  }
} catch (error) {
  answer.failure = error.name;
}
console.log(JSON.stringify({ ...answer, events, chunks }));
