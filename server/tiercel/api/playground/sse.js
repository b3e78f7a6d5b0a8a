/* Server-sent events out of the bytes of a fetch. Knows nothing of tokens. */

/** Takes text in pieces cut anywhere; gives back the data of whole events. */
class EventParser {
  #rest = "";
  #data = [];

  /** The data of the events that this piece completes. Comments and other fields are skipped. */
  push(text) {
    const events = [];
    let buffer = this.#rest + text;
    for (;;) {
      const end = buffer.search(/[\r\n]/);
      // A carriage return at the very end may be half of a CRLF.
      if (end < 0 || (buffer[end] === "\r" && end + 1 === buffer.length)) break;
      this.#line(buffer.slice(0, end), events);
      buffer = buffer.slice(end + (buffer.startsWith("\r\n", end) ? 2 : 1));
    }
    this.#rest = buffer;
    return events;
  }

  #line(line, events) {
    if (line === "") {
      if (this.#data.length > 0) events.push(this.#data.join("\n"));
      this.#data = [];
    } else if (line === "data" || line.startsWith("data:")) {
      this.#data.push(line.slice(5).replace(/^ /, ""));
    }
  }
}

/** The data of each event of a response's body. Ending the loop early closes the connection. */
async function* eventsOf(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  const parser = new EventParser();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield* parser.push(decoder.decode(value, { stream: true }));
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
