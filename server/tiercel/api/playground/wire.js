/* What the server answers, native or OpenAI, as one kind of item:
   { token: {text, id, logprob, special, top} } for each token, at last { end: {reason, ...} }. */

const UNSCORED = { id: null, logprob: null, special: false, top: [] };

/** The server's own sentence about what went wrong; `status` is 0 inside a stream. */
class ServerError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

/** Items of one generation. Throws ServerError, TypeError (connection), AbortError (stopped). */
async function* generate(request, key, signal) {
  const headers = { "Content-Type": "application/json" };
  if (key) headers.Authorization = `Bearer ${key}`;
  const response = await fetch(request.path, {
    method: "POST",
    headers,
    body: request.body,
    signal,
    cache: "no-store",
    credentials: "same-origin",
  });
  if (!response.ok) throw await refusal(response);
  const read = request.chat ? chatItems : nativeItems;
  let ended = false;
  for await (const data of eventsOf(response.body)) {
    for (const item of read(data)) {
      ended ||= "end" in item;
      yield item;
    }
  }
  if (!ended) throw new TypeError("the stream has no last event");
}

/** One event of /generate_stream. */
function* nativeItems(data) {
  const event = parsed(data);
  const { token, details } = event;
  if (token) yield { token: { ...token, top: event.top_tokens ?? [] } };
  if (typeof event.generated_text !== "string") return;
  yield {
    end: {
      text: event.generated_text,
      reason: details?.finish_reason ?? "",
      // A seed has 64 bits, more than a number holds. Inside a JSON text quotes are escaped.
      seed: /"seed":(\d+)/.exec(data)?.[1] ?? null,
      inputTokens: details?.input_length ?? null,
    },
  };
}

/** One chunk of /v1/chat/completions; the last chunk may come without choices. */
function* chatItems(data) {
  if (data === "[DONE]") {
    yield { end: {} };
    return;
  }
  const event = parsed(data);
  const choice = event.choices?.[0];
  if (choice) {
    for (const token of chatTokens(choice)) yield { token };
    if (choice.finish_reason) yield { part: { reason: choice.finish_reason } };
  }
  if (event.usage) yield { part: { inputTokens: event.usage.prompt_tokens } };
}

/** A chunk's text by tokens, where the bytes of its tokens spell it; else in one piece. */
function chatTokens(choice) {
  const text = choice.delta?.content ?? "";
  const scored = choice.logprobs?.content ?? [];
  if (scored.length === 0) return text === "" ? [] : [{ text, ...UNSCORED }];
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  const pieces = scored.map(({ token, bytes }) =>
    bytes ? decoder.decode(new Uint8Array(bytes), { stream: true }) : token);
  const spelled = scored.length > 1 && pieces.join("") === text;
  return (spelled ? pieces : [text]).map((piece, nth) => {
    const { token, logprob, top_logprobs: top } = scored[nth];
    const special = text === "" && /^<\|.*\|>$/.test(token);
    const others = top.map((each) => ({ text: each.token, logprob: each.logprob }));
    // A token of the stop text adds no text; its own is what the card shows.
    return { text: special ? token : piece, own: token, id: null, logprob, special, top: others };
  });
}

/** The JSON of an event. An error inside the stream is thrown. */
function parsed(data) {
  let event;
  try {
    event = JSON.parse(data);
  } catch {
    throw new ServerError("The server sent an event that is not JSON.");
  }
  if (event.error) throw new ServerError(sentence(event));
  return event;
}

/** An answer that is not 200, as a ServerError for people. */
async function refusal(response) {
  const text = await response.text();
  let said = text.trim();
  try {
    said = sentence(JSON.parse(text));
  } catch {
    // plain text, as bodies that cannot be read are answered
  }
  const wait = response.headers.get("retry-after");
  const hints = {
    401: "Enter a valid API key in the settings.",
    403: "This API key may not do that.",
    404: "This server does not have this route.",
    429: `Too many requests at once. Try again ${wait ? `in ${wait} s` : "soon"}.`,
    503: `The server is not ready. Try again ${wait ? `in ${wait} s` : "soon"}.`,
  };
  const hint = hints[response.status] ?? "";
  const end = said && !/[.!?]$/.test(said) ? "." : "";
  return new ServerError(`${said}${end} ${hint}`.trim() || "No reason given.", response.status);
}

/** The message of either error shape. */
function sentence(body) {
  return String(body.error?.message ?? body.error ?? body.message ?? "No reason given.");
}
