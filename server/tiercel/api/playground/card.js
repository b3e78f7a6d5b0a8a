/* The card with a token's probability and what else could have stood there. */

class TokenCard {
  #card = document.getElementById("card");
  #title = document.getElementById("card-token");
  #facts = document.getElementById("card-facts");
  #rows = document.getElementById("card-rows");
  #timer = 0;
  #span = null;

  constructor(output) {
    output.addEventListener("pointerover", (event) => this.#over(event));
    output.addEventListener("pointerout", () => this.#leaveSoon());
    output.addEventListener("focusin", (event) => this.#show(event.target));
    output.addEventListener("focusout", () => this.hide());
    output.addEventListener("click", (event) => this.#show(event.target));
    output.addEventListener("scroll", () => this.#moved(), { passive: true });
    output.addEventListener("keydown", (event) => this.#key(event, output));
    this.#card.addEventListener("pointerenter", () => clearTimeout(this.#timer));
    this.#card.addEventListener("pointerleave", () => this.#leaveSoon());
    document.addEventListener("pointerdown", (event) => {
      if (!this.#card.contains(event.target) && !TokenSheet.tokenOf(event.target)) this.hide();
    });
  }

  get open() {
    return !this.#card.hidden;
  }

  hide() {
    clearTimeout(this.#timer);
    this.#span?.removeAttribute("aria-describedby");
    this.#span?.classList.remove("chosen");
    this.#span = null;
    this.#card.hidden = true;
  }

  #over(event) {
    if (event.pointerType === "mouse") this.#show(event.target);
  }

  /** The way from the token to the card is no leaving. */
  #leaveSoon() {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      if (document.activeElement !== this.#span) this.hide();
    }, 160);
  }

  /** The card goes with a token that has the focus; a mouse has left its token. */
  #moved() {
    if (this.#span && document.activeElement === this.#span) this.#place(this.#span);
    else this.hide();
  }

  /** Left and right walk over the tokens, Home and End jump. Tab passes them by. */
  #key(event, output) {
    const keys = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity };
    const step = keys[event.key];
    const spans = output.querySelectorAll(".t");
    if (step === undefined || spans.length === 0 || event.ctrlKey || event.altKey) return;
    event.preventDefault();
    const current = Array.prototype.indexOf.call(spans, document.activeElement);
    const from = current < 0 && step < 0 ? spans.length : current;
    const next = spans[Math.max(0, Math.min(spans.length - 1, from + step))];
    next.tabIndex = -1;
    next.focus({ preventScroll: true });
    next.scrollIntoView({ block: "nearest" });
    this.#show(next);
  }

  #show(span) {
    const token = TokenSheet.tokenOf(span);
    if (!token || token.logprob === null) return;
    clearTimeout(this.#timer);
    if (span === this.#span) return;
    this.hide();
    this.#span = span;
    span.classList.add("chosen");
    span.setAttribute("aria-describedby", "card");
    this.#title.textContent = visible(token.text || (token.own ?? ""));
    const id = token.id === null ? "" : ` · id ${token.id}`;
    this.#facts.textContent =
      `${percent(token.logprob)} · logprob ${token.logprob.toFixed(3)}${id}`;
    const known = token.top.some((other) => taken(other, token));
    const others = token.top.map((other) => this.#row(other, taken(other, token)));
    if (!known && others.length > 0) others.push(this.#row(token, true));
    this.#rows.replaceChildren(...others);
    this.#card.hidden = false;
    this.#place(span);
  }

  #row(other, chosen) {
    const row = document.createElement("li");
    row.className = chosen ? "taken" : "";
    const text = document.createElement("span");
    text.className = "alternative";
    text.textContent = visible(other.own ?? other.text);
    const bar = document.createElement("span");
    bar.className = "share";
    bar.style.setProperty("--share", `${100 * Math.exp(other.logprob)}%`);
    const value = document.createElement("span");
    value.className = "value";
    value.textContent = percent(other.logprob);
    row.append(text, bar, value);
    return row;
  }

  /** Under the token, or above it where there is no room; never outside the window. */
  #place(span) {
    // A token whose space hangs at the end of a line has two boxes.
    const boxes = [...span.getClientRects(), span.getBoundingClientRect()].slice(0, 2);
    const box = boxes.reduce((widest, each) => (each.width > widest.width ? each : widest));
    const { width, height } = this.#card.getBoundingClientRect();
    const left = Math.max(8, Math.min(box.left, innerWidth - width - 8));
    const below = box.bottom + 6;
    const top = below + height > innerHeight - 8 ? Math.max(8, box.top - height - 6) : below;
    this.#card.style.left = `${left}px`;
    this.#card.style.top = `${top}px`;
  }
}

/** Whether an alternative is the token itself. A chat has no ids. */
function taken(other, token) {
  return token.id === null ? other.text === token.own : other.id === token.id;
}

/** A token's text with its white space made visible. */
function visible(text) {
  if (/^\ufffd*$/.test(text)) return "(part of a character)";
  const signs = { " ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍" };
  return text.replace(/[ \n\t\r]/g, (space) => signs[space]);
}

function percent(logprob) {
  const share = 100 * Math.exp(logprob);
  return share < 0.1 ? "< 0.1%" : `${share.toFixed(share < 10 ? 1 : 0)}%`;
}
