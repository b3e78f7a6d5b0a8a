/* From the form to a request: path and JSON text. Also the same request as a curl command. */

const NATIVE = ["temperature", "top_k", "top_p", "typical_p", "repetition_penalty",
  "frequency_penalty", "max_new_tokens", "truncate"];
const CHAT = ["temperature", "top_p", "frequency_penalty", "presence_penalty"];

/** POST /generate_stream for a prompt. `form` has one named control per parameter. */
function nativeRequest(form, prompt, topTokens) {
  const parameters = numbers(form, NATIVE);
  for (const name of ["do_sample", "watermark"]) {
    if (form[name].checked) parameters[name] = true;
  }
  Object.assign(parameters, common(form), { details: true });
  if (topTokens > 0) parameters.top_n_tokens = topTokens;
  return { path: "generate_stream", chat: false, body: toJson({ inputs: prompt, parameters }) };
}

/** POST /v1/chat/completions for the turns so far. */
function chatRequest(form, turns, topTokens, model) {
  const system = form.system.value.trim();
  const messages = system ? [{ role: "system", content: system }, ...turns] : turns;
  const body = { model, messages, ...numbers(form, CHAT), ...common(form) };
  if (form.max_new_tokens.value !== "") body.max_tokens = Number(form.max_new_tokens.value);
  Object.assign(body, { stream: true, stream_options: { include_usage: true }, logprobs: true });
  if (topTokens > 0) body.top_logprobs = topTokens;
  return { path: "v1/chat/completions", chat: true, body: toJson(body) };
}

/** The parameters that are not empty; an empty one is left to the server. */
function numbers(form, names) {
  const filled = names.filter((name) => form[name].value !== "");
  return Object.fromEntries(filled.map((name) => [name, Number(form[name].value)]));
}

function common(form) {
  const found = {};
  const stop = form.stop.value.split("\n").filter((line) => line !== "").map(unescaped);
  if (stop.length > 0) found.stop = stop;
  if (form.seed.value.trim() !== "") found.seed = BigInt(form.seed.value.trim());
  return found;
}

/** A line as typed, with \n, \r, \t, \\ and \uXXXX read as in JSON. */
function unescaped(line) {
  const letters = { n: "\n", r: "\r", t: "\t", "\\": "\\" };
  return line.replace(/\\(?:u([0-9a-fA-F]{4})|([nrt\\]))/g, (_, code, letter) =>
    code ? String.fromCharCode(parseInt(code, 16)) : letters[letter]);
}

/** JSON.stringify that also writes the integers of 64 bits that a seed may have. */
function toJson(value) {
  if (typeof value === "bigint") return String(value);
  if (Array.isArray(value)) return `[${value.map(toJson).join(",")}]`;
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  const fields = Object.entries(value).filter(([, field]) => field !== undefined);
  return `{${fields.map(([name, field]) => `${JSON.stringify(name)}:${toJson(field)}`).join(",")}}`;
}

/** The request for a POSIX shell. The key stays out of it: the command reads a variable. */
function curlCommand(request, keyed) {
  const lines = [
    `curl -N ${quoted(new URL(request.path, document.baseURI).href)}`,
    "-H 'Content-Type: application/json'",
    ...(keyed ? ['-H "Authorization: Bearer $TIERCEL_API_KEY"'] : []),
    `--data-raw ${quoted(request.body)}`,
  ];
  return lines.join(" \\\n  ");
}

function quoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}
