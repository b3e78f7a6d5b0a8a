/* The generated text on the page: one span per token, written once per frame. */

const LEVELS = [0.5, 0.2, 0.07, 0.02]; // probabilities from which a token is less of a surprise

/** 0 for what the model was sure of, up to 4 for a surprise. */
function levelOf(logprob) {
  if (logprob === null) return 0;
  const probability = Math.exp(logprob);
  const found = LEVELS.findIndex((bound) => probability >= bound);
  return found < 0 ? LEVELS.length : found;
}

/** The tokens of one answer inside `element`. Spans know their token through `tokenOf`. */
class TokenSheet {
  static #tokens = new WeakMap();

  constructor(element, onFrame) {
    this.tokens = [];
    this.element = element;
    this.onFrame = onFrame;
    this.#written = 0;
  }

  #written;
  #frame = 0;

  static tokenOf(span) {
    return TokenSheet.#tokens.get(span);
  }

  /** Shown with the next frame, with all that arrive until then. */
  add(token) {
    this.tokens.push(token);
    this.#frame ||= requestAnimationFrame(() => this.flush());
  }

  /** Write what waits. A hidden tab has no frames: the end of a stream calls this. */
  flush() {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    const fragment = document.createDocumentFragment();
    for (; this.#written < this.tokens.length; this.#written += 1) {
      fragment.append(this.#span(this.tokens[this.#written]));
    }
    this.element.append(fragment);
    this.onFrame();
  }

  /** The text for people and for the next turn: without special tokens. */
  text() {
    return this.tokens.filter((token) => !token.special).map((token) => token.text).join("");
  }

  #span(token) {
    const span = document.createElement("span");
    span.className = `t p${levelOf(token.logprob)}`;
    if (token.special) span.classList.add("special");
    else if (/^\s*\n\s*$/.test(token.text)) span.classList.add("break");
    span.textContent = token.text;
    TokenSheet.#tokens.set(span, token);
    return span;
  }
}
