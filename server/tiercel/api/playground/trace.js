/* The trace: one bar per token, as high as the token was surprising, in the colours of the text. */

const HIGHEST_NATS = 7;
const BAR_PX = 3;

class Trace {
  #canvas = document.getElementById("trace");
  #swatches = document.querySelectorAll("#legend .swatch");
  #tokens = [];

  constructor() {
    new ResizeObserver(() => this.draw(this.#tokens)).observe(this.#canvas);
  }

  /** Where there are more tokens than bars, a bar is the greatest surprise of its tokens. */
  draw(tokens) {
    this.#tokens = tokens;
    const { clientWidth: width, clientHeight: height } = this.#canvas;
    const scale = devicePixelRatio;
    this.#canvas.width = width * scale;
    this.#canvas.height = height * scale;
    const context = this.#canvas.getContext("2d");
    context.scale(scale, scale);
    const colours = [...this.#swatches].map((each) => getComputedStyle(each).color);
    const perBar = Math.max(1, Math.ceil((tokens.length * BAR_PX) / Math.max(width, 1)));
    for (let start = 0, x = 0; start < tokens.length; start += perBar, x += BAR_PX) {
      const lowest = Math.min(
        ...tokens.slice(start, start + perBar).map((token) => token.logprob ?? 0));
      const bar = 2 + (height - 2) * Math.min(1, -lowest / HIGHEST_NATS);
      context.fillStyle = colours[levelOf(lowest)];
      context.fillRect(x, height - bar, BAR_PX - 1, bar);
    }
  }
}
