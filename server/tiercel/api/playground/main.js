/* The page's state and its controls. One generation at a time. */

const $ = (id) => document.getElementById(id);
const composer = $("composer");
const fields = composer.elements;
const output = $("output");
const topLimit = Number(document.documentElement.dataset.topTokens);
const KEY = "tiercel-key";
const THEME = "tiercel-theme";

const card = new TokenCard(output);
const trace = new Trace();
const page = {
  model: "",
  turns: [], // of the chat: {role, content}
  sheet: null, // of the latest answer
  sheetBefore: null, // of the answer before it, in a chat
  running: null, // AbortController
  follow: true, // whether the end of the text is in sight
};

const mode = () => fields.mode.value;

/** Storage may be forbidden; then the page forgets. */
function stored(storage, name, value) {
  try {
    if (value === undefined) return window[storage].getItem(name) ?? "";
    window[storage].setItem(name, value);
  } catch {
    // nothing to do: the value lives as long as the page
  }
  return value ?? "";
}

/* Requests */

function requestOf(prompt) {
  const wanted = Math.min(topLimit, Number(fields.alternatives.value || 0));
  if (mode() === "text") return nativeRequest(fields, prompt, wanted);
  const turns = [...page.turns, { role: "user", content: prompt }];
  return chatRequest(fields, turns, wanted, page.model || "tgi");
}

/** The request of the form, or null after pointing at what is wrong with it. */
function checkedRequest() {
  const wrong = [...fields].find((field) => !field.checkValidity());
  if (wrong) {
    if (wrong.closest("#settings")) openSettings(true);
    wrong.reportValidity();
    return null;
  }
  if (fields.prompt.value === "") {
    say("Type a prompt first.");
    fields.prompt.focus();
    return null;
  }
  return requestOf(fields.prompt.value);
}

async function send() {
  if (page.running) return;
  const request = checkedRequest();
  if (!request) return;
  const prompt = fields.prompt.value;
  const sheet = newTurn(prompt, request.chat);
  const run = new AbortController();
  begin(run);
  const figures = { sentMs: performance.now(), firstMs: 0, lastMs: 0, end: {} };
  try {
    for await (const item of generate(request, $("key").value, run.signal)) {
      take(item, sheet, figures);
    }
    say(`Finished: ${sheet.tokens.length} tokens.`);
  } catch (error) {
    explain(error, run, sheet, figures);
  }
  sheet.flush();
  finish(sheet, figures, prompt, request.chat);
}

function take(item, sheet, figures) {
  if (item.token) {
    figures.lastMs = performance.now();
    figures.firstMs ||= figures.lastMs;
    sheet.figures = figures;
    sheet.add(item.token);
  }
  Object.assign(figures.end, item.part, item.end);
}

/** What stopped a generation before its end, in words. */
function explain(error, run, sheet, figures) {
  const count = sheet.tokens.length;
  figures.end.reason = run.signal.aborted ? "you" : "error";
  if (run.signal.aborted) {
    say(`Stopped after ${count} tokens.`);
    return;
  }
  const kept = count > 0 ? ` The ${count} tokens that had arrived are kept.` : "";
  fail(error instanceof ServerError
    ? `${error.message}${error.status ? ` (${error.status})` : ""}${kept}`
    : `The connection to the server was lost.${kept}`);
}

/* The page while it works */

function begin(run) {
  page.running = run;
  fail("");
  say("Generating.");
  const focused = document.activeElement === $("send");
  $("send").hidden = true;
  $("stop-button").hidden = false;
  if (focused) $("stop-button").focus();
  for (const id of ["first-token", "speed", "count", "reason", "used-seed"]) $(id).textContent = "–";
}

function finish(sheet, figures, prompt, chat) {
  page.running = null;
  const focused = document.activeElement === $("stop-button");
  $("stop-button").hidden = true;
  $("send").hidden = false;
  if (focused) $("send").focus();
  sheet.element.classList.remove("writing");
  $("reason").textContent = figures.end.reason || "–";
  $("used-seed").textContent = figures.end.seed ?? "–";
  if (!chat || sheet !== page.sheet) return; // cleared meanwhile
  if (sheet.tokens.length === 0) {
    sheet.element.parentElement.remove();
    page.sheet = page.sheetBefore;
    return;
  }
  page.turns.push({ role: "user", content: prompt });
  page.turns.push({ role: "assistant", content: sheet.text() });
  if (fields.prompt.value === prompt) fields.prompt.value = "";
}

/** A place for an answer. Text mode has one, a chat has many. */
function newTurn(prompt, chat) {
  $("hint").hidden = true;
  if (!chat) clearTurns();
  const turn = document.createElement("div");
  turn.className = "turn";
  turn.dir = "auto";
  const given = document.createElement("span");
  given.className = "given";
  given.textContent = prompt;
  const answer = document.createElement("span");
  answer.className = "answer writing";
  turn.append(given, answer);
  output.append(turn);
  output.scrollTop = output.scrollHeight;
  page.follow = true;
  page.sheetBefore = page.sheet;
  page.sheet = new TokenSheet(answer, onFrame);
  return page.sheet;
}

/** After each batch of tokens: follow the text if its end was in sight, and the figures. */
function onFrame() {
  const { sheet } = page;
  if (!sheet) return;
  if (page.follow) output.scrollTop = output.scrollHeight;
  trace.draw(sheet.tokens);
  const { sentMs, firstMs, lastMs } = sheet.figures ?? {};
  if (!firstMs) return;
  const count = sheet.tokens.length;
  $("first-token").textContent = `${Math.round(firstMs - sentMs)} ms`;
  $("count").textContent = count;
  const perSecond = (1000 * (count - 1)) / (lastMs - firstMs);
  $("speed").textContent = count > 1 && lastMs > firstMs ? perSecond.toFixed(0) : "–";
}

function clearTurns() {
  card.hide();
  for (const turn of output.querySelectorAll(".turn")) turn.remove();
  page.turns = [];
}

function clear() {
  page.running?.abort();
  clearTurns();
  page.sheet = null;
  $("hint").hidden = false;
  fail("");
  say("");
  trace.draw([]);
  if (matchMedia("(hover: hover)").matches) fields.prompt.focus(); // no keyboard over a phone
}

const say = (text) => { $("status").textContent = text; };

function fail(text) {
  $("failure").textContent = text;
  $("failure").hidden = text === "";
  if (text) say("");
}

/* Copying */

/** To the clipboard; where a page may not (plain HTTP), into a box to copy from. */
async function copy(text, done) {
  try {
    await navigator.clipboard.writeText(text);
    say(done);
  } catch {
    $("command-text").value = text;
    $("command").showModal();
    $("command-text").select();
  }
}

function copyCurl() {
  const request = checkedRequest();
  if (!request) return;
  const keyed = $("key").value !== "";
  const more = keyed ? " It reads the key from TIERCEL_API_KEY." : "";
  copy(curlCommand(request, keyed), `Copied the curl command.${more}`);
}

function copyText() {
  if (page.sheet) copy(page.sheet.text(), "Copied the text.");
  else say("There is no text yet.");
}

/* Settings */

function openSettings(open) {
  $("settings").classList.toggle("open", open);
  $("open-settings").setAttribute("aria-expanded", String(open));
  const shown = getComputedStyle($("open-settings")).display !== "none";
  if (shown) $(open ? "close-settings" : "open-settings").focus();
}

function showMode() {
  const chat = mode() === "chat";
  for (const each of document.querySelectorAll("[data-for]")) {
    each.hidden = each.dataset.for !== mode();
    for (const field of each.querySelectorAll("input, textarea")) field.disabled = each.hidden;
    if (each.matches("fieldset")) each.disabled = each.hidden;
  }
  output.classList.toggle("chat", chat);
  $("prompt-label").textContent = chat ? "Message" : "Prompt";
  $("send").textContent = chat ? "Send" : "Generate";
  clear();
}

function showTheme(name) {
  if (name) document.documentElement.dataset.theme = name;
  else delete document.documentElement.dataset.theme;
  $("theme").value = name;
  if (page.sheet) trace.draw(page.sheet.tokens);
}

function showColours() {
  output.classList.toggle("coloured", $("colours").checked);
}

function reset() {
  const { value: prompt } = fields.prompt;
  const { value: kept } = fields.mode;
  composer.reset();
  fields.prompt.value = prompt;
  fields.mode.value = kept;
}

/** The server's limits become the form's. Asked again when the key changes. */
async function readInfo() {
  const key = $("key").value;
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  try {
    const response = await fetch("info", { headers });
    if (!response.ok) throw await refusal(response);
    const info = await response.json();
    page.model = info.model_id;
    $("model").textContent = `${info.model_id} · ${info.model_dtype} · ${info.model_device_type}`;
    const { max_new_tokens: length } = fields;
    length.max = info.max_total_tokens - 1;
    const usual = String(Math.min(128, Math.ceil(info.max_total_tokens / 2)));
    if (length.value === length.defaultValue) length.value = usual;
    length.defaultValue = usual;
    fields.truncate.max = info.max_input_tokens;
    $("stop-hint").firstChild.data = `One per line, at most ${info.max_stop_sequences}. `;
    fail("");
  } catch (error) {
    // Some deployments keep /info to themselves; the limits are then learnt by trying.
    if (!(error instanceof ServerError)) fail("The server cannot be reached.");
  }
}

/* Start */

composer.addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    send();
  } else if (event.key === "Escape" && !$("command").open) {
    if (page.running) page.running.abort();
    if (card.open) card.hide();
    else if ($("settings").classList.contains("open")) openSettings(false);
  }
});
output.addEventListener("scroll", () => {
  page.follow = output.scrollHeight - output.scrollTop - output.clientHeight < 40;
}, { passive: true });
$("examples").addEventListener("click", (event) => {
  if (!event.target.matches("button")) return;
  fields.prompt.value = event.target.textContent;
  fields.prompt.focus();
});
$("stop-button").addEventListener("click", () => page.running?.abort());
$("clear").addEventListener("click", clear);
$("copy-text").addEventListener("click", copyText);
$("copy-curl").addEventListener("click", copyCurl);
$("open-settings").addEventListener("click", () => openSettings(true));
$("close-settings").addEventListener("click", () => openSettings(false));
$("reset").addEventListener("click", reset);
$("colours").addEventListener("change", showColours);
$("theme").addEventListener("change", (event) =>
  showTheme(stored("localStorage", THEME, event.target.value)));
$("key").addEventListener("change", (event) => {
  stored("sessionStorage", KEY, event.target.value);
  readInfo();
});
for (const each of fields.mode) each.addEventListener("change", showMode);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () =>
  showTheme($("theme").value));

fields.alternatives.max = topLimit;
fields.alternatives.value = fields.alternatives.defaultValue = topLimit;
$("key").value = stored("sessionStorage", KEY);
showTheme(stored("localStorage", THEME));
showColours();
showMode();
readInfo();
